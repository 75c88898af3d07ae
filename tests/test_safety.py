"""Files are data: no line of the project can execute what a file holds, and no file can do more than be refused."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from commands import call, refused
from onnx import TensorProto, helper
from pictures import mnist_files, write_folder
from PIL import Image
from readers import READERS, network, some_ticket, whole_onnx

import ltcompile as lt
from ltcompile.core import ticket as tickets
from ltcompile.core.notice import Notice
from ltcompile.errors import BadData, BadFile, StaleTicket
from ltcompile.models._weights import load_weights

ROOT = Path(__file__).parent.parent
SOURCES = sorted(p for folder in ("ltcompile", "models", "kernels", "bench", "examples") for p in (ROOT / folder).rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code", "pickletools"}
CALLS = {
    *("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
    *("os.system", "os.popen", "os.execv", "os.execvp", "os.spawnv", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "np.fromfile", "pandas.read_pickle", "pd.read_pickle"),
    *("torch.jit.load", "torch.export.load", "torch.hub.load", "torch.package.PackageImporter", "torch.utils.cpp_extension.load"),
    *("importlib.import_module", "importlib.util.spec_from_file_location", "ctypes.CDLL"),
}
ENDINGS = {"aoti_load_package", "load_library", "LoadLibrary", "load_inline"}  # whatever they are called on
TRUSTED = {  # what a name from a file, or a file itself, cannot reach; each with the reason
    ("ltcompile/__init__.py", "importlib.import_module"): "names of the table above it",
    ("kernels/__init__.py", "importlib.import_module"): "names of the table above it",
    ("ltcompile/registry.py", "importlib.import_module"): "names that the package was found to offer",
    ("models/__init__.py", "importlib.import_module"): "timm; and package.module:factory, on the user's word",
    ("models/_published.py", "importlib.import_module"): "timm",
    ("ltcompile/runtimes/tensorrt.py", "importlib.import_module"): "tensorrt",
    ("ltcompile/runtimes/tensorrt.py", "ctypes.CDLL"): "a library of the installed tensorrt",
    ("ltcompile/benchmark/memory.py", "ctypes.CDLL"): "the C library",
    ("ltcompile/benchmark/energy.py", "ctypes.CDLL"): "the driver's library",
    ("bench/rehearsal.py", "runpy"): "a script of this folder, or pytest, that its command names",
    ("bench/rehearsal.py", "runpy.run_module"): "the same",
    ("bench/rehearsal.py", "runpy.run_path"): "the same",
    ("ltcompile/runtimes/torch_compile.py", "aoti_load_package"): "the package that it has just made",
    ("ltcompile/deploy/formats/pt2.py", "torch.export.load"): "the file that it has just written",
}


def names(tree: ast.AST) -> dict[str, str]:
    """What each name stands for that is imported or defined anywhere."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        if isinstance(node, ast.FunctionDef):
            found[node.name] = f"here.{node.name}"
    return found


def faults(source: str) -> Iterator[tuple[int, str]]:
    """What in `source` could run code from a file or a string: lines and calls, under whatever name they were imported."""
    tree = ast.parse(source)
    known = names(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            home = "" if isinstance(node, ast.Import) else f"{node.module}."
            imported = {f"{home}{alias.name}" for alias in node.names} - {"pickle.UnpicklingError"}  # it is raised, not used
            yield from ((node.lineno, name) for name in imported if name.split(".")[0] in MODULES)
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):  # called, or handed to what calls it
            written = ast.unparse(node)
            first, dot, rest = written.partition(".")
            if (meant := f"{known.get(first, first)}{dot}{rest}".replace("numpy.", "np.")) in CALLS:
                yield node.lineno, meant
            if written.rpartition(".")[2] in ENDINGS:
                yield node.lineno, written.rpartition(".")[2]
        if isinstance(node, ast.Call):
            yield from _loads(node, known)


