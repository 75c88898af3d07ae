"""Tables in parquet files, read from the files themselves by row groups: nothing is copied to another place, and no file is ever held in memory."""

from __future__ import annotations

import contextlib
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Any

from ltcompile.core.notice import notify
from ltcompile.data._listing import counted
from ltcompile.errors import InvalidData

CACHED_BYTES = 1 << 28  # of row groups, uncompressed, in each process


class ParquetTable:
    """The rows of some parquet files of the same columns, file by file. Raises InvalidData where one is damaged, unless it may `skip` that.

    Attributes:
        features: of Hugging Face's datasets: what the columns hold.
        skipped: how many files are left out so far.
    """

    fingerprint = ""  # the files' own sizes and times say it

    def __init__(self, files: list[str], skip: bool) -> None:
        import datasets

        self._files, self._skip, self.skipped = dict[str, Any](), skip, 0
        for file in counted(files, "listing parquet files"):
            try:
                self._files[file] = _metadata(file)
            except InvalidData as error:
                self._leave_out(file, error)
        if not self._files:
            raise InvalidData(f"none of {len(files)} parquet files can be read: {', '.join(files[:5])}")
        schemas = {file: metadata.schema.to_arrow_schema() for file, metadata in self._files.items()}
        first, schema = next(iter(schemas.items()))
        if other := next((file for file in schemas if schemas[file].names != schema.names), None):
            raise InvalidData(f"{other} has the columns {', '.join(schemas[other].names)}, and {first} {', '.join(schema.names)}")
        self.features = datasets.Features.from_arrow_schema(schema)
        self._cache, self._guard = dict[tuple[int, str], Any](), threading.Lock()
        self._index()

    def _index(self) -> None:
        """Number the row groups of all files, and note behind which row each ends."""
        self._groups = [(file, n) for file, metadata in self._files.items() for n in range(metadata.num_row_groups)]
        self._ends = list(accumulate(self._files[file].row_group(n).num_rows for file, n in self._groups))

    def _leave_out(self, file: str, error: InvalidData) -> None:
        """Raises the error, unless damaged files may be skipped."""
        if not self._skip:
            raise error
        notify(f"{error}; skipped")
        self._files.pop(file, None)
        self.skipped += 1

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def file(self, row: int) -> str:
        """The file that a row is in."""
        return self._groups[bisect_right(self._ends, row)][0]

    def column(self, name: str) -> list[Any]:
        """All values of a column; from then on without the rows of files where it is damaged. Raises InvalidData."""
        found: list[Any] = []
        for file, metadata in list(self._files.items()):
            try:
                found += _values(file, metadata, range(metadata.num_row_groups), name).to_pylist()
            except InvalidData as error:
                self._leave_out(file, error)
        self._index()
        return found

    def cell(self, row: int, name: str) -> Any:
        """One value. Raises InvalidData where its row group is damaged."""
        group = bisect_right(self._ends, row)
        with self._guard:
            if (group, name) not in self._cache:
                self._cache[group, name] = self._read(group, name)
                while len(self._cache) > 1 and sum(size for size, _ in self._cache.values()) > CACHED_BYTES:
                    del self._cache[next(iter(self._cache))]
            _, values = self._cache[group, name]
        if isinstance(values, InvalidData):
            raise values
        return values[row - (self._ends[group - 1] if group else 0)].as_py()

    def _read(self, group: int, name: str) -> tuple[int, Any]:
        """The bytes of a column in a row group, and its values, or why it cannot be read."""
        file, number = self._groups[group]
        try:
            values = _values(file, self._files[file], [number], name)
        except InvalidData as error:
            return 0, error
        return values.nbytes, values


def _metadata(file: str) -> Any:
    import pyarrow.parquet as pq

    with _named(file):
        return pq.read_metadata(file)


def _values(file: str, metadata: Any, groups: Iterable[int], name: str) -> Any:
    """The values of a column in some row groups. No thread is started, for this process may be a fork of one that had threads."""
    import pyarrow.parquet as pq

    with _named(file), pq.ParquetFile(file, metadata=metadata) as opened:
        return opened.read_row_groups(list(groups), [name], use_threads=False)[name]


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Errors in it say which file is damaged."""
    try:
        yield
    except Exception as error:  # pyarrow's readers raise errors of many kinds
        message = " ".join(str(error).split())[:200]
        raise InvalidData(f"{file} is damaged ({message}); write it again, or pass skip_damaged=True") from error
