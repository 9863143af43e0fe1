"""Drift: quiet on the population that a model learned from, an alarm on another, and untested where it can't be."""

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from tests.drift_samples import draw_images, save_head, save_model_of
from tests.prepared import Prepared, head_of
from thaw import drift as drifts
from thaw.answers import read_answers
from thaw.architectures import preprocess
from thaw.batch import Labelled, label_images
from thaw.drift import (
    Drift,
    Population,
    fit_population,
    judge_drift,
    pool_maps,
    project,
    summarize_population,
)
from thaw.ensemble import join_members
from thaw.errors import BadConfig, BadDump, BadModel
from thaw.features import cache_mirrored
from thaw.model import (
    load_model,
    load_population,
    predict_pixels,
    predict_watched,
    watch_prefix,
)
from thaw.records import PIXELS
from thaw.report.drift import list_moves, render_drift, say_drift
from thaw.rows import Rows

CALLED = {"cat": 60, "dog": 40}


def draw_rows(images: int, seed: int = 0, channels: int = 48) -> np.ndarray:
    """Made-up pooled features of one population: skewed and correlated, as those of images are."""
    dice, mixing = np.random.default_rng(seed), np.random.default_rng(99).normal(size=(channels, channels))
    return (np.maximum(dice.normal(size=(images, channels)), 0) @ mixing).astype(np.float32)


def judge(population: Population, pooled: np.ndarray, rate: float = 0.01) -> Drift:
    called = {"cat": len(pooled), "dog": 0}
    return judge_drift(population, project(pooled, population.mean, population.basis), called, rate)


@pytest.fixture(scope="module")
def population() -> Population:
    return fit_population(draw_rows(1000), "train", (500, 500))


