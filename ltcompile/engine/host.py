"""The engine on a CPU: all runtimes that can run the network are checked and timed side by side, and the fastest is taken, by batch size."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ltcompile.core.deployment import COMPILED, Deployment
from ltcompile.core.notice import notify
from ltcompile.core.onnx_file import read_onnx
from ltcompile.core.records import cpu_name, version_of
from ltcompile.engine.agreement import Agreement, agreement, agreement_of_file
from ltcompile.engine.cpu import Source, Trial, build, candidates, label, thread_counts, trial
from ltcompile.engine.cpu.code import Choice
from ltcompile.engine.cpu.tiles import check_choices
from ltcompile.engine.decision import Decision, decided
from ltcompile.engine.device import CompiledArtifacts, Progress, Settings
from ltcompile.engine.engine import Run
from ltcompile.engine.file import EngineFile, EngineVariant
from ltcompile.engine.signature import Signature, Tensors, outputs
from ltcompile.errors import Crashed, Disagreement, InvalidFile, InvalidModel, InvalidSetting, Unavailable
from ltcompile.lower import export_onnx, fold_batch_norm
from ltcompile.lower.answers import of_network
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import compare, largest_error, refusal_of, tile
from ltcompile.runtimes import shared
from ltcompile.timing import Call, Fastest, fastest

PRECISIONS = ("fp32", "bf16", "int8")
SCREEN_S, FINAL_S = 0.4, 1.5  # seconds for each candidate at first, and for those close to the fastest


class Host:
    """The CPU."""

    def __init__(self, precision: str) -> None:
        if precision not in PRECISIONS:
            raise InvalidSetting(f"a CPU engine computes in {', '.join(PRECISIONS)}, not in {precision}; fp16 is for GPUs")
        if precision == "bf16" and not multiplies_bf16():
            raise Unavailable("this processor has no bfloat16 instructions, and would only emulate them; compile in fp32 or int8")
        self.precision = precision

    def machine(self) -> dict[str, str]:
        packages = "onnxruntime-gpu", "onnxruntime", "openvino", "torch"
        there = {name: version for name in packages if (version := version_of(name)) is not None}
        return {"cpu": cpu_name(), "threads": str(thread_counts()[-1]), **there}

    def make(
        self, model: nn.Module, inputs: Inputs, signature: Signature, batches: Sequence[int], settings: Settings, on_progress: Progress
    ) -> CompiledArtifacts:
        agreed = None
        if signature.is_one_tensor:
            source = make_source(model, inputs.tensors[0], batches, self.precision)
            agreed = agreement(model, inputs.tensors[0], source, settings.max_drop)
        else:
            source = _of_any_inputs(model, inputs)
        given = {batch: inputs.resized(batch) for batch in batches}
        expected = {batch: tuple(of_network(model)(some).values()) for batch, some in given.items()}
        source = _tuned(source, settings, on_progress)
        return _choose_all(source, {batch: some.tensors for batch, some in given.items()}, expected, on_progress, agreed)

    def load(self, contents: EngineFile) -> dict[int, Run]:
        source = _source(contents)
        return {variant.decision.batch: _loaded(variant, source) for variant in contents.variants}

    def recompile(self, contents: EngineFile, settings: Settings, on_progress: Progress) -> CompiledArtifacts:
        batches = [variant.decision.batch for variant in contents.variants]
        noise, answers = contents.probe
        source, signature = _tuned(_source(contents), settings, on_progress), contents.signature
        inputs = {b: signature.resized(noise, b) for b in batches}
        expected = {b: tuple(tile(x, b) if has else x for x, has in zip(answers, signature.outputs_batched, strict=True)) for b in batches}
        agreed = agreement_of_file(source, noise[0]) if signature.is_one_tensor else None
        return _choose_all(source, inputs, expected, on_progress, agreed)


def multiplies_bf16() -> bool:
    """Whether this processor multiplies bfloat16 by itself."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _source(contents: EngineFile) -> Source:
    programs = {variant.decision.batch: variant.program for variant in contents.variants if variant.program is not None}
    names = () if contents.signature.is_one_tensor else contents.signature.names
    choices: dict[str, Choice] = next((variant.options["choices"] for variant in contents.variants if "choices" in variant.options), {})
    try:
        check_choices(choices)
    except (AttributeError, TypeError, ValueError) as error:
        raise InvalidFile(f"the engine has tiles of another ltcompile: {error}; make it again with `ltcompile compile`") from error
    return Source(contents.precision, contents.onnx, programs, single=contents.single, names=names, choices=choices)


