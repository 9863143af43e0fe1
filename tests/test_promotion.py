"""The rule of promotion: better beyond chance and not worse, measured on the very same images."""

import math
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from thaw.config import PromotionConfig
from thaw.errors import UnlikeSplits
from thaw.evaluate import measure
from thaw.promotion import Comparison, Decision, compare, decide, judge
from thaw.records import Evaluation, Prediction

IMAGES = 2000
CLASSES = ("cat", "dog")
LABELS = np.arange(IMAGES) % 2
RULE = PromotionConfig()


def evaluation(wrong: range, seed: int = 0, sureness: float = 0.97, images: int = IMAGES) -> Evaluation:
    """A model that calls the images of `wrong` wrong; both ways about as sure as `sureness`."""
    spread = np.random.default_rng(seed).uniform(-0.02, 0.02, images)
    labels, sure = LABELS[:images], sureness + spread
    called = np.where(np.isin(np.arange(images), wrong), 1 - labels, labels)
    dog = np.where(called == 1, sure, 1 - sure)
    probabilities = np.stack([1 - dog, dog], axis=1)
    return Evaluation(
        checkpoint=f"{seed:016}",
        stage="head",
        split="5" * 16,
        classes=CLASSES,
        metrics=measure(labels, probabilities),
        predictions=tuple(
            Prediction(path=f"{number}.jpg", label=CLASSES[label], probabilities=tuple(row))
            for number, (label, row) in enumerate(zip(labels, probabilities.tolist(), strict=True))
        ),
    )


CHAMPION = evaluation(range(60))
BETTER = evaluation(range(50, 60), seed=1)
WORSE = evaluation(range(120), seed=2)
EQUAL = evaluation(range(5, 65), seed=3)
FAULTLESS = evaluation(range(0), seed=4)


def test_a_comparison_holds_the_figures_of_both_evaluations():
    comparison = compare(CHAMPION, BETTER)
    assert comparison.images == IMAGES
    assert comparison.champion_accuracy == CHAMPION.metrics.accuracy
    assert comparison.challenger_accuracy == BETTER.metrics.accuracy
    assert comparison.champion_log_loss == pytest.approx(CHAMPION.metrics.log_loss, abs=1e-6)
    assert comparison.challenger_log_loss == pytest.approx(BETTER.metrics.log_loss, abs=1e-6)
    assert comparison.accuracy_difference == pytest.approx(0.025)
    assert (comparison.champion_right_only, comparison.challenger_right_only) == (0, 50)


def test_the_same_evaluations_give_the_same_comparison_which_survives_json():
    comparison = compare(CHAMPION, EQUAL)
    assert compare(CHAMPION, EQUAL) == comparison
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_models_that_swap_places_swap_the_signs():
    there, back = compare(CHAMPION, WORSE), compare(WORSE, CHAMPION)
    assert there.accuracy_difference == -back.accuracy_difference
    assert there.accuracy_difference_interval == pytest.approx(
        tuple(-end for end in reversed(back.accuracy_difference_interval))
    )
    assert there.mcnemar_p == pytest.approx(back.mcnemar_p)
    assert there.share_better == pytest.approx(1 - back.share_better)


@pytest.mark.parametrize("challenger", [BETTER, WORSE, EQUAL])
def test_mcnemars_p_is_that_of_a_fair_coin_thrown_once_per_image_they_disagree_on(challenger: Evaluation):
    comparison = compare(CHAMPION, challenger)
    lost, won = comparison.champion_right_only, comparison.challenger_right_only
    tail = sum(math.comb(lost + won, count) for count in range(min(lost, won) + 1)) / 2 ** (lost + won)
    assert comparison.mcnemar_p == pytest.approx(min(1.0, 2 * tail))


@pytest.mark.parametrize(
    ("challenger", "points", "accepted"), [(WORSE, -3.0, False), (EQUAL, 0.0, False), (FAULTLESS, 3.0, True)]
)
def test_mcnemars_exact_p_is_that_of_statsmodels(challenger: Evaluation, points: float, accepted: bool):
    tables = pytest.importorskip(
        "statsmodels.stats.contingency_tables", reason="statsmodels is not installed"
    )
    comparison = compare(CHAMPION, challenger)
    right = [
        np.array(
            [max(row.probabilities) == row.probabilities[CLASSES.index(row.label)] for row in one.predictions]
        )
        for one in (CHAMPION, challenger)
    ]
    table = [
        [np.sum((right[0] == ours) & (right[1] == theirs)) for theirs in (True, False)]
        for ours in (True, False)
    ]
    assert comparison.mcnemar_p == pytest.approx(tables.mcnemar(table, exact=True).pvalue)
    assert 100 * comparison.accuracy_difference == pytest.approx(points)
    assert judge(comparison, PromotionConfig(better_by="accuracy"))[0] == accepted
    assert judge(comparison, RULE)[0] == accepted


@pytest.mark.parametrize("challenger", [BETTER, WORSE, EQUAL])
def test_both_intervals_agree_with_computations_of_another_kind(challenger: Evaluation):
    comparison = compare(CHAMPION, challenger)
    lost, won = comparison.champion_right_only, comparison.challenger_right_only
    steps = np.repeat([-1.0, 1.0, 0.0], [lost, won, IMAGES - lost - won])
    resampled = stats.bootstrap((steps,), np.mean, n_resamples=2000, method="percentile", rng=7)
    assert comparison.accuracy_difference_interval == pytest.approx(
        tuple(resampled.confidence_interval), abs=0.002
    )

    def losses(tested: Evaluation) -> np.ndarray:
        return np.array(
            [-math.log(row.probabilities[CLASSES.index(row.label)]) for row in tested.predictions]
        )

    worse_by = losses(challenger) - losses(CHAMPION)
    error = worse_by.std(ddof=1) / math.sqrt(IMAGES)
    assert comparison.log_loss_difference == pytest.approx(worse_by.mean(), abs=1e-6)
    assert comparison.log_loss_difference_interval == pytest.approx(
        stats.norm.interval(0.95, worse_by.mean(), error), abs=0.3 * error
    )
    assert comparison.share_better == pytest.approx(stats.norm.cdf(-worse_by.mean() / error), abs=0.02)


