"""What a model costs, counted by hand and by Thaw; and what a run took, whoever made what it found."""

import dataclasses
from pathlib import Path

import pytest

from tests.conftest import small_config
from tests.prepared import Prepared, head_of
from thaw.cost import Pass, Spent, account_seconds, count_decodes, count_flops, plan_passes
from thaw.device import prepare_keras
from thaw.dump import scan_dump
from thaw.errors import BadCut, BadModel
from thaw.features import cache_features
from thaw.records import Outcome, Split, StageTime, Verdict
from thaw.split import publish_split
from thaw.store import Store


@pytest.fixture(scope="module")
def keras():
    return prepare_keras()


def test_a_convolution_multiplies_its_kernel_at_every_place_of_its_output(keras):
    entry = keras.Input((9, 7, 3))
    output = keras.layers.Conv2D(5, (3, 2), strides=2)(entry)
    # Places (9 - 3) / 2 + 1 = 4 by (7 - 2) // 2 + 1 = 3; each of 5 outputs adds up 3 · 2 · 3 products.
    assert count_flops(keras.Model(entry, output)) == 2 * 4 * 3 * 5 * 3 * 2 * 3


def test_a_grouped_convolution_multiplies_within_its_groups(keras):
    entry = keras.Input((8, 8, 6))
    output = keras.layers.Conv2D(4, 3, padding="same", groups=2)(entry)
    assert count_flops(keras.Model(entry, output)) == 2 * 8 * 8 * 4 * 3 * 3 * (6 // 2)


def test_a_separable_convolution_is_a_depthwise_one_and_one_of_a_single_place(keras):
    entry = keras.Input((8, 8, 6))
    depthwise = keras.Model(entry, keras.layers.DepthwiseConv2D(3, padding="same")(entry))
    assert count_flops(depthwise) == 2 * 8 * 8 * 6 * 3 * 3
    separable = keras.Model(entry, keras.layers.SeparableConv2D(10, 3, padding="same")(entry))
    assert count_flops(separable) == count_flops(depthwise) + 2 * 8 * 8 * 6 * 10


def test_a_network_inside_another_counts_and_what_does_not_multiply_is_left_out(keras):
    layers = keras.layers
    inner = keras.Sequential([keras.Input((4, 4, 2)), layers.Flatten(), layers.Dense(6, "relu")])
    entry = keras.Input((8, 8, 1))
    tensor = layers.Rescaling(1 / 255)(entry)
    tensor = layers.BatchNormalization()(layers.Conv2D(2, 3, padding="same")(tensor))
    tensor = layers.Dropout(0.5)(layers.MaxPooling2D()(tensor))
    output = layers.Dense(1, "sigmoid")(inner(tensor))
    assert count_flops(keras.Model(entry, output)) == 2 * (8 * 8 * 9 * 2 + 32 * 6 + 6)


def test_a_layer_that_is_used_twice_counts_twice(keras):
    entry = keras.Input((4,))
    dense = keras.layers.Dense(4)
    assert count_flops(keras.Model(entry, dense(dense(entry)))) == 2 * 2 * 4 * 4


def test_a_part_of_a_network_counts_its_own_layers_alone(keras):
    entry = keras.Input((4,))
    middle = keras.layers.Dense(3)(entry)
    whole = keras.Model(entry, keras.layers.Dense(2)(middle))
    part = keras.Model(middle, whole.output)
    assert (count_flops(whole), count_flops(part)) == (2 * (12 + 6), 2 * 6)


def test_a_network_for_images_of_any_size_is_refused(keras):
    entry = keras.Input((None, None, 3))
    model = keras.Model(entry, keras.layers.Conv2D(2, 3, name="open")(entry))
    with pytest.raises(BadModel, match="layer 'open'"):
        count_flops(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "side", "gflops"),
    # Twice the multiply-adds of the papers: 15.3 thousand million (VGG16's convolutions), 3.86 (ResNet50),
    # 0.300 (MobileNetV2), 0.569 (MobileNet), 8.4 (Xception), 0.39 (EfficientNetB0), 0.564 (NASNet mobile).
    [
        ("VGG16", 224, 30.7),
        ("ResNet50", 224, 7.72),
        ("MobileNetV2", 224, 0.6),
        ("MobileNet", 224, 1.138),
        ("Xception", 299, 16.8),
        ("EfficientNetB0", 224, 0.78),
        ("NASNetMobile", 224, 1.128),
    ],
)
def test_published_networks_have_their_published_arithmetic(keras, builder: str, side: int, gflops: float):
    with_top = builder != "VGG16"
    build = getattr(keras.applications, builder)
    model = build(weights=None, include_top=with_top, input_shape=(side, side, 3))
    assert count_flops(model) / 1e9 == pytest.approx(gflops, rel=0.015)
    keras.backend.clear_session()


PLATEAUED = Verdict(state="plateaued", statistic=0.0, threshold=0.1, epoch=5, reason="settled")


