"""A batch in Prefect: quiet or drifted, its run is Completed, and only a drifted one is an event."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import ImageOps

from tests.command import PROJECT, Server
from tests.drift_samples import draw_images, save_head
from tests.prepared import Prepared, head_of
from thaw.answers import read_answers

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Place:
    """A saved model, and two batches of drawings."""

    model: Path
    quiet: Path
    inverted: Path
    store: Path
    resource: str


@pytest.fixture(scope="module")
def place(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    save_head(prepared, folder / "model.keras", with_population=True)
    return Place(
        model=folder / "model.keras",
        quiet=draw_images(folder / "quiet", cats=30, dogs=30),
        inverted=draw_images(folder / "inverted", 30, 30, ImageOps.invert),
        store=folder / "store",
        resource=f"thaw.model.{head_of(prepared).value.address}",
    )


def run_flow(server: Server, **parameters: object) -> dict:
    """The flow as a worker runs it; the run that it leaves on the server."""
    code = f"from flows.predict import predict; predict(**{parameters!r})"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        capture_output=True,
        text=True,
        cwd=PROJECT,
        env=server.environment,
    )
    assert ended.returncode == 0, ended.stderr
    return server.newest_run()


def find_artifacts(server: Server, run: dict) -> dict[str, str]:
    found = server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    return {artifact["key"]: artifact["data"] for artifact in found}


def count_events(server: Server, place: Place) -> int:
    about = {"event": {"name": ["thaw.drift.found"]}, "resource": {"id": [place.resource]}}
    return len(server.ask("events/filter", filter=about)["events"])


def test_a_quiet_batch_is_no_event_and_a_drifted_one_is_one(server: Server, place: Place):
    given = {"model": str(place.model), "store": str(place.store)}
    quiet = run_flow(server, images=[str(place.quiet)], file="quiet.parquet", **given)
    assert quiet["state"]["name"] == "Completed"
    assert quiet["name"].endswith(": 60 images")
    assert "no drift found" in quiet["state"]["message"]
    assert "drift" not in quiet["tags"]
    assert "No drift found" in find_artifacts(server, quiet)["drift"]
    assert len(read_answers(place.store / "predictions" / "quiet.parquet")) == 60

    drifted = run_flow(server, images=[str(place.inverted)], **given)
    assert drifted["state"]["name"] == "Completed"
    assert drifted["name"].endswith(": 60 images, drift")
    assert "drift" in drifted["tags"]
    assert "Drift found" in find_artifacts(server, drifted)["drift"]
    server.wait_for_event("thaw.drift.found", place.resource)
    assert count_events(server, place) == 1
    about = {"event": {"name": ["thaw.drift.found"]}, "resource": {"id": [place.resource]}}
    payload = server.ask("events/filter", filter=about)["events"][0]["payload"]
    assert payload["smallest_p"] <= payload["level"]
    assert payload["components_moved"] and Path(payload["drift_file"]).is_file()
    assert {one["label"] for one in payload["classes"]} == {"cat", "dog"}


def test_the_command_warns_and_names_what_moved(server: Server, place: Place, tmp_path: Path):
    file = tmp_path / "answers.csv"
    command = ["predict", place.model, place.inverted, "--store", place.store]
    warned = server.thaw(*command, "--file", file)
    assert warned.code == 0, warned.err
    assert "Warning: drift found: 60 images beside 90 training images" in warned.err
    assert "standard deviations" in warned.err and "of the training images" in warned.err
    assert "60 images written to" in warned.out
    told = server.thaw(*command, "--file", file, "--json").json
    assert told["drift"]["state"] == "alarm"
    assert json.loads(Path(told["drift_file"]).read_text()) == told["drift"]
    assert len(told["images"]) == 60
    unwatched = server.thaw("predict", place.model, place.quiet / "cat.0.jpg", "--store", place.store)
    assert "drift was not tested: 1 images are too few" in unwatched.err
    assert "cat.0.jpg" in unwatched.out
