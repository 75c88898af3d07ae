"""Quantize the network to int8 and write its ONNX file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltcompile.core.onnx_file import read_onnx
from ltcompile.core.task import Metric, Task
from ltcompile.deploy import formats
from ltcompile.deploy.formats._converted import converted
from ltcompile.deploy.formats.openvino import RUNTIME
from ltcompile.deploy.int8 import MOST_ERROR, Quantized, to_int8
from ltcompile.deploy.job import ShrinkJob
from ltcompile.deploy.judges import judge_for
from ltcompile.deploy.own_int8 import write_by_own_quantiser
from ltcompile.errors import Disagreement, InvalidModel, InvalidSetting, TicketMismatch, Unavailable
from ltcompile.lower.answers import answers, of_file, probe
from ltcompile.lower.inputs import Inputs
from ltcompile.lower.quantized_program import integer_program
from ltcompile.numerics import CHUNK, Compared, compare
from ltcompile.pruned import MetricValue, Pruned

ORDER = 70
SUFFIXES = (".onnx", ".xml", ".mnn", ".cpp", ".so")
IN_FILE = ("ranges", "weight_bits", "float_nodes", "val_score", "score", "test_score", "images")  # of the record


def check(job: ShrinkJob) -> None:
    """Raises InvalidSetting where int8 lacks what it needs."""
    if job.precision != "int8":
        return
    if job.output.suffix not in SUFFIXES:
        raise InvalidSetting(f"int8 output must be {' or '.join(SUFFIXES)}, not {job.output}")
    if job.opset is not None:
        raise InvalidSetting(f"opset={job.opset} is of .onnx files in fp32 and fp16; leave it out of int8")
    if job.calibrate is None:
        raise InvalidSetting("int8 takes the ranges of activations from images; pass calibrate=, a data set or real inputs")
    if job.int8.finetune_epochs and hasattr(formats.of(job.output), "quantize"):
        raise InvalidSetting(f"finetune_epochs trains for ltcompile's own int8, which {job.output.suffix} files do not hold; leave it out")
    if not job.any_batch:
        raise InvalidSetting(
            "int8 is checked in batches; keep batch among the dynamic axes, or leave a network whose code fixes the batch in fp32 or fp16"
        )
    if job.int8.finetune_epochs and not (isinstance(job.calibrate, Task) and job.recipe and job.metric is None):
        raise InvalidSetting(
            "finetune_epochs trains tickets, on the images of a data set and by its metric; leave it out for other networks"
        )


def run(pruned: Pruned, job: ShrinkJob) -> tuple[Pruned, dict[str, Any]]:
    """The network with the float weights that were quantised, which fine-tuning may change."""
    if job.precision != "int8":
        return pruned, {}
    if isinstance(job.calibrate, Task):
        _check_same_data(pruned, job.calibrate)
    judge = judge_for(pruned.small, job)
    if hasattr(formats.of(job.output), "quantize"):
        own = write_by_own_quantiser(pruned, judge, job)
        error = {"onnx_error": own.judged.max_error, "tolerance": MOST_ERROR}
        return _with_metric(pruned, job, own.test_score, own.judged.score), {**error, "int8": dict(own.record)}
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as scratch:
        made = to_int8(pruned.small, judge, job, Path(scratch), (pruned.input_names, pruned.output_names))
        entry = {name: made.record[name] for name in IN_FILE if name in made.record}
        entry["fine_tuned"] = made.module is not pruned.small
        pruned = _with_metric(pruned, job, made.test_score, made.record[judge.key]["int8"])
        compared = _write(made, pruned, job, Path(scratch), {**formats.metadata(pruned, job), "int8": json.dumps(entry)})
    return replace(pruned, small=made.module), {
        "onnx_error": compared.error,
        "tolerance": compared.allowed,
        "int8": dict(made.record),
    }


def _with_metric(pruned: Pruned, job: ShrinkJob, test_score: float | None, score: float) -> Pruned:
    """The network with what is known of its metric in int8."""
    if test_score is not None and isinstance(job.calibrate, Task):
        return replace(pruned, metric=MetricValue(job.calibrate.metric, test_score, "test"))
    if job.metric is not None:
        return replace(pruned, metric=MetricValue(Metric("metric", "units", 1.0), score, "given by the user"))
    if pruned.metric is not None:
        return replace(pruned, metric=replace(pruned.metric, value=None, split="not measured: int8 was checked by its outputs"))
    return pruned


def _write(made: Quantized, pruned: Pruned, job: ShrinkJob, scratch: Path, texts: dict[str, str]) -> Compared:
    """Write the ONNX file, C++ of its program, or a file that is converted from it; how the answers of all but the last compare with those expected.

    Raises:
        InvalidModel: no C++ can be generated of it. Disagreement: the written file answers otherwise than it must.
    """
    if job.output.suffix == ".onnx":
        made.write(job.output, texts)
        return made.compared
    made.write(onnx := scratch / f"{job.output.stem}.onnx", texts)
    kind = formats.of(job.output)
    if hasattr(kind, "write_program"):
        try:
            program = integer_program(read_onnx(onnx), (1, *made.inputs.tensors[0].shape[1:]))
        except Unavailable as reason:
            raise InvalidModel(f"no C++ on integers can be generated of this network: {reason}; write .onnx instead") from reason
        kind.write_program(program, made.module, pruned, job)
        compared = compare(answers(kind.reader(made.module, pruned, job), made.inputs, CHUNK), *made.expected)
        if compared.refusal:
            raise Disagreement(f"{job.output} computes something else: {compared.refusal}; please report this network")
        return compared
    converted(onnx, job, kind.convert)
    inputs, names = probe(pruned.small, pruned.example, CHUNK), pruned.input_names or Inputs.of(pruned.small, pruned.example).names
    expected = answers(of_file(onnx, names, RUNTIME), inputs, CHUNK)
    if (compared := compare(answers(kind.reader(made.module, pruned, job), inputs, CHUNK), expected)).refusal:
        raise Disagreement(f"{job.output} and the int8 ONNX file that it was made of disagree: {compared.refusal}; write .onnx instead")
    return made.compared


def _check_same_data(pruned: Pruned, task: Task) -> None:
    """Raises TicketMismatch where the images or classes are not those that the network answers to."""
    own, there = pruned.preprocessing, task.description
    if "class_names" not in own:
        return
    shape, names = list(pruned.example.shape[1:]), json.loads(own["class_names"])  # type: ignore[union-attr]
    if list(there.class_names) != names or list(there.shape) != shape:
        raise TicketMismatch(
            f"the ticket is for {len(names)} classes of {own['data']} and images {shape}, "
            f"{there.name} has other ones; pass the data that the ticket was found on"
        )


def summary(record: Mapping[str, Any]) -> list[str]:
    """What was chosen, what it costs, and what stayed in float."""
    if "int8" not in record:
        return []
    int8 = record["int8"]
    images, second = int8["images"], int8["openvino"]
    start = f"int8 with {int8['ranges']} ranges of {images['calibration']} {'training images' if 'test' in images else 'inputs'}, "
    lines = [f"{start}weights of {int8['weight_bits']} bits: {_scores(int8)}"]
    if int8["fine_tuning"] != "not requested":
        lines.append(f"fine-tuned weights {int8['fine_tuning']}")
    if "places_in_float" in int8:
        lines.append(f"{int8['places_in_float']} operations on scores and places that it ranks or reads by stay in float")
    lines += [f"{name} stays in float: {why}" for name, why in int8["float_nodes"].items()]
    if "same_class" in second and "metric" not in int8:
        return [
            *lines,
            f"OpenVINO agrees: {second['same_class']:.2%} of validation images in the same class, outputs {second['error']:.1e} (RMS) from "
            f"the simulated rounding ({second['allowed']:.0e} is allowed)",
        ]
    if "not_run" not in second:
        return [
            *lines,
            f"OpenVINO agrees: outputs {second['error']:.1e} (RMS) from the simulated rounding ({second['allowed']:.0e} is allowed)",
        ]
    return [*lines, f"OpenVINO did not run it: {second['not_run']}"]


def _scores(int8: Mapping[str, Any]) -> str:
    if "val_score" not in int8:
        score = f"metric {int8['score']['fp32']:g} → {int8['score']['int8']:g}, " if int8["judged_by"] == "metric" else ""
        return f"{score}outputs {int8['error']['rms']:.1e} (RMS) from fp32"
    val, test, text = int8["val_score"], int8["test_score"], Metric(**int8.get("metric", {})).format
    return f"validation {text(val['fp32'])} → {text(val['int8'])}, test {text(test['fp32'])} → {text(test['int8'])}"
