"""Modules have one purpose, and so are short."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
MOST_LINES = 350


def test_modules_are_short() -> None:
    modules = [p for place in ("ltcompile", "kernels", "models", "bench") for p in (ROOT / place).rglob("*.py")]
    assert len(modules) > 300
    lines = {p.relative_to(ROOT).as_posix(): len(p.read_text().splitlines()) for p in modules}
    found = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not found, f"more than {MOST_LINES} lines: {found}"
