"""The gate: what a history must look like to open it."""

import math

import pytest

from thaw.config import GateConfig
from thaw.convergence import judge_convergence
from thaw.errors import EmptyHistory
from thaw.records import Epoch, History

GATE = GateConfig(patience_epochs=5, min_improvement_nats=0.002, noise_multiplier=1.0)


def history(losses: list[float], accuracy: float = 0.9, counts: tuple[int, ...] = (500, 500)) -> History:
    epochs = tuple(
        Epoch(loss=0.1, accuracy=0.9, val_loss=loss, val_accuracy=accuracy, learning_rate=1e-3)
        for loss in losses
    )
    return History(validation_counts=counts, epochs=epochs)


def test_a_flat_loss_opens_the_gate():
    verdict = judge_convergence(history([0.6, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]), GATE)
    assert verdict.state == "plateaued"
    assert verdict.opens_gate
    assert verdict.statistic == pytest.approx(0.0)
    assert verdict.threshold == pytest.approx(0.002)


def test_a_loss_that_rises_after_its_best_opens_the_gate_too():
    verdict = judge_convergence(history([0.6, 0.3, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]), GATE)
    assert verdict.state == "plateaued"
    assert verdict.statistic < 0
    assert "best at epoch 3" in verdict.reason


def test_a_steadily_falling_loss_keeps_the_gate_closed():
    verdict = judge_convergence(history([1 - 0.05 * step for step in range(12)]), GATE)
    assert verdict.state == "improving"
    assert not verdict.opens_gate
    assert verdict.statistic == pytest.approx(0.25)


def test_an_improvement_within_the_noise_does_not_count():
    noisy = [0.6, 0.4, 0.300, 0.32, 0.28, 0.33, 0.295, 0.31]
    assert judge_convergence(history(noisy), GATE).state == "plateaued"
    strict = GATE.model_copy(update={"noise_multiplier": 0.0})
    assert judge_convergence(history(noisy), strict).state == "improving"


def test_too_few_epochs_count_as_still_improving():
    verdict = judge_convergence(history([0.3] * 5), GATE)
    assert verdict.state == "improving"
    assert "too few" in verdict.reason


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_divergence_and_names_its_epoch(bad: float):
    verdict = judge_convergence(history([0.6, 0.5, bad, 0.4, 0.4, 0.4, 0.4, 0.4]), GATE)
    assert verdict.state == "diverged"
    assert verdict.epoch == 3


def test_a_flat_loss_at_the_majority_class_is_at_chance():
    verdict = judge_convergence(history([0.61] * 10, accuracy=0.7, counts=(300, 700)), GATE)
    assert verdict.state == "at_chance"
    assert not verdict.opens_gate
    assert "0.700" in verdict.reason


def test_beating_the_majority_by_luck_is_still_chance():
    # 52 of 100 is what guessing gives every third time.
    assert judge_convergence(history([0.7] * 10, accuracy=0.52, counts=(50, 50)), GATE).state == "at_chance"
    assert judge_convergence(history([0.7] * 10, accuracy=0.65, counts=(50, 50)), GATE).state == "plateaued"


def test_a_confident_head_with_a_high_loss_can_pass():
    assert judge_convergence(history([3.0] * 10, accuracy=0.97), GATE).state == "plateaued"


def test_only_the_override_opens_the_gate_for_an_unconverged_head_and_it_shows():
    falling = history([1 - 0.05 * step for step in range(12)])
    verdict = judge_convergence(falling, GATE.model_copy(update={"override_gate": True}))
    assert verdict.opens_gate
    assert verdict.overridden
    assert verdict.state == "improving"


def test_the_override_is_not_claimed_where_the_head_converged_by_itself():
    verdict = judge_convergence(history([0.3] * 10), GATE.model_copy(update={"override_gate": True}))
    assert verdict.opens_gate
    assert not verdict.overridden


def test_an_empty_history_can_not_be_judged():
    with pytest.raises(EmptyHistory, match="single epoch"):
        judge_convergence(history([]), GATE)


def test_a_head_that_diverged_from_the_start_validates_worse_than_any_other():
    nothing = history([math.nan, math.inf])
    assert nothing.best is None
    assert nothing.best_loss == math.inf
