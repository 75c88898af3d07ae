"""scikit-learn's bundled handwritten digits: 1797 real 8x8 images (UCI optdigits' test part), shown at 32x32.

A quarter is the test set, a third of the rest the validation split: with so few images, both must be large to be useful.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ltcompile.core.streams import stream
from ltcompile.data._dataset import Dataset, DatasetOptions, from_tensors
from ltcompile.data._split import stratified

TEST_SHARE, VAL_SHARE = 0.25, 1 / 3


def load(root: Path, options: DatasetOptions) -> Dataset:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.tensor(digits.images / 16 * 255).round().to(torch.uint8)[:, None]
    labels = torch.tensor(digits.target)
    test, train = stratified(labels, (TEST_SHARE,), stream("test split", options.seed))
    return from_tensors(
        "digits",
        [str(d) for d in range(10)],
        (images[train], labels[train]),
        (images[test], labels[test]),
        replace(options, val_share=max(options.val_share, VAL_SHARE)),
        image_size=options.size(32, 32),
        flip=False,
    )
