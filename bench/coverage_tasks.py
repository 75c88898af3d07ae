"""Public networks of all kinds but classifiers of images: planned, cut to half of their channels, written as ONNX, compared with PyTorch.

    python bench/coverage_tasks.py              # all
    python bench/coverage_tasks.py yolo raft    # those whose names hold one of these

Detection, segmentation, video and optical flow of torchvision; segmentation_models_pytorch, MONAI, Ultralytics' YOLO and Hugging Face
Transformers, each with random weights, at small sizes. A network whose package is missing is left out of the table; install them with

    pip install segmentation-models-pytorch monai ultralytics transformers

Each network runs in a process of its own. Rows are kept in bench/results/coverage-tasks.json as they come; a network that has one is not
run again unless it is named. The table is bench/results/coverage-tasks.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _common import RESULTS

ROWS = RESULTS / "coverage-tasks.json"
LIMIT_S = 1800
RATIO = 0.5
CUT, FILE = 1e-8, 1e-4  # what shrink allows the cut network in float64, and what counts as equal here of the file, both relative
PACKAGES = {
    "torchvision": "torchvision",
    "smp": "segmentation_models_pytorch",
    "monai": "monai",
    "yolo": "ultralytics",
    "hf": "transformers",
}
HEAD = ("network", "inputs", "groups", "params left", "MACs left", "cut against mask", "ONNX Runtime against PyTorch", "left alone")

TORCHVISION = """
fasterrcnn_resnet50_fpn fasterrcnn_mobilenet_v3_large_320_fpn maskrcnn_resnet50_fpn keypointrcnn_resnet50_fpn fcos_resnet50_fpn
retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 ssd300_vgg16 ssdlite320_mobilenet_v3_large
fcn_resnet50 deeplabv3_resnet50 deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
r3d_18 mc3_18 r2plus1d_18 s3d mvit_v2_s swin3d_t raft_small raft_large
"""
SMP = """
Unet:resnet18 Unet:mobilenet_v2 Unet:efficientnet-b0 UnetPlusPlus:resnet18 MAnet:resnet18 Linknet:resnet18 FPN:resnet18 PSPNet:resnet18
PAN:resnet18 DeepLabV3:resnet18 DeepLabV3Plus:resnet18 UPerNet:resnet18 Segformer:mit_b0
"""
YOLO = """
yolov3-tiny yolov5n yolov6n yolov8n yolov8n-p2 yolov8n-ghost yolov8n-seg yolov8n-pose yolov8n-obb yolov9t yolov10n yolo11n yolo11n-seg
yolo12n yolo26n rtdetr-resnet50
"""
MONAI = "UNet BasicUNet DynUNet SegResNet VNet AttentionUnet UNETR SwinUNETR HighResNet DenseNet121 resnet18 FlexibleUNet"
HF = "vit deit swin segformer convnextv2 resnet mobilevit detr rt_detr yolos dpt bert"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of names")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(row_of(given.names[0])))
        return
    for name in names():
        wanted = any(part in name for part in given.names)
        if (given.names and not wanted) or (name in rows() and not wanted):
            continue
        if importlib.util.find_spec(PACKAGES[name.split(":")[0]]) is None:
            print(f"{name}: {PACKAGES[name.split(':')[0]]} is not installed", flush=True)
            continue
        row = in_process(name)
        print(line(name, row), flush=True)
        write(rows() | {name: row})
    print(json.dumps(summary(rows())))


def names() -> list[str]:
    kinds = {"torchvision": TORCHVISION, "smp": SMP, "monai": MONAI, "yolo": YOLO, "hf": HF}
    return [f"{kind}:{name}" for kind, listed in kinds.items() for name in listed.split()]


def rows() -> dict[str, Any]:
    return json.loads(ROWS.read_text())["rows"] if ROWS.exists() else {}


def in_process(name: str) -> dict[str, Any]:
    """The row that a process of its own gives."""
    try:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {LIMIT_S} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def row_of(name: str) -> dict[str, Any]:
    """Plan, cut and shrink one network; both comparisons are those of shrink, which refuses a network that fails them."""
    import torch

    import ltcompile as lt
    from ltcompile.errors import LtcompileError

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    kind, wanted = name.split(":", 1)
    model, example = {"torchvision": torchvision_network, "smp": smp_network, "monai": monai_network, "yolo": yolo, "hf": hf}[kind](wanted)
    model = spread_out(model.eval())
    began = time.perf_counter()
    plan = lt.plan(model, example, RATIO)
    planned = time.perf_counter()
    pruned = lt.Pruned.of_cut(model, plan, example)
    dense, small = lt.size(model, example), lt.size(pruned.small, example)
    row: dict[str, Any] = {
        "inputs": shapes(example),
        "groups": len(plan.groups),
        "left_alone": dict(Counter(reason for reason in plan.frozen.values() if "output" not in reason)),
        "params_left": small.params / dense.params,
        "macs_left": small.macs / dense.macs,
        "plan_seconds": planned - began,
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            record = lt.shrink(pruned, Path(folder) / "small.onnx", dynamic=()).record
        except LtcompileError as error:
            return row | {"refused": str(error).replace(f"{folder}/", "").splitlines()[0][:300]}
    return row | {"cut_error": record["equality_error"], "file_error": record["onnx_error"]}


def spread_out(model: Any) -> Any:
    """The network with parameters and statistics that are neither zero nor one, so that an error shows."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in [*model.named_parameters(), *model.named_buffers()]:
            if (
                value.is_floating_point()
                and value.dim() == 1
                and any(part in key for part in ("weight", "bias", "running", "gamma", "beta"))
            ):
                positive = any(part in key for part in ("weight", "var", "gamma"))
                value.copy_((0.5 if positive else -0.2) + (1.0 if positive else 0.4) * torch.rand(value.shape, generator=generator))
    return model


