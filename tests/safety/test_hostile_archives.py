"""Files of torch.save and safetensors that are not what they seem are refused, and run nothing."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import refused
from forgery import MARK, PICKLES, forged
from readers import READERS, network

import ltcompile as lt
from ltcompile.errors import InvalidFile
from ltcompile.models._weights import load_weights

pytestmark = pytest.mark.slow


def torch_file(value: Any, change: Callable[[str, bytes], bytes | None] = lambda _, data: data, pack: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes, its entries changed, or left out, or packed."""
    torch.save(value, whole := io.BytesIO())
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(made := io.BytesIO(), "w", pack) as target:
        for entry in source.infolist():
            if (data := change(entry.filename, source.read(entry))) is not None:
                target.writestr(entry.filename, data)
    return made.getvalue()


def in_archive(evil: bytes) -> bytes:
    return torch_file({"kind": "ltcompile ticket"}, lambda name, data: evil if name.endswith("data.pkl") else data)


def in_tar(evil: bytes) -> bytes:
    """The oldest format of torch."""
    with tarfile.open(fileobj=(made := io.BytesIO()), mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (entry := tarfile.TarInfo(name)).size = len(evil)
            archive.addfile(entry, io.BytesIO(evil))
    return made.getvalue()


@pytest.mark.parametrize("around", [lambda evil: evil, in_archive, in_tar], ids=["bare", "archive", "tar"])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, around: Callable[[bytes], bytes]) -> None:
    """As a ticket, as weights and as a network of a run."""
    monkeypatch.chdir(tmp_path)
    for file in ("ticket.pt", "weights.pth", "weights.safetensors"):
        (tmp_path / file).write_bytes(around(PICKLES[name]()))
    with pytest.raises(InvalidFile, match="take a fresh copy"):
        lt.Ticket.load("ticket.pt")
    for file in ("weights.pth", "weights.safetensors"):
        with pytest.raises(InvalidFile) as reported:
            load_weights(network(), Path(file), 2, 1)
        assert "weights_only" not in str(reported.value), "torch's advice is to run it"
    assert not Path(MARK).exists()


def test_the_pickles_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLES["reduce"]())
    assert Path(MARK).exists()


