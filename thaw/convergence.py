"""The gate: has the head stopped learning?

Fine-tuning behind a head that still learns destroys what the backbone knows: the head's large
gradients reach the convolutions (F. Chollet, Deep Learning with Python, 2nd ed., ch. 8.3.2).
"""

import math
from dataclasses import replace

import numpy as np

from thaw.config import GateConfig, TrainingConfig
from thaw.errors import EmptyHistory
from thaw.records import History, Verdict

# One-sided 97.5 %: a network that guesses passes for better than the majority class one time in forty.
_CHANCE_DEVIATIONS = 1.96


def judge_convergence(history: History, gate: GateConfig, settings: TrainingConfig | None = None) -> Verdict:
    """Decide whether a head has stopped learning, from its history alone.

    The statistic is by how much, in nats, the best validation loss of the last `gate.patience_epochs`
    beats the best before them, that of a start which was measured included. The threshold is the larger of
    `gate.min_improvement_nats` and `gate.noise_multiplier` standard deviations of those last losses about
    their own straight line.

    Args:
        settings: of the training. Where it has a patience of its own, that counts in place of the gate's, and
            training that ran out of it has plateaued by what it monitors.

    Returns:
        `plateaued` when the statistic does not exceed the threshold; `improving` when it does, or
        when there are too few epochs to tell; `diverged` on a non-finite loss; `at_chance` when
        training plateaued without beating the majority class of the validation images.

    Raises:
        EmptyHistory: no epoch was run.
    """
    if not history.epochs:
        raise EmptyHistory("the head was not trained for a single epoch, so there is nothing to judge.")
    # What a model was taken over with counts as what came before.
    seen = (history.start, *history.epochs) if history.start else history.epochs
    losses = np.array([epoch.val_loss for epoch in seen])
    broken = [
        number
        for number, epoch in enumerate(history.epochs, 1)
        if not (math.isfinite(epoch.loss) and math.isfinite(epoch.val_loss))
    ]
    if broken:
        return _verdict(
            "diverged", None, None, broken[0], f"the loss is not finite in epoch {broken[0]}", gate
        )
    epochs, patience = len(history.epochs), (settings and settings.patience_epochs) or gate.patience_epochs
    gave_up = settings is not None and _has_given_up(history, settings)
    if len(losses) <= patience and not gave_up:
        reason = f"{epochs} epochs are too few to tell: it takes more than the patience of {patience}"
        return _verdict("improving", None, None, epochs, reason, gate)
    if gave_up and _beats_majority(history):
        reason = (
            f"{settings.patience_epochs} epochs without a better {settings.monitor.replace('_', ' ')}; "
            f"best at epoch {history.best_epoch}"
        )
        return _verdict("plateaued", None, None, epochs, reason, gate)
    recent = losses[-patience:]
    statistic = float(losses[:-patience].min() - recent.min())
    threshold = max(gate.min_improvement_nats, gate.noise_multiplier * _noise(recent))
    compared = f"in the last {patience} epochs val loss improved by {statistic:.4f} nats"
    if statistic > threshold:
        reason = f"{compared}, more than {threshold:.4f}, when the budget ran out"
        return _verdict("improving", statistic, threshold, epochs, reason, gate)
    if not _beats_majority(history):
        share = max(history.validation_counts) / sum(history.validation_counts)
        reason = (
            f"val accuracy {history.best.val_accuracy:.3f} at epoch {history.best_epoch} does not beat "
            f"calling everything the largest class ({share:.3f})"
        )
        return _verdict("at_chance", statistic, threshold, epochs, reason, gate)
    reason = f"{compared}, no more than {threshold:.4f}; best at epoch {history.best_epoch}"
    return _verdict("plateaued", statistic, threshold, epochs, reason, gate)


def trace_verdicts(
    history: History, gate: GateConfig, settings: TrainingConfig | None = None
) -> list[Verdict]:
    """What `judge_convergence` would have said after each epoch: how a head came to the verdict on it."""
    epochs = history.epochs
    return [
        judge_convergence(replace(history, epochs=epochs[:count]), gate, settings)
        for count in range(1, len(epochs) + 1)
    ]


def _has_given_up(history: History, settings: TrainingConfig) -> bool:
    patience = settings.patience_epochs
    return patience is not None and history.count_idle_epochs(settings.min_improvement) >= patience


def _verdict(state, statistic, threshold, epoch, reason, gate: GateConfig) -> Verdict:
    return Verdict(
        state=state,
        statistic=statistic,
        threshold=threshold,
        epoch=epoch,
        reason=reason,
        overridden=gate.override_gate and state != "plateaued",
    )


def _noise(losses: np.ndarray) -> float:
    """Standard deviation of losses about their own straight line; 0 for two points."""
    if len(losses) < 3:
        return 0.0
    steps = np.arange(len(losses))
    residuals = losses - np.polyval(np.polyfit(steps, losses, 1), steps)
    return float(np.sqrt((residuals**2).sum() / (len(losses) - 2)))


def _beats_majority(history: History) -> bool:
    """Whether the best epoch's accuracy beats calling everything the largest class, and not by luck.

    Losses don't decide: a confident head on unscaled features can be right 97 times in 100 at 3 nats.
    """
    images = sum(history.validation_counts)
    share = max(history.validation_counts) / images
    by_luck = _CHANCE_DEVIATIONS * math.sqrt(share * (1 - share) / images)
    return history.best.val_accuracy > share + by_luck
