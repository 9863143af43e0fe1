"""What a report shows of where the network looked, and of what the gate compared."""

import dataclasses

import numpy as np
import pytest

from tests.run_samples import (
    IMPROVING,
    PLATEAUED,
    close_gate,
    make_checkpoint,
    make_heat,
    make_history,
    make_map,
    make_member,
    make_photographs,
    make_run,
    open_picture,
)
from thaw.config import build_config
from thaw.convergence import judge_convergence, trace_verdicts
from thaw.gradcam import HeatMaps
from thaw.report import render_html, render_markdown
from thaw.report.gate import GatePart, draw_gate, plot_gate
from thaw.report.heat import draw_heat, group_by_class, lay_over, plot_heat
from thaw.report.pictures import draw_pictures, list_gate_parts


def looked_run(heat: HeatMaps, **changes):
    pictures = {
        name: plot_heat(maps, make_photographs(len(maps), 32)) for name, maps in group_by_class(heat).items()
    }
    return make_run(heat=heat, pictures=pictures, **changes)


BOTH = make_heat(make_map(), make_map("dog", "cat", "test/1.jpg"))


def test_the_report_says_what_the_heat_is_of_and_what_it_is_not():
    for text in (render_html(looked_run(BOTH)), render_markdown(looked_run(BOTH)).replace("\\", "")):
        assert "Where it looked" in text
        assert "The maps are those of block5_conv3, 11 × 11 places" in text
        assert "It does not show what that was, nor whether it was a good reason" in text
        assert "cat: each image, and its heat" in text or "![looked_1]" in text
        assert "averaged over" not in text
        assert "frozen" not in text.partition("Where it looked")[2].partition("Augmentation")[0]


def test_it_says_when_maps_are_averaged():
    text = render_html(looked_run(dataclasses.replace(BOTH, networks=3, mirrored=True)))
    assert "averaged over 3 networks and image and mirror image" in text


def test_it_says_when_nothing_but_a_head_was_looked_into():
    heads = looked_run(
        dataclasses.replace(BOTH, layer="block5_pool"),
        members=(make_member(phase_verdicts=()),),
        evaluation=None,
    )
    assert "Of this network everything up to block5_pool is frozen." in render_html(heads)


def test_it_says_when_dense_layers_weigh_places_that_the_method_does_not():
    settings = {"dump": {"path": "train.zip"}, "recipe": "book2-finetune"}
    for pooling, said in (("flatten", True), ("average", False)):
        config = build_config({**settings, "head": {"pooling": pooling}})
        assert ("the maps are rougher" in render_html(looked_run(BOTH, config=config))) == said


def test_it_says_when_not_all_classes_are_shown():
    classes = tuple(f"class {number}" for number in range(8))
    heat = make_heat(*(make_map(name, name) for name in classes[:6]))
    assert "the first 6 of 8 classes" in render_html(looked_run(heat, classes=classes))
    assert (
        "the first" not in render_html(looked_run(BOTH)).partition("Where it looked")[2].partition("<h2>")[0]
    )


def test_a_closed_gate_shows_no_heat():
    assert "Where it looked" not in render_html(close_gate())


def test_each_class_has_a_picture_with_what_was_called_right_above_what_was_not():
    right, wrong = make_map(), make_map(called="dog", path="test/1.jpg")
    groups = group_by_class(make_heat(right, right, wrong, make_map("dog", "dog")))
    assert {name: len(maps) for name, maps in groups.items()} == {"looked_1": 3, "looked_2": 1}
    figure = draw_heat(groups["looked_1"], make_photographs(3, 32))
    assert [axes.get_title() for axes in figure.axes] == [
        "cat, called cat 0.980",
        "cat, called cat 0.980",
        "cat, called dog 0.980",
        "",
    ]
    open_picture(plot_heat(groups["looked_2"], make_photographs(1, 32)))


