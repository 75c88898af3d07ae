"""A ticket is data: it comes back as it was, or not at all, and never runs code."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

import ltcompile as lt
from ltcompile.core.records import Trained
from ltcompile.errors import InvalidFile, TicketMismatch


def test_round_trip(run: Path, tmp_path: Path) -> None:
    ticket = lt.Ticket.load(run / "ticket.pt")
    ticket.save(tmp_path / "again.pt")
    again = lt.Ticket.load(tmp_path / "again.pt")
    assert again.to_json() == ticket.to_json() and again.checksum == ticket.checksum
    assert all(torch.equal(v, again.weights[k]) for k, v in ticket.weights.items())
    assert json.dumps(ticket.to_json(), allow_nan=False)


def test_every_truncation_is_refused(run: Path, tmp_path: Path) -> None:
    whole = (run / "ticket.pt").read_bytes()
    for share in (0, 0.01, 0.3, 0.7, 0.99, 1 - 1 / len(whole)):
        (tmp_path / "cut.pt").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(InvalidFile):
            lt.Ticket.load(tmp_path / "cut.pt")


def changed(run: Path, path: Path, change) -> Path:  # type: ignore[no-untyped-def]
    value = torch.load(run / "ticket.pt", weights_only=True)
    change(value)
    torch.save(value, path)
    return path


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["weights"][next(iter(v["weights"]))].add_(1e-3),
        lambda v: v.update(header=v["header"].replace('"level": 2', '"level": 1').replace('"seed": 0', '"seed": 9')),
        lambda v: v["weights"].popitem(),
        lambda v: v.update(weights=[1, 2]),
        lambda v: v.update(header=7),
        lambda v: v.update(checksum="0" * 64),
    ],
)
def test_tampering_is_noticed(run: Path, tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidFile, match=r"damaged or was changed|not a valid ticket"):
        lt.Ticket.load(changed(run, tmp_path / "t.pt", change))


def resigned(change):  # type: ignore[no-untyped-def]
    """A change of the description that also corrects the checksum."""
    from ltcompile.core.ticket import _checksum

    def apply(value):  # type: ignore[no-untyped-def]
        header = json.loads(value["header"])
        change(header, value["weights"])
        value["header"] = json.dumps(header, sort_keys=True)
        value["checksum"] = _checksum(value["header"], value["weights"], {})

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda h, w: h["plan"]["kept"].update({"0": [-1]}),
        lambda h, w: h["plan"]["kept"].update({"0": [99]}),
        lambda h, w: h.pop("recipe"),
        lambda h, w: h["recipe"].update(epochs=-1),
        lambda h, w: h["history"][0].update(evil=1),
        lambda h, w: h.update(surplus=1),
        lambda h, w: h["model"].update(name=7),
        lambda h, w: h["model"]["arguments"].update(classes=10**9),
        lambda h, w: h["model"]["arguments"].update(weights="/etc/passwd"),
        lambda h, w: h["data"].update(shape=[1]),
        lambda h, w: w[next(iter(w))].fill_(float("nan")),
    ],
)
def test_fields_are_checked_even_with_a_good_checksum(run: Path, tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidFile):
        lt.Ticket.load(changed(run, tmp_path / "t.pt", resigned(change)))


def test_weights_of_other_shapes_do_not_shrink(run: Path, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "t.pt", resigned(lambda h, w: w.update({next(iter(w)): torch.zeros(2, 2)})))
    with pytest.raises(TicketMismatch, match="does not fit"):
        lt.shrink(path, tmp_path / "small.onnx")


def test_another_format_version_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(TicketMismatch, match="format 99"):
        lt.Ticket.load(changed(run, tmp_path / "t.pt", lambda v: v.update(format=99)))


class Evil:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch executed",)


def test_code_in_a_ticket_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
    buffer = io.BytesIO()
    torch.save({"kind": "ltcompile ticket"}, buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(tmp_path / "zip.pt", "w") as bad:
        for item in good.infolist():
            bad.writestr(item.filename, pickle.dumps(Evil()) if item.filename.endswith("data.pkl") else good.read(item))
    for name in ("plain.pt", "zip.pt"):
        with pytest.raises(InvalidFile):
            lt.Ticket.load(tmp_path / name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [{"weights": {}}, [1, 2, 3], {"kind": "something else"}])
def test_other_torch_files_are_no_tickets(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InvalidFile, match="not an ltcompile ticket"):
        lt.Ticket.load(tmp_path / "x.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="there is no ticket"):
        lt.Ticket.load(tmp_path / "none.pt")


def test_the_row_is_the_tickets_own(run: Path) -> None:
    ticket = lt.Ticket.load(run / "ticket.pt")
    assert isinstance(ticket.row, Trained) and (ticket.row.level, ticket.row.seed) == (ticket.level, ticket.seed)
