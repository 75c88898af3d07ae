"""Everything that reads a file, with a small whole file for each, and ways to spoil one: what the tests and bench/fuzz.py share.

A reader may refuse a file with an error of ours, and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import io
import json
import random
import struct
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from pages import curve, example, pictures
from pictures import coco_json, write_coco
from PIL import Image
from studies import some_study
from torch import nn

import ltcompile as lt
from ltcompile.benchmark.target import open_target
from ltcompile.cli import inspect
from ltcompile.core import ticket
from ltcompile.core.deployment import Deployment
from ltcompile.core.mask import WeightMask
from ltcompile.core.pictures import read_pictures, write_pictures
from ltcompile.core.plan import PruningPlan
from ltcompile.core.profile import LayerKind, Profile, Run, machine
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.run_folder import RunFolder
from ltcompile.core.study import JOB, Study
from ltcompile.core.task import Metric
from ltcompile.errors import LtcompileError
from ltcompile.graph.examples import read_inputs
from ltcompile.models import _weights
from ltcompile.prune.sensitivity import read_sensitivity
from ltcompile.reporting.collect import collect
from ltcompile.reporting.figures import _curve
from ltcompile.reporting.study import render
from ltcompile.search import Source
from ltcompile.search.status import RunWatch
from ltcompile.search.worker import _read as read_description
from ltcompile.study import StudyWatch
from ltcompile.study._taking_part import StudyJob
from ltcompile.verification import read_claims as claims_of
from ltcompile.verification.wire import check_self_contained

Value = Any  # of JSON
SHAPE = (1, 4, 4)
RUN = ("search.json", "small.json", "bench.json")
NASTY: tuple[Value, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 255, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *(
        "",
        "0",
        "\ud800",
        "\x00",
        "\x1b[2J",
        "[/]",
        "<script>",
        "a" * 5000,
        "../../etc/passwd",
        "os:system",
        "vgg16",
        "=__class__",
        "weight.0",
    ),
    *([], [[]], [0, 0], [-1], [1, 0], [10**9], {}, {"a": {}}, {"start": 0, "span": 2**40}),
)
NUMBERS = (0, 1, -1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


@functools.cache
def some_ticket() -> lt.Ticket:
    torch.manual_seed(0)
    model, example = network(), torch.zeros(2, *SHAPE)
    plan = lt.plan(model, example, ratio=0.4)
    small = lt.cut(model, plan)
    rows = tuple(
        Trained(0, arm, level, 3 - level, 90, 900, 1, 0.5, 0.1, 0.9, 0.2, 0.8, "f0", 1, 0.7)  # type: ignore[arg-type]
        for arm, level in (("dense", 0), ("ticket", 1))
    )
    verdict = Verdict(
        *(1, "a rule", 0.5, 0.95, {"1": {"mean": 0.1, "low": -0.2, "n": 8}}, ["a line"], {"1": True}, {"1": "a reason"}),
        decided=False,
        gaps={"random": {"mean": 0.1, "low": None, "high": None, "seeds": 1}},
        seed_rule="the only seed",
    )
    return lt.Ticket(
        model={"name": "readers:network", "arguments": {"classes": 2, "in_channels": 1, "image_size": 4}},
        plan=plan,
        weights=small.state_dict(),
        initial_seed=0,
        recipe=lt.Recipe(),
        data={
            "name": "digits",
            "class_names": ["no", "yes"],
            "shape": list(SHAPE),
            "mean": [0.5],
            "std": [0.25],
            "interpolation": "bilinear",
        },
        config={"rounds": 1, "ratios": {}},
        history=rows,
        verdict=verdict,
        level=1,
        seed=0,
        provenance={"command": "ltcompile find"},
    )


# The readers


def read_ticket(path: Path) -> None:
    found = lt.Ticket.load(path)
    with contextlib.suppress(LtcompileError):
        lt.cut(network(), found.plan)
    json.dumps([found.to_json(), found.row.to_json(), found.dense_row.to_json()])


def read_plan(path: Path) -> None:
    found = PruningPlan.load(path)
    json.dumps([found.widths, found.frozen, found.filters, found.to_json()])
    found.then(PruningPlan(found.remaining()))
    lt.cut(network(), found)


def read_mask(path: Path) -> None:
    found = WeightMask.load(path)
    json.dumps([found.weights, found.share, found.digest])
    with contextlib.suppress(LtcompileError):
        found.dropped(network())


def read_profile(path: Path) -> None:
    found = Profile.load(path)
    json.dumps([found.to_json(), found.dense_ms, found.errors()])
    with contextlib.suppress(LtcompileError):
        found.check_here()
    found.predict({name: (8, 8) for name in found.layers})


def read_rows_of_sensitivity(path: Path) -> None:
    json.dumps(read_sensitivity(path).to_json())


def read_run(path: Path) -> None:
    """`path` holds the files of a run folder behind each other, with a zero between two."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(RUN, path.read_bytes().split(b"\0"), strict=False):
            (Path(folder) / name).write_bytes(content)
        json.dumps(collect(Path(folder)), allow_nan=False)


