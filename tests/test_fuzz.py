"""Whatever is in a file: it is read, or refused with an error of ours, soon and in little memory. bench/fuzz.py does the same at length."""

from __future__ import annotations

import random
import resource
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from readers import READERS

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).parent / "corpus"  # what once was neither read nor refused, by reader
FAILED = sorted(file for file in CORPUS.glob("*/*") if file.is_file())
FILES = 100  # for each reader
LONGEST_S, MOST_BYTES = 5.0, 1 << 30


def accepts(name: str, data: bytes) -> bool:
    began, held = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        accepted = READERS[name].accepts(data, Path(folder))
    assert time.process_time() - began < LONGEST_S
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) << 10 < MOST_BYTES
    return accepted


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name: str) -> None:
    assert accepts(name, READERS[name].whole())


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
@settings(max_examples=FILES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_spoiled_files_are_read_or_refused(name: str, data: st.DataObject) -> None:
    reader = READERS[name]
    spoiled = reader.whole()
    for seed in data.draw(st.lists(st.integers(0, 2**32), min_size=1, max_size=3)):
        try:
            spoiled = reader.spoil(spoiled, random.Random(seed))
        except Exception:  # it is too far from whole to be spoiled further
            break
    accepts(name, spoiled)


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.binary(max_size=300))
@example(b"")
@example(b"PK\x03\x04")
def test_bytes_of_chance_are_refused(name: str, data: bytes) -> None:
    assert not accepts(name, data)


@pytest.mark.parametrize("file", FAILED, ids=[f"{file.parent.name}/{file.name}" for file in FAILED])
@pytest.mark.filterwarnings("ignore")
def test_what_once_failed(file: Path) -> None:
    accepts(file.parent.name, file.read_bytes())