def shapes(example: Any) -> str:
    """Such as "2x3x64x64, 2x3x64x64"."""
    if isinstance(example, dict):
        return ", ".join(f"{key} {shapes(value)}" for key, value in example.items())
    return ", ".join(map(shapes, example)) if isinstance(example, tuple) else "x".join(map(str, example.shape))


def torchvision_network(name: str) -> tuple[Any, Any]:
    """A detector without its list of images and its selection of boxes, which depend on values: what is between them."""
    import torch
    from torchvision import models

    section: Any
    for section in (models.detection, models.segmentation, models.video, models.optical_flow):
        if name in models.list_models(module=section):
            break
    backbone = {"weights_backbone": None} if section in (models.detection, models.segmentation) else {}
    model = models.get_model(name, weights=None, **backbone)
    if section is models.detection:
        side = 320 if "320" in name else 300 if "300" in name else 128
        return detector(model), torch.randn(2, 3, side, side)
    if section is models.optical_flow:
        return flow(model), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    if section is models.video:
        side = 224 if name in ("mvit_v2_s", "s3d") else 64
        return model, torch.randn(1, 3, 16, side, side)
    return model, torch.randn(2, 3, 96, 96)


def detector(model: Any) -> Any:
    import torch
    from torch import nn

    class OneStage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = model.backbone, model.head

        def forward(self, images: torch.Tensor) -> Any:
            features = self.backbone(images)
            return self.head([features] if isinstance(features, torch.Tensor) else list(features.values()))

    class TwoStages(nn.Module):
        """The regions are a fixed part of the finest features."""

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.proposals = model.backbone, model.rpn.head
            self.head, self.predictor = model.roi_heads.box_head, model.roi_heads.box_predictor
            self.more = nn.ModuleList(getattr(model.roi_heads, f"{part}_{end}") for part in extra for end in ("head", "predictor"))

        def forward(self, images: torch.Tensor) -> Any:
            features = list(self.backbone(images).values())
            region = nn.functional.adaptive_avg_pool2d(features[0], 7)
            found = [*self.proposals(features), self.predictor(self.head(region))]
            for head, predictor in zip(self.more[::2], self.more[1::2], strict=True):
                found.append(predictor(head(nn.functional.adaptive_avg_pool2d(features[0], 14))))
            return found

    if not hasattr(model, "rpn"):
        return OneStage()
    extra = [part for part in ("mask", "keypoint") if getattr(model.roi_heads, f"{part}_head", None) is not None]
    return TwoStages()


