"""Golden values: what is masked in them, how two of them differ, and how a renamed key is distinguished from a changed value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

# Keys whose values are times, dates, versions, or follow from them. The golden file itself marks them, as "<type>": a key that is renamed
# stays masked by its place.
VOLATILE = re.compile(
    r"seconds|.*_seconds|.*_s|ms|ms_.*|.*_ms|date|commit|command|versions|machine|busy_share|peak_bytes|runs|speedup.*|sha256|checksum"
    r"|.*_checksum|producer|joules.*|onnx_error|max_error|error|details|energy"
)
# Values that measurements decide, of which not even the type is the same each time.
UNDECIDED = re.compile(r"lead.*|runner_up|by|on_front|tie")
# Only on the same machine are values equal to the bit. Elsewhere numbers lie this close, hashes are skipped, and texts agree but for their figures.
RELATIVE, ABSOLUTE = 0.1, 0.05
FIGURES = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
HEXADECIMAL = re.compile(r"[0-9a-f]{32,}")


class Unlike(Exception):
    """Two golden values differ by more than the names of keys."""


def masked(value: Any, places: tuple[str, ...] = (), path: str = "", *, undecided: bool = False) -> Any:
    """`value` with "<type>" in place of what differs from run to run; `places` are regular expressions for whole paths such as "pick/name"."""
    if undecided or any(re.fullmatch(place, path) for place in places):
        return "<any>"
    if isinstance(value, dict):
        return {key: _of_key(key, item, places, f"{path}/{key}".lstrip("/")) for key, item in value.items()}
    if isinstance(value, list):
        return [masked(item, places, f"{path}/{i}".lstrip("/")) for i, item in enumerate(value)]
    return value


def _of_key(key: str, value: Any, places: tuple[str, ...], path: str) -> Any:
    if VOLATILE.fullmatch(key) and value is not None:
        return f"<{type(value).__name__}>"
    return masked(value, places, path, undecided=bool(UNDECIDED.fullmatch(key)))


def differences(old: Any, new: Any, path: str = "", *, exact: bool = True) -> Iterator[str]:
    """Lines "path: old → new", one for each value that is missing, new or changed."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            place = f"{path}/{key}".lstrip("/")
            if key in old and key in new:
                yield from differences(old[key], new[key], place, exact=exact)
            else:
                yield f"{place}: {short(old[key]) if key in old else 'absent'} → {short(new[key]) if key in new else 'absent'}"
    elif isinstance(old, list) and isinstance(new, list):
        if not exact and all(isinstance(item, int) for item in [*old, *new]):
            if not _near(len(old), len(new)):
                yield f"{path}: {len(old)} items → {len(new)} items"
        elif len(old) != len(new):
            yield f"{path}: {len(old)} items → {len(new)} items, {short(old)} → {short(new)}"
        else:
            for i, (before, after) in enumerate(zip(old, new, strict=True)):
                yield from differences(before, after, f"{path}/{i}".lstrip("/"), exact=exact)
    elif not same(old, new, exact=exact):
        yield f"{path}: {short(old)} → {short(new)}"


def without_bits(value: Any) -> Any:
    """`value` with "<any>" in place of hashes of floating-point values."""
    if isinstance(value, dict):
        return {key: without_bits(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_bits(item) for item in value]
    return "<any>" if isinstance(value, str) and value.startswith("bits:") else value


def same(old: Any, new: Any, *, exact: bool = True, reworded: bool = False) -> bool:
    """Whether two leaves agree; a masked one agrees with all of its type."""
    if isinstance(old, str) and re.fullmatch(r"<\w+>", old):
        return old in ("<any>", new, f"<{type(new).__name__}>")
    if isinstance(old, str) and isinstance(new, str) and old != new:
        if reworded and old.startswith("text:") and new.startswith("text:"):
            return True
        if reworded and " " in old + new:
            return sorted(FIGURES.findall(old)) == sorted(FIGURES.findall(new))
        if not exact:
            return bool(HEXADECIMAL.fullmatch(old) and HEXADECIMAL.fullmatch(new)) or (
                " " in old and FIGURES.sub("", old) == FIGURES.sub("", new)
            )
    if not exact and type(old) is type(new) and isinstance(old, int | float) and not isinstance(old, bool):
        return _near(old, new)
    return type(old) is type(new) and bool(old == new)


def _near(old: float, new: float) -> bool:
    return abs(old - new) <= ABSOLUTE + RELATIVE * max(abs(old), abs(new))


def renamed(old: Any, new: Any, note: Callable[[str], None], path: str = "", *, reworded: bool = False) -> Any:
    """`new` with the masks of `old`, where they differ in the names of keys alone, of which each is noted.

    With `reworded`, texts may differ too, so long as they hold the same figures.

    Raises:
        Unlike: a value differs.
    """
    if isinstance(old, dict) and isinstance(new, dict) and len(old) == len(new):
        return _renamed_keys(old, new, note, path, reworded)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [renamed(a, b, note, f"{path}/{i}".lstrip("/"), reworded=reworded) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    if isinstance(old, dict | list) and not isinstance(new, str):
        raise Unlike(f"{path}: {short(old)} → {short(new)}")
    if not same(old, new, reworded=reworded):
        raise Unlike(f"{path}: {short(old)} → {short(new)}")
    if old != new and not (isinstance(old, str) and old.startswith("<")):
        note(f"{path}: {short(old)} → {short(new)}")
    return old if isinstance(old, str) and re.fullmatch(r"<\w+>", old) else new


def _renamed_keys(old: dict[str, Any], new: dict[str, Any], note: Callable[[str], None], path: str, reworded: bool) -> dict[str, Any]:
    pairs: dict[str, tuple[str, Any]] = {}
    for key in (key for key in old if key in new):
        pairs[key] = key, renamed(old[key], new[key], note, f"{path}/{key}".lstrip("/"), reworded=reworded)
    left = [key for key in new if key not in old]
    # What is masked agrees with much: it takes what the others leave.
    for key in sorted((key for key in old if key not in new), key=lambda key: isinstance(old[key], str) and old[key].startswith("<")):
        place = f"{path}/{key}".lstrip("/")
        for candidate in left:
            notes: list[str] = []
            try:
                value = renamed(old[key], new[candidate], notes.append, f"{path}/{candidate}".lstrip("/"), reworded=reworded)
            except Unlike:
                continue
            for line in (f"{place} is now {candidate}", *notes):
                note(line)
            pairs[candidate] = candidate, value
            left.remove(candidate)
            break
        else:
            raise Unlike(f"{place}: {short(old[key])} → absent; new there: {', '.join(left) or 'nothing'}")
    return {key: pairs[key][1] for key in new}


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:100]} … {text[-50:]}"
