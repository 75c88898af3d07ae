"""Settings of a search as a TOML file (`find --recipe FILE`, `find --set KEY=VALUE`): data, checked key by key.

    model = "vgg16-quarter"         # top level: what the search is of
    [train]                         # fields of Recipe
    [prune]                         # how the network is cut: fields of SearchConfig
    [limits]                        # fields of Limits
    [search]                        # seeds, controls and the verdict: fields of SearchConfig

A target of measured time or energy is `target_speedup = 3`, `target_latency = "0.2ms"` or `target_energy = "5mJ"` in [prune].
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltcompile.core.fields import SchemaError, from_json
from ltcompile.core.recipe import Recipe
from ltcompile.errors import InvalidFile, InvalidSetting
from ltcompile.prune.limits import Limits
from ltcompile.search.config import SearchConfig

TOP = {"task": str, "model": str, "data": str, "image_size": Any, "train_images": int, "weights": str, "strict": bool}
TARGETS = ("target_macs", "target_params", "target_speedup", "target_latency", "target_energy")
TIMED = {"target_speedup": float, "target_latency": str, "target_energy": str}  # turned into shares of the dense network by a profile


def sections() -> dict[str, dict[str, Any]]:
    """Section -> key -> type; the top level is the section ""."""
    config, limits = typing.get_type_hints(SearchConfig), {f.name for f in dataclasses.fields(Limits)}
    search = ("seed", "seeds", "controls", "full_curve", "margin_points", "confidence")
    prune = {name: hint for name, hint in config.items() if name not in {*limits, *search, "target_time"}}
    return {
        "": dict(TOP),
        "train": typing.get_type_hints(Recipe),
        "prune": prune | TIMED,
        "limits": {name: config[name] for name in config if name in limits},
        "search": {name: config[name] for name in search},
    }


@dataclass(frozen=True)
class SearchSettings:
    """Section -> key -> value, every one known and of its type; `source` names the file in errors."""

    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    source: str = "--set"

    @classmethod
    def load(cls, path: str | Path) -> SearchSettings:
        """The settings in a TOML file. Raises InvalidFile where it cannot be read; InvalidSetting where a key is unknown or its value of another type."""
        try:
            found = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise InvalidFile(f"{path} cannot be read as a recipe ({error}); see recipes/ for examples") from error
        sections = {name: value for name, value in found.items() if isinstance(value, dict)}
        top = {name: value for name, value in found.items() if name not in sections}
        return cls._checked({"": top, **sections}, str(path))

    @classmethod
    def parse(cls, words: list[str]) -> SearchSettings:
        """The settings in words such as `train.distill=0.5`; text needs no quotes. Raises InvalidSetting."""
        values: dict[str, dict[str, Any]] = {}
        for word in words:
            name, equals, text = word.partition("=")
            if not equals:
                raise InvalidSetting(f"--set takes KEY=VALUE, as in train.distill=0.5, not {word!r}")
            section, _, key = name.strip().rpartition(".")
            try:
                value = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                value = text
            values.setdefault(section, {})[key] = value
        return cls._checked(values, "--set")

    @classmethod
    def _checked(cls, values: Mapping[str, Mapping[str, Any]], source: str) -> SearchSettings:
        known, found = sections(), {}
        for section, table in values.items():
            if section not in known:
                raise _unknown(source, section, [name for name in known if name], "section")
            for key in table:
                if key not in known[section]:
                    raise _unknown(source, f"{section}.{key}".lstrip("."), sorted(known[section]), "key")
            try:
                found[section] = {
                    key: from_json(value, known[section][key], f"{section}.{key}".lstrip(".")) for key, value in table.items()
                }
            except SchemaError as error:
                raise InvalidSetting(f"{source}: {error}; give it such a value") from error
        return cls(found, source)

    def section(self, name: str) -> dict[str, Any]:
        return dict(self.values.get(name, {}))

    def overridden_by(self, other: SearchSettings) -> SearchSettings:
        """These settings with those of `other` in their place; a target or rate there replaces all of them here, and where they are measured."""
        values = {name: self.section(name) for name in (*self.values, *other.values)}
        new = other.section("prune")
        if new.keys() & {"rate", *TARGETS}:
            values["prune"] = {key: value for key, value in values["prune"].items() if key not in {"rate", "on", *TARGETS}}
        for name, table in other.values.items():
            values[name] |= table
        return SearchSettings(values, self.source if self.values else other.source)

    def recipe(self, usual: Recipe) -> Recipe:
        """`usual` with [train]; a warm-up that is not set never outlasts the epochs. Raises InvalidSetting."""
        train = self.section("train")
        if "epochs" in train and "warmup_epochs" not in train:
            train["warmup_epochs"] = min(usual.warmup_epochs, max(0, train["epochs"] - 1))
        with self._naming_source():
            return dataclasses.replace(usual, **train)

    def config(self, **measured: Any) -> SearchConfig:
        """The config of [prune], [limits] and [search]; `measured` stands in place of a target of time or energy. Raises InvalidSetting."""
        prune = {key: value for key, value in self.section("prune").items() if key not in TIMED}
        with self._naming_source():
            return SearchConfig(**{**prune, **self.section("limits"), **self.section("search"), **measured})

    @contextlib.contextmanager
    def _naming_source(self) -> Iterator[None]:
        """Prefixes an error that names one of the settings with their source."""
        try:
            yield
        except InvalidSetting as error:
            keys = [key for table in self.values.values() for key in table]
            if self.source == "--set" or not any(re.search(rf"\b{key}\b", str(error)) for key in keys):
                raise
            raise InvalidSetting(f"{self.source}: {error}") from error


def _unknown(source: str, name: str, known: list[str], kind: str) -> InvalidSetting:
    near = difflib.get_close_matches(name.rpartition(".")[2], known, n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return InvalidSetting(f"{source}: unknown {kind} {name!r}.{hint} Known: {', '.join(known)}")
