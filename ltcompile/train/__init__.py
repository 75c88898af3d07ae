"""The one training loop, and evaluation."""

from ltcompile.train.device import autocast_dtype, pick_device
from ltcompile.train.evaluate import Evaluation, evaluate
from ltcompile.train.loop import Epoch, Progress, train

__all__ = ["Epoch", "Evaluation", "Progress", "autocast_dtype", "evaluate", "pick_device", "train"]
