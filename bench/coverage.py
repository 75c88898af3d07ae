"""Every classifier of torchvision, and a family each of timm: planned, cut, compared and exported; next to Torch-Pruning's planning.

python bench/coverage.py                # all 80 of torchvision
python bench/coverage.py --timm         # the families of timm
python bench/coverage.py resnet50 vit_b_16
python bench/coverage.py --ours         # keeps what Torch-Pruning took

The cut network is compared with the masked one in float64, on two images, and relative to how far the outputs of the two images are apart: a
deep network's random weights may leave outputs that hardly depend on the image, and an error relative to their size would show nothing.

Each network runs in a process of its own, so that its peak memory is its own. Rows are kept in bench/results/coverage.json as they
come, and name the code that made them (a hash of ltcompile/graph, prune and lower); a network that has a row of the present code is not run
again unless it is named. Several processes may share the networks. The table is bench/results/coverage.md.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import functools
import hashlib
import json
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGE = Path(__file__).parents[1] / "ltcompile"
ROWS = RESULTS / "coverage.json"
LEAST_SPREAD = 1e-9  # of the largest output: float64 rounds at 1e-16
LIMIT_S = {"ours": 1800, "torch-pruning": 180}
# A small network of each family in timm.
FAMILIES = """
test_vit gernet_s beit_base_patch16_224 halonet26t caformer_s18 cait_s24_224 coat_tiny test_maxvit convit_tiny
convmixer_768_32 convnext_atto cpubone_s0 crossvit_18_240 cs3darknet_s csatv2 cspnext_s davit_tiny deepseek_vit_412m
deit_tiny_patch16_224 densenet121 dla34 test_nfnet dpn68 ese_vovnet19b_slim resnet18 edgenext_small efficientformer_l1
efficientformerv2_s0 mixnet_s efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_s
fastvit_s12 lcnet_050 focalnet_base_srf gcvit_tiny gemma4_vit_167m ghostnet_050 gmlp_s16_224 hardcorenas_a hgnet_tiny
hiera_tiny_224 hieradet_small hrnet_w18 iformer_s inception_next_atto inception_resnet_v2 inception_v3 inception_v4
lcnetv2_small legacy_senet154 legacy_xception levit_384_s8 lowformer_b0 mambaout_tiny mobilenetv5_300m mobilevit_s
mvitv2_tiny naflexvit_base_patch16_siglip nasnetalarge nest_tiny nextvit_small pit_s_224 pnasnet5large pvt_v2_b0
qwen3_vit_88m rdnet_tiny regnety_040_sgn repghostnet_050 repvit_m1 res2net50_26w_4s resnest26d resnetv2_18 rexnet_100
samvit_base_patch16 selecsls42 sequencer2d_s shvit_s1 skresnet18 starnet_s1 swiftformer_s swin_s3_base_224
swinv2_tiny_window8_256 swinv2_cr_tiny_224 test_vit_relpos tiny_vit_5m_224 tnt_s_patch16_224 tresnet_l twins_svt_base
vgg11 visformer_tiny vit_base_r26_s32_224 vitamin_small_224 volo_d1_224 xception41 xcit_nano_12_p8_224
"""
HEAD = (
    *("network", "groups", "params left", "MACs left", "cut against mask", "ONNX Runtime", "plan s", "check s", "Torch-Pruning s"),
    *("surgery / weights", "left alone"),
)
SHARED = """Times were taken on a shared machine of two cores, with one thread: compare them within a row, and not between rows.

