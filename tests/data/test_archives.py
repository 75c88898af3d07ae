"""Tar shards and Hugging Face data sets hold the images of a folder: the same epochs, parts and errors that name the file."""

from __future__ import annotations

import json
import os
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from shards import EACH, png, samples, write_parquet, write_shards, write_tar

import ltcompile as lt
from ltcompile import ranks
from ltcompile.core.notice import Notice
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Shard
from ltcompile.data import Dataset, _dataset, _labelled, _listing, webdataset
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.tasks import Classification
from ltcompile.tasks.detection import Detection
from ltcompile.tasks.segmentation import Segmentation
from ltcompile.training import Checkpoint, train

CPU = torch.device("cpu")
PLAIN = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)


def write_images(root: Path) -> Path:
    """The images of `write_shards` in folders."""
    for i, part in enumerate(("train", "train", "val", "test")):
        for n in range(EACH * i, EACH * (i + 1)):
            (folder := root / part / str(n % 3)).mkdir(parents=True, exist_ok=True)
            (folder / f"{n:03}.png").write_bytes(png(n))
    return root


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "HF_DATASETS_CACHE" not in os.environ:
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    return tmp_path / "cache"


def data_of(kind: str, root: Path, **options: Any) -> Dataset:
    source = {"webdataset": write_shards, "hf": write_parquet, "imagefolder": write_images}[kind](root / kind)
    return lt.load_data(f"{kind}:{source}", preprocessing=PLAIN, **options)


def multiset(split: Any) -> list[tuple[int, float]]:
    pairs = [pair for batch in split.batches(8, CPU, None, 0) for pair in zip(*batch, strict=True)]
    return sorted((int(label), round(float(image.double().sum()), 3)) for image, label in pairs)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("kind", ["webdataset", "hf"])
def test_they_hold_the_images_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, streamed: bool) -> None:
    monkeypatch.setattr(ranks, "processors", lambda: 1)
    monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 10 if streamed else 1 << 30)
    found, expected = data_of(kind, tmp_path), data_of("imagefolder", tmp_path)
    assert isinstance(found.train, _labelled.StreamedSplit) is streamed
    assert found.description.class_names == ("0", "1", "2") and found.description.to_json().get("skipped") is None
    for part in ("train", "test"):
        assert multiset(getattr(found, part)) == multiset(getattr(expected, part)), part
    recipe, train_split = Recipe(batch=8, crop_pixels=1), found.train
    whole = list(train_split.batches(8, CPU, recipe, 3))
    resumed = list(train_split.batches(8, CPU, recipe, 3, Shard(start=1)))
    assert len(whole) == 3 and all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(whole[1:], resumed, strict=True))
    still = replace(recipe, crop_pixels=0, flip=False)
    shards = [torch.cat([x for x, _ in train_split.batches(8, CPU, still, 3, Shard(index, 2))]) for index in range(2)]
    sums = torch.cat(shards).double().sum((1, 2, 3)).sort().values
    torch.testing.assert_close(sums, torch.cat([x for x, _ in whole_part(found)]).double().sum((1, 2, 3)).sort().values)


def whole_part(data: Dataset) -> list[Any]:
    return list(data.train.batches(8, CPU, None, 0))


def test_masks_and_boxes(tmp_path: Path) -> None:
    import datasets

    task = Segmentation(lt.load_data(f"webdataset:{write_shards(tmp_path / 'tars', 'mask')}"))
    assert task.description.classes == 3 and task.sizes == {"train": 24, "val": 12, "test": 12}
    rows: dict[str, Any] = {
        "image": [{"bytes": png(n), "path": None} for n in range(20)],
        "annotation": [{"bytes": png(n, "L"), "path": None} for n in range(20)],
    }
    features = datasets.Features(image=datasets.Image(), annotation=datasets.Image())
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "masks")
    maps = Segmentation(lt.load_data(f"hf:{tmp_path / 'masks'}"))
    assert maps.description.classes == 3 and sum(maps.sizes.values()) == 20
    objects = {"bbox": [[[2.0, 1.0, 6.0, 5.0]]] * 20, "category": [[n % 2] for n in range(20)]}
    rows = {"image": rows["image"], "objects": [{"bbox": b, "category": c} for b, c in zip(*objects.values(), strict=True)]}
    features = datasets.Features(
        image=datasets.Image(),
        objects={
            "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float32"))),
            "category": datasets.Sequence(datasets.ClassLabel(names=["cat", "dog"])),
        },
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "boxes")
    boxes = Detection(lt.load_data(f"hf:{tmp_path / 'boxes'}", image_size=24))
    _, targets = next(iter(boxes.batches("val", 1, CPU)))
    assert boxes.description.class_names == ("cat", "dog") and targets["boxes"][0][0].tolist() == pytest.approx([4.0, 2.4, 16.0, 14.4])


