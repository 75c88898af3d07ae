"""Answers side by side: what a file holds is what the page shows, escaped; a damaged file is refused with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, example, pictures, write

from ltcompile.core.pictures import read_pictures, write_pictures
from ltcompile.errors import InvalidFile
from ltcompile.reporting import report


def test_they_come_back_and_are_on_the_page(tmp_path: Path) -> None:
    run = write(tmp_path / "run", example())
    assert read_pictures(run / "pictures.json") == []
    assert "#answers" not in report(run).read_text()
    write_pictures(run / "pictures.json", pictures())
    assert read_pictures(run / "pictures.json") == pictures()
    page = report(run).read_text()
    section = page.split('<section id="answers">')[1].split("</section>")[0]
    assert page.count('href="#answers"') == 2 and section.count('class="box') == 5 and section.count("data:image/png") == 7 + 4 + 3
    first = re.search(r"left:([\d.]+)%;top:([\d.]+)%;width:([\d.]+)%;height:([\d.]+)%", section)
    assert first and [float(edge) for edge in first.groups()] == pytest.approx([60, 80, 40, 20])
    caption = re.search(r"<figcaption>([^<]*)", section)
    assert caption and caption[1].split() == ["correct:", "1", "box"]
    titles = re.findall(r"alt=\"Test input (\d): ([a-z ]+)\"", section)
    assert titles[-4:] == [("3", "input"), ("3", "correct"), ("3", "dense network"), ("3", "ticket")] and len(titles) == 3 + 3 + 4
    assert "93 %" in section.replace("\N{NO-BREAK SPACE}", " ") and section.count('class="mark"') == 5 + 3


def test_names_are_escaped(tmp_path: Path) -> None:
    run = write(tmp_path / "run", example())
    write_pictures(run / "pictures.json", pictures(HOSTILE))
    assert HOSTILE not in report(run).read_text()


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another kind": (lambda value: value.update(kind="bench"), 'does not say "kind": "pictures"'),
    "no list": (lambda value: value.update(pictures=3), "pictures is 3, not a list"),
    "a text": (lambda value: value["pictures"][0].update(image="<b>"), r"pictures\[0\].image is not a PNG in base64"),
    "another image": (lambda value: value["pictures"][1]["dense"].update(over="R0lGODlh"), r"pictures\[1\].dense is not a PNG"),
    "outside": (
        lambda value: value["pictures"][0]["small"]["boxes"][0].update(edges=[0, 0, 2, 1]),
        r"pictures\[0\].small has a box outside",
    ),
    "NaN": (lambda value: value["pictures"][0]["small"]["boxes"][0].update(edges=[0, 0, float("nan"), 1]), "edges"),
    "below zero": (lambda value: value["pictures"][1]["truth"]["marks"][0].update(number=-1), "has a class below 0"),
    "no size": (lambda value: value["pictures"][1].update(width=0), r"pictures\[1\] has 0x48 pixels"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_damaged_file_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "pictures.json"
    write_pictures(path, pictures())
    value = json.loads(path.read_text())
    CHANGES[change][0](value)
    path.write_text(json.dumps(value))
    with pytest.raises(InvalidFile, match=CHANGES[change][1]):
        read_pictures(path)