def read_sweep(path: Path) -> None:
    """As the report does, next to the search that it was made of."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "search.json").write_bytes(whole_run().split(b"\0")[0])
        (Path(folder) / "sweep.json").write_bytes(path.read_bytes())
        found = collect(Path(folder))
    json.dumps(found, allow_nan=False)
    for each in found["sweep"]["curves"][:1]:
        _curve(each, Metric(**found["metric"])).to_json()


def read_study(path: Path) -> None:
    found = Study.load(path)
    json.dumps(found.to_json(), allow_nan=False)
    render(found)


def read_onnx(path: Path) -> None:
    reported = inspect._examine(path)
    json.dumps(reported)
    with contextlib.redirect_stdout(io.StringIO()):
        inspect._print(reported)
    open_target(path, model="readers:network")


def read_claims(path: Path) -> None:
    json.dumps(dataclasses.asdict(claims_of(path)), allow_nan=False)


def read_wire(path: Path) -> None:
    check_self_contained(path.read_bytes(), path)


def read_weights(path: Path) -> None:
    _weights.load_weights(network(), path, classes=2, in_channels=1)


def read_small(path: Path) -> None:
    lt.load_pruned(network, path)


def read_calibration(path: Path) -> None:
    read_inputs(path)


# A whole file for each


def whole_ticket() -> bytes:
    return _written(lambda path: some_ticket().save(path))


def whole_plan() -> bytes:
    return _written(some_ticket().plan.save)


def whole_sensitivity() -> bytes:
    return _written(lambda path: lt.sensitivity(network(), torch.zeros(1, *SHAPE), lambda _: 0.5, (0.5,), output=path) and None)


def whole_profile() -> bytes:
    """Of two layers, at three levels and elsewhere."""
    target, layers = Deployment("cpu"), {"a": LayerKind("3x3 by 1x1", False, True), "b": LayerKind("linear", True, False)}
    widths = [("dense", 32), *(("grid", w) for w in (16, 8)), *(("alignment", w) for w in (15, 14)), ("check", 12)]
    runs = [Run(why, {"a": (3, w), "b": (w, 10)}, 0.3 * w, 1.1, {"a": 0.2 * w, "b": 0.1 * w}, 0.1) for why, w in widths]  # type: ignore[arg-type]
    made = Profile({"name": "net", "arguments": {"classes": 10}}, target, machine(target), layers, tuple(runs), {"date": "today"})
    return _written(made.save)


def read_coco(path: Path) -> None:
    """Annotations next to images that are whole."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parts without a file
        write_coco(Path(folder) / "labels.json", Path(folder), coco_json(20))
        (Path(folder) / "labels.json").write_bytes(path.read_bytes())
        data = lt.load_data(f"coco:{folder}", image_size=8)
        for split in (data.train, data.val, data.test):
            for _, targets in split.batches(4, torch.device("cpu"), None, 0):
                assert all(boxes.isfinite().all() and (boxes >= 0).all() and (boxes <= 8).all() for boxes in targets["boxes"])


