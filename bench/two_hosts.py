"""One search on two hosts: namespaces of this machine, with a name, processes and a network of their own, which a veth pair joins.

    python bench/two_hosts.py     as root, with iproute2 and util-linux, in about a minute; writes bench/results/two_hosts.json

Both are nodes of a Ray cluster with a token, each with room for one worker. `find --executor ray` on the first one has to train arms on both, and
to find the rows of a search in one process.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _common import ROOT, finish

HOSTS = {"ltcompile-a": "10.231.7.1", "ltcompile-b": "10.231.7.2"}
LINKS = {"ltcompile-a": "ltc-a", "ltcompile-b": "ltc-b"}
PORT, START_S, SEARCH_S = 6399, 90, 300
SEARCH = (
    "--model vgg16-quarter --data digits --image-size 16 --epochs 6 --rounds 1 --rate 0.5 --seeds 4 --no-controls --margin 50 --device cpu"
)


def missing() -> str | None:
    """Why this machine cannot play two."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if absent := [tool for tool in ("ip", "unshare", "nsenter", "hostname") if shutil.which(tool) is None]:
        return f"{', '.join(absent)} is not installed; apt-get install iproute2 util-linux hostname"
    if not (Path(sys.executable).parent / "ray").exists():
        return "Ray is not installed; pip install 'ltcompile[ray]'"
    made = subprocess.run(["ip", "netns", "add", "ltcompile-try"], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "delete", "ltcompile-try"], capture_output=True, check=False)
    return made.stderr.strip() or None


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def hosts() -> Iterator[dict[str, list[str]]]:
    """Two hosts, joined by a veth pair: for each name, the words before a command that is to run there. All that runs there ends with them."""
    (first, one), (second, other) = LINKS.items()
    inits = list[subprocess.Popen[bytes]]()
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", one, "netns", first, "type", "veth", "peer", "name", other, "netns", second)
        for name, address in HOSTS.items():
            ip("-n", name, "address", "add", f"{address}/24", "dev", LINKS[name])
            for link in ("lo", LINKS[name]):
                ip("-n", name, "link", "set", link, "up")
            space = ["ip", "netns", "exec", name, "unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
            inits.append(subprocess.Popen([*space, "sh", "-c", f"hostname {name} && exec sleep infinity"]))
        yield {
            name: ["nsenter", f"--target={child(init.pid)}", "--net", "--uts", "--pid", "--mount"]
            for name, init in zip(HOSTS, inits, strict=True)
        }
    finally:
        for init in inits:
            init.kill()
            init.wait()
        for name in HOSTS:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def child(pid: int) -> int:
    """The process that `unshare` started, once it has become `sleep`."""
    for _ in range(600):
        for found in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{found}/comm").read_text().strip() == "sleep":
                return int(found)
        time.sleep(0.1)
    raise SystemExit("no process starts in namespaces of its own here")


def start_node(host: str, there: list[str], folder: Path, **usual: Any) -> None:
    """Start a node of the Ray cluster, and return once it runs; the first host's is the head."""
    head = next(iter(HOSTS))
    where = ["--head", f"--port={PORT}", "--include-dashboard=false"] if host == head else [f"--address={HOSTS[head]}:{PORT}"]
    ray, log, end = str(Path(sys.executable).parent / "ray"), folder / f"{host}.log", time.monotonic() + START_S
    command = [*there, "env", f"--chdir={folder}", ray, "start", "--block", "--num-cpus=1", f"--node-ip-address={HOSTS[host]}", *where]
    with log.open("w") as output:
        node = subprocess.Popen(command, **usual, stdout=output, stderr=subprocess.STDOUT)
    while "Ray runtime started" not in log.read_text():
        if node.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"Ray does not start on {host}: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def owners(run: Path) -> set[str]:
    """The hosts that leases name now."""
    found = set[str]()
    for lease in run.glob("seed*/*.lease-*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found.add(json.loads(lease.read_text().splitlines()[1])["host"])
    return found


def rows(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in json.loads((run / "search.json").read_text())["rows"]]


def searched(folder: Path, environment: dict[str, str]) -> tuple[set[str], float]:
    """Who trained arms of a search on both hosts, and its seconds."""
    head, seen, usual = next(iter(HOSTS)), set[str](), {"env": environment}
    with hosts() as there:
        for host in HOSTS:
            start_node(host, there[host], folder, **usual)
        words = [sys.executable, "-m", "ltcompile", "find", *SEARCH.split(), "--name", "two", "--jobs", "2", "--executor", "ray"]
        began = time.perf_counter()
        search = subprocess.Popen(
            [*there[head], "env", f"--chdir={folder}", *words, "--executor-option", f"address={HOSTS[head]}:{PORT}"], **usual
        )
        while search.poll() is None and time.perf_counter() - began < SEARCH_S:
            seen |= owners(folder / "runs/two")
            time.sleep(0.1)
        if search.poll() != 0:
            raise SystemExit(f"the search on two hosts ended with {search.poll()}")
        return seen, time.perf_counter() - began


def main() -> None:
    if reason := missing():
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory() as name:
        folder, token = Path(name), secrets.token_hex(32)
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        seen, seconds = searched(folder, environment)
        alone = [sys.executable, "-m", "ltcompile", "find", *SEARCH.split(), "--name", "one"]
        subprocess.run(alone, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        found = {"search": SEARCH, "hosts": sorted(seen), "same_rows": rows(folder / "runs/two") == rows(folder / "runs/one")}
    print(f"trained on {', '.join(sorted(seen))} in {seconds:.0f} s; the rows of one process: {found['same_rows']}")
    finish("two_hosts", {"bench": "two_hosts", **found})
    if seen != set(HOSTS) or not found["same_rows"]:
        raise SystemExit("both hosts must train, and find the rows of one process")


if __name__ == "__main__":
    main()