@pytest.fixture(scope="module")
def model(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on drawings, saved with its population."""
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save_head(prepared, path, with_population=True)
    return path


def label(model: Path, images: Path, prepared: Prepared, **options) -> Labelled:
    file = options.pop("file", images.parent / "answers.csv")
    return label_images([images], str(model), file, prepared.store, **options).value


@pytest.mark.parametrize(("images", "incoming"), [(120, 200), (400, 20)])
def test_false_alarms_are_no_more_frequent_than_the_rate(images: int, incoming: int):
    rounds, smallest = 300, []
    for seed in range(rounds):
        drawn = draw_rows(images + incoming, seed, channels=6)
        drift = judge(fit_population(drawn[:images], "train", (1, 1)), drawn[images:])
        smallest.append(drift.smallest_p * drift.components_tested)
    for rate in (0.01, 0.05):
        alarms = sum(p <= rate for p in smallest)
        # Three standard deviations of what chance gives.
        assert alarms <= rounds * rate + 3 * np.sqrt(rounds * rate), rate


@pytest.mark.parametrize("kind", ["moved", "scaled", "one class"])
def test_another_population_raises_an_alarm_and_says_what_moved(population: Population, kind: str):
    pooled = draw_rows(400, seed=5)
    if kind == "moved":
        pooled = pooled + 0.5 * pooled.std(axis=0)
    elif kind == "scaled":
        pooled = population.mean + 1.5 * (pooled - population.mean)
    else:
        pooled = pooled[pooled[:, 0] > np.median(pooled[:, 0])]
    drift = judge(population, pooled)
    assert drift.state == "alarm"
    assert drift.smallest_p <= drift.level == pytest.approx(0.01 / drift.components_tested)
    first = drift.components[0]
    assert (first.moved, first.p, first.statistic) == (True, drift.smallest_p, drift.statistic)
    assert [one.p for one in drift.components] == sorted(one.p for one in drift.components)
    if kind == "moved":
        assert abs(first.shift) > 0.2
    assert f"component {first.component} moved by" in list_moves(drift)[0]


def test_a_smaller_rate_asks_for_more(population: Population):
    pooled = draw_rows(100, seed=5)
    pooled += 0.15 * pooled.std(axis=0)
    p = judge(population, pooled).smallest_p * len(population.basis)
    assert 1e-6 < p < 1
    assert judge(population, pooled, p * 1.01).state == "alarm"
    assert judge(population, pooled, p * 0.99).state == "quiet"


def test_a_shift_too_small_to_matter_is_not_found_in_a_batch_of_any_size(population: Population):
    pooled = draw_rows(60_000, seed=6)
    pooled[:, 0] += 0.1 * pooled[:, 0].std()
    drift = judge(population, pooled)
    assert (drift.state, drift.images, drift.tested_images) == ("quiet", 60_000, 1000)
    assert judge(population, pooled) == drift


@pytest.mark.parametrize(("images", "state"), [(19, "untested"), (20, "alarm")])
def test_fewer_than_twenty_images_are_not_tested(population: Population, images: int, state: str):
    drift = judge(population, draw_rows(images, seed=5) * 5)
    assert drift.state == state
    if state == "untested":
        assert "19 images are too few" in say_drift(drift)
        assert drift.smallest_p is None and drift.components == ()


def test_classes_are_listed_by_how_far_their_shares_moved():
    counts = np.array([10, 20, 70])
    drift = judge_drift(
        fit_population(draw_rows(200), "validation", counts),
        np.zeros((0, 12)),
        {"cat": 1, "dog": 2, "owl": 7},
    )
    assert [(one.label, one.trained, one.called) for one in drift.classes] == [
        ("cat", 0.1, 0.1),
        ("dog", 0.2, 0.2),
        ("owl", 0.7, 0.7),
    ]
    moved = judge_drift(
        fit_population(draw_rows(200), "train", counts), np.zeros((0, 12)), {"a": 0, "b": 10, "c": 0}
    )
    assert [one.label for one in moved.classes] == ["b", "c", "a"]


@pytest.mark.parametrize(("rows", "channels", "components"), [(24, 48, None), (28, 48, 1), (1000, 8, 8)])
def test_a_population_has_as_many_components_as_its_rows_carry(
    rows: int, channels: int, components: int | None
):
    fitted = fit_population(draw_rows(rows, channels=channels), "train", (1, 1))
    assert (fitted and len(fitted.basis)) == components


def test_channels_that_never_fire_are_no_components():
    pooled = draw_rows(400, channels=8)
    pooled[:, 3:] = 0
    assert len(fit_population(pooled, "train", (1, 1)).basis) == 3
    assert fit_population(np.ones((400, 8), np.float32), "train", (1, 1)) is None


def test_a_population_comes_back_from_its_bytes(population: Population):
    again = Population.from_bytes(population.to_bytes())
    assert again.side == "train"
    for name in ("counts", "mean", "basis", "rows"):
        np.testing.assert_array_equal(getattr(again, name), getattr(population, name))
    assert {again.mean.dtype, again.basis.dtype, again.rows.dtype} == {np.dtype("float32")}


def test_a_drift_comes_back_from_its_json(population: Population):
    drift = judge(population, draw_rows(100, seed=3) + 1)
    assert Drift.from_json(drift.to_json()) == drift


def test_markdown_tells_the_finding_the_components_and_the_classes(population: Population):
    text = render_drift(judge(population, draw_rows(100, seed=3) * 2), "100 images by champion")
    assert text.startswith(
        "**100 images by champion**\n\nDrift found: 100 images beside 750 training images;"
    )
    assert text.count("| yes |") == drifts._SHOWN
    assert "| cat | 50.0" in text
    untested = render_drift(judge_drift(None, None, CALLED), "title")
    assert "Drift was not tested: the model's file keeps no population" in untested


def test_a_model_keeps_the_training_images_it_learned_from_as_they_are(prepared: Prepared, model: Path):
    kept = load_population(model)
    assert (kept.side, kept.counts.tolist()) == ("train", [60, 60])
    rows = Rows(prepared.bottlenecks.train, prepared.store)
    everything = project(pool_maps(rows.read(slice(None))), kept.mean, kept.basis)
    distances = np.abs(kept.rows[:, None] - everything[None]).max(axis=2)
    assert (distances.min(axis=1) < 1e-5).all()
    assert len(set(distances.argmin(axis=1))) == len(kept.rows) == 90


def test_behind_augmented_views_it_is_the_validation_images_and_from_pixels_none(prepared: Prepared):
    head = head_of(prepared).value
    viewed = replace(head, space=prepared.block4.train.space, cut="block4_pool")
    kept = summarize_population(viewed, prepared.store)
    assert (kept.side, len(kept.rows), kept.counts.tolist()) == ("validation", 30, [60, 60])
    assert summarize_population(replace(head, cut=PIXELS), prepared.store) is None


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_saved_model_gives_probabilities_and_the_cached_features_in_one_pass(
    prepared: Prepared, tmp_path: Path, mirrored: bool
):
    head, settings = head_of(prepared).value, prepared.config.backbone
    if mirrored:
        given = (prepared.split, prepared.config.dump, prepared.backbone, settings, "block5_pool")
        turned = cache_mirrored(*given, prepared.store).value
        head = join_members([head], prepared.bottlenecks, turned, prepared.store).value
    place = tmp_path / "model.keras"
    save_model_of(head, prepared.backbone, settings, prepared.split.classes, prepared.store, place)
    loaded, _ = load_model(place)
    rows = Rows(prepared.bottlenecks.test, prepared.store)
    with zipfile.ZipFile(prepared.config.dump.path) as archive:
        size = settings.image_size_pixels
        pixels = np.stack(
            [
                np.asarray(Image.open(io.BytesIO(archive.read(row.path))).convert("RGB").resize((size, size)))
                for row in rows.images
            ]
        )
    probabilities, pooled = predict_watched(watch_prefix(loaded), pixels)
    np.testing.assert_allclose(probabilities, predict_pixels(loaded, pixels), atol=1e-6)
    prefix = loaded.get_layer("frozen_prefix")
    assert prefix.output.shape[1:] == rows.shape
    alone = np.asarray(prefix(preprocess(pixels.astype(np.float32), prepared.backbone.preprocessing)))
    np.testing.assert_allclose(pooled, pool_maps(alone), rtol=1e-4, atol=1e-4)


def test_new_drawings_are_quiet_and_the_answers_lie_beside_the_drift(
    prepared: Prepared, model: Path, tmp_path: Path
):
    images = draw_images(tmp_path / "images", cats=60, dogs=60)
    (images / "broken.jpg").write_bytes(b"<html>")
    labelled = label(model, images, prepared, file=tmp_path / "answers.parquet")
    assert (labelled.images, labelled.unreadable, labelled.drift.images) == (121, 1, 120)
    assert labelled.drift.state == "quiet"
    assert labelled.drift.reference_side == "train"
    assert Drift.from_json(Path(labelled.drift_file).read_bytes()) == labelled.drift
    assert {file.name for file in tmp_path.iterdir()} == {
        *("answers.parquet", "answers.parquet.drift.json", "images")
    }
    as_csv = label(model, images, prepared)
    for ours, theirs in zip(read_answers(Path(labelled.file)), read_answers(Path(as_csv.file)), strict=True):
        assert (ours.path, ours.label, ours.error) == (theirs.path, theirs.label, theirs.error)
        assert ours.probabilities == (theirs.probabilities and pytest.approx(theirs.probabilities, abs=1e-6))
    assert as_csv.drift == labelled.drift


@pytest.mark.parametrize(
    ("cats", "dogs", "change"),
    [
        (40, 40, lambda image: image.filter(ImageFilter.GaussianBlur(6))),
        (40, 40, ImageOps.invert),
        (120, 0, None),
    ],
    ids=["blurred", "inverted", "one class"],
)
def test_changed_drawings_raise_an_alarm(
    prepared: Prepared, model: Path, tmp_path: Path, cats: int, dogs: int, change
):
    images = draw_images(tmp_path / "images", cats, dogs, change)
    labelled = label(model, images, prepared)
    assert labelled.drift.state == "alarm", labelled.drift
    assert label(model, images, prepared, false_alarm_rate=1e-300).drift.state == "quiet"


def test_a_model_without_a_population_answers_all_the_same_and_says_so(prepared: Prepared, tmp_path: Path):
    save_head(prepared, tmp_path / "model.keras", with_population=False)
    images = draw_images(tmp_path / "images", cats=12, dogs=12)
    labelled = label(tmp_path / "model.keras", images, prepared)
    assert sum(labelled.counts.values()) == 24
    assert labelled.drift.state == "untested"
    assert "keeps no population" in say_drift(labelled.drift)


def test_a_damaged_population_is_a_plain_error(prepared: Prepared, tmp_path: Path):
    save_head(prepared, tmp_path / "model.keras", with_population=False)
    with zipfile.ZipFile(tmp_path / "model.keras", "a") as archive:
        archive.writestr("population.npz", b"no arrays")
    with pytest.raises(BadModel, match="the population in"):
        load_population(tmp_path / "model.keras")


def test_a_wrong_suffix_a_wrong_rate_and_a_folder_are_refused_before_anything_is_read(
    prepared: Prepared, model: Path, tmp_path: Path
):
    missing = tmp_path / "missing"
    with pytest.raises(BadConfig, match=r"\.csv or \.parquet"):
        label(model, missing, prepared, file=tmp_path / "answers.json")
    with pytest.raises(BadConfig, match="between 0 and 1"):
        label(model, missing, prepared, false_alarm_rate=1.0)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(BadConfig, match="it is a folder"):
        label(model, missing, prepared, file=tmp_path / "folder.csv")
    with pytest.raises(BadDump, match="none of the 1 images"):
        label(model, missing, prepared)
    assert not (tmp_path / "answers.csv").exists()
