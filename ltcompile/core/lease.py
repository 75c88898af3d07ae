"""Leases: files that say which process works on what in a folder that many machines see.

A lease is a file that one process creates exclusively (O_EXCL), which NFS does atomically; no lock is used, for locks do not hold there. Its
first line is a counter that the owner raises in place, through its open file: where another process took over, that file is no longer the
newest, and raising it changes nothing. An observer calls a lease expired where the counter did not change for some seconds of the
observer's own monotonic clock, so that no two clocks are compared; a tenth of them where its owner was killed before it wrote its name.
Taking over creates the file of the next number, which one process alone can. Files of earlier numbers stay until the work is done: they are
the record of its attempts.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ltcompile.paths import writing

STATE_BYTES, MOST_BYTES = 20, 1 << 16
LEASE_S = 30.0

State = Literal["running", "left", "expired", "failed"]


class LeaseLost(Exception):
    """Another process found this lease expired, and does its work now."""


class Files:
    """The calls of the file system that leases take."""

    def names(self, folder: str) -> list[str]:
        """What a folder holds; nothing where there is none."""
        try:
            return os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def create(self, path: str, content: bytes) -> int | None:
        """The descriptor of a new file; None where the file exists. Raises InvalidFile where it cannot be written."""
        with writing(Path(path), len(content)):
            Path(path).parent.mkdir(exist_ok=True)
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DSYNC | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                return None
            try:
                self.write(descriptor, content)
            except OSError:
                os.close(descriptor)
                self.remove(path)
                raise
            return descriptor

    def write(self, descriptor: int, content: bytes) -> None:
        """Replace the beginning of an open file, synchronously."""
        os.pwrite(descriptor, content, 0)

    def read(self, path: str) -> bytes | None:
        try:
            with open(path, "rb") as file:
                return file.read(MOST_BYTES)
        except OSError:  # gone, or (ESTALE) gone while it was read
            return None

    def exists(self, path: str) -> bool:
        return os.path.exists(path)

    def is_at(self, descriptor: int, path: str) -> bool:
        """Whether an open file is the one of that name still."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(path))
        except OSError:
            return False

    def mark(self, path: str) -> str | None:
        """What changes whenever the file is written; None where there is none."""
        try:
            return str(os.stat(path).st_mtime_ns)
        except OSError:
            return None

    def overwrite(self, path: str, content: bytes) -> None:
        """Replace the beginning of a file, if it is there."""
        with contextlib.suppress(OSError), open(path, "r+b") as file:
            os.pwrite(file.fileno(), content, 0)

    def remove(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)


@dataclass(frozen=True)
class Held:
    """What a lease file says: its counter as `beat`, and who owns it since when, or how its owner ended."""

    state: State
    beat: bytes
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> Held:
        """Of any content: a damaged lease is running, and expires."""
        beat, _, rest = content.partition(b"\n")
        word = beat.decode(errors="replace").strip()
        return cls(word if word in ("left", "expired", "failed") else "running", beat, _info(rest))  # type: ignore[arg-type]

    @property
    def owner(self) -> str:
        return f"process {self.info.get('pid', '?')} on {self.info.get('host', '?')}"

    @property
    def ended_here(self) -> bool:
        """Whether its owner was a process of this machine that has ended, however it did."""
        return self.info.get("machine") == machine() and not _runs(self.info.get("pid"), self.info.get("started"))


