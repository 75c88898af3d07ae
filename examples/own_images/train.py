"""The network that you arrive with, trained by plain PyTorch and without ltcompile: python train.py photos resnet18.pth [EPOCHS]"""

import argparse

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
parser.add_argument("folder", help="of images, with train/CLASS in it")
parser.add_argument("output", help="file of the trained weights")
parser.add_argument("epochs", type=int, nargs="?", default=6)
given = parser.parse_args()
folder, output, epochs = given.folder, given.output, given.epochs
torch.manual_seed(0)
prepare = transforms.Compose(
    [transforms.Resize(32), transforms.ToTensor(), transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])]
)
images = ImageFolder(f"{folder}/train", prepare)
batches = DataLoader(images, batch_size=64, shuffle=True, drop_last=True)
model = resnet18(num_classes=len(images.classes))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=epochs * len(batches))
for epoch in range(epochs):
    total = 0.0
    for x, labels in batches:
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += loss.item()
    print(f"epoch {epoch + 1}/{epochs}: loss {total / len(batches):.3f}", flush=True)
torch.save(model.state_dict(), output)
