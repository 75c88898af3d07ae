"""`ltcompile squeeze`: from another tool's masks to weights and a plan that all other commands take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kinds import one_d
from torch import Tensor, nn
from torch.nn.utils import prune
from typer.testing import CliRunner

import ltcompile as lt
from ltcompile.cli import app
from ltcompile.errors import InvalidFile, InvalidModel, InvalidSetting, LtcompileError
from ltcompile.lower.answers import answers, of_file, of_network, probe
from ltcompile.numerics import FP32_TOLERANCE, compare

EXAMPLE = torch.randn(2, 2, 20)


@pytest.fixture
def masked(tmp_path: Path) -> nn.Module:
    """A network under torch's masks, whose state dict is in masked.pth."""
    torch.manual_seed(0)
    network = one_d().eval()
    prune.ln_structured(network[0][0], "weight", amount=0.5, n=2, dim=0)
    torch.save(network.state_dict(), tmp_path / "masked.pth")
    return network


def squeeze(folder: Path, *more: str, weights: str = "masked.pth") -> str:
    words = [
        "squeeze",
        "--model",
        "kinds:one_d",
        "--weights",
        str(folder / weights),
        "--example",
        "2x2x20",
        "-o",
        str(folder / "s.safetensors"),
    ]
    done = CliRunner().invoke(app, [*words, *more])
    if isinstance(done.exception, LtcompileError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_masks_of_another_tool_end_in_a_smaller_file(masked: nn.Module, tmp_path: Path) -> None:
    printed = squeeze(tmp_path)
    assert "channels that nothing reads" in printed and "x fewer" in printed
    following = printed.replace("\n", " ").partition("next: ltcompile ")[2].split()
    done = CliRunner().invoke(app, following)
    assert done.exit_code == 0 and "cut = masked to" in done.output, done.output
    inputs = probe(masked, EXAMPLE, 5)
    found = answers(of_file(tmp_path / "s.onnx", inputs.names), inputs, 5)
    compared = compare(found, answers(of_network(masked), inputs, 5))
    assert not compared.refusal and compared.error <= FP32_TOLERANCE
    small = lt.load_pruned(one_d, tmp_path / "s.safetensors", tmp_path / "s.plan.json")
    assert lt.size(small, EXAMPLE).params < lt.size(one_d(), EXAMPLE).params
    assert not compare(answers(of_network(small), inputs, 5), answers(of_network(masked), inputs, 5)).refusal


def test_json(masked: nn.Module, tmp_path: Path) -> None:
    reported = json.loads(squeeze(tmp_path, "--json"))
    assert reported["removed"]["constant"] > 0 and reported["params"][1] < reported["params"][0]
    assert all(now < before for before, now in reported["widths"].values())


def test_what_cannot_be_squeezed(tmp_path: Path) -> None:
    torch.save(one_d().state_dict(), tmp_path / "full.pth")
    with pytest.raises(InvalidModel, match="there is nothing to remove"):
        squeeze(tmp_path, weights="full.pth")
    with pytest.raises(InvalidSetting, match=r"-o takes the name of a \.safetensors file"):
        squeeze(tmp_path, "-o", str(tmp_path / "s.pth"), weights="full.pth")
    with pytest.raises(InvalidSetting, match="name the network and its weights"):
        CliRunner().invoke(app, ["squeeze", "--model", "kinds:one_d"], catch_exceptions=False)
    state = one_d().state_dict()
    name = next(iter(state))
    value: Tensor = state.pop(name)
    torch.save(state | {f"{name}_orig": value, f"{name}_mask": torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(InvalidFile, match=f"{name}_mask|{name}"):
        squeeze(tmp_path, weights="odd.pth")
    assert not list(tmp_path.glob("s.*"))