def _tuned(source: Source, settings: Settings, on_progress: Progress) -> Source:
    """With the measured tiles of its layers, where C++ can be generated."""
    from ltcompile.engine.cpu import tuning

    if source.single is None or all(candidate.runtime != COMPILED for candidate in candidates(source.precision)[0]):
        return source
    with contextlib.suppress(Unavailable):
        threads = thread_counts()[-1]
        measured = tuning.tune(source.single, settings.tune_seconds, threads, on_progress)
        return replace(source, choices=tuning.modelled_choices(source.single, threads) | measured)
    return source


def _candidate(variant: EngineVariant, precision: str) -> Deployment:
    """Raises InvalidFile where a file names no runtime that there is."""
    try:
        return Deployment("cpu", str(variant.options["runtime"]), variant.decision.batch, precision, int(variant.options["threads"]))
    except (KeyError, TypeError, ValueError, InvalidSetting) as error:
        raise InvalidFile(
            f"the engine names no runtime that this ltcompile has: {error!r}; make it again with `ltcompile compile`"
        ) from error


def _loaded(variant: EngineVariant, source: Source) -> Run:
    """What was decided; where C++ cannot be compiled here, the next fastest, with a notice."""
    decided = _candidate(variant, source.precision)
    try:
        return build(decided, source)
    except Unavailable as reason:
        if decided.runtime != COMPILED:
            raise
        ms = variant.decision.ms
        others = [c for c in candidates(source.precision, decided.batch)[0] if c.runtime != COMPILED and label(c) in ms]
        for other in sorted(others, key=lambda c: ms[label(c)]):
            with contextlib.suppress(Unavailable):
                run = build(other, source)
                notify(f"{label(other)} runs batches of {decided.batch} instead of {label(decided)}: {reason}")
                return run
        raise


def _choose_all(
    source: Source, inputs: Mapping[int, Tensors], expected: Mapping[int, Tensors], on_progress: Progress, agreed: Agreement | None = None
) -> CompiledArtifacts:
    variants, runs = [], {}
    for batch in inputs:
        candidate, runs[batch], decision = choose(source, batch, inputs[batch], expected[batch], on_progress, agreed)
        options: dict[str, Any] = {"runtime": candidate.runtime, "threads": candidate.threads}
        if candidate.runtime == COMPILED and source.choices:
            options["choices"] = source.choices
        variants.append(EngineVariant(decision, options, source.programs.get(batch)))
    return CompiledArtifacts(tuple(variants), runs, source.onnx, source.single)


def make_source(model: nn.Module, example: Tensor, batches: Sequence[int], precision: str) -> Source:
    """The network as data, for all runtimes; for int8, `example` are the images whose ranges count."""
    from ltcompile.engine.cpu.bf16 import in_bf16
    from ltcompile.lower.int8 import Int8Network
    from ltcompile.lower.lower import lower
    from ltcompile.lower.passes import precision as precisions
    from ltcompile.lower.quantized_program import integer_program

    folded, _ = fold_batch_norm(model, example)
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        if precision == "int8":
            network = Int8Network(folded, example, example, Path(folder))
            network.write()
            found = Source(precision, _held(network.file), plain=network.quantizer.plain.SerializeToString())
            try:
                return replace(found, single=integer_program(read_onnx(network.file), (1, *example.shape[1:])))
            except Unavailable as reason:
                return replace(found, refusal=str(reason))
        single, programs, refusal = None, {}, None
        try:
            single = lower(model, example[:1]).program
            if precision == "bf16":
                single = in_bf16(single)
            programs = {batch: precisions.rewrite(lower(model, tile(example, batch)).program, precision) for batch in batches}
        except InvalidModel as error:  # runtimes may read its ONNX form all the same
            refusal, single = error, None
        try:
            export_onnx(folded, example, path := Path(folder) / "network.onnx")
        except InvalidModel:
            if refusal is not None:
                raise refusal from None
            return Source(precision, None, programs, single=single)
        if refusal is not None and precision != "fp32":
            raise refusal
        return Source(precision, _held(path), programs if refusal is None else {}, single=single)


