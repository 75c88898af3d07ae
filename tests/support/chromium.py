"""A headless Chromium, driven through its DevTools protocol over a pair of pipes: no driver and no library is needed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars")
TIMEOUT = 60.0
DRAWN = """(async () => {
  const plots = [...document.querySelectorAll(".plot")];
  for (let i = 0; i < 200; i++) {
    if (plots.length && plots.every(plot => plot._fullLayout && Math.abs(plot._fullLayout.width - plot.clientWidth) < 1)) return true;
    await new Promise(done => setTimeout(done, 25));
  }
  return false;
})()"""


def executable() -> str | None:
    """The path of the installed Chromium, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page. `problems` collects console errors, warnings of the content security policy and uncaught exceptions."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._write, self._read, self._buffer, self._count = to_browser, from_browser, b"", 0
        self._session: str | None = None
        self._events: list[str] = []
        self.problems: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of one command of the protocol. Raises RuntimeError where Chromium refuses it."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params} | ({"sessionId": self._session} if self._session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (reply := self._next()).get("id") != self._count:
            self._note(reply)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']['message']}")
        return dict(reply["result"])

    def open(self, page: Path | str) -> None:
        """Load a file or an address, and wait for its load event; scripts in the page have run by then."""
        self._events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._note(self._next())

    def resize(self, width: int, height: int = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def media(self, scheme: str = "light", kind: str = "screen") -> None:
        self.call("Emulation.setEmulatedMedia", media=kind, features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited. Raises RuntimeError where it throws."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"]))
        return result["result"].get("value")

    def drawn(self) -> None:
        """Wait until every figure is as wide as its place. Raises RuntimeError where one is not after five seconds."""
        if not self.evaluate(DRAWN):
            raise RuntimeError("a figure is not drawn, or has not followed the width of the page")

    def move_mouse(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], TIMEOUT)[0]:
                raise RuntimeError(f"Chromium has been silent for {TIMEOUT:.0f} s")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("Chromium has ended")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(message))

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method", ""), event.get("params", {})
        self._events.append(method)
        if method == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Tab]:
    """A tab of a fresh Chromium, which ends with the context, by force after 10 seconds."""
    path = executable()
    assert path is not None, "no Chromium is installed"
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    # Chromium reads commands from descriptor 3 and answers on 4; either pipe may have one of these numbers, hence 10 and 11.
    shell = f'exec 10<&{in_read} 11>&{out_write} 3<&10 4>&11; exec "$0" "$@"'
    command = ["bash", "-c", shell, path, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    process = subprocess.Popen(command, pass_fds=(in_read, out_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(in_read)
    os.close(out_write)
    try:
        yield Tab(in_write, out_read)
    finally:
        os.close(in_write)
        os.close(out_read)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()
