"""Errors that one can act on: whatever is wrong with a command's words or files, it says what, where and what to do, and ends with 2.

The commands and their options are taken from the command line itself, so that a new one is tested as soon as it is there.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from commands import REFUSAL_BYTES, call, call_here
from onnx import helper
from PIL import Image
from readers import READERS

from ltcompile.cli import app, main
from ltcompile.errors import LtcompileError
from ltcompile.search.settings import sections

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = [(name, option) for name, command in COMMANDS.items() for option in command.params if option.param_type_name == "option"]
TARGETS = [(name, p) for name, command in COMMANDS.items() for p in command.params if p.param_type_name == "argument"]
FILES = [(name, target) for name, target in TARGETS if name != "study"]  # which takes a name, or none: then they are listed
WAYS_OUT = re.compile(
    r"\b(try|run|take|name|choose|write|make|pass|use|see|check|must|leave|wait|search|export|move|install|fetch|say|give|shrink|"
    r"update|should be|requires|writes one|did you mean|known:|again|instead)\b",
    re.IGNORECASE,
)


def refused(*arguments: object, names: object, cwd: Path) -> str:
    """The command ends with 2, without a traceback, naming `names`, and with a way out. What it said."""
    done = call_here(*arguments, cwd=cwd)
    message = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    assert done.returncode == 2, (arguments, done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and "this is a bug" not in message
    assert str(names) in message, (arguments, message)
    assert WAYS_OUT.search(message), (arguments, message)
    return message


def test_there_are_commands() -> None:
    searching, deploying = (
        {"find", "plan", "sweep", "compare", "study", "report", "show"},
        {"shrink", "lower", "bench", "verify", "inspect"},
    )
    assert {*searching, *deploying, "doctor"} <= set(COMMANDS)


def misused(*words: str, names: str, cwd: Path) -> None:
    """What is wrong with the words themselves is known before anything is imported."""
    done = call_here(*words, cwd=cwd)
    assert done.returncode == 2 and names.lower() in done.stderr.lower() and WAYS_OUT.search(done.stderr), done.stderr


def words(command: str) -> list[str]:
    """The command with a target, where it takes one."""
    return [command, *("x" for name, _ in TARGETS if name == command)]


def test_unknown_commands(tmp_path: Path) -> None:
    misused("shrimp", names="shrimp", cwd=tmp_path)
    misused("--fast", names="--fast", cwd=tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_flags_and_surplus_words(tmp_path: Path, command: str) -> None:
    misused(command, "--no-such-flag", names="--no-such-flag", cwd=tmp_path)
    if not any(name == command and target.nargs == -1 for name, target in TARGETS):  # some take as many as there are
        misused(*words(command), "surplus", names="surplus", cwd=tmp_path)


@pytest.mark.parametrize(("command", "target"), FILES, ids=[name for name, _ in FILES])
def test_missing_targets(tmp_path: Path, command: str, target: Any) -> None:
    misused(command, names=target.name, cwd=tmp_path)


def flag(option: Any) -> str:
    return str(max(option.opts, key=len))


def is_number(command: str, option: Any) -> bool:
    return bool(re.search(r"\b(int|float)\b", str(inspect.unwrap(COMMANDS[command].callback).__annotations__[option.name])))


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=[f"{name} {flag(option)}" for name, option in OPTIONS])
def test_wrong_values(tmp_path: Path, command: str, option: Any) -> None:
    """Numbers that are none; options without their value; values for what takes none."""
    if option.is_flag:
        misused(*words(command), f"{flag(option)}=maybe", names=flag(option), cwd=tmp_path)
        return
    misused(*words(command), flag(option), names=flag(option), cwd=tmp_path)
    if is_number(command, option):
        misused(*words(command), flag(option), "many", names=flag(option), cwd=tmp_path)


NUMBERS = [(name, flag(option)) for name, option in OPTIONS if name in ("plan", "find") and is_number(name, option)]


@pytest.mark.slow
@pytest.mark.parametrize(("command", "option"), NUMBERS, ids=[" ".join(pair) for pair in NUMBERS])
def test_numbers_out_of_their_range(tmp_path: Path, command: str, option: str) -> None:
    """They are refused, or taken; neither is a bug of ours, nor takes all there is."""
    quick = (
        ("--model", "lenet5")
        if command == "plan"
        else ("--model", "lenet5", "--image-size", 16, "--epochs", 1, "--rounds", 1, "--no-controls")
    )
    for value in ("-1", "nan", f"{10**30}")[0 if command == "plan" else 1 :]:
        done = call(command, *quick, option, value, cwd=tmp_path, memory_bytes=REFUSAL_BYTES, timeout=60)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, (value, done.stderr)


SETTINGS = [
    f"{section}.{key}".lstrip(".")
    for section, keys in sections().items()
    for key, hint in keys.items()
    if re.search(r"\b(int|float)\b", str(hint)) and "tuple" not in str(hint) and "Mapping" not in str(hint)
]


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_out_of_their_range(tmp_path: Path, setting: str) -> None:
    """The rarer numbers of `find` stand in a recipe file or behind --set."""
    for value in ("nan", f"{10**30}", "many"):
        misused("find", "--set", f"{setting}={value}", names=setting, cwd=tmp_path)


def test_there_are_numbers() -> None:
    assert len(NUMBERS) + len(SETTINGS) > 40 and len(SETTINGS) > 20


def of_the_future(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "format": 2, "new": 1}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that no command wants."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "folder").mkdir()
    (folder / "empty").touch()
    (folder / "text").write_text("hello, world\n")
    Image.new("RGB", (8, 8)).save(folder / "picture.png")
    (folder / "picture.png").rename(folder / "picture")
    (folder / "ticket").write_bytes(READERS["ticket"].whole())
    torch.save(of_the_future(torch.load(folder / "ticket", weights_only=True)), folder / "ticket-of-the-future")
    (folder / "ticket").write_bytes((folder / "ticket").read_bytes()[:-50])
    (folder / "ticket").rename(folder / "half-a-ticket")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    (folder / "onnx-of-others").write_bytes(helper.make_model(graph).SerializeToString())
    (folder / "weights").write_bytes(READERS["weights"].whole())
    (folder / "results").write_text('{"kind": "search", "format": 1}')
    (folder / "dangling").symlink_to(folder / "nowhere")
    return folder


KINDS = (
    *("folder", "empty", "text", "picture", "half-a-ticket", "ticket-of-the-future", "onnx-of-others", "weights", "results"),
    *("dangling", "missing"),
)


def targets() -> Iterator[tuple[str, str, str]]:
    """Command, kind of wrong file and a suffix that it may be taken for."""
    for command, target in FILES:
        for kind in KINDS:
            for suffix in ("", ".onnx") if target.name == "target" else ("",):
                if (command, kind) != ("inspect", "onnx-of-others"):  # it takes them
                    yield command, kind, suffix


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind", "suffix"), list(targets()))
def test_wrong_files(tmp_path: Path, wrong: Path, command: str, kind: str, suffix: str) -> None:
    path = tmp_path / f"{kind}{suffix}"
    path.symlink_to(wrong / kind)
    refused(command, path, names=path, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_weights(tmp_path: Path, wrong: Path, kind: str) -> None:
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"{kind}{suffix}"
        path.symlink_to(wrong / kind)
        refused("plan", "--model", "lenet5", "--weights", path, names=path, cwd=tmp_path)


@pytest.mark.slow
def test_places_that_cannot_be_written(tmp_path: Path, wrong: Path) -> None:
    for place in (wrong / "folder", wrong / "text/plan.json", "/proc/none/plan.json"):
        refused("plan", "--model", "lenet5", "-o", place, names=place, cwd=tmp_path)


@pytest.mark.slow
def test_wrong_data(tmp_path: Path, wrong: Path) -> None:
    for data in ("folder", "text", "empty", "missing"):
        refused("find", "--data", f"imagefolder:{wrong / data}", names=wrong / data, cwd=tmp_path)
        refused("find", "--data", "mnist", "--data-root", wrong / data, names=wrong / data, cwd=tmp_path)


@pytest.mark.slow
def test_a_run_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "runs/t").mkdir(parents=True)
    for content in ("", "[]", "{", "null", "7"):
        (tmp_path / "runs/t/config.json").write_text(content)
        refused("find", "--model", "lenet5", "--name", "t", "--resume", names="runs/t", cwd=tmp_path)


def raised(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, *flags: str) -> tuple[Any, str]:
    """Exit code and message where a command raises `error`."""
    from ltcompile.cli import doctor

    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "examine", fail)
    monkeypatch.setattr(sys, "argv", ["ltcompile", "doctor", *flags])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code, capsys.readouterr().err


class TestExitCodes:
    """Whose fault it is."""

    @pytest.mark.parametrize("kind", LtcompileError.__subclasses__())
    def test_of_our_errors(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[LtcompileError]) -> None:
        code, message = raised(monkeypatch, capsys, kind("what; what to do"))
        assert (code, message) == (2, "error: what; what to do\n")

    def test_of_files_that_the_system_withholds(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        code, message = raised(monkeypatch, capsys, PermissionError(13, "Permission denied", "secret.pt"))
        assert code == 2 and "secret.pt: Permission denied; check" in message

    def test_of_bugs(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        code, message = raised(monkeypatch, capsys, AssertionError("impossible"))
        assert code == 1 and "this is a bug in ltcompile: AssertionError: impossible" in message and "--debug" in message

    def test_of_ctrl_c(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        code, message = raised(monkeypatch, capsys, KeyboardInterrupt())
        assert code == 130 and "Traceback" not in message

    @pytest.mark.parametrize("error", [AssertionError("impossible"), LtcompileError("what")])
    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception) -> None:
        with pytest.raises(type(error)):
            raised(monkeypatch, capsys, error, "--debug")

    @pytest.mark.slow
    def test_debug_is_in_the_help(self, tmp_path: Path) -> None:
        assert "--debug" in call("--help", cwd=tmp_path).stdout
