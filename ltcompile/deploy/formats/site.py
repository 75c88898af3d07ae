"""A static page that runs the network in the browser, by ONNX Runtime Web: index.html and what it needs, in a folder of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ltcompile.core.pictures import COLOURS, Answer, to_png
from ltcompile.core.task import Task
from ltcompile.deploy.formats import metadata, onnx
from ltcompile.deploy.job import ShrinkJob
from ltcompile.deploy.judges import rows_of
from ltcompile.errors import InvalidFile, InvalidModel, InvalidSetting
from ltcompile.lower.answers import Run, of_network
from ltcompile.lower.inputs import Inputs
from ltcompile.numerics import TOLERANCES
from ltcompile.paths import write_bytes, write_json
from ltcompile.pruned import Pruned
from ltcompile.runtimes import _web
from ltcompile.runtimes._convert import ends

SUFFIX = ".html"
PRECISIONS = ("fp32", "fp16")
SHOWN = 4  # images
OURS = ("page.js", "LICENSE-onnxruntime-web")  # of ltcompile/deploy/site, next to the page itself
FILES = ("network.onnx", "page.json", "answers.bin", *OURS, *_web.FILES)
MARK = '<meta name="generator" content="ltcompile">'
CENTRES = ("heat", "size", "offset")  # outputs of a detector that the page's own code turns into boxes


@dataclass(frozen=True)
class _Shown:
    """Images (N, C, H, W) as uint8, what is correct for each where that is known, and what their numbers mean."""

    images: Tensor
    truth: list[Answer]
    task: str
    class_names: list[str]
    mean: list[float]
    std: list[float]

    def prepared(self) -> Tensor:
        """The images as the network takes them."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (self.images.float() / 255 - mean) / std


def unavailable() -> str | None:
    """Why no page can be written here and what to do, or None."""
    return _web.missing()


def files(output: Path) -> list[Path]:
    """The page and all that it needs."""
    return [output, *(output.with_name(name) for name in FILES)]


