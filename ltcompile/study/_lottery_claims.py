"""What Frankle & Carbin say of sparse networks, as bounds on numbers, each at the share of the weights that it is said of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ltcompile.core.study import Side
from ltcompile.search import margins_of
from ltcompile.study._statistics import BySeed, difference

SOURCE = "Frankle & Carbin 2019, arXiv:1803.03635"
LATER = "Frankle et al. 2019, arXiv:1903.01611"  # who reset to an early step
BACK_POINTS = 0.15  # of LeNet on MNIST: half of the best gain that was published

Curve = Literal["iterative", "oneshot", "late", "plain"]
Measure = Literal["accuracy", "stop", "gap"]
Place = tuple[Curve, str]  # a curve, and an arm on it


def ratio(ours: BySeed, theirs: BySeed) -> dict[int, float]:
    """ours / theirs, of every seed that has both."""
    return {seed: ours[seed] / theirs[seed] for seed in sorted(ours.keys() & theirs.keys())}


@dataclass(frozen=True)
class Number:
    """A comparison of two arms, seed by seed, each of the level of its own curve that is nearest to a share of weights."""

    words: str
    unit: str
    measure: Measure
    ours: Place
    theirs: Place
    compare: Callable[[BySeed, BySeed], BySeed] = difference


TICKET: Place = ("iterative", "ticket")
DENSE: Place = ("iterative", "dense")
REINIT: Place = ("iterative", "reinit")
SHUFFLED: Place = ("iterative", "shuffled")
SHOT: Place = ("oneshot", "ticket")
SHOT_DENSE: Place = ("oneshot", "dense")
LATE: Place = ("late", "ticket")
PLAIN: Place = ("plain", "ticket")
STOP, ACCURACY, GAP = "epochs to the minimum of validation loss", "test accuracy", "training accuracy - test accuracy"
NUMBERS = {
    "gain": Number(f"{ACCURACY}, ticket - dense network", "points", "accuracy", TICKET, DENSE),
    "over reinit": Number(f"{ACCURACY}, ticket - its mask on fresh weights", "points", "accuracy", TICKET, REINIT),
    "over shuffled": Number(f"{ACCURACY}, ticket - a random mask on its own weights", "points", "accuracy", TICKET, SHUFFLED),
    "speed": Number(f"{STOP}, dense network / ticket", "times", "stop", DENSE, TICKET, ratio),
    "speed over reinit": Number(f"{STOP}, its mask on fresh weights / ticket", "times", "stop", REINIT, TICKET, ratio),
    "gap": Number(f"{GAP}, ticket - dense network", "points", "gap", TICKET, DENSE),
    "one-shot gain": Number(f"{ACCURACY}, one-shot ticket - dense network", "points", "accuracy", SHOT, SHOT_DENSE),
    "one-shot speed": Number(f"{STOP}, dense network / one-shot ticket", "times", "stop", SHOT_DENSE, SHOT, ratio),
    "over one-shot": Number(f"{ACCURACY}, ticket of rounds - one-shot ticket", "points", "accuracy", TICKET, SHOT),
    "late": Number(f"{ACCURACY}, ticket of weights after an epoch - ticket of first weights", "points", "accuracy", LATE, TICKET),
    "over plain": Number(f"{ACCURACY}, ticket with dropout - ticket without", "points", "accuracy", TICKET, PLAIN),
}


@dataclass(frozen=True)
class Said:
    """A claim: on which side of `bound` a number of `NUMBERS` lies where about `left` percent of the weights are."""

    statement: str
    number: str
    left: float
    bound: float = 0.0
    side: Side = "above"
    source: str = SOURCE


LENET = (
    Said("LeNet with 21 % of its weights is more accurate than the dense network", "gain", 21.1),
    Said("LeNet with 21 % stops sooner than the dense network (published: 38 % earlier, 1.61 times as fast)", "speed", 21.1, 1.0),
    Said("LeNet with 3.6 % is no more accurate than the dense network", "gain", 3.6, BACK_POINTS, "below"),
    Said("LeNet with 3.6 % is not less accurate than the dense network", "gain", 3.6, -BACK_POINTS),
    Said("LeNet with 21 % is more accurate than its mask on fresh weights (published: half a point)", "over reinit", 21.1),
    Said("LeNet with 21 % stops sooner than its mask on fresh weights (published: 2.51 times as fast)", "speed over reinit", 21.1, 1.0),
    Said("LeNet with 21 % is more accurate than a random mask on its own weights", "over shuffled", 21.1),
    Said("LeNet with 21 % has a smaller gap between training and test accuracy than the dense network", "gap", 21.1, side="below"),
)
LENET_SHOTS = (
    Said("LeNet with 21 % left at one shot is more accurate than the dense network (published: down to 5.17 %)", "one-shot gain", 21.1),
    Said("LeNet with 21 % left at one shot stops sooner than the dense network (published: 67.5 to 17.6 %)", "one-shot speed", 21.1, 1.0),
    Said("LeNet with 3.6 % left by rounds is more accurate than at one shot", "over one-shot", 3.6),
)
LENET_LATE = (
    Said("LeNet with 3.6 % is better when reset to weights after an early epoch than to first weights", "late", 3.6, source=LATER),
)


def conv(name: str, fastest: float, times: float, best: float, points: float) -> tuple[Said, ...]:
    """What is said of a convolutional network; published: so many times as fast, and points better, at shares of weights in percent."""
    at, there = f"{name} with {best:g} % of its weights", f"{name} with {fastest:g} % of its weights"
    return (
        Said(f"{there} stops sooner than the dense network (published: {times:g} times as fast)", "speed", fastest, 1.0),
        Said(f"{at} is more accurate than the dense network (published: by {points:g} points)", "gain", best),
        Said(f"{name} with 2 % of its weights is still more accurate than the dense network", "gain", 2.0),
        Said(f"{at} is more accurate than its mask on fresh weights", "over reinit", best),
        Said(f"{there} stops sooner than its mask on fresh weights", "speed over reinit", fastest, 1.0),
        Said(f"{at} is more accurate than a random mask on its own weights", "over shuffled", best),
        Said(f"{at} has a smaller gap between training and test accuracy than the dense network", "gap", best, side="below"),
    )


def dropped(name: str, best: float, points: float) -> tuple[Said, ...]:
    """What is said of one that trains with dropout. Where its best ticket was is not published: that of the one without stands for it."""
    at = f"{name} with dropout and {best:g} % of its weights"
    return (
        Said(f"{at} is more accurate than the dense network with dropout (published: by up to {points:g} points)", "gain", best),
        Said(f"{at} is more accurate than a ticket without dropout", "over plain", best),
        Said(f"{at} stops sooner than the dense network with dropout", "speed", best, 1.0),
    )


def high(name: str, left: float, margin: float) -> tuple[Said, ...]:
    return (
        Said(
            f"{name} at rate 0.1 without warm-up: a ticket is not better than its mask on fresh weights",
            "over reinit",
            left,
            margin,
            "below",
        ),
    )


def warm(name: str, left: float) -> tuple[Said, ...]:
    return (
        Said(f"{name} with warm-up: with {left:g} % of its weights a ticket is more accurate than the dense network", "gain", left),
        Said(f"{name} with warm-up: with {left:g} % a ticket is more accurate than its mask on fresh weights", "over reinit", left),
    )


SAID: dict[str, tuple[Said, ...]] = {
    "lenet": LENET,
    "lenet-shots": LENET_SHOTS,
    "lenet-late": LENET_LATE,
    "conv2": conv("Conv-2", 8.8, 3.5, 4.6, 3.4),
    "conv2-dropout": dropped("Conv-2", 4.6, 2.3),
    "conv4": conv("Conv-4", 9.2, 3.5, 11.1, 3.5),
    "conv4-dropout": dropped("Conv-4", 11.1, 4.6),
    "conv6": conv("Conv-6", 15.1, 2.5, 26.4, 3.3),
    "conv6-dropout": dropped("Conv-6", 26.4, 4.7),
    "vgg19": high("VGG-19", 3.5, margins_of("cifar10").about),
    "vgg19-low": (
        Said("VGG-19 at rate 0.01: with 3.5 % of its weights a ticket is within a point of the dense network", "gain", 3.5, -1.0),
        Said("VGG-19 at rate 0.01: with 3.5 % a ticket is more accurate than its mask on fresh weights", "over reinit", 3.5),
    ),
    "vgg19-warm": warm("VGG-19", 1.5),
    "resnet": high("Resnet-18", 21.9, margins_of("cifar10").about),
    "resnet-low": (
        Said("Resnet-18 at rate 0.01: with 22 % of its weights a ticket is more accurate than the dense network", "gain", 21.9),
        Said("Resnet-18 at rate 0.01: with 22 % a ticket is more accurate than its mask on fresh weights", "over reinit", 21.9),
    ),
    "resnet-warm": warm("Resnet-18", 11.8),
}
