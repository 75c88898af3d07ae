"""Write the golden outputs of this repository, or compare the present ones with them.

    python tests/golden/freeze.py                       write outputs.json (and print what changed)
    python tests/golden/freeze.py --check               compare; print "path: old → new" for each difference, and end with 1 if there is one
    python tests/golden/freeze.py --check --quick       the part that the tests run
    python tests/golden/freeze.py --only options        compare or write the sections whose names begin so, and leave the others alone
    python tests/golden/freeze.py --renamed             write only if nothing but names of JSON keys has changed, and print those
    python tests/golden/freeze.py --renamed --reworded  the same where sentences changed too, with the same figures in them

Frozen are plans, short searches to the bit, a small study, the JSON of the commands, and the command line. The JSON of `profile` is not, because
it takes a minute. Only what users call is called:
`ltcompile`'s public names, and the command line in this process. Searches agree to the bit on the machine that the file names; on others
within the tolerances of golden_compare.py. What depends on the machine as a whole (`compile`, `doctor`) is compared on the same one alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILE = HERE / "outputs.json"
sys.path[:0] = [str(ROOT), str(HERE), str(ROOT / "tests/support")]

import golden_compare as compare  # noqa: E402

Value = Any
SMALLEST = ("lenet5", "lenet300", "mlp256")
SMALL = ("conv2", "resnet20", "vgg16-quarter")
LARGE = (
    "conv2-dropout", "conv4", "conv4-dropout", "conv6", "conv6-dropout", "mlp1024", "resnet18", "resnet56", "vgg11", "vgg13", "vgg16", "vgg19",
)  # fmt: skip
FIRST_OF_TORCHVISION = ("torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5")
TORCHVISION = (
    *(
        "torchvision:resnet18",
        "torchvision:mobilenet_v3_small",
        "torchvision:densenet121",
        "torchvision:squeezenet1_1",
        "torchvision:swin_t",
    ),
    *("torchvision:efficientnet_b0", "torchvision:regnet_y_400mf", "torchvision:googlenet", "torchvision:convnext_tiny"),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "half": {"ratio": 0.5, "check": False},
    "local": {"ratio": 0.4, "scope": "local", "criterion": "l2", "group_reduction": "producers", "align": 4, "check": False},
    "macs": {"target_macs": 0.5, "criterion": "lamp", "group_reduction": "all", "check": False},
    "params": {"target_params": 0.6, "criterion": "random", "seed": 3, "check": False},
    "checked": {"ratio": 0.3, "criterion": "fpgm"},
}


def put(*settings: str) -> tuple[str, ...]:
    return tuple(word for setting in settings for word in ("--set", setting))


LENET = ("--model", "lenet5", "--data", "digits", "--device", "cpu", *put("train.precision=fp32", "train.compile=never"))
RESIDUAL = ("--model", "golden_network:build", "--image-size", 12, *LENET[2:])
SEARCHES: dict[str, tuple[object, ...]] = {
    "global": (*LENET, "--epochs", 2, "--rounds", 2, "--rate", 0.3, "--margin", 5, "--seeds", 2),
    "local": (
        *(
            *RESIDUAL,
            "--epochs",
            2,
            "--rounds",
            2,
            "--rate",
            0.2,
            "--seeds",
            2,
            "--rewind",
            "weight",
            "--criterion",
            "taylor",
            "--margin",
            20,
        ),
        *put("prune.scope=local", "prune.rewind_epoch=1", "prune.align=2", "prune.group_reduction=producers"),
    ),
    "oneshot": (
        *(*RESIDUAL, "--epochs", 1, "--rounds", 2, "--rewind", "finetune", "--criterion", "bn"),
        *put("prune.target_params=0.5", "prune.schedule=oneshot", "search.full_curve=true", "train.distill=0.5"),
    ),
    "hybrid": (*LENET, "--epochs", 1, "--rounds", 1, "--rate", 0.4, "--prune", "hybrid", "--rewind", "reinit"),
    "edge-popup": (*LENET, "--epochs", 1, "--rounds", 1, "--rate", 0.5, *put("prune.method=edge-popup")),
    "basis": (*LENET, "--epochs", 1, "--rounds", 1, "--rate", 0.5, *put("prune.method=basis")),
}
TICKET, ONNX = "runs/global/ticket.pt", "runs/global/small.onnx"
QUICK_COMMANDS: dict[str, tuple[object, ...]] = {
    "show": ("show", TICKET),
    "plan": ("plan", "--model", "resnet20", "--target-macs", 0.5, "--keep", "conv", "--align", 2),
    "lower": ("lower", TICKET),
    "study": ("study",),
}
# Whether intervals are narrow, runtimes agree and claims are confirmed is measured: such values are masked by their place.
COMMANDS: dict[str, tuple[tuple[object, ...], tuple[str, ...]]] = {
    "shrink": (("shrink", TICKET, "-o", ONNX), ()),
    "shrink int8": (("shrink", TICKET, "-o", "small8.onnx", "--precision", "int8", "--calibrate", "digits"), ()),
    "shrink residual": (("shrink", "runs/local/ticket.pt", "-o", "small.safetensors", "--model", "golden_network:build"), ()),
    "lower residual": (("lower", "runs/local/ticket.pt", "--model", "golden_network:build", "--batch", 8), ()),
    "inspect": (("inspect", ONNX), ()),
    "compare": (("compare", TICKET, "runs/hybrid/ticket.pt", "--data", "digits"), ()),
    "bench": (
        ("bench", ONNX, "--against", "dense", "--runtime", "onnxruntime", "--batch", 1, "--seconds", 0.05, "-o", "runs/global/bench.json"),
        (),
    ),
    "sweep": (("sweep", "runs/global", "--batch", 1, "--seconds", 0.05), ("pick/(?!rule|runtime|device|batch).*",)),
    "verify": (
        ("verify", ONNX, "--claims", "runs/global/bench.json", "--seconds", 0),
        ("exit", "outcome", r"checks/\d/(verdict|reason|found)", r"checks/2/claim", r"checks/5/claimed/.*"),
    ),
    "compile": (("compile", TICKET, "--batch", 1, "-o", "small.engine"), ()),
    "doctor": (("doctor",), ()),
}  # fmt: skip
OF_THE_MACHINE = ("compile", "doctor", "bench", "sweep", "verify", "profile", "shrink int8")


def machine() -> dict[str, Any]:
    """What values to the bit depend on."""
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in reversed(lines) if ":" in line}
    return {
        "torch": torch.__version__,
        "simd": torch.backends.cpu.get_cpu_capability(),
        "cpu": " ".join(model.get(key, "") for key in ("model name", "cpu family", "model")) or platform.processor(),
        "cores": os.cpu_count(),
    }


def outputs(quick: bool) -> Iterator[tuple[str, Callable[[], Value]]]:
    """Section by section; commands need the searches' folders, which are in the current one."""
    yield "options", command_line
    yield "plans, smallest", partial(plans, SMALLEST, *SETTINGS)
    if not quick:
        yield "plans, small", partial(plans, SMALL, *SETTINGS)
        yield "plans, first of torchvision", partial(plans, FIRST_OF_TORCHVISION, "half", "local")
        yield "plans, large", partial(plans, LARGE, "half", "local")
        yield "plans, torchvision", partial(plans, TORCHVISION, "half", "local")
        yield "plans, target", partial(plans, ("vgg19", "torchvision:resnet18", "torchvision:squeezenet1_1"), "macs")
    for name, arguments in SEARCHES.items():
        if name == "global" or not quick:
            yield f"search {name}", partial(search, name, *arguments)
    for name, line in QUICK_COMMANDS.items():
        yield f"command {name}", partial(command, *line, "--json")
    for name, (line, places) in {} if quick else COMMANDS.items():
        yield f"command {name}", partial(command, *line, "--json", places=places)
    if not quick:
        yield "command report", report
        yield "whole study", whole_study


