"""Take the pictures of the documentation from pages of committed results: `python docs/screenshots.py`. It needs Chromium.

report.png is the head of the page of bench/results/demo; lottery.png is the first figure of the page of bench/results/studies/lottery.
"""

from __future__ import annotations

import base64
import sys
import tempfile
from pathlib import Path

from ltcompile.reporting import report

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "bench" / "results"
sys.path.insert(0, str(DOCS.parent / "tests" / "support"))

from chromium import Tab, browser  # noqa: E402

RECTANGLE = "(({x, y, width, height}) => ({x, y: y + scrollY, width, height}))"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as tab:
        tab.media("light")
        tab.resize(1200, 1500)
        tab.open(report(RESULTS / "demo", Path(folder) / "report.html"))
        save(tab, "report.png", {"x": 0, "y": 0, "width": 1200, "height": 1500})
        tab.resize(965)
        tab.open(report(RESULTS / "studies" / "lottery", Path(folder) / "lottery.html"))
        save(tab, "lottery.png", tab.evaluate(f"{RECTANGLE}(document.querySelector('figure').getBoundingClientRect())"))


def save(tab: Tab, name: str, clip: dict[str, float]) -> None:
    """Write the part of the page inside `clip` as a picture."""
    tab.drawn()
    shot = tab.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip={**clip, "scale": 1})
    (DOCS / name).write_bytes(base64.b64decode(shot["data"]))
    print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
