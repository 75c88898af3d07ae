"""Code and documents use the field's standard terms: no word of tests/support/dialect.txt."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIST = ROOT / "tests/support/dialect.txt"
PLACES = ("ltcompile", "kernels", "models", "bench", "tests", "docs", "examples")
SUFFIXES = {".py", ".md", ".toml", ".j2"}
FILES_OF_OTHERS = ("ort.wasm.bundle.min.mjs",)


@cache
def entries() -> list[tuple[str, str]]:
    """(word, what to write instead), longest words first."""
    lines = [line.split("|") for line in LIST.read_text().splitlines() if line and not line.startswith("#")]
    found = [(word.strip(), instead.strip()) for word, instead in lines]
    return sorted(found, key=lambda entry: -len(entry[0]))


@cache
def pattern() -> re.Pattern[str]:
    """Matches any of the words, in prose and in names (`emptied`, `is_emptied`). A word with capitals matches the same capitals only."""
    stars = [word.replace("*", "[a-z]*").replace("[A-Z]", "[A-Z][a-z]*").replace(" ", r"[\s#]+") for word, _ in entries()]
    forms = [star if word != word.lower() else f"(?i:{star})" for star, (word, _) in zip(stars, entries(), strict=True)]
    each = "|".join(f"(?P<w{i}>{form})" for i, form in enumerate(forms))
    return re.compile(rf"(?<![a-zA-Z])(?:{each})(?![a-z])")


@cache
def sieve() -> re.Pattern[str]:
    """Matches wherever a word may begin, in lower case and much faster."""
    return re.compile("|".join(word.lower().replace("*", "").replace("[a-z]", "").replace(" ", r"[\s#]+") for word, _ in entries()))


def violations(text: str, path: str) -> Iterator[str]:
    """`path:line: word; write ...` for each word of the list in `text`."""
    for name in FILES_OF_OTHERS:
        text = text.replace(name, "")
    lower = text.lower()
    if all(lower[max(0, match.start() - 1)].isalpha() and match.start() for match in sieve().finditer(lower)):
        return
    for match in pattern().finditer(text):
        _, instead = entries()[int((match.lastgroup or "")[1:])]
        yield f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}; write: {instead}"


def files() -> list[Path]:
    """The sources and documents of the checkout, except results and this test."""
    found = {*ROOT.glob("*"), *(path for place in PLACES for path in (ROOT / place).resolve().rglob("*"))}
    kept = {p for p in found if p.suffix in SUFFIXES and p.is_file() and not p.is_relative_to(ROOT / "bench/results")}
    return sorted(kept - {Path(__file__).resolve()})


def test_no_word_of_the_dialect_is_left() -> None:
    checked = files()
    assert len(checked) > 300
    found = [line for p in checked for line in violations(p.read_text(), p.relative_to(ROOT).as_posix())]
    assert not found, f"{len(found)} words of {LIST.name}:\n" + "\n".join(found[:40])


@pytest.mark.parametrize(
    "text", ["nobody", "def nobody_reads(): ...", '"Nobody"', "# go\n# on", "class StaleThing: ...", "x = BadValue", "goes  on"]
)
def test_the_check_finds(text: str) -> None:
    assert next(violations(f"first line\n{text}", "ltcompile/some.py")).startswith("ltcompile/some.py:2")


@pytest.mark.parametrize("text", ["peoples", "bad value", "a stale file", "ongoing on"])
def test_the_check_passes(text: str) -> None:
    assert not list(violations(text, "ltcompile/some.py"))
