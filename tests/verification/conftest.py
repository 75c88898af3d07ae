"""A folder with a small and a dense network, on a machine that counts as idle."""

from __future__ import annotations

from pathlib import Path

import pytest
from claims import network


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine counts as idle."""
    monkeypatch.setattr("ltcompile.verification.checks.busy_share", lambda: 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.onnx").write_bytes(network(2))
    (tmp_path / "dense.onnx").write_bytes(network(128))
    return tmp_path
