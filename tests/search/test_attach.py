"""A search whose arms a command trains: two lines in the user's script."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fork, run_script
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile, InvalidModel, InvalidSetting, TicketMismatch, TrainingFailed
from ltcompile.paths import write_json
from ltcompile.search import command
from ltcompile.search.command import search_by_command
from ltcompile.search.listener import NullListener

BY_HAND = {"train": "none", "environment": {}}  # what a search by a command writes besides its settings
SCRIPT = """
import argparse, copy, torch
from pathlib import Path
from torch import nn
from torch.nn import functional as F
import ltcompile as lt

options = argparse.ArgumentParser()
options.add_argument("--seed", type=int, default=0)
options.add_argument("--epochs", type=int, default=2)
options.add_argument("--folder", type=Path)
options = options.parse_args()

torch.manual_seed(options.seed)
model = nn.Sequential(nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 1, 1))
model = lt.attach(model)
ema = copy.deepcopy(model)
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
for step in range(4 * options.epochs):
    x = torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(step))
    optimizer.zero_grad()
    F.mse_loss(model(x), x[:, :1] * x[:, 1:]).backward()
    optimizer.step()
    ema.load_state_dict(model.state_dict())
if options.folder:
    torch.save(ema.state_dict(), options.folder / "ema.pt")
x = torch.randn(64, 2, 16, generator=torch.Generator().manual_seed(99))
with torch.no_grad():
    error = F.mse_loss(model.eval()(x), x[:, :1] * x[:, 1:]).item()
