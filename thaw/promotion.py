"""Champion and challenger, image by image: is the new model better beyond chance, and not worse?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from thaw.config import PromotionConfig
from thaw.errors import UnlikeSplits
from thaw.records import Evaluation, Record

Outcome = Literal["promoted", "kept", "held"]
_INTERVAL_CONFIDENCE = 0.95
_RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 200


@dataclass(frozen=True, kw_only=True)
class Comparison(Record):
    """Two models on the same test images. Differences are the challenger's figure less the champion's.

    Intervals are two-sided, at 95 %: Agresti and Min's for paired accuracies, a paired bootstrap's for
    log losses, which are in nats. The two `_right_only` counts are images that one model got right
    and the other wrong; `mcnemar_p` is their exact two-sided test. `share_better` is the share of
    resamples of the images in which the challenger's log loss is lower.
    """

    images: int
    champion_accuracy: float
    challenger_accuracy: float
    accuracy_difference: float
    accuracy_difference_interval: tuple[float, float]
    champion_right_only: int
    challenger_right_only: int
    mcnemar_p: float
    champion_log_loss: float
    challenger_log_loss: float
    log_loss_difference: float
    log_loss_difference_interval: tuple[float, float]
    share_better: float


@dataclass(frozen=True, kw_only=True)
class Decision(Record):
    """What became of a challenger; both models go by their version numbers.

    `held` waits for a person. `champion` and `comparison` are None where there was no champion.
    `rule` is the `PromotionConfig` that it was judged by, `decided_at` is in UTC.
    """

    outcome: Outcome
    reason: str
    rule: Mapping[str, Any]
    challenger: int
    champion: int | None
    comparison: Comparison | None
    decided_at: str


def compare(champion: Evaluation, challenger: Evaluation) -> Comparison:
    """Compare two models image by image. The same evaluations always give the same figures.

    Raises:
        UnlikeSplits: the evaluations are not of the same classes and the same images in the same order.
    """
    from scipy.stats import bootstrap

    _check_alike(champion, challenger)
    champion_right, challenger_right = _find_right(champion), _find_right(challenger)
    champion_losses, challenger_losses = _measure_losses(champion), _measure_losses(challenger)
    images = len(champion_right)
    lost = int((champion_right & ~challenger_right).sum())
    won = int((challenger_right & ~champion_right).sum())
    resampled = bootstrap(
        (challenger_losses - champion_losses,),
        np.mean,
        n_resamples=_RESAMPLES,
        batch=_RESAMPLES_AT_ONCE,
        confidence_level=_INTERVAL_CONFIDENCE,
        method="percentile",
        rng=0,
    )
    return Comparison(
        images=images,
        champion_accuracy=float(champion_right.mean()),
        challenger_accuracy=float(challenger_right.mean()),
        accuracy_difference=(won - lost) / images,
        accuracy_difference_interval=_bound_difference(images, lost, won, _INTERVAL_CONFIDENCE),
        champion_right_only=lost,
        challenger_right_only=won,
        mcnemar_p=_test_discordant(lost, won, "two-sided"),
        champion_log_loss=float(champion_losses.mean()),
        challenger_log_loss=float(challenger_losses.mean()),
        log_loss_difference=float((challenger_losses - champion_losses).mean()),
        log_loss_difference_interval=tuple(float(end) for end in resampled.confidence_interval),
        share_better=float((resampled.bootstrap_distribution < 0).mean()),
    )


def judge(comparison: Comparison, settings: PromotionConfig) -> tuple[bool, str]:
    """Whether a challenger may take the champion's place, and the sentence that says why, with the figures.

    It may when it is not worse: the one-sided lower limit of the accuracies' difference lies above
    `-settings.margin`; and when it is better by what `settings.better_by` asks: its log loss is lower in
    at least a share `settings.confidence` of resamples, or it makes fewer mistakes by McNemar's exact
    one-sided test.
    """
    better, evidence = _judge_better(comparison, settings)
    lost, won = comparison.champion_right_only, comparison.challenger_right_only
    # A one-sided limit is the end of a two-sided interval that leaves as much out on the other side.
    lowest, _ = _bound_difference(comparison.images, lost, won, 2 * settings.confidence - 1)
    accuracy = (
        f"accuracy {comparison.challenger_accuracy:.4f} against {comparison.champion_accuracy:.4f}, "
        f"at worst {max(0, -lowest):.4f} lower at {100 * settings.confidence:g} %, {settings.margin:g} allowed"
    )
    accepted = better and lowest > -settings.margin
    return accepted, f"{'accepted' if accepted else 'kept'}: {evidence}{accuracy}"


def decide(
    comparison: Comparison | None, settings: PromotionConfig, *, challenger: int, champion: int | None
) -> Decision:
    """What becomes of a challenger. The first model has no champion to be compared with."""
    accepted, reason = True, "accepted: there is no champion to compare with"
    if comparison:
        accepted, reason = judge(comparison, settings)
    if_accepted = "promoted" if settings.approval == "automatic" else "held"
    return _decide(if_accepted if accepted else "kept", reason, settings, challenger, champion, comparison)


def hold(reason: str, settings: PromotionConfig, *, challenger: int, champion: int) -> Decision:
    """Leave it to a person, where the two models can't be compared."""
    return _decide("held", reason, settings, challenger, champion, None)