def read_shard(path: Path) -> None:
    """As a data set, with the images that can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = lt.load_data(f"webdataset:{path}", image_size=8)
        assert all(len(split.labels) == len(split) for split in (data.train, data.val, data.test))


def whole_shard() -> bytes:
    """Ten images of two classes."""
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as archive:
        Image.new("RGB", (4, 4), (200, 0, 0)).save(image := io.BytesIO(), "PNG")
        for name, data in [(f"{n:02}.{kind}", d) for n in range(10) for kind, d in (("png", image.getvalue()), ("cls", b"%d" % (n % 2)))]:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def spoil_shard(whole: bytes, chance: random.Random) -> bytes:
    """Its bytes, or a header with a corrected checksum."""
    spoiled = bytearray(spoil_bytes(whole, chance))
    if chance.random() < 0.7 and len(spoiled) >= 1024:
        at = 1024 * chance.randrange(len(spoiled) // 1024)
        spoiled[at : at + 512] = spoil_bytes(bytes(spoiled[at : at + 512]), chance)[:512].ljust(512, b"\0")
        spoiled[at + 148 : at + 156] = b"        "
        spoiled[at + 148 : at + 156] = b"%06o\0 " % sum(spoiled[at : at + 512])
    return bytes(spoiled)


def read_answers(path: Path) -> None:
    read_pictures(path)


def whole_pictures() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "file.json", pictures())
        return (Path(folder) / "file.json").read_bytes()


def whole_run() -> bytes:
    run = example()
    return b"\0".join(json.dumps(run[name]).encode() for name in RUN)


def whole_sweep() -> bytes:
    return json.dumps(curve()).encode()


def whole_study() -> bytes:
    return json.dumps({"kind": "study", "format": 1, **some_study().to_json()}).encode()


@functools.cache
def whole_claims() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(RUN, whole_run().split(b"\0"), strict=True):
            (Path(folder) / name).write_bytes(content)
        return json.dumps(collect(Path(folder))).encode()


def whole_onnx() -> bytes:
    """As `ltcompile shrink` writes one, by hand: its exporter would take seconds."""
    weights = {name: value.numpy() for name, value in network().state_dict().items() if value.dim()}
    nodes = [
        helper.make_node("Conv", ["images", "0.weight", "0.bias"], ["a"], name="conv"),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["c"]),
        helper.make_node("Identity", ["4.weight"], ["w"]),
        helper.make_node("Gemm", ["c", "w", "4.bias"], ["logits"], name="linear", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *SHAPE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    reported = some_ticket()
    texts = {
        "producer": "ltcompile",
        "model": json.dumps(reported.model),
        "data": "digits",
        "interpolation": "bilinear",
        "precision": "fp32",
    }
    texts["ticket_checksum"] = reported.checksum
    for key, value in (texts | {key: json.dumps(reported.data[key]) for key in ("class_names", "mean", "std")}).items():
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def whole_mask() -> bytes:
    matrices = ((name, p) for name, p in network().named_parameters() if p.dim() > 1)
    return _written(WeightMask({name: p.detach() > 0 for name, p in matrices}).save)


def whole_weights() -> bytes:
    return _written(lambda path: torch.save({"state_dict": network().state_dict(), "epoch": 3}, path))


def whole_safetensors() -> bytes:
    from safetensors.torch import save

    return save(network().state_dict(), {"made": "here"})


@functools.cache
def whole_small() -> bytes:
    """A cut network with a folded batch norm."""
    plan, dense = some_ticket().plan, network().eval()
    pruned = lt.Pruned(lt.cut(dense, plan), torch.zeros(1, *SHAPE), dense=dense, plan=plan)
    with tempfile.TemporaryDirectory() as folder:
        return lt.shrink(pruned, Path(folder) / "small.safetensors").path.read_bytes()


def _written(write: Callable[[Path], None]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


# Ways to spoil one


def spoil_bytes(whole: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, cut out, repeated, or replaced by extreme numbers; or the end cut off."""
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 2, 4, 8, 64))
        match chance.randrange(5):
            case 0:
                data[at : at + length] = chance.randbytes(min(length, len(data) - at))
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length] * chance.choice((1, 2, 50))
            case 3:
                number = struct.pack(chance.choice(("<q", ">q")), chance.choice(NUMBERS))[: chance.choice((1, 2, 4, 8))]
                data[at : at + len(number)] = number
            case _:
                data = data[:at] if chance.random() < 0.1 else data
    return bytes(data)


