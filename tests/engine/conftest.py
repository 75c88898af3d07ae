"""Fixtures of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_support import only, pictures, small
from quickly import timed_at_once

import ltcompile as lt
from ltcompile.engine import host


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of one candidate, timed as briefly as can be."""
    monkeypatch.setattr(host, "candidates", only("onnxruntime"))
    monkeypatch.setattr(host, "SCREEN_S", 0.0)
    monkeypatch.setattr(host, "FINAL_S", 0.0)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "small.engine"
    with pytest.MonkeyPatch.context() as patch, timed_at_once():
        patch.setattr(host, "candidates", only("onnxruntime"))
        patch.setattr(host, "SCREEN_S", 0.0)
        lt.compile(small(), pictures(), batch=[1, 4]).save(path)
    return path