def _decide(
    outcome: Outcome,
    reason: str,
    settings: PromotionConfig,
    challenger: int,
    champion: int | None,
    comparison: Comparison | None,
) -> Decision:
    return Decision(
        outcome=outcome,
        reason=reason,
        rule=settings.model_dump(mode="json"),
        challenger=challenger,
        champion=champion,
        comparison=comparison,
        decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _judge_better(comparison: Comparison, settings: PromotionConfig) -> tuple[bool, str]:
    if settings.better_by == "nothing":
        return True, ""
    if settings.better_by == "accuracy":
        p = _test_discordant(comparison.champion_right_only, comparison.challenger_right_only, "greater")
        allowed = 1 - settings.confidence
        return p < allowed, f"p = {p:.3g} for fewer mistakes, below {allowed:.3g} needed; "
    return comparison.share_better >= settings.confidence, (
        f"log loss {comparison.challenger_log_loss:.4f} against the champion's "
        f"{comparison.champion_log_loss:.4f}, better in {100 * comparison.share_better:.4g} % of resamples, "
        f"{100 * settings.confidence:g} % needed; "
    )


def _check_alike(champion: Evaluation, challenger: Evaluation) -> None:
    found = None
    if champion.classes != challenger.classes:
        found = f"the champion knows the classes {champion.classes}, the challenger {challenger.classes}"
    elif len(champion.predictions) != len(challenger.predictions):
        found = f"the champion was tested on {len(champion.predictions)} images, "
        found += f"the challenger on {len(challenger.predictions)}"
    else:
        pairs = zip(champion.predictions, challenger.predictions, strict=True)
        for number, (one, other) in enumerate(pairs, 1):
            if (one.path, one.label) != (other.path, other.label):
                found = f"test image {number} is '{one.path}' ({one.label}) for the champion, "
                found += f"'{other.path}' ({other.label}) for the challenger"
                break
    if found:
        raise UnlikeSplits(
            f"{found} (splits {champion.split} and {challenger.split}). "
            "Evaluate both on the same test images before comparing them."
        )


def _labels(evaluation: Evaluation) -> np.ndarray:
    index = {label: number for number, label in enumerate(evaluation.classes)}
    return np.array([index[prediction.label] for prediction in evaluation.predictions])


def _probabilities(evaluation: Evaluation) -> np.ndarray:
    return np.array([prediction.probabilities for prediction in evaluation.predictions])


def _find_right(evaluation: Evaluation) -> np.ndarray:
    return _probabilities(evaluation).argmax(axis=1) == _labels(evaluation)


def _measure_losses(evaluation: Evaluation) -> np.ndarray:
    """Each image's log loss in nats, clipped as scikit-learn does, so that their mean is the metric's."""
    probabilities, labels = _probabilities(evaluation), _labels(evaluation)
    smallest = np.finfo(probabilities.dtype).eps
    true = probabilities[np.arange(len(labels)), labels].clip(smallest, 1 - smallest)
    return -np.log(true)


def _test_discordant(lost: int, won: int, alternative: Literal["two-sided", "greater"]) -> float:
    """McNemar's exact p: were the images that only one model got right shared out by a fair coin?"""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost, 0.5, alternative).pvalue) if won + lost else 1.0


def _bound_difference(images: int, lost: int, won: int, confidence: float) -> tuple[float, float]:
    """Two-sided interval of the difference of paired accuracies.

    A. Agresti and Y. Min, Statistics in Medicine 24 (2005), 729-740: Wald's interval with half an
    image more in each of the four cells, so that it has a width even where both models agree.
    """
    from scipy.stats import norm

    total = images + 2
    middle = (won - lost) / total
    deviation = math.sqrt((won + lost + 1) / total - middle**2) / math.sqrt(total)
    reach = float(norm.ppf((1 + confidence) / 2)) * deviation
    return middle - reach, middle + reach