def spoil_json(value: Value, chance: random.Random) -> Value:
    """A copy with a few values replaced, removed, repeated or nested, wherever they are."""
    value = copy.deepcopy(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        holder, key = _somewhere(value, chance)
        if holder is None:
            return chance.choice(NASTY)
        match chance.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 2:
                other, there = _somewhere(value, chance)
                holder[key] = copy.deepcopy(other[there]) if other is not None else None
            case 3 if isinstance(holder[key], int):
                holder[key] += chance.choice((-1, 1, 2**31, 2**53, -(2**62)))
            case _:
                holder[key] = copy.deepcopy(chance.choice(NASTY))
    return value


def _somewhere(value: Value, chance: random.Random) -> tuple[Any, Any]:
    """A place in a tree of JSON, as what holds it and its key there; every level is about as likely as the next."""
    holder, key = None, None
    while isinstance(value, dict | list) and value and (holder is None or chance.random() < 0.8):
        holder, key = value, chance.choice([*value] if isinstance(value, dict) else range(len(value)))
        value = holder[key]
    return holder, key


def spoil_json_bytes(whole: bytes, chance: random.Random) -> bytes:
    """The tree more often than the text."""
    if chance.random() < 0.2:
        return spoil_bytes(whole, chance)
    return json.dumps(spoil_json(json.loads(whole), chance)).encode()


def spoil_run(whole: bytes, chance: random.Random) -> bytes:
    """One of its files."""
    files = whole.split(b"\0")
    spoiled = chance.randrange(len(files))
    files[spoiled] = spoil_json_bytes(files[spoiled], chance)
    return b"\0".join(files)


def spoil_archive(whole: bytes, chance: random.Random) -> bytes:
    """A file of torch.save: its bytes, or those of one entry in an archive that is whole."""
    if chance.random() < 0.3:
        return spoil_bytes(whole, chance)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = next(n for n in entries if n.endswith("data.pkl")) if chance.random() < 0.7 else chance.choice([*entries])
    entries[name] = spoil_bytes(entries[name], chance)
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def spoil_ticket(whole: bytes, chance: random.Random) -> bytes:
    """With the checksum corrected, or as random damage leaves it."""
    if chance.random() < 0.3:
        return spoil_archive(whole, chance)
    value = torch.load(io.BytesIO(whole), weights_only=True)
    value["header"] = json.dumps(spoil_json(json.loads(value["header"]), chance))
    if chance.random() < 0.2:
        name = chance.choice([*value["weights"]])
        value["weights"][name] = chance.choice((torch.zeros(2, 2), torch.tensor(float("nan")), torch.zeros(3, dtype=torch.int64), 7))
    if chance.random() < 0.1:
        value = spoil_json({key: value[key] for key in value if key != "weights"}, chance)
    else:
        with contextlib.suppress(Exception):  # not all of them can be signed
            value["checksum"] = ticket._checksum(value["header"], value["weights"], value.get("mask", {}))
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def spoil_safetensors(whole: bytes, chance: random.Random) -> bytes:
    """Its bytes, or its header with a corrected length."""
    if chance.random() < 0.3:
        return spoil_bytes(whole, chance)
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.dumps(spoil_json(json.loads(whole[8 : 8 + length]), chance)).encode()
    return struct.pack("<Q", len(header)) + header + whole[8 + length :]


def spoil_small(whole: bytes, chance: random.Random) -> bytes:
    """Its header, or the JSON inside it."""
    if chance.random() < 0.5:
        return spoil_safetensors(whole, chance)
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    part = chance.choice(("changes", "plan"))
    header["__metadata__"][part] = json.dumps(spoil_json(json.loads(header["__metadata__"][part]), chance))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + whole[8 + length :]


def spoil_onnx(whole: bytes, chance: random.Random) -> bytes:
    """Its bytes, or its fields."""
    if chance.random() < 0.3:
        return spoil_bytes(whole, chance)
    model = onnx.load_from_string(whole)
    for _ in range(chance.choice((1, 1, 2, 4))):
        _spoil_message(model, chance)
    return bytes(model.SerializeToString())


def _spoil_message(message: Any, chance: random.Random) -> None:
    """One field of a protobuf message, or of one inside it."""
    field, value = chance.choice(message.ListFields() or [(None, None)])
    if field is None:
        return
    repeated = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    if field.message_type is not None and chance.random() < 0.85:
        _spoil_message(chance.choice(value) if repeated else value, chance)
    elif repeated:
        _spoil_repeated(value, chance)
    elif field.message_type is not None or chance.random() < 0.2:
        message.ClearField(field.name)
    else:
        with contextlib.suppress(ValueError, TypeError):  # beyond the field's range
            setattr(message, field.name, _spoiled_scalar(value, chance))


def _spoil_repeated(values: Any, chance: random.Random) -> None:
    at = chance.randrange(len(values))
    match chance.randrange(3):
        case 0:
            del values[at]
        case 1:
            values.append(values[at])
        case _:
            with contextlib.suppress(ValueError, TypeError):
                values[at] = _spoiled_scalar(values[at], chance)


def _spoiled_scalar(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bytes):
        return spoil_bytes(value, chance)
    if isinstance(value, str):
        return chance.choice(("", "images", "a", "w", "0.weight", "Conv", "MatMul", "Loop", "\x1b[2J", "[/]", "[" * 3000, "../../x"))
    return chance.choice(NUMBERS)


@dataclass(frozen=True)
class Reader:
    """Something that reads a file: how, what its name ends in, a whole one, and ways to spoil one."""

    read: Callable[[Path], None]
    suffix: str
    whole: Callable[[], bytes]
    spoil: Callable[[bytes, random.Random], bytes]

    def accepts(self, data: bytes, folder: Path) -> bool:
        """Whether the file is read; if not, it is refused with an error of ours. Raises anything else that the reader does."""
        path = folder / f"file{self.suffix}"
        path.write_bytes(data)
        try:
            self.read(path)
        except LtcompileError as error:
            assert str(error), "an error must say something"
            return False
        return True


def read_job(path: Path) -> None:
    """What a worker reads before it loads anything that is named there."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(folder)
        run.settings.write_bytes(whole_settings())
        run.job.write_bytes(path.read_bytes())
        read_description(run, None)


def whole_job() -> bytes:
    source = Source("classification", "lenet5", "digits", "data", (16, 16), train_images=100).to_json()
    return json.dumps({"kind": "job", "format": 1, "source": source, "reason": None, "environment": {"torch": "2"}}).encode()


def read_status(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        RunFolder(folder).settings.write_bytes(path.read_bytes())
        RunWatch(folder).look(0.0)


def read_study_job(path: Path) -> None:
    """What a worker, and a look at a study, read of it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / JOB).write_bytes(path.read_bytes())
        StudyWatch(folder).look(0.0)


