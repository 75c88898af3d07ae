"""Deployments print and parse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltcompile import registry
from ltcompile.core.deployment import DEVICES, MOST_IMAGES, PRECISIONS, Deployment
from ltcompile.errors import InvalidSetting

RUNTIMES = [*registry.names("ltcompile.runtimes"), "engine"]


@given(st.sampled_from(DEVICES), st.sampled_from(RUNTIMES), st.integers(1, MOST_IMAGES), st.sampled_from(PRECISIONS), st.integers(0, 64))
def test_targets_are_read_as_they_are_written(device: str, runtime: str, batch: int, precision: str, threads: int) -> None:
    target = Deployment(device, runtime, batch, precision, threads if device == "cpu" else 0)
    assert Deployment.parse(str(target)) == target == Deployment.from_json(target.to_json())
    for parts in range(1, 6):
        begun = Deployment.parse(":".join(str(target).split(":")[:parts]))
        rest = Deployment(device)
        assert begun == Deployment(*[getattr(target if i < parts else rest, name) for i, name in enumerate(target.to_json())])


@given(
    st.lists(st.sampled_from([*DEVICES, *RUNTIMES, *PRECISIONS, "b1", "t2", "t0", "b0", "b-1", "8", "b99999999", "", "cpu "]), max_size=6)
)
def test_targets_are_read_or_refused(parts: list[str]) -> None:
    text = ":".join(parts)
    try:
        target = Deployment.parse(text)
    except InvalidSetting as error:
        assert "known:" in str(error) or "write" in str(error) or "take" in str(error)
    else:
        assert str(target).startswith(text.strip())


def test_near_misses_are_named() -> None:
    for text, says in (("cup", "did you mean cpu"), ("cpu:onnxruntim", "mean onnxruntime"), ("cpu:eager:1", "as in b1")):
        with pytest.raises(InvalidSetting, match=says):
            Deployment.parse(text)
