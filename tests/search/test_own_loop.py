"""A search whose arms a loop of the user's own trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ltcompile as lt
from ltcompile.core.notice import Notice
from ltcompile.core.task import Metric
from ltcompile.errors import InvalidFile, InvalidModel, InvalidSetting, TicketMismatch, UnknownName

EXAMPLE = {"image": torch.randn(2, 1, 8, 8), "place": torch.randn(2, 3)}
ERROR = Metric("error", "units", 1.0, higher_is_better=False)


class Regressor(nn.Module):
    """An image and a vector, by name, to a dict of two maps: nothing of classification."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.place = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(3, 8)
        self.map, self.norm = nn.Conv2d(8, 2, 1), nn.BatchNorm2d(8)

    def forward(self, image: Tensor, place: Tensor) -> dict[str, Tensor]:
        y = F.relu(self.norm(self.first(image))) + self.place(place)[:, :, None, None]
        y = self.map(F.relu(self.second(y)))
        return {"blurred": y[:, :1], "edges": y[:, 1:]}


def batches(count: int, seed: int) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        image, place = torch.randn(16, 1, 8, 8, generator=generator), torch.randn(16, 3, generator=generator)
        blurred = F.avg_pool2d(image, 3, 1, 1)
        found.append(({"image": image, "place": place}, {"blurred": blurred + place[:, :1, None, None], "edges": image - blurred}))
    return found


def loss(model: nn.Module, inputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    outputs = model(**inputs)
    return sum((F.mse_loss(outputs[name], target) for name, target in targets.items()), torch.zeros(()))


def train(arm: Any) -> float:
    """The user's loop: it knows nothing of the search but the arm."""
    optimizer = torch.optim.Adam(arm.model.parameters(), 0.02)
    for epoch in range(arm.epochs):
        for inputs, targets in batches(4, arm.seed + epoch):
            optimizer.zero_grad()
            loss(arm.model, inputs, targets).backward()
            optimizer.step()
        if epoch == 0:
            arm.keep_early()
    arm.model.eval()
    with torch.no_grad():
        return sum(loss(arm.model, *batch).item() for batch in batches(2, 1)) / 2


def search(folder: Path, **settings: Any) -> lt.Search:
    given: dict[str, Any] = {"epochs": 2, "rounds": 2, "rate": 0.3, "margin": 0.5, "rewind": "weight", "rewind_epoch": 1} | settings
    return lt.Search(Regressor, EXAMPLE, folder, ERROR, **given)


@pytest.mark.slow
def test_the_same_script_resumes_and_finds_the_same(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole")
    names = [(arm.name, arm.report(train(arm)))[0] for arm in whole]
    level = whole.result().row.level
    assert names == [f"seed0/{arm}" for arm in ("dense-0", "ticket-1", "ticket-2", f"random-{level}", f"dense_budget-{level}")]

    for count in (1, 2, 2):  # a process that ends after so many arms; the loop of the last one begins a third, and is killed
        for done, arm in enumerate(search(tmp_path / "cut")):
            value = train(arm)
            if done == count:
                break
            arm.report(value)
    resumed = search(tmp_path / "cut")
    assert [arm.name for arm in resumed] == []
    one, two = whole.result(), resumed.result()
    assert one.verdict == two.verdict and one.plan == two.plan
    other = whole.result(level=3 - level)
    assert other.row.level == 3 - level and other.verdict == one.verdict and other.plan.widths != one.plan.widths
    assert whole.result().row.level == level and lt.PruningPlan.load(tmp_path / "whole/plan.json") == one.plan
    with pytest.raises(InvalidSetting, match="level=3 is not a round of the search; choose 1 to 2"):
        whole.result(level=3)
    assert all(torch.equal(value, two.small.state_dict()[name]) for name, value in one.small.state_dict().items())
    assert "units of validation error" in one.verdict.rule
    better = one.rows[0].val_score - one.row.val_score
    assert f"{better:+.3g} units of validation error, where + is better" in " ".join(one.verdict.summary)
    assert "lower bound" not in " ".join(one.verdict.summary), "one seed and no items: there is none"


@pytest.mark.slow
def test_what_is_found_ships(tmp_path: Path) -> None:
    found = search(tmp_path / "run", rounds=1, controls=False, rewind="lr", rewind_epoch=0)
    for arm in found:
        arm.report(train(arm))
    result = found.result()
    example = {name: value.clone() for name, value in EXAMPLE.items()}
    dense, small = result.dense(**example), result.small(**example)
    for name, value in small.items():
        torch.testing.assert_close(dense[name], value, rtol=1e-4, atol=1e-5)
    assert lt.size(result.small, example).params < lt.size(Regressor(), example).params
    lt.shrink(result, tmp_path / "maps.onnx")
    rows = lt.bench(result, runtimes=["onnxruntime"], batches=[1], seconds_per_row=0.1).rows
    assert {row.subject for row in rows} == {"dense", "small"}
    assert (tmp_path / "maps.onnx").exists()


def test_a_target_that_the_ticket_misses_is_reported(tmp_path: Path) -> None:
    """The level on the way to it is picked, as the last one has lost too much."""
    found = search(tmp_path / "run", rate=None, target_macs=0.4, controls=False, rewind="lr", rewind_epoch=0)
    with pytest.warns(Notice, match=r"0\.4 of the dense network's MACs, missed by \d"):
        for arm in found:
            arm.report(9.0 if arm.arm.level == 2 else 0.1)
    reached, summary = found.result().reached, json.loads(found.folder.own_summary.read_text())
    assert reached is not None and reached.missed_by > 0.1 and summary["target"] == reached.to_json()


def first_arm(folder: Path, **settings: Any) -> Any:
    return next(iter(search(folder, **settings)))


def test_what_goes_wrong_is_said_and_finished_arms_stay(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="seed0/dense-0 was trained, and nothing reported"):
        list(search(tmp_path / "a"))
    arm = first_arm(tmp_path / "a")
    with pytest.raises(InvalidSetting, match=r"report\(nan\).* must be a finite number"):
        arm.report(float("nan"))
    with pytest.raises(InvalidSetting, match=r"call arm\.keep_early"):
        arm.report(0.5)
    with pytest.raises(InvalidSetting, match=r"report\(0\.9\) of seed0/dense-0: the mean of its 2 items is 0\.5"):
        arm.report(0.9, items=[True, False])
    arm.keep_early()
    arm.model.second = nn.Conv2d(8, 4, 3, padding=1)
    with pytest.raises(InvalidModel, match=r"second.weight has shape \(4, 8, 3, 3\), the arm's network \(8, 8, 3, 3\)"):
        arm.report(0.5)
    arm = first_arm(tmp_path / "a")
    arm.keep_early()
    arm.report(0.5)
    with pytest.raises(InvalidSetting, match="not finished: seed0/ticket-1"):
        search(tmp_path / "a").result()
    with pytest.raises(TicketMismatch, match="other settings"):
        search(tmp_path / "a", rounds=3)
    arm = first_arm(tmp_path / "a")
    assert arm.name == "seed0/ticket-1" and repr(arm) == "<arm seed0/ticket-1, epochs 1 to 2>"
    with pytest.raises(InvalidSetting, match="its items are not those of seed0/dense-0; report the same for all arms"):
        arm.report(0.5, items=[0.25, 0.75])


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"criterion": "taylor"}, "lt.Search does not see"), ({"prune": "weights"}, "prunes filters"), ({"rounds": 0}, "rounds=0")],
)
def test_settings_are_checked(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match=says):
        search(tmp_path, **settings)