print("error", error, "widths", model[0].out_channels)
lt.report_metric(error)
"""
ERROR = Metric("error", "units", 1.0, higher_is_better=False)
CONFIG = lt.SearchConfig(rounds=1, rate=0.4, controls=False, margin_points=5)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def search(
    script: Path, folder: Path, command: str = "{python} {script} --seed {seed} --epochs {epochs} --folder {folder}", **options: Any
) -> dict[str, Any]:
    words = command.replace("{python}", sys.executable).replace("{script}", str(script))
    return search_by_command(words, folder, ERROR, CONFIG, **{"epochs": 2, "example": "2x2x16"} | options)


class Started(NullListener):
    def __init__(self) -> None:
        self.arms: list[str] = []

    def started(self, seed: int, arm: str, level: int, *_: object) -> None:
        self.arms.append(f"{arm}-{level}")


@pytest.mark.slow
def test_a_script_searches_and_resumes_and_ships(script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = Started()
    with pytest.raises(TrainingFailed, match=r"seed0/dense-0 ended with exit code 2.*--nonsense"):
        search(script, tmp_path / "run", "{python} -c 'raise SystemExit(2)' --nonsense")
    monkeypatch.setattr(command, "call", run_script)
    with pytest.raises(InvalidFile, match="holds a search already"):
        search(script, tmp_path / "run")
    summary = search(script, tmp_path / "run", resume=True, listener=started)
    assert started.arms == ["dense-0", "ticket-1"] and [row["arm"] for row in summary["rows"]] == ["dense", "ticket"]
    assert summary["ticket"] == {"seed": 0, "level": 1, "won": False} and "error" in " ".join(summary["verdict"]["summary"])

    before = (tmp_path / "run/command.json").read_bytes()
    with pytest.raises(TicketMismatch, match=r"other settings \(example: '2x2x16' there, '2x2x32' requested\)"):
        search(script, tmp_path / "run", resume=True, example="2x2x32")
    assert (tmp_path / "run/command.json").read_bytes() == before

    plan, weights = lt.PruningPlan.load(tmp_path / "run/plan.json"), torch.load(tmp_path / "run/small.pt")
    dense = nn.Sequential(
        nn.Conv1d(2, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 1, 1)
    )
    small = lt.cut(dense, plan)
    small.load_state_dict(weights)
    assert small[0].out_channels < 8
    kept = torch.load(tmp_path / "run/seed0/ticket-1/ema.pt")
    assert all(torch.equal(value, weights[name]) for name, value in kept.items()), "a copy that the script made has the arm's widths"


def train_distributed(rank: int, folder: Path, level: int) -> None:
    """One process of two that train an arm together, as torchrun starts them."""
    os.environ |= {"LTCOMPILE_SEARCH": str(folder / "command.json"), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting-{level}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = lt.attach(nn.Sequential(nn.Conv1d(2, 8, 3), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 1, 1)))
    network = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(2):
        optimizer.zero_grad()
        network(torch.randn(8, 2, 16, generator=torch.Generator().manual_seed(10 * rank + step))).square().mean().backward()
        optimizer.step()
    torch.save(model[0].weight.detach(), folder / f"weight-{level}-{rank}.pt")
    lt.report_metric(0.5 + rank)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_processes_of_a_training_get_the_same_arm(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, rewind="weight")
    write_json(tmp_path / "command.json", {"metric": asdict(ERROR), "config": config.to_json(), "epochs": 1, "example": "2x2x16"} | BY_HAND)
    for level, width in enumerate((8, 5)):
        processes = [fork(train_distributed, rank, tmp_path, level) for rank in range(2)]
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0, 0]
        first, second = (torch.load(tmp_path / f"weight-{level}-{rank}.pt") for rank in range(2))
        assert first.shape == (width, 2, 3) and torch.equal(first, second), "one arm, trained together"
    rows = json.loads((tmp_path / "own-search.json").read_text())["rows"]
    assert [(row["arm"], row["val_score"]) for row in rows] == [("dense", 0.5), ("ticket", 0.5)], "the first process alone reports"


def test_outside_a_search_the_two_lines_do_nothing(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    assert "widths 8" in capsys.readouterr().out
    model = nn.Linear(2, 2)
    assert lt.attach(model) is model
    lt.report_metric(float("nan"))


def test_a_forgotten_line_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match="seed0/dense-0 is not finished: the script must call"):
        search_by_command(f"{sys.executable} -c pass", tmp_path, ERROR, CONFIG, epochs=1)
    monkeypatch.setenv("LTCOMPILE_SEARCH", str(tmp_path / "command.json"))
    with pytest.raises(InvalidSetting, match="report_metric was called, but not attach"):
        lt.report_metric(0.5)
    with pytest.raises(InvalidSetting, match=r"attach\(model, example\)"):
        lt.attach(nn.Linear(2, 2))


def test_another_network_than_the_attached_one_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "command.json", {"metric": asdict(ERROR), "config": CONFIG.to_json(), "epochs": 1, "example": "1x2x16"} | BY_HAND)
    monkeypatch.setenv("LTCOMPILE_SEARCH", str(tmp_path / "command.json"))
    attached = lt.attach(model := nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 1, 1)))
    nn.init.ones_(model[2].bias)
    with pytest.raises(InvalidModel, match="seed0/dense-0: the network that attach returned was not trained"):
        lt.report_metric(0.5)
    attached.load_state_dict(model.state_dict())
    lt.report_metric(0.5)


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, seeds: list[int], rewind: str) -> dict[str, Tensor]:
    """By arm, the weights of the first layer before each training of a script that builds its network under one of `seeds`."""
    config = lt.SearchConfig(rounds=1, rate=0.4, margin_points=5, rewind=rewind)
    write_json(folder / "command.json", {"metric": asdict(ERROR), "config": config.to_json(), "epochs": 1, "example": "1x2x16"} | BY_HAND)
    monkeypatch.setenv("LTCOMPILE_SEARCH", str(folder / "command.json"))
    found = {}
    for seed in seeds:
        torch.manual_seed(seed)
        model = lt.attach(nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 1, 1)))
        found[("dense", "ticket", "random", "dense_budget")[len(found)]] = model[0].weight.detach().clone()
        with torch.no_grad():
            model[0].weight.mul_(1.5)
        lt.report_metric(0.5)
    return found


def test_arms_start_from_the_first_weights_of_the_first_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = started(tmp_path, monkeypatch, [0, 1, 2, 3], "weight")  # a script without a seed of its own
    kept = list(next(iter(lt.PruningPlan.load(tmp_path / "plan.json").kept.values())))
    torch.testing.assert_close(found["ticket"], found["dense"][kept], rtol=0, atol=0)
    torch.testing.assert_close(found["dense_budget"], found["dense"], rtol=0, atol=0)
    assert found["random"].shape == found["ticket"].shape and not torch.equal(found["random"], found["ticket"])


def test_a_control_on_the_first_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidSetting, match=r"seed0/random-1 needs fresh weights.*--no-controls"):
        started(tmp_path, monkeypatch, [0, 0, 0], "lr")


def test_controls_get_a_seed_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def run(words: list[str], env: dict[str, str], _: Any) -> int:
        """The script, in this process."""
        for name in ("LTCOMPILE_SEARCH", "LTCOMPILE_ARM"):
            monkeypatch.setenv(name, env[name])
        seeds.append(int(words[-1]))
        torch.manual_seed(seeds[-1])
        model = lt.attach(nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 1, 1)))
        with torch.no_grad():
            model[0].weight.add_(1)
        lt.report_metric(0.5)
        return 0

    monkeypatch.setattr(command, "call", run)
    config = lt.SearchConfig(rounds=1, rate=0.4, margin_points=5)
    summary = search_by_command("train {seed}", tmp_path, ERROR, config, epochs=1, example="1x2x16")
    assert [row["arm"] for row in summary["rows"]] == ["dense", "ticket", "random", "dense_budget"]
    assert seeds[:2] == [0, 0] and seeds[3] == 0 and 0 < seeds[2] < 1 << 31
    with pytest.raises(InvalidSetting, match="rewind_epoch=1: a script cannot"):
        search_by_command("train", tmp_path, ERROR, dataclasses.replace(config, rewind="weight", rewind_epoch=1), epochs=2)


@pytest.mark.parametrize(
    ("command", "says"), [("python 'x", "is not a command line"), ("", "train= is empty"), ("/no/such/program", "cannot be started")]
)
def test_commands_are_checked(command: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=says):
        search_by_command(command, tmp_path, ERROR, CONFIG, epochs=1)


@pytest.mark.parametrize(
    ("settings", "example", "says"),
    [
        ({}, "abc", "example= takes shapes"),
        ({"criterion": "taylor"}, "2x2x16", "needs gradients of data"),
        ({"prune": "weights"}, "2x2x16", "prunes filters"),
        ({"method": "edge-popup", "rate": 0.5}, "2x2x16", "method=edge-popup"),
        ({"masked": True}, "2x2x16", "masked=True"),
        ({"full_curve": True}, "2x2x16", "full_curve=True"),
        ({"target_time": 0.5, "on": "cpu:eager:b1:fp32"}, "2x2x16", "a target of time needs the layers' times"),
    ],
)
def test_settings_are_checked_before_the_command_runs(settings: dict[str, Any], example: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=says):
        search_by_command("/no/such/program", tmp_path, ERROR, lt.SearchConfig(**{"rounds": 1} | settings), epochs=1, example=example)
    assert not (tmp_path / "command.json").exists()


def test_a_damaged_description_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "command.json").write_text(json.dumps({"metric": {}, "config": [], "epochs": 1, "example": None} | BY_HAND))
    monkeypatch.setenv("LTCOMPILE_SEARCH", str(tmp_path / "command.json"))
    with pytest.raises(InvalidFile, match="does not describe a search"):
        lt.attach(nn.Linear(2, 2))
