"""Training from cached features: what is learned, what is kept, and that a cut-off run ends the same."""

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from tests.prepared import Prepared, head_of, tune
from thaw import trainer
from thaw.backbone import build_backbone
from thaw.config import HeadConfig, OptimizerConfig
from thaw.cuts import split_model
from thaw.device import list_layers, prepare_keras
from thaw.evaluate import evaluate, measure
from thaw.fine_tune import thaw_suffix
from thaw.head import build_head, train_head
from thaw.rows import Rows
from thaw.steps import compile_network
from thaw.store import Store
from thaw.trainer import load_network, predict_rows


def fresh_store(prepared: Prepared, folder: Path) -> Store:
    """A store with the same features and splits, and nothing trained."""
    folder.mkdir()
    for name in ("features", "splits"):
        (folder / name).symlink_to(prepared.store.folder(name))
    return Store(folder)


def test_a_head_learns_to_tell_the_training_images_apart(prepared: Prepared):
    history = head_of(prepared, stop="at_budget", epochs=15).value.history
    assert len(history.epochs) == 15
    assert history.epochs[-1].loss < history.epochs[0].loss
    assert history.epochs[-1].loss < 0.65


def test_epoch_figures_are_those_of_all_validation_images_by_the_saved_network(prepared: Prepared):
    checkpoint = head_of(prepared).value
    rows = Rows(prepared.bottlenecks.validation, prepared.store)
    probabilities = predict_rows(load_network(prepared.store, checkpoint.address), rows)
    measured = measure(rows.labels, probabilities)
    assert checkpoint.history.best.val_accuracy == pytest.approx(measured.accuracy, abs=1e-6)
    assert checkpoint.history.best.val_loss == pytest.approx(measured.log_loss, abs=1e-4)


def test_the_same_settings_give_the_same_head_bit_for_bit(prepared: Prepared, tmp_path: Path):
    one = head_of(prepared).value
    other = head_of(prepared, store=fresh_store(prepared, tmp_path / "other")).value
    assert one == other


def test_another_seed_gives_another_head(prepared: Prepared):
    assert head_of(prepared).value.history != head_of(prepared, seed=1).value.history


def test_a_head_trained_before_is_found_and_not_trained_again(prepared: Prepared):
    head_of(prepared)
    assert head_of(prepared).reused


def test_a_checkpoint_that_has_lost_what_it_goes_on_from_is_trained_again(prepared: Prepared):
    head = head_of(prepared, epochs=2).value
    prepared.store.folder("checkpoints", head.address, "last.keras").unlink()
    longer = head_of(prepared, epochs=2, budget=2).value
    assert len(longer.history.epochs) == 4


def test_a_checkpoint_whose_record_is_damaged_is_set_aside_and_trained_again(
    prepared: Prepared, tmp_path: Path
):
    store = fresh_store(prepared, tmp_path / "other")
    head = head_of(prepared, store=store, epochs=2).value
    store.folder("checkpoints", head.address, "checkpoint.json").write_text("{")
    again = head_of(prepared, store=store, epochs=2)
    assert not again.reused
    assert again.value == head
    assert head_of(prepared, store=store, epochs=2).reused


def test_a_change_of_the_gates_override_does_not_train_the_head_again(prepared: Prepared):
    head_of(prepared)
    gate = prepared.config.gate.model_copy(update={"override_gate": True, "max_extensions": 9})
    assert train_head(prepared.bottlenecks, prepared.config.head, gate, prepared.store).reused


def test_an_extension_equals_one_longer_budget(prepared: Prepared, tmp_path: Path):
    head_of(prepared, stop="at_budget", epochs=4)
    extended = head_of(prepared, budget=2, stop="at_budget", epochs=4).value
    other = fresh_store(prepared, tmp_path / "other")
    longer = head_of(prepared, store=other, stop="at_budget", epochs=8).value
    assert extended.history == longer.history


def test_training_ends_when_the_verdict_is_settled(prepared: Prepared):
    history = head_of(prepared, epochs=200).value.history
    assert len(history.epochs) < 200


def test_a_diverging_head_stops_at_once_and_keeps_its_last_finite_weights(prepared: Prepared):
    wild = OptimizerConfig(name="sgd", learning_rate=10.0, momentum=0.99)
    checkpoint = head_of(
        prepared, optimizer=wild, activation="linear", stop="at_budget", epochs=50, l2=1.0
    ).value
    assert len(checkpoint.history.epochs) < 50
    assert not np.isfinite(checkpoint.history.epochs[-1].loss)
    assert len(trainer.find_checkpoint(prepared.store, checkpoint.address).history.epochs) < 50
    weights = load_network(prepared.store, checkpoint.address).get_weights()
    assert all(np.isfinite(array).all() for array in weights)


def test_a_fine_tune_starts_from_the_heads_best_weights(prepared: Prepared):
    head = head_of(prepared).value
    tuned = tune(prepared, head).value
    assert tuned.history.start.val_loss == pytest.approx(head.history.best.val_loss, rel=0.02)
    assert tuned.history.start.val_accuracy == pytest.approx(head.history.best.val_accuracy, abs=1e-6)


def test_a_fine_tune_never_validates_worse_than_its_start(prepared: Prepared):
    ruin = OptimizerConfig(name="sgd", learning_rate=1.0)
    tuned = tune(prepared, head_of(prepared).value, optimizer=ruin, epochs=2).value
    assert tuned.history.best_epoch == 0
    assert tuned.history.best == tuned.history.start


