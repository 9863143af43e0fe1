"""The feature cache: every image once through the prefix, whichever way, and never again."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image

from tests.conftest import small_config
from thaw import extract
from thaw import fill as stage
from thaw.architectures import preprocess
from thaw.augment import draw_view
from thaw.backbone import build_backbone, load_backbone
from thaw.config import AugmentationConfig, TrainConfig
from thaw.disk import Disk
from thaw.dump import scan_dump
from thaw.errors import BadDump, DamagedShard, DiskFull
from thaw.features import cache_features
from thaw.head import train_head
from thaw.images import decode_image, read_image, resize_image
from thaw.records import SIDES, Backbone, Features, Made, Split
from thaw.rows import Rows, ViewSource, export_features, open_training_rows
from thaw.split import publish_split
from thaw.store import Store

# Images of each of the two classes: 20 to train on, 40 in all.
FEW = {"train": 10, "validation": 5, "test": 5}


def prepare(dump: Path, store: Store, **sections: dict) -> tuple[TrainConfig, Split, Backbone]:
    config = small_config(dump, **sections)
    split = publish_split(scan_dump(config.dump, store).value, config.split, store).value
    return config, split, load_backbone(config.backbone, store).value


def fill(
    dump: Path,
    store: Store,
    cut: str = "block5_pool",
    views: int | Literal["fresh"] = 0,
    keep: Sequence[str] = (),
    **sections: dict,
) -> Made[Features]:
    config, split, backbone = prepare(dump, store, **sections)
    return cache_features(
        split, config.dump, backbone, config.backbone, cut, store, views, config.augmentation, keep
    )


def read_all(features: Features, store: Store, version: int = 0) -> np.ndarray:
    return Rows(features.train, store).read(slice(None), version)


def list_shards(features: Features, store: Store) -> dict[str, int]:
    """How many rows each shard of the training rows' space holds."""
    shards = store.folder("features", features.train.space).glob("*/keys.npy")
    return {file.parent.name: len(np.load(file, allow_pickle=False)) for file in shards}


def damage_shard(features: Features, store: Store) -> None:
    """Change a byte of the features in one shard of the training rows' space."""
    shard = next(store.folder("features", features.train.space).glob("*/features.npy"))
    content = bytearray(shard.read_bytes())
    content[500] ^= 0xFF
    shard.write_bytes(content)


