"""The engine on a CPU: everyone who can run the network is checked, timed side by side, and the fastest taken, a batch size at a time."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.records import cpu_name, versions
from ltcompile.engine.agreement import Agreement, agreement, agreement_of_file
from ltcompile.engine.checks import refusal, relative_error, tile
from ltcompile.engine.cpu import RUNTIMES, Candidate, Source, build, candidates, thread_counts
from ltcompile.engine.decision import Decision, decided
from ltcompile.engine.device import Made, Progress
from ltcompile.engine.engine import Run
from ltcompile.engine.file import Contents, Part
from ltcompile.errors import BadFile, BadModel, BadSetting, Disagreement, Unavailable
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.lower import lower
from ltcompile.lower.passes import precision as precisions
from ltcompile.lower.quantize import quantize_onnx
from ltcompile.timing import fastest

PRECISIONS = ("fp32", "bf16", "int8")
SCREEN_S, FINAL_S = 0.4, 1.5  # seconds for each candidate at first, and for those close to the fastest


class Host:
    """The CPU."""

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise BadSetting(f"a CPU engine computes in {', '.join(PRECISIONS)}, not in {precision}; fp16 is for GPUs")
        if precision == "bf16" and not multiplies_bf16():
            raise Unavailable("this processor has no bfloat16 instructions, and would only emulate them; compile in fp32 or int8")
        self.precision = precision

    def machine(self) -> dict[str, str]:
        there = versions()
        packages = ("onnxruntime-gpu", "onnxruntime", "openvino", "torch")
        return {"cpu": cpu_name(), "threads": str(thread_counts()[-1])} | {name: there[name] for name in packages if name in there}

    def make(self, model: nn.Module, example: Tensor, batches: Sequence[int], max_drop: float, on_progress: Progress) -> Made:
        source = make_source(model, example, batches, self.precision)
        agreed = agreement(model, example, source, max_drop)
        with torch.no_grad():
            expected = {batch: model(tile(example, batch)) for batch in batches}
        return _choose_all(source, {batch: tile(example, batch) for batch in batches}, expected, on_progress, agreed)

    def load(self, contents: Contents) -> dict[int, Run]:
        source = _source(contents)
        return {part.decision.batch: build(_candidate(part.how), source, part.decision.batch) for part in contents.parts}

    def again(self, contents: Contents, on_progress: Progress) -> Made:
        batches = [part.decision.batch for part in contents.parts]
        noise, answer = contents.probe
        source = _source(contents)
        images, expected = {b: tile(noise, b) for b in batches}, {b: tile(answer, b) for b in batches}
        return _choose_all(source, images, expected, on_progress, agreement_of_file(source, noise))


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bfloat16 by itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _source(contents: Contents) -> Source:
    programs = {part.decision.batch: part.program for part in contents.parts if part.program is not None}
    return Source(contents.precision, contents.onnx, programs)


def _candidate(how: Mapping[str, Any]) -> Candidate:
    """Raises BadFile where a file names nobody we know."""
    try:
        return Candidate(RUNTIMES[RUNTIMES.index(how["runtime"])], int(how["threads"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BadFile(f"the engine does not say who runs it: {error!r}; make it again with `ltcompile compile`") from error


def _choose_all(
    source: Source,
    images: Mapping[int, Tensor],
    expected: Mapping[int, Tensor],
    on_progress: Progress,
    agreed: Agreement | None = None,
) -> Made:
    parts, runs = [], {}
    for batch in images:
        candidate, runs[batch], decision = choose(source, images[batch], expected[batch], on_progress, agreed)
        parts.append(Part(decision, asdict(candidate), source.programs.get(batch)))
    return Made(tuple(parts), runs, source.onnx)


def make_source(model: nn.Module, example: Tensor, batches: Sequence[int], precision: str) -> Source:
    """The network as data, for everyone who may run it; for int8, `example` are the images whose ranges count."""
    programs = {}
    if precision != "int8":
        for batch in batches:
            programs[batch] = precisions.rewrite(lower(model, tile(example, batch)).program, precision)
    folded, _ = fold_batch_norm(model, example)
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        path = Path(folder) / "network.onnx"
        try:
            export_onnx(folded, example, path)
        except BadModel:
            if precision == "int8":
                raise
            return Source(precision, b"", programs)
        if precision == "int8":
            plain = quantize_onnx(path, example, path)
            return Source(precision, path.read_bytes(), plain=plain.SerializeToString())
        return Source(precision, path.read_bytes(), programs)


def choose(
    source: Source, images: Tensor, expected: Tensor, on_progress: Progress, agreed: Agreement | None = None
) -> tuple[Candidate, Run, Decision]:
    """The fastest for batches like `images` among those whose answers are `expected`, and which agree on more images where these are given.

    Raises:
        Unavailable: nobody can run the network. Disagreement: nobody computes it.
    """
    batch, errors = len(images), dict[Candidate, float]()
    people, refused = candidates(source.precision)
    runs: dict[Candidate, Run] = {}
    for candidate in people:
        on_progress(f"batch {batch}: building {candidate}")
        try:
            runs[candidate] = build(candidate, source, batch)
        except Unavailable as reason:
            refused[str(candidate)] = str(reason)
            continue
        errors[candidate] = relative_error(runs[candidate](images), expected)
        if wrong := agreed.refusal(runs[candidate], batch) if agreed else refusal(errors[candidate], source.precision):
            refused[str(candidate)] = wrong
            del runs[candidate]
    if not runs:
        kind = Disagreement if errors else Unavailable
        raise kind(f"nobody can run this network for batches of {batch} on this CPU: " + "; ".join(f"{k}: {v}" for k, v in refused.items()))
    on_progress(f"batch {batch}: timing {len(runs)} candidates")
    calls = {str(candidate): functools.partial(run, images) for candidate, run in runs.items()}
    picked = fastest(calls, screen_s=SCREEN_S, seconds=FINAL_S)
    winner = next(candidate for candidate in runs if str(candidate) == picked.name)
    return winner, runs[winner], decided(batch, picked, refused, errors[winner], {})
