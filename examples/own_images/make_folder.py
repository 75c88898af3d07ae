"""Make folders of images from the handwritten digits that come with scikit-learn: python make_folder.py photos [COUNT]

photos/train, photos/val and photos/test hold one folder a class, as torchvision's ImageFolder wants them.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

PARTS = ["train", "train", "train", "val", "test"]  # every fifth image

parser, digits = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]), load_digits()
parser.add_argument("folder", type=Path)
parser.add_argument("count", type=int, nargs="?", default=len(digits.images), help="number of images")
given = parser.parse_args()
folder, count = given.folder, given.count
for number, (pixels, digit) in enumerate(zip(digits.images[:count], digits.target[:count], strict=True)):
    place = folder / PARTS[number % len(PARTS)] / f"digit-{digit}"
    place.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((255 - pixels * (255 / 16)).astype(np.uint8))  # ink on paper, 8x8
    image.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(place / f"{number:04}.png")
print(f"{count:,} images of {len(digits.target_names)} classes in {folder}/")
