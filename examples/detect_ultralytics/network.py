"""The network that the search in README.md cuts: `--model network.py:build`."""

from ultralytics.nn.tasks import DetectionModel


def build() -> DetectionModel:
    network = DetectionModel("yolov8n.yaml", nc=10, verbose=False)
    network.model[-1].dynamic = True  # its anchors follow the input: the file is for any batch
    return network