DAMAGE = {
    "cut": (lambda data: data[: len(data) // 2], r"train-1\.tar is damaged after some/"),
    "no end": (lambda data: data.rstrip(b"\0"), r"train-1\.tar is damaged"),
    "header": (lambda data: data[:2048] + b"\xff" * 512 + data[2560:], r"train-1\.tar is damaged after some/012\.cls"),
    "empty": (lambda data: b"", r"train-1\.tar is damaged"),
    "other": (lambda data: b"no tar at all" * 100, r"train-1\.tar is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_shards_are_named_and_skipped_with_permission(tmp_path: Path, name: str) -> None:
    pattern, (damage, says) = write_shards(tmp_path), DAMAGE[name]
    file = tmp_path / "train-1.tar"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InvalidData, match=says):
        lt.load_data(f"webdataset:{pattern}", preprocessing=PLAIN)
    with pytest.warns(Notice, match=rf"{says}.*skipped"):
        data = lt.load_data(f"webdataset:{pattern}", preprocessing=PLAIN, skip_damaged=True)
    assert len(data.train) == EACH and data.description.to_json()["skipped"] == 1


def test_missing_shards_are_named(tmp_path: Path) -> None:
    write_shards(tmp_path)
    pattern = f"webdataset:{tmp_path}/{{train-0,train-7,train-8,val-0,test-0}}.tar"
    with pytest.raises(InvalidData, match=r"2 of the 5 shards of .* are missing: .*train-7\.tar, .*train-8\.tar; add them"):
        lt.load_data(pattern, preprocessing=PLAIN)
    with pytest.warns(Notice, match="are missing"):
        assert lt.load_data(pattern, preprocessing=PLAIN, skip_damaged=True).description.skipped == 2
    for wrong in (f"{tmp_path}/no*.tar", f"{tmp_path}/train-{{5..7}}.tar"):
        with pytest.raises(InvalidData, match=r"names no shard|are missing"):
            lt.load_data(f"webdataset:{wrong}", skip_damaged=True)


MEMBERS: dict[str, tuple[dict[str, bytes], str]] = {
    "pickle": ({"some/001.pyd": b"x"}, r"001\.pyd is a pickle"),
    "weights": ({"some/001.pth": b"x"}, r"001\.pth is a pickle"),
    "long class": ({"some/900.cls": b"1" * 9999}, r"900\.cls has 9,999 bytes"),
    "no class": ({"some/900.png": b"x"}, r"the sample some/900 has png, and lacks a class"),
    "another kind": ({"some/900.png": b"x", "some/900.mask.png": b"x"}, r"900\.png comes with mask, and .*000\.png with class"),
    "no image": ({"some/900.cls": b"1", "some/900.txt": b"x"}, r"the sample some/900 has cls, txt, and lacks an image"),
    "text": ({"some/900.cls": b"\xff\xfe"}, "is damaged after"),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_are_refused(tmp_path: Path, name: str) -> None:
    pattern, (extra, says) = write_shards(tmp_path), MEMBERS[name]
    write_tar(tmp_path / "train-1.tar", samples(EACH) | extra)
    with pytest.raises(InvalidData, match=says):
        lt.load_data(f"webdataset:{pattern}", preprocessing=PLAIN)


def test_shards_that_could_do_harm(tmp_path: Path) -> None:
    """Links, compression and headers that declare what is not there; nothing is ever extracted, so that names lead nowhere."""
    pattern = write_shards(tmp_path)
    file = tmp_path / "train-1.tar"
    for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "some/012.png"), (tarfile.FIFOTYPE, "")):
        with tarfile.open(file, "w") as archive:
            header = tarfile.TarInfo("some/900.png")
            header.type, header.linkname = kind, target
            archive.addfile(header)
        with pytest.raises(InvalidData, match=r"some/900\.png is a link or a device"):
            lt.load_data(f"webdataset:{pattern}", preprocessing=PLAIN)
    write_tar(file, samples(EACH), "w:gz")
    with pytest.raises(InvalidData, match="or compressed; write it again as a plain tar"):
        lt.load_data(f"webdataset:{pattern}", preprocessing=PLAIN)
    for kind in (tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        header = tarfile.TarInfo("some/900.png")
        header.type, header.size = kind, 1 << 40
        file.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        with pytest.raises(InvalidData, match="is damaged"):
            lt.load_data(f"webdataset:{pattern}", preprocessing=PLAIN)
    write_tar(file, {f"../../{name}": data for name, data in samples(EACH).items()})
    assert len(lt.load_data(f"webdataset:{pattern}", preprocessing=PLAIN).train) == 2 * EACH
    assert {p.name for p in tmp_path.iterdir()} - {"hf"} == {"train-0.tar", "train-1.tar", "val-0.tar", "test-0.tar"}


def test_patterns() -> None:
    assert webdataset._expanded("a/{x,y}-{08..11}.tar") == [f"a/{c}-{n}.tar" for c in "xy" for n in ("08", "09", "10", "11")]
    assert webdataset._expanded("plain.tar") == ["plain.tar"]
    parts = {
        "a/train-01.tar": "train",
        "val/0.tar": "val",
        "b/imagenet1k-validation-03.tar": "val",
        "x/my_test.tar": "test",
        "x/0.tar": "train",
    }
    assert {shard: webdataset._part(shard) for shard in parts} == parts


def test_lists_of_large_folders_and_shards_are_kept_while_they_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caches: Path) -> None:
    folder, pattern = write_images(tmp_path / "images"), write_shards(tmp_path / "tars")
    for name, module in (("LARGE", _listing), ("SETTLED_NS", _listing), ("LARGE_SHARD", webdataset)):
        monkeypatch.setattr(module, name, 0)
    time.sleep(0.02)

    def sizes() -> list[int]:
        return [len(lt.load_data(source, preprocessing=PLAIN).train) for source in (f"imagefolder:{folder}", f"webdataset:{pattern}")]

    assert sizes() == [24, 24]
    kept = sorted(caches.rglob("*.json"))
    assert len(kept) == 3 + 4
    with monkeypatch.context() as closed:
        closed.setattr(_listing, "_walk", None)
        closed.setattr(webdataset, "_read", None)
        assert sizes() == [24, 24], "by the lists alone"
    (folder / "train" / "0" / "more.png").write_bytes(png(99))
    write_tar(tmp_path / "tars" / "train-0.tar", samples(0, 15))
    assert sizes() == [25, 27]
    for file in kept:
        value = json.loads(file.read_text())
        if "files" in value:
            value["files"]["0"] = ["../../../etc/passwd"]
        else:
            value["members"][0][1] = 1 << 40
        file.write_text(json.dumps(value) if file != kept[0] else "{")
    assert sizes() == [25, 27], "what is damaged or forged is made again"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["webdataset", "imagefolder"])
def test_unreadable_images_are_replaced_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """An image of a streamed data set whose turn it is gives its place to the next; a resumed epoch counts as one that was not stopped."""
    monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(ranks, "processors", lambda: 1)
    if kind == "webdataset":
        source = write_shards(tmp_path)
        write_tar(tmp_path / "train-1.tar", samples(EACH) | {"some/014.png": b"\x89PNG no more"})
    else:
        source = str(write_images(tmp_path))
        (tmp_path / "train" / "2" / "014.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(InvalidData, match=r"014\.png is not a readable image"):
        list(lt.load_data(f"{kind}:{source}", preprocessing=PLAIN).train.batches(8, CPU, None, 0))
    task = Classification(lt.load_data(f"{kind}:{source}", preprocessing=PLAIN, skip_damaged=True))
    recipe, states = Recipe(epochs=2, batch=8, lr=0.01, precision="fp32", compile="never"), list[dict[str, Any]]()

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))

    done = train(network(), task, recipe, 0, CPU, checkpoint=Checkpoint(states.append, 0.0))
    assert [epoch.skipped for epoch in done.epochs] == [1, 1] and done.epochs[0].to_json()["skipped"] == 1
    again = train(network(), task, recipe, 0, CPU, state=states[4])
    assert [epoch.skipped for epoch in again.epochs] == [1, 1]