def command_line() -> Value:
    """Every command with its options: its names, whether it is a flag or repeatable, and its default, in order."""
    import typer

    from ltcompile.cli import app

    group: Any = typer.main.get_command(app)
    return {"": _options(group), **{name: _options(each) for name, each in group.commands.items()}}


def _options(each: Any) -> list[str]:
    options = []
    for parameter in each.params:
        names = "/".join([*parameter.opts, *parameter.secondary_opts])
        if parameter.name in ("install_completion", "show_completion"):  # of typer
            continue
        shown = names + (" flag" if getattr(parameter, "is_flag", False) else "")
        shown += "..." if parameter.multiple or parameter.nargs != 1 else ""
        default = "required" if parameter.required else f"= {parameter.default}" if parameter.default is not None else ""
        options.append(f"{shown} {default}".strip())
    return options


def plans(names: tuple[str, ...], *settings: str) -> Value:
    """What is planned for each network under each of the settings, and apart from that the reasons why groups are frozen."""
    made = {f"{name}, {setting}": planned(name, SETTINGS[setting]) for name in names for setting in settings}
    return {"plans": {case: value for case, (value, _) in made.items()}, "reasons": {case: reasons for case, (_, reasons) in made.items()}}


def planned(name: str, settings: dict[str, Any]) -> tuple[Value, str]:
    """One plan, with the size of the cut network and its tensors, and the hash of all reasons."""
    import torch

    import ltcompile as lt

    channels, side = (1 if name.startswith(("lenet", "mlp")) else 3), (64 if ":" in name else 32)
    torch.manual_seed(0)
    model, example = lt.build_model(name, in_channels=channels, image_size=side), torch.zeros(2, channels, side, side)
    plan = lt.plan(model, example, **settings)
    small = lt.cut(model, plan)
    size = lt.size(small, example)
    groups = [(group.name, group.width, group.tied, bool(group.frozen), list(kept)) for group, kept in plan]
    value = {
        "groups": len(groups),
        "frozen": sum(frozen for *_, frozen, _ in groups),
        "kept": f"{sum(len(kept) for *_, kept in groups)} of {sum(width for _, width, *_ in groups)}",
        "params": size.params,
        "macs": size.macs,
        "plan": digest(json.dumps(groups)),
        "members": digest(json.dumps(_keyless(plan.to_json()), sort_keys=True)),
        "tensors": f"bits:{tensors_digest(small.state_dict())}",
    }
    return value, f"text:{digest(json.dumps([(group.name, group.frozen) for group, _ in plan if group.frozen]))}"


