"""Write files whole or not at all, and read files back, with errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from ltcompile import ranks
from ltcompile.errors import DiskFull, InvalidFile

T = TypeVar("T")

SPACE_POLL_S = 10.0
MOST_JSON_BYTES = 1 << 26  # ours have a hundredth of that, and each byte may take twenty in memory

# Open lock files. A forked child, such as a loader of images, closes its copies: it may outlive a parent that is killed.
_held: set[IO[bytes]] = set()
os.register_at_fork(after_in_child=lambda: [file.close() for file in _held])


def write_bytes(path: str | Path, data: bytes | memoryview, once: bool = False) -> None:
    """Replace `path` by `data`, atomically: no reader sees a partial file, even if this process is killed.

    With `once`, a file that is there stays: of several writers, the first wins.

    Raises:
        InvalidFile: the folder cannot be made or written, or the disk is full; `path` is as it was.
    """
    path = Path(path)
    if ranks.follows():  # the first of several processes that train together writes for all
        return
    with writing(path, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with _scratch(path) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                try:
                    os.chmod(file.name, 0o666 & ~_umask())
                    _move(file.name, path, once)
                    return
                except FileNotFoundError:
                    if not path.parent.exists():
                        raise  # else another machine, which sees no lock of this one, took the file for an orphan


def _move(source: str, path: Path, once: bool) -> None:
    if once:
        try:
            os.link(source, path)
            return
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without links
                raise
            if path.exists():
                return
    os.replace(source, path)


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text`, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, once: bool = False) -> None:
    """Replace `path` by `value` as indented JSON, as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode(), once)


def write_torch(path: str | Path, value: Any) -> None:
    """Replace `path` by what torch.save makes of `value`, as `write_bytes` does.

    Through memory: on a full disk torch's own writers raise a RuntimeError, or abort the process.
    """
    import torch

    torch.save(value, buffer := io.BytesIO())
    with buffer.getbuffer() as view:  # released even where writing fails: Python 3.12.1 crashes when it collects one in a cycle
        write_bytes(path, view)


@contextlib.contextmanager
def _scratch(path: Path) -> Iterator[IO[bytes]]:
    """A file next to `path`, gone afterwards unless it was moved. What writers of `path` left when they were killed goes first."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        with contextlib.suppress(OSError), left.open("r+b") as orphan:
            if _hold(orphan):
                left.unlink()
    with _new_part(path) as file:
        try:
            yield file
        finally:
            Path(file.name).unlink(missing_ok=True)


def _new_part(path: Path) -> IO[bytes]:
    """A new file next to `path`, locked. Another writer may take it for an orphan before it is: then there is another one."""
    while True:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False)  # noqa: SIM115
        try:
            held = _hold(file)
        except OSError:  # a file system without locks: nothing there is taken for an orphan
            return file
        if held and _lies_at(file, Path(file.name)):
            return file
        file.close()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: str | Path) -> Path:
    """Fail now rather than after the work: `path` can be written as a file.

    Raises:
        InvalidFile: it is a folder, or its folder cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InvalidFile(f"cannot write {path}: it is a folder; name a file inside it")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(path):
            pass
    return path


def check_room(folder: str | Path, needed: int, what: str) -> None:
    """Fail now rather than after the work: the disk of `folder` has `needed` bytes for `what`. Raises InvalidFile."""
    disk = shutil.disk_usage(folder)
    if disk.total > 0 and disk.free < needed:  # some file systems report zeros
        raise InvalidFile(
            f"{what} will take about {needed:,} bytes, and {disk.free:,} are free in {folder}; free space there, or choose another place"
        )


@contextlib.contextmanager
def writing(path: Path, needed: int = 0) -> Iterator[None]:
    """What the system has against writing `needed` bytes to `path`, as an InvalidFile that says what to do now: DiskFull for lack of space."""
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else InvalidFile
        raise kind(f"cannot write {path}: {_message(error, path, needed)}") from error


def wait_for_space(write: Callable[[], T], patience_s: float) -> T:
    """What `write` returns, which is called again every ten seconds while the disk is full, for so long. Raises DiskFull."""
    began, reported = time.monotonic(), False
    while True:
        try:
            return write()
        except DiskFull as error:
            if time.monotonic() - began >= patience_s:
                raise
            if not reported:
                print(f"{error}. It is tried again for {patience_s / 60:g} minutes", file=sys.stderr, flush=True)
            reported = True
            time.sleep(SPACE_POLL_S)


def _message(error: OSError, path: Path, needed: int) -> str:
    """The reason, and the way out of it."""
    reason = error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            free = shutil.disk_usage(next(p for p in path.absolute().parents if p.exists())).free
            return (
                f"{reason}: {needed:,} bytes were to be written, and {free:,} are free. The old file, if any, is untouched; "
                "free space there, and run the same command again (a search with resume=True)"
            )
        case errno.EIO:
            return f"{reason}: the disk may be failing. The old file, if any, is untouched; copy the folder to another disk, and continue there"
        case errno.EEXIST | errno.ENOTDIR:
            blocking = next((p for p in path.parents if p.is_file()), path.parent)
            return f"{blocking} is not a folder; move it away, or choose another place"
        case _:
            return f"{reason}; choose another place"


def cache_folder() -> Path:
    """`~/.cache/ltcompile`, or under XDG_CACHE_HOME: what was measured once, and can be measured again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltcompile"


@contextlib.contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Holds an exclusive lock for reading `path`, changing it and writing it back; waits for other threads and processes that hold it.

    The lock is a file next to `path`, `.NAME.lock`, which stays. Where the file system has no locks, nothing is held.

    Raises:
        InvalidFile: the folder cannot be made or written.
    """
    import fcntl

    path = Path(path)
    lock = path.with_name(f".{path.name}.lock")
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("ab")
    with file:
        _held.add(file)
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            _held.discard(file)


def _hold(file: IO[Any]) -> bool:
    """Lock an open file until it is closed, or its process ends however it ends; False where another process has."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lies_at(file: IO[Any], path: Path) -> bool:
    """Whether `path` is the open `file` still: neither removed nor, in a forked child, closed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (OSError, ValueError):
        return False


def read_json(path: str | Path, what: str, most: int = MOST_JSON_BYTES) -> Any:
    """The JSON in `path`, which should be `what`, of at most so many bytes.

    Raises:
        InvalidFile: missing, unreadable or no JSON.
    """
    path = Path(path)
    try:
        if (size := path.stat().st_size) > most or not path.is_file():
            raise InvalidFile(f"{path} is not a {what}, but a folder, a device or {size:,} bytes of something else; name another file")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidFile(f"there is no {what} at {path}; check its name") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidFile(f"{path} is not a {what}: {error}") from error