Rows that are not among `compared_in_float64` are of earlier code. They compare in fp32 and relative to the largest output, of which an image may change
less than a millionth: there an error of 1e-7 shows little. Where Torch-Pruning was not done in time, other work ran next to it."""
EXTRA_INPUT = {"inception_v3": 299}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--timm", action="store_true")
    parser.add_argument("--ours", action="store_true", help="leave the rows of Torch-Pruning as they are")
    parser.add_argument("--one", choices=list(LIMIT_S), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps({"ours": ours, "torch-pruning": theirs}[arguments.one](arguments.names[0])))
        return
    for name in arguments.names or ([f"timm:{name}" for name in FAMILIES.split()] if arguments.timm else torchvision_names()):
        known = _rows().get(name, {})
        if name not in arguments.names and known.get("ours", {}).get("code") == _code():
            continue
        row = {"ours": _apart("ours", name) | {"code": _code()}}
        row["torch-pruning"] = known["torch-pruning"] if arguments.ours and known else _apart("torch-pruning", name)
        print(_line(name, row), flush=True)
        with open(__file__) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            _write(_rows() | {name: row})
    print(json.dumps(_summary(_rows())))


@functools.cache
def _code() -> str:
    """What the rows of our side depend on."""
    digest = hashlib.sha256()
    for path in sorted(path for folder in ("graph", "prune", "lower") for path in (PACKAGE / folder).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _rows() -> dict[str, Any]:
    return json.loads(ROWS.read_text())["rows"] if ROWS.exists() else {}


def torchvision_names() -> list[str]:
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def _apart(who: str, name: str) -> dict[str, Any]:
    """The row that a process of its own gives."""
    command = [sys.executable, __file__, "--one", who, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S[who], check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_S[who]} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def _network(name: str) -> tuple[Any, Any]:
    """The network with random weights and statistics, in eval mode, and two images."""
    import torch

    torch.manual_seed(0)
    if name.startswith("timm:"):
        import timm

        model: Any = timm.create_model(name.removeprefix("timm:"), num_classes=10)
        side = model.default_cfg["input_size"][-1]
    else:
        import torchvision

        fast = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        model, side = torchvision.models.get_model(name, weights=None, num_classes=10, **fast), EXTRA_INPUT.get(name, 224)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # nothing is zero or one by luck, so that an error shows
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if value.is_floating_point() and (value.dim() < 2 or value.abs().max() == value.abs().min()):
                low = 0.5 if any(k in key for k in ("weight", "var", "gamma", "scale", "gain")) else -0.2
                value.copy_(low + (1 if low > 0 else 0.4) * torch.rand(value.shape, generator=generator))
    images = torch.randn(2, 3, side, side, generator=generator)
    images[1] = 2 * images[1] + 1  # two images of noise look alike to what averages over pixels
    return model.eval(), images


def ours(name: str) -> dict[str, Any]:
    """Plan (global and local), cut, compare with the mask, train one step, export, compare with ONNX Runtime."""
    import torch

    import ltcompile as lt
    from ltcompile.graph import disagreements
    from ltcompile.lower.simulate import in_double

    warnings.simplefilter("ignore")
    model, x = _network(name)
    weights_mib = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    before_mib = _peak_mib()
    seconds = _time_s(lambda: lt.plan(model, x[:1], check=False))
    lt.cut(model, lt.plan(model, x, check=False))
    surgery_mib = _peak_mib() - before_mib
    plans = {scope: lt.plan(model, x, 0.5, scope) for scope in ("local", "global")}  # type: ignore[arg-type]
    check_seconds = _time_s(lambda: disagreements(model, x[:1], plans["global"]))
    errors, spreads = {}, {}
    for scope, plan in plans.items():
        small = lt.cut(model, plan)
        made, expected = in_double(small, x), in_double(lt.mask(model, plan), x)
        spread = expected[:1] - expected[1:]
        errors[scope], spreads[scope] = _error(made - expected, spread), _error(spread, expected)
    dense, left = lt.size(model, x), lt.size(small, x)
    reasons = Counter(r for r in plan.frozen.values() if "output" not in r)
    row = {
        "groups": len(plan.groups),
        "left_alone": dict(reasons),
        "params_left": left.params / dense.params,
        "macs_left": left.macs / dense.macs,
        "error": errors,
        "spread": min(spreads.values()),
        "plan_seconds": seconds,
        "check_seconds": check_seconds,
        "weights_mib": weights_mib,
        "surgery_mib": surgery_mib,
    }
    row |= _exported(small, x)
    logits = small.train()(x)
    (logits if isinstance(logits, torch.Tensor) else logits[0]).sum().backward()
    return row


def _exported(small: Any, x: Any) -> dict[str, Any]:
    import torch

    from ltcompile.lower import export_onnx, fold_batch_norm, run_onnx

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        folded, _ = fold_batch_norm(small, x)
        expected = folded(x)
        path = Path(folder) / "small.onnx"
        try:
            export_onnx(folded, x, path)
        except Exception as error:
            return {"onnx_failed": str(error).splitlines()[0][:300]}
        return {"onnx_error": _error(run_onnx(path, x) - expected, expected)}


def theirs(name: str) -> dict[str, Any]:
    """Torch-Pruning's dependency graph and global plan at the same ratio, without cutting; classifiers left alone as its documentation says."""
    import torch
    import torch_pruning

    warnings.simplefilter("ignore")
    model, x = _network(name)
    ignored = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 10]
    before_mib = _peak_mib()

    def plan() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            pruner = torch_pruning.pruner.BasePruner(
                model,
                x[:1],
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
                global_pruning=True,
                pruning_ratio=0.5,
                ignored_layers=ignored,
            )
            cut = sum(1 for _ in pruner.step(interactive=True))
        assert cut, "no group was found"

    return {"plan_seconds": _time_s(plan), "surgery_mib": _peak_mib() - before_mib}


