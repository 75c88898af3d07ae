"""Make a folder of images, one folder a class, from the handwritten digits that come with scikit-learn: python make_folder.py photos"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "photos")
digits = load_digits()
for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
    place = folder / f"digit-{digit}"
    place.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray((255 - pixels * (255 / 16)).astype(np.uint8))  # ink on paper, 8x8
    image.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB").save(place / f"{number:04}.png")
print(f"{len(digits.images):,} images of {len(digits.target_names)} classes in {folder}/")