def whole_study_job() -> bytes:
    job = StudyJob("sanity", "smoke", None, "data", 2, {"torch": "2"})
    return json.dumps({"kind": "study job", "format": 1, **job.to_json()}).encode()


def whole_settings() -> bytes:
    return json.dumps({"model": "lenet5", "config": lt.SearchConfig(seeds=2).to_json(), "recipe": lt.Recipe().to_json()}).encode()


READERS = {
    "job": Reader(read_job, ".json", whole_job, spoil_json_bytes),
    "settings": Reader(read_status, ".json", whole_settings, spoil_json_bytes),
    "ticket": Reader(read_ticket, ".pt", whole_ticket, spoil_ticket),
    "plan": Reader(read_plan, ".json", whole_plan, spoil_json_bytes),
    "mask": Reader(read_mask, ".pt", whole_mask, spoil_archive),
    "profile": Reader(read_profile, ".json", whole_profile, spoil_json_bytes),
    "sensitivity": Reader(read_rows_of_sensitivity, ".json", whole_sensitivity, spoil_json_bytes),
    "run": Reader(read_run, "", whole_run, spoil_run),
    "sweep": Reader(read_sweep, ".json", whole_sweep, spoil_json_bytes),
    "pictures": Reader(read_answers, ".json", whole_pictures, spoil_json_bytes),
    "coco": Reader(read_coco, ".json", lambda: json.dumps(coco_json(20)).encode(), spoil_json_bytes),
    "shard": Reader(read_shard, ".tar", whole_shard, spoil_shard),
    "study": Reader(read_study, ".json", whole_study, spoil_json_bytes),
    "study_job": Reader(read_study_job, ".json", whole_study_job, spoil_json_bytes),
    "claims": Reader(read_claims, ".json", whole_claims, spoil_json_bytes),
    "onnx": Reader(read_onnx, ".onnx", whole_onnx, spoil_onnx),
    "onnx_bytes": Reader(read_wire, ".onnx", whole_onnx, spoil_onnx),
    "weights": Reader(read_weights, ".pth", whole_weights, spoil_archive),
    "small": Reader(read_small, ".safetensors", whole_small, spoil_small),
    "inputs": Reader(read_calibration, ".safetensors", whole_safetensors, spoil_safetensors),
    "safetensors": Reader(read_weights, ".safetensors", whole_safetensors, spoil_safetensors),
}
