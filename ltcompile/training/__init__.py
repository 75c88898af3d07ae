"""The one training loop, for every task."""

from ltcompile.training.batch import call, in_fp32, predictions, split, to_layout
from ltcompile.training.device import memory_format, multiplies_bf16, pick_device, to_memory_format
from ltcompile.training.execution import Execution, choose_execution, settled
from ltcompile.training.loop import Checkpoint, Epoch, Progress, Training, train
from ltcompile.training.memory import fitting
from ltcompile.training.trainer import ArmTraining, DefaultTrainer, Outcome, Trainer

__all__ = [
    "ArmTraining",
    "Checkpoint",
    "DefaultTrainer",
    "Epoch",
    "Execution",
    "Outcome",
    "Progress",
    "Trainer",
    "Training",
    "call",
    "choose_execution",
    "fitting",
    "in_fp32",
    "memory_format",
    "multiplies_bf16",
    "pick_device",
    "predictions",
    "settled",
    "split",
    "to_layout",
    "to_memory_format",
    "train",
]
