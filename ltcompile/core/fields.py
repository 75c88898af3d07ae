"""Values from JSON as typed fields: what does not fit is named here, with its place, and never met later as a traceback."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, TypeVar

from ltcompile.errors import LtcompileError

T = TypeVar("T")
UNWRITABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]"
)  # what a terminal would obey (but tab and newline), or cannot be encoded
LARGEST = 1e18  # beyond it a number is damage, and would overflow the arithmetic that follows


class SchemaError(ValueError):
    """A value that is not what its field holds."""


def from_json(value: Any, hint: Any, where: str = "") -> Any:
    """`value` (from JSON) as the type `hint`; raises SchemaError with the place of the first thing that does not fit.

    Dataclasses with a `from_json` read themselves. Lists become tuples where the hint says so.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(value, where)
    if dataclasses.is_dataclass(hint):
        return _noun(value, hint, where)
    if origin in (typing.Union, UnionType):
        return None if value is None else from_json(value, args[0], where)
    if origin is Literal:
        return value if isinstance(value, str) and value in args else reject(value, f"one of {', '.join(args)}", where)
    if origin is list:
        items = value if isinstance(value, list) else reject(value, "a list", where)
        return [from_json(item, args[0], f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is tuple:
        return _tuple(value, args, where)
    if origin in (dict, Mapping):
        pairs = value if isinstance(value, Mapping) else reject(value, "a table", where)
        return {_text(key, where): from_json(item, args[1], f"{where}.{key}") for key, item in pairs.items()}
    return _scalar(value, hint, where)


def table(value: Any, shape: type[T], where: str = "") -> T:
    """The dataclass `shape` from a table of its fields; others are left out. Raises SchemaError."""
    if not isinstance(value, Mapping):
        reject(value, "a table", where)
    fields = dataclasses.fields(shape)  # type: ignore[arg-type]  # it is a dataclass
    needed = {f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING}
    if missing := sorted(needed - set(value)):
        raise SchemaError(f"{where or 'it'} lacks {', '.join(missing)}")
    hints = _hints(shape)  # type: ignore[arg-type]  # classes are hashable
    return shape(**{f.name: from_json(value[f.name], hints[f.name], f"{where}.{f.name}".lstrip(".")) for f in fields if f.name in value})


@functools.cache
def _hints(shape: Any) -> dict[str, Any]:
    return typing.get_type_hints(shape)


def _noun(value: Any, shape: Any, where: str) -> Any:
    if not hasattr(shape, "from_json"):
        return table(value, shape, where)
    try:
        return shape.from_json(value if isinstance(value, Mapping) else reject(value, "a table", where))
    except LtcompileError as error:
        raise SchemaError(f"{where}: {error}".removeprefix(": ")) from error


def _tuple(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        reject(value, "a list", where)
    hints = args[:1] * len(value) if args[-1] is Ellipsis else args
    if len(hints) != len(value):
        reject(list(value), f"a list of {len(hints)}", where)
    return tuple(from_json(item, hint, f"{where}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True)))


def _scalar(value: Any, hint: type, where: str) -> Any:
    if hint is str:
        return _text(value, where)
    if hint is bool:
        return value if isinstance(value, bool) else reject(value, "true or false", where)
    if isinstance(value, bool) or not isinstance(value, int if hint is int else (int, float)):
        reject(value, "a whole number" if hint is int else "a number", where)
    return value if abs(value) <= LARGEST else reject(value, "a number of sensible size", where)  # NaN fails this too


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        reject(value, "text", where)
    if UNWRITABLE.search(value):
        reject(value, "text without control characters and halves of characters", where)
    return str(value)


def _plain(value: Any, where: str) -> Any:
    """Free-form settings: any JSON that can be written down again."""
    if isinstance(value, Mapping):
        return {_text(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    return _scalar(value, str if isinstance(value, str) else float, where)


def reject(value: Any, wanted: str, where: str) -> typing.NoReturn:
    """Raises SchemaError: `where` holds `value`, and not what is `wanted`."""
    raise SchemaError(f"{where or 'it'} is {short(value)}, not {wanted}")


def short(value: Any) -> str:
    """A value as a message can hold it, whatever it is."""
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."