def test_a_challenger_three_points_worse_is_kept_out_by_every_rule():
    comparison = compare(CHAMPION, WORSE)
    for better_by in ("log_loss", "accuracy", "nothing"):
        accepted, reason = judge(comparison, PromotionConfig(better_by=better_by))
        assert not accepted
        assert reason.startswith("kept: ")
        assert "accuracy 0.9400 against 0.9700, at worst 0.03" in reason


def test_a_challenger_that_is_equal_is_kept_out_unless_equal_is_enough():
    comparison = compare(CHAMPION, EQUAL)
    for better_by in ("log_loss", "accuracy"):
        assert not judge(comparison, PromotionConfig(better_by=better_by))[0]
    assert judge(comparison, PromotionConfig(better_by="nothing"))[0]


def test_a_model_is_not_better_than_itself():
    comparison = compare(CHAMPION, CHAMPION)
    assert comparison.mcnemar_p == 1.0
    assert comparison.share_better == 0.0
    assert not judge(comparison, RULE)[0]
    assert not judge(comparison, PromotionConfig(better_by="accuracy"))[0]


@pytest.mark.parametrize("better_by", ["log_loss", "accuracy", "nothing"])
def test_a_challenger_three_points_better_is_accepted(better_by: str):
    accepted, reason = judge(compare(CHAMPION, BETTER), PromotionConfig(better_by=better_by))
    assert accepted
    assert reason.startswith("accepted: ")


def test_a_better_log_loss_does_not_excuse_an_accuracy_that_may_be_worse():
    bold, timid = evaluation(range(200), sureness=0.97), evaluation(range(20, 250), sureness=0.88)
    comparison = compare(bold, timid)
    assert comparison.share_better > 0.97
    accepted, reason = judge(comparison, RULE)
    assert not accepted
    assert "accuracy 0.8850 against 0.9000, at worst 0.02" in reason
    assert judge(comparison, PromotionConfig(margin=0.05))[0]


def test_a_few_images_can_not_show_that_a_model_is_no_worse():
    few = compare(evaluation(range(2), images=40), evaluation(range(2), seed=1, images=40))
    assert few.accuracy_difference == 0
    assert not judge(few, PromotionConfig(better_by="nothing"))[0]
    assert judge(few, PromotionConfig(better_by="nothing", margin=0.05))[0]


def test_the_reason_names_what_was_measured_and_what_was_needed():
    comparison = replace(
        compare(CHAMPION, EQUAL),
        champion_log_loss=0.104,
        challenger_log_loss=0.1041,
        share_better=0.48,
    )
    assert judge(comparison, RULE)[1] == (
        "kept: log loss 0.1041 against the champion's 0.1040, better in 48 % of resamples, 95 % needed; "
        "accuracy 0.9700 against 0.9700, at worst 0.0027 lower at 95 %, 0.01 allowed"
    )
    said = judge(compare(CHAMPION, BETTER), PromotionConfig(better_by="accuracy"))[1]
    assert "p = 8.88e-16 for fewer mistakes, below 0.05 needed; accuracy" in said


def test_the_one_sided_test_of_accuracy_is_half_the_two_sided_one():
    comparison = replace(compare(CHAMPION, BETTER), champion_right_only=10, challenger_right_only=20)
    assert 0.025 < stats.binomtest(20, 30, alternative="greater").pvalue < 0.05
    assert judge(comparison, PromotionConfig(better_by="accuracy"))[0]
    assert not judge(comparison, PromotionConfig(better_by="accuracy", confidence=0.975))[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ("dog", "cat")}, "classes"),
        ({"predictions": CHAMPION.predictions[:-1]}, "2000 images, the challenger on 1999"),
        ({"predictions": CHAMPION.predictions[::-1]}, "image 1 is '0.jpg'"),
        (
            {"predictions": (replace(CHAMPION.predictions[0], label="dog"), *CHAMPION.predictions[1:])},
            r"'0.jpg' \(dog\) for the challenger",
        ),
    ],
)
def test_evaluations_of_other_images_are_not_compared_and_the_message_says_what_differs(change, said):
    with pytest.raises(UnlikeSplits, match=said):
        compare(CHAMPION, replace(CHAMPION, **change))


def test_who_is_accepted_is_promoted_or_held_for_a_person_and_the_rest_kept():
    ask = PromotionConfig(approval="ask")
    better, worse = compare(CHAMPION, BETTER), compare(CHAMPION, WORSE)
    assert decide(better, RULE, challenger=2, champion=1).outcome == "promoted"
    assert decide(better, ask, challenger=2, champion=1).outcome == "held"
    for settings in (RULE, ask):
        decision = decide(worse, settings, challenger=2, champion=1)
        assert decision.outcome == "kept"
        assert decision.reason == judge(worse, settings)[1]
        assert Decision.from_json(decision.to_json()) == decision


def test_the_first_model_needs_no_comparison():
    decision = decide(None, RULE, challenger=1, champion=None)
    assert decision.outcome == "promoted"
    assert "no champion" in decision.reason


@pytest.mark.parametrize("bad", [{"margin": -0.1}, {"margin": 0.6}, {"confidence": 0.5}, {"confidence": 1}])
def test_rules_out_of_bounds_are_refused(bad: dict):
    with pytest.raises(ValidationError):
        PromotionConfig(**bad)