def test_what_is_no_builder_or_setting_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="build= must be a function that makes the network"):
        lt.Search(Regressor(), EXAMPLE, tmp_path)
    with pytest.raises(UnknownName, match="Did you mean rounds"):
        search(tmp_path, round=2)


def test_a_script_that_builds_otherwise_is_refused(tmp_path: Path) -> None:
    first_arm(tmp_path, rewind="lr", rewind_epoch=0).report(0.5)
    settings: dict[str, Any] = {"epochs": 2, "rounds": 2, "rate": 0.3}
    with pytest.raises(InvalidFile, match="does not fit this run"):
        list(lt.Search(Wider, EXAMPLE, tmp_path, ERROR, **settings))
    larger = EXAMPLE | {"image": torch.randn(2, 1, 16, 16)}
    with pytest.raises(TicketMismatch, match=r"other settings \(fingerprint: .*\(2, 1, 8, 8\).* there, .*\(2, 1, 16, 16\).* requested\)"):
        lt.Search(Regressor, larger, tmp_path, ERROR, **settings)
    others = {name: torch.randn_like(value) for name, value in EXAMPLE.items()}
    assert next(iter(lt.Search(Regressor, others, tmp_path, ERROR, **settings))).name == "seed0/ticket-1", "values may be others"


class Wider(Regressor):
    def __init__(self) -> None:
        super().__init__()
        self.second, self.map = nn.Conv2d(8, 9, 3, padding=1), nn.Conv2d(9, 2, 1)
