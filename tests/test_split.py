"""Splits: who trains, validates and tests, what stays put when a dump grows, and who is refused."""

import hashlib

import pytest

from thaw.config import SplitConfig
from thaw.errors import BadConfig, ShortClass
from thaw.records import SIDES, ImageRow, Manifest, Split
from thaw.split import CARVED_FRACTION, publish_split, split_manifest
from thaw.store import Store


def row(path: str, label: str, side: str | None = None) -> ImageRow:
    return ImageRow(
        path=path,
        label=label,
        sha256=hashlib.sha256(path.encode()).hexdigest(),
        width=20,
        height=10,
        side=side,
    )


def flat_manifest(**per_class: int) -> Manifest:
    rows = [
        row(f"train/{label}.{number}.jpg", label)
        for label, count in per_class.items()
        for number in range(count)
    ]
    return Manifest(layout="flat", classes=tuple(sorted(per_class)), images=tuple(rows), quarantined=())


def ready_manifest(**per_side: int) -> Manifest:
    rows = [
        row(f"{side}/{label}/{number}.jpg", label, side)
        for side, count in per_side.items()
        for label in ("cat", "dog")
        for number in range(count)
    ]
    return Manifest(layout="ready_splits", classes=("cat", "dog"), images=tuple(rows), quarantined=())


def split(
    manifest: Manifest, strategy: str, train: float, validation: float, test: float, seed: int = 0
) -> Split:
    config = SplitConfig(strategy=strategy, train=train, validation=validation, test=test, seed=seed)
    return split_manifest(manifest, config)


def paths(made: Split, side: str) -> list[str]:
    return [row.path for row in made.rows(side)]


def names(label: str, *numbers: int) -> list[str]:
    return [f"train/{label}.{number}.jpg" for number in numbers]


EVERY_WAY = [
    (flat_manifest(cat=60, dog=80), "index", 30, 20, 10),
    (flat_manifest(cat=60, dog=80), "index", 0.5, 0.25, 0.25),
    (flat_manifest(cat=60, dog=80), "hash", 0.5, 0.25, 0.25),
    (flat_manifest(cat=60, dog=80), "hash", 0.2, 0.2, 0.2),
    (ready_manifest(train=40, validation=5, test=6), "directory", 1, 1, 1),
    (ready_manifest(train=40, test=6), "directory", 0.5, 0.3, 0.2),
]


@pytest.mark.parametrize(("manifest", "strategy", "train", "validation", "test"), EVERY_WAY)
def test_no_image_is_on_two_sides_and_rows_come_class_by_class_in_natural_order(
    manifest, strategy, train, validation, test
):
    made = split(manifest, strategy, train, validation, test)
    everything = [row for side in SIDES for row in made.rows(side)]
    assert len(set(everything)) == len(everything)
    assert set(everything) <= set(manifest.images)
    for side in SIDES:
        rows = made.rows(side)
        place = {path.path: number for number, path in enumerate(manifest.images)}
        assert list(rows) == sorted(rows, key=lambda row: (row.label, place[row.path]))
        assert {row.label for row in rows} == {"cat", "dog"}


def test_index_takes_the_first_to_train_the_next_to_validate_and_test():
    made = split(flat_manifest(cat=12, dog=15), "index", 3, 2, 6)
    assert paths(made, "train") == names("cat", 0, 1, 2) + names("dog", 0, 1, 2)
    assert paths(made, "validation") == names("cat", 3, 4) + names("dog", 3, 4)
    assert paths(made, "test") == names("cat", 5, 6, 7, 8, 9, 10) + names("dog", 5, 6, 7, 8, 9, 10)


def test_index_counts_images_and_not_the_order_of_the_rows():
    shuffled = flat_manifest(cat=12, dog=12)
    shuffled = Manifest(
        layout="flat", classes=shuffled.classes, images=tuple(reversed(shuffled.images)), quarantined=()
    )
    assert paths(split(shuffled, "index", 3, 2, 6), "train") == names("cat", 0, 1, 2) + names("dog", 0, 1, 2)


def test_index_fractions_are_rounded_down_and_the_last_side_takes_the_rest():
    made = split(flat_manifest(cat=11, dog=101), "index", 0.5, 0.3, 0.2)
    assert made.counts() == {
        "train": {"cat": 5, "dog": 50},
        "validation": {"cat": 3, "dog": 30},
        "test": {"cat": 3, "dog": 21},
    }


def test_index_fractions_below_one_leave_images_unused():
    assert split(flat_manifest(cat=100, dog=100), "index", 0.29, 0.1, 0.1).counts() == {
        "train": {"cat": 29, "dog": 29},
        "validation": {"cat": 10, "dog": 10},
        "test": {"cat": 10, "dog": 10},
    }


def test_a_class_too_short_for_the_counts_is_named_with_what_it_has_and_what_is_needed():
    with pytest.raises(ShortClass) as caught:
        split(flat_manifest(cat=2000, dog=740), "index", 1000, 500, 500)
    assert str(caught.value).startswith(
        "class 'dog' has 740 usable images, the index split needs 2000 "
        "(train 1000 + validation 500 + test 500). "
    )
    assert "lower the counts, or use strategy 'hash'" in str(caught.value)


def test_a_class_of_exactly_the_size_needed_is_enough():
    assert len(split(flat_manifest(cat=20, dog=20), "index", 10, 5, 5).train) == 20


@pytest.mark.parametrize("strategy", ["index", "hash"])
def test_a_fraction_that_leaves_a_side_without_a_class_is_refused(strategy):
    with pytest.raises(
        ShortClass, match=rf"class 'dog' has 1 usable images, and the {strategy} split leaves none"
    ):
        split(flat_manifest(cat=400, dog=1), strategy, 0.6, 0.2, 0.2)