def flow(model: Any) -> Any:
    """RAFT with two of its updates."""
    import torch
    from torch import nn

    class Flow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.raft = model

        def forward(self, first: torch.Tensor, second: torch.Tensor) -> Any:
            return self.raft(first, second, num_flow_updates=2)[-1]

    return Flow()


def smp_network(name: str) -> tuple[Any, Any]:
    import segmentation_models_pytorch as smp
    import torch

    decoder, encoder = name.split(":")
    return getattr(smp, decoder)(encoder, encoder_weights=None, classes=5), torch.randn(2, 3, 128, 128)


def monai_network(name: str) -> tuple[Any, Any]:
    import torch
    from monai.networks import nets

    volume = torch.randn(1, 1, 32, 32, 32)
    makers: dict[str, Callable[[], Any]] = {
        "UNet": lambda: nets.UNet(3, 1, 3, (16, 32, 64, 128), (2, 2, 2), num_res_units=2),
        "BasicUNet": lambda: nets.BasicUNet(3, 1, 3),
        "DynUNet": lambda: nets.DynUNet(3, 1, 3, [3] * 4, [1, 2, 2, 2], [2, 2, 2]),
        "SegResNet": lambda: nets.SegResNet(in_channels=1, out_channels=3),
        "VNet": lambda: nets.VNet(3, 1, 3),
        "AttentionUnet": lambda: nets.AttentionUnet(3, 1, 3, (16, 32, 64), (2, 2)),
        "UNETR": lambda: nets.UNETR(1, 3, (32, 32, 32), hidden_size=192, mlp_dim=768, num_heads=6),
        "SwinUNETR": lambda: nets.SwinUNETR(in_channels=1, out_channels=3, feature_size=24),
        "HighResNet": lambda: nets.HighResNet(3, 1, 3),
        "DenseNet121": lambda: nets.DenseNet121(3, 1, 3),
        "resnet18": lambda: nets.resnet18(spatial_dims=3, n_input_channels=1, num_classes=3),
        "FlexibleUNet": lambda: nets.FlexibleUNet(3, 3, "efficientnet-b0"),
    }
    wide = {
        "FlexibleUNet": torch.randn(2, 3, 64, 64),
        "SwinUNETR": torch.randn(1, 1, 64, 64, 64),
        "DenseNet121": torch.randn(1, 1, 64, 64, 64),
    }
    return makers[name](), wide.get(name, volume)


def yolo(name: str) -> tuple[Any, Any]:
    """The network as it trains: maps by scale, without the selection of boxes."""
    import torch
    from ultralytics.nn import tasks

    kinds = {"-seg": tasks.SegmentationModel, "-pose": tasks.PoseModel, "-obb": tasks.OBBModel, "rtdetr": tasks.RTDETRDetectionModel}
    made = next((kind for part, kind in kinds.items() if part in name), tasks.DetectionModel)(f"{name}.yaml", verbose=False)
    return made, torch.rand(2, 3, 128, 128)


