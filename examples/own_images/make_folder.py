"""Make folders of images from the handwritten digits that come with scikit-learn: python make_folder.py photos [COUNT]

photos/train, photos/val and photos/test hold one folder a class, as torchvision's ImageFolder wants them.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PARTS = ["train", "train", "train", "val", "test"]  # every fifth image

folder, digits = Path(sys.argv[1]), load_digits()
count = int(sys.argv[2]) if len(sys.argv) > 2 else len(digits.images)
for number, (pixels, digit) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
    place = folder / PARTS[number % len(PARTS)] / f"digit-{digit}"
    place.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((255 - pixels * (255 / 16)).astype(np.uint8))  # ink on paper, 8x8
    image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(place / f"{number:04}.png")
print(f"{count:,} images of {len(digits.target_names)} classes in {folder}/")