@pytest.fixture
def forbid_decoding(monkeypatch: pytest.MonkeyPatch):
    def forbid():
        def read(*_):
            raise AssertionError("an image was decoded")

        monkeypatch.setattr(extract, "read_image", read)

    return forbid


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bytes of every image that is decoded for its features from now on."""
    seen = []

    def read(data: bytes, *settings) -> np.ndarray:
        seen.append(data)
        return read_image(data, *settings)

    monkeypatch.setattr(extract, "read_image", read)
    return seen


def test_features_are_those_of_the_plain_backbone_on_the_same_images(drawn_dump: Path, store: Store):
    made = fill(drawn_dump, store)
    config, split, backbone = prepare(drawn_dump, store)
    with zipfile.ZipFile(drawn_dump) as archive:
        images = [decode_image(archive.read(row.path)) for row in split.train[:8]]
    pixels = np.stack([resize_image(image, 64, "bilinear") for image in images]).astype(np.float32)
    expected = np.asarray(build_backbone(backbone, 64)(preprocess(pixels, "unit")))
    np.testing.assert_allclose(
        read_all(made.value, store)[:8], expected, rtol=0.01, atol=0.01 * expected.max()
    )


def test_the_second_time_nothing_is_decoded_and_nothing_computed(
    drawn_dump: Path, store: Store, forbid_decoding
):
    first = fill(drawn_dump, store)
    forbid_decoding()
    second = fill(drawn_dump, store)
    assert not first.reused
    assert second.reused
    assert second.value == first.value


def test_a_deep_cut_from_a_cached_shallow_one_equals_the_one_from_pixels(
    drawn_dump: Path, tmp_path: Path, forbid_decoding
):
    direct, chained = Store(tmp_path / "direct"), Store(tmp_path / "chained")
    from_pixels = fill(drawn_dump, direct)
    fill(drawn_dump, chained, cut="block4_pool")
    forbid_decoding()
    from_block4 = fill(drawn_dump, chained)
    np.testing.assert_array_equal(read_all(from_pixels.value, direct), read_all(from_block4.value, chained))


def test_one_pass_fills_several_cuts_with_what_separate_passes_give(
    drawn_dump: Path, tmp_path: Path, decoded: list[bytes]
):
    together, apart = Store(tmp_path / "together"), Store(tmp_path / "apart")
    deep = fill(drawn_dump, together, keep=["block4_pool"], split=FEW)
    assert len(decoded) == 40
    shallow = fill(drawn_dump, together, cut="block4_pool", split=FEW)
    assert shallow.reused
    deep_alone = fill(drawn_dump, apart, split=FEW)
    shallow_alone = fill(drawn_dump, apart, cut="block4_pool", split=FEW)
    assert len(decoded) == 40 + 2 * 40
    np.testing.assert_array_equal(read_all(deep.value, together), read_all(deep_alone.value, apart))
    np.testing.assert_array_equal(read_all(shallow.value, together), read_all(shallow_alone.value, apart))


def test_only_missing_rows_are_computed_from_the_deepest_cut_that_has_them(
    drawn_dump: Path, store: Store, forbid_decoding, caplog
):
    fill(drawn_dump, store, split={"train": 3, "validation": 5, "test": 5})
    shallow = fill(drawn_dump, store, cut="block4_pool", keep=["block2_pool"], split=FEW).value
    before = list_shards(shallow, store)
    forbid_decoding()
    caplog.set_level("INFO", logger="thaw.fill")
    made = fill(drawn_dump, store, keep=["block4_pool"], split=FEW)
    # The 26 images of the first split are among the 40 of this one.
    assert list_shards(shallow, store) == before
    assert sorted(list_shards(made.value, store).values()) == [14, 26]
    assert made.note.startswith("26 of 40 rows")
    told = [record.getMessage() for record in caplog.records if record.name == "thaw.fill"]
    assert told == ["14 rows at block5_pool are computed from block4_pool"]


def test_a_shallower_cut_that_is_missing_is_read_from_pixels_and_leaves_the_deeper_alone(
    drawn_dump: Path, store: Store, decoded: list[bytes]
):
    deep = fill(drawn_dump, store, split=FEW).value
    before = list_shards(deep, store)
    decoded.clear()
    made = fill(drawn_dump, store, keep=["block4_pool"], split=FEW)
    assert made.value == deep
    assert list_shards(deep, store) == before
    assert len(decoded) == 40
    assert fill(drawn_dump, store, cut="block4_pool", split=FEW).reused


def test_a_grown_dump_costs_its_new_images_only(
    drawn_dump: Path, tmp_path: Path, store: Store, decoded: list[bytes]
):
    small = tmp_path / "small.zip"
    with zipfile.ZipFile(drawn_dump) as source, zipfile.ZipFile(small, "w") as target:
        for name in source.namelist():
            if int(name.split(".")[1]) < 90:
                target.writestr(name, source.read(name))
    fractions = {"strategy": "hash", "train": 0.6, "validation": 0.2, "test": 0.2}
    fill(small, store, split=fractions)
    decoded.clear()
    fill(drawn_dump, store, split=fractions)
    assert len(decoded) == 20


def test_a_damaged_shard_is_computed_again_and_alone(
    drawn_dump: Path, store: Store, monkeypatch, decoded: list[bytes]
):
    monkeypatch.setattr(stage, "SHARD_ROWS", 32)
    first = fill(drawn_dump, store)
    before = read_all(first.value, store)
    damage_shard(first.value, store)
    decoded.clear()
    again = fill(drawn_dump, store)
    assert 0 < len(decoded) <= 32
    np.testing.assert_array_equal(read_all(again.value, store), before)
    assert list(store.folder("damaged").iterdir())


def test_nothing_is_computed_from_a_damaged_shard_of_a_shallower_cut(
    drawn_dump: Path, tmp_path: Path, store: Store, monkeypatch, decoded: list[bytes]
):
    monkeypatch.setattr(stage, "SHARD_ROWS", 32)
    shallow = fill(drawn_dump, store, cut="block4_pool", split=FEW).value
    damage_shard(shallow, store)
    decoded.clear()
    made = fill(drawn_dump, store, split=FEW).value
    assert 0 < len(decoded) <= 32
    whole = Store(tmp_path / "whole")
    np.testing.assert_array_equal(
        read_all(made, store), read_all(fill(drawn_dump, whole, split=FEW).value, whole)
    )


def test_features_damaged_after_they_were_cached_are_not_trained_on_and_made_again_by_the_next_run(
    drawn_dump: Path, store: Store, decoded: list[bytes]
):
    made = fill(drawn_dump, store, split=FEW).value
    before = read_all(made, store)
    damage_shard(made, store)
    with pytest.raises(DamagedShard, match="made again by the same command"):
        read_all(made, store)
    decoded.clear()
    fill(drawn_dump, store, split=FEW)
    assert len(decoded) == 40
    np.testing.assert_array_equal(read_all(made, store), before)


def test_what_is_missing_is_computed_in_the_order_of_the_split(drawn_dump: Path, store: Store):
    fill(drawn_dump, store, split={"train": 3, "validation": 5, "test": 5})
    fill(drawn_dump, store, split=FEW)
    _, split, _ = prepare(drawn_dump, store, split=FEW)
    order = [row.sha256 for side in SIDES for row in split.rows(side)]
    spaces = store.folder("features").glob("*/*/keys.npy")
    for keys in (np.load(file, allow_pickle=False) for file in spaces):
        if len(keys) == 14:
            made = [image.tobytes().hex() for image in keys["image"]]
            assert made == [image for image in order if image in made]
            return
    raise AssertionError("the rows that were missing are in no shard of their own")


def test_only_training_images_have_views_and_each_view_is_another(drawn_dump: Path, store: Store):
    plain = fill(drawn_dump, store).value
    made = fill(drawn_dump, store, views=2).value
    assert (made.validation, made.test) == (plain.validation, plain.test)
    rows = Rows(made.train, store)
    versions = [rows.read(slice(None), version) for version in range(2)]
    assert not np.array_equal(*versions)
    assert not any(np.array_equal(version, read_all(plain, store)) for version in versions)


def test_a_view_is_the_same_whatever_else_is_in_the_batch(drawn_dump: Path, tmp_path: Path):
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    all_views = fill(drawn_dump, one, views=2).value
    fewer = fill(drawn_dump, other, views=2, split={"train": 7}).value
    rows, few = Rows(all_views.train, one), Rows(fewer.train, other)
    place = [rows.images.index(row) for row in few.images]
    np.testing.assert_array_equal(rows.read(np.array(place), 1), few.read(slice(None), 1))


def test_an_image_is_decoded_once_for_all_its_views_and_cuts(
    drawn_dump: Path, store: Store, decoded: list[bytes]
):
    made = fill(drawn_dump, store, views=3, keep=["block4_pool"], split=FEW)
    assert len(decoded) == len(set(decoded)) == 40
    assert sum(list_shards(made.value, store).values()) == 3 * 20


def test_another_augmentation_is_another_space(drawn_dump: Path, store: Store):
    one = fill(drawn_dump, store, views=1).value
    other = fill(drawn_dump, store, views=1, augmentation={"rotation_degrees": 90}).value
    assert one.train.space != other.train.space


@pytest.fixture(scope="module")
def viewed(drawn_dump: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Features, ViewSource, Store]:
    """Three cached views of each training image, and what fresh ones are drawn from."""
    store = Store(tmp_path_factory.mktemp("viewed") / "store")
    config, _, backbone = prepare(drawn_dump, store, split=FEW)
    given = {"settings": config.backbone, "augmentation": config.augmentation}
    source = ViewSource(dump=config.dump, backbone=backbone, **given)
    return fill(drawn_dump, store, views=3, split=FEW).value, source, store


def test_fresh_views_are_not_cached(viewed, drawn_dump: Path, tmp_path: Path, decoded: list[bytes]):
    store = Store(tmp_path / "other")
    features = fill(drawn_dump, store, views="fresh", split=FEW).value
    assert [file.name for file in store.folder("features", features.train.space).iterdir()] == ["space.json"]
    assert len(decoded) == len(set(decoded)) == 20  # of validation and test
    cached, _, other = viewed
    for side in ("validation", "test"):
        expected = Rows(getattr(cached, side), other).read(slice(None))
        np.testing.assert_array_equal(Rows(getattr(features, side), store).read(slice(None)), expected)


def test_a_fresh_view_is_the_cached_one_of_the_same_number_bit_for_bit(viewed, drawn_dump: Path):
    cached, source, store = viewed
    fresh = fill(drawn_dump, store, views="fresh", split=FEW).value
    rows, some = Rows(cached.train, store), np.array([17, 3, 4, 19, 0])
    with open_training_rows(fresh, source, store) as drawn:
        assert drawn.shape == rows.shape
        assert drawn.count_labels() == rows.count_labels()
        for epoch in (0, 1, 2):
            np.testing.assert_array_equal(drawn.read(slice(None), epoch), rows.read(slice(None), epoch))
            np.testing.assert_array_equal(drawn.read(some, epoch), rows.read(some, epoch))
        seen = [drawn.read(some, epoch) for epoch in (2, 3, 4)]
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])


def test_training_on_fresh_views_is_training_on_as_many_cached_ones(viewed, drawn_dump: Path):
    cached, source, store = viewed
    fresh = fill(drawn_dump, store, views="fresh", split=FEW).value
    settings = {"epochs": 3, "stop": "at_budget", "batch_size": 10}
    config = small_config(drawn_dump, head=settings)
    given = (config.head, config.gate, store, 1, source)
    one, other = (train_head(features, *given).value for features in (fresh, cached))
    assert len(one.history.epochs) == 3
    assert one.history == other.history
    assert one.address != other.address


def test_fresh_views_without_anything_to_draw_them_from_are_refused(viewed, drawn_dump: Path):
    _, _, store = viewed
    fresh = fill(drawn_dump, store, views="fresh", split=FEW).value
    with pytest.raises(ValueError, match="source=None"), open_training_rows(fresh, None, store):
        pass


def test_an_image_that_changed_since_the_scan_stops_the_run_with_a_hint(
    drawn_dump: Path, tmp_path: Path, store: Store
):
    dump = tmp_path / "dump.zip"
    dump.write_bytes(drawn_dump.read_bytes())
    config, split, backbone = prepare(dump, store)
    with zipfile.ZipFile(drawn_dump) as source, zipfile.ZipFile(dump, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read("train/cat.1.jpg" if name == "train/cat.0.jpg" else name))
    with pytest.raises(BadDump, match=r"cat\.0\.jpg changed since"):
        cache_features(split, config.dump, backbone, config.backbone, "block5_pool", store)


def test_no_room_is_told_before_hours_are_spent(drawn_dump: Path, store: Store, monkeypatch):
    monkeypatch.setattr(Store, "free_bytes", lambda self: 1000)
    with pytest.raises(DiskFull, match="MB left"):
        fill(drawn_dump, store)


def test_an_array_cut_short_by_a_full_disk_is_told_as_such(store: Store, monkeypatch):
    # What NumPy raises when the disk fills while it writes an array: an OSError without a number.
    monkeypatch.setattr(Disk, "free_bytes", lambda self: 1000)
    with pytest.raises(DiskFull, match="make room"), store.publish_folder("features", "x", "y"):
        raise OSError("600000 requested and 204736 written")


def test_the_notebook_user_gets_arrays_labels_and_names(drawn_dump: Path, store: Store, tmp_path: Path):
    features = fill(drawn_dump, store).value
    export_features(features, tmp_path / "out", store)
    array = np.load(tmp_path / "out" / "bottleneck_features_train.npy", allow_pickle=False)
    labels = np.load(tmp_path / "out" / "labels_train.npy", allow_pickle=False)
    facts = json.loads((tmp_path / "out" / "classes.json").read_text())
    np.testing.assert_array_equal(array.astype(np.float32), read_all(features, store))
    assert facts["classes"] == ["cat", "dog"]
    assert ["cat" in path for path in facts["paths"]["train"]] == (labels == 0).tolist()


def picture() -> np.ndarray:
    # Low frequencies, as photographs have: bilinear sampling is exact up to rounding.
    y, x = np.mgrid[0:64, 0:64] / 64
    return (127 + 100 * np.stack([np.sin(3 * x), np.cos(2 * y), x * y], axis=-1)).astype(np.uint8)


def test_view_0_is_the_image_itself():
    assert draw_view(picture(), "ab" * 32, 0, AugmentationConfig()) is not None
    np.testing.assert_array_equal(draw_view(picture(), "ab" * 32, 0, AugmentationConfig()), picture())


def test_a_transform_that_does_nothing_leaves_the_image():
    still = AugmentationConfig(rotation_degrees=0, zoom_fraction=0, horizontal_flip=False)
    np.testing.assert_array_equal(draw_view(picture(), "ab" * 32, 1, still), picture())


def test_a_flip_mirrors_about_half_the_views_and_does_nothing_else():
    flips = AugmentationConfig(rotation_degrees=0, zoom_fraction=0, horizontal_flip=True)
    views = [draw_view(picture(), "ab" * 32, view, flips) for view in range(1, 41)]
    mirrored = [np.array_equal(view, picture()[:, ::-1]) for view in views]
    assert 10 < sum(mirrored) < 30
    assert all(flip or np.array_equal(view, picture()) for flip, view in zip(mirrored, views, strict=True))


def test_what_lies_outside_is_filled_with_the_nearest_edge():
    bright = np.full((64, 64, 3), 200, np.uint8)
    wild = AugmentationConfig(rotation_degrees=180, shift_fraction=0.9, shear_degrees=60, zoom_fraction=0.9)
    for view in range(1, 30):
        np.testing.assert_array_equal(draw_view(bright, "cd" * 32, view, wild), bright)


def test_a_view_depends_on_image_view_and_seed_alone():
    settings = AugmentationConfig()
    view = draw_view(picture(), "ab" * 32, 3, settings)
    np.testing.assert_array_equal(view, draw_view(picture(), "ab" * 32, 3, settings))
    others = [("ab" * 32, 4, settings), ("cd" * 32, 3, settings), ("ab" * 32, 3, AugmentationConfig(seed=1))]
    assert not any(np.array_equal(view, draw_view(picture(), *other)) for other in others)


def test_a_rotation_turns_the_picture_by_its_angle():
    quarter = Image.fromarray(picture()).rotate(90)
    turned = AugmentationConfig(rotation_degrees=180, zoom_fraction=0, horizontal_flip=False)
    differences = [
        np.abs(
            draw_view(picture(), hashlib.sha256(bytes([number])).hexdigest(), 1, turned).astype(int)
            - np.asarray(quarter)
        ).mean()
        for number in range(256)
    ]
    assert min(differences) < 2
