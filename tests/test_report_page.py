"""The report as people open it: on a wide screen, on a phone and on paper, in a real browser."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run_samples import make_photographs, make_pictures, make_run
from thaw.convergence import trace_verdicts
from thaw.gradcam import HeatMap, HeatMaps
from thaw.records import Quarantined
from thaw.report import write_report
from thaw.report.gate import GatePart, plot_gate
from thaw.report.heat import plot_heat

pytestmark = pytest.mark.slow

WIDTH, PHONE = 1280, 390
# An A4 page at 96 dots per inch, less the margins that the page asks for.
PAPER_WIDTH, PAPER_HEIGHT = 688, 1001


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything that a report can have, and long names."""
    heat = HeatMap(path="x", label="cat", called="dog", probability=0.9, heat=((0.0, 1.0), (0.5, 0.2)))
    run = make_run(
        quarantined=tuple(
            Quarantined(path=f"{'folder/' * 12}{n}.jpg", label="cat", reason="cut short") for n in range(30)
        ),
        heat=HeatMaps(
            checkpoint="c0ffee", layer="block5_conv3", size=(11, 11), networks=1, mirrored=False, maps=(heat,)
        ),
        pictures={},
    )
    trace = tuple(trace_verdicts(run.head.history, run.config.gate, run.config.head))
    pictures = {
        **make_pictures(run.split.classes),
        "gate": plot_gate([GatePart(trace=trace, answer="opens")], 0.002),
        "looked_1": plot_heat([heat] * 4, make_photographs(4)),
    }
    return write_report(tmp_path_factory.mktemp("report"), dataclasses.replace(run, pictures=pictures))


@pytest.fixture(scope="module")
def browser() -> Iterator:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no browser: put chromium on the path to have the report looked at")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def page(browser, report: Path, request: pytest.FixtureRequest) -> Iterator:
    page = browser.new_page(viewport={"width": request.param, "height": PAPER_HEIGHT})
    page.asked = []
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    yield page
    page.close()


@pytest.mark.parametrize("page", [WIDTH, PHONE], indirect=True)
def test_nothing_is_asked_of_a_network(page):
    assert [url for url in page.asked if not url.startswith(("data:", "file:"))] == []
    assert len([url for url in page.asked if url.startswith("file:")]) == 1


@pytest.mark.parametrize("page", [WIDTH, PHONE], indirect=True)
def test_the_page_is_no_wider_than_the_screen_and_no_picture_than_the_page(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    widths = page.evaluate("[...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect().right])")
    assert len(widths) == 7
    assert all(natural > 200 and right <= page.viewport_size["width"] for natural, right in widths)


@pytest.mark.parametrize("page", [PAPER_WIDTH], indirect=True)
def test_on_paper_pictures_fit_one_page_and_are_not_cut(page):
    page.emulate_media(media="print")
    script = (
        "[...document.querySelectorAll('figure')].map(f => [getComputedStyle(f).breakInside,"
        " f.getBoundingClientRect().height, f.scrollWidth - f.clientWidth])"
    )
    for breaks, height, hidden in page.evaluate(script):
        assert breaks == "avoid"
        assert height <= PAPER_HEIGHT
        assert hidden <= 0


@pytest.mark.parametrize("page", [PAPER_WIDTH], indirect=True)
def test_on_paper_no_table_is_clipped(page):
    page.emulate_media(media="print")
    hidden = page.evaluate("[...document.querySelectorAll('.wide')].map(t => t.scrollWidth - t.clientWidth)")
    assert len(hidden) > 6
    assert max(hidden) <= 0
