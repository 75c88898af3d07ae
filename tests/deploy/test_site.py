"""The page of a network: it answers in a browser what PyTorch does, holds all that it needs, and takes nothing from elsewhere by itself."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from chromium import Tab, browser, executable
from small_tasks import CASES
from torch import nn
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.cli import app
from ltcompile.core.task import Task
from ltcompile.deploy import formats
from ltcompile.errors import InvalidFile, InvalidModel, InvalidSetting, Unavailable
from ltcompile.runtimes import _web

WAIT = "(async () => { while (!globalThis.results?.done) await new Promise(done => setTimeout(done, 20)); return results; })()"


def network() -> lt.Pruned:
    torch.manual_seed(0)
    return lt.Pruned(lt.build_model("lenet300", classes=10, in_channels=1, image_size=8).eval(), torch.randn(2, 1, 8, 8))


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if ONNX Runtime Web were installed."""
    monkeypatch.setattr(_web, "folder", lambda: tmp_path / "web")
    (tmp_path / "web").mkdir()
    for name in _web.FILES:
        (tmp_path / "web" / name).write_text(name)


@pytest.mark.slow
@pytest.mark.usefixtures("fetched")
def test_a_folder_holds_all_that_the_page_needs(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for output in (f"{tmp_path}/site/", tmp_path / "there"):
        done = lt.shrink(network(), output, precision="fp16" if output == tmp_path / "there" else "fp32")
        assert done.path == Path(output) / "index.html" and done.record["onnx_error"] <= done.record["tolerance"]
        assert all(path.is_file() for path in formats.files(done.path)) and done.record["bytes"] == sum(
            path.stat().st_size for path in formats.files(done.path)
        )
        assert {path.name for path in done.path.parent.iterdir()} == {p.name for p in formats.files(done.path)} | {"index.json"}
        page = json.loads(done.path.with_name("page.json").read_text())
        assert page["task"] == "classification" and page["precision"] == done.record["precision"] and len(page["samples"]) == 2
        assert done.path.with_name("answers.bin").stat().st_size == 2 * 10 * 4
        assert "http" not in done.path.read_text().replace("http-equiv", "").replace("http.server", "").replace("http://localhost", "")


@pytest.mark.usefixtures("fetched")
def test_what_cannot_be_a_page_is_refused(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>another page")
    with pytest.raises(InvalidFile, match=r"index\.html is a page that ltcompile did not write; name another folder"):
        lt.shrink(network(), tmp_path)
    assert (tmp_path / "index.html").read_text() == "<p>another page"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "network.onnx").write_text("another network")
    with pytest.raises(InvalidFile, match=r"network\.onnx is there, and no page that it belongs to"):
        lt.shrink(network(), tmp_path / "mine")
    assert (tmp_path / "mine" / "network.onnx").read_text() == "another network"
    with pytest.raises(InvalidModel, match="a page shows grey or RGB images"):
        lt.shrink(lt.Pruned(nn.Linear(3, 2).eval(), torch.randn(2, 3)), f"{tmp_path}/site/")
    with pytest.raises(InvalidSetting, match=r"images= gives \(1, 9, 9\), and the network takes \(1, 8, 8\)"):
        lt.shrink(network(), f"{tmp_path}/site/", images=[torch.randn(2, 1, 9, 9)])
    with pytest.raises(InvalidSetting, match="keep batch among the dynamic axes"):
        lt.shrink(network(), f"{tmp_path}/site/", dynamic=())


@pytest.mark.slow
@pytest.mark.usefixtures("fetched")
def test_a_ticket_is_shown_with_its_own_data(run: Path, tmp_path: Path) -> None:
    ticket = str(run / "ticket.pt")
    done = CliRunner().invoke(app, ["shrink", ticket, "-o", f"{tmp_path}/site/"])
    assert done.exit_code == 0 and f"python -m http.server -b localhost -d {tmp_path}/site" in done.output.replace("\n", "")
    page, data = json.loads((tmp_path / "site" / "page.json").read_text()), lt.load_data("digits")
    assert [sample["truth"]["marks"][0]["number"] for sample in page["samples"]] == data.test.labels[:4].tolist()
    done = CliRunner().invoke(app, ["shrink", ticket, "-o", f"{tmp_path}/small.onnx", "--images", "digits"])
    assert isinstance(done.exception, InvalidSetting) and "--images is for a page" in str(done.exception)


def test_nothing_is_fetched_without_being_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(Unavailable, match=r"\.html files cannot be written here: .* run `ltcompile doctor --install site`"):
        lt.shrink(network(), f"{tmp_path}/site/")
    assert not (tmp_path / "cache").exists()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.mark.slow
@pytest.mark.skipif(executable() is None, reason="no Chromium is installed")
@pytest.mark.skipif(_web.missing() is not None, reason=str(_web.missing()))
@pytest.mark.parametrize("kind", CASES)
def test_the_browser_answers_as_pytorch(kind: str, tab: Tab, tmp_path: Path) -> None:
    """On a telephone, with no line on its console: the same outputs, and the same class, map or boxes."""
    task, name = CASES[kind]()
    torch.manual_seed(1)
    small = lt.build_model(name, **task.description.arguments).eval()
    if kind in ("detection", "segmentation"):  # an untrained one answers everywhere alike
        last = [module for module in (small.heat if kind == "detection" else small).modules() if isinstance(module, nn.Conv2d)][-1]  # type: ignore[union-attr]
        last.weight.data *= 10
        last.bias.data.zero_()  # type: ignore[union-attr]
    done = lt.shrink(lt.Pruned(small, task.example), f"{tmp_path}/site/", images=task)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(done.path.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        tab.resize(390)
        tab.problems.clear()
        tab.open(f"http://127.0.0.1:{server.server_port}/")
        results = tab.evaluate(WAIT)
        status = tab.evaluate("document.querySelector('#status').textContent")
        assert "failed" not in results and "The outputs are PyTorch's" in status, status
        assert len(results["errors"]) == 4 and 0 <= max(results["errors"]) <= 1e-4 and results["ms"] > 0
        assert (
            tab.evaluate("document.documentElement.scrollWidth <= 390")
            and tab.evaluate("document.querySelectorAll('#samples img').length") >= 8
        )
        check_answers(kind, task, small, results["answers"])
        own = "new File([Uint8Array.from(atob(PNG), c => c.charCodeAt(0))], 'own.png')"
        png = json.dumps(json.loads(done.path.with_name("page.json").read_text())["samples"][0]["image"])
        again = tab.evaluate(f"results.own({own.replace('PNG', png)}).then(({{marks, boxes, map}}) => ({{marks, boxes, map}}))")
        assert {key: value for key, value in again.items() if value is not None} == {
            k: v for k, v in results["answers"][0].items() if v is not None
        }
        assert tab.evaluate("results.own(new File(['no image'], 'a.txt'))") is None
        assert "a.txt is not an image" in tab.evaluate("document.querySelector('#own').textContent")
        assert tab.problems == []
    finally:
        server.shutdown()
        server.server_close()


def check_answers(kind: str, task: Task, small: nn.Module, found: list[dict[str, object]]) -> None:
    """What the page makes of the outputs is what the task makes of PyTorch's."""
    expected = task.answers(small, "test", 4, torch.device("cpu"))
    images = next(iter(task.batches("test", 4, torch.device("cpu"))))[0]
    for answer, correct, image in zip(found, expected, images, strict=True):
        marks, boxes = answer.get("marks") or [], answer.get("boxes") or []
        if kind == "classification":
            assert marks[0]["name"] == correct.marks[0].name and marks[0]["score"] == pytest.approx(correct.marks[0].score, abs=1e-3)  # type: ignore[index]
        if kind == "segmentation":
            with torch.no_grad():
                scores = small(image[None])
            wanted = nn.functional.interpolate(scores, image.shape[-2:], mode="bilinear").argmax(1).flatten()
            assert len(wanted.unique()) > 1 and (torch.tensor(answer["map"]) == wanted).float().mean() > 0.999
        if kind == "detection":
            assert boxes and [box["mark"]["number"] for box in boxes] == [box.mark.number for box in correct.boxes]  # type: ignore[attr-defined, index]
            for box, other in zip(boxes, correct.boxes, strict=True):  # type: ignore[arg-type]
                assert box["edges"] == pytest.approx(other.edges, abs=1e-4)