def test_a_data_set_of_the_hub_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    with pytest.raises(InvalidData, match=r"no-such-owner/nothing-at-all cannot be loaded: .*pass download=True where there is a network"):
        lt.load_data("hf:no-such-owner/nothing-at-all")
    with pytest.raises(InvalidData, match=r"there is no folder \.\./none/x, and it is not the name"):
        lt.load_data("hf:../none/./x")
    usual = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError(name)
        return usual(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidSetting, match=r"pip install 'ltcompile\[hf\]'"):
        lt.load_data("hf:some/thing")


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    import datasets

    def written(name: str, rows: dict[str, Any], **kinds: Any) -> str:
        datasets.Dataset.from_dict(rows, features=datasets.Features(**kinds)).to_parquet(tmp_path / name / "train.parquet")
        return f"hf:{tmp_path / name}"

    pictures = [{"bytes": png(n), "path": None} for n in range(12)]
    with pytest.raises(InvalidData, match="has no column of images, but words"):
        lt.load_data(written("words", {"words": ["a"] * 12}, words=datasets.Value("string")))
    with pytest.raises(InvalidData, match="and none is a class; call it label"):
        lt.load_data(written("unlabelled", {"image": pictures}, image=datasets.Image()))
    outside = [{"bytes": None, "path": "/etc/passwd"}] * 12
    label = {"label": [n % 2 for n in range(12)]}
    with pytest.raises(InvalidData, match=r"names the file /etc/passwd, outside"):
        lt.load_data(written("outside", {"image": outside, **label}, image=datasets.Image(), label=datasets.Value("int64")))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InvalidData, match=r"broken/train\.parquet is damaged .* pass skip_damaged=True"):
        lt.load_data(f"hf:{tmp_path / 'broken'}")


