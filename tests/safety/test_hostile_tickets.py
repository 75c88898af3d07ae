"""Tickets, plans and run folders that were forged are refused."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call, refused
from forgery import MARK, forged, onnx_file
from readers import READERS

import ltcompile as lt
from ltcompile.core import ticket as tickets
from ltcompile.errors import InvalidFile, TicketMismatch


@pytest.mark.slow
class TestTickets:
    """Descriptions that lie, under a checksum that fits."""

    @pytest.mark.parametrize(
        ("says", "change"),
        [
            ("not a whole number within", lambda h, w: h["plan"]["groups"][0].update(width=10**12)),
            ("not a whole number within", lambda h, w: h["plan"]["groups"][0]["members"][0].update(start=10**15)),
            ("more than the", lambda h, w: h["plan"]["groups"][0].update(width=2**20, members=h["plan"]["groups"][0]["members"] * 100)),
            ("not a whole number within", lambda h, w: h["plan"]["groups"][0].update(width=-6)),
            ("not a whole number within", lambda h, w: h["plan"]["kept"].update({"0": [0.0, 1]})),
            ("not a whole number within", lambda h, w: h["plan"]["kept"].update({"0": [-1, 0]})),
            ("not rising", lambda h, w: h["plan"]["kept"].update({"0": [0, 0]})),
            ("not rising", lambda h, w: h["plan"]["kept"].update({"0": [0, 77]})),
            ("lacks", lambda h, w: h["history"][0].pop("macs")),
            ("whole number", lambda h, w: h["history"][0].update(macs="many")),
            ("history has no row of", lambda h, w: h.update(level=7)),
            ("model is built with", lambda h, w: h["model"]["arguments"].update(classes=10**6)),
            ("model is built with", lambda h, w: h["model"]["arguments"].update(weights="/etc/passwd")),
            ("more than 16,777,216 values", lambda h, w: h["data"].update(shape=[1, 10**6, 10**6])),
            ("do not fit", lambda h, w: h["data"].update(std=[0.0])),
            ("text without control characters", lambda h, w: h["data"].update(class_names=["\ud800", "b"])),
            ("does not know surplus", lambda h, w: h.update(surplus=1)),
            ("RecursionError", lambda h, w: h["config"].update(json.loads('{"a":' * 900 + "1" + "}" * 900))),
        ],
    )
    def test_are_refused(self, tmp_path: Path, lenet: Path, says: str, change: Callable[..., object]) -> None:
        (tmp_path / "ticket.pt").write_bytes(forged(lenet, change))
        refused("show", tmp_path / "ticket.pt", says=says)

    def test_headers_that_are_bombs(self, tmp_path: Path) -> None:
        value = torch.load(io.BytesIO(READERS["ticket"].whole()), weights_only=True)
        for header in ("[" * 10**6, "1" * 10**6, '{"a":' * 10**5):
            checksum = tickets._checksum(header, value["weights"], {})
            torch.save({**value, "header": header, "checksum": checksum}, tmp_path / "ticket.pt")
            refused("show", tmp_path / "ticket.pt", says="not a valid ticket")

    @pytest.mark.parametrize("name", ["lenet300", "torchvision:resnet18", "vgg16"])
    def test_of_another_network(self, tmp_path: Path, lenet: Path, name: str) -> None:
        (tmp_path / "ticket.pt").write_bytes(forged(lenet, lambda h, w: h["model"].update(name=name)))
        refused("shrink", tmp_path / "ticket.pt", "-o", tmp_path / "s.onnx", says="does not fit" if ":" not in name else "colour channels")

    def test_a_network_beyond_memory(self, tmp_path: Path, lenet: Path) -> None:
        def change(header: dict[str, Any], _: Any) -> None:
            names = [str(i) for i in range(10**5)]
            header["model"] = {"name": "torchvision:vgg16", "arguments": {"classes": 10**5, "in_channels": 3, "image_size": 32}}
            header["data"].update(class_names=names, shape=[3, 32, 32], mean=[0.5] * 3, std=[0.5] * 3)

        (tmp_path / "ticket.pt").write_bytes(forged(lenet, change))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ltcompile.pruned.ticket.free_memory_bytes", lambda: 1 << 30)
            with pytest.raises(TicketMismatch, match=r"takes 2\.\d GiB, and 1\.0 GiB of memory are free"):
                lt.shrink(tmp_path / "ticket.pt", tmp_path / "s.onnx")

    def test_plans_that_reach_for_attributes(self, tmp_path: Path, lenet: Path) -> None:
        for axis in ("=__class__", "=_parameters", "=weight", "=forward", "=__dict__[0]", "bias.7", "nothing.0"):
            change = lambda h, w, axis=axis: h["plan"]["groups"][0]["members"][0].update(axis=axis)  # noqa: E731
            (tmp_path / "ticket.pt").write_bytes(forged(lenet, change))
            with pytest.raises(TicketMismatch, match="does not fit"):
                lt.shrink(tmp_path / "ticket.pt", tmp_path / "s.onnx")


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"groups":' * 10**5, '{"groups": [], "kept": {"a": [' + "1" * 10**5 + "]}}", '{"groups": 1e999, "kept": {}}', "\x00"],
)
def test_plans_in_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InvalidFile, match=r"plan\.json is no"):
        lt.PruningPlan.load(tmp_path / "plan.json")


def test_plans_that_never_end(tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    os.truncate(tmp_path / "plan.json", 1 << 40)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "plan.json", tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InvalidFile, match="name another file"):
            lt.PruningPlan.load(path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after a short search."""
    cwd = tmp_path_factory.mktemp("search")
    assert call(*SEARCH, cwd=cwd).returncode == 0
    return cwd