def end(*stages: StageTime, head: str = "aa", fine_tuned: str | None = "bb") -> Outcome:
    return Outcome(
        run="run",
        recipe="demo",
        manifest="m",
        split="s",
        verdict=PLATEAUED,
        head=head,
        fine_tuned=fine_tuned,
        stages=stages,
    )


def took(stage: str, seconds: float) -> StageTime:
    return StageTime(stage=stage, seconds=seconds, cached=False)


def found(stage: str) -> StageTime:
    return StageTime(stage=stage, seconds=0.01, cached=True)


BLOCK5, HEAD, TUNE = (
    "features at block5_pool",
    "train head, seed 0, budget 1",
    "fine-tune after block4_pool, seed 0",
)
WHOLE, GROWN = (Pass(images=200, decodes=decodes) for decodes in (200, 10))


@pytest.fixture
def account(store: Store):
    """What extraction and training took in a run of these stages; the runs of a test share a store."""
    split = Split(strategy="index", seed=0, classes=("cat", "dog"), train=(), validation=(), test=())

    def account(*stages: StageTime, head: str = "aa", passes: dict | None = None, **sections):
        settings = small_config(Path("drawn.zip"), **sections)
        return account_seconds(settings, end(*stages, head=head), passes or {BLOCK5: WHOLE}, split, store)

    return account


def test_extraction_and_training_are_added_up_and_other_stages_left_out(account):
    stages = (took("scan dump", 9), took(BLOCK5, 10), took("1 views at block4_pool", 5), took(HEAD, 2))
    stages += (took("judge convergence", 0.1), took("train head, seed 0, budget 2", 3), took(TUNE, 40))
    assert account(*stages, took("release", 7)) == (Spent(here=15), Spent(here=45))


def test_what_is_found_cached_took_what_its_maker_took(account):
    account(took(BLOCK5, 10), took(HEAD, 2))
    assert account(found(BLOCK5), found(HEAD), took(TUNE, 4)) == (Spent(earlier=10), Spent(here=4, earlier=2))


def test_what_nobody_timed_is_unknown(account):
    assert account(found(BLOCK5), found(HEAD), took(TUNE, 4)) == (
        Spent(unknown=True),
        Spent(here=4, unknown=True),
    )


def test_another_head_or_other_features_are_not_taken_for_those_that_were_timed(account):
    account(took(BLOCK5, 5), took(HEAD, 5))
    other = account(found(BLOCK5), found(HEAD), head="cc", backbone={"image_size_pixels": 96})
    assert other == (Spent(unknown=True), Spent(unknown=True))
    shared = account(found(BLOCK5), found(HEAD), head="cc", split={"seed": 3})
    assert shared == (Spent(earlier=5), Spent(unknown=True))


def test_a_run_that_made_few_missing_rows_took_what_all_of_them_did_or_more_than_it_knows(account):
    assert account(took(BLOCK5, 1), passes={BLOCK5: GROWN})[0] == Spent(here=1, unknown=True)
    account(took(BLOCK5, 10))
    assert account(took(BLOCK5, 1), passes={BLOCK5: GROWN})[0] == Spent(here=1, earlier=9)
    assert account(found(BLOCK5))[0] == Spent(earlier=10)


def test_times_of_an_extraction_that_nobody_looked_at_before_are_not_kept(account):
    assert account(took(BLOCK5, 1), passes={"other": WHOLE})[0] == Spent(here=1)
    assert account(found(BLOCK5))[0] == Spent(unknown=True)


def test_every_image_is_decoded_once_and_once_more_for_its_views(drawn_dump: Path, store: Store):
    config = small_config(drawn_dump, fine_tune={"views": 3})
    split = publish_split(scan_dump(config.dump, store).value, config.split, store).value
    assert plan_passes(config, split, store) == {
        BLOCK5: Pass(images=200, decodes=200),
        "3 views at block4_pool": Pass(images=120, decodes=120),
    }


def test_what_the_cache_has_or_can_compute_from_a_shallower_cut_is_not_decoded(prepared: Prepared):
    # Cached there: every image at block5_pool, and one view of those to train on at block4_pool.
    config, split, store = prepared.config, prepared.split, prepared.store
    head_only = config.model_copy(update={"fine_tune": ()})
    assert plan_passes(head_only, split, store) == {BLOCK5: Pass(images=200, decodes=0)}
    on_views = head_only.model_copy(update={"head": config.head.model_copy(update={"views": 1})})
    assert plan_passes(on_views, split, store) == {"1 views at block5_pool": Pass(images=200, decodes=0)}
    # Only those to validate and test on are at block4_pool as well.
    assert plan_passes(config, split, store)[BLOCK5] == Pass(images=200, decodes=120)
    more = config.fine_tune[0].model_copy(update={"views": 3})
    planned = plan_passes(config.model_copy(update={"fine_tune": (more,)}), split, store)
    assert planned["3 views at block4_pool"] == Pass(images=120, decodes=120)


