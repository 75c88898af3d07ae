"""How a network is trained: one dataclass, checked when built."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from ltcompile.core.records import Record
from ltcompile.errors import InvalidSetting

Schedule = Literal["step", "cosine", "triangular", "constant"]
Precision = Literal["auto", "fp32", "bf16"]
Optimizer = Literal["sgd", "adamw"]
ALWAYS_STATED = {"epochs", "batch", "lr", "momentum", "weight_decay", "schedule", "milestones", "warmup_epochs"}
ALWAYS_STATED |= {"label_smoothing", "flip", "crop_pixels", "precision", "compile"}  # at their defaults, too


@dataclass(frozen=True)
class Recipe(Record):
    """SGD with Nesterov momentum, or AdamW whose first beta is `momentum`; weight decay on matrices and filters alone, not on biases, scales and shifts.

    Epochs, batch, rate, momentum and steps are by default those of VGG-16 on CIFAR-10 in open_lth, whose momentum is not Nesterov's,
    and which decays all parameters, by 1e-4.

    `milestones` are the shares of all epochs at which a step schedule divides the rate by ten; cosine falls to zero; triangular rises
    from a fifth to the whole at 23 % and falls to 7 % (Jordan 2024, arXiv:2404.00498). `lookahead` is how many steps slow weights follow
    after (`ltcompile.training.lookahead`), and `norm_bias_rate` what the rate of batch norms' shifts is multiplied by, both from there.
    `flip` mirrors half the images, drawn at random, or with `alternate_flip` each image in every other epoch; `crop_pixels` pads by so much and
    crops at random. `distill` is the share of the loss that a teacher gives, where there is one (Hinton et al. 2015, arXiv:1503.02531); the
    layers `distill_layers` follow the teacher's of the same names, by `distill_weight` times their error (`ltcompile.training.features`). `mixup`
    is the alpha of classification's mixup (Zhang et al. 2018, arXiv:1710.09412). Gradients are clipped to the norm `clip_norm`; `ema` is the
    decay of an average of the weights over steps, which is what is validated and kept; 0 turns each off. `frozen` are regular expressions for
    whole names of layers, or of modules with all inside, that are not trained, or not from epoch `frozen_after` on, counted from 0; then a
    regulariser and lookahead still move them. `regulariser` is one of `ltcompile.prune.regularisers`, which brings channels to zero; its
    strength, and the ratio of the filters that it penalises, are its own where they are 0.
    `virtual_ranks` is the number of equal shards of each batch in data-parallel training, each with its own augmentation, dropout and batch-norm
    statistics, however many processes compute them; `sync_bn` normalises by the whole batch instead (`ltcompile.training.parallel`).
    `precision` is that of products: "fp32", "bf16" (autocast), or "auto"; `compile` is "never", a backend of torch.compile ("inductor"), or
    "auto". "auto" takes what a trial of whole steps finds faster for long trainings, and for short ones fp32 and no compilation
    (`ltcompile.training.choose_execution`). Where neither is "auto", a seed and a recipe fix the result, to the bit on one CPU.
    """

    epochs: int = 160
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "step"
    milestones: tuple[float, ...] = (0.5, 0.75)
    warmup_epochs: int = 0
    label_smoothing: float = 0.0
    flip: bool = True
    crop_pixels: int = 4
    precision: Precision = "auto"
    compile: str = "auto"
    distill: float = 0.0
    optimizer: Optimizer = "sgd"
    clip_norm: float = 0.0
    ema: float = 0.0
    mixup: float = 0.0
    frozen: tuple[str, ...] = ()
    lookahead: int = 0
    norm_bias_rate: float = 1.0
    regulariser: str = ""
    regulariser_strength: float = 0.0
    regulariser_ratio: float = 0.0
    virtual_ranks: int = 1
    sync_bn: bool = False
    distill_layers: tuple[str, ...] = ()
    distill_weight: float = 1.0
    alternate_flip: bool = False
    frozen_after: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "frozen", tuple(self.frozen))
        object.__setattr__(self, "distill_layers", tuple(self.distill_layers))
        checks = {
            f"epochs={self.epochs}: there must be at least 1": self.epochs >= 1,
            f"batch={self.batch} must be at least 2 (batch norm needs two images)": self.batch >= 2,
            f"lr={self.lr} must be above 0": 0 < self.lr < math.inf,
            f"momentum={self.momentum} must lie in [0, 1)": 0 <= self.momentum < 1,
            f"weight_decay={self.weight_decay} must be finite, and not negative": 0 <= self.weight_decay < math.inf,
            f"schedule={self.schedule}: choose one of {', '.join(get_args(Schedule))}": self.schedule in get_args(Schedule),
            f"precision={self.precision}: choose one of {', '.join(get_args(Precision))}": self.precision in get_args(Precision),
            f"compile={self.compile}: choose auto, never or the name of a torch.compile backend": _is_name(self.compile),
            f"label_smoothing={self.label_smoothing} must lie in [0, 1)": 0 <= self.label_smoothing < 1,
            f"warmup_epochs={self.warmup_epochs} must lie between 0 and epochs={self.epochs}": 0 <= self.warmup_epochs <= self.epochs,
            f"distill={self.distill}: the share of the loss lies in [0, 1]": 0 <= self.distill <= 1,
            f"distill_layers={list(self.distill_layers)}: name each layer once": len(set(self.distill_layers)) == len(self.distill_layers),
            f"distill_weight={self.distill_weight} must be finite, and above 0": 0 < self.distill_weight < math.inf,
            "distill_layers= trains projections in one process: leave virtual_ranks= out": not (
                self.distill_layers and self.virtual_ranks > 1
            ),
            f"optimizer={self.optimizer}: choose one of {', '.join(get_args(Optimizer))}": self.optimizer in get_args(Optimizer),
            f"clip_norm={self.clip_norm} must be finite, and not negative": 0 <= self.clip_norm < math.inf,
            f"ema={self.ema}: the decay of the average must lie in [0, 1)": 0 <= self.ema < 1,
            f"mixup={self.mixup} must be finite, and not negative": 0 <= self.mixup < math.inf,
            f"frozen={list(self.frozen)}: each must be a regular expression": all(map(_is_pattern, self.frozen)),
            f"lookahead={self.lookahead}: the steps must not be negative": self.lookahead >= 0,
            f"norm_bias_rate={self.norm_bias_rate} must be above 0": 0 < self.norm_bias_rate < math.inf,
            "ema= and lookahead= both average the weights: give one": not (self.ema and self.lookahead),
            f"regulariser={self.regulariser!r} must be the name of one": self.regulariser == "" or _is_name(self.regulariser),
            "regulariser= shrinks all layers, and frozen= names some to leave alone: give one": not (
                self.regulariser and self.frozen and not self.frozen_after
            ),
            f"frozen_after={self.frozen_after}: the epoch must not be negative": self.frozen_after >= 0,
            f"regulariser_strength={self.regulariser_strength} must be finite, and not negative": 0 <= self.regulariser_strength < math.inf,
            f"regulariser_ratio={self.regulariser_ratio} must lie in [0, 1)": 0 <= self.regulariser_ratio < 1,
            f"crop_pixels={self.crop_pixels} must not be negative": self.crop_pixels >= 0,
            f"virtual_ranks={self.virtual_ranks} must divide batch={self.batch} into shards of at least 2 items": self.virtual_ranks >= 1
            and self.batch % self.virtual_ranks == 0
            and self.batch >= 2 * self.virtual_ranks,
        }
        for message, holds in checks.items():
            if not holds:
                raise InvalidSetting(message)

    def to_json(self) -> dict[str, Any]:
        """Without what is off: a new setting leaves the checksums of tickets and the settings of runs as they are."""
        off = {f.name: f.default for f in fields(self) if f.name not in ALWAYS_STATED}
        return {name: value for name, value in super().to_json().items() if name not in off or value != off[name]}

    @property
    def is_taught(self) -> bool:
        """Whether a trained network takes part in the loss."""
        return self.distill > 0 or bool(self.distill_layers)

    def is_frozen(self, name: str, epoch: int = 0) -> bool:
        """Whether a parameter or module of this name is not trained in `epoch`."""
        if epoch < self.frozen_after:
            return False
        parts = name.split(".")
        wholes = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return any(re.fullmatch(pattern, whole) for pattern in self.frozen for whole in wholes)

    def fine_tuning(self) -> Recipe:
        """The recipe for weights that are trained already: at most a rate of 0.01, warmed up for an epoch while a fresh head settles."""
        return replace(self, lr=min(self.lr, 0.01), warmup_epochs=min(1, self.epochs - 1))

    def rate_at(self, epoch: float) -> float:
        """The learning rate at a point in time, in epochs (fractions are steps within one)."""
        if epoch < self.warmup_epochs:
            return self.lr * max(epoch, 1e-3) / self.warmup_epochs
        if self.schedule == "constant":
            return self.lr
        if self.schedule == "step":
            return self.lr * 0.1 ** sum(epoch >= m * self.epochs for m in self.milestones)
        if self.schedule == "triangular":
            peak, share = 0.23, epoch / self.epochs
            return self.lr * (0.2 + 0.8 * share / peak if share < peak else 1 - 0.93 * min((share - peak) / (1 - peak), 1.0))
        done = (epoch - self.warmup_epochs) / max(self.epochs - self.warmup_epochs, 1)
        return 0.5 * self.lr * (1 + math.cos(math.pi * min(done, 1.0)))


def _is_pattern(text: object) -> bool:
    try:
        re.compile(text)  # type: ignore[call-overload]
    except (re.error, TypeError):
        return False
    return True


def _is_name(text: object) -> bool:
    return isinstance(text, str) and text.isidentifier()
