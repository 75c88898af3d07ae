"""Every code block of the documents runs as it is written: the blocks of a page in order, in one folder, in one process.

A block whose title begins with "Not run" (the page shows it) is only parsed: it needs a GPU, another machine or minutes. Pages of the
site start with the files that First steps leaves. Other kinds of block (text, json) are not looked at; TOML is parsed.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer.main

from ltcompile.cli import app, main
from ltcompile.data import scenes

ROOT = Path(__file__).resolve().parents[2]
FIRST = ROOT / "docs" / "first-steps.md"
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "reference")
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@dataclass(frozen=True)
class Block:
    language: str
    runs: bool
    text: str


def blocks(page: Path) -> list[Block]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(language, 'title="Not run' not in rest, text) for language, rest, text in found]


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, without comments."""
    return [words for line in text.replace("\\\n", " ").splitlines() if (words := shlex.split(line, comments=True))]


def parse(words: list[str]) -> None:
    """Raises where there is no such command, option or make target."""
    program, *arguments = [word for word in words if not word.startswith("PYTHONPATH=")]
    if program == "ltcompile":
        command = typer.main.get_command(app)
        with command.make_context("ltcompile", list(arguments)) as context:
            name, found, rest = command.resolve_command(context, list(arguments))  # type: ignore[attr-defined]
            found.make_context(name, rest, parent=context)
    elif program == "make":
        assert {a for a in arguments if "=" not in a} <= TARGETS, arguments
    else:
        assert program in ("pip", "python", "git", "cd", "source", "export", "g++"), program


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """One command in this process, as the console script runs it; it must end with 0."""
    if words[0] == "PYTHONPATH=.":
        monkeypatch.syspath_prepend(Path.cwd())
        words = words[1:]
    if words[0] != "ltcompile":
        return parse(words)
    monkeypatch.setattr(sys, "argv", list(words))
    try:
        main()
    except SystemExit as end:
        out = capfd.readouterr()
        assert not end.code, f"{shlex.join(words)} ended with {end.code}\n{out.out}\n{out.err}"


def execute(page: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "__page__"}
    for block in blocks(page):
        if block.language == "python":
            code = compile(block.text, str(page), "exec")
            if block.runs:
                exec(code, names)
        elif block.language == "sh":
            for words in commands(block.text):
                run(words, monkeypatch, capfd) if block.runs else parse(words)
        elif block.language == "toml":
            tomllib.loads(block.text)


@pytest.fixture(scope="module")
def first_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the first page leaves its files; the first test fills it."""
    return tmp_path_factory.mktemp("first-steps")


@pytest.fixture
def folder(first_steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Path:
    """A copy of what the first page leaves, where scenes are few."""
    monkeypatch.setattr(scenes, "COUNTS", {"train": 32, "val": 16, "test": 16})
    if not any(first_steps.iterdir()):
        monkeypatch.chdir(first_steps)
        execute(FIRST, monkeypatch, capfd)
    shutil.copytree(first_steps, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_the_blocks_of_a_page_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    if page != FIRST:
        execute(page, monkeypatch, capfd)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_commands_of_a_document_parse(document: Path) -> None:
    for block in blocks(document):
        if block.language == "python":
            compile(block.text, str(document), "exec")
        elif block.language == "sh":
            for words in commands(block.text):
                parse(words)


def test_a_wrong_option_and_an_unknown_command_are_seen() -> None:
    for line in ("ltcompile find --no-such-option", "ltcompile no-such-command", "make no-such-target"):
        with pytest.raises((Exception, AssertionError)):
            parse(shlex.split(line))


def test_most_blocks_run() -> None:
    """A block is only parsed for a reason; if most were, this file would test little."""
    runnable = [block.runs for page in PAGES for block in blocks(page) if block.language in ("python", "sh")]
    assert len(runnable) > 30 and sum(runnable) > len(runnable) / 2
