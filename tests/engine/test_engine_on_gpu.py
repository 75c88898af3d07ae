"""Engines on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_support import pictures, small, wrong_answers
from torch import Tensor

import ltcompile as lt
from ltcompile.engine.events import cold_us, record, replays_ms
from ltcompile.numerics import TOLERANCES, largest_error

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


class TestOnGpu:
    @pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
    def test_every_way_agrees_and_the_file_comes_back(self, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        model, images = small(), pictures(8)
        engine = lt.compile(model, images, device="cuda", batch=[1, 8], precision=precision)
        for decision in engine.decisions.values():
            assert set(decision.ms) >= {"graph", "one kernel"}, decision.refused
        assert largest_error(engine(images).cpu(), model(images)) <= TOLERANCES[precision]
        engine.save(tmp_path / "a.engine")
        torch.testing.assert_close(lt.load_engine(tmp_path / "a.engine")(images), engine(images), rtol=1e-3, atol=1e-3)

    def test_replays_do_not_depend_on_what_came_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        engine = lt.compile(small(), pictures(2, 4), device="cuda", batch=[2])
        first = engine(pictures(2, 4))
        engine(torch.randn(2, 3, 4, 4))
        assert torch.equal(engine(pictures(2, 4)), first)

    def test_threads_and_their_streams_get_their_own_answers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        engine, model = lt.compile(small(), pictures(8), device="cuda", batch=[2], precision="fp32"), small()

        def on_a_stream(images: Tensor) -> Tensor:
            with torch.cuda.stream(torch.cuda.Stream()):
                return engine(images).cpu()

        for run in (lambda images: engine(images).cpu(), on_a_stream):
            assert wrong_answers(run, model, 8, 250) == 0

    def test_layers_are_timed_cold(self) -> None:
        """A copy that fits into the L2 takes longer when its source is not there."""
        x = [torch.randn(1 << 22, device="cuda") for _ in range(2)]
        times = {"copies": cold_us({"copy": lambda at: x[at].clone()}, 2, 0.05)["copy"], "same": 0.0}
        graph = record(lambda: [x[0].clone() for _ in range(32)])
        times["same"] = 1000 * replays_ms({"": graph}, 0.05)[""] / 32
        assert times["copies"] > 1.1 * times["same"]
