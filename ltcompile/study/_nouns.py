"""What a study is made of: how large it is done, the searches that it runs, and what they left."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ltcompile.core.fields import table
from ltcompile.core.mask import WeightMask
from ltcompile.core.records import Trained, Verdict
from ltcompile.core.study import Claim, Estimate, Figure, Maps, Picture, Series, Table
from ltcompile.data import Dataset
from ltcompile.errors import InvalidSetting
from ltcompile.search import SearchConfig, margins_of

SIZES = ("smoke", "small", "medium", "full")  # medium where papers/NAME.toml has it
MOST_SEEDS = 1000


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
        """Raises InvalidSetting where there are no seeds, or too many."""
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise InvalidSetting(
                f"seeds={self.seeds}: a study takes at least 1 seed, 3 for an interval that means much, and {MOST_SEEDS:,} at most"
            )


@dataclass(frozen=True, kw_only=True)
class PruningScale(Scale):
    """`rounds` that each drop the share `rate` of what is left; weight rewinding goes back to `rewind_epoch`."""

    rounds: int
    rate: float
    rewind_epoch: int = 0

    @property
    def margin(self) -> float:
        """In points: what Ma et al. 2021 call "about as good" on these images."""
        return margins_of(self.data).about

    def config(self, **settings: Any) -> SearchConfig:
        """These rounds, seeds and margin, with `settings` in their place or besides."""
        epoch = self.rewind_epoch if settings.get("rewind") == "weight" else 0
        usual = {"rounds": self.rounds, "rate": self.rate, "rewind_epoch": epoch, "seeds": self.seeds, "margin_points": self.margin}
        return SearchConfig(**{**usual, **settings})


S = TypeVar("S", bound=Scale)


def scales(name: str, shape: type[S]) -> dict[str, S]:
    """The settings of the study `name` at each scale of papers/NAME.toml; `shape` is its kind of `Scale`."""
    found = texts(name)
    return {size: table(found[size], shape, size) for size in SIZES if size in found}


class Paper:
    """The texts of a study, from papers/NAME.toml: `remarks`, [claims.KEY], [tables.KEY], [figures.KEY], [maps.KEY]. A text may hold {words}.

    A claim has a `statement`, a `number`, and where they differ from the defaults `side` ("above"), `bound` (0), `unit` ("points") and
    `source`. The others have the fields of `Table`, `Figure` and `Maps`.
    """

    def __init__(self, name: str, source: str) -> None:
        self.texts, self.source = texts(name), source

    def _of(self, kind: str, key: str, words: Mapping[str, object]) -> dict[str, Any]:
        def formatted(value: Any) -> Any:
            if isinstance(value, list):
                return [formatted(each) for each in value]
            return value.format(**words) if isinstance(value, str) else value

        found: dict[str, Any] = formatted([*self.texts[kind][key].values()])
        return dict(zip(self.texts[kind][key], found, strict=True))

    def remarks(self, **words: object) -> list[str]:
        return [text.format(**words) for text in self.texts["remarks"]]

    def claim(self, key: str, found: Estimate, bound: float | None = None, **words: object) -> Claim:
        """The claim `key` with its answer, by `found`."""
        given = {"source": self.source, "side": "above", **self._of("claims", key, words)}
        return Claim.judged(**given | ({} if bound is None else {"bound": bound}), found=found)

    def table(self, key: str, rows: list[list[str]], *more_columns: str, **words: object) -> Table:
        found = self._of("tables", key, words)
        return Table(**{**found, "columns": [*found["columns"], *more_columns]}, rows=rows)

    def figure(self, key: str, series: list[Series], **words: object) -> Figure:
        return Figure(**{"name": key, **self._of("figures", key, words)}, series=series)

    def maps(self, key: str, pictures: list[Picture], **words: object) -> Maps:
        return Maps(**{"name": key, **self._of("maps", key, words)}, pictures=pictures)


def texts(name: str) -> dict[str, Any]:
    """What papers/NAME.toml holds."""
    file = Path(__file__).with_name("papers") / f"{name.rpartition('.')[2]}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class StudyArm:
    """One search of a study, and the name of its folder. Seeds, and so first weights, are the same in all arms.

    `change` makes other images of those that were loaded, with a name of their own. `mask` makes the search's only mask, of what the
    searches `after` which it comes left, for the one seed that such a search has.
    """

    name: str
    model: str
    data: str
    image_size: int | None
    train_images: int | None
    config: SearchConfig
    recipe: Mapping[str, Any]
    change: Callable[[Dataset], Dataset] | None = None
    mask: Callable[[Mapping[str, Done]], WeightMask] | None = None
    after: tuple[str, ...] = ()

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
class Findings:
    """What a study makes of its searches; `remarks` are what a reader must know, `maps` are pictures."""

    claims: list[Claim]
    tables: list[Table]
    figures: list[Figure]
    remarks: list[str] = field(default_factory=list)
    maps: list[Maps] = field(default_factory=list)