SIDES = {"width": 12, "height": 10}
FOUND: tuple[tuple[list[list[int]], list[str]], ...] = ([[1, 2, 4, 5]], ["cat"]), ([[0, 0, 3, 3], [6, 5, 6, 5]], ["dog", "cat"]), ([], [])


class TestBoxesInShards:
    def shards(self, root: Path, **changed: Any) -> str:
        """Four images each for training, validation and test, and the same ones as COCO describes them in root/coco."""
        for start, part in enumerate(("train", "val", "test")):
            files, rows, objects = dict[str, bytes](), list[dict[str, Any]](), list[dict[str, Any]]()
            (root / "coco" / part).mkdir(parents=True)
            for i in range(4 * start, 4 * start + 4):
                boxes, labels = FOUND[i % 3]
                files |= {f"{i}.png": png(i), f"{i}.json": json.dumps(SIDES | {"boxes": boxes, "labels": labels} | changed).encode()}
                (root / "coco" / part / f"{i}.png").write_bytes(png(i))
                rows.append({"id": i, "file_name": f"{i}.png", **SIDES})
                for box, label in zip(boxes, labels, strict=True):
                    objects.append({"id": len(objects), "image_id": i, "category_id": ["cat", "dog"].index(label), "bbox": box})
            write_tar(root / f"{part}.tar", files)
            (root / "coco/annotations").mkdir(exist_ok=True)
            categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
            (root / f"coco/annotations/instances_{part}.json").write_text(
                json.dumps({"images": rows, "annotations": objects, "categories": categories})
            )
        return f"webdataset:{root}/{{train,val,test}}.tar"

    def test_they_are_those_of_a_folder(self, tmp_path: Path) -> None:
        shards, files = (lt.load_data(name, image_size=8) for name in (self.shards(tmp_path), f"coco:{tmp_path / 'coco'}"))
        assert shards.description.class_names == files.description.class_names == ("cat", "dog")
        for part in ("train", "val", "test"):
            for (images, targets), (expected, there) in zip(
                *(Detection(data).batches(part, 3, CPU, None, 0) for data in (shards, files)), strict=True
            ):
                assert torch.equal(images, expected)
                for name in ("boxes", "labels"):
                    assert all(torch.equal(a, b) for a, b in zip(targets[name], there[name], strict=True))

    @pytest.mark.parametrize(
        ("changed", "says"),
        [
            ({"labels": []}, r"0\.json does not hold boxes: it needs a width .* a label"),
            ({"boxes": [[1, 2, 3]]}, r"0\.json does not hold boxes: boxes\[0\]"),
            ({"width": 0}, "does not hold boxes: it needs a width"),
            ({"boxes": [[40, 2, 3, 4]], "labels": ["cat"]}, "lies outside its image"),
        ],
    )
    def test_what_is_wrong_is_named(self, changed: dict[str, Any], says: str, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match=says):
            lt.load_data(self.shards(tmp_path, **changed), image_size=8)

    def test_no_object_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidData, match="there must be one at least"):
            lt.load_data(self.shards(tmp_path, boxes=[], labels=[]), image_size=8)
