"""Int8 by the quantiser of a format's own runtime: ranges from the same inputs, and the same judge, which refuses what loses too much."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ltcompile.deploy import formats
from ltcompile.deploy.formats import onnx
from ltcompile.deploy.int8 import MOST_ERROR, Judged, judged_by
from ltcompile.deploy.job import ShrinkJob
from ltcompile.deploy.judges import Judge
from ltcompile.errors import Disagreement, InvalidModel, Unavailable
from ltcompile.lower.answers import Run, of_network
from ltcompile.lower.inputs import Inputs
from ltcompile.paths import write_bytes
from ltcompile.pruned import Pruned

ROWS = 64  # of the calibration inputs, whose ranges a quantiser takes


@dataclass(frozen=True)
class OwnInt8:
    """What was written: how it is judged, the score of test items where a task has them, and the record of all that was tried."""

    judged: Judged
    test_score: float | None
    record: Mapping[str, Any]


def _named(run: Run, names: Sequence[str] | None) -> Run:
    """`run`, whose outputs have the names that they have in a file."""

    def call(inputs: Inputs) -> Mapping[str, Tensor]:
        found = run(inputs)
        return dict(zip(names or found, found.values(), strict=True))

    return call


def write_by_own_quantiser(pruned: Pruned, judge: Judge, job: ShrinkJob) -> OwnInt8:
    """Quantise with each way of the format to take ranges, and write what the judge finds best.

    Raises:
        InvalidModel: the network cannot be exported, or the quantiser fails with all of them. Disagreement: int8 loses too much.
    """
    kind, network = formats.of(job.output), pruned.small.eval()
    some = judge.inputs.resized(min(judge.inputs.batch, ROWS))
    feeds = {name: tensor.numpy() for name, tensor in zip(pruned.input_names or some.names, some.tensors, strict=True)}
    exact = _named(of_network(network), pruned.output_names)
    outputs = judge.outputs(exact)
    before, tried, failed = judge.score(exact, outputs), dict[str, Judged](), list[str]()
    with tempfile.TemporaryDirectory(prefix="ltcompile-") as folder:
        onnx.write(network, pruned, replace(job, output=(plain := Path(folder) / "network.onnx"), precision="fp32"))

        def reader(ranges: str) -> Any:
            return kind.reader(network, pruned, replace(job, output=Path(folder) / f"{ranges}{job.output.suffix}"))

        for ranges in kind.RANGES:
            job.on_progress(f"{ranges} ranges")
            try:
                kind.quantize(plain, Path(folder) / f"{ranges}{job.output.suffix}", feeds, ranges)
                tried[ranges] = judged_by(judge, reader(ranges), outputs)
            except Unavailable as error:
                failed.append(str(error))
        if not tried:
            raise InvalidModel(f"{kind.RUNTIME} cannot quantise this network: {failed[0]}; write .onnx or .xml instead")
        best = max(tried, key=lambda ranges: tried[ranges].rank)
        judged = tried[best]
        if (drop := judge.drop(before, judged.score)) > job.int8.max_drop + 1e-9 or not judged.agrees:
            raise Disagreement(
                f"int8 by {kind.RUNTIME}'s quantiser reaches {judge.format(judged.score)}, {drop:.2f} {judge.units} below fp32 "
                f"({job.int8.max_drop:g} are allowed), and outputs within {judged.max_error:.2f} of the largest ({MOST_ERROR} is allowed); "
                "nothing was written: write .onnx or .xml instead"
            )
        test = judge.test({"fp32": exact, "int8": reader(best)})
        write_bytes(job.output, (Path(folder) / f"{best}{job.output.suffix}").read_bytes())
    record = {
        "quantizer": kind.RUNTIME,
        "ranges": best,
        "weight_bits": 8,
        "float_nodes": {},
        judge.key: {"fp32": before, "int8": judged.score},
        judge.drop_key: job.int8.max_drop,
        "error": {"max": judged.max_error, "rms": judged.noise},
        **judge.record(),
        "tried": [{"ranges": name, "weight_bits": 8, judge.key: one.score, "rms": one.noise} for name, one in tried.items()],
        "failed": failed,
        "fine_tuning": "not requested",
        "openvino": {"not_run": f"it does not read {job.output.suffix} files"},
        **({} if test is None else {"test_score": test}),
    }
    return OwnInt8(judged, test["int8"] if test else None, record)