def test_hash_shares_are_close_to_the_fractions_and_use_every_image():
    made = split(flat_manifest(cat=4000, dog=4000), "hash", 0.7, 0.1, 0.2)
    assert sum(len(made.rows(side)) for side in SIDES) == 8000
    for side, fraction in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(len(made.rows(side)) / 8000 - fraction) < 0.015


def test_hash_keeps_every_image_on_its_side_when_the_dump_grows_or_shrinks():
    small, large = flat_manifest(cat=300, dog=300), flat_manifest(cat=500, dog=400)
    before, after = (split(manifest, "hash", 0.6, 0.2, 0.2) for manifest in (small, large))
    for side in SIDES:
        assert set(before.rows(side)) == set(after.rows(side)) & set(small.images)


def test_hash_depends_on_bytes_and_not_on_names():
    manifest = flat_manifest(cat=300, dog=300)
    renamed = Manifest(
        layout="flat",
        classes=manifest.classes,
        images=tuple(
            ImageRow(path=f"x/{row.path}", label=row.label, sha256=row.sha256, width=1, height=1)
            for row in manifest.images
        ),
        quarantined=(),
    )
    before, after = (split(each, "hash", 0.6, 0.2, 0.2) for each in (manifest, renamed))
    for side in SIDES:
        assert {row.sha256 for row in before.rows(side)} == {row.sha256 for row in after.rows(side)}


def test_hash_moves_no_test_image_when_the_train_fraction_changes():
    manifest = flat_manifest(cat=300, dog=300)
    before, after = split(manifest, "hash", 0.6, 0.2, 0.2), split(manifest, "hash", 0.3, 0.2, 0.2)
    assert before.test == after.test and before.validation == after.validation
    assert set(after.train) < set(before.train)


def test_another_seed_draws_another_hash_split_and_the_same_seed_the_same():
    manifest = flat_manifest(cat=300, dog=300)
    first, again, other = (split(manifest, "hash", 0.6, 0.2, 0.2, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.digest == again.digest
    assert set(first.test) != set(other.test)


def test_the_seed_changes_no_index_split():
    manifest = flat_manifest(cat=30, dog=30)
    assert (
        split(manifest, "index", 5, 5, 5, seed=1).digest == split(manifest, "index", 5, 5, 5, seed=2).digest
    )


def test_directory_takes_the_dump_s_own_sides():
    manifest = ready_manifest(train=10, validation=4, test=3)
    made = split(manifest, "directory", 1000, 500, 500)
    for side in SIDES:
        assert set(made.rows(side)) == {row for row in manifest.images if row.side == side}


@pytest.mark.parametrize(("missing", "present"), [("validation", "test"), ("test", "validation")])
def test_directory_carves_a_missing_side_out_of_train(missing, present):
    manifest = ready_manifest(train=500, **{present: 5})
    shares = {"train": 0.5, "validation": 0.3, "test": 0.3, present: 0.1}
    made = split(manifest, "directory", **{**shares, "train": 0.4})
    assert set(made.rows(present)) == {row for row in manifest.images if row.side == present}
    assert all(row.side == "train" for row in made.rows(missing))
    assert len(made.train) + len(made.rows(missing)) == 1000
    assert abs(len(made.rows(missing)) / 1000 - 0.3) < 0.05


def test_directory_carves_a_fifth_where_the_setting_is_a_count():
    manifest = ready_manifest(train=500, test=5)
    assert abs(len(split(manifest, "directory", 1000, 500, 500).validation) / 1000 - CARVED_FRACTION) < 0.05


def test_directory_keeps_carved_images_in_place_when_the_dump_grows():
    small, large = (split(ready_manifest(train=count, test=5), "directory", 1, 1, 1) for count in (100, 150))
    assert set(small.validation) <= set(large.validation)
    assert set(small.train) <= set(large.train)


def test_directory_needs_ready_splits():
    with pytest.raises(BadConfig, match="'directory' needs a dump with ready splits.*layout is 'flat'"):
        split(flat_manifest(cat=30, dog=30), "directory", 10, 5, 5)


def test_directory_refuses_a_class_that_a_side_lacks():
    manifest = ready_manifest(train=10, validation=3, test=3)
    rows = tuple(row for row in manifest.images if not (row.side == "test" and row.label == "dog"))
    lacking = Manifest(layout="ready_splits", classes=manifest.classes, images=rows, quarantined=())
    with pytest.raises(
        ShortClass, match="class 'dog' has 13 usable images.*for test.*the dump's test folder"
    ):
        split(lacking, "directory", 10, 1, 5)


def test_labels_index_the_classes_in_their_order():
    manifest = flat_manifest(dog=10, cat=10)
    made = split(manifest, "index", 2, 1, 1)
    assert made.classes == ("cat", "dog")
    assert made.labels("train") == [0, 0, 1, 1]
    assert Split.from_json(made.to_json()) == made


def test_a_split_is_published_once(tmp_path):
    store, manifest = Store(tmp_path), flat_manifest(cat=10, dog=10)
    config = SplitConfig(train=5, validation=2, test=2)
    first, second = publish_split(manifest, config, store), publish_split(manifest, config, store)
    assert (first.reused, second.reused) == (False, True)
    assert store.read("splits", first.value.digest, Split) == first.value == second.value


def test_an_index_split_of_ready_splits_is_refused_since_it_would_train_on_test_images():
    with pytest.raises(BadConfig, match="'directory'"):
        split(ready_manifest(train=10, test=5), "index", 2, 1, 1)