def _keyless(value: Value) -> Value:
    """`value` without the names of keys and without sentences: what stays when those change."""
    if isinstance(value, dict):
        return sorted((_keyless(item) for item in value.values()), key=json.dumps)
    if isinstance(value, list):
        return [_keyless(item) for item in value]
    return bool(value) if isinstance(value, str) and " " in value else value


def search(name: str, *arguments: object) -> Value:
    """The JSON of `ltcompile find`, and the ticket's tensors and plan."""
    import ltcompile as lt

    found = command("find", *arguments, "--name", name, "--json")
    ticket = lt.Ticket.load(f"runs/{name}/ticket.pt")
    kept = {group.name: list(channels) for group, channels in ticket.plan}
    return {**found, "plan": kept, "tensors": f"bits:{tensors_digest(ticket.weights)}"}


def report() -> Value:
    """What `ltcompile report` writes as JSON: its levels and controls, and the keys of all else."""
    command("report", "runs/global", "-o", "runs/global/report.html")
    page = json.loads(Path("runs/global/report.json").read_text())
    keys = _types({**page, "sweep": {**page["sweep"], "pick": None}})
    return {"keys": keys, "controls": page["controls"], "levels": page["levels"]}


def whole_study() -> Value:
    """study.json of a study of few steps, its figures and maps as hashes. No command makes a study this small, so its scale is replaced."""
    import dataclasses

    from ltcompile.study import locality, run

    usual = locality.SCALES["smoke"]
    recipe = {**usual.recipe, "epochs": 2, "batch": 128, "precision": "fp32", "compile": "never"}
    locality.SCALES["smoke"] = dataclasses.replace(usual, recipe=recipe, rounds=2, rewind_epoch=0, image_size=6, seeds=2)
    try:
        found = run("locality", "smoke", folder=Path("runs/study"), device="cpu").to_json()
    finally:
        locality.SCALES["smoke"] = usual
    found |= {name: f"bits:{digest(json.dumps(found[name]))}" for name in ("figures", "maps")}
    return compare.masked(found, (r"claims/\d+/answer",))


def _types(value: Value) -> Value:
    """The keys of `value`, and the types of what they hold."""
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_types(value[0])] if value and isinstance(value[0], dict) else "<list>"
    return "<any>"


