"""Results as JSON files: a table that says its kind and format, and holds the fields of a dataclass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ltcompile.core.fields import SchemaError, from_json, short
from ltcompile.errors import InvalidFile, LtcompileError
from ltcompile.paths import read_json

FORMAT = 1


def kind_of(path: Path) -> str | None:
    """The kind that a JSON file says it is of, if it says one. Raises InvalidFile where it is not JSON."""
    value = read_json(path, "result of ltcompile (delete it or make it again)")
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return kind if isinstance(kind, str) else None


def read_result(
    path: str | Path,
    shapes: Mapping[str, type[Any]],
    maker: str,
    check: Callable[[Any], None] = lambda _: None,
    remedy: str = "run that again",
) -> Any:
    """The result in `path` as the dataclass that `shapes` has for its kind; `maker` is the command that writes it.

    Raises:
        InvalidFile: it is missing, of another kind or format, or damaged; or `check` raises SchemaError for it.
    """
    value = read_json(path, f"result of {maker} ({remedy})")
    try:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if not isinstance(kind, str) or kind not in shapes:
            known = " or ".join(f'"{name}"' for name in shapes)
            raise SchemaError(f'it does not say "kind": {known}')
        if value.get("format") != FORMAT:
            raise SchemaError(f"its format is {short(value.get('format'))}, this ltcompile reads format {FORMAT}")
        found = from_json({name: field for name, field in value.items() if name not in ("kind", "format")}, shapes[kind])
        check(found)
        return found
    except (SchemaError, LtcompileError, RecursionError) as error:
        raise InvalidFile(f"{path} cannot be read as a result of {maker}: {error}; {remedy}") from error
