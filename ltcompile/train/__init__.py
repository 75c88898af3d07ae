"""The one training loop, and evaluation."""

from ltcompile.train.device import lay_out, memory_format, multiplies_bf16, pick_device
from ltcompile.train.evaluate import Evaluation, evaluate
from ltcompile.train.execution import Execution, choose_execution
from ltcompile.train.loop import Epoch, Progress, Training, train
from ltcompile.train.memory import fitting

__all__ = [
    "Epoch",
    "Evaluation",
    "Execution",
    "Progress",
    "Training",
    "choose_execution",
    "evaluate",
    "fitting",
    "lay_out",
    "memory_format",
    "multiplies_bf16",
    "pick_device",
    "train",
]