class TestArchives:
    """Sizes that are not what they seem."""

    def check(self, tmp_path: Path, data: bytes, says: str) -> None:
        """A ticket with it is refused, and so are weights."""
        (tmp_path / "ticket.pt").write_bytes(data)
        refused("show", tmp_path / "ticket.pt", says=says)
        refused("plan", "--model", "lenet5", "--weights", tmp_path / "ticket.pt", says=f"{tmp_path / 'ticket.pt'}")

    def test_bombs(self, tmp_path: Path) -> None:
        zeros = torch_file(
            {"w": torch.zeros(1)}, lambda name, data: bytes(1 << 25) if name.endswith("data/0") else data, zipfile.ZIP_DEFLATED
        )
        assert len(zeros) < 1 << 20
        self.check(tmp_path, zeros, "bytes are packed into its")
        code = torch_file({}, lambda name, data: b"]" * (1 << 25) if name.endswith("data.pkl") else data, zipfile.ZIP_DEFLATED)
        self.check(tmp_path, code, "bytes are packed into its")

    def test_shapes_that_the_bytes_do_not_fill(self, tmp_path: Path) -> None:
        short = torch_file({"w": torch.zeros(64)}, lambda name, data: data[:16] if name.endswith("data/0") else data)
        self.check(tmp_path, short, "take a fresh copy")
        value = torch.load(io.BytesIO(READERS["ticket"].whole()), weights_only=True)
        for wide in (torch.zeros(1).expand(10**12), torch.zeros(1).as_strided((10**5, 10**5), (0, 0))):
            torch.save({**value, "weights": {"w": wide}}, tmp_path / "ticket.pt")
            refused("show", tmp_path / "ticket.pt", says="more than the file holds")
        many = torch.zeros(10**6)
        torch.save({**value, "weights": {str(i): many.view(-1) for i in range(200)}}, tmp_path / "ticket.pt")
        refused("show", tmp_path / "ticket.pt", says="more than the file holds")

    def test_gigantic_declarations(self, tmp_path: Path) -> None:
        """A length of 64 in the pickle's bytes becomes 2 ** 40, in both formats."""

        def enlarged(_: str, data: bytes) -> bytes:
            return data.replace(b"K@", pickle.dumps(2**40, 2)[2:-1])

        for new in (True, False):
            torch.save({"w": torch.zeros(64)}, made := io.BytesIO(), _use_new_zipfile_serialization=new)
            data = torch_file({"w": torch.zeros(64)}, enlarged) if new else enlarged("", made.getvalue())
            self.check(tmp_path, data, "take a fresh copy")

    def test_no_name_leads_out(self, tmp_path: Path) -> None:
        for name in ("../../evil", "/tmp/evil-of-an-archive", "archive/../../evil"):
            torch.save({}, made := io.BytesIO())
            with zipfile.ZipFile(made, "a") as archive:
                archive.writestr(name, b"evil")
            self.check(tmp_path, made.getvalue(), "ticket")
        assert not list(tmp_path.parent.glob("evil*")) and not Path("/tmp/evil-of-an-archive").exists()

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_kinds_of_tensors_that_no_network_has(self, tmp_path: Path) -> None:
        value = torch.load(io.BytesIO(READERS["ticket"].whole()), weights_only=True)
        odd = {
            "sparse": torch.zeros(3, 3).to_sparse(),
            "gigantic sparse": torch.sparse_coo_tensor(torch.zeros(1, 0), torch.zeros(0), (10**12,)),
            "of no device": torch.zeros(10**6, 10**6, device="meta"),
            "quantized": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            "complex": torch.zeros(3, dtype=torch.complex64),
            "no tensor": [1.0],
        }
        for tensor in odd.values():
            torch.save({**value, "weights": {"w": tensor}}, tmp_path / "ticket.pt")
            with pytest.raises(InvalidFile, match=r"not a dense tensor|cannot be read"):
                lt.Ticket.load(tmp_path / "ticket.pt")

    def test_what_refers_to_itself(self, tmp_path: Path) -> None:
        loop: dict[str, Any] = {}
        loop["model"] = loop["state_dict"] = loop
        torch.save(loop, tmp_path / "weights.pth")
        with pytest.raises(InvalidFile, match="no state dict"):
            load_weights(network(), tmp_path / "weights.pth", 2, 1)

    @pytest.mark.parametrize(
        "header",
        [
            struct.pack("<Q", 2**62),
            struct.pack("<Q", 2**26) + b"{",
            *(
                struct.pack("<Q", len(text)) + text + bytes(64)
                for text in (
                    b'{"0.weight":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,64]}}',
                    b'{"0.weight":{"dtype":"F32","shape":[16],"data_offsets":[0,4398046511104]}}',
                    b'{"0.weight":{"dtype":"F32","shape":[-16],"data_offsets":[64,0]}}',
                    b'{"0.weight":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,64]}}',
                    b'{"a":' * 10_000,
                    b'{"0.weight":{"dtype":"pickle","shape":[16],"data_offsets":[0,64]}}',
                )
            ),
        ],
    )
    def test_safetensors(self, tmp_path: Path, header: bytes) -> None:
        (tmp_path / "w.safetensors").write_bytes(header)
        refused("plan", "--model", "lenet5", "--weights", tmp_path / "w.safetensors", says="cannot be read as a file of weights")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_numbers_that_are_none(self, tmp_path: Path, lenet: Path, value: float) -> None:
        (tmp_path / "ticket.pt").write_bytes(forged(lenet, lambda _, w: next(iter(w.values())).fill_(value)))
        refused("show", tmp_path / "ticket.pt", says="infinite or not a number (NaN)")
        weights = lt.build_model("lenet5").state_dict()
        next(iter(weights.values()))[0] = value
        torch.save(weights, tmp_path / "w.pth")
        refused("plan", "--model", "lenet5", "--weights", tmp_path / "w.pth", says="infinite or not a number (NaN)")

    def test_numbers_of_another_kind(self, tmp_path: Path) -> None:
        weights = lt.build_model("lenet5").state_dict()
        weights = {name: value.to(torch.int64) if name.endswith("bias") else value for name, value in weights.items()}
        torch.save(weights, tmp_path / "w.pth")
        refused("plan", "--model", "lenet5", "--weights", tmp_path / "w.pth", says="whole numbers instead of floats")
