"""Shards as wholes: which virtual rank reads what of them, in an order that is a function of the seed; every task's data, in memory or on disk."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from shards import EACH, png, write_parquet, write_shards, write_tar
from small_pairs import write_pairs

import ltcompile as lt
from ltcompile import ranks
from ltcompile.core.notice import Notice
from ltcompile.core.preprocessing import Preprocessing
from ltcompile.core.recipe import Recipe
from ltcompile.core.task import Shard
from ltcompile.data import _dataset, _epochs, _labelled, _parquet, _read, load_like
from ltcompile.data._epochs import epoch_rows
from ltcompile.errors import InvalidData

CPU = torch.device("cpu")
PLAIN = Preprocessing(8, (0.5,) * 3, (0.5,) * 3)
FILES = torch.tensor([0] * 31 + [1] * 40 + [2] * 7 + [3] * 25 + [4] * 33)  # which shard each image is in
RECIPE = Recipe(batch=12, crop_pixels=1)


def rows_of(index: int, count: int, seed: int = 5, start: int = 0, files: torch.Tensor | None = FILES) -> list[torch.Tensor]:
    return [rows for rows, _ in epoch_rows(len(FILES), 12, RECIPE, seed, Shard(index, count, start), files)]


@pytest.fixture(autouse=True)
def streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fits in memory, and one worker process decodes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 10)
    monkeypatch.setattr(ranks, "processors", lambda: 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_virtual_ranks_read_shards_of_their_own(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_epochs, "MIXED", 8)
    read = [rows_of(index, count) for index in range(count)]
    assert {len(batches) for batches in read} == {len(FILES) // 12} and {len(rows) for each in read for rows in each} == {12 // count}
    every = torch.cat([rows for batches in read for rows in batches])
    assert len(every.unique()) == len(every) == len(FILES) // 12 * 12, "each image once, but for a last batch that is not whole"
    readers = Counter(file for batches in read for file in FILES[torch.cat(batches)].unique().tolist())
    assert sum(readers.values()) <= len(readers) + count - 1, "a shard has one reader, but for those that a cut falls into"
    for batches in read:
        shards = FILES[torch.cat(batches)]
        last = {file: int((shards == file).nonzero().max()) for file in shards.unique().tolist()}
        first = {file: int((shards == file).nonzero().min()) for file in last}
        order = sorted(last, key=lambda file: first[file] + last[file])
        assert all(last[a] - first[b] < 8 for a, b in pairwise(order)), "shards are read one after the other"
    for index in range(count):
        assert all(torch.equal(a, b) for a, b in zip(read[index][3:], rows_of(index, count, start=3), strict=True)), "resumed"
        assert all(torch.equal(a, b) for a, b in zip(read[index], rows_of(index, count), strict=True))
        assert not torch.equal(torch.cat(rows_of(index, count, seed=6)), torch.cat(read[index]))


def test_fewer_shards_than_virtual_ranks_are_read_row_by_row() -> None:
    with pytest.warns(Notice, match="5 shards are read row by row by each of 6 virtual ranks"):
        found = [rows_of(index, 6) for index in range(6)]
    plain = [rows_of(index, 6, files=None) for index in range(6)]
    assert all(torch.equal(a, b) for one, other in zip(found, plain, strict=True) for a, b in zip(one, other, strict=True))


def test_classes_in_order_are_read_row_by_row(tmp_path: Path) -> None:
    """Shards that were written class by class would make batches of one class."""
    for n in range(12):
        write_tar(
            tmp_path / f"train-{n:02}.tar",
            {f"{n}-{i}.{kind}": data for i in range(9) for kind, data in (("png", png(i)), ("cls", b"%d" % n))},
        )
    with pytest.warns(Notice, match=r"the shards of webdataset:train-\*\.tar hold few classes each, and are read row by row"):
        data = lt.load_data(f"webdataset:{tmp_path}/train-*.tar", preprocessing=PLAIN)
    images = data.train.images  # type: ignore[attr-defined]
    assert isinstance(images, _read.OnDisk) and images.shards is None
    mixed = lt.load_data(f"webdataset:{write_shards(tmp_path / 'mixed')}", preprocessing=PLAIN)
    assert mixed.train.images.shards.tolist() == [0] * EACH + [1] * EACH  # type: ignore[attr-defined]


def test_parquet_is_read_by_row_groups_of_the_files_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    root = write_parquet(tmp_path / "data", files=3)
    monkeypatch.setattr(datasets, "load_dataset", None)  # which would copy them
    train: Any = lt.load_data(f"hf:{root}", preprocessing=PLAIN).train
    assert isinstance(train, _labelled.StreamedSplit) and train.images.shards.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    table = train.images.rows[0][0].table
    read = list[int]()
    usual = _parquet.ParquetTable._read
    monkeypatch.setattr(_parquet.ParquetTable, "_read", lambda self, group, name: (read.append(group), usual(self, group, name))[1])
    table._cache.clear()
    cells = [row[0].read() for row in train.images.rows]
    assert cells == [png(n) for n in range(24)] and read == list(range(len(table._groups))), "each row group is read once"
    monkeypatch.setattr(_parquet, "CACHED_BYTES", 1)
    table._cache.clear()
    assert [train.images.rows[row][0].read() for row in (0, 23)] == [png(0), png(23)] and len(table._cache) == 1


def damage(file: Path) -> None:
    """Overwrite the pages of a parquet file, and leave its footer."""
    data = file.read_bytes()
    length = int.from_bytes(data[-8:-4], "little")
    file.write_bytes(data[:4] + b"\xff" * (len(data) - 12 - length) + data[-8 - length :])


def test_missing_and_damaged_parquet_files_are_named_and_counted(tmp_path: Path) -> None:
    root = write_parquet(tmp_path / "data", files=3)
    (root / "train-00001-of-00003.parquet").unlink()
    with pytest.raises(InvalidData, match=r"1 parquet files are missing: .*train-00001-of-00003\.parquet; add them"):
        lt.load_data(f"hf:{root}", preprocessing=PLAIN)
    with pytest.warns(Notice, match="are missing"):
        assert lt.load_data(f"hf:{root}", preprocessing=PLAIN, skip_damaged=True).description.skipped == 1
    file = root / "train-00000-of-00003.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(Notice, match=r"train-00000-of-00003\.parquet is damaged .*skipped"):
        data = lt.load_data(f"hf:{root}", preprocessing=PLAIN, skip_damaged=True)
    assert data.description.skipped == 2 and len(data.train) == 8
    write_parquet(root, files=3)
    damage(root / "validation-00000.parquet")
    with pytest.raises(InvalidData, match=r"validation-00000\.parquet is damaged"):
        lt.load_data(f"hf:{root}", preprocessing=PLAIN)
    write_parquet(root, files=3)
    damage(root / "train-00002-of-00003.parquet")
    with pytest.warns(Notice, match=r"train-00002-of-00003\.parquet is damaged .*skipped"):
        data = lt.load_data(f"hf:{root}", preprocessing=PLAIN, skip_damaged=True)
    assert data.description.skipped == 1 and len(data.train) == 16 and len(list(data.train.batches(4, CPU, None, 0))) == 4


def batches(data: Any) -> list[Any]:
    return [batch for part in (data.train, data.val, data.test) for batch in part.batches(4, CPU, None, 0)]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    values = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else zip(a, b, strict=True)
    return all(same(one, other) for one, other in values)


def as_pairs(kind: str) -> Any:
    def write(root: Path) -> str:
        write_pairs(root, kind)
        if kind == "masks":
            (root / "classes.txt").write_text("a\nb\nc")
        return f"folder:{root}"

    return write


def as_shards(kind: str) -> Any:
    def write(root: Path) -> str:
        pattern = write_shards(root, kind)
        if kind == "mask":
            (root / "classes.txt").write_text("a\nb\nc")
        return f"webdataset:{pattern}"

    return write


def as_table(column: str) -> Any:
    def write(root: Path) -> str:
        import datasets

        features = datasets.Features({"image": datasets.Image(), column: datasets.Image()})
        for part, count in (("train", 8), ("val", 4), ("test", 4)):
            rows = {
                "image": [{"bytes": png(n), "path": None} for n in range(count)],
                column: [{"bytes": png(n, "L" if column == "mask" else "RGB"), "path": None} for n in range(count)],
            }
            datasets.Dataset.from_dict(rows, features=features).to_parquet(root / f"{part}.parquet")
        (root / "classes.txt").write_text("a\nb\nc")
        return f"hf:{root}"

    return write


def as_boxes(root: Path) -> str:
    for part in ("train", "val", "test"):
        text = json.dumps({"width": 12, "height": 10, "boxes": [[1, 2, 4, 5]], "labels": ["cat"]}).encode()
        write_tar(root / f"{part}.tar", {f"{i}.{kind}": data for i in range(8) for kind, data in (("png", png(i)), ("json", text))})
    return f"webdataset:{root}/{{train,val,test}}.tar"


SOURCES = {
    "masks": as_pairs("masks"),
    "images": as_pairs("images"),
    "masks in shards": as_shards("mask"),
    "images in shards": as_shards("target"),
    "masks in a table": as_table("mask"),
    "images in a table": as_table("target_image"),
    "boxes in shards": as_boxes,
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_task_reads_from_disk_what_it_has_in_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES[name](tmp_path / "data")
    task = {"m": "segmentation", "i": "image-to-image", "b": "detection"}[name[0]]
    found = lt.load_data(source, image_size=8)
    monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 1 << 30)
    held = lt.load_data(source, image_size=8)
    assert found.description == held.description and found.description.task == task
    assert isinstance(found.train.images, _read.OnDisk) and isinstance(held.train.images, torch.Tensor)  # type: ignore[attr-defined]
    assert same(batches(found), batches(held))


def test_masks_on_disk_need_the_names_of_their_classes(tmp_path: Path) -> None:
    source = as_pairs("masks")(tmp_path / "data")
    (tmp_path / "data/classes.txt").unlink()
    with pytest.raises(InvalidData, match=r"does not fit in memory: name the classes of its masks in .*classes\.txt"):
        lt.load_data(source, image_size=8)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", ["images", "images in shards", "boxes in shards"])
def test_unreadable_images_of_every_task_are_skipped_with_permission(
    name: str, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dataset, "IN_MEMORY_BYTES", 1 << 30 if in_memory else 10)
    source = SOURCES[name](root := tmp_path / "data")
    if name == "images":
        (root / "input/03.png").write_bytes(b"no image")
    else:
        shard = next(root.glob("train*.tar"))
        data = shard.read_bytes()
        shard.write_bytes(data[:513] + b"XXX" + data[516:])  # the first image's own bytes
    with pytest.raises(InvalidData, match=r"\.png is not a readable image") as raised:
        batches(lt.load_data(source, preprocessing=PLAIN))
    assert "\n" not in str(raised.value), "no traceback of a worker"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", Notice)
        found = lt.load_data(source, preprocessing=PLAIN, skip_damaged=True)
        batches(found)
    assert said or not in_memory
    skipped = found.description.skipped if in_memory else sum(part.skipped for part in (found.train, found.val, found.test))  # type: ignore[attr-defined]
    assert skipped == 1


def test_what_a_search_was_allowed_holds_for_what_reads_its_ticket(tmp_path: Path) -> None:
    source = f"webdataset:{write_shards(tmp_path)}"
    (tmp_path / "train-1.tar").unlink()
    with pytest.warns(Notice, match="are missing"):
        described = lt.load_data(source, preprocessing=PLAIN, skip_damaged=True).description.to_json()
    assert len(load_like(described, source).train) == EACH
    with pytest.raises(InvalidData, match="are missing"):
        load_like({**described, "skipped": 0}, source)


def test_streamed_shards_resume_and_repeat(tmp_path: Path) -> None:
    """What a virtual rank reads is the same whichever process reads it, and wherever an epoch is taken up."""
    for source in (f"webdataset:{write_shards(tmp_path / 'tars')}", f"hf:{write_parquet(tmp_path / 'tables', files=2)}"):
        train = lt.load_data(source, preprocessing=PLAIN).train
        recipe = Recipe(batch=8, crop_pixels=1)
        for index in range(2):
            whole = list(train.batches(8, CPU, recipe, 3, Shard(index, 2)))
            assert same(whole[1:], list(train.batches(8, CPU, recipe, 3, Shard(index, 2, start=1)))) and len(whole) == 3
