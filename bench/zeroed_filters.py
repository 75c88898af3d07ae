"""How many wrong filters the bounds of `numerics` see: in trained networks, filters are zeroed in turn, in int8, fp16 and bf16.

    python bench/zeroed_filters.py        writes bench/results/zeroed-filters.json and zeroed-filters.md

Networks are trained on the embedded digits with several seeds. Of every layer that has weights, FILTERS filters are zeroed, one at a time: in
the ONNX file, which ONNX Runtime runs (int8, fp16), or in the network whose rounding is simulated (bf16). The answers to 128 test images
are judged as those of any file are. A row says how many are refused, and how many move no output by more than fp32 may be off (1e-4 of the
largest), as dead filters do: these no comparison of answers sees. Any other that is missed is listed with how far it moves the outputs, as a
multiple of what rounding alone changes (root mean squares). Finished rows are read from the file, and not made again.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from _common import RESULTS, finish
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

import ltcompile as lt
from ltcompile.core.streams import seeded, stream
from ltcompile.lower import HalfInside, export_onnx, fold_batch_norm, run_onnx
from ltcompile.lower.evaluate import evaluator
from ltcompile.lower.fake_quantize import fake_quantized
from ltcompile.lower.quantize import Quantizer, Scheme
from ltcompile.lower.simulate import rounded_network
from ltcompile.numerics import FP32_TOLERANCE, Expected, largest_error
from ltcompile.paths import write_text
from ltcompile.tasks import Classification
from ltcompile.training import train

Answers = NDArray[np.float32]
CPU = torch.device("cpu")
NETWORKS = {"lenet5": 16, "conv4": 16, "vgg16-quarter": 16, "resnet20": 8}  # pixels a side
RECIPE = lt.Recipe(epochs=15, batch=32, lr=0.02, flip=False, crop_pixels=1, precision="fp32", compile="never")
SEEDS, IMAGES, FILTERS = 2, 128, 4
PRECISIONS = ("int8", "fp16", "bf16")
PROMISE = 0.95


def main() -> None:
    file = RESULTS / "zeroed-filters.json"
    rows: list[dict[str, Any]] = json.loads(file.read_text())["rows"] if file.exists() else []
    for name, seed in product(NETWORKS, range(SEEDS)):
        if any((row["network"], row["seed"]) == (name, seed) for row in rows):
            continue
        network, images, calibration, accuracy = trained(name, seed)
        with tempfile.TemporaryDirectory() as folder:
            for precision in PRECISIONS:
                rows.append(
                    {"network": name, "seed": seed, "accuracy": accuracy} | judged(network, images, calibration, precision, Path(folder))
                )
                print(line(rows[-1]), flush=True)
        write(rows)


def write(rows: list[dict[str, Any]]) -> None:
    keys = ("zeroed", "without_effect", "caught")
    totals = {p: [sum(row[key] for row in rows if row["precision"] == p) for key in keys] for p in PRECISIONS}
    shares = {precision: caught / zeroed for precision, (zeroed, _, caught) in totals.items()}
    with_effect = {precision: caught / (zeroed - still) for precision, (zeroed, still, caught) in totals.items()}
    least = min(rows, key=lambda row: row["caught"] / row["zeroed"])
    text = "# Zeroed filters\n\nMade by `python bench/zeroed_filters.py`; see there.\n\n"
    text += f"Seen: {', '.join(f'{share:.1%} in {p} ({with_effect[p]:.1%} of those that move an output)' for p, share in shares.items())}. "
    text += f"The least of a network is {least['caught'] / least['zeroed']:.1%} ({least['network']}, seed {least['seed']}, {least['precision']}).\n\n"
    text += "| network | seed | test accuracy | precision | zeroed | without effect | seen | missed: outputs moved, in units of the rounding |\n"
    text += "| --- | --- | --- | --- | --- | --- | --- | --- |\n" + "".join(line(row) + "\n" for row in rows)
    write_text(RESULTS / "zeroed-filters.md", text)
    holds = all(row["caught"] >= PROMISE * row["zeroed"] for row in rows)
    finish(
        "zeroed-filters",
        {"images": IMAGES, "filters_of_a_layer": FILTERS, "shares": shares, "with_effect": with_effect, "holds": holds, "rows": rows},
    )


def line(row: dict[str, Any]) -> str:
    missed = ", ".join(f"{name} {moved:.2f}" for name, moved in row["missed"].items())
    cells = [row["network"], row["seed"], f"{row['accuracy']:.1%}", row["precision"], row["zeroed"], row["without_effect"]]
    return f"| {' | '.join(map(str, cells))} | {row['caught'] / row['zeroed']:.1%} | {missed or '-'} |"


def trained(name: str, seed: int) -> tuple[nn.Module, Tensor, Tensor, float]:
    """The folded network, test images (IMAGES, 1, H, W), training images for ranges, and the test accuracy."""
    data = lt.load_data("digits", image_size=NETWORKS[name])
    with seeded(stream("first weights", seed)):
        network = lt.build_model(name, 10, 1, NETWORKS[name])
    train(network, task := Classification(data), RECIPE, stream("training", seed), CPU)
    score = task.evaluate(network.eval(), "test", CPU)
    calibration, images = (
        next(iter(split.batches(count, CPU, None, 0)))[0].contiguous() for split, count in ((data.train, 256), (data.test, IMAGES))
    )
    return fold_batch_norm(network, images[:2])[0], images, calibration, float(score.value)


def judged(network: nn.Module, images: Tensor, calibration: Tensor, precision: str, folder: Path) -> dict[str, Any]:
    """How many zeroed filters are refused; the honest answers must pass."""
    with torch.no_grad():
        exact = network(images).numpy()
    if precision == "int8":
        export_onnx(network, images[:2], folder / "plain.onnx")
        quantizer = Quantizer(folder / "plain.onnx", calibration)
        quantizer.write(Scheme(), folder / "int8.onnx")
        made = onnx.load(folder / "int8.onnx")
        expected = Expected(exact, evaluator(fake_quantized(quantizer.plain, made))(images.numpy()))
        found = of_file(made, images, folder)
    else:
        expected = Expected(exact, rounded_network(network, precision)(images).numpy())
        if precision == "fp16":
            export_onnx(HalfInside(network), images[:2], folder / "fp16.onnx")
            found = of_file(onnx.load(folder / "fp16.onnx"), images, folder)
        else:
            found = of_module(network, images)
    _, honest = next(found)
    if reason := expected.refusal(honest):
        raise SystemExit(f"the honest answers in {precision} are refused: {reason}")
    caught, still, missed = 0, 0, dict[str, float]()
    for name, answers in found:
        if expected.refusal(answers):
            caught += 1
        elif largest_error(answers, honest) <= FP32_TOLERANCE:
            still += 1
        else:
            missed[name] = float(np.sqrt(np.square(answers - honest).mean())) / expected.noise
    return {"precision": precision, "zeroed": caught + still + len(missed), "caught": caught, "without_effect": still, "missed": missed}


def of_file(made: onnx.ModelProto, images: Tensor, folder: Path) -> Iterator[tuple[str, Answers]]:
    """The answers of ONNX Runtime to `images`: first of the file as it is, then of those with one filter of zeros."""
    yield "", run(made, images, folder)
    for at, tensor in enumerate(made.graph.initializer):
        if len(tensor.dims) < 2 or tensor.data_type not in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT16):
            continue
        for filter_ in places(tensor.dims[0]):
            wrong, values = copy.deepcopy(made), numpy_helper.to_array(tensor).copy()
            values[filter_] = 0
            wrong.graph.initializer[at].CopyFrom(numpy_helper.from_array(values, tensor.name))
            yield f"{tensor.name}[{filter_}]", run(wrong, images, folder)


def of_module(network: nn.Module, images: Tensor) -> Iterator[tuple[str, Answers]]:
    """The same of a network whose rounding to bf16 is simulated."""
    yield "", rounded_network(network, "bf16")(images).numpy()
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for filter_ in places(len(layer.weight)):
                wrong = copy.deepcopy(network)
                with torch.no_grad():
                    wrong.get_submodule(name).weight[filter_] = 0
                yield f"{name}[{filter_}]", rounded_network(wrong, "bf16")(images).numpy()


def places(filters: int) -> range:
    """FILTERS of them, evenly spaced."""
    return range(0, filters, -(-filters // FILTERS))


def run(made: onnx.ModelProto, images: Tensor, folder: Path) -> Answers:
    onnx.save(made, folder / "tried.onnx")
    answers: Answers = run_onnx(folder / "tried.onnx", images).numpy()
    return answers


if __name__ == "__main__":
    main()
