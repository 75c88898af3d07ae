"""A pytest plugin for `bench/gpu.py`: one shard of the tests in this process, and a row for each as soon as it has run."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpu import append, lines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shard", default="0/1", help="which shard of how many, as 0/8")
    parser.addoption("--rows", type=Path, default=None, help="file of JSON lines; tests that passed there are not run again")
    parser.addoption("--every", type=int, default=1, help="run one test in so many")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Assign tests to shards in turn, without those that passed already."""
    at, count = (int(part) for part in config.getoption("--shard").split("/"))
    rows, every = config.getoption("--rows"), config.getoption("--every")
    passed = {row["test"] for row in lines(rows) if row["outcome"] == "passed"} if rows else set()
    marked = [item for item in items if item.get_closest_marker("gpu")]
    mine = [item for i, item in enumerate(marked[::every]) if i % count == at and item.nodeid not in passed]
    config.hook.pytest_deselected(items=[item for item in items if item not in mine])
    items[:] = mine


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = (yield).get_result()
    rows = item.config.getoption("--rows")
    if rows and (report.when == "call" or report.outcome != "passed"):
        why = str(call.excinfo.value).strip().splitlines()[:1] if call.excinfo else []
        name = call.excinfo.typename if call.excinfo else ""
        row = {"test": item.nodeid, "outcome": report.outcome, "seconds": round(call.duration, 2), "why": f"{name}: {''.join(why)[:300]}"}
        append(rows, row)
