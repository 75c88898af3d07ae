"""Write files atomically, and read them back with errors that say what to do."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ltcompile.errors import BadFile


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A scratch file beside `path`, moved over it on success and removed on failure: nobody sees half a file.

    Raises:
        BadFile: the folder cannot be made or written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror}; choose another place") from error
    scratch = Path(name)
    try:
        yield scratch
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, path)
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror or error}; the old file, if any, is untouched") from error
    finally:
        scratch.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def check_writable(path: str | Path) -> Path:
    """Fail now rather than after the work: `path` can be written as a file.

    Raises:
        BadFile: it is a folder, or its folder cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise BadFile(f"cannot write {path}: it is a folder; name a file inside it")
    with contextlib.suppress(FileNotFoundError), _probe(path):
        pass
    return path


@contextlib.contextmanager
def _probe(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            yield
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror or error}; choose another place") from error


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Inside it, no other process is: `folder`/lock names the one that is. A process that died holds nothing, however it died.

    Raises:
        BadFile: another process is at work there, or the folder cannot be written.
    """
    folder = Path(folder)
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _lock(path)
    except OSError as error:
        raise BadFile(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    with file:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> TextIO:
    """The lock file, opened and locked by the kernel, which lets go of it when the process ends."""
    import fcntl

    while True:
        file = path.open("a+", encoding="utf-8")
        file.seek(0)
        told = file.read()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise BadFile(f"{path.parent} is in use by {_owner(told)}; wait until it is done, stop it, or choose another place") from None
        if told and _owner(told, "host") != socket.gethostname():  # whose locks this kernel may not know
            file.close()
            raise BadFile(f"{path.parent} is in use by {_owner(told)}; if that has ended, remove {path}")
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its owner has just removed it


def _owner(told: str, what: str = "") -> str:
    """What a lock file tells of its owner."""
    try:
        owner = json.loads(told)
        return str(owner[what]) if what else f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def write_text(path: str | Path, text: str) -> None:
    """Replace `path` by `text`, atomically."""
    with atomic(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str) -> Any:
    """The JSON in `path`, which should be `what`.

    Raises:
        BadFile: missing, unreadable or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadFile(f"there is no {what} at {path}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise BadFile(f"{path} is no {what}: {error}") from error
