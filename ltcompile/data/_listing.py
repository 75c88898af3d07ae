"""The images of a folder, listed once: the list of a large folder is kept in the user's cache, and used while no folder in it has changed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Set
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ltcompile.paths import cache_folder, read_json, write_text

LARGE = 20_000  # images: below it, listing takes less than a second
SETTLED_NS = 2_000_000_000  # a folder that changed later may change again without another time stamp
MOST_BYTES = 1 << 30
T = TypeVar("T")


def listed(folder: Path, suffixes: Set[str]) -> dict[str, list[str]]:
    """For each folder in `folder`, the paths from there of the files below it that end in `suffixes`, in order; a large list is kept.

    A file that is added, removed or renamed changes the time of its folder: then all are listed again.
    """
    cache = cached(folder.resolve(), "listings")
    kept = read_cached(cache, _current, folder)
    if kept is None:
        began, files, times = time.time_ns(), dict[str, list[str]](), dict[str, int]()
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        for path in counted(_walk(folder, names, suffixes, times), f"listing {folder}"):
            files.setdefault(path.split("/")[0], []).append(path)
        kept = {"times": times, "files": {name: sorted(files.get(name, []), key=lambda p: PurePosixPath(p).parts) for name in names}}
        if sum(map(len, files.values())) >= LARGE and began - max(times.values()) > SETTLED_NS:
            write_text(cache, json.dumps({"kind": str(folder.resolve()), **kept}))
    found: dict[str, list[str]] = kept["files"]
    return found


def _walk(folder: Path, names: Iterable[str], suffixes: Set[str], times: dict[str, int]) -> Iterator[str]:
    """The paths of images in these subfolders and below; `times` takes when each folder changed. A folder's own listing says what is a file."""
    times["."] = folder.stat().st_mtime_ns
    waiting = list(names)
    while waiting:
        inside = waiting.pop()
        times[inside] = (folder / inside).stat().st_mtime_ns
        with os.scandir(folder / inside) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(f"{inside}/{entry.name}")
                elif os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file():
                    yield f"{inside}/{entry.name}"


def _current(kept: Any, folder: Path) -> bool:
    """Whether a kept list is one, of this folder as it is now."""
    times, files = kept["times"], kept["files"]
    paths = [*times, *files, *(path for found in files.values() for path in found)]
    plain = all(isinstance(path, str) and not path.startswith("/") and ".." not in path.split("/") for path in paths)
    return plain and kept["kind"] == str(folder.resolve()) and all((folder / path).stat().st_mtime_ns == t for path, t in times.items())


def cached(path: Path, kind: str) -> Path:
    """The file of the cache that is about `path`."""
    return cache_folder() / kind / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"


def read_cached(cache: Path, current: Any, *arguments: Any) -> dict[str, Any] | None:
    """What is kept in `cache`, where `current(kept, *arguments)`; None where nothing is, or something else."""
    if not cache.is_file():
        return None
    try:
        kept: dict[str, Any] = read_json(cache, "list of images", MOST_BYTES)
        return kept if current(kept, *arguments) else None
    except Exception:  # whatever is there: it can be made again
        return None


def counted(items: Iterable[T], what: str) -> Iterator[T]:
    """`items`; a terminal shows how many came so far, where they take long."""
    shown = began = time.monotonic()
    for count, item in enumerate(items, 1):
        if sys.stderr.isatty() and count % 256 == 0 and (now := time.monotonic()) - shown > 0.5:
            shown = now
            print(f"\r{what}: {count:,}", end="", file=sys.stderr, flush=True)
        yield item
    if shown > began:
        print(file=sys.stderr)
