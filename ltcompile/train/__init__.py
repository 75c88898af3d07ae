"""The one training loop, and evaluation."""

from ltcompile.train.device import autocast_dtype, lay_out, memory_format, pick_device
from ltcompile.train.evaluate import Evaluation, evaluate
from ltcompile.train.loop import Epoch, Progress, Training, train
from ltcompile.train.memory import fitting

__all__ = [
    "Epoch",
    "Evaluation",
    "Progress",
    "Training",
    "autocast_dtype",
    "evaluate",
    "fitting",
    "lay_out",
    "memory_format",
    "pick_device",
    "train",
]
