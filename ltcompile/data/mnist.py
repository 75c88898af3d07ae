"""70,000 handwritten digits of 28x28 (LeCun et al. 1998)."""

from __future__ import annotations

from functools import partial

from ltcompile.data import _torchvision

load = partial(_torchvision.load, "MNIST")
