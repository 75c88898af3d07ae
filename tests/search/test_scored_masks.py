"""Methods other than pruning, as whole searches: the same arms, files and resuming, and networks that shrink."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from searches import QUICK, Stop, StopAfter

import ltcompile as lt
from ltcompile.data import Dataset
from ltcompile.errors import InvalidSetting, UnknownName
from ltcompile.lower import run_onnx
from ltcompile.pruned import compact, dense_network, pruned_of
from ltcompile.search import methods

RATE = 0.6


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return lt.load_data("digits", image_size=16).with_train_images(200)


@pytest.fixture(scope="module", params=methods.names())
def search(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits: Dataset
) -> tuple[lt.SearchConfig, Path, lt.SearchResult]:
    config = lt.SearchConfig(method=request.param, rounds=2, rate=RATE, full_curve=True)
    folder = tmp_path_factory.mktemp("chosen") / request.param
    return config, folder, lt.find("lenet5", digits, config, recipe=QUICK, folder=folder)


def weights_of(folder: Path, unit: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "seed0" / f"{unit}.pt", weights_only=True)["weights"]
    return found


@pytest.mark.slow
def test_levels_keep_what_the_rate_leaves(search: tuple[lt.SearchConfig, Path, lt.SearchResult]) -> None:
    _, _, found = search
    rows = {(r.arm, r.level): r for r in found.rows}
    dense = rows["dense", 0].weights
    assert dense is not None
    for level in (1, 2):
        left = rows["ticket", level].weights
        assert left is not None and left / dense == pytest.approx((1 - RATE) ** level, abs=0.03)
        assert rows["reinit", level].weights == left and rows["reinit", level].test_score is not None


@pytest.mark.slow
def test_the_ticket_shrinks_to_what_it_computes(search: tuple[lt.SearchConfig, Path, lt.SearchResult], tmp_path: Path) -> None:
    config, _, found = search
    found.ticket.save(tmp_path / "t.pt")
    ticket = lt.Ticket.load(tmp_path / "t.pt")
    dense, small = dense_network(ticket), compact(pruned_of(ticket)).small
    dense.load_state_dict(dict(ticket.weights))
    images = torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(small(images), dense(images), rtol=1e-4, atol=1e-5)
    shrunk = lt.shrink(ticket, tmp_path / "small.onnx")
    torch.testing.assert_close(run_onnx(shrunk.path, images), dense(images), rtol=1e-4, atol=1e-4)
    assert shrunk.record["macs"] == ticket.row.macs <= shrunk.record["dense_macs"]
    assert ("signs" in shrunk.record) == (config.method == "biprop")
    if config.method == "biprop":
        assert shrunk.path.stat().st_size < 0.6 * shrunk.record["signs"]["bytes_before"]
    if config.method == "basis":
        assert shrunk.record["ranks"] and ticket.row.macs < ticket.dense_row.macs


@pytest.mark.slow
def test_frozen_weights_stay_what_they_were_drawn(search: tuple[lt.SearchConfig, Path, lt.SearchResult]) -> None:
    config, folder, _ = search
    found = weights_of(folder, "ticket-2")
    matrices = [w for w in found.values() if w.dim() > 1]
    if config.method == "biprop":
        assert all(len(w[w != 0].abs().unique()) == 1 for w in matrices)
    if config.method in ("edge-popup", "biprop"):
        assert all(not w.any() for name, w in found.items() if name.endswith("bias"))
        assert 0.1 < sum(int((w != 0).sum()) for w in matrices) / sum(w.numel() for w in matrices) < 0.22


@pytest.mark.slow
def test_resuming_equals_never_stopping(search: tuple[lt.SearchConfig, Path, lt.SearchResult], digits: Dataset, tmp_path: Path) -> None:
    """Stopped in the middle of a ticket's training, when scores or coefficients are what the checkpoint holds."""
    config, _, whole = search
    with pytest.raises(Stop):
        lt.find("lenet5", digits, config, recipe=QUICK, folder=tmp_path / "cut", listener=StopAfter(QUICK.epochs + 1))
    again = lt.find("lenet5", digits, config, recipe=QUICK, folder=tmp_path / "cut", resume=True)
    timeless = [[dataclasses.replace(r, seconds=0) for r in f.rows] for f in (whole, again)]
    assert timeless[0] == timeless[1]
    assert all(torch.equal(v, again.ticket.weights[k]) for k, v in whole.ticket.weights.items())


@pytest.mark.parametrize(
    ("settings", "reported"),
    [
        ({"prune": "weights"}, "chooses by itself"),
        ({"only": ("7",)}, "chooses by itself"),
        ({"ratios": {"7": 0.5}}, "chooses by itself"),
        ({"target_macs": 0.5}, "takes a rate, and no target"),
        ({"rewind": "weight"}, "never trains weights"),
    ],
)
def test_settings_of_pruning_are_refused(settings: dict[str, object], reported: str) -> None:
    with pytest.raises(InvalidSetting, match=reported):
        lt.SearchConfig(**{"method": "edge-popup", **settings})  # type: ignore[arg-type]


def test_unknown_methods_are_named() -> None:
    with pytest.raises(UnknownName, match="edge-popup"):
        lt.SearchConfig(method="edge")


def test_weights_of_the_users_are_not_drawn_over(digits: Dataset, tmp_path: Path) -> None:
    torch.save(lt.build_model("lenet5", 10, 1, 16).state_dict(), tmp_path / "w.pt")
    config = lt.SearchConfig(method="biprop", rounds=1)
    with pytest.raises(InvalidSetting, match="draws weights of its own"):
        lt.find("lenet5", digits, config, recipe=QUICK, weights=tmp_path / "w.pt", folder=tmp_path / "run")
