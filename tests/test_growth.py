"""A dump that grows: what is new is found, and what was placed stays where it was."""

import dataclasses

import pytest

from thaw.config import SplitConfig
from thaw.errors import BadConfig, ShortClass
from thaw.growth import compare_manifests, grow_split, sides_of
from thaw.records import SIDES, ImageRow, Manifest, Quarantined
from thaw.split import split_manifest

INDEX = SplitConfig(train=20, validation=10, test=10)
HASH = SplitConfig(strategy="hash", train=0.5, validation=0.25, test=0.25)


def make_row(label: str, number: int, **changes) -> ImageRow:
    row = ImageRow(
        path=f"{label}.{number}.jpg", label=label, sha256=f"{label}{number:060d}", width=9, height=9
    )
    return dataclasses.replace(row, **changes)


def make_manifest(per_class: int, quarantined=(), classes=("cat", "dog")) -> Manifest:
    images = tuple(make_row(label, number) for label in classes for number in range(per_class))
    return Manifest(layout="flat", classes=classes, images=images, quarantined=quarantined)


def test_a_change_lists_what_was_added_deleted_relabelled_and_newly_set_aside():
    before = make_manifest(10)
    bad = Quarantined(path="cat.99.jpg", label="cat", reason="truncated")
    images = [row for row in make_manifest(11).images if row.path != "cat.3.jpg"]
    images = [
        dataclasses.replace(row, label="cat", path="cat.1000.jpg") if row.path == "dog.5.jpg" else row
        for row in images
    ]
    change = compare_manifests(before, dataclasses.replace(before, images=tuple(images), quarantined=(bad,)))
    assert change.added == ("cat.10.jpg", "dog.10.jpg")
    assert change.deleted == ("cat.3.jpg",)
    assert change.relabelled == (("cat.1000.jpg", "dog", "cat"),)
    assert change.quarantined == ("cat.99.jpg",)
    assert str(change) == "2 added, 1 deleted, 1 relabelled, 1 newly quarantined"


def test_an_image_that_was_only_renamed_is_no_change():
    before = make_manifest(3)
    renamed = tuple(dataclasses.replace(row, path=f"new/{row.path}") for row in before.images)
    assert compare_manifests(before, dataclasses.replace(before, images=renamed)).is_empty


def test_a_bad_image_more_is_nothing_to_learn_from():
    before = make_manifest(3)
    bad = Quarantined(path="cat.99.jpg", label="cat", reason="truncated")
    change = compare_manifests(before, dataclasses.replace(before, quarantined=(bad,)))
    assert change.is_empty
    assert str(change) == "1 newly quarantined"


@pytest.mark.parametrize("config", [INDEX, HASH], ids=["index", "hash"])
def test_no_image_changes_side_when_the_dump_grows(config: SplitConfig):
    small, large = make_manifest(200), make_manifest(300)
    before = split_manifest(small, config)
    grown = grow_split(before, small, {}, large, config)
    placed = sides_of(before)
    assert {key: side for key, side in sides_of(grown).items() if key in placed} == placed
    # What the split of the small dump left out stays out.
    known = {row.sha256 for row in small.images}
    assert sides_of(grown).keys() & known == placed.keys()
    new = sides_of(grown).keys() - known
    assert len(new) == 200
    counts = {side: sum(row.sha256 in new for row in grown.rows(side)) for side in SIDES}
    assert 80 < counts["train"] < 120
    assert 30 < counts["validation"] < 70


def test_a_hash_split_grows_as_it_would_have_been_made():
    small, large = make_manifest(200), make_manifest(300)
    assert grow_split(split_manifest(small, HASH), small, {}, large, HASH) == split_manifest(large, HASH)


def test_a_split_of_an_unchanged_dump_stays_the_same():
    manifest = make_manifest(50)
    before = split_manifest(manifest, INDEX)
    assert grow_split(before, manifest, {}, manifest, INDEX).digest == before.digest


def test_growing_twice_is_growing_once():
    first, second, third = make_manifest(50), make_manifest(60), make_manifest(90)
    before = split_manifest(first, INDEX)
    halfway = grow_split(before, first, {}, second, INDEX)
    assert grow_split(halfway, second, {}, third, INDEX) == grow_split(before, first, {}, third, INDEX)


def test_a_relabelled_image_keeps_its_side_under_its_new_label():
    manifest = make_manifest(50)
    before = split_manifest(manifest, INDEX)
    images = tuple(
        dataclasses.replace(row, label="dog") if row.path == "cat.0.jpg" else row for row in manifest.images
    )
    grown = grow_split(before, manifest, {}, dataclasses.replace(manifest, images=images), INDEX)
    assert [row.label for row in grown.train if row.path == "cat.0.jpg"] == ["dog"]


def test_a_class_whose_test_images_were_all_deleted_is_an_error_that_names_it():
    manifest = make_manifest(50)
    before = split_manifest(manifest, INDEX)
    left = tuple(row for row in manifest.images if row.label == "dog" or row not in before.test)
    with pytest.raises(ShortClass, match="class 'cat'.*for test"):
        grow_split(before, manifest, {}, dataclasses.replace(manifest, images=left), INDEX)


def test_a_new_class_grows_into_the_split():
    small = make_manifest(50)
    large = make_manifest(50, classes=("cat", "dog", "fox"))
    grown = grow_split(split_manifest(small, INDEX), small, {}, large, INDEX)
    assert grown.classes == ("cat", "dog", "fox")
    assert grown.counts()["test"]["fox"] > 0


@pytest.mark.parametrize("config", [INDEX, HASH], ids=["index", "hash"])
def test_an_image_that_was_learned_from_left_and_came_back_is_no_test_image(config: SplitConfig):
    full = make_manifest(100)
    first = split_manifest(full, config)
    away = {row.sha256 for row in full.images if row.path.endswith(("3.jpg", "7.jpg"))}
    less = dataclasses.replace(full, images=tuple(row for row in full.images if row.sha256 not in away))
    second = grow_split(first, full, {}, less, config)
    learned = {key: side for key, side in sides_of(first).items() if side != "test"}
    # Another seed would place them anew.
    third = grow_split(second, less, learned, full, config.model_copy(update={"seed": 5}))
    back = {key: side for key, side in sides_of(third).items() if key in away & learned.keys()}
    assert back
    assert back == {key: learned[key] for key in back}


def test_a_dump_that_came_to_have_ready_splits_is_not_mixed_up():
    manifest = make_manifest(50)
    ready = dataclasses.replace(manifest, layout="ready_splits")
    with pytest.raises(BadConfig, match="'index' would mix"):
        grow_split(split_manifest(manifest, INDEX), manifest, {}, ready, INDEX)
