"""Calibration as a stage: fitted on validation rows, applied to test rows, part of the released model."""

import dataclasses
import json
import zipfile

import numpy as np
import pytest

from flows import method
from tests.prepared import Prepared, head_of
from tests.run_samples import PLATEAUED, make_checkpoint, make_history
from thaw.archive import open_dump
from thaw.calibrate import Calibration, calibrate, choose_temperature
from thaw.contest import Contender
from thaw.device import prepare_keras
from thaw.dump import scan_dump
from thaw.ensemble import Member
from thaw.errors import NotPublished
from thaw.evaluate import evaluate
from thaw.extract import read_pixels
from thaw.model import load_model, predict_pixels
from thaw.records import Checkpoint, Evaluation, FeatureSet, FeatureSpace, ImageRow, Split, digest_of
from thaw.registry import Version
from thaw.release import release_run
from thaw.report import RunSummary
from thaw.shards import SpaceFolder
from thaw.store import Store

IMAGES = 2000
SPACE = FeatureSpace(
    backbone="none",
    weights_sha256="",
    cut="block5_pool",
    image_size_pixels=16,
    resize_fit="squash",
    resize_filter="bilinear",
    colour="rgb",
    preprocessing="unit",
    precision="exact",
    storage="float32",
    augmentation=None,
)


@dataclasses.dataclass(frozen=True)
class Scored:
    """A network that is too sure on purpose, and rows that it was not trained on."""

    checkpoint: Checkpoint
    validation: FeatureSet
    test: FeatureSet
    store: Store