class Lease:
    """A lease of this process on the work whose lease files begin with `stem`."""

    def __init__(self, files: Files, stem: str, number: int, info: dict[str, Any]) -> None:
        self.files, self.stem, self.number, self.info = files, stem, number, info
        self.beats, self._guard = 0, threading.Lock()
        self._descriptor: int | None = None

    @classmethod
    def take(cls, files: Files, stem: str, number: int, info: dict[str, Any]) -> Lease | None:
        """The lease of that number; None where another process has it. Raises InvalidFile where it cannot be written."""
        lease = cls(files, stem, number, info)
        lease._descriptor = files.create(lease.path, lease._content("0".zfill(STATE_BYTES)))
        return lease if lease._descriptor is not None else None

    @property
    def path(self) -> str:
        return lease_file(self.stem, self.number)

    @property
    def lost(self) -> bool:
        """Whether another process took over, or even finished."""
        here = self._descriptor is not None and self.files.is_at(self._descriptor, self.path)
        return not here or self.superseded

    @property
    def superseded(self) -> bool:
        """Whether another process took over."""
        return self.files.exists(lease_file(self.stem, self.number + 1))

    def beat(self) -> None:
        """Raise the counter. An error of the file system is not raised: it lets the lease expire."""
        self.beats += 1
        self._write(str(self.beats).zfill(STATE_BYTES).encode())

    def describe(self, **more: Any) -> None:
        """Add to what the file says of its owner."""
        self.info |= more
        self._write(self._content(str(self.beats).zfill(STATE_BYTES)))

    def end(self, state: Literal["left", "failed"], error: str = "") -> None:
        """Give the work up: stopped in order, or failed for a reason."""
        self.info |= {"error": error[-2000:]} if error else {}
        self._write(self._content(state.ljust(STATE_BYTES)))
        self._close()

    @contextlib.contextmanager
    def held(self, every_s: float = LEASE_S / 6, after_beat: Callable[[], object] = lambda: None) -> Iterator[None]:
        """Raise the counter in a thread inside the context, and call `after_beat` there each time; at its end the work is done, failed where it
        raised an error, or left.
        """
        try:
            with self._beating(every_s, after_beat):
                yield
        except LeaseLost:
            self.end("left")
            raise
        except Exception as error:
            self.end("failed", f"{type(error).__name__}: {error}")
            raise
        except BaseException:
            self.end("left")
            raise
        self.done()

    def done(self) -> None:
        """The work's result is in its file: remove this lease and those before it."""
        self._close()
        for number in range(self.number, -1, -1):
            self.files.remove(lease_file(self.stem, number))

    @contextlib.contextmanager
    def _beating(self, every_s: float, after_beat: Callable[[], object]) -> Iterator[None]:
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(every_s):
                self.beat()
                after_beat()

        thread = threading.Thread(target=beat, name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _content(self, state: str) -> bytes:
        return f"{state}\n{json.dumps(self.info)}\n".encode()

    def _write(self, content: bytes) -> None:
        with self._guard, contextlib.suppress(OSError):
            if self._descriptor is not None:
                self.files.write(self._descriptor, content)

    def _close(self) -> None:
        with self._guard, contextlib.suppress(OSError):
            if self._descriptor is not None:
                os.close(self._descriptor)
            self._descriptor = None


class Observer:
    """What this process has seen of the leases of others, by its own monotonic clock."""

    def __init__(self, lease_s: float = LEASE_S, files: Files | None = None) -> None:
        self.lease_s, self.files = lease_s, files or Files()
        self._seen: dict[str, tuple[bytes, float]] = {}

    def look(self, path: str, now: float) -> tuple[Held, bool] | None:
        """What the lease file says, and whether it has expired; None where it is gone."""
        content = self.files.read(path)
        if content is None:
            self._seen.pop(path, None)
            return None
        held = Held.parse(content)
        beat, since = self._seen.get(path, (None, now))
        if beat != held.beat:
            self._seen[path] = held.beat, (since := now)
        patience = self.lease_s if held.info else self.lease_s / 10
        return held, held.state == "running" and (now - since > patience or held.ended_here)


def claim(stem: str, info: dict[str, Any], observer: Observer, now: float) -> Lease | None:
    """A lease on the work of that stem, unless another process has one. Raises InvalidFile where it cannot be written."""
    numbers = lease_numbers(observer.files.names(os.path.dirname(stem))).get(os.path.basename(stem), [])
    seen = observer.look(lease_file(stem, numbers[-1]), now) if numbers else None
    if seen is not None and seen[0].state == "running" and not seen[1]:
        return None
    return Lease.take(observer.files, stem, numbers[-1] + 1 if numbers else 0, info)


def mark(files: Files, path: str, held: Held, state: Literal["expired", "failed"], **more: Any) -> None:
    """Note in the lease file of another process that it expired, or that its work failed."""
    files.overwrite(path, f"{state.ljust(STATE_BYTES)}\n{json.dumps({**held.info, **more})}\n".encode())


def lease_file(stem: str, number: int) -> str:
    return f"{stem}.lease-{number}"


def lease_numbers(names: list[str]) -> dict[str, list[int]]:
    """Name of a work -> the numbers of its lease files in a folder, in order."""
    found: dict[str, list[int]] = {}
    for name in names:
        work, _, number = name.rpartition(".lease-")
        if work and number.isdecimal():
            found.setdefault(work, []).append(int(number))
    return {work: sorted(numbers) for work, numbers in found.items()}


@functools.lru_cache(4096)
def _info(text: bytes) -> Mapping[str, Any]:
    try:
        info = json.loads(text)
    except (ValueError, RecursionError):
        info = {}
    return info if isinstance(info, dict) else {}


def this_process(**more: Any) -> dict[str, Any]:
    """What a lease says of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid()), "machine": machine(), **more}


@functools.cache
def machine() -> str:
    """This machine since it booted, with its table of processes: containers of one host have others."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where it has ended, and "" where that is not known here."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if state in (b"Z", b"X") else fields[18].decode()
    except OSError:
        return None if Path("/proc/self/stat").exists() else ""


def _runs(pid: Any, started: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    if (now := _started(pid)) != "":
        return now is not None and now == started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