SEARCH = ("find", "--model", "lenet5", "--image-size", 16, "--epochs", 2, "--rounds", 1, "--no-controls", "--name", "t")
CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "nothing left": lambda saved: saved.clear(),
    "no weights": lambda saved: saved.pop("weights"),
    "other weights": lambda saved: saved["weights"].update({"0.weight": torch.zeros(2, 2)}),
    "weights that are none": lambda saved: saved.update(weights=[1]),
    "no row": lambda saved: saved.pop("row"),
    "another row": lambda saved: saved["row"].update(macs="many"),
    "epochs that are none": lambda saved: saved.update(epochs=[1, 2]),
    "epochs that are no list": lambda saved: saved.update(epochs=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_trainings_that_are_of_another_run(searched: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = searched / "runs/t/seed0/dense-0.pt"
    whole = file.read_bytes()
    change(saved := torch.load(file, weights_only=True))
    torch.save(saved, file)
    try:
        refused(*SEARCH, "--resume", says="dense-0.pt does not fit this run", cwd=searched)
    finally:
        file.write_bytes(whole)


@pytest.mark.slow
@pytest.mark.parametrize("without", ["model", "optimiser", "epochs"])
def test_checkpoints_that_are_of_another_training(searched: Path, without: str) -> None:
    folder = searched / "runs/t/seed0"
    unit, partial = folder / "ticket-1.pt", folder / "ticket-1.partial.pt"
    whole = unit.read_bytes()
    saved = torch.load(unit, weights_only=True)
    checkpoint = {"model": saved["weights"], "optimiser": {"state": {}, "param_groups": []}, "epochs": saved["epochs"][:1]}
    del checkpoint[without]
    torch.save(checkpoint, partial)
    unit.unlink()
    try:
        refused(*SEARCH, "--resume", says="ticket-1.partial.pt does not fit" if without == "epochs" else "another training", cwd=searched)
    finally:
        unit.write_bytes(whole)
        partial.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["shrink", "lower", "bench"])
@pytest.mark.parametrize("kind", ["ticket", "onnx"])
def test_code_that_a_file_names_is_requested_again(tmp_path: Path, command: str, kind: str) -> None:
    if kind == "onnx" and command != "bench":
        return
    (tmp_path / "readers.py").write_text(f"open({MARK!r}, 'w')\n")
    target = tmp_path / ("t.pt" if kind == "ticket" else "t.onnx")
    target.write_bytes(READERS[kind].whole())
    refused(command, target, says="--model readers:network", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    refused(command, target, "--model", "os:system", says="", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert not (tmp_path / MARK).exists()


@pytest.mark.slow
def test_names_do_not_command_the_terminal(tmp_path: Path, lenet: Path) -> None:
    """Neither it nor rich's markup, which an odd bracket would break."""
    hostile = "\x1b]0;title\x07\x1b[2J[/red][link=http://evil.test]x"

    def change(model: Any) -> None:
        model.producer_name = model.graph.node[0].name = hostile
        model.metadata_props.add(key=hostile, value=hostile)

    done = call("inspect", onnx_file(tmp_path / "net.onnx", change))
    assert done.returncode == 0 and "\x1b" not in done.stdout and "[/red]" in done.stdout, done.stderr
    (tmp_path / "t.pt").write_bytes(forged(lenet, lambda h, w: h["verdict"].update(rule=hostile, summary=["[/red]"])))
    refused("show", tmp_path / "t.pt", says="text without control characters")
    rename = lambda h, w: (h["plan"]["groups"][0].update(name="[/red]"), h["plan"].update(kept={}))  # noqa: E731
    (tmp_path / "t.pt").write_bytes(forged(lenet, rename))
    done = call("show", tmp_path / "t.pt")
    assert done.returncode == 0 and "[/red]" in done.stdout, done.stderr
    done = call("show", f"{tmp_path}/{hostile}")
    assert done.returncode == 2 and "\x1b" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("command", [("show",), ("inspect",), ("plan", "--model", "lenet5", "--weights")])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, command: tuple[str, ...]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path / "loop", tmp_path / ("long" * 100)):
        refused(*command, path, says=str(path))
    refused("report", tmp_path, says="not a run folder")
