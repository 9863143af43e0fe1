"""Phases of fine-tuning: what each thaws, from where it starts, how fast each layer moves, and when it ends."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import small_config
from tests.prepared import Prepared, head_of
from thaw.backbone import build_backbone
from thaw.config import OptimizerConfig, PhaseConfig, PhaseOptimizerConfig
from thaw.convergence import judge_convergence
from thaw.cuts import split_model
from thaw.device import list_layers
from thaw.errors import BadConfig, BadCut
from thaw.features import cache_features
from thaw.fine_tune import check_phases, fine_tune
from thaw.optimizer import plan_rate
from thaw.records import PIXELS, Checkpoint, Epoch, History
from thaw.rows import Rows
from thaw.trainer import load_network, predict_rows

GENTLE = PhaseOptimizerConfig(name="sgd", learning_rate=1e-3)


def thaw_after(prepared: Prepared, cut: str, start: Checkpoint, **settings) -> Checkpoint:
    config = prepared.config
    given = (prepared.split, config.dump, prepared.backbone, config.backbone)
    features = cache_features(*given, cut, prepared.store).value
    phase = PhaseConfig(**{"cut": cut, "epochs": 1, "optimizer": GENTLE, **settings})
    return fine_tune(start, features, prepared.backbone, config.backbone, phase, prepared.store).value


def weights_of(prepared: Prepared, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """The last kernels of a checkpoint, by layer."""
    layers = list_layers(load_network(prepared.store, checkpoint.address, "last"))
    return {layer.name: np.array(layer.kernel) for layer in layers if hasattr(layer, "kernel")}


def kernels_before(prepared: Prepared) -> dict[str, np.ndarray]:
    layers = list_layers(build_backbone(prepared.backbone, 64))
    return {layer.name: np.array(layer.kernel) for layer in layers if hasattr(layer, "kernel")}


def test_a_second_phase_starts_from_the_first_ones_best_weights_and_thaws_more(prepared: Prepared):
    first = thaw_after(prepared, "block4_pool", head_of(prepared).value, epochs=2)
    second = thaw_after(prepared, "block3_pool", first)
    assert second.history.start.val_loss == pytest.approx(first.history.best.val_loss, rel=0.02)
    before = kernels_before(prepared)
    moved = {
        name
        for name, kernel in weights_of(prepared, second).items()
        if name in before and not np.array_equal(kernel, before[name])
    }
    assert moved == {f"block{block}_conv{number}" for block in (4, 5) for number in (1, 2, 3)}


def test_a_phase_cut_at_the_pixels_thaws_everything(prepared: Prepared):
    head = head_of(prepared).value
    tuned = thaw_after(prepared, PIXELS, head)
    assert tuned.history.start.val_loss == pytest.approx(head.history.best.val_loss, rel=0.05)
    before = kernels_before(prepared)
    after = weights_of(prepared, tuned)
    assert all(not np.array_equal(after[name], kernel) for name, kernel in before.items())


def test_deeper_stages_take_smaller_steps(prepared: Prepared):
    head, before = head_of(prepared).value, kernels_before(prepared)
    given = {"optimizer": PhaseOptimizerConfig(name="sgd", learning_rate=1e-2), "batch_size": 4096}
    even = weights_of(prepared, thaw_after(prepared, "block3_pool", head, **given))
    uneven = weights_of(prepared, thaw_after(prepared, "block3_pool", head, depth_factor=0.25, **given))
    # One step of plain gradient descent: a layer's move is its rate times the same gradient.
    for block, share in ((5, 1), (4, 0.25)):
        name = f"block{block}_conv1"
        np.testing.assert_allclose(
            uneven[name] - before[name], share * (even[name] - before[name]), rtol=1e-2, atol=1e-7
        )


def test_a_phase_with_smaller_steps_below_goes_on_as_if_it_had_not_been_cut_off(prepared: Prepared):
    head, gradual = head_of(prepared).value, {"depth_factor": 0.3, "patience_epochs": None}
    whole = thaw_after(prepared, "block3_pool", head, epochs=4, **gradual)
    halves = PhaseConfig(cut="block3_pool", epochs=2, optimizer=GENTLE, **gradual)
    given = (prepared.split, prepared.config.dump, prepared.backbone, prepared.config.backbone)
    features = cache_features(*given, "block3_pool", prepared.store).value
    tuned = fine_tune(
        head, features, prepared.backbone, prepared.config.backbone, halves, prepared.store, budget=2
    ).value
    assert tuned.history == whole.history


def test_a_penalty_shrinks_the_kernels_that_thaw(prepared: Prepared):
    head = head_of(prepared).value
    given = {
        "optimizer": PhaseOptimizerConfig(name="sgd", learning_rate=1e-2),
        "epochs": 3,
        "patience_epochs": None,
    }
    plain = weights_of(prepared, thaw_after(prepared, "block4_pool", head, **given))
    held = weights_of(prepared, thaw_after(prepared, "block4_pool", head, l2=0.5, **given))
    for name in ("block5_conv1", "block5_conv3"):
        assert np.linalg.norm(held[name]) < 0.99 * np.linalg.norm(plain[name])


def test_a_further_budget_goes_on_where_the_phase_stopped(prepared: Prepared):
    head = head_of(prepared).value
    given = (prepared.block4, prepared.backbone, prepared.config.backbone)
    phase = PhaseConfig(epochs=2, optimizer=GENTLE, patience_epochs=None)
    extended = fine_tune(head, *given, phase, prepared.store, budget=2).value
    longer = fine_tune(head, *given, phase.model_copy(update={"epochs": 4}), prepared.store).value
    assert extended.history == longer.history


def test_phases_are_listed_from_the_deepest_cut_to_the_shallowest(prepared: Prepared):
    deeper = [PhaseConfig(cut="block3_pool"), PhaseConfig(cut="block4_pool")]
    with pytest.raises(BadConfig, match=r"'block4_pool' would freeze .* 'block3_pool'"):
        check_phases(deeper, prepared.backbone)
    check_phases(list(reversed(deeper)), prepared.backbone)


def test_a_cut_may_be_given_as_the_index_of_the_first_layer_that_thaws(prepared: Prepared):
    first = prepared.backbone.layers.index("block5_conv1")
    check_phases([PhaseConfig(cut="block4_pool"), PhaseConfig(cut=first)], prepared.backbone)
    with pytest.raises(BadCut, match="99"):
        check_phases([PhaseConfig(cut=99)], prepared.backbone)


def history(*losses: float, start: float | None = None, accuracies: tuple[float, ...] = ()) -> History:
    def epoch(loss: float, accuracy: float = 0.9) -> Epoch:
        return Epoch(loss=loss, accuracy=0.9, val_loss=loss, val_accuracy=accuracy, learning_rate=1e-3)

    epochs = map(epoch, losses, accuracies) if accuracies else map(epoch, losses)
    return History(
        validation_counts=(50, 50), epochs=tuple(epochs), start=epoch(start) if start is not None else None
    )


def test_the_gate_judges_a_phase_by_its_own_patience_and_counts_its_start(drawn_dump: Path):
    gate, phase = small_config(drawn_dump).gate, PhaseConfig(patience_epochs=3)
    idle = history(0.31, 0.32, 0.33, start=0.3)
    assert judge_convergence(idle, gate, phase).state == "plateaued"
    assert judge_convergence(idle, gate).state == "improving"
    assert judge_convergence(history(0.2, 0.1, 0.05, start=0.3), gate, phase).state == "improving"


def test_training_that_ran_out_of_its_own_patience_has_plateaued_by_what_it_monitors(drawn_dump: Path):
    gate = small_config(drawn_dump).gate
    falling = history(0.5, 0.4, 0.3, 0.2, accuracies=(0.9, 0.9, 0.9, 0.9))
    patient = PhaseConfig(patience_epochs=3, monitor="val_accuracy")
    verdict = judge_convergence(dataclasses.replace(falling, monitor="val_accuracy"), gate, patient)
    assert (verdict.state, verdict.opens_gate) == ("plateaued", True)
    assert verdict.reason == "3 epochs without a better val accuracy; best at epoch 1"
    assert judge_convergence(falling, gate, patient).state == "improving"
    hopeless = history(0.7, 0.7, 0.7, 0.7, accuracies=(0.5, 0.5, 0.5, 0.5))
    assert judge_convergence(hopeless, gate, patient).state == "at_chance"


def test_a_cosine_begins_anew_with_each_budget():
    settings = OptimizerConfig(learning_rate=0.1, schedule="cosine")
    assert plan_rate(settings, history(*[1.0] * 10), 10) == 0.1


def test_a_later_phase_has_its_own_penalty_or_none(prepared: Prepared):
    first = thaw_after(prepared, "block4_pool", head_of(prepared).value, l2=0.1)
    second = thaw_after(prepared, "block3_pool", first)

    def penalised(checkpoint: Checkpoint) -> set[str]:
        layers = list_layers(load_network(prepared.store, checkpoint.address, "last"))
        return {layer.name for layer in layers if getattr(layer, "kernel_regularizer", None)}

    assert penalised(first) == {f"block5_conv{number}" for number in (1, 2, 3)}
    assert penalised(second) == set()


def test_what_is_monitored_decides_which_epoch_is_best():
    figures = {"accuracies": (0.8, 0.9, 0.9, 0.85)}
    by_loss = history(0.5, 0.4, 0.3, 0.35, **figures)
    assert by_loss.best_epoch == 3
    by_accuracy = History(
        validation_counts=by_loss.validation_counts, epochs=by_loss.epochs, monitor="val_accuracy"
    )
    assert by_accuracy.best_epoch == 2
    assert by_accuracy.count_idle_epochs() == 2
    assert by_accuracy.count_idle_epochs(min_improvement=0.2) == 3


def test_a_cosine_falls_from_the_whole_rate_to_nearly_nothing():
    settings = OptimizerConfig(learning_rate=0.1, schedule="cosine")
    rates = [plan_rate(settings, history(*[1.0] * done), 10) for done in range(10)]
    assert rates[0] == 0.1
    assert rates[5] == pytest.approx(0.05)
    assert rates[9] < 0.003
    assert rates == sorted(rates, reverse=True)


def test_a_plateau_lowers_the_rate_each_time_the_patience_runs_out():
    settings = OptimizerConfig(learning_rate=0.1, schedule="plateau", decay_rate=0.5, plateau_epochs=2)

    def rate(*losses: float) -> float:
        return plan_rate(settings, history(*losses), 100)

    assert rate(1.0, 0.9, 0.8) == 0.1
    assert rate(1.0, 1.1) == 0.1
    assert rate(1.0, 1.1, 1.2) == 0.05
    assert rate(1.0, 1.1, 1.2, 1.3, 1.4) == 0.025
    assert rate(1.0, 1.1, 1.2, 0.5, 0.6) == 0.05


def test_the_exponential_schedule_falls_in_steps_and_survives_an_extension(prepared: Prepared):
    falling = OptimizerConfig(schedule="exponential", decay_steps=8, decay_rate=0.5)
    given = {"optimizer": falling, "stop": "at_budget", "batch_size": 30, "epochs": 2}
    # 120 images make 4 steps an epoch.
    rates = [epoch.learning_rate for epoch in head_of(prepared, budget=2, **given).value.history.epochs]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])


def test_a_trained_phase_predicts_the_same_from_features_and_from_pixels(prepared: Prepared):
    tuned = thaw_after(prepared, "block3_pool", head_of(prepared).value)
    config = prepared.config
    given = (prepared.split, config.dump, prepared.backbone, config.backbone)
    rows = Rows(cache_features(*given, "block3_pool", prepared.store).value.test, prepared.store)
    pixels = Rows(cache_features(*given, PIXELS, prepared.store).value.test, prepared.store)
    network = load_network(prepared.store, tuned.address)
    prefix = split_model(build_backbone(prepared.backbone, 64), None, "block3_pool")
    scaled = pixels.read(slice(None)).astype(np.float32) / 255
    direct = np.asarray(network(prefix(scaled)))[:, 0]
    np.testing.assert_allclose(predict_rows(network, rows)[:, 1], direct, atol=0.01)