def hf(name: str) -> tuple[Any, Any]:
    import torch
    import transformers as t

    small = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 192}
    image, picture = torch.randn(2, 3, 64, 64), {"image_size": 64, "patch_size": 8}
    makers: dict[str, Callable[[], Any]] = {
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**small, **picture)),
        "deit": lambda: t.DeiTForImageClassification(t.DeiTConfig(**small, **picture)),
        "swin": lambda: t.SwinForImageClassification(t.SwinConfig(image_size=64, window_size=4, embed_dim=48, depths=[2, 2], num_heads=[3, 6])),
        "segformer": lambda: t.SegformerForSemanticSegmentation(t.SegformerConfig(num_labels=5)),
        "convnextv2": lambda: t.ConvNextV2ForImageClassification(t.ConvNextV2Config(depths=[2, 2, 2, 2], hidden_sizes=[32, 64, 96, 128])),
        "resnet": lambda: t.ResNetForImageClassification(t.ResNetConfig(depths=[2, 2, 2, 2])),
        "mobilevit": lambda: t.MobileViTForImageClassification(t.MobileViTConfig(image_size=64)),
        "detr": lambda: t.DetrForObjectDetection(
            t.DetrConfig(use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=t.ResNetConfig(out_features=["stage4"]),
                         encoder_layers=2, decoder_layers=2, d_model=64, encoder_ffn_dim=128, decoder_ffn_dim=128, num_queries=20)
        ),
        "rt_detr": lambda: t.RTDetrForObjectDetection(t.RTDetrConfig(d_model=64, encoder_hidden_dim=64, encoder_ffn_dim=128, decoder_ffn_dim=128,
                                                                     encoder_in_channels=[512, 1024, 2048], decoder_in_channels=[64, 64, 64],
                                                                     decoder_layers=2, num_queries=20, num_denoising=0)),
        "yolos": lambda: t.YolosForObjectDetection(t.YolosConfig(**small, image_size=[64, 64], patch_size=8, num_detection_tokens=10)),
        "dpt": lambda: t.DPTForDepthEstimation(t.DPTConfig(**small | {"num_hidden_layers": 4}, **picture, backbone_out_indices=[0, 1, 2, 3],
                                                           neck_hidden_sizes=[24, 48, 96, 96], fusion_hidden_size=32)),
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**small, vocab_size=200)),
    }  # fmt: skip
    if name == "bert":
        return makers[name](), {"input_ids": torch.randint(0, 200, (2, 16)), "attention_mask": torch.ones(2, 16, dtype=torch.long)}
    return makers[name](), {"pixel_values": torch.randn(2, 3, 128, 128) if name in ("segformer", "detr", "rt_detr") else image}


def line(name: str, row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"| {name} | failed: {row['failed']} |"
    left = "; ".join(f"{count}x {reason}" for reason, count in row["left_alone"].items()) or "-"
    cells = [name, row["inputs"], str(row["groups"]), f"{row['params_left']:.2f}", f"{row['macs_left']:.2f}"]
    cells += [f"refused: {row['refused']}", "-"] if "refused" in row else [f"{row['cut_error']:.0e}", f"{row['file_error']:.0e}"]
    return f"| {' | '.join([*cells, left])} |"


def summary(done: dict[str, Any]) -> dict[str, Any]:
    worked = [row for row in done.values() if "cut_error" in row]
    compared = [row for row in worked if row["file_error"] > 0]  # outputs that are all zero agree whatever was cut
    equal = sum(row["cut_error"] <= CUT and row["file_error"] <= FILE for row in compared)
    return {
        "networks": len(done),
        "cut, written and equal": equal,
        "cut and written, but agree to 0 exactly, as zeros do": len(worked) - len(compared),
        "with channels left alone": sum(bool(row["left_alone"]) for row in worked),
    }


def write(done: dict[str, Any]) -> None:
    from ltcompile.core.records import provenance
    from ltcompile.paths import write_json, write_text

    origin = {**provenance(), "command": "python bench/coverage_tasks.py"}
    write_json(ROWS, {"rows": done, "summary": summary(done), "provenance": origin})
    lines = [f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(line(name, row) for name, row in done.items())]
    counts = "\n".join(f"- {key}: {value}" for key, value in summary(done).items())
    about = (
        "Half of the channels of each group; made by `python bench/coverage_tasks.py`. Errors are relative; the cut is compared in float64."
    )
    write_text(
        RESULTS / "coverage-tasks.md",
        "\n".join(["# Coverage: detection, segmentation, video, flow, volumes, text", "", about, "", counts, "", *lines, ""]),
    )


if __name__ == "__main__":
    main()
