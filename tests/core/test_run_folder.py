"""One class knows the layout of a run folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ltcompile as lt
from ltcompile.core.arm import Arm
from ltcompile.core.run_folder import RunFolder
from ltcompile.errors import InvalidFile, TicketMismatch

RUN = RunFolder("runs/x")
NAMES = {path.name for path in vars(RUN).values() if isinstance(path, Path) and path != RUN.path} | {
    RUN.early(0).name,
    RUN.training(Arm(0, "dense", 0)).name,
}
ELSEWHERE = {"verification/matching.py"}  # names claims next to any file, without a run


def test_no_other_module_names_its_files() -> None:
    root, found = Path(lt.__file__).parent, []
    for file in root.rglob("*.py"):
        module = file.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(file.read_text())) if module not in {"core/run_folder.py", *ELSEWHERE} else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lstrip("/") in NAMES:
                found.append(f"{module}:{node.lineno}: {node.value}")
    assert not found and len(NAMES) == 21


def test_a_run_begins_once_and_resumes_with_its_settings(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin({"rounds": 2, "path": (0.5,)}, resume=True)
    assert run.begun
    run.begin({"rounds": 2, "path": (0.5,)}, resume=True)
    with pytest.raises(InvalidFile, match="holds a run already; continue it with resume=True"):
        run.begin({"rounds": 2, "path": (0.5,)}, resume=False)
    with pytest.raises(TicketMismatch, match="rounds: 2 there, 3 requested"):
        run.begin({"rounds": 3, "path": (0.5,)}, resume=True)
    with pytest.raises(TicketMismatch, match=r"\(recipe\.lr: 0\.1 there, 0\.2 requested\)"):
        other = RunFolder(tmp_path / "other")
        other.begin({"recipe": {"lr": 0.1, "epochs": 3}}, resume=False)
        other.begin({"recipe": {"lr": 0.2, "epochs": 3}}, resume=True)


def test_dense_networks_are_copied_where_there_are_none(tmp_path: Path) -> None:
    source, target, dense = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b"), Arm(1, "dense", 0)
    for path in (source.execution, source.training(dense), source.early(1)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("there")
    target.training(dense).parent.mkdir(parents=True)
    target.training(dense).write_text("here")
    target.copy_dense(source, range(3))
    assert target.training(dense).read_text() == "here", "what is there stays"
    assert target.execution.read_text() == target.early(1).read_text() == "there" and not target.early(2).exists()
