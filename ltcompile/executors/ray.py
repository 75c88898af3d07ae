"""Workers as tasks of a Ray cluster (Ray Core). What a task gets is a command line, which it runs as a process; Ray's authentication is on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

from ltcompile.errors import InvalidSetting, Unavailable

OPTIONS = {
    "address": "HOST:PORT of the cluster's head, or auto; by default a cluster on this machine",
    "num_cpus": "that Ray counts for a worker, 1 by default",
    "num_gpus": "the same of GPUs, 0 by default",
}
OLDEST, CONNECT_S = (2, 59), 10


def unavailable() -> str | None:
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # read when Ray is imported
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        return f"Ray does not load ({error}); pip install 'ltcompile[ray]'"
    if tuple(map(int, ray.__version__.split(".")[:2])) < OLDEST:
        return f"Ray {ray.__version__} is too old; pip install 'ltcompile[ray]'"
    return None


def run_command(command: list[str], folder: str, log: str, environment: dict[str, str]) -> int:
    """In a task: run a worker from `folder`; its exit code. Cancelling the task lets it end in order."""
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder if Path(folder).is_dir() else None,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        raise


class Task:
    """A worker that runs in the cluster, or waits for room there."""

    def __init__(self, reference: Any, log: Path) -> None:
        self._reference, self.log = reference, str(log)

    def poll(self) -> int | None:
        import ray

        if not ray.wait([self._reference], timeout=0)[0]:
            return None
        try:
            return int(ray.get(self._reference))
        except ray.exceptions.RayError:
            return 1

    def stop(self) -> None:
        import ray

        ray.cancel(self._reference)


class Executor:
    """A Ray cluster."""

    def __init__(self, folder: Path, workers: int, options: dict[str, str]) -> None:
        import ray

        address = options.pop("address", None)
        try:
            amounts = {"num_cpus": 1.0, "num_gpus": 0.0} | {key: float(text) for key, text in options.items()}
        except ValueError as error:
            raise InvalidSetting(f"executor=ray: {error}") from error
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if address is not None and (place := re.fullmatch(r"(?:\w+://)?(.+):(\d+)", address)):
                socket.create_connection((place[1], int(place[2])), CONNECT_S).close()  # Ray itself tries for minutes
            ray.init(address, include_dashboard=None if address else False, log_to_driver=False, configure_logging=False)
        except Exception as error:  # ConnectionError, AuthenticationError and others without a common base
            reason = " ".join(str(error).split())[:300]
            raise Unavailable(
                f"executor=ray: there is no cluster at address={address} that lets this process in: {reason}. Check the address, and that "
                "RAY_AUTH_TOKEN or ~/.ray/auth_token holds the cluster's token"
            ) from error
        for number, handler in handlers.items():  # Ray sets its own
            signal.signal(number, handler)
        self.folder = folder
        self._run = ray.remote(run_command).options(max_retries=0, **amounts)

    def start(self, command: list[str], name: str) -> Task:
        log = self.folder / f"{name}.log"
        environment = {name: os.environ[name] for name in ("PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
        return Task(self._run.remote(command, str(Path.cwd()), str(log), environment), log)

    def close(self) -> None:
        import ray

        ray.shutdown()