def test_cold_places_keep_the_photograph_in_grey_and_hot_ones_are_coloured():
    image = make_photographs(1, 32)[0]
    over = lay_over(image, np.array([[0.0, 0.0, 0.0, 1.0]] * 4)).astype(int)
    cold, hot = over[:, :4], over[:, -4:]
    assert np.abs(cold - image[:, :4].mean(axis=-1, keepdims=True)).max() < 2
    assert (hot.max(axis=-1) - hot.min(axis=-1)).min() > 60


def test_grey_images_and_names_that_no_font_knows_can_be_drawn():
    strange = make_map("猫", "$\\no$" * 9)
    open_picture(plot_heat([strange], make_photographs(1, 32)[..., :1]))


def test_pictures_of_a_tested_run_show_heat_and_gate():
    run = make_run(pictures={})
    paths = [row.path for row in run.split.test]
    scored = dataclasses.replace(run.evaluation.predictions[0], path=paths[0])
    evaluation = dataclasses.replace(run.evaluation, predictions=(scored,))
    run = dataclasses.replace(
        run, evaluation=evaluation, heat=make_heat(make_map(path=paths[0]), make_map("dog", "dog", paths[1]))
    )
    pictures = draw_pictures(run, lambda row: make_photographs(1, 32)[0])
    assert {"gate", "looked_1", "looked_2"} <= set(pictures)


def test_the_trace_ends_with_the_verdict():
    run = make_run(pictures={})
    history, gate = make_history(20), run.config.gate
    trace = trace_verdicts(history, gate, run.config.head)
    assert len(trace) == 20
    assert trace[-1] == judge_convergence(history, gate, run.config.head)
    patience = gate.patience_epochs
    assert [found.statistic is None for found in trace] == [True] * patience + [False] * (20 - patience)


def test_the_gate_is_drawn_as_statistic_and_threshold_by_epoch():
    run = make_run(pictures={})
    trace = trace_verdicts(make_history(20), run.config.gate, run.config.head)
    (axes,) = draw_gate([GatePart(trace=tuple(trace), answer="opens")], 0.002).axes
    lines = {line.get_label(): line for line in axes.lines}
    for name, figures in {
        "statistic": [found.statistic for found in trace],
        "threshold": [found.threshold for found in trace],
    }.items():
        expected = [np.nan if figure is None else figure for figure in figures]
        np.testing.assert_array_equal(lines[name].get_ydata(), expected)
        np.testing.assert_array_equal(lines[name].get_xdata(), range(1, 21))
    assert lines[f"opens: {trace[-1].state}"].get_xdata()[0] == 20.5
    last = trace[-1]
    (caption,) = (text.get_text() for text in axes.texts)
    assert caption == f"opens: improving, {last.statistic:.2g} > {last.threshold:.2g}"


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        (PLATEAUED, "opens"),
        (IMPROVING, "stays closed"),
        (dataclasses.replace(IMPROVING, overridden=True), "overridden"),
    ],
)
def test_the_gate_says_what_it_did_behind_the_head_and_nothing_behind_the_last_phase(verdict, answer):
    parts = list_gate_parts(make_run(pictures={}, members=(make_member(verdict=verdict),)))
    assert [part.answer for part in parts] == [answer, ""]
    assert [len(part.trace) for part in parts] == [12, 8]


def test_a_gate_that_never_compared_has_no_picture():
    for epochs in (0, 3):
        head = make_checkpoint("head", make_history(epochs))
        run = close_gate(
            members=(dataclasses.replace(make_member(phase_verdicts=()), head=head),), pictures={}
        )
        assert "gate" not in draw_pictures(run, lambda row: make_photographs(1, 32)[0])


def test_a_gate_of_any_length_can_be_drawn():
    run = make_run(pictures={})
    for epochs in (1, 2, 40):
        trace = trace_verdicts(make_history(epochs), run.config.gate, run.config.head)
        open_picture(plot_gate([GatePart(trace=tuple(trace), answer="opens")] * 3, 0.0))
