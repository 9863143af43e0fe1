"""What a report says of the test images: before and after a temperature, and what clipping hides."""

from dataclasses import replace

import numpy as np
import pytest

from tests.run_samples import close_gate, make_evaluation, make_run, open_picture
from thaw.calibrate import Calibration
from thaw.reliability import apply_temperature, measure_reliability
from thaw.report import render_markdown
from thaw.report.evaluation import describe_evaluation, list_metrics
from thaw.report.pictures import draw_pictures
from thaw.report.reliability import draw_reliability, plot_reliability
from thaw.report.summary import RunSummary

CALIBRATION = Calibration(
    checkpoint="c0ffee",
    temperature=2.31,
    reason="the smallest log loss on the validation images",
    images=1000,
    log_loss_before=0.0911,
    log_loss_after=0.0702,
    error_before=0.0204,
    error_after=0.0051,
)


def make_calibrated(**changes) -> RunSummary:
    plain = make_evaluation("fine_tuned", wrong=22)
    better = replace(plain.metrics, log_loss=0.0633, brier=0.0177, calibration_error=0.0066)
    scaled = replace(
        plain,
        temperature=2.31,
        metrics=replace(better, log_loss_unclipped=0.0633),
        uncalibrated=replace(plain.metrics, **changes),
        uncalibrated_reliability=plain.reliability,
    )
    return make_run(evaluation=scaled, calibration=CALIBRATION, pictures={})


def read(run: RunSummary) -> str:
    return " ".join(describe_evaluation(run).text).replace("\u00a0", " ")


def test_the_table_has_the_head_the_model_and_the_calibrated_model():
    table = describe_evaluation(make_calibrated()).tables[0]
    assert table.columns == ("model", "accuracy", "log loss", "AUC", "average precision", "Brier", "ECE")
    assert [row[0] for row in table.rows] == [
        "Head alone",
        "Fine-tuned, as trained",
        "Fine-tuned, calibrated",
    ]
    assert table.rows[2][2:] == ("0.0633", "0.9971", "0.9968", "0.0177", "0.0066")
    assert table.rows[1][1] == table.rows[2][1]


def test_the_text_says_what_the_temperature_is_and_what_it_was_fitted_on():
    text = read(make_calibrated())
    assert "divides its logits by a temperature of 2.31, which makes it less sure" in text
    assert (
        "the 1,000 validation images: there log loss went from 0.0911 to 0.0702, ECE from 0.0204 to 0.0051."
        in text
    )


def test_the_text_says_why_there_is_no_temperature():
    kept = replace(CALIBRATION, temperature=1.0, reason="40 validation images are too few, 50 are needed")
    said = "without a temperature: 40 validation images are too few, 50 are needed."
    assert said in read(make_run(calibration=kept, pictures={}))
    assert "no temperature was asked for" in read(make_run(pictures={}))


def test_the_text_says_what_clipping_hides():
    text = read(make_calibrated(log_loss=0.31, log_loss_unclipped=None))
    assert (
        "no image costs more than 36 nats. Unclipped it would be: Fine-tuned, as trained: infinite." in text
    )
    finite = read(make_calibrated(log_loss=0.31, log_loss_unclipped=0.35))
    assert "Unclipped it would be: Fine-tuned, as trained: 0.3500." in finite
    assert "No probability is so small that log loss was clipped." in read(make_calibrated())


def test_an_evaluation_of_an_older_version_has_dashes_and_no_word_on_clipping():
    made = make_evaluation("head", wrong=31)
    names = ("average_precision", "brier", "calibration_error", "log_loss_unclipped")
    older = replace(made, metrics=replace(made.metrics, **dict.fromkeys(names)), reliability=None)
    run = make_run(head_evaluation=older, evaluation=None, pictures={})
    assert describe_evaluation(run).tables[0].rows[0][4:] == ("–", "–", "–")
    assert "clip" not in read(run)


def test_the_markdown_holds_the_calibrated_row():
    text = render_markdown(make_calibrated()).replace("\u00a0", " ")
    assert (
        "| Fine-tuned, calibrated | 97.8 % (96.7–98.5) | 0.0633 | 0.9971 | 0.9968 | 0.0177 | 0.0066 |" in text
    )


def test_the_stage_shows_a_row_for_each_figure_before_and_after():
    columns, rows = list_metrics(make_calibrated().evaluation)
    assert columns == ("as trained", "temperature 2.31")
    assert ("log loss", "0.0712", "0.0633") in rows
    plain, rows = list_metrics(make_evaluation("head", wrong=31))
    assert plain == ("value",)
    assert [row[0] for row in rows][:3] == ["accuracy", "95 % interval", "log loss"]


def test_a_tested_run_has_a_diagram_and_an_untested_one_has_none():
    pixels = np.zeros((16, 16, 3), np.uint8)
    faultless = make_run(evaluation=make_evaluation("fine_tuned", wrong=0), pictures={})
    assert "reliability" in draw_pictures(faultless, lambda row: pixels)
    assert "reliability" not in draw_pictures(close_gate(pictures={}), lambda row: pixels)


@pytest.mark.parametrize("classes", [2, 3, 40])
def test_the_diagram_shows_before_and_after_for_any_number_of_classes(classes: int):
    dice = np.random.default_rng(0)
    probabilities = dice.dirichlet([0.3] * classes, size=500)
    labels = (dice.uniform(size=(500, 1)) > probabilities.cumsum(axis=1)).sum(axis=1).clip(0, classes - 1)
    sure = measure_reliability(labels, apply_temperature(probabilities, 0.25))
    mended = measure_reliability(labels, probabilities)
    figure = draw_reliability(mended, sure)
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert named == [
        "as sure as right",
        f"as trained, ECE {sure.error:.3f}",
        f"calibrated, ECE {mended.error:.3f}",
    ]
    counted = sum(bar.get_height() for bar in figure.axes[1].patches)
    assert counted == 2 * 500
    picture = plot_reliability(mended, sure)
    assert len(picture) < 60_000
    assert min(open_picture(picture)) > 500
    open_picture(plot_reliability(mended))


def test_the_diagram_bears_probabilities_that_are_all_certain():
    labels, probabilities = np.zeros(20, int), np.tile([1.0, 0.0], (20, 1))
    open_picture(plot_reliability(measure_reliability(labels, probabilities)))
