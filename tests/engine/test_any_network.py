"""Engines of networks of all kinds answer as the networks do, or are refused with an error of ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_support import pictures, small
from kinds import KINDS, pruned
from torch import Tensor

import ltcompile as lt
from ltcompile.engine import Engine
from ltcompile.engine.signature import Signature
from ltcompile.errors import InvalidData, InvalidSetting
from ltcompile.lower.answers import of_network, probe
from ltcompile.numerics import compare
from ltcompile.pruned import Pruned


def differs(engine: Engine, given: Pruned, rows: int) -> str:
    inputs = probe(given.small, given.example, rows)
    args, kwargs = inputs.arguments()
    found = engine(*args, **kwargs)
    found = {"": found} if isinstance(found, Tensor) else found
    exact = of_network(given.small)(inputs)
    return compare({n: y.numpy() for n, y in found.items()}, {n: x.numpy() for n, x in exact.items()}).refusal


@pytest.mark.parametrize("kind", [kind if kind == "two inputs" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS])
def test_an_engine_answers_as_the_network(kind: str, quick: None, tmp_path: Path) -> None:
    given = pruned(kind)
    engine = lt.compile(given, batch=[1, 3])
    engine.save(tmp_path / "a.engine")
    loaded = lt.load_engine(tmp_path / "a.engine")
    for rows in (1, 2, 3, 5):
        assert not differs(engine, given, rows) and not differs(loaded, given, rows)
    again = lt.load_engine(tmp_path / "a.engine", retune=True)
    assert again.signature == engine.signature == Signature.from_json(engine.signature.to_json())


def test_other_precisions_are_of_one_tensor(quick: None) -> None:
    for kind in ("two inputs", "tokens", "detector"):
        with pytest.raises(InvalidSetting, match=r"precision=int8 on cpu is for networks that turn one float32 tensor"):
            lt.compile(pruned(kind), precision="int8")


@pytest.mark.slow
def test_inputs_by_name_and_what_is_refused(quick: None) -> None:
    given = pruned("two inputs")
    engine = lt.compile(given, batch=[2])
    image, side = torch.rand(2, 3, 8, 8), torch.randn(2, 5)
    by_name, by_place = engine(side=side, image=image), engine(image, side)
    assert all(torch.equal(by_name[name], by_place[name]) for name in ("logits", "size"))
    for args, kwargs in (
        ((image,), {}),
        ((image, side, side), {}),
        ((image,), {"other": side}),
        ((image, side[:1]), {}),
        ((image, side.half()), {}),
    ):
        with pytest.raises(InvalidData, match=r"side"):
            engine(*args, **kwargs)


@pytest.mark.slow
def test_an_output_without_rows(quick: None) -> None:
    class Total(torch.nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"each": x * 2, "mean": x.mean()}

    engine = lt.compile(Total(), torch.randn(2, 3), batch=[2])
    x = torch.randn(2, 3)
    torch.testing.assert_close(engine(x)["mean"], x.mean())
    with pytest.raises(InvalidData, match="output 'mean' has no row for each input: call with 2 rows, not 3"):
        engine(torch.randn(3, 3))


def test_what_lacks_inputs(quick: None) -> None:
    with pytest.raises(InvalidSetting, match="example= must be inputs"):
        lt.compile(small())
    with pytest.raises(InvalidData, match="holds nan"):
        lt.compile(small(), pictures() * float("nan"))
