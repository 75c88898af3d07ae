"""60,000 colour images of 32x32 in 100 classes (Krizhevsky 2009)."""

from __future__ import annotations

from functools import partial

from ltcompile.data import _torchvision

load = partial(_torchvision.load, "CIFAR100")