def test_a_fine_tune_moves_block_5_and_the_head(prepared: Prepared):
    head = head_of(prepared).value
    strong = OptimizerConfig(name="rmsprop", learning_rate=1e-4)
    tuned = tune(prepared, head, optimizer=strong, epochs=3, patience_epochs=None).value
    last = load_network(prepared.store, tuned.address, "last")
    before = split_model(build_backbone(prepared.backbone, 64), "block4_pool", None).get_weights()
    after = next(layer for layer in last.layers if layer.count_params() == sum(a.size for a in before))
    assert all(not np.array_equal(one, two) for one, two in zip(before, after.get_weights(), strict=True))
    assert all(variable.trainable for variable in last.trainable_variables)
    assert len(last.trainable_variables) == len(before) + 4


def test_a_fine_tune_that_computes_in_bfloat16_keeps_weights_and_model_in_float32(prepared: Prepared):
    tuned = tune(prepared, head_of(prepared).value, precision="mixed_bfloat16", epochs=1).value
    last, model = (load_network(prepared.store, tuned.address, which) for which in ("last", "model"))
    assert {layer.compute_dtype for layer in list_layers(model)} == {"float32"}
    assert "bfloat16" in {layer.compute_dtype for layer in list_layers(last)}
    assert {weights.dtype.name for network in (last, model) for weights in network.get_weights()} == {
        "float32"
    }
    rows = Rows(prepared.block4.validation, prepared.store)
    measured = measure(rows.labels, predict_rows(model, rows))
    assert tuned.history.best.val_loss == pytest.approx(measured.log_loss, rel=0.02)


def test_batch_normalisation_stays_in_inference_mode_in_a_thawed_suffix():
    keras = prepare_keras()
    entry = keras.Input((8, 8, 3))
    cut = keras.layers.Conv2D(4, 3, name="cut")(entry)
    network = keras.Model(entry, keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(4, 3)(cut)))
    head = build_head((4, 4, 4), 2, HeadConfig())
    thawed = thaw_suffix(network, "cut", "norm", head, "unit")
    before = [np.array(variable) for variable in network.get_layer("norm").weights]
    compile_network(thawed, OptimizerConfig(), 2)
    thawed.train_on_batch(np.random.default_rng(0).normal(5, 3, (8, 6, 6, 4)), np.ones((8, 1)))
    after = [np.array(variable) for variable in network.get_layer("norm").weights]
    assert all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_gives_probabilities_for_any_number_of_classes(classes: int):
    network = build_head((2, 2, 4), classes, HeadConfig(dense_units=8))
    outputs = trainer.spread_classes(np.asarray(network(np.ones((5, 2, 2, 4), np.float32))))
    assert outputs.shape == (5, classes)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, atol=1e-6)


def test_an_evaluation_covers_every_test_image_once_and_is_found_again(prepared: Prepared):
    head = head_of(prepared).value
    made = evaluate(head, prepared.bottlenecks.test, prepared.store).value
    assert [row.path for row in made.predictions] == [row.path for row in prepared.split.test]
    assert made.metrics.images == len(prepared.split.test) == 40
    assert np.sum(made.metrics.confusion) == 40
    assert evaluate(head, prepared.bottlenecks.test, prepared.store).reused


def test_metrics_agree_with_figures_worked_by_hand():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    metrics = measure(labels, probabilities)
    assert metrics.accuracy == 0.75
    assert metrics.log_loss == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.7]).mean())
    assert metrics.auc == 1.0
    assert metrics.confusion == ((1, 1), (0, 2))
    # Wilson's interval for 3 of 4.
    assert metrics.accuracy_interval == pytest.approx((0.3006, 0.9544), abs=1e-4)


KILLED_TRAINING = """
    import os, signal, sys
    sys.path.insert(0, {project!r})
    from pathlib import Path
    from tests.prepared import head_of, prepare, tune
    from thaw import journal, trainer
    journal._JOURNAL_SECONDS = 0.0
    prepared = prepare(Path({dump!r}), Path({store!r}))
    run_epoch, left = trainer._run_epoch, {epochs}
    def run_and_die(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return run_epoch(*arguments)
    trainer._run_epoch = run_and_die
    head = head_of(prepared, stop="at_budget", epochs=6).value
    tune(prepared, head, epochs=4, patience_epochs=None)
"""


@pytest.mark.slow
def test_training_killed_in_the_head_and_in_the_fine_tune_ends_bit_for_bit_the_same(
    prepared: Prepared, drawn_dump: Path, tmp_path: Path
):
    head = head_of(prepared, stop="at_budget", epochs=6).value
    tuned = tune(prepared, head, epochs=4, patience_epochs=None).value
    project = str(Path(__file__).resolve().parent.parent)
    # Killed after 3 epochs of the head; then with 3 to go in the head, after 2 of the fine-tune; then let go.
    for epochs, code in ((3, -9), (5, -9), (99, 0)):
        script = textwrap.dedent(KILLED_TRAINING).format(
            project=project, dump=str(drawn_dump), store=str(tmp_path / "killed"), epochs=epochs
        )
        ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
        assert ended.returncode == code, ended.stderr[-2000:]
    killed = Store(tmp_path / "killed")
    for original in (head, tuned):
        again = trainer.find_checkpoint(killed, original.address)
        assert again == original
        one = load_network(prepared.store, original.address).get_weights()
        two = load_network(killed, original.address).get_weights()
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not any(killed.folder("journals").iterdir())
