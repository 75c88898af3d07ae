"""What a study is made of: how large it is done, the searches that it runs, and what they left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltcompile.core.mask import WeightMask
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.study import Claim, Figure, Maps, Table
from ltcompile.data import Dataset
from ltcompile.errors import BadSetting
from ltcompile.search import SearchConfig

SIZES = ("smoke", "small", "full")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large a study is done: on which network and images, how long each training is, how often all is repeated.

    `about` says in words what that is, and how it differs from what was published. `train_images` is how many images are trained on, where
    that is not all of them. `recipe` changes the network's usual one as it is adapted to the data. A study with settings of its own extends
    this.
    """

    about: str
    model: str
    data: str
    image_size: int | None = None
    train_images: int | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 3

    def __post_init__(self) -> None:
        """Raises BadSetting where there are no seeds."""
        if self.seeds < 1:
            raise BadSetting(f"a study takes at least 1 seed, and 3 to tell a spread, not {self.seeds}")


@dataclass(frozen=True)
class StudyArm:
    """One search of a study, and the name of its folder. Seeds, and so first weights, are the same in all arms.

    `change` makes other images of those that were loaded, with a name of their own. `given` makes the search's only mask, of what the
    arms before it left, for the one seed that such a search has.
    """

    name: str
    model: str
    data: str
    image_size: int | None
    train_images: int | None
    config: SearchConfig
    recipe: Mapping[str, Any]
    change: Callable[[Dataset], Dataset] | None = None
    given: Callable[[Mapping[str, Done]], WeightMask] | None = None

    @classmethod
    def of(cls, scale: Scale, name: str, config: SearchConfig, **recipe: Any) -> StudyArm:
        """On the network and images of `scale`, by its recipe with the changes `recipe`."""
        return cls(name, scale.model, scale.data, scale.image_size, scale.train_images, config, {**scale.recipe, **recipe})


@dataclass(frozen=True)
class Done:
    """A search that has come to its end: its rows and verdict, the run folder with weights and plans or masks, and its images."""

    arm: StudyArm
    rows: Sequence[Trained]
    verdict: Verdict
    folder: Path
    data: Dataset


@dataclass(frozen=True)
class Told:
    """What a study makes of its searches; `remarks` are what a reader must know beside, `maps` are pictures."""

    claims: list[Claim]
    tables: list[Table]
    figures: list[Figure]
    remarks: list[str] = field(default_factory=list)
    maps: list[Maps] = field(default_factory=list)
