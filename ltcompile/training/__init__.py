"""The one training loop, and evaluation."""

from ltcompile.training.device import memory_format, multiplies_bf16, pick_device, to_memory_format
from ltcompile.training.evaluate import Evaluation, evaluate
from ltcompile.training.execution import Execution, choose_execution, settled
from ltcompile.training.loop import Epoch, Progress, Training, train
from ltcompile.training.memory import fitting
from ltcompile.training.trainer import ArmTraining, Outcome, Trainer

__all__ = [
    "ArmTraining",
    "Epoch",
    "Evaluation",
    "Execution",
    "Outcome",
    "Progress",
    "Trainer",
    "Training",
    "choose_execution",
    "evaluate",
    "fitting",
    "memory_format",
    "multiplies_bf16",
    "pick_device",
    "settled",
    "to_memory_format",
    "train",
]
