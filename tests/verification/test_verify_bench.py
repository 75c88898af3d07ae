"""From a benchmark to its claims."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import onnx
import pytest
from claims import file_of, kinds
from readers import some_ticket

import ltcompile as lt
from ltcompile.errors import InvalidFile, InvalidSetting, TicketMismatch
from ltcompile.verification import verify
from ltcompile.verification.network import open_network


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ticket, what it was shrunk to, benchmarks of both, and the dense network that one of them wrote."""
    folder = tmp_path_factory.mktemp("benched")
    ticket = dataclasses.replace(some_ticket(), data={**some_ticket().data, "name": "nowhere"})
    ticket.save(folder / "ticket.pt")
    own, quick = {"model": "readers:network"}, {"runtimes": ["onnxruntime"], "batches": (1,), "seconds_per_row": 0.02}
    lt.shrink(ticket, folder / "small.onnx", **own)
    lt.bench(folder / "small.onnx", **own, **quick, output=folder / "of_file.json", write_dense=folder / "dense.onnx")
    lt.bench(folder / "ticket.pt", **own, **quick, output=folder / "of_ticket.json")
    return folder


@pytest.mark.slow
def test_a_benchmark_names_what_it_timed(benched: Path) -> None:
    of_file, of_ticket = (json.loads((benched / name).read_text()) for name in ("of_file.json", "of_ticket.json"))
    data = (benched / "small.onnx").read_bytes()
    assert of_file["target"] == "small.onnx" and of_file["file"] == file_of(data)
    assert of_file["file"]["sha256"] == hashlib.sha256(data).hexdigest()
    assert of_ticket["target"] == "ticket.pt" and of_ticket["file"] is None
    checksum = lt.Ticket.load(benched / "ticket.pt").checksum
    assert of_file["ticket_checksum"] == of_ticket["ticket_checksum"] == of_file["file"]["ticket_checksum"] == checksum
    for name in ("of_file.json", "of_ticket.json"):
        reported = kinds(benched, claims=name)
        assert reported["ticket"].verdict == "confirmed" and reported["latency"].claimed is not None


@pytest.mark.slow
def test_the_dense_network_that_bench_writes_is_a_reference(benched: Path, tmp_path: Path) -> None:
    """It is what was timed, is of the ticket, and is never taken for the small one."""
    dense = open_network(benched / "dense.onnx")
    assert dense.shape == (1, 4, 4) and dense.metadata == {"ticket_checksum": lt.Ticket.load(benched / "ticket.pt").checksum}
    shapes = {tuple(tensor.dims) for tensor in onnx.load(benched / "dense.onnx").graph.initializer}
    assert (3, 1, 3, 3) in shapes, "all filters"
    repeated = kinds(benched, claims="of_file.json", dense=benched / "dense.onnx")["speedup"]
    assert repeated.claimed is not None and repeated.found is not None
    with pytest.raises(InvalidFile, match="was not made by"):
        verify(benched / "dense.onnx", benched / "of_file.json")
    other = onnx.load(benched / "dense.onnx")
    onnx.helper.set_model_props(other, {"ticket_checksum": "dead"})
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(TicketMismatch, match=r"ltcompile bench small\.onnx --write-dense other\.onnx"):
        verify(benched / "small.onnx", benched / "of_file.json", dense=tmp_path / "other.onnx")


@pytest.mark.parametrize("name", ["small.onnx", "dense.pt", "dense"])
def test_the_dense_network_gets_a_file_of_its_own(benched: Path, name: str) -> None:
    before = (benched / "small.onnx").read_bytes()
    with pytest.raises(InvalidSetting, match="ONNX file of its own"):
        lt.bench(benched / "small.onnx", model="readers:network", write_dense=benched / name)
    assert (benched / "small.onnx").read_bytes() == before
