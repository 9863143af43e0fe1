"""Near-identical images: which are taken for the same, what is kept of that, and that no split divides them."""

import io
import logging
import random
import tracemalloc
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.test_split import flat_manifest, names, paths, ready_manifest
from thaw import duplicates, likeness
from thaw.backbone import load_backbone
from thaw.config import BackboneConfig, DumpConfig, DuplicatesConfig, SplitConfig
from thaw.dump import scan_dump
from thaw.duplicates import Duplicates, ImageGroup, confirm_duplicates, find_duplicates
from thaw.errors import BadDump, NotPublished, ShortClass
from thaw.folds import make_folds
from thaw.growth import grow_split
from thaw.likeness import HASHES, SIDE_PIXELS, find_groups, find_pairs, hash_image, measure_similarity
from thaw.records import SIDES, ImageRow, Made, Manifest, Split
from thaw.report.duplicates import describe_duplicates
from thaw.split import publish_split, split_manifest

KINDS = ("resize", "recompress", "crop", "flip")
TOGETHER = DuplicatesConfig()


def paint(number: int, side: int = 160) -> Image.Image:
    """A picture with coarse and fine shapes, different for every number."""
    drawn = np.random.default_rng(number)
    layers = [
        Image.fromarray(drawn.integers(0, 256, (cells, cells, 3), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for cells in (4, 9, 23)
    ]
    return Image.blend(Image.blend(layers[0], layers[1], 0.5), layers[2], 0.3)


def copy(image: Image.Image, kind: str, seed: int = 0) -> Image.Image:
    """The image resized, mirrored, or without 5 to 10 % of its width and of its height, wherever that is cut."""
    drawn, (width, height) = random.Random(seed), image.size
    if kind == "resize":
        scale = drawn.choice((0.6, 0.75, 1.5, 2))
        return image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    if kind == "flip":
        return ImageOps.mirror(image)
    if kind == "crop":
        wide, high = (round(length * (1 - drawn.uniform(0.05, 0.1))) for length in (width, height))
        left, upper = drawn.randint(0, width - wide), drawn.randint(0, height - high)
        return image.crop((left, upper, left + wide, upper + high))
    return image


def encode(image: Image.Image, quality: int = 92) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def copy_file(image: Image.Image, kind: str, seed: int = 0) -> bytes:
    return encode(copy(image, kind, seed), 40 if kind == "recompress" else 90)


def write_dump(path: Path, images: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in images.items():
            archive.writestr(name, data)
    return path


def square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.resize((SIDE_PIXELS, SIDE_PIXELS), Image.Resampling.BILINEAR))


def random_hashes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (count, HASHES, 2), dtype=np.uint64)


def flip_bits(hashes: np.ndarray, count: int) -> np.ndarray:
    """A whole hash, uint64 (2,), with the lowest bits of its second half turned."""
    return hashes ^ np.array([0, 2**count - 1], dtype=np.uint64)


def find(path: Path, store, settings: DuplicatesConfig = TOGETHER) -> tuple[Manifest, Made[Duplicates]]:
    manifest = scan_dump(DumpConfig(path=path), store).value
    return manifest, find_duplicates(manifest, DumpConfig(path=path), settings, store)


def list_paths(found: Duplicates) -> list[list[str]]:
    return [[row.path for row in group.images] for group in found.groups]


def all_of(manifest: Manifest) -> Split:
    facts = {"strategy": "index", "seed": 0, "classes": manifest.classes, "validation": (), "test": ()}
    return Split(train=manifest.images, **facts)


@pytest.fixture
def hashed(monkeypatch) -> list[np.ndarray]:
    """Everything that is hashed."""
    seen, original = [], duplicates.hash_image
    monkeypatch.setattr(duplicates, "hash_image", lambda pixels: seen.append(pixels) or original(pixels))
    return seen


@pytest.fixture
def copied(tmp_path) -> Path:
    """Ten cats and ten dogs; the first four dogs have a copy each among the cats' or the dogs' later numbers."""
    images = {f"train/cat.{number}.jpg": encode(paint(number)) for number in range(10)}
    images |= {f"train/dog.{number}.jpg": encode(paint(100 + number)) for number in range(10)}
    for number, kind in enumerate(KINDS):
        images[f"train/dog.{20 + number}.jpg"] = copy_file(paint(100 + number), kind)
    images["train/cat.30.jpg"] = copy_file(paint(100), "flip")
    return write_dump(tmp_path / "copied.zip", images)


COPIED = [
    ["train/cat.30.jpg", "train/dog.0.jpg", "train/dog.20.jpg"],
    ["train/dog.1.jpg", "train/dog.21.jpg"],
    ["train/dog.2.jpg", "train/dog.22.jpg"],
    ["train/dog.3.jpg", "train/dog.23.jpg"],
]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_are_told_from_other_images(kind):
    originals = [hash_image(square(paint(number))) for number in range(20)]
    copies = [hash_image(square(copy(paint(number), kind, number))) for number in range(20)]
    groups = find_groups(np.stack(originals + copies))
    assert [group.members for group in groups] == [(number, number + 20) for number in range(20)]


def test_it_does_not_matter_which_of_two_images_is_the_part():
    whole, part = (hash_image(square(image)) for image in (paint(1), copy(paint(1), "crop", 3)))
    distances = [find_pairs(np.stack(order), 40)[2, 0] for order in ((whole, part), (part, whole))]
    assert distances[0] == distances[1] <= 16


def test_images_differ_in_so_many_bits_at_most_of_both_halves_of_their_hashes_together():
    hashes = random_hashes(3)
    hashes[1, 0] = flip_bits(hashes[0, 0], 5)
    assert find_groups(hashes, distance_bits=4) == []
    (group,) = find_groups(hashes, distance_bits=5)
    assert group.members == (0, 1) and group.distance_bits == 5


def test_a_group_is_all_that_hangs_together_and_says_how_far_apart_it_is():
    hashes = random_hashes(8)
    hashes[6, 0], hashes[3, 0] = flip_bits(hashes[1, 0], 3), flip_bits(hashes[1, 0], 10)
    hashes[5, 0] = hashes[2, 1]
    groups = find_groups(hashes, distance_bits=7)
    assert [group.members for group in groups] == [(1, 3, 6), (2, 5)]
    assert [group.distance_bits for group in groups] == [7, 0]


def test_thousands_of_images_that_are_all_alike_are_one_group_and_fit_into_memory():
    hashes = np.repeat(random_hashes(1), 4000, axis=0)
    tracemalloc.start()
    (group,) = find_groups(hashes)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert group.members == tuple(range(4000)) and group.distance_bits == 0
    # All pairs of them, of three numbers each, would be 190 MB.
    assert most_bytes < 60e6


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_to_compare_make_no_group(count):
    assert find_groups(random_hashes(count)) == []


def test_pairs_are_those_of_comparing_one_by_one_whatever_the_blocks(monkeypatch):
    hashes = random_hashes(90)
    drawn = random.Random(0)
    for _ in range(60):
        one, other, part = drawn.randrange(90), drawn.randrange(90), drawn.randrange(HASHES)
        hashes[one, drawn.randrange(2)] = flip_bits(hashes[other, part], drawn.randrange(12))
    expected = {}
    for one in range(90):
        for other in range(90):
            apart = min(
                int(np.bitwise_count(hashes[one, whole] ^ hashes[other, part]).sum())
                for whole in (0, 1)
                for part in range(HASHES)
                if part != 1
            )
            pair = min(one, other), max(one, other)
            if one != other and apart <= 10:
                expected[pair] = min(apart, expected.get(pair, 99))
    assert len(expected) > 10
    for rows, columns in ((32, 8192), (7, 11), (1, 90)):
        monkeypatch.setattr(likeness, "_BLOCK_ROWS", rows)
        monkeypatch.setattr(likeness, "_BLOCK_COLUMNS", columns)
        found = find_pairs(hashes, 10).T.tolist()
        assert {(first, second): distance for first, second, distance in found} == expected
        assert len(found) == len(expected)


def test_a_group_is_as_alike_as_the_image_that_is_least_like_any_other_from_whichever_side_it_is_seen():
    maps = np.random.default_rng(1).random((4, 5, 5, 32)).astype(np.float16) ** 4
    maps[1], maps[2] = maps[0][:, ::-1], maps[0]
    assert measure_similarity(maps[:3]) == pytest.approx(1, abs=1e-3)
    maps[3, ..., :16], maps[0, ..., 16:] = 0, 0
    assert measure_similarity(maps[[0, 3]]) == pytest.approx(0, abs=1e-3)
    assert measure_similarity(maps) < 0.9


def test_what_a_backbone_makes_of_copies_is_told_and_moves_no_image(copied, store):
    manifest, made = find(copied, store)
    settings = BackboneConfig(name="vgg16-mini", weights="drawings", image_size_pixels=64)
    given = (all_of(manifest), DumpConfig(path=copied), load_backbone(settings, store).value, settings, store)
    confirmed = confirm_duplicates(made.value, *given)
    assert confirmed.value.rows == made.value.rows and not confirmed.reused
    assert confirm_duplicates(made.value, *given) == replace(confirmed, reused=True)
    recompressed = confirmed.value.groups[1]
    strangers = replace(recompressed, images=manifest.images[:12:11])
    others = confirm_duplicates(replace(made.value, groups=(strangers,)), *given).value
    assert others.groups[0].similarity < recompressed.similarity < 1


def test_without_a_backbone_there_is_nothing_to_confirm_by(copied, store):
    settings = BackboneConfig(name="none", image_size_pixels=64)
    manifest, made = find(copied, store)
    given = (all_of(manifest), DumpConfig(path=copied), load_backbone(settings, store).value, settings, store)
    assert confirm_duplicates(made.value, *given).value == made.value


def test_images_that_a_split_leaves_out_pass_no_backbone(copied, store):
    settings = BackboneConfig(name="vgg16-mini", weights="drawings", image_size_pixels=64)
    manifest, made = find(copied, store)
    split = replace(
        all_of(manifest), train=tuple(row for row in manifest.images if row.path != "train/dog.21.jpg")
    )
    given = (split, DumpConfig(path=copied), load_backbone(settings, store).value, settings, store)
    seen = confirm_duplicates(made.value, *given)
    assert [group.similarity is None for group in seen.value.groups] == [False, True, False, False]
    assert seen.note.startswith("7 near-identical images")
    assert confirm_duplicates(made.value, *given[:-1], store.looking()).reused


def test_a_report_tells_which_groups_a_backbone_doubts(copied, store):
    manifest, made = find(copied, store)
    first, *others = made.value.groups
    doubted = replace(made.value, groups=(replace(first, similarity=0.5, doubted=True), *others))
    split = split_manifest(manifest, SplitConfig(train=5, validation=3, test=2), made.value.rows)
    section = describe_duplicates(doubted, split)
    assert "In 1 group the backbone sees images less alike than copies are" in section.text[-1]
    assert [row[-1] for row in section.tables[0].rows][:4] == ["0.5000", "", "", "–"]


def test_copies_in_a_dump_are_found_and_those_with_different_labels_told(copied, store, caplog):
    with caplog.at_level(logging.WARNING, "thaw"):
        _, made = find(copied, store)
    found = made.value
    assert list_paths(found) == COPIED and found.compared == 25
    assert [group.labels for group in found.conflicts] == [("cat", "dog")]
    assert "different labels: train/cat.30.jpg (cat), train/dog.0.jpg (dog)" in caplog.text
    assert made.note == "9 of 25 images in 4 groups of near-identical ones, 1 with different labels"


def test_what_was_found_is_published_once(copied, store, hashed):
    manifest, first = find(copied, store)
    assert len(hashed) == 25
    again = find_duplicates(manifest, DumpConfig(path=copied), TOGETHER, store)
    assert (first.reused, again.reused) == (False, True) and first.value == again.value
    assert store.read("duplicates", first.value.address, Duplicates) == first.value
    assert Duplicates.from_json(first.value.to_json()) == first.value
    assert len(hashed) == 25


def test_only_new_images_of_a_dump_that_grew_are_hashed(copied, store, hashed):
    find(copied, store)
    with zipfile.ZipFile(copied, "a") as archive:
        archive.writestr("train/cat.40.jpg", encode(paint(40)))
        archive.writestr("train/cat.41.jpg", copy_file(paint(7), "resize"))
    hashed.clear()
    _, made = find(copied, store)
    assert len(hashed) == 2
    assert ["train/cat.7.jpg", "train/cat.41.jpg"] in list_paths(made.value)


def test_another_distance_is_another_search_over_the_same_hashes(copied, store, hashed):
    manifest, wide = find(copied, store)
    strict = DuplicatesConfig(distance_bits=0)
    narrow = find_duplicates(manifest, DumpConfig(path=copied), strict, store)
    assert len(narrow.value.groups) < len(wide.value.groups) and len(hashed) == 25
    assert narrow.value.address != wide.value.address


def test_hashes_by_other_rules_are_not_taken_over(copied, store, hashed, monkeypatch):
    manifest, _ = find(copied, store)
    monkeypatch.setattr(duplicates, "HASHER", 2)
    assert not find_duplicates(manifest, DumpConfig(path=copied), TOGETHER, store).reused
    assert len(hashed) == 50


def test_nothing_is_looked_for_where_images_are_placed_alone(copied, store, hashed):
    made = find(copied, store, DuplicatesConfig(placement="alone"))[1]
    assert made.value.groups == () and made.value.rows == () and hashed == []
    assert not store.folder("duplicates").exists()


def test_images_too_small_to_be_told_by_a_hash_are_left_alone(tmp_path, store):
    small = paint(3, side=63)
    images = {"train/cat.0.jpg": encode(small), "train/dog.0.jpg": encode(small, 50)}
    path = write_dump(tmp_path / "small.zip", images)
    assert find(path, store)[1].value.compared == 0
    found = find(path, store, DuplicatesConfig(smallest_side_pixels=32))[1].value
    assert found.compared == 2 and len(found.conflicts) == 1


def test_an_image_that_changed_since_the_scan_is_told(copied, store):
    manifest = scan_dump(DumpConfig(path=copied), store).value
    write_dump(copied, {row.path: encode(paint(5)) for row in manifest.images})
    with pytest.raises(BadDump, match=r"train/cat.0.jpg changed since the dump was scanned"):
        find_duplicates(manifest, DumpConfig(path=copied), TOGETHER, store)


def test_nothing_is_made_in_a_store_that_is_only_looked_at(copied, store):
    manifest = scan_dump(DumpConfig(path=copied), store).value
    with pytest.raises(NotPublished):
        find_duplicates(manifest, DumpConfig(path=copied), TOGETHER, store.looking())


def pick(manifest: Manifest, *groups: tuple[str, ...]) -> list[list[ImageRow]]:
    rows = {row.path: row for row in manifest.images}
    return [[rows[f"train/{name}.jpg"] for name in group] for group in groups]


def count_sides(made, group: list[ImageRow]) -> set[str]:
    return {side for side in SIDES for row in made.rows(side) if row in group}


INDEX = SplitConfig(strategy="index", train=6, validation=3, test=3)
HASH = SplitConfig(strategy="hash", train=0.4, validation=0.3, test=0.3)


def test_index_keeps_its_counts_and_puts_a_group_where_its_first_image_belongs():
    manifest = flat_manifest(cat=12, dog=20)
    groups = pick(manifest, ("dog.1", "dog.7", "dog.11"), ("dog.9", "dog.15"))
    made = split_manifest(manifest, INDEX, groups)
    assert paths(made, "train") == names("cat", *range(6)) + names("dog", 0, 1, 2, 3, 7, 11)
    assert paths(made, "validation") == names("cat", 6, 7, 8) + names("dog", 4, 5, 6)
    assert paths(made, "test") == names("cat", 9, 10, 11) + names("dog", 8, 9, 15)


def test_a_group_that_does_not_fit_into_the_rest_of_a_side_goes_to_the_next_and_later_images_fill_up():
    manifest = flat_manifest(cat=12, dog=12)
    made = split_manifest(manifest, INDEX, pick(manifest, ("cat.5", "cat.6", "cat.10")))
    assert paths(made, "train")[:6] == names("cat", 0, 1, 2, 3, 4, 7)
    assert paths(made, "validation")[:3] == names("cat", 5, 6, 10)
    assert paths(made, "test")[:3] == names("cat", 8, 9, 11)


def test_index_puts_images_of_a_later_class_beside_their_group():
    manifest = flat_manifest(cat=12, dog=12)
    group = pick(manifest, ("cat.10", "dog.0"))
    made = split_manifest(manifest, INDEX, group)
    assert count_sides(made, group[0]) == {"test"}
    assert {len(made.rows(side)) for side in SIDES} == {12, 6}


def test_counts_that_groups_can_not_be_divided_into_are_refused():
    manifest = flat_manifest(cat=12, dog=12)
    pairs = pick(manifest, *((f"cat.{number}", f"cat.{number + 1}") for number in range(0, 12, 2)))
    with pytest.raises(
        ShortClass, match=r"class 'cat' .* near-identical stay together.*: validation lacks 1\."
    ):
        split_manifest(manifest, INDEX, pairs)
    fractions = INDEX.model_copy(update={"train": 0.5, "validation": 0.25, "test": 0.25})
    made = split_manifest(manifest, fractions, pairs)
    assert made.counts()["train"]["cat"] == 6 and made.counts()["validation"]["cat"] == 2
    assert made.counts()["test"]["cat"] == 4


def test_hash_puts_a_group_where_its_first_image_s_bytes_do():
    manifest = flat_manifest(cat=60, dog=60)
    groups = pick(
        manifest, *((f"cat.{number + 30}", f"dog.{number}", f"cat.{number}") for number in range(30))
    )
    alone, made = split_manifest(manifest, HASH), split_manifest(manifest, HASH, groups)
    for group in groups:
        assert count_sides(made, group) == count_sides(alone, group[2:])
    others = [row for row in manifest.images if not any(row in group for group in groups)]
    assert all(count_sides(made, [row]) == count_sides(alone, [row]) for row in others)


def test_a_group_that_the_dump_s_folders_divide_keeps_what_tests_and_leaves_out_the_others():
    manifest = ready_manifest(train=10, validation=6, test=6)
    rows = {row.path: row for row in manifest.images}
    group = [rows[path] for path in ("test/cat/1.jpg", "train/cat/2.jpg", "validation/dog/3.jpg")]
    other = [rows[path] for path in ("train/dog/4.jpg", "validation/dog/5.jpg")]
    made = split_manifest(manifest, SplitConfig(strategy="directory"), [group, other])
    assert count_sides(made, group) == {"test"} and count_sides(made, other) == {"validation"}
    assert sum(len(made.rows(side)) for side in SIDES) == len(manifest.images) - 3


def test_a_side_carved_out_of_train_divides_no_group():
    manifest = ready_manifest(train=60, test=5)
    rows = {row.path: row for row in manifest.images}
    groups = [[rows[f"train/{label}/{number + 30 * half}.jpg"] for half in (0, 1)] for label in ("cat", "dog")
              for number in range(30)]  # fmt: skip
    made = split_manifest(manifest, SplitConfig(strategy="directory"), groups)
    assert all(len(count_sides(made, group)) == 1 for group in groups)
    assert len(made.train) + len(made.validation) == 120


@pytest.mark.parametrize("config", [INDEX, HASH])
def test_without_groups_a_split_is_what_it_always_was(config, store):
    manifest = flat_manifest(cat=40, dog=40)
    assert publish_split(manifest, config, store, ()).value == split_manifest(manifest, config)


@pytest.mark.parametrize("config", [INDEX, HASH])
def test_a_new_image_goes_to_the_side_of_its_group_and_none_moves(config):
    small, large = flat_manifest(cat=40, dog=40), flat_manifest(cat=60, dog=60)
    groups = pick(large, *((f"cat.{number}", f"dog.{number + 41}") for number in range(12)))
    before = split_manifest(small, config)
    grown = grow_split(before, small, {}, large, config, groups)
    for group in groups:
        known = count_sides(before, group[:1])
        assert not known or count_sides(grown, group) <= known
    for side in SIDES:
        assert set(before.rows(side)) <= set(grown.rows(side))


@pytest.mark.parametrize("config", [INDEX, HASH])
def test_new_images_of_one_group_go_to_one_side(config):
    small, large = flat_manifest(cat=40, dog=40), flat_manifest(cat=80, dog=80)
    groups = pick(large, *((f"cat.{number}", f"dog.{number}") for number in range(41, 80)))
    grown = grow_split(split_manifest(small, config), small, {}, large, config, groups)
    assert all(len(count_sides(grown, group)) <= 1 for group in groups)


def test_a_new_image_that_ties_train_to_test_goes_to_train_and_is_told(caplog):
    small, large = flat_manifest(cat=12, dog=12), flat_manifest(cat=13, dog=12)
    before = split_manifest(small, INDEX)
    groups = pick(large, ("cat.0", "cat.11", "cat.12"))
    with caplog.at_level(logging.WARNING, "thaw"):
        grown = grow_split(before, small, {}, large, INDEX, groups)
    assert "images of train and test, which stay there, and put to train: train/cat.12.jpg" in caplog.text
    assert before.test == grown.test and set(grown.train) - set(before.train) == {groups[0][2]}


def test_folds_divide_no_group():
    manifest = flat_manifest(cat=40, dog=40)
    split = split_manifest(manifest, SplitConfig(strategy="index", train=20, validation=10, test=10))
    groups = pick(
        manifest, *((f"cat.{number}", f"dog.{number}", f"cat.{number + 15}") for number in range(12))
    )
    folds, alone = make_folds(split, 3, 0, groups), make_folds(split, 3, 0)
    for group in groups:
        held_out = [[row in fold.validation for row in group] for fold in folds]
        assert sorted(map(sum, held_out)) == [0, 0, 3]
    others = {row for row in manifest.images if not any(row in group for group in groups)}
    for fold, before in zip(folds, alone, strict=True):
        assert set(fold.validation) & others == set(before.validation) & others


def test_folds_that_groups_leave_without_a_class_are_refused():
    manifest = flat_manifest(cat=12, dog=12)
    group = pick(manifest, tuple(f"cat.{number}" for number in range(6)))
    split = split_manifest(manifest, INDEX, group)
    with pytest.raises(ShortClass, match=r"class 'cat' has so many near-identical images.* 5 folds"):
        make_folds(split, 5, 0, group)


def test_a_report_lists_groups_conflicts_first_with_the_side_of_each_image(copied, store):
    manifest, made = find(copied, store)
    split = split_manifest(
        manifest, SplitConfig(strategy="index", train=5, validation=3, test=2), made.value.rows
    )
    section = describe_duplicates(made.value, split)
    (table,) = section.tables
    assert "9 of 25 images are near-identical to others" in section.text[0]
    assert section.text[1] == "1 group with different labels: some of those must be wrong."
    assert [row[1] for row in table.rows] == [path for group in COPIED for path in group]
    assert [row[0] for row in table.rows] == ["1", "", "", "2", "", "3", "", "4", ""]
    assert len({row[3] for row in table.rows[3:5]}) == 1
    assert len(section.text) == 2


def test_a_report_of_thousands_of_copies_lists_those_of_different_labels_and_some_of_the_others(
    copied, store
):
    manifest, made = find(copied, store)
    many = ImageGroup(images=manifest.images[:10] * 40, distance_bits=1)
    crowded = replace(made.value, groups=(many, *made.value.groups))
    (table,) = describe_duplicates(crowded, all_of(manifest)).tables
    assert [row[1] for row in table.rows[:3]] == COPIED[0]
    assert len(table.rows) == 201 and table.rows[-1][1] == "and 209 images more, in the store"
    assert {len(row) for row in table.rows} == {6}


def test_a_report_tells_of_a_group_on_several_sides(copied, store):
    manifest, made = find(copied, store)
    alone = split_manifest(manifest, SplitConfig(strategy="index", train=3, validation=2, test=6))
    assert "on several sides" in describe_duplicates(made.value, alone).text[-1]
    nothing = Duplicates(address="", manifest="", compared=25, groups=())
    assert describe_duplicates(nothing, alone).tables == ()


REAL_PAIRS = [
    ["train/dog.74.jpg", "train/dog.180.jpg"],
    ["train/dog.980.jpg", "train/dog.1273.jpg"],
]


@pytest.mark.real
def test_95_of_100_planted_copies_are_found_among_4000_real_images_and_nothing_else_but_what_is_true(
    shared, store, tmp_path
):
    real = shared / "data" / "dogs-vs-cats-200px.zip"
    drawn, planted = random.Random(0), {}
    with zipfile.ZipFile(real) as archive:
        images = {name: archive.read(name) for name in archive.namelist() if name.endswith(".jpg")}
    chosen = [
        f"train/{label}.{number}.jpg" for label in ("cat", "dog") for number in drawn.sample(range(1000), 50)
    ]
    for place, name in enumerate(chosen):
        image = Image.open(io.BytesIO(images[name])).convert("RGB")
        planted[f"train/dog.{5000 + place}.jpg"] = (name, copy_file(image, KINDS[place % 4], place))
    path = write_dump(tmp_path / "planted.zip", images | {copy: data for copy, (_, data) in planted.items()})
    manifest, made = find(path, store)
    assert made.value.compared == 4100
    group_of = {row.path: number for number, group in enumerate(made.value.groups) for row in group.images}
    found = [
        name
        for name, (source, _) in planted.items()
        if name in group_of and group_of[name] == group_of.get(source)
    ]
    assert len(found) >= 95
    without = [[path for path in group if path not in planted] for group in list_paths(made.value)]
    assert [group for group in without if len(group) > 1] == REAL_PAIRS
    weights = shared / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    settings = BackboneConfig(weights=str(weights), image_size_pixels=128)
    given = (all_of(manifest), DumpConfig(path=path), load_backbone(settings, store).value, settings, store)
    assert not any(group.doubted for group in confirm_duplicates(made.value, *given).value.groups)
    counts = SplitConfig(strategy="index", train=1000, validation=500, test=500)
    split = split_manifest(manifest, counts, made.value.rows)
    assert all(len(count_sides(split, group.images)) <= 1 for group in made.value.groups)
    assert split.counts() == {
        side: dict.fromkeys(("cat", "dog"), count)
        for side, count in zip(SIDES, (1000, 500, 500), strict=True)
    }
