"""What the documents state about the project is so: floors, files, sizes, the citation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "reference")])
HISTORY = ("LOG.md", "CHANGELOG.md")  # may name files that are gone
PATH = re.compile(r"`((?:ltcompile|tests|bench|docs|examples|kernels|models)/[\w./-]+)`")


def test_the_floors_of_the_drawing_are_those_that_are_enforced() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    section = (ROOT / "ARCHITECTURE.md").read_text().partition("## Floors")[2].partition("\n## ")[0]
    drawn = [re.split(r" {2,}", line.strip())[0] for line in section.splitlines() if line.startswith("    ")]
    assert drawn == [layer.replace("ltcompile.", "") for layer in layers]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name not in HISTORY], ids=lambda d: str(d.relative_to(ROOT)))
def test_files_that_a_document_names_exist(document: Path) -> None:
    named = [path for path in PATH.findall(document.read_text()) if "/x." not in path and path != "docs/reference"]
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_first_documents_are_short() -> None:
    for name, most in (("README.md", 150), ("ARCHITECTURE.md", 115)):
        assert len((ROOT / name).read_text().splitlines()) <= most, name


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "zensical.toml").read_text()
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")} | {"reference/cli.md", "reference/python.md"}
    assert set(re.findall(r'"([\w/-]+\.md)"', text)) == pages


def test_the_citation_is_valid_and_of_this_version() -> None:
    """The required fields of the Citation File Format 1.2.0."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and citation["message"]
    assert citation["authors"] and all(a.get("name") or a.get("family-names") for a in citation["authors"])
    assert citation["title"].startswith(project["name"])
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_the_tests_of_the_oldest_versions_exist() -> None:
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("OLDEST_TESTS"))
    kernels = re.search(r"\$\(addprefix kernels/test_,([^)]*)\)", line)
    assert kernels is not None
    plain = line.replace(kernels[0], "").partition("tests/,")[2].rstrip(")").split()
    names = [*plain, *(f"kernels/test_{name}" for name in kernels[1].split())]
    assert len(names) > 5 and not [name for name in names if not (ROOT / "tests" / name).exists()]
