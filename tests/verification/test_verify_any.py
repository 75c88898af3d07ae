"""`verify` of networks of any inputs and outputs, by the answers that were recorded with the file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.errors import InvalidFile, InvalidSetting, TicketMismatch, UnknownName
from ltcompile.verification.answers import read_answers
from ltcompile.verification.network import open_network

pytestmark = pytest.mark.slow


class Pair(nn.Module):
    """Two inputs of different kinds, a map and a score by name."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.words = nn.Conv1d(2, 12, 3, padding=1), nn.Embedding(9, 12)
        self.map, self.score = nn.Conv1d(12, 3, 1), nn.Linear(12, 1)

    def forward(self, signal: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        y = (self.image(signal) + self.words(tokens).mean(1)[..., None]).relu()
        return {"map": self.map(y), "score": self.score(y.mean(2))}


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, example = tmp_path_factory.mktemp("any"), {"signal": torch.randn(2, 2, 10), "tokens": torch.arange(8).view(2, 4)}
    dense = Pair().eval()
    given = lt.Pruned.of_cut(dense, lt.plan(dense, example), example, metric=lt.MetricValue(lt.Metric("mIoU"), 0.5, "test"))
    file = lt.shrink(given, folder / "small.onnx").path
    lt.bench(given, file=file, runtimes=["onnxruntime"], batches=[1, 3], output=folder / "bench.json", write_dense=folder / "dense.onnx")
    return folder


def test_answers_times_and_what_cannot_be_repeated(shrunk: Path) -> None:
    lt.report(shrunk)  # whose report.json claims nothing of its own
    found = lt.verify(shrunk / "small.onnx", dense=shrunk / "dense.onnx", seconds=0.05)
    verdicts = {check.what: check for check in found.checks}
    assert verdicts["file"].verdict == verdicts["answers"].verdict == verdicts["ticket"].verdict == verdicts["size"].verdict == "confirmed"
    assert "4 rows" in verdicts["answers"].reason and "network" in verdicts["ticket"].claim
    assert verdicts["accuracy"].verdict == "not comparable" and verdicts["accuracy"].claim == "mIoU 0.5 on test data"
    assert sum(check.what == "speedup" and check.found is not None for check in found.checks) == 2


@pytest.mark.parametrize("runtime", ["openvino", "tract"])
def test_another_runtime_repeats_the_answers(shrunk: Path, runtime: str) -> None:
    found = lt.verify(shrunk / "small.onnx", seconds=0.02, runtime=runtime)
    verdicts = {check.what: check.verdict for check in found.checks}
    assert verdicts["file"] == verdicts["answers"] == verdicts["size"] == "confirmed" and "latency" not in verdicts
    with pytest.raises(UnknownName, match="runtime to verify with named 'mnn'"):
        lt.verify(shrunk / "small.onnx", runtime="mnn")


@pytest.mark.parametrize("what", ["output:map", "input:tokens"])
def test_other_answers_are_not_confirmed(shrunk: Path, tmp_path: Path, what: str) -> None:
    for name in ("small.onnx", "bench.json"):
        (tmp_path / name).write_bytes((shrunk / name).read_bytes())
    arrays = dict(np.load(shrunk / "small.answers.npz"))
    arrays[what] = arrays[what] + np.ones((), arrays[what].dtype)
    np.savez(tmp_path / "small.answers.npz", **arrays)
    found = lt.verify(tmp_path / "small.onnx", seconds=0.02)
    assert found.outcome == "not confirmed"
    assert next(check for check in found.checks if check.what == "answers").verdict == "not confirmed"


def test_answers_that_are_not_of_the_file(shrunk: Path, tmp_path: Path) -> None:
    (tmp_path / "small.onnx").write_bytes((shrunk / "small.onnx").read_bytes())
    network, arrays = open_network(tmp_path / "small.onnx"), dict(np.load(shrunk / "small.answers.npz"))
    assert read_answers(network) is None
    np.savez(tmp_path / "small.answers.npz", **{**arrays, "sha256": np.array("0")})
    assert read_answers(network) == "small.answers.npz was recorded for another file"
    for change in ({"input:tokens": arrays["input:tokens"][:, :2]}, {"input:tokens": arrays["input:tokens"].astype(np.float32)}):
        np.savez(tmp_path / "small.answers.npz", **{**arrays, **change})
        with pytest.raises(InvalidFile, match="input 'tokens' is"):
            read_answers(network)
    (tmp_path / "small.answers.npz").write_bytes(b"PK")
    with pytest.raises(InvalidFile, match="cannot be read as"):
        read_answers(network)


def test_claims_and_networks_of_others(shrunk: Path, tmp_path: Path) -> None:
    claims = json.loads((shrunk / "bench.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps({**claims, "network_checksum": "0" * 64}))
    with pytest.raises(TicketMismatch, match="made from the network"):
        lt.verify(shrunk / "small.onnx", tmp_path / "other.json")
    with pytest.raises(InvalidSetting, match="turn images into logits"):
        lt.verify(shrunk / "small.onnx", data=tmp_path / "images.npz")