def _time_s(action: Callable[[], object]) -> float:
    """The median of three runs, or the only one where it takes more than 10 s."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < 10:
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _error(difference: Any, size: Any) -> float:
    """The largest difference, relative to the largest value of `size`."""
    error = float(difference.abs().max() / size.abs().max())
    if not math.isfinite(error):
        raise ValueError("the outputs are not finite")
    return error


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _line(name: str, row: dict[str, Any]) -> str:
    mine, other = row["ours"], row["torch-pruning"]
    if "failed" in mine:
        return f"| {name} | failed: {mine['failed']} |"
    left = "; ".join(f"{count}x {reason}" for reason, count in mine["left_alone"].items()) or "-"
    onnx = f"{mine['onnx_error']:.0e}" if "onnx_error" in mine else f"failed: {mine['onnx_failed'][:60]}"
    error = (
        f"{max(mine['error'].values()):.0e}"
        if mine.get("spread", 1) >= LEAST_SPREAD
        else "shows nothing: the outputs of two images are equal"
    )
    peer = f"fails: {other['failed'][:60]}" if "failed" in other else f"{other['plan_seconds']:.1f}"
    cells = [
        name,
        str(mine["groups"]),
        f"{mine['params_left']:.2f}",
        f"{mine['macs_left']:.2f}",
        error,
        onnx,
        f"{mine['plan_seconds']:.1f}",
        f"{mine['check_seconds']:.1f}" if "check_seconds" in mine else "-",
        peer,
        f"{mine['surgery_mib'] / mine['weights_mib']:.1f}",
        left,
    ]
    return f"| {' | '.join(cells)} |"


def _summary(rows: dict[str, Any]) -> dict[str, Any]:
    mine = [r["ours"] for r in rows.values()]
    worked = [r for r in mine if "failed" not in r]
    both = [r for r in rows.values() if "failed" not in r["ours"] and "failed" not in r["torch-pruning"]]
    checks = [r["check_seconds"] for r in worked if "check_seconds" in r]  # rows from before the check have none
    ratios = [r["ours"]["plan_seconds"] / r["torch-pruning"]["plan_seconds"] for r in both]
    return {
        "networks": len(rows),
        "by_the_present_code": sum(r.get("code") == _code() for r in mine),
        "cut": len(worked),
        "equal_to_1e-5": sum(max(r["error"].values()) <= 1e-5 and r.get("spread", 1) >= LEAST_SPREAD for r in worked),
        "onnx_equal_to_1e-4": sum(r.get("onnx_error", 1) <= 1e-4 for r in worked),
        "torch_pruning_plans": sum("failed" not in r["torch-pruning"] for r in rows.values()),
        "plan_time_ratio_median": statistics.median(ratios) if ratios else None,
        "compared_in_float64": sum("spread" in r for r in worked),
        "outputs_hardly_differ": sum(r.get("spread", 1) < LEAST_SPREAD for r in worked),  # not counted as equal
        "plan_seconds_max": max((r["plan_seconds"] for r in worked), default=None),
        "check_seconds_median": statistics.median(checks) if checks else None,
        "check_seconds_max": max(checks, default=None),
    }


def _write(rows: dict[str, Any]) -> None:
    from ltcompile.core.records import provenance
    from ltcompile.paths import write_json

    write_json(ROWS, {"rows": rows, "summary": _summary(rows), "provenance": {**provenance(), "command": "python bench/coverage.py"}})
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(_line(name, row) for name, row in rows.items())]
    summary = "\n".join(f"- {key}: {value if not isinstance(value, float) else round(value, 3)}" for key, value in _summary(rows).items())
    text = (
        f"# Coverage\n\nAt ratio 0.5; made by `python bench/coverage.py` (and `--timm`).\n\n{SHARED}\n\n{summary}\n\n"
        + "\n".join(lines)
        + "\n"
    )
    (RESULTS / "coverage.md").write_text(text)


if __name__ == "__main__":
    main()
