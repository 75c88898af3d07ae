"""Workers as processes of this machine: the threads of its processors are divided among them, and its GPUs dealt out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ltcompile.errors import InvalidSetting
from ltcompile.paths import writing
from ltcompile.processors import processors

OPTIONS = {"threads": "of each worker; by default the processors divided by the workers"}


def unavailable() -> None:
    return None


class Process:
    """A worker in a session of its own, so that Ctrl-C in a terminal reaches it through `stop` alone."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self.log = str(log)
        with writing(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=os.environ | environment,
                    start_new_session=True,
                )

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()


class Executor:
    """So many places on this machine, each with its threads and its GPU."""

    def __init__(self, folder: Path, workers: int, options: dict[str, str]) -> None:
        self.folder, self.gpus = folder, gpus()
        given = options.get("threads", str(max(1, processors() // workers)))
        if not given.isdecimal() or int(given) < 1:
            raise InvalidSetting(f"threads={given} of executor=local must be a number of at least 1")
        self.threads = given
        self._places: list[Process | None] = [None] * workers

    def start(self, command: list[str], name: str) -> Process:
        place = next((i for i, process in enumerate(self._places) if process is None or process.poll() is not None), None)
        if place is None:
            raise InvalidSetting(f"executor=local has {len(self._places)} places, and all are taken")
        environment = {"OMP_NUM_THREADS": self.threads, "MKL_NUM_THREADS": self.threads}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        self._places[place] = process = Process(command, self.folder / f"{name}.log", environment)
        return process

    def close(self) -> None: ...


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [each.strip() for each in visible.split(",") if each.strip()]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]
