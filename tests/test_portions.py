"""Portions of what the feature cache lacks: how work is shared out, and that nobody does another's."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from commands.options import read_runner
from tests.conftest import small_config
from thaw import fill as filling
from thaw import portions
from thaw.backbone import load_backbone
from thaw.dump import scan_dump
from thaw.errors import BadConfig
from thaw.features import FeatureRequest, cache_request, list_parts, read_split
from thaw.index import pack_keys
from thaw.portions import Portion, PortionPlan, PortionSize, begin_request, fill_portion, plan_portions
from thaw.runner import Runner
from thaw.shards import SpaceFolder
from thaw.split import publish_split
from thaw.store import Store

BLOCK4_BYTES = (
    4 * 4 * 64 * 2
)  # of one 64 px image in float16, of a backbone with an eighth of VGG16's filters
PLENTY = 10**6


@pytest.fixture
def request_of(drawn_dump: Path, store: Store):
    """A request for rows of 200 images, of which `changes` say more."""
    config = small_config(drawn_dump)
    split = publish_split(scan_dump(config.dump, store).value, config.split, store).value
    backbone = load_backbone(config.backbone, store).value

    def make(**changes) -> FeatureRequest:
        given = {"cut": "block4_pool", "augmentation": config.augmentation, **changes}
        return FeatureRequest(
            split=split.digest, dump=config.dump, backbone=backbone, settings=config.backbone, **given
        )

    return make


def plan(
    request: FeatureRequest, store: Store, images: int = PLENTY, megabytes: float = PLENTY
) -> PortionPlan:
    return plan_portions(request, PortionSize(images=images, megabytes=megabytes), store).value


def at_most(images: int) -> PortionSize:
    return PortionSize(images=images, megabytes=PLENTY)


def extents(made: PortionPlan) -> list[tuple[int, int, int]]:
    return [(portion.part, portion.start, portion.end) for portion in made.portions]


def list_rows(request: FeatureRequest, store: Store) -> dict[str, np.ndarray]:
    """How many rows are published at each cut, and how many of them are different."""
    (part, *_) = list_parts(request, read_split(request, store), store)
    found = {}
    for cut in request.cuts:
        folder = store.folder("features", part.space.at(cut).digest)
        keys = [np.load(file) for file in folder.glob("*/keys.npy")]
        rows = np.concatenate(keys) if keys else np.empty(0)
        found[cut] = (len(rows), len(np.unique(rows)))
    return found


def test_portions_are_as_large_as_each_other_within_the_limit_of_images(request_of, store: Store):
    made = plan(request_of(), store, images=70)
    assert extents(made) == [(0, 0, 67), (0, 67, 134), (0, 134, 200)]
    assert made.rows == sum(portion.missing for portion in made.portions) == 200


def test_portions_are_within_the_limit_of_bytes(request_of, store: Store):
    kilobytes = 60 * BLOCK4_BYTES / 1000
    made = plan(request_of(), store, megabytes=kilobytes / 1000)
    assert [end - start for _, start, end in extents(made)] == [50, 50, 50, 50]


def test_a_pass_that_keeps_a_shallower_cut_as_well_counts_the_bytes_of_both(request_of, store: Store):
    alone = plan(request_of(cut="block5_pool"), store, megabytes=0.1)
    both = plan(request_of(cut="block5_pool", keep=("block4_pool",)), store, megabytes=0.1)
    # A row of block 5 has a quarter of the bytes.
    assert len(alone.portions) == 2
    assert len(both.portions) == 6


@pytest.mark.parametrize(
    ("images", "views", "workers", "limit"),
    [
        (1_000_000, 1, 8, 31_250),
        (1_000_000, 1, 64, 3_907),
        (100_000, 1, 0, 3_125),
        (4_000, 1, 8, 2_048),
        (4_000, 5, 8, 410),
    ],
)
def test_where_nobody_says_how_many_images_each_worker_gets_some_portions_worth_starting_it_for(
    images: int, views: int, workers: int, limit: int
):
    assert PortionSize(images=None, megabytes=PLENTY, workers=workers).limit_images(images, views) == limit


def test_the_views_of_an_image_stay_together_and_count(request_of, store: Store):
    made = plan(request_of(views=3), store, images=50)
    assert [portion.rows for portion in made.portions if portion.part == 0] == [40, 40]
    assert [portion.rows for portion in made.portions if portion.part == 1] == [120, 120, 120]


def test_fresh_views_are_cached_by_nobody_so_that_nothing_is_shared_out_of_them(request_of, store: Store):
    made = plan(request_of(views="fresh"), store, images=50)
    assert {portion.part for portion in made.portions} == {0}


def test_portions_end_where_shards_do(request_of, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(portions, "SHARD_ROWS", 16)
    made = plan(request_of(), store, images=70)
    # Four shards are what fits.
    assert extents(made) == [(0, 0, 64), (0, 64, 128), (0, 128, 192), (0, 192, 200)]


def test_there_are_never_more_portions_than_anybody_would_follow(
    request_of, store: Store, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(portions, "_MOST_PORTIONS", 10)
    assert len(plan(request_of(), store, images=1).portions) == 10


def test_where_nothing_is_missing_there_are_no_portions(request_of, store: Store):
    request = request_of()
    cache_request(request, store)
    made = plan_portions(request, at_most(10), store)
    assert made.reused
    assert made.value.portions == ()


def test_the_plan_settles_the_precision_for_workers_of_whatever_kind(request_of, store: Store):
    request = request_of()
    settings = request.settings.model_copy(update={"precision": "auto"})
    settled = plan(replace(request, settings=settings), store)
    assert settled.request.settings.precision in ("float32", "bfloat16")


def test_what_fits_into_one_portion_is_done_at_once(request_of, store: Store):
    made = begin_request(request_of(), at_most(PLENTY), store)
    assert (made.value.portions, made.value.computed, made.reused) == ((), 200, False)
    again = begin_request(request_of(), at_most(PLENTY), store)
    assert (again.value.computed, again.reused) == (0, True)


def test_portions_together_make_what_one_run_makes(request_of, store: Store, tmp_path: Path):
    request = request_of(cut="block5_pool", keep=("block4_pool",))
    for portion in plan(request, store, images=70).portions:
        fill_portion(request, portion, store)
    assert list_rows(request, store) == {"block4_pool": (200, 200), "block5_pool": (200, 200)}
    assert cache_request(request, store.looking()).reused


def test_a_portion_that_was_begun_is_gone_on_with(request_of, store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(filling, "SHARD_ROWS", 16)
    request = request_of()
    whole = Portion(part=0, start=0, end=200, rows=200, missing=200)
    part = Portion(part=0, start=0, end=64, rows=64, missing=64)
    fill_portion(request, part, store)
    made = fill_portion(request, whole, store)
    assert (made.value.computed, made.value.found) == (136, 64)
    assert list_rows(request, store) == {"block4_pool": (200, 200)}


def test_who_comes_second_begins_at_the_end_and_both_meet_in_the_middle(
    request_of, store: Store, monkeypatch: pytest.MonkeyPatch
):
    """The second one works whenever the first publishes a shard, as far as it can get meanwhile."""
    monkeypatch.setattr(filling, "SHARD_ROWS", 16)
    request, turns = request_of(), itertools.count(1)
    whole = Portion(part=0, start=0, end=200, rows=200, missing=200)
    append, second = SpaceFolder.append, []

    def publish(folder: SpaceFolder, keys, features) -> None:
        append(folder, keys, features)
        if next(turns) == 3:
            second.append(fill_portion(request, whole, store, backwards=True).value)

    monkeypatch.setattr(SpaceFolder, "append", publish)
    first = fill_portion(request, whole, store).value
    # The images of the first one's next shards were on their way when the second one began.
    assert first.computed + second[0].computed <= 200 + 8 * 16
    assert second[0].computed >= 100
    total, different = list_rows(request, store)["block4_pool"]
    assert total == different == 200


def test_a_shard_that_somebody_else_published_is_left_out_and_counts_as_done(request_of, store: Store):
    request = request_of()
    (part, *_) = list_parts(request, read_split(request, store), store)
    shards = [[(row.sha256, 0) for row in part.images[start : start + 50]] for start in (0, 50, 100)]
    folder = SpaceFolder(store, part.space)
    folder.append(shards[1], np.zeros((50, 4, 4, 64)))
    told = []
    left = list(filling._leave_out(shards, [SpaceFolder(store, part.space)], told.append))
    assert left == [shards[0], shards[2]]
    assert told == [50]
    assert folder.holds(pack_keys(shards[1])).all()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("local", {"kind": "local"}),
        ("pools,portion_images=64", {"kind": "pools", "portion_images": 64}),
        ("dask,workers=2,portion_images=64", {"kind": "dask", "workers": 2, "portion_images": 64}),
        ("tcp://host:8786", {"kind": "dask", "address": "tcp://host:8786"}),
        (
            "tls://host:8786,portion_megabytes=9",
            {"kind": "dask", "address": "tls://host:8786", "portion_megabytes": 9},
        ),
    ],
)
def test_a_runner_is_read_from_words_and_addresses(text: str, expected: dict):
    assert read_runner(text).model_dump(exclude_defaults=True) == {
        name: value for name, value in expected.items() if value != "local"
    }


def test_a_runner_is_a_word_or_an_address_in_a_flows_parameters_as_well():
    assert Runner.model_validate("pools").kind == "pools"
    assert Runner.model_validate("tcp://host:8786") == Runner(kind="dask", address="tcp://host:8786")


@pytest.mark.parametrize(
    "text, words",
    [
        ("dusk", "Did you mean 'dask'?"),
        ("dask,wrokers=2", "unknown setting 'wrokers'. Did you mean 'workers'?"),
        ("dask,workers=0", "nearest valid value is 1"),
        ("dask,2", "--runner takes KIND,KEY=VALUE"),
        ("pools,workers=2", "only a Dask cluster on this machine has workers"),
        ("tcp://host:8786,workers=2", "only a Dask cluster on this machine has workers"),
        ("local,address=tcp://host:8786", "only runner 'dask' has an address"),
    ],
)
def test_a_runner_that_is_none_is_refused(text: str, words: str):
    with pytest.raises(BadConfig) as caught:
        read_runner(text)
    assert words in str(caught.value)
    assert "runner" in str(caught.value)