def _loads(node: ast.Call, known: dict[str, str]) -> Iterator[tuple[int, str]]:
    first, dot, rest = ast.unparse(node.func).partition(".")
    called, keywords = f"{known.get(first, first)}{dot}{rest}", {k.arg: ast.unparse(k.value) for k in node.keywords}
    if called == "torch.load" and keywords.get("weights_only") != "True":
        yield node.lineno, "torch.load without weights_only=True"
    if called == "numpy.load" and keywords.get("allow_pickle", "False") != "False":
        yield node.lineno, "numpy.load that unpickles"
    if called == "PIL.Image.open" and "formats" not in keywords:
        yield node.lineno, "PIL.Image.open of formats that start other programs"
    if keywords.get("shell", "False") != "False":
        yield node.lineno, "a shell"


@pytest.mark.parametrize("path", SOURCES, ids=[str(p.relative_to(ROOT)) for p in SOURCES])
def test_nothing_executes_what_a_file_holds(path: Path) -> None:
    where = str(path.relative_to(ROOT)).replace("ltcompile/models/", "models/").replace("ltcompile/kernels/", "kernels/")
    assert [fault for fault in faults(path.read_text()) if (where, fault[1]) not in TRUSTED] == []


@pytest.mark.parametrize(
    "line",
    [
        *(
            "import pickle",
            "from pickle import load",
            "import torch; torch.load(path)",
            "import torch; torch.load(path, weights_only=False)",
        ),
        *("eval(text)", "exec(text)", "subprocess.run(line, shell=True)", "import os; os.system(line)", "import marshal, shelve"),
        "import numpy as np; np.load(path, allow_pickle=True)",
        "from torch import load as read; read(path)",
        "import torch as t; t.jit.load(path)",
        "from builtins import eval as calculate; calculate(text)",
        "list(map(eval, texts))",
        "from importlib import import_module; import_module(name)",
        "import importlib as i; i.import_module(name)",
        "__import__(name)",
        "from PIL import Image; Image.open(path)",
        "from os import system; system(line)",
        "anything.load_library(path)",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert list(faults(line))


def test_there_are_sources() -> None:
    assert len(SOURCES) > 100
    assert all((ROOT / file).exists() for file, _ in TRUSTED)


# Files of others. What they would run touches a file.

MARK = "executed"


class Evil:
    """What a pickle of it calls when it is read."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def global_pickle(module: str, name: str, protocol: int = 0) -> bytes:
    """A pickle that looks up module.name and calls it with the command, without the help of a class."""
    if protocol < 4:
        return f"c{module}\n{name}\n(Vtouch {MARK}\ntR.".encode()
    texts = (b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + b"".join(texts) + b"\x93(Vtouch " + MARK.encode() + b"\ntR."


PICKLES = {
    "reduce": lambda: pickle.dumps(Evil(os.system, f"touch {MARK}")),
    "reduce-eval": lambda: pickle.dumps(Evil(eval, f"__import__('os').system('touch {MARK}')")),
    "global": lambda: global_pickle("os", "system"),
    "global-posix": lambda: global_pickle("posix", "system"),
    "global-builtins": lambda: global_pickle("builtins", "exec"),
    "global-through-torch": lambda: global_pickle("torch", "os.system", 4),
    "global-subprocess": lambda: global_pickle("subprocess", "getoutput"),
    "global-hub": lambda: global_pickle("torch.hub", "load"),
    "hidden-behind-a-ticket": lambda: pickle.dumps({"kind": "ltcompile ticket", "format": 1, "header": Evil(os.system, f"touch {MARK}")}),
}


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
    with pytest.raises(BadFile, match="take a fresh copy"):
        lt.Ticket.load("ticket.pt")
    for file in ("weights.pth", "weights.safetensors"):
        with pytest.raises(BadFile) as told:
            load_weights(network(), Path(file), 2, 1)
        assert "weights_only" not in str(told.value), "torch's advice is to run it"
    assert not Path(MARK).exists()


def test_the_pickles_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(PICKLES["reduce"]())
    assert Path(MARK).exists()


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ticket of a built-in network, untrained."""
    folder = tmp_path_factory.mktemp("lenet")
    torch.manual_seed(0)
    model = lt.build_model("lenet5", 2, 1, 16)
    plan = lt.plan(model, torch.zeros(2, 1, 16, 16))
    arguments = {"classes": 2, "in_channels": 1, "image_size": 16}
    changed = {"model": {"name": "lenet5", "arguments": arguments}, "plan": plan, "weights": lt.cut(model, plan).state_dict()}
    data = {**some_ticket().data, "shape": [1, 16, 16]}
    lt.Ticket(**{**vars(some_ticket()), **changed, "data": data}).save(folder / "ticket.pt")
    return folder / "ticket.pt"


def forged(ticket: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> bytes:
    """The ticket with another description and other weights, and a checksum that fits."""
    value = torch.load(ticket, weights_only=True)
    header, weights = json.loads(value["header"]), value["weights"]
    change(header, weights)
    text = json.dumps(header, sort_keys=True)
    torch.save({**value, "header": text, "weights": weights, "checksum": tickets._checksum(text, weights, {})}, made := io.BytesIO())
    return made.getvalue()


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
            with pytest.raises(BadFile, match=r"no dense tensor|cannot be read"):
                lt.Ticket.load(tmp_path / "ticket.pt")

    def test_what_refers_to_itself(self, tmp_path: Path) -> None:
        loop: dict[str, Any] = {}
        loop["model"] = loop["state_dict"] = loop
        torch.save(loop, tmp_path / "weights.pth")
        with pytest.raises(BadFile, match="no state dict"):
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
        refused("plan", "--model", "lenet5", "--weights", tmp_path / "w.safetensors", says="cannot be read as file of weights")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_numbers_that_are_none(self, tmp_path: Path, lenet: Path, value: float) -> None:
        (tmp_path / "ticket.pt").write_bytes(forged(lenet, lambda _, w: next(iter(w.values())).fill_(value)))
        refused("show", tmp_path / "ticket.pt", says="infinite or none (NaN)")
        weights = lt.build_model("lenet5").state_dict()
        next(iter(weights.values()))[0] = value
        torch.save(weights, tmp_path / "w.pth")
        refused("plan", "--model", "lenet5", "--weights", tmp_path / "w.pth", says="infinite or none (NaN)")

    def test_numbers_of_another_kind(self, tmp_path: Path) -> None:
        weights = lt.build_model("lenet5").state_dict()
        weights = {name: value.to(torch.int64) if name.endswith("bias") else value for name, value in weights.items()}
        torch.save(weights, tmp_path / "w.pth")
        refused("plan", "--model", "lenet5", "--weights", tmp_path / "w.pth", says="whole numbers instead of floats")


class TestTickets:
    """Descriptions that lie, under a checksum that fits."""

    @pytest.mark.parametrize(
        ("says", "change"),
        [
            ("no whole number within", lambda h, w: h["plan"]["groups"][0].update(width=10**12)),
            ("no whole number within", lambda h, w: h["plan"]["groups"][0]["members"][0].update(start=10**15)),
            ("more than the", lambda h, w: h["plan"]["groups"][0].update(width=2**20, members=h["plan"]["groups"][0]["members"] * 100)),
            ("no whole number within", lambda h, w: h["plan"]["groups"][0].update(width=-6)),
            ("no whole number within", lambda h, w: h["plan"]["kept"].update({"0": [0.0, 1]})),
            ("no whole number within", lambda h, w: h["plan"]["kept"].update({"0": [-1, 0]})),
            ("not rising", lambda h, w: h["plan"]["kept"].update({"0": [0, 0]})),
            ("not rising", lambda h, w: h["plan"]["kept"].update({"0": [0, 77]})),
            ("lacks", lambda h, w: h["history"][0].pop("macs")),
            ("whole number", lambda h, w: h["history"][0].update(macs="many")),
            ("history tells nothing", lambda h, w: h.update(level=7)),
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
            refused("show", tmp_path / "ticket.pt", says="no valid ticket")

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
            patch.setattr("ltcompile.deploy.rebuild._free_bytes", lambda: 1 << 30)
            with pytest.raises(StaleTicket, match=r"takes 2\.\d GiB, and 1\.0 GiB of memory are free"):
                lt.shrink(tmp_path / "ticket.pt", tmp_path / "s.onnx")

    def test_plans_that_reach_for_attributes(self, tmp_path: Path, lenet: Path) -> None:
        for axis in ("=__class__", "=_parameters", "=weight", "=forward", "=__dict__[0]", "bias.7", "nothing.0"):
            change = lambda h, w, axis=axis: h["plan"]["groups"][0]["members"][0].update(axis=axis)  # noqa: E731
            (tmp_path / "ticket.pt").write_bytes(forged(lenet, change))
            with pytest.raises(StaleTicket, match="does not fit"):
                lt.shrink(tmp_path / "ticket.pt", tmp_path / "s.onnx")


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"groups":' * 10**5, '{"groups": [], "kept": {"a": [' + "1" * 10**5 + "]}}", '{"groups": 1e999, "kept": {}}', "\x00"],
)
def test_plans_in_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(BadFile, match=r"plan\.json is no"):
        lt.PruningPlan.load(tmp_path / "plan.json")


def test_plans_that_never_end(tmp_path: Path) -> None:
    (tmp_path / "plan.json").touch()
    os.truncate(tmp_path / "plan.json", 1 << 40)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "plan.json", tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(BadFile, match="name another file"):
            lt.PruningPlan.load(path)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder after a short search."""
    cwd = tmp_path_factory.mktemp("search")
    assert call(*SEARCH, cwd=cwd).returncode == 0
    return cwd


SEARCH = ("find", "--model", "lenet5", "--epochs", 2, "--rounds", 1, "--no-controls", "--name", "t")
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


# Own code


@pytest.mark.parametrize("command", ["shrink", "lower", "bench"])
@pytest.mark.parametrize("kind", ["ticket", "onnx"])
def test_code_that_a_file_names_is_asked_for_again(tmp_path: Path, command: str, kind: str) -> None:
    if kind == "onnx" and command != "bench":
        return
    (tmp_path / "readers.py").write_text(f"open({MARK!r}, 'w')\n")
    target = tmp_path / ("t.pt" if kind == "ticket" else "t.onnx")
    target.write_bytes(READERS[kind].whole())
    refused(command, target, says="--model readers:network", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    refused(command, target, "--model", "os:system", says="", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert not (tmp_path / MARK).exists()


# ONNX


def onnx_file(path: Path, change: Callable[[Any], object]) -> Path:
    model = onnx.load_from_string(whole_onnx())
    change(model)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../../secret", "/etc/passwd", "link", "."])
def test_onnx_files_that_read_others(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(bytes(108))
    folder = tmp_path / "a/b"
    folder.mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")

    def change(model: Any) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    target = onnx_file(folder / "net.onnx", change)
    refused("bench", target, says="in another file")
    assert call("inspect", target).returncode == 0, "it looks at the file alone"


def deep(model: Any) -> None:
    """Graphs in graphs, as far as protobuf reads them, and a constant that doubles with each node."""
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(25):
        inner = helper.make_graph([helper.make_node("If", ["c"], ["d"], then_branch=inner, else_branch=inner.__class__())], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=inner))


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("declares the shape", lambda m: m.graph.initializer[0].dims.append(10**9)),
        ("has the shape", lambda m: m.graph.initializer[0].dims.append(-1)),
        ("has the shape", lambda m: m.graph.initializer[0].dims.extend([2**60] * 100)),
        ("declares the shape", lambda m: setattr(m.graph.initializer[0], "raw_data", b"")),
        ("tells nonsense of its network", lambda m: setattr(m.metadata_props[1], "value", '{"name": "lenet5", "arguments": {}}')),
        ("lacks what", lambda m: setattr(m.metadata_props[1], "value", "[" * 10**5)),
        ("has 0 inputs", lambda m: m.graph.ClearField("input")),
        ("has 1 inputs and 0 outputs", lambda m: m.graph.ClearField("output")),
        ("operators of its own", lambda m: setattr(m.graph.node[0], "domain", "com.evil")),
        ("was not made by", lambda m: m.ClearField("metadata_props")),
    ],
)
def test_onnx_files_that_lie(tmp_path: Path, says: str, change: Callable[[Any], object]) -> None:
    refused("bench", onnx_file(tmp_path / "net.onnx", change), says=says)


def test_onnx_graphs_that_never_end(tmp_path: Path) -> None:
    """Constants that double with every node, that feed themselves, and graphs inside graphs."""

    def doubling(model: Any) -> None:
        model.graph.node.extend(helper.make_node("Add", [f"x{i}"] * 2, [f"x{i + 1}"]) for i in range(60))
        model.graph.initializer.append(helper.make_tensor("x0", TensorProto.FLOAT, [1], [1.0]))
        model.graph.node.append(helper.make_node("MatMul", ["b", "x60"], ["y"]))

    def circular(model: Any) -> None:
        model.graph.node.insert(0, helper.make_node("Relu", ["0.weight"], ["loop"]))
        model.graph.node.insert(1, helper.make_node("Add", ["loop", "loop"], ["loop"]))
        model.graph.node.append(helper.make_node("MatMul", ["b", "loop"], ["y"]))

    for change in (doubling, circular, deep):
        target = onnx_file(tmp_path / "net.onnx", change)
        done = call("inspect", target, timeout=30, memory_bytes=2 << 30)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr


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


# Data


@pytest.mark.filterwarnings("ignore::ltcompile.core.notice.Notice")
def test_images_start_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL hands PostScript to Ghostscript, whatever the file is called."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / MARK}\n")
    (bin_folder / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    images = write_folder(tmp_path / "images")
    Image.new("RGB", (8, 8)).save(tmp_path / "page.eps")
    (images / "class0" / "page.png").write_bytes((tmp_path / "page.eps").read_bytes())
    lt.load_data(f"imagefolder:{images}", image_size=8)
    assert not (tmp_path / MARK).exists()


def png(width: int, height: int, pixels: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def test_images_that_are_bombs_or_pipes(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", each=30)
    (images / "class0" / "bomb.png").write_bytes(png(100_000, 100_000, bytes(1 << 20)))
    (images / "class0" / "short.png").write_bytes(png(100, 100, bytes(10)))
    os.mkfifo(images / "class0" / "pipe.png")
    with pytest.warns(Notice, match=r"2 of 92 images .* cannot be read: class0/bomb.png, class0/short.png"):
        lt.load_data(f"imagefolder:{images}", image_size=8)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 2**31 - 1, 2**16, 2**16)),
        lambda raw: (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">I", 0x0FFF)),
        lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 40) + bytes([200] * 40)),
        lambda raw: (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes(3)),
        lambda raw: (raw / "t10k-labels-idx1-ubyte").write_bytes(b""),
    ],
)
def test_digits_that_lie(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    mnist_files(tmp_path)
    damage(tmp_path / "MNIST/raw")
    with pytest.raises(BadData, match=r"fetch|missing or corrupt"):
        lt.load_data("mnist", tmp_path, val_share=0.25)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_pickled_images_are_those_that_were_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """torchvision unpickles them, but only what has the published MD5 sum."""
    monkeypatch.chdir(tmp_path)
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
        for part in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta", "train", "test", "meta"):
            (tmp_path / folder / part).write_bytes(PICKLES["reduce"]())
    with pytest.raises(BadData, match="missing or corrupt"):
        lt.load_data(name, tmp_path)
    assert not Path(MARK).exists()


# Things that are no files


@pytest.mark.parametrize("command", [("show",), ("inspect",), ("plan", "--model", "lenet5", "--weights")])
def test_what_is_no_file_is_not_waited_for(tmp_path: Path, command: tuple[str, ...]) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path / "loop", tmp_path / ("long" * 100)):
        refused(*command, path, says=str(path))
    refused("report", tmp_path, says="no run folder")
