"""Targets that are missed are said to be, with how far: in what is returned, in JSON, in words and in the exit code."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from readers import some_ticket
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.cli import app
from ltcompile.core.reached import Reached
from ltcompile.deploy import shrink


@pytest.mark.parametrize(
    ("measure", "found", "missed", "words"),
    [
        ("macs", 0.2, 0.0, "target: 0.2 of the dense network's MACs, met: 0.2 of the dense network's MACs"),
        ("params", 0.201, 0.005, "parameters, missed by 0.5%: 0.201 of"),
        ("time", 0.205, 0.0, "target: 5 times as fast, met: 4.88 times as fast"),
        ("time", 0.22, 0.1, "missed by 10.0%: 4.55 times as fast"),
        ("energy", None, 0.0, "not measured on this machine"),
    ],
)
def test_targets_in_words(measure: str, found: float | None, missed: float, words: str) -> None:
    reached = Reached(measure, 0.2, found)
    assert reached.missed_by == pytest.approx(missed) and words in str(reached)
    assert Reached.from_json(reached.to_json()) == reached
    assert reached.to_json() == {"measure": measure, "requested": 0.2, "found": found, "missed_by": reached.missed_by}


def test_plans_of_sizes_meet_them() -> None:
    model, images = lt.build_model("lenet5", in_channels=1).eval(), torch.zeros(2, 1, 32, 32)
    reached: list[Reached] = []
    plan = lt.plan(model, images, target_macs=0.4, on_target=reached.append)
    share = lt.size(lt.cut(model, plan), images).macs / lt.size(model, images).macs
    assert reached == [Reached("macs", 0.4, share)] and not reached[0].missed_by


@pytest.mark.slow
def test_a_search_says_how_its_ticket_stands_to_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ltcompile.cli.find.StopSignal", dict)  # signals and warnings stay those of the tests
    words = [
        "find",
        "--model",
        "lenet5",
        "--image-size",
        "16",
        "--target-macs",
        "0.3",
        "--rounds",
        "2",
        "--epochs",
        "1",
        "--no-controls",
        "--set",
        "train_images=300",
    ]
    done = CliRunner().invoke(app, [*words, "--name", "t", "--json"], catch_exceptions=False)
    reported = json.loads(done.stdout)
    ticket, written = lt.Ticket.load(tmp_path / "runs/t/ticket.pt"), json.loads((tmp_path / "runs/t/search.json").read_text())
    dense = next(row for row in ticket.history if row.arm == "dense")
    reached = Reached("macs", 0.3, ticket.row.macs / dense.macs)
    assert reported["target"] == written["target"] == reached.to_json()
    assert done.exit_code == (4 if reached.missed_by else 0)
    assert bool(reached.missed_by) == (ticket.level < 2), "a level on the way to the target is not there yet"


@pytest.mark.parametrize(("requested", "code"), [(0.01, 4), (0.99, 0)])
def test_shrink_says_that_a_ticket_misses_its_target(tmp_path: Path, requested: float, code: int) -> None:
    ticket = some_ticket()
    ticket = dataclasses.replace(ticket, config={**ticket.config, "target_params": requested})
    ticket.save(tmp_path / "ticket.pt")
    record = shrink(ticket, tmp_path / "a.safetensors", model="readers:network").record
    assert record["target"]["found"] == pytest.approx(record["params"] / record["dense_params"])
    assert record["target"]["missed_by"] == pytest.approx(max(0.0, record["target"]["found"] / requested - 1))
    words = ["shrink", str(tmp_path / "ticket.pt"), "-o", str(tmp_path / "b.safetensors"), "--model", "readers:network"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == code and (tmp_path / "b.safetensors").is_file()
    assert ("missed by" in done.output) == bool(code) and json.loads((tmp_path / "b.json").read_text())["target"] == record["target"]