def _held(path: Path) -> Callable[[], bytes]:
    """What gives the bytes of a file that will be gone."""
    data = path.read_bytes()
    return lambda: data


def _of_any_inputs(model: nn.Module, inputs: Inputs) -> Source:
    """A network of any inputs and outputs, for the runtimes that read ONNX."""
    folded, _ = fold_batch_norm(model, inputs.example)
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        export_onnx(folded, inputs.example, path := Path(folder) / "network.onnx")
        return Source("fp32", _held(path), names=inputs.names)


def choose(
    source: Source, batch: int, inputs: Tensors, expected: Tensors, on_progress: Progress, agreed: Agreement | None = None
) -> tuple[Deployment, Run, Decision]:
    """The fastest for batches like `inputs` among those whose answers are `expected`, and which agree on more images where these are given.

    Raises:
        Unavailable: no runtime can run the network. Disagreement: none computes it.
    """
    errors = dict[str, float]()
    kind: type[Unavailable | Disagreement] = Unavailable
    deployments, refused = candidates(source.precision, batch)
    tried: dict[str, tuple[Deployment, Trial]] = {}
    judge = functools.partial(_judged, batch=batch, inputs=inputs, expected=expected, precision=source.precision, agreed=agreed)
    for name, candidate in ((label(candidate), candidate) for candidate in deployments):
        on_progress(f"batch {batch}: building {name}")
        try:
            one = trial(candidate, source, inputs)
            errors[name], wrong = judge(one.run)
        except Unavailable as reason:
            refused[name] = str(reason)
            continue
        if wrong:
            refused[name], kind = wrong, Disagreement
        else:
            tried[name] = candidate, one
    on_progress(f"batch {batch}: timing {len(tried)} candidates")
    picked = _fastest({name: one.call for name, (_, one) in tried.items()}, refused)
    if picked is None:
        raise kind(
            f"no runtime can run this network for batches of {batch} on this CPU: " + "; ".join(f"{k}: {v}" for k, v in refused.items())
        )
    candidate, (run, _, apart) = tried[picked.name]
    tried.clear()
    if apart:
        run = build(candidate, source)
        errors[picked.name], wrong = judge(run)
        if wrong:
            raise Disagreement(f"{picked.name} answers otherwise in this process than in its own: {wrong}; please report this network")
    shared().release()
    return candidate, run, decided(batch, picked, refused, errors[picked.name], {})


def _judged(run: Run, batch: int, inputs: Tensors, expected: Tensors, precision: str, agreed: Agreement | None) -> tuple[float, str]:
    """The largest error of the outputs, and why they are refused, "" where they are not."""
    compared = [_compared(y, x, precision) for y, x in zip(outputs(run(*inputs)), expected, strict=True)]
    reason = agreed.refusal(run, batch) if agreed else next((reason for _, reason in compared if reason), "")  # type: ignore[arg-type]
    return max(error for error, _ in compared), reason


def _fastest(calls: dict[str, Call], refused: dict[str, str]) -> Fastest | None:
    """The fastest of `calls`, or None where there is none; those whose process ends meanwhile are refused, and the others timed again."""
    while calls:
        try:
            return fastest(calls, screen_s=SCREEN_S, seconds=FINAL_S)
        except Crashed:
            for name, call in list(calls.items()):
                try:
                    call()
                except Crashed as reason:
                    refused[name] = str(reason)
                    del calls[name]
    return None


def _compared(found: Tensor, expected: Tensor, precision: str) -> tuple[float, str]:
    """The error of one output, and why it is refused, "" where it is not."""
    if expected.is_floating_point() and bool(expected.isfinite().all()):
        error = largest_error(found, expected)
        return error, refusal_of(error, precision)
    one = compare({"": found.numpy()}, {"": expected.numpy()})
    return one.error, one.refusal