def write(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> None:
    """Raises InvalidModel where the network does not take images, or cannot be exported; InvalidFile where another page is there."""
    if job.output.is_file() and MARK not in job.output.read_text(errors="replace"):
        raise InvalidFile(f"{job.output} is a page that ltcompile did not write; name another folder")
    if not job.output.exists() and (there := [path for path in files(job.output) if path.exists()]):
        raise InvalidFile(f"{there[0]} is there, and no page that it belongs to; name another folder, or remove it")
    if not job.any_batch:
        raise InvalidSetting("a page runs one image at a time; keep batch among the dynamic axes")
    shown = _shown(pruned, job)
    onnx.write(network, pruned, replace(job, output=(file := job.output.with_name("network.onnx"))))
    expected = _expected(pruned, shown)
    outputs = [end.name for end in ends(file)[1]]
    texts = metadata(pruned, job)
    page = {
        "kind": "site",
        "format": 1,
        "title": " on ".join(filter(None, (_model(pruned), texts.get("data", "")))),
        "task": shown.task,
        "precision": job.precision,
        "tolerance": TOLERANCES[job.precision],
        "class_names": shown.class_names,
        "colours": COLOURS,
        "shape": list(shown.images.shape[1:]),
        "mean": shown.mean,
        "std": shown.std,
        "input": ends(file)[0][0].name,
        "outputs": [{"name": name, "shape": list(value.shape[1:])} for name, value in zip(outputs, expected.values(), strict=True)],
        "decodes": set(CENTRES) <= set(outputs),
        "samples": [_sample(at, shown, job, pruned, set(CENTRES) <= set(outputs)) for at in range(len(shown.images))],
    }
    rows = [value[at].float().contiguous() for at in range(len(shown.images)) for value in expected.values()]
    write_bytes(job.output.with_name("answers.bin"), b"".join(row.numpy().astype("<f4").tobytes() for row in rows))
    for name in _web.FILES:
        write_bytes(job.output.with_name(name), (_web.folder() / name).read_bytes())
    for name in OURS:
        write_bytes(job.output.with_name(name), _ours(name))
    write_json(job.output.with_name("page.json"), page)
    write_bytes(job.output, _ours("index.html"))


def reader(network: nn.Module, pruned: Pruned, job: ShrinkJob) -> Run:
    """The page's network in ONNX Runtime here; the page compares what the browser computes."""
    return onnx.reader(network, pruned, replace(job, output=job.output.with_name("network.onnx")))


def _ours(name: str) -> bytes:
    return resources.files("ltcompile.deploy").joinpath("site", name).read_bytes()


def _model(pruned: Pruned) -> str:
    return str(json.loads(pruned.provenance["model"])["name"]) if "model" in pruned.provenance else type(pruned.small).__name__


def _sample(at: int, shown: _Shown, job: ShrinkJob, pruned: Pruned, decodes: bool) -> dict[str, Any]:
    """One image, what is correct, and PyTorch's boxes where the page does not find them itself."""
    found = {"image": to_png(shown.images[at]), "truth": shown.truth[at].to_json() if shown.truth else None}
    if shown.task == "detection" and not decodes and isinstance(job.images, Task):
        found["torch"] = job.images.answers(pruned.small.eval(), _part(job.images), SHOWN, torch.device("cpu"))[at].to_json()
    return found


def _part(task: Task) -> Any:
    return "test" if task.sizes.get("test") else "val"


def _shown(pruned: Pruned, job: ShrinkJob) -> _Shown:
    """The first images of a task, or of any inputs. Raises InvalidModel where the network takes something else."""
    inputs, texts = Inputs.of(pruned.small, pruned.example), pruned.preprocessing
    first = inputs.tensors[0]
    if len(inputs.tensors) != 1 or first.dtype != torch.float32 or first.dim() != 4 or first.shape[1] not in (1, 3):
        raise InvalidModel(f"a page shows grey or RGB images, (N, 1 or 3, H, W), and the network takes {inputs.names}; write .onnx instead")
    truth: list[Answer] = []
    if isinstance(job.images, Task):
        part, description = _part(job.images), job.images.description
        rows = next(iter(job.images.batches(part, SHOWN, torch.device("cpu"))))[0]
        truth = job.images.answers(None, part, SHOWN, torch.device("cpu"))
        task, names, mean, std = description.task, description.class_names, description.mean, description.std
    else:
        given = cast(Any, job.images) if job.images is not None else [pruned.example]
        rows = rows_of(pruned.small, given).tensors[0][:SHOWN]
        names, task = json.loads(texts.get("class_names", "[]")), texts.get("task", "")
        low, high = float(rows.min()), float(rows.max())
        scale = 1 / ((high - low) or 1.0)
        mean, std = (json.loads(texts[name]) if name in texts else None for name in ("mean", "std"))
        if mean is None or std is None:  # black is the smallest number, white the largest
            mean, std = [-low * scale] * rows.shape[1], [scale] * rows.shape[1]
    if tuple(rows.shape[1:]) != tuple(first.shape[1:]):
        raise InvalidSetting(f"images= gives {tuple(rows.shape[1:])}, and the network takes {tuple(first.shape[1:])}; pass other images")
    centre, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
    pixels = (255 * (rows.cpu() * spread + centre)).round().clamp(0, 255).to(torch.uint8)
    return _Shown(pixels, truth, task or _task_of(pruned), list(names), list(mean), list(std))


def _task_of(pruned: Pruned) -> str:
    """By the shape of the only output: scores, maps of scores, or images; "" where it is none of them."""
    with torch.no_grad():
        found = list(of_network(pruned.small.eval())(Inputs.of(pruned.small, pruned.example).on_cpu()).values())
    if len(found) != 1 or found[0].dim() not in (2, 4):
        return ""
    return "classification" if found[0].dim() == 2 else "image-to-image" if found[0].shape[1] in (1, 3) else "segmentation"


def _expected(pruned: Pruned, shown: _Shown) -> Mapping[str, Tensor]:
    """What PyTorch answers to the images."""
    given = Inputs.of(pruned.small, pruned.example).on_cpu()
    return of_network(pruned.small.eval())(given.resized(len(shown.images)).with_tensors([shown.prepared()]))
