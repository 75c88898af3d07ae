"""Errors of the library name parameters; the command line shows the options that set them."""

from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from ltcompile import runtimes
from ltcompile.cli import COMMANDS, app
from ltcompile.cli._flags import with_flags
from ltcompile.cli._timing_options import RUNTIMES
from ltcompile.errors import InvalidSetting
from ltcompile.search import SearchConfig

GROUP = typer.main.get_command(app)


@pytest.mark.parametrize(
    ("command", "message", "shown"),
    [
        ("find", "rounds=0: there must be at least 1", "--rounds 0: there must be at least 1"),
        ("find", "continue it with resume=True, or choose another folder=", "continue it with --resume, or choose another --name"),
        ("find", "look at keep= and only=.", "look at --keep and --set limits.only=."),
        ("find", "try lr=0.01, or precision=fp32", "try --lr 0.01, or --set train.precision=fp32"),
        ("find", "use method=edge-popup; margin_points=-1", "use --set prune.method=edge-popup; --margin -1"),
        ("find", "with strict= left out", "with --set strict= left out"),
        ("study", "continue it with resume=True; lr=3", "continue it with --resume; lr=3"),
        ("plan", "look at only=", "look at --only"),
        ("plan", "add them, or pass skip_damaged=True", "add them, or pass --skip-damaged"),
        ("bench", "add them, or pass skip_damaged=True to go without", "add them, or pass find --skip-damaged to go without"),
        ("find", "train='python x.py' is not a command line", "--train 'python x.py' is not a command line"),
        ("find", "--set train.lr=3, x='lr=3', PATTERN=SHARE", "--set train.lr=3, x='lr=3', PATTERN=SHARE"),
    ],
)
def test_parameters_become_options(command: str, message: str, shown: str) -> None:
    assert with_flags(message, GROUP.commands[command]) == shown  # type: ignore[attr-defined]


def test_the_help_of_bench_names_all_runtimes() -> None:
    listed = re.split(", | or ", RUNTIMES)
    assert sorted([*listed, "tensorrt-plan"]) == runtimes.names(), "all but the one that runs TensorRT's own files alone"
    assert {*listed[:5]} == {*runtimes.available("cpu", every=False)}


@pytest.mark.parametrize("setting", [{"rounds": 0}, {"seeds": 0}, {"rate": 2.0}, {"confidence": 2.0}, {"align": 0}, {"margin_points": -1}])
def test_a_setting_out_of_range_is_quoted(setting: dict[str, float]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(InvalidSetting, match=f"{name}={value}"):
        SearchConfig(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", COMMANDS.split())
def test_help_shows_every_word(name: str) -> None:
    """A part in square brackets, too, which would be markup."""
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "400"}).stdout
    assert all(" ".join(param.help.split()) in " ".join(shown.split()) for param in GROUP.commands[name].params if param.help)
