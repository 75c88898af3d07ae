"""Images with boxes: scenes repeat, boxes move with their pixels, COCO's layouts give one data set, and what is broken is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pictures import coco_json, write_coco, write_coco_parts

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.core.recipe import Recipe
from ltcompile.data import _dataset, scenes
from ltcompile.data._annotated import AnnotatedSplit, Objects
from ltcompile.data._contents import contents
from ltcompile.data._read import OnDisk
from ltcompile.errors import InvalidData

CPU = torch.device("cpu")
splits_stated = pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")


class TestScenes:
    @pytest.mark.slow
    def test_they_repeat_and_their_boxes_hold_their_maps(self) -> None:
        drawn, again = scenes.draw("val", 16), scenes.draw.__wrapped__("val", 16)
        assert torch.equal(drawn.images, again.images)
        assert not any(torch.equal(drawn.images, other.images) for other in (scenes.draw("test", 16), scenes.draw("val", 16, seed=1)))
        for mask, boxes, labels in zip(drawn.masks, drawn.boxes.long(), drawn.labels, strict=True):
            assert (labels >= 0).sum() >= 2
            left = mask.clone()
            for (x0, y0, x1, y1), label in zip(boxes.tolist(), labels.tolist(), strict=True):
                inside = left[y0:y1, x0:x1]
                assert label < 0 or (inside == 1 + label).any()
                inside.zero_()
            assert not left.any()

    def test_the_parts_have_other_digits(self) -> None:
        shares = [scenes.SHARES[part] for part in ("train", "val", "test")]
        assert all(before[1] <= after[0] for before, after in pairwise(shares)) and shares[0][0] == 0 and shares[-1][1] == 1

    @pytest.mark.slow
    def test_as_a_data_set(self) -> None:
        data = lt.load_data("scenes")
        assert data.annotations == ("boxes", "masks") and data.description.shape == (3, 64, 64) and data.description.classes == 10
        few = data.with_train_images(32)
        assert len(few.train) == 32 and len(few.val) == len(data.val) and few.description.name == "scenes, 32 training images"
        images, targets = next(iter(data.val.batches(8, CPU, None, 0)))
        assert images.shape == (8, 3, 64, 64) and targets["masks"].shape == (8, 64, 64) and len(targets["boxes"]) == 8
        with pytest.raises(InvalidData, match="scenes are 64x64 pixels, not 32x32"):
            lt.load_data("scenes", image_size=32)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 5])
def test_boxes_and_maps_move_with_their_pixels(flip: bool, pad: int) -> None:
    """A box is where its colour is, however the image was moved, and away once less than a quarter of it is left."""
    box = torch.tensor([[9.0, 2, 12, 10]])
    images, masks = torch.zeros(40, 1, 12, 12, dtype=torch.uint8), torch.zeros(40, 12, 12, dtype=torch.uint8)
    images[:, :, 2:10, 9:12], masks[:, 2:10, 9:12] = 255, 4
    split = AnnotatedSplit(images, [Objects(box, torch.tensor([3]))] * 40, masks, torch.zeros(1), torch.ones(1))
    seen = set()
    for moved, targets in split.batches(8, CPU, Recipe(batch=8, flip=flip, crop_pixels=pad), 1):
        for image, mask, boxes, labels in zip(moved[:, 0], targets["masks"], targets["boxes"], targets["labels"], strict=True):
            assert torch.equal(mask > 0, image > 0) and set(mask.unique().tolist()) <= {0, 4}
            rows, columns = (image > 0).nonzero(as_tuple=True)
            if len(boxes):
                assert labels.tolist() == [3]
                assert boxes[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            else:
                assert len(rows) < 24 / 4
            seen.add(tuple(boxes.flatten().tolist()))
    assert len(seen) > 5 if pad else len(seen) == 1 + flip


def everything(data: Any) -> list[tuple[Any, ...]]:
    return [
        (image.sum().item(), boxes.tolist(), labels.tolist())
        for split in (data.train, data.val, data.test)
        for images, targets in split.batches(3, CPU, None, 0)
        for image, boxes, labels in zip(images, targets["boxes"], targets["labels"], strict=True)
    ]


LAYOUTS: dict[str, Callable[[Path, str], tuple[Path, Path]]] = {
    "roboflow": lambda root, part: (root / ("valid" if part == "val" else part) / "_annotations.coco.json",) * 2,
    "coco": lambda root, part: (root / f"annotations/instances_{part}2017.json", root / f"{part}2017" / "x"),
    "images/part": lambda root, part: (root / f"annotations/instances_{part}.json", root / "images" / part / "x"),
    "images": lambda root, part: (root / f"annotations/instances_{part}.json", root / "images" / "x"),
}


class TestCoco:
    def test_layouts_give_the_same_data(self, tmp_path: Path) -> None:
        found = []
        for name, places in LAYOUTS.items():
            root = tmp_path / name.replace("/", "-")
            for seed, part in enumerate(("train", "val", "test")):
                path, image = places(root, part)
                write_coco(path, image.parent, coco_json(5, 100 * seed, seed))
            found.append(everything(lt.load_data(f"coco:{root}", image_size=24)))
        assert len(found[0]) == 15 and all(other == found[0] for other in found[1:])

    def test_boxes_are_where_their_colour_is(self, tmp_path: Path) -> None:
        """Stretched from 40x20 to 20x20 pixels; the image without an object stays, and the crowd is not an object."""
        data = lt.load_data(f"coco:{write_coco_parts(tmp_path, train=8, valid=4, test=4)}", image_size=20)
        assert data.description.class_names == ("red", "blue") and data.annotations == ("boxes",) and data.flip
        counts = []
        for images, targets in data.train.batches(8, CPU, None, 0):
            for image, boxes, labels in zip(images, targets["boxes"], targets["labels"], strict=True):
                counts.append(len(boxes))
                for box, label in zip(boxes, labels, strict=True):
                    x0, y0, x1, y1 = box.round().int().tolist()
                    assert (x1 - x0, y1 - y0) == (8, 8)
                    own, other = (
                        image[2 * int(label), y0 + 1 : y1 - 1, x0 + 1 : x1 - 1],
                        image[2 - 2 * int(label), y0 + 1 : y1 - 1, x0 + 1 : x1 - 1],
                    )
                    assert own.min() > 1 and other.max() < 0
        assert sorted(counts) == [0] + [1] * 7

    def test_parts_that_are_missing_come_from_the_training_images(self, tmp_path: Path) -> None:
        root = tmp_path / "photos"
        write_coco(root / "labels.json", root / "images", coco_json(20))
        with pytest.warns(Notice) as notices:
            data = lt.load_data(f"coco:{root}", image_size=16, val_share=0.15)
        texts = sorted(str(notice.message) for notice in notices)
        assert [text.split("coco:photos has no ")[1].split(" images of its own")[0] for text in texts] == ["test", "val"]
        assert (len(data.train), len(data.val), len(data.test)) == (13, 3, 4)
        again = lt.load_data(f"coco:{root}", image_size=16, val_share=0.15)
        assert everything(again) == everything(data)

    def test_large_folders_are_read_batch_by_batch(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        write_coco_parts(tmp_path, train=6, valid=3, test=3)
        whole = lt.load_data(f"coco:{tmp_path}", image_size=16)
        monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 10)
        streamed = lt.load_data(f"coco:{tmp_path}", image_size=16)
        assert not isinstance(streamed.train.images, torch.Tensor) and everything(streamed) == everything(whole)  # type: ignore[attr-defined]
        assert len(streamed.with_train_images(4).train) == 4

    @staticmethod
    def _change(value: dict[str, Any], change: str) -> None:
        images, annotations = value["images"], value["annotations"]
        {
            "outside": lambda: annotations[0].update(bbox=[41, 2, 5, 5]),
            "negative": lambda: annotations[0].update(bbox=[4, 2, -5, 5]),
            "not a box": lambda: annotations[0].update(bbox=[4, 2, 5]),
            "NaN": lambda: annotations[0].update(bbox=[4, 2, float("nan"), 5]),
            "category": lambda: annotations[0].update(category_id=4),
            "image": lambda: annotations[0].update(image_id=4444),
            "file": lambda: images[0].update(file_name="gone.png"),
            "elsewhere": lambda: images[0].update(file_name="../../0.png"),
            "twice": lambda: images[0].update(id=images[1]["id"]),
            "empty": lambda: images[0].update(width=0),
            "name": lambda: value["categories"][2].update(name="red"),
            "no list": lambda: value.pop("annotations"),
            "no objects": annotations.clear,
        }[change]()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("outside", r"the box \[41.*\] of annotation 1 lies outside its image '1.png', which is 40x20"),
            ("negative", r"of annotation 1 lies outside"),
            ("not a box", r"annotations\[0\].bbox is .*not a list of 4"),
            ("NaN", r"annotations\[0\].bbox\[2\] is nan"),
            ("category", "annotation 1 is of category 4, which the file does not list"),
            ("image", "annotation 1 is of image 4444, which the file does not list"),
            ("file", r"1 of the 6 images of .* are in none of .*: gone.png; add them"),
            ("elsewhere", r"1 of the 6 images of .*: ../../0.png"),
            ("twice", "two images or two categories have the same id"),
            ("empty", "image '0.png' has the size 0x20"),
            ("name", "no name twice"),
            ("no list", "it has no list of annotations"),
            ("no objects", "there must be one at least"),
        ],
    )
    @splits_stated
    def test_what_contradicts_itself_is_refused(self, change: str, message: str, tmp_path: Path) -> None:
        value = coco_json(6)
        write_coco(tmp_path / "data" / "labels.json", tmp_path / "data", value)
        (tmp_path / "0.png").write_bytes((tmp_path / "data" / "0.png").read_bytes())
        self._change(value, change)
        (tmp_path / "data" / "labels.json").write_text(json.dumps(value))
        with pytest.raises(InvalidData, match=message):
            lt.load_data(f"coco:{tmp_path / 'data'}", image_size=16)

    @splits_stated
    def test_folders_without_annotations_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="there is no folder"):
            lt.load_data(f"coco:{tmp_path / 'nowhere'}")
        with pytest.raises(InvalidData, match="has 0 JSON files; it needs annotations/instances_train"):
            lt.load_data(f"coco:{tmp_path}")
        write_coco_parts(tmp_path, valid=3)
        with pytest.raises(InvalidData, match="has annotations for val, and none for training"):
            lt.load_data(f"coco:{tmp_path}")
        (write_coco_parts(tmp_path, train=3) / "train" / "1.png").write_bytes(b"no image")
        with pytest.raises(InvalidData, match=r"1.png is not a readable image"):
            lt.load_data(f"coco:{tmp_path}")
        (tmp_path / "train" / "_annotations.coco.json").write_text("{")
        with pytest.raises(InvalidData, match="cannot be read as COCO annotations"):
            lt.load_data(f"coco:{tmp_path}")


def test_images_in_files_are_identified_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read once, and again when a name, a size or a time has changed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        file.write_bytes(bytes([i]) * 9)

    def found() -> bytes:
        return b"".join(contents(SimpleNamespace(images=OnDisk([(file,) for file in files], lambda file: (), skip=False))))

    first, before = found(), files[1].stat()
    files[1].write_bytes(b"\x07" * 9)
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found() == first, "it was not read again"
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    second = found()
    files[1].unlink()
    assert len({first, second, found()}) == 3
