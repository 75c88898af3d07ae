"""What searches are tested on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from attached import first_images

import ltcompile as lt
from ltcompile.data import Dataset


@pytest.fixture(scope="module")
def few_digits() -> Dataset:
    """160 images."""
    whole = lt.load_data("digits", image_size=16)
    return dataclasses.replace(whole, train=first_images(whole, 160))


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
