"""Laws of the pages in a real browser: nothing is cut off at any width, in light, dark or print; links work; hover shows values."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Tab, browser, executable
from pages import curve, example, pictures, timing, write
from studies import some_study

from ltcompile.core.pictures import write_pictures
from ltcompile.core.study import Maps, Picture
from ltcompile.reporting import report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(executable() is None, reason="no Chromium is installed")]
PAPER = 703  # the width in pixels of an A4 page between the page's margins
CUT_OFF = """(() => {
  const found = [], width = document.documentElement.clientWidth;
  const note = (what, by) => { if (by > 1) found.push(`${what}: ${by.toFixed(0)} px too far`); };
  note("page", document.documentElement.scrollWidth - width);
  for (const part of document.querySelectorAll("body *:not(script)")) {
    const scrolls = part.parentElement.closest(".scroll, pre"), frame = scrolls && getComputedStyle(scrolls).overflowX === "auto";
    if (!frame && !part.closest(".plot *")) note(part.tagName + " " + part.textContent.trim().slice(0, 40), part.getBoundingClientRect().right - width);
  }
  for (const plot of document.querySelectorAll(".plot")) {
    const name = plot.dataset.figure, outer = plot.getBoundingClientRect(), area = plot._fullLayout._size;
    const legend = plot.querySelector(".legend .bg");
    if (legend) note(name + " legend", legend.getBoundingClientRect().bottom - outer.top - area.t);
    note(name + " area", 150 - area.w);
    for (const mark of plot.querySelectorAll("text, .points path")) {
      const box = mark.getBoundingClientRect(), over = [outer.left - box.left, box.right - outer.right, outer.top - box.top, box.bottom - outer.bottom];
      if (box.width) note(name + " " + mark.textContent, Math.max(...over));
    }
  }
  return found;
})()"""
LABEL = """async (plot, shown) => {
  for (let i = 0; i < 120; i++) {
    const label = plot.querySelector(".hoverlayer .hovertext");
    if (!shown && !label) return true;
    if (shown && label) return [label.textContent, label.getBoundingClientRect().left, label.getBoundingClientRect().right];
    await new Promise(done => setTimeout(done, 25));
  }
  return null;
}"""
CONTRAST = """(() => {
  const style = getComputedStyle(document.documentElement), colour = name => {
    document.body.style.outlineColor = style.getPropertyValue(name).trim();
    return getComputedStyle(document.body).outlineColor.match(/\\d+/g).map(Number);
  };
  const light = name => {
    const [r, g, b] = colour(name).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const ratio = (a, b) => Math.max(light(a), light(b)) / Math.min(light(a), light(b));
  return ["--paper", "--tile"].flatMap(ground => ["--ink", "--soft", "--link", "--good", "--warn"].map(ink => [ink, ground, ratio(ink, ground)]));
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module", params=["run", "study"])
def page(request: pytest.FixtureRequest, tab: Tab, tmp_path_factory: pytest.TempPathFactory) -> Tab:
    """The tab with a page of long names in it, opened on a telephone."""
    folder = tmp_path_factory.mktemp(request.param)
    tab.resize(390)
    tab.media()
    tab.open(run_page(folder) if request.param == "run" else study_page(folder))
    return tab


def run_page(folder: Path) -> Path:
    run = example() | {"sweep.json": curve()}
    run["search.json"]["widths"] = [
        {"layer": f"backbone.encoder.layers.{i}.residual_branch.conv", "before": 64, "after": 24, "frozen": ""} for i in range(40)
    ]
    bench = run["bench.json"]
    bench["subjects"]["a_network_with_a_long_name"] = bench["subjects"]["small"]
    where = {"runtime": "compile (max-autotune)", "device": "cuda:0 (NVIDIA)"}
    bench["rows"] += [timing("dense", 1, 4.0, **where), timing("a_network_with_a_long_name", 1, 2.5, 1.6, **where)]
    write_pictures(write(folder / "run", run) / "pictures.json", pictures())
    return report(folder / "run")


def study_page(folder: Path) -> Path:
    study = some_study("its architecture, re-initialised (learning-rate rewinding), on CIFAR-10")
    study.maps.append(Maps("maps", "maps", "captions", "%", [Picture(f"picture {i}: digits", [[-100, 0], [50, 100]]) for i in range(8)]))
    study.save(folder)
    return report(folder)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_cut_off_and_the_console_is_silent(page: Tab, scheme: str) -> None:
    page.media(scheme)
    for width in (390, 800, 1300):
        page.resize(width)
        page.drawn()
        assert page.evaluate(CUT_OFF) == [], width
    assert page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill === getComputedStyle(document.body).color")
    assert [low for low in page.evaluate(CONTRAST) if low[2] < 4.5] == []
    assert page.problems == []


def test_what_is_cut_off_is_found(page: Tab) -> None:
    page.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend', '<p id=wide style=\"width: 2000px; max-width: none\">wide</p>')"
    )
    assert any("P wide" in line for line in page.evaluate(CUT_OFF))
    page.evaluate("document.querySelector('#wide').remove()")
    assert page.evaluate(CUT_OFF) == []


def test_on_paper_everything_is_open_light_and_fits(page: Tab) -> None:
    page.media("dark", "print")
    page.resize(PAPER)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    try:
        page.evaluate("Promise.all([...document.querySelectorAll('.plot')].map(plot => Plotly.relayout(plot, {}))).then(() => true)")
        assert page.evaluate(CUT_OFF) == []
        assert page.evaluate("[...document.querySelectorAll('details')].every(part => part.open)")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    finally:
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        page.media()
    assert not page.evaluate("[...document.querySelectorAll('details')].some(part => part.open)")
    assert base64.b64decode(page.call("Page.printToPDF")["data"]).startswith(b"%PDF")
    assert page.problems == []


def test_links_lead_to_their_sections(page: Tab) -> None:
    page.resize(800, height=300)
    page.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
    links = page.evaluate("[...document.querySelectorAll('nav a')].map(link => link.getAttribute('href'))")
    assert len(links) >= 5
    for link in links:
        page.evaluate(f"scrollTo(0, 0); document.querySelector('nav a[href=\"{link}\"]').click()")
        top = page.evaluate(f"document.querySelector('{link}').getBoundingClientRect().top")
        left = page.evaluate("document.documentElement.scrollHeight - innerHeight - scrollY")
        assert abs(top) < 2 or left < 2, link
    assert page.evaluate("[...document.querySelectorAll('a')].every(link => document.querySelector(link.getAttribute('href')))")


def test_hover_shows_the_values_of_every_figure(page: Tab) -> None:
    page.resize(390)
    page.drawn()
    for name in page.evaluate("[...document.querySelectorAll('.plot')].map(plot => plot.dataset.figure)"):
        plot = f"document.querySelector('[data-figure=\"{name}\"]')"
        page.evaluate(f"{plot}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        marks = f"{plot}.querySelectorAll('.points path:first-child, .barlayer .point:first-child path, .heatmaplayer image')"
        boxes = page.evaluate(f"[...{marks}].map(mark => mark.getBoundingClientRect()).map(box => [box.x, box.y, box.width, box.height])")
        assert boxes, name
        for x, y, width, height in boxes:
            page.move_mouse(1, 1)
            assert page.evaluate(f"({LABEL})({plot}, false)")
            page.move_mouse(x + (0.02 if name == "maps" else 0.5) * width, y + 0.5 * height)
            text, left, right = page.evaluate(f"({LABEL})({plot}, true)") or ("", 0, 0)
            assert any(character.isdigit() for character in text), name
            assert left >= -1 and right <= 391, (name, text, left, right)
