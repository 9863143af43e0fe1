import math
from dataclasses import replace

import numpy as np
import pytest

from tests.run_samples import (
    IMPROVING,
    PLATEAUED,
    make_evaluation,
    make_history,
    make_photographs,
    open_picture,
)
from thaw.records import Epoch
from thaw.report.confusion import plot_confusion
from thaw.report.curves import draw_curves, plot_curves, smooth
from thaw.report.photographs import plot_views


def test_smoothing_starts_at_the_first_value_and_weighs_the_past_by_the_factor():
    assert smooth([1.0, 2.0, 0.0], factor=0.8) == pytest.approx([1.0, 1.2, 0.96])
    assert smooth([3.0, 5.0], factor=0.0) == [3.0, 5.0]
    assert smooth([]) == []


def test_smoothing_leaves_a_gap_where_a_value_is_not_finite_and_goes_on_behind_it():
    first, gap, other_gap, last = smooth([1.0, math.nan, math.inf, 2.0], factor=0.5)
    assert (first, last) == (1.0, 1.5)
    assert math.isnan(gap)
    assert math.isnan(other_gap)


def test_the_curves_mark_where_the_backbone_thaws_in_both_panels():
    figure = draw_curves(make_history(12), [("block4_pool", make_history(8))], PLATEAUED)
    for panel in figure.axes:
        (line,) = [line for line in panel.lines if line.get_label() == "thaw"]
        assert list(line.get_xdata()) == [12.5, 12.5]
    assert "thaws after block4_pool" in [text.get_text() for text in figure.axes[0].texts]


def test_each_phase_has_its_own_thaw():
    phases = [("block4_pool", make_history(8)), ("block3_pool", make_history(5))]
    figure = draw_curves(make_history(12), phases, PLATEAUED)
    for panel in figure.axes:
        lines = [line for line in panel.lines if line.get_label() == "thaw"]
        assert [line.get_xdata()[0] for line in lines] == [12.5, 20.5]
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions == ["thaws after block4_pool", "thaws after block3_pool"]


def test_the_curves_of_a_closed_gate_have_no_thaw_and_name_the_verdict():
    figure = draw_curves(make_history(12), [], IMPROVING, patience_epochs=5)
    assert not [line for panel in figure.axes for line in panel.lines if line.get_label() == "thaw"]
    assert "gate: improving" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_fine_tune_goes_on_where_the_head_stopped():
    figure = draw_curves(make_history(12), [("block4_pool", make_history(8))], PLATEAUED)
    epochs = np.concatenate([line.get_xdata() for line in figure.axes[1].lines])
    assert {1, 12, 13, 20} <= set(epochs)
    assert max(epochs) == 20


def test_the_best_epochs_of_head_and_fine_tune_are_marked():
    head, fine_tune = make_history(12), make_history(8)
    figure = draw_curves(head, [("block4_pool", fine_tune)], PLATEAUED)
    marks = [line for line in figure.axes[1].lines if line.get_label() == "best epoch"]
    assert [mark.get_xdata()[0] for mark in marks] == [head.best_epoch, 12 + fine_tune.best_epoch]
    assert [mark.get_ydata()[0] for mark in marks] == [head.best.val_loss, fine_tune.best.val_loss]


def test_a_fine_tune_that_never_beat_its_head_has_its_mark_on_the_thaw():
    head = make_history(12)
    fine_tune = make_history(4, floor=2.0, start=head.best)
    marks = [
        line
        for line in draw_curves(head, [("block4_pool", fine_tune)], PLATEAUED).axes[0].lines
        if line.get_label() == "best epoch"
    ]
    assert marks[1].get_xdata()[0] == 12.5


def test_epoch_ticks_are_whole_numbers():
    for epochs in (1, 2, 3, 7):
        ticks = draw_curves(make_history(epochs), [], PLATEAUED).axes[1].get_xticks()
        assert all(tick == int(tick) for tick in ticks)


def test_curves_bear_losses_that_are_not_finite_and_trainings_of_any_length():
    broken = Epoch(loss=math.nan, accuracy=0.5, val_loss=math.inf, val_accuracy=0.5, learning_rate=1e-3)
    history = make_history(5)
    diverged = replace(history, epochs=(*history.epochs, broken))
    for head in (diverged, replace(history, epochs=(broken,)), replace(history, epochs=()), make_history(1)):
        for phases in ([], [("block4_pool", head)], [("block4_pool", head), ("block3_pool", head)]):
            open_picture(plot_curves(head, phases, PLATEAUED, patience_epochs=5))


def test_a_loss_that_would_flatten_all_others_gets_a_log_scale():
    history = make_history(12)
    huge = replace(history, epochs=(replace(history.epochs[0], loss=60.0), *history.epochs[1:]))
    assert draw_curves(huge, [], PLATEAUED).axes[1].get_yscale() == "log"
    assert draw_curves(history, [], PLATEAUED).axes[1].get_yscale() == "linear"


@pytest.mark.parametrize("number", [2, 3, 10, 20, 60])
def test_the_confusion_matrix_can_be_drawn_for_any_number_of_classes(number):
    classes = tuple(f"class {n}" for n in range(number))
    picture = plot_confusion(make_evaluation("head", wrong=5, classes=classes, images=600).metrics, classes)
    assert len(picture) < 120_000
    assert min(open_picture(picture)) > 300


def test_class_names_that_no_font_or_formula_knows_are_drawn_all_the_same():
    classes = ("猫", r"$\no$", "new\nline", "<b>", "a name that is longer than its tick can be")
    open_picture(plot_confusion(make_evaluation("head", wrong=5, classes=classes).metrics, classes))


def test_views_of_photographs_stay_small():
    for number in (1, 2, 9, 30):
        picture = plot_views(make_photographs(number))
        assert len(picture) < 260_000
        open_picture(picture)
