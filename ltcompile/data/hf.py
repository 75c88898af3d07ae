"""Hugging Face data sets: `hf:DIR`, a folder of parquet files, of images, or that `save_to_disk` wrote; or `hf:NAME`, from the Hub or its cache.

Which task it is for, its columns say: one image and a class (a ClassLabel, or a column named label) are for classification; an image and a second
one, named mask, annotation, label or segmentation, are for segmentation; an image and one named target, output, edited or hr (or target_image and
so on) are for image to image; an image with `objects` of `bbox` (x, y, width, height in pixels) and `category` is for detection. Splits named
train, validation (or valid, val, dev) and test are the parts; those that are missing, or have no labels, are drawn from the training rows by a
fixed seed. No script of a data set is run.

Parquet files are read as they lie, row group by row group, in the order of `data._epochs`: by whole files for each virtual rank. Other tables are
memory-mapped. A missing file of NAME-00000-of-00004.parquet, or a damaged one, is an error unless `skip_damaged`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ltcompile.core.notice import notify
from ltcompile.core.task import Part
from ltcompile.data import folder
from ltcompile.data._annotated import Objects, from_files, stretched
from ltcompile.data._dataset import Dataset, DatasetOptions
from ltcompile.data._files import Item
from ltcompile.data._labelled import all_parts, from_items
from ltcompile.data._pairs import Kind
from ltcompile.data._parquet import ParquetTable
from ltcompile.errors import InvalidData, InvalidSetting

PARTS: dict[str, Part] = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
MASKS, LABELS = ("mask", "annotation", "label", "segmentation"), ("label", "labels", "class", "fine_label")
TARGETS = "target", "output", "edited", "hr"
DETECTION_SIZE, MOST_FILES = 320, 100_000


class ArrowTable:
    """The rows of a memory-mapped table, which are read in any order."""

    skipped = 0

    def __init__(self, table: Any) -> None:
        self.features, self.fingerprint = table.features, table._fingerprint
        self._table, self._columns = table, dict[str, Any]()

    def __len__(self) -> int:
        return len(self._table)

    def file(self, row: int) -> str:
        return ""

    def column(self, name: str) -> list[Any]:
        return list(self._table.select_columns([name])[:][name])

    def cell(self, row: int, name: str) -> Any:
        """The value of an image: its bytes, or its path."""
        import datasets

        if name not in self._columns:
            self._columns[name] = self._table.select_columns([name]).cast_column(name, datasets.Image(decode=False))
        return self._columns[name][row][name]


Table = ArrowTable | ParquetTable


class Cell:
    """The image in a row of a table."""

    __slots__ = ("column", "home", "name", "row", "table")

    def __init__(self, table: Table, column: str, row: int, home: Path, name: str) -> None:
        self.table, self.column, self.row, self.home, self.name = table, column, row, home, name

    def __str__(self) -> str:
        return f"{self.name}: {self.column} of row {self.row}"

    @property
    def shard(self) -> str:
        return self.table.file(self.row)

    def read(self) -> bytes:
        """Raises InvalidData where the image is a file outside the data set."""
        value = self.table.cell(self.row, self.column) or {}
        if value.get("bytes") is not None:
            found: bytes = value["bytes"]
            return found
        path = Path(value.get("path") or "")
        if not path.resolve().is_relative_to(self.home.resolve()):
            raise InvalidData(f"{self} names the file {path}, outside {self.home}")
        return path.read_bytes()


def load(source: Path, options: DatasetOptions) -> Dataset:
    datasets = _library()
    name, home = f"hf:{source.name if source.is_dir() else source}", source if source.is_dir() else Path(datasets.config.HF_CACHE_HOME)
    tables, missing = _tables(datasets, source, options)
    found = _dataset(datasets, name, home, tables, options)
    return found.without(missing + sum(table.skipped for table in tables.values()))


def _dataset(datasets: Any, name: str, home: Path, tables: Mapping[Part, Table], options: DatasetOptions) -> Dataset:
    """The data set of the task that columns are for. Raises InvalidData."""
    features = tables["train"].features
    images = [column for column, kind in features.items() if isinstance(kind, datasets.Image)]
    if not images:
        raise InvalidData(f"{name} has no column of images, but {', '.join(features)}; choose a data set of images")

    def cells(part: Part, column: str) -> list[Cell]:
        return [Cell(tables[part], column, row, home, f"{name}/{part}") for row in range(len(tables[part]))]

    if "objects" in features:
        objects = {part: table.column("objects") for part, table in tables.items()}
        return _detection(name, tables, {part: list(zip(cells(part, images[0]), objects[part], strict=True)) for part in tables}, options)
    kinds: list[tuple[Kind, tuple[str, ...]]] = [("masks", MASKS), ("images", TARGETS)]
    for kind, names in kinds:
        if others := [column for column in images if column.removesuffix("_image") in names and len(images) > 1]:
            first = next(column for column in images if column != others[0])
            pairs = {part: list(zip(cells(part, first), cells(part, others[0]), strict=True)) for part in tables}
            return folder.from_files(name, folder.all_parts(pairs, options), kind, options, home)  # type: ignore[arg-type]
    column, classes, labels = _labels(datasets, name, tables)
    known = {part: found for part, found in labels.items() if part == "train" or min(found, default=0) >= 0}
    if min(known["train"], default=-1) < 0:
        raise InvalidData(f"{name}: column {column} holds rows without a class")
    items = {part: (cells(part, images[0]), torch.tensor(found)) for part, found in known.items()}
    return from_items(name, classes, all_parts(items, options), options, skip=options.skip_damaged)


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InvalidSetting("datasets is not installed, which reads Hugging Face data sets; run `pip install 'ltcompile[hf]'`") from error
    return datasets


def _tables(datasets: Any, source: Path, options: DatasetOptions) -> tuple[dict[Part, Table], int]:
    """The table of each part that there is, and how many files are missing. Raises InvalidData."""
    if source.is_dir():
        if files := sorted(source.rglob("*.parquet")):
            return _from_parquet(source, files, options.skip_damaged)
        found = _from_folder(datasets, source)
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith("."):
        raise InvalidData(f"there is no folder {source}, and it is not the name of a data set; write hf:DIR or hf:OWNER/NAME")
    else:
        with _offline(datasets, not options.download):
            found = _opened(
                lambda: datasets.load_dataset(str(source)), f"{source} cannot be loaded", "pass download=True where there is a network"
            )
    tables: dict[Part, Table] = {}
    for split, table in found.items() if isinstance(found, Mapping) else [("train", found)]:
        if (part := PARTS.get(str(split))) is not None:
            tables[part] = ArrowTable(table)
    if "train" not in tables:
        raise InvalidData(f"hf:{source} has the splits {', '.join(map(str, found))}, and none is called train")
    return tables, 0


def _from_parquet(source: Path, files: Sequence[Path], skip: bool) -> tuple[dict[Part, Table], int]:
    """The tables of parquet files, by the words in their paths, and how many of those that names number are missing. Raises InvalidData."""
    parts, numbered = dict[Part, list[str]](), dict[tuple[str, int], set[int]]()
    for file in files:
        words = re.split(r"[^a-z]+", file.relative_to(source).as_posix().lower())
        parts.setdefault(next((PARTS[word] for word in words if word in PARTS), "train"), []).append(str(file))
        if (name := re.fullmatch(r"(.+)-(\d+)-of-(\d+)", file.stem)) and int(name[3]) <= MOST_FILES:
            numbered.setdefault((str(file.parent / name[1]), int(name[3])), set()).add(int(name[2]))
    missing = [f"{stem}-{n:05}-of-{of:05}.parquet" for (stem, of), there in numbered.items() for n in range(of) if n not in there]
    if missing:
        problem = f"{len(missing)} parquet files are missing: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        if not skip:
            raise InvalidData(f"{problem}; add them, or pass skip_damaged=True to go without")
        notify(f"{problem}; skipped")
    if "train" not in parts:
        raise InvalidData(f"hf:{source} has parquet files for {', '.join(parts)}, and none to train on: write train into their names")
    return {part: ParquetTable(found, skip) for part, found in parts.items()}, len(missing)


def _from_folder(datasets: Any, source: Path) -> Any:
    hint = "repair it, or write it again"
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        return _opened(lambda: datasets.load_from_disk(str(source)), f"{source} cannot be read", hint)
    return _opened(lambda: datasets.load_dataset("imagefolder", data_dir=str(source)), f"{source} cannot be read", hint)


def _opened(load: Any, problem: str, hint: str) -> Any:
    try:
        return load()
    except Exception as error:  # the library raises whatever its readers and the network do
        causes = [error, error.__cause__ or error]
        message = "; ".join(dict.fromkeys(" ".join(str(each).split())[:300] for each in causes))
        raise InvalidData(f"{problem}: {message}; {hint}") from error


@contextlib.contextmanager
def _offline(datasets: Any, offline: bool) -> Iterator[None]:
    """Nothing is fetched inside it, where `offline`: the library reads its cache."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _labels(datasets: Any, name: str, tables: Mapping[Part, Table]) -> tuple[str, list[str], dict[Part, list[int]]]:
    """The column of classes, their names and each part's labels. Raises InvalidData."""
    features = tables["train"].features
    kinds = [column for column, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    column = next((c for c in LABELS if c in features), kinds[0] if len(kinds) == 1 else None)
    if column is None:
        raise InvalidData(f"{name} has the columns {', '.join(features)}, and none is a class; call it label")
    values = {part: table.column(column) for part, table in tables.items()}
    every = {value for found in values.values() for value in found}
    if isinstance(features[column], datasets.ClassLabel):
        return column, list(features[column].names), {part: [-1 if v is None else v for v in found] for part, found in values.items()}
    if not every or not (all(isinstance(v, str) for v in every) or all(type(v) is int for v in every)):
        raise InvalidData(f"{name}: column {column} holds {', '.join(map(repr, list(every)[:3]))}; a class is a number or a name")
    if all(isinstance(v, int) for v in every):
        return column, [str(n) for n in range(max(every) + 1)], values
    names = sorted(every)
    return column, names, {part: [names.index(value) for value in found] for part, found in values.items()}


def _detection(name: str, tables: Mapping[Part, Table], rows: Mapping[Part, list[tuple[Cell, Any]]], options: DatasetOptions) -> Dataset:
    """Boxes as COCO has them, x, y, width and height, of images that are stretched."""
    size = options.size(DETECTION_SIZE, DETECTION_SIZE)
    parts = folder.all_parts(rows, options)
    ids = sorted({int(c) for found in parts.values() for _, there in found for c in there["category"]})
    feature = tables["train"].features["objects"]
    feature = feature.feature if hasattr(feature, "feature") else feature
    kind = feature["category"]
    kind = kind.feature if hasattr(kind, "feature") else kind
    names = [kind.names[i] if hasattr(kind, "names") else str(i) for i in ids]
    found: dict[Part, list[tuple[Item, Objects]]] = {part: [] for part in parts}
    broken = list[InvalidData]()
    for part, (cell, there) in ((part, row) for part, each in parts.items() for row in each):
        try:
            found[part].append((cell, _objects(cell, there, ids, size)))
        except InvalidData as error:
            if not options.skip_damaged:
                raise
            broken.append(error)
    if broken:
        notify(f"{len(broken)} images of {name} are left out: {broken[0]}; skipped")
    return from_files(name, names, found, size, options).without(len(broken))


def _objects(cell: Any, there: Mapping[str, Any], ids: list[int], size: tuple[int, int]) -> Objects:
    boxes, labels = there["bbox"], [ids.index(int(c)) for c in there["category"]]
    if len(boxes) != len(labels):
        raise InvalidData(f"{cell} has {len(boxes)} boxes and {len(labels)} categories")
    return stretched(boxes, labels, folder.image_shape(cell), size)
