"""The public networks of bench/coverage_tasks.py, each with random weights, and inputs of small sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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


def torchvision_network(name: str) -> tuple[Any, Any]:
    """A detector without its list of images and its last selection of boxes, which depend on values: what is between them."""
    import torch
    from torchvision import models

    import ltcompile as lt

    section: Any
    for section in (models.detection, models.segmentation, models.video, models.optical_flow):
        if name in models.list_models(module=section):
            break
    backbone = {"weights_backbone": None} if section in (models.detection, models.segmentation) else {}
    model = models.get_model(name, weights=None, **backbone)
    if section is models.detection:
        side = 320 if "320" in name else 300 if "300" in name else 128
        faster = name.startswith("fasterrcnn")  # with its proposals
        return lt.build_model(f"torchvision:{name}", 90, 3, side) if faster else detector(model), torch.randn(2, 3, side, side)
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
        """With masks or keypoints; the regions are a fixed part of the finest features."""

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


BUILDERS: dict[str, tuple[str, Callable[[str], tuple[Any, Any]]]] = {  # kind -> names, and what builds a network and its inputs
    "torchvision": (TORCHVISION, torchvision_network),
    "smp": (SMP, smp_network),
    "monai": (MONAI, monai_network),
    "yolo": (YOLO, yolo),
    "hf": (HF, hf),
}