def command(*line: object, places: tuple[str, ...] = ()) -> Value:
    """The exit code of `ltcompile LINE`, and what it prints, read as JSON."""
    from ltcompile.cli import app

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = app([str(word) for word in line], standalone_mode=False)
    said = json.loads(printed.getvalue()) if line[-1] == "--json" else None
    return compare.masked({"exit": code or 0, **(said if isinstance(said, dict) else {"items": said})}, places)


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:16]


def tensors_digest(tensors: Any) -> str:
    """Of names, types, shapes and bytes."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.numpy().tobytes())
    return whole.hexdigest()[:16]


def produce(quick: bool, only: str, on_progress: Callable[[str], None]) -> dict[str, Value]:
    """All sections whose names begin with `only`, produced in an empty folder by one thread; commands read what searches and commands wrote."""
    with contextlib.suppress(ImportError):
        import openvino  # noqa: F401  # before torch: theirs do not load in the other order
    import torch

    torch.set_num_threads(1)
    before, found = Path.cwd(), {}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for name, made in outputs(quick):
                if not name.startswith(only) and not (only.startswith("command ") and name.startswith(("search", "command "))):
                    continue
                try:
                    found[name] = json.loads(json.dumps(made()))
                except Exception as error:  # the other sections are worth their comparison
                    found[name] = {"failed": f"{type(error).__name__}: {error}"}
                on_progress(f"{time.process_time():5.1f} s  {name}")
        finally:
            os.chdir(before)
    return {name: value for name, value in found.items() if name.startswith(only)}


def comparable(golden: dict[str, Value], sections: dict[str, Value], same_machine: bool) -> Iterator[str]:
    """The differences of all sections."""
    yield from (f"{name}: is not produced" for name in golden if name not in sections)
    for name, value in sections.items():
        if name not in golden:
            yield f"{name}: absent → {compare.short(value)}"
        elif same_machine or name.removeprefix("command ") not in OF_THE_MACHINE:
            exact = same_machine or name.startswith(("plans", "options"))
            expected = golden[name] if same_machine else compare.without_bits(golden[name])
            yield from compare.differences(expected, value, name, exact=exact)


def dumped(value: Value, indent: str = "") -> str:
    """JSON with one line for each container that fits into one."""
    flat = json.dumps(value)
    if (
        not isinstance(value, dict | list)
        or len(flat) <= 140
        or (isinstance(value, list) and not any(isinstance(v, dict | list) for v in value))
    ):
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        lines = [f"{inner}{json.dumps(key)}: {dumped(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + dumped(item, inner) for item in value) + f"\n{indent}]"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", metavar="PREFIX")
    parser.add_argument("--renamed", action="store_true")
    parser.add_argument("--reworded", action="store_true")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    if options.quick and not options.check:
        parser.error("--quick compares: give --check")
    sections = produce(options.quick, options.only, lambda line: print(line, file=sys.stderr, flush=True))
    recorded = json.loads(options.file.read_text()) if options.file.exists() else {"machine": machine(), "outputs": {}}
    same_machine = recorded["machine"] == machine()
    if not same_machine:
        print(f"another machine, {machine()}, than {recorded['machine']}: numbers are compared with tolerances, hashes not at all")
    if failed := [f"{name} failed: {value['failed']}" for name, value in sections.items() if "failed" in value]:
        print(*failed, sep="\n")
        return 1
    golden = {
        name: value
        for name, value in recorded["outputs"].items()
        if name.startswith(options.only) and (name in sections or not options.quick)
    }
    if options.renamed:
        try:
            sections = compare.renamed(golden, sections, print, reworded=options.reworded)
        except compare.Unlike as difference:
            print(f"nothing is written: {difference}")
            return 1
    else:
        found = list(comparable(golden, sections, same_machine))
        print(*found, f"{len(found)} differences in {len(sections)} sections", sep="\n")
        if options.check:
            return 1 if found else 0
    if options.only and not same_machine:
        print("nothing is written: --only would mix values of two machines; write all sections")
        return 1
    merged = {**recorded["outputs"], **sections} if options.only else sections
    options.file.write_text(dumped({"machine": machine(), "outputs": merged}) + "\n")
    print(f"wrote {options.file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
