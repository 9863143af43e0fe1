"""Some nights later: what is new is trained on, the better model becomes champion, and nothing else happens."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest

from tests.command import SMALL, Ended, Server
from thaw.drawings import draw_dump
from thaw.records import SIDES, Split
from thaw.registry import read_registry
from thaw.store import Store

pytestmark = pytest.mark.slow


def sides_of(split: Split) -> dict[str, str]:
    return {row.sha256: side for side in SIDES for row in split.rows(side)}


class Nights:
    """One dump and one store, night after night."""

    def __init__(self, server: Server, folder: Path):
        self.server, self.folder = server, folder
        self.dump, self.store = folder / "dump", Store(folder / "store")

    def unpack(self, per_class: int) -> None:
        """Drawn images, of which the first ones are always the same."""
        draw_dump(self.folder / "drawn.zip", per_class=per_class)
        with zipfile.ZipFile(self.folder / "drawn.zip") as drawn:
            drawn.extractall(self.dump)

    def retrain(self, *options: str) -> Ended:
        command = ["retrain", "--dump", self.dump, "--store", self.store.address, "--json", *SMALL]
        return self.server.thaw(*command, *options)

    def retrain_to(self, state: str, *options: str) -> dict:
        ended = self.retrain(*options)
        assert ended.code == 0, ended.err
        assert ended.json["state"] == state, ended.json
        return ended.json

    def thaw(self, *arguments: str) -> Ended:
        return self.server.thaw(*arguments, "--store", self.store.address)


@pytest.fixture(scope="module")
def nights(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Nights:
    """After the first night: 100 images of each class, and a champion."""
    nights = Nights(server, tmp_path_factory.mktemp("nights"))
    nights.unpack(per_class=100)
    first = nights.retrain_to("Promoted")
    assert first["reason"] == "v1 accepted: there is no champion to compare with"
    assert first["decision"]["champion"] is None
    return nights


def test_the_same_dump_again_is_skipped_with_the_reason(nights: Nights):
    again = nights.retrain_to("Skipped")
    assert again["reason"] == "nothing new since the champion, v1, was trained: no change"
    assert len(read_registry(nights.store).versions) == 1
    run = nights.server.newest_run()
    assert run["state"]["name"] == "Skipped"
    assert run["name"].endswith(": skipped")
    assert {"demo", "dump"} <= set(run["tags"])


def test_a_missing_or_an_empty_dump_is_a_failure_and_not_nothing_new(nights: Nights):
    away = nights.dump.rename(nights.folder / "away")
    try:
        missing = nights.retrain()
        nights.dump.mkdir()
        empty = nights.retrain()
    finally:
        shutil.rmtree(nights.dump, ignore_errors=True)
        away.rename(nights.dump)
    assert missing.code == empty.code == 2
    assert f"{nights.dump}" in missing.err.splitlines()[-1]
    assert "it holds no images" in empty.err.splitlines()[-1]
    assert nights.server.newest_run()["state"]["name"] == "Failed"


def test_a_dump_that_grew_is_trained_on_and_judged_on_images_new_to_both(nights: Nights):
    before = read_registry(nights.store).champion
    nights.unpack(per_class=130)
    ended = nights.retrain("--better-by=nothing", "--margin=0.5")
    assert ended.code == 0, ended.err
    assert "60 decoded" in ended.err
    assert "60 added" in ended.err
    assert ended.json["state"] == "Promoted"
    comparison = ended.json["decision"]["comparison"]
    after = read_registry(nights.store).champion
    assert (after.number, comparison["images"]) == (2, after.test_images)
    splits = [nights.store.read("splits", version.split, Split) for version in (before, after)]
    old, new = map(sides_of, splits)
    assert new.items() >= old.items()
    assert len(new) == len(old) + 60
    # Extracted once each: 260 images, at both cuts.
    assert "200 of 260 rows" in ended.err
    run = nights.server.newest_run()
    assert run["name"].endswith(": v2 promoted")
    assert nights.server.task_states(run["id"])["test rows at block4_pool"] == "Cached"
    nights.server.wait_for_event("thaw.model.promoted", f"thaw.model.{after.run}")


def test_a_model_that_is_not_better_leaves_the_champion_and_is_not_tried_again(nights: Nights):
    champion = read_registry(nights.store).champion
    # Other settings are something new to try; a single epoch makes no better model.
    weak = ["--set=fine_tune.epochs=0", "--set=head.epochs=1", "--set=head.stop=at_budget"]
    kept = nights.retrain_to("Kept", *weak)
    assert "kept: log loss" in kept["reason"]
    assert kept["decision"]["outcome"] == "kept"
    assert read_registry(nights.store).champion == champion
    again = nights.retrain_to("Skipped", *weak)
    assert "kept: log loss" in again["reason"]


def test_a_person_promotes_and_rolls_back(nights: Nights):
    asked = ["--ask", "--better-by=nothing", "--margin=0.5", "--set=head.seed=1", "--set=fine_tune.epochs=0"]
    held = nights.retrain_to("Held", *asked)
    champion = read_registry(nights.store).champion.number
    challenger = held["decision"]["challenger"]
    assert challenger != champion
    promoted = nights.thaw("promote", f"v{challenger}", "--reason", "looked at it", "--json")
    assert promoted.json["champion"]["number"] == challenger
    assert promoted.json["before"] == champion
    assert "looked at it" in (nights.store.folder() / "registry.json").read_text()
    back = nights.thaw("rollback", "--json")
    assert back.json["champion"]["number"] == champion
    listed = nights.thaw("models", "--json").json
    assert listed["champion"] == champion
    assert len(listed["versions"]) == challenger


def test_the_champion_labels_images_by_its_name(nights: Nights):
    ended = nights.thaw("predict", "champion", nights.dump, "--json")
    assert ended.code == 0, ended.err
    assert len(ended.json["images"]) == 260
    unknown = nights.thaw("predict", "v99", nights.dump)
    assert unknown.code == 2
    assert "'v99' names no model" in unknown.err


def test_a_rule_that_makes_no_sense_is_refused_at_once(nights: Nights):
    ended = nights.retrain("--margin=2")
    assert ended.code == 2
    assert "setting 'margin'" in ended.err
    assert json.dumps(ended.out) == '""'
