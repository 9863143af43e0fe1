"""What people see of a run in the Prefect UI, looked at in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import SMALL, Server

pytestmark = pytest.mark.slow

WIDTH, NARROW = 1280, 800


@pytest.fixture(scope="module")
def browser() -> Iterator:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no browser: put chromium on the path to have the screens looked at")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def runs(server: Server, drawn_dump: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Flow runs on the server by what they came to: made, all cached, gate closed, skipped."""
    store = tmp_path_factory.mktemp("screens")
    unconverged = ["--set=head.epochs=6", "--set=gate.max_extensions=0", "--set=head.stop=at_budget"]
    commands = {
        "made": ["train"],
        "cached": ["train"],
        "closed": ["train", *unconverged],
        "promoted": ["retrain"],
        "skipped": ["retrain"],
    }
    found = {}
    for name, command in commands.items():
        given = [command[0], "--dump", drawn_dump, "--store", store, *SMALL, *command[1:]]
        ended = server.thaw(*given)
        assert ended.code == (3 if name == "closed" else 0), ended.err
        found[name] = server.newest_run()["id"]
    return found


class Screen:
    """A page of the UI, and what is wrong with it."""

    def __init__(self, browser, server: Server, width: int = WIDTH):
        self.page = browser.new_page(viewport={"width": width, "height": 1000})
        self.root = server.url.removesuffix("/api")

    def open(self, path: str, sees: str) -> None:
        self.page.goto(f"{self.root}/{path}")
        self.page.get_by_text(sees).first.wait_for(timeout=30_000)
        self.page.wait_for_load_state("networkidle")

    def click(self, text: str, sees: str) -> None:
        self.page.get_by_text(text, exact=True).last.click()
        self.page.get_by_text(sees).last.wait_for(timeout=30_000)

    @property
    def text(self) -> str:
        return self.page.inner_text("body")

    @property
    def overflows(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth > innerWidth")

    def pictures(self) -> list[tuple[int, int]]:
        """Natural width and shown width of every picture that came as data."""
        script = "[...document.images].filter(i => i.src.startsWith('data:')).map(i => [i.naturalWidth, i.clientWidth])"
        return self.page.evaluate(script)


@pytest.fixture
def screen(browser, server: Server, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Screen]:
    screen = Screen(browser, server, getattr(request, "param", WIDTH))
    yield screen
    screen.page.screenshot(path=tmp_path / "screen.png", full_page=True)
    screen.page.close()


def test_the_list_of_runs_tells_each_ones_dump_recipe_and_outcome(screen: Screen, runs: dict[str, str]):
    screen.open("runs", sees="retrain demo on drawn.zip: v1 promoted")
    for name in (
        "demo on drawn.zip: 0.",
        "demo on drawn.zip: gate closed",
        "retrain demo on drawn.zip: skipped",
    ):
        assert name in screen.text
    for state in ("Completed", "GateClosed", "Promoted", "Skipped"):
        assert state in screen.text
    assert not screen.overflows


def test_a_second_run_shows_its_stages_as_cached(screen: Screen, runs: dict[str, str]):
    screen.open(f"runs/flow-run/{runs['cached']}", sees="demo on drawn.zip: 0.")
    screen.click("Task Runs", sees="fine-tune after block4_pool")
    assert screen.text.count("Cached") >= 8
    assert not screen.overflows


@pytest.mark.parametrize("screen", [WIDTH, NARROW], indirect=True)
def test_the_report_shows_its_pictures_whole(screen: Screen, runs: dict[str, str], server: Server):
    artifacts = server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [runs["made"]]}})
    report = next(artifact for artifact in artifacts if artifact["key"] == "report")
    screen.open(f"artifacts/artifact/{report['id']}", sees="The backbone thaws behind")
    pictures = screen.pictures()
    # The gate, curves, reliability, confusion, mistakes, heat of two classes, and augmented views.
    assert len(pictures) == 8
    assert all(natural > 200 and shown > 200 for natural, shown in pictures)
    assert not screen.overflows
    assert len(report["data"].encode()) < 300_000


def test_split_gate_metrics_and_report_are_found_with_the_run(screen: Screen, runs: dict[str, str]):
    screen.open(f"runs/flow-run/{runs['made']}", sees="demo on drawn.zip")
    screen.click("Artifacts", sees="report")
    for name in ("split", "gate", "metrics-head", "metrics-fine-tuned", "report"):
        assert name in screen.text
    assert "The gate's verdict: plateaued" in screen.text


def test_the_log_of_a_run_tells_each_epoch(screen: Screen, runs: dict[str, str], server: Server):
    lines = server.ask("logs/filter", logs={"flow_run_id": {"any_": [runs["made"]]}}, limit=200)
    assert any("epoch 2 of" in line["message"] and "val loss" in line["message"] for line in lines)
    screen.open(f"runs/flow-run/{runs['made']}", sees="scan dump")


def test_the_form_of_a_run_explains_its_fields(screen: Screen, server: Server, monkeypatch):
    for name, value in {"RECIPE": "demo", "DUMP": "drawn.zip", "WEIGHTS": "drawings"}.items():
        monkeypatch.setenv(f"THAW_{name}", value)
    server.prefect("work-pool", "create", "thaw-cpu", "--type", "process", "--overwrite")
    server.prefect("work-pool", "create", "thaw-gpu", "--type", "process", "--overwrite")
    server.prefect("deploy", "--all")
    deployment = server.ask("deployments/filter", flows={"name": {"any_": ["retrain"]}})[0]
    screen.open(f"deployments/deployment/{deployment['id']}/run", sees="promotion")
    for words in (
        "How much lower its test accuracy may be",
        "A zip archive, a folder or a NumPy archive of labelled images",
        "Whose settings to start from",
    ):
        assert words in screen.text
    assert not screen.overflows
