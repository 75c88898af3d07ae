"""Data: splits are disjoint, stratified and repeatable; what is broken is refused before any training."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import mnist_files, write_folder
from PIL import Image

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.core.recipe import Recipe
from ltcompile.data import _dataset, _labelled, names
from ltcompile.data._dataset import Description
from ltcompile.data._epochs import Moves
from ltcompile.data._split import stratified
from ltcompile.errors import InvalidData, InvalidSetting, UnknownName

CPU = torch.device("cpu")


def test_registry_lists_the_sources() -> None:
    assert names() == ["cifar10", "cifar100", "coco", "digits", "folder", "hf", "imagefolder", "mnist", "scenes", "webdataset"]
    with pytest.raises(UnknownName, match="Did you mean cifar10"):
        lt.load_data("cifar")


@pytest.mark.parametrize(("side", "pixels"), [(16, 1), (32, 3), (64, 3)])
def test_crops_of_few_images_scale_down_with_their_side(side: int, pixels: int) -> None:
    assert lt.load_data("digits", image_size=side).adapt(Recipe()).crop_pixels == pixels


def test_digits_are_real_and_split_once() -> None:
    digits = lt.load_data("digits")
    assert len(digits.train) + len(digits.val) + len(digits.test) == 1797
    assert digits.description.shape == (1, 32, 32) and digits.description.classes == 10
    pixels = [torch.cat([x for x, _ in s.batches(512, CPU, None, 0)]).flatten(1) for s in (digits.train, digits.val, digits.test)]
    assert all(torch.cdist(a[:200], b).min() > 0 for a, b in ((pixels[0], pixels[1]), (pixels[0], pixels[2]), (pixels[1], pixels[2])))
    mean, std = pixels[0].mean(), pixels[0].std()
    assert abs(mean) < 1e-2 and abs(std - 1) < 1e-2
    again = lt.load_data("digits")
    assert torch.equal(again.val.labels, digits.val.labels)


def test_stratified_parts_are_disjoint_and_even() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)
    a, b, rest = stratified(labels, (0.2, 0.1), seed=3)
    assert sorted(torch.cat([a, b, rest]).tolist()) == list(range(84))
    assert [int((labels[a] == c).sum()) for c in range(3)] == [10, 6, 1]
    assert all(torch.equal(x, y) for x, y in zip((a, b, rest), stratified(labels, (0.2, 0.1), seed=3), strict=True))


def test_training_batches_repeat_by_seed_and_drop_the_rest() -> None:
    train, recipe = lt.load_data("digits").train, Recipe(batch=64)
    first = list(train.batches(64, CPU, recipe, 5))
    assert len(first) == len(train) // 64 and all(len(y) == 64 for _, y in first)
    again, other = list(train.batches(64, CPU, recipe, 5)), list(train.batches(64, CPU, recipe, 6))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_augmentation_shifts_and_mirrors_each_image() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    black = torch.zeros(1)
    out = Moves.draw(200, Recipe(crop_pixels=2, flip=True), torch.Generator().manual_seed(0)).of_images(image.repeat(200, 1, 1, 1), black)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2), value=0.0)[0, 0]
    allowed = {tuple(p[y : y + 8, x : x + 8].flatten().tolist()) for p in (padded,) for y in range(5) for x in range(5)}
    allowed |= {tuple(torch.tensor(a).view(8, 8).flip(1).flatten().tolist()) for a in allowed}
    found = {tuple(o.flatten().tolist()) for o in out}
    assert found <= allowed and len(found) > 30
    still = Moves.draw(1, Recipe(crop_pixels=0, flip=False), torch.Generator()).of_images(image, black)
    assert torch.equal(still, image)


@pytest.mark.parametrize("layout", ["one folder", "train and test", "train, val and test"])
def test_image_folders(tmp_path: Path, layout: str) -> None:
    if layout == "one folder":
        write_folder(tmp_path)
    else:
        for seed, part in enumerate(layout.replace(" and ", ", ").split(", ")):
            write_folder(tmp_path / part, seed=seed)
    data = lt.load_data(f"imagefolder:{tmp_path}", image_size=16, val_share=0.25)
    assert data.description.class_names == ("class0", "class1", "class2")
    total = 36 if layout == "one folder" else 36 * (layout.count(",") + 2 if "," in layout else 2)
    assert len(data.train) + len(data.val) + len(data.test) == total
    x, y = next(iter(data.train.batches(4, CPU, Recipe(batch=4), 0)))
    assert x.shape == (4, 3, 16, 16) and y.shape == (4,)


def test_large_folders_stream_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    whole = lt.load_data(f"imagefolder:{tmp_path}", image_size=16)
    monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 10)
    streamed = lt.load_data(f"imagefolder:{tmp_path}", image_size=16)
    assert isinstance(streamed.train, _labelled.StreamedSplit)
    for a, b in zip(whole.test.batches(4, CPU, None, 0), streamed.test.batches(4, CPU, None, 0), strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(a[1], b[1])
    assert len(list(streamed.train.batches(8, CPU, Recipe(batch=8), 0))) == len(streamed.train) // 8


def test_images_keep_their_proportions(tmp_path: Path) -> None:
    """The middle third of a wide image is what a network sees of it, whichever way it comes."""
    for c, colour in enumerate(((255, 0, 0), (0, 0, 255))):
        (tmp_path / f"class{c}").mkdir()
        pixels = np.zeros((10, 30, 3), dtype=np.uint8)
        pixels[:, 10:20] = colour
        for i in range(6):
            turned = pixels.transpose(1, 0, 2) if i % 2 else pixels
            Image.fromarray(turned).save(tmp_path / f"class{c}" / f"{i}.png")
    data = lt.load_data(f"imagefolder:{tmp_path}", preprocessing=Preprocessing(10, (0.0,) * 3, (1.0,) * 3))
    for x, y in data.train.batches(64, CPU, None, 0):
        expected = torch.tensor([[1.0, 0, 0], [0, 0, 1]])[y][:, :, None, None].expand_as(x)
        torch.testing.assert_close(x, expected)


def test_mnist_layout(tmp_path: Path) -> None:
    mnist_files(tmp_path)
    data = lt.load_data("mnist", tmp_path, val_share=0.25)
    assert data.description.shape == (1, 28, 28) and not data.flip and len(data.test) == 40


class TestBroken:
    """A clear error before any training."""

    @pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist"])
    def test_missing(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(InvalidData, match="download=True"):
            lt.load_data(name, tmp_path)

    def test_corrupt_cifar(self, tmp_path: Path) -> None:
        folder = tmp_path / "cifar-10-batches-py"
        folder.mkdir()
        for part in ("data_batch_1", "test_batch", "batches.meta"):
            (folder / part).write_bytes(gzip.compress(b"no pickle of ours"))
        with pytest.raises(InvalidData, match="missing or corrupt"):
            lt.load_data("cifar10", tmp_path)

    def test_truncated_mnist(self, tmp_path: Path) -> None:
        mnist_files(tmp_path)
        file = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(InvalidData, match=r"cannot be read|missing or corrupt"):
            lt.load_data("mnist", tmp_path)

    def test_single_class(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="two at least"):
            lt.load_data(f"imagefolder:{write_folder(tmp_path, classes=1)}")

    def test_empty_class(self, tmp_path: Path) -> None:
        (write_folder(tmp_path) / "class9").mkdir()
        with pytest.raises(InvalidData, match=r"class9 holds no image"):
            lt.load_data(f"imagefolder:{tmp_path}")

    @pytest.mark.parametrize("broken", [1, 7])
    def test_unreadable_images_are_skipped_or_refused(self, tmp_path: Path, broken: int) -> None:
        write_folder(tmp_path, each=30)
        for i in range(broken):
            (tmp_path / "class1" / f"{i}.png").write_bytes(b"\x89PNG no more")
        with pytest.warns(Notice, match=rf"{broken} of 90 images in .* cannot be read: class1/\d\.png.*skipped") as said:
            data = lt.load_data(f"imagefolder:{tmp_path}", val_share=0.25)
        assert len(said) == 1 and str(said[0].message).count(".png") == min(broken, 5)
        assert len(data.train) + len(data.val) + len(data.test) == 90 - broken
        for split in (data.train, data.val, data.test):
            x = torch.cat([x for x, _ in split.batches(64, CPU, None, 0)])
            assert len(x) == len(split.labels) == len(split)
        with pytest.raises(InvalidData, match=rf"{broken} of 90 images .* or pass skip_damaged=True"):
            lt.load_data(f"imagefolder:{tmp_path}", val_share=0.25, strict=True)

    @pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")
    def test_a_class_whose_images_are_all_unreadable(self, tmp_path: Path) -> None:
        write_folder(tmp_path)
        for file in (tmp_path / "class2").iterdir():
            file.write_bytes(b"no image")
        with pytest.raises(InvalidData, match="no image of class class2"):
            lt.load_data(f"imagefolder:{tmp_path}")

    def test_unreadable_image_in_a_streamed_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 10)
        (write_folder(tmp_path) / "class1" / "3.png").write_bytes(b"\x89PNG no more")
        plain = Preprocessing(16, (0.5,) * 3, (0.5,) * 3)  # no statistics, for which a sample would be read at once
        data = lt.load_data(f"imagefolder:{tmp_path}", preprocessing=plain)
        with pytest.raises(InvalidData, match=r"3\.png is not a readable image"):
            for split in (data.train, data.val, data.test):
                list(split.batches(4, CPU, None, 0))

    def test_other_classes_in_test(self, tmp_path: Path) -> None:
        write_folder(tmp_path / "train")
        write_folder(tmp_path / "test", classes=2)
        with pytest.raises(InvalidData, match="has the classes"):
            lt.load_data(f"imagefolder:{tmp_path}")

    def test_no_such_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="no folder"):
            lt.load_data(f"imagefolder:{tmp_path / 'none'}")

    @pytest.mark.parametrize("name", ["imagefolder", "digits:here"])
    def test_misused_names(self, name: str) -> None:
        with pytest.raises(InvalidData, match="imagefolder:PATH"):
            lt.load_data(name)

    @pytest.mark.parametrize("size", [0, -4, 5000])
    def test_wrong_size(self, size: int) -> None:
        with pytest.raises(InvalidSetting, match=f"image size.*{size}"):
            lt.load_data("digits", image_size=size)

    def test_descriptions_must_fit(self) -> None:
        with pytest.raises(InvalidData, match="do not fit"):
            Description("x", ("a", "b"), (3, 8, 8), (0.5,), (0.5,))