def test_a_cut_by_number_goes_by_its_name_as_in_the_stages(prepared: Prepared):
    numbered = prepared.config.fine_tune[0].model_copy(update={"cut": 15})
    assert prepared.backbone.layers[14] == "block4_pool"
    config = prepared.config.model_copy(update={"fine_tune": (numbered,)})
    assert "1 views at block4_pool" in plan_passes(config, prepared.split, prepared.store)


def test_a_later_phase_decodes_again_for_views_that_the_one_before_kept_at_a_deeper_cut_only(
    prepared: Prepared, store: Store
):
    config = small_config(
        prepared.config.dump.path, fine_tune={"0": {"views": 2}, "1": {"views": 3, "cut": "block3_pool"}}
    )
    planned = plan_passes(config, prepared.split, store)
    assert {title: passes.decodes for title, passes in planned.items()} == {
        BLOCK5: 200,
        "2 views at block4_pool": 120,
        "3 views at block3_pool": 120,
    }


def test_the_plan_is_what_extraction_then_does(prepared: Prepared, store: Store):
    given = (prepared.split, prepared.config.dump, prepared.backbone, prepared.config.backbone)
    head_only = prepared.config.model_copy(update={"fine_tune": ()})
    assert plan_passes(head_only, prepared.split, store)[BLOCK5].is_whole
    cache_features(*given, "block5_pool", store)
    assert plan_passes(head_only, prepared.split, store)[BLOCK5].decodes == 0


def test_a_run_that_can_not_be_cut_has_no_plan(prepared: Prepared):
    wrong = prepared.config.fine_tune[0].model_copy(update={"cut": "block9_pool"})
    config = prepared.config.model_copy(update={"fine_tune": (wrong,)})
    with pytest.raises(BadCut, match="block9_pool"):
        plan_passes(config, prepared.split, prepared.store)


def test_decodes_count_where_a_stage_made_something_and_fresh_views_in_every_epoch(prepared: Prepared):
    config, split, store = prepared.config, prepared.split, prepared.store
    address = head_of(prepared, epochs=2).value.address
    planned = {BLOCK5: WHOLE, "1 views at block4_pool": Pass(images=120, decodes=120)}
    outcome = end(took(BLOCK5, 1), found("1 views at block4_pool"), head=address)
    assert count_decodes(config, outcome, planned, split, store) == 200
    assert count_decodes(config, outcome, None, split, store) is None
    nothing = end(found(BLOCK5), head=address)
    assert count_decodes(config, nothing, None, split, store) == 0
    fresh = config.model_copy(update={"head": config.head.model_copy(update={"views": "fresh"})})
    trained = dataclasses.replace(outcome, stages=(*outcome.stages, took(HEAD, 1)))
    assert count_decodes(fresh, trained, planned, split, store) == 200 + 2 * 120


def test_a_search_passes_the_training_images_once_and_mirror_images_are_those_to_validate_and_test_on(
    drawn_dump: Path, store: Store
):
    changes = {"search": {"grid": {"dropout": [0.1, 0.2]}, "folds": 2}, "ensemble": {"mirrored": True}}
    config = small_config(drawn_dump, head={"views": 1}, fine_tune={"epochs": 0}, **changes)
    split = publish_split(scan_dump(config.dump, store).value, config.split, store).value
    assert plan_passes(config, split, store) == {
        "1 views at block5_pool": Pass(images=200, decodes=200),
        "features of fold 1 of 2, seed 0": Pass(images=60, decodes=60),
        "features of fold 2 of 2, seed 0": Pass(images=60, decodes=60),
        "mirror images at block5_pool": Pass(images=80, decodes=80),
    }
    without_views = small_config(drawn_dump, fine_tune={"epochs": 0}, **changes)
    assert plan_passes(without_views, split, store)["features of fold 2 of 2, seed 0"].images == 0


def test_a_candidate_s_time_is_that_of_the_same_search_on_the_same_images(account):
    candidate, search = "candidate 1 of 2: dropout 0.1", {"grid": {"dropout": [0.1, 0.2]}}
    account(took(candidate, 50), search=search)
    assert account(found(candidate), search=search)[1] == Spent(earlier=50)
    assert account(found(candidate), search=search, augmentation={"seed": 3})[1] == Spent(unknown=True)
    assert account(found(candidate), search=search, backbone={"image_size_pixels": 96})[1] == Spent(
        unknown=True
    )


def test_decodes_of_fresh_views_can_not_be_told_where_networks_are_searched_for_or_averaged(
    prepared: Prepared,
):
    split, store = prepared.split, prepared.store
    fresh = {"head": {"views": "fresh"}, "fine_tune": {"epochs": 0}}
    outcome = end(found(BLOCK5), took(HEAD, 1), head=head_of(prepared, epochs=2).value.address)
    for changes in ({"ensemble": {"mirrored": True}}, {"search": {"grid": {"dropout": [0.1]}}}):
        config = small_config(prepared.config.dump.path, **fresh, **changes)
        assert count_decodes(config, outcome, {BLOCK5: WHOLE}, split, store) is None
