"""Fixtures of the engine's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_support import only, pictures, small
from quickly import timed_at_once

import ltcompile as lt
from ltcompile.engine import host
from ltcompile.engine.cpu import native


@pytest.fixture(scope="module", autouse=True)
def unoptimised() -> Iterator[None]:
    """C++ is compiled without optimisation."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "FLAGS", ("-O0", "-march=native", "-std=c++17"))
        yield


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