def make_scored(store: Store, classes: int = 2, too_sure: float = 4.0, images: int = IMAGES) -> Scored:
    """Labels are drawn from the very probabilities that the network gives them without the factor on its logits."""
    dice = np.random.default_rng(classes)
    logits = dice.normal(0, 1.5, (2 * images, 1 if classes == 2 else classes)).astype(np.float32)
    paired = np.hstack([np.zeros_like(logits), logits]) if classes == 2 else logits
    shares = np.exp(paired) / np.exp(paired).sum(axis=1, keepdims=True)
    labels = (dice.uniform(size=(2 * images, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    rows = tuple(
        ImageRow(path=f"{number}.jpg", label=f"class {label}", sha256=f"{number:064x}", width=16, height=16)
        for number, label in enumerate(labels)
    )
    names = tuple(f"class {label}" for label in range(classes))
    sides = {"train": (), "validation": rows[:images], "test": rows[images:]}
    split = Split(strategy="index", seed=0, classes=names, **sides)
    store.publish("splits", split.digest, split)
    folder = SpaceFolder(store, SPACE)
    folder.append([(row.sha256, 0) for row in rows], logits[:, None, None])
    folder.publish_facts()

    keras = prepare_keras()
    units = logits.shape[1]
    dense = keras.layers.Dense(units, activation="sigmoid" if units == 1 else "softmax")
    network = keras.Sequential([keras.Input((1, 1, units)), keras.layers.Flatten(), dense])
    dense.set_weights([too_sure * np.eye(units), np.zeros(units)])
    made = make_checkpoint("head", make_history())
    checkpoint = dataclasses.replace(made, address=f"sure-{too_sure:g}-{classes}", split=split.digest)
    with store.publish_folder("checkpoints", checkpoint.address) as partial:
        network.save(partial / "model.keras")
    validation, test = (
        FeatureSet(space=SPACE.digest, split=split.digest, side=side) for side in ("validation", "test")
    )
    return Scored(checkpoint, validation, test, store)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("too_sure", [4.0, 0.4])
def test_a_temperature_of_the_validation_rows_mends_the_test_rows(
    classes: int, too_sure: float, store: Store
):
    scored = make_scored(store, classes, too_sure)
    calibration = calibrate(scored.checkpoint, scored.validation, store).value
    assert calibration.temperature == pytest.approx(too_sure, rel=0.12)
    assert calibration.log_loss_after < calibration.log_loss_before
    tested = evaluate(scored.checkpoint, scored.test, store, temperature=calibration.temperature).value
    before, after = tested.uncalibrated, tested.metrics
    assert after.calibration_error < before.calibration_error / 2
    assert after.log_loss < before.log_loss
    assert after.brier < before.brier
    assert (after.accuracy, after.confusion) == (before.accuracy, before.confusion)
    # Of two classes only the order of images stays exactly what it was, up to the floor.
    assert after.auc == pytest.approx(before.auc, abs=1e-4 if classes == 2 else 0.01)
    plain = evaluate(scored.checkpoint, scored.test, store).value
    assert plain.metrics == before
    assert plain.reliability == tested.uncalibrated_reliability
    assert plain.uncalibrated is None


def test_a_temperature_is_fitted_once_and_never_where_a_store_is_only_looked_at(store: Store):
    scored = make_scored(store, images=200)
    with pytest.raises(NotPublished):
        calibrate(scored.checkpoint, scored.validation, store.looking())
    made = calibrate(scored.checkpoint, scored.validation, store)
    again = calibrate(scored.checkpoint, scored.validation, store.looking())
    assert (made.reused, again.reused) == (False, True)
    assert again.value == made.value
    assert made.note.startswith(f"temperature {made.value.temperature:g}, validation log loss ")
    assert Calibration.from_json(made.value.to_json()) == made.value


def test_an_evaluation_without_a_temperature_lies_where_it_always_did(store: Store):
    scored = make_scored(store, images=60)
    evaluate(scored.checkpoint, scored.test, store)
    evaluate(scored.checkpoint, scored.test, store, temperature=2.0)
    address = digest_of("evaluation", scored.checkpoint.address, scored.test)
    assert store.read("evaluations", address, Evaluation).temperature == 1
    assert len(list(store.folder("evaluations").iterdir())) == 2


def test_what_an_older_version_evaluated_is_read_and_measured_as_today(store: Store):
    scored = make_scored(store, images=60)
    made = evaluate(scored.checkpoint, scored.test, store).value
    (file,) = store.folder("evaluations").iterdir()
    older = json.loads(file.read_text())
    for name in ("temperature", "reliability", "uncalibrated", "uncalibrated_reliability"):
        del older[name]
    for name in ("average_precision", "brier", "calibration_error", "log_loss_unclipped"):
        del older["metrics"][name]
    file.write_text(json.dumps(older))
    found = evaluate(scored.checkpoint, scored.test, store)
    assert found.reused
    assert found.value == made


def draw_rows(images: int, too_sure: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(5)
    logits = dice.normal(0, 1.5, images)
    labels = (dice.uniform(size=images) < 1 / (1 + np.exp(-logits))).astype(int)
    dog = 1 / (1 + np.exp(-too_sure * logits))
    return labels, np.stack([1 - dog, dog], axis=1)


def test_rows_that_are_too_few_or_of_one_class_give_no_temperature():
    labels, probabilities = draw_rows(49, too_sure=4)
    assert choose_temperature(labels, probabilities) == (
        1.0,
        "49 validation images are too few, 50 are needed",
    )
    labels, probabilities = draw_rows(400, too_sure=4)
    cats = labels == 0
    assert choose_temperature(labels[cats], probabilities[cats])[1].endswith("of one class")


def test_rows_that_are_all_right_or_all_wrong_give_no_temperature():
    _, probabilities = draw_rows(200)
    called = probabilities.argmax(axis=1)
    assert "called right" in choose_temperature(called, probabilities)[1]
    temperature, reason = choose_temperature(1 - called, probabilities)
    assert temperature == 1
    assert reason.endswith("50, is at the end of its range")


def test_a_gain_that_chance_gives_is_not_taken():
    temperature, reason = choose_temperature(*draw_rows(100))
    assert temperature == 1
    assert "less than the 1.92 that chance gives" in reason
    assert choose_temperature(*draw_rows(100, too_sure=4))[0] > 2


def test_a_few_real_features_are_left_as_they_are(prepared: Prepared):
    made = calibrate(head_of(prepared).value, prepared.bottlenecks.validation, prepared.store)
    assert made.value.temperature == 1
    assert made.note == "no temperature: 40 validation images are too few, 50 are needed"
    assert made.value.log_loss_before == made.value.log_loss_after


def test_the_released_model_gives_the_probabilities_it_was_tested_with(prepared: Prepared):
    config, store = prepared.config, prepared.store
    head = head_of(prepared).value
    tested = evaluate(head, prepared.bottlenecks.test, store, temperature=2.5).value
    run = RunSummary(
        title="calibrated",
        config=config,
        manifest=scan_dump(config.dump, store).value,
        split=prepared.split,
        members=(Member(seed=0, head=head, verdict=PLATEAUED),),
        backbone=prepared.backbone,
        precision="float32",
        head_evaluation=tested,
    )
    released = release_run(run, store).value
    assert released.temperature == 2.5
    assert released.metrics == tested.metrics
    file = store.folder("runs", released.run, "model.keras")
    assert file.with_name("reliability.png").is_file()
    model, facts = load_model(file)
    assert facts.temperature == 2.5
    with open_dump(config.dump.path) as dump:
        pixels = np.stack([read_pixels(dump, row, config.backbone) for row in prepared.split.test])
    expected = np.array([row.probabilities for row in tested.predictions])
    np.testing.assert_allclose(predict_pixels(model, pixels), expected, atol=5e-4)
    plain = evaluate(head, prepared.bottlenecks.test, store).value
    assert np.abs(expected - [row.probabilities for row in plain.predictions]).max() > 0.02
    with zipfile.ZipFile(file) as archive:
        layers = archive.read("config.json").decode()
    assert "thaw." not in layers
    assert "Lambda" not in layers
    unscaled = release_run(dataclasses.replace(run, head_evaluation=plain), store).value
    assert unscaled.run != released.run
    assert unscaled.temperature == 1


def test_a_registered_model_is_scored_with_the_temperature_it_was_released_with(
    prepared: Prepared, monkeypatch
):
    head = head_of(prepared).value
    version = Version(
        number=1,
        run="r",
        recipe="demo",
        manifest="m",
        split=prepared.split.digest,
        head=head.address,
        fine_tuned=None,
        settings={},
        test_images=40,
        accuracy=0.9,
        log_loss=0.3,
        registered_at="",
        temperature=3.0,
    )
    manifest = scan_dump(prepared.config.dump, prepared.store).value
    model = Contender(
        version=version,
        config=prepared.config,
        manifest=manifest,
        split=prepared.split,
        head=head,
        model=head,
    )
    # The stages as plain functions, without a Prefect server.
    monkeypatch.setattr(method.features, "cache_features", lambda *images, sides: prepared.bottlenecks)
    monkeypatch.setattr(method.release, "evaluate", lambda *given: evaluate(*given).value)
    scored = method.score_model(
        model, prepared.backbone, prepared.split, prepared.config.dump, prepared.store
    )
    assert scored.temperature == 3
    alone = evaluate(head, prepared.bottlenecks.test, prepared.store, temperature=3.0)
    assert alone.reused
    assert scored == alone.value
