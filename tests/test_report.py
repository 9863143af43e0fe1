import io
import math
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from thaw.config import build_config
from thaw.errors import UnlikeSplits
from thaw.plots import draw_curves, plot_confusion, plot_curves, plot_views, smooth
from thaw.records import (
    Backbone,
    Checkpoint,
    Epoch,
    Evaluation,
    History,
    ImageRow,
    Manifest,
    Metrics,
    Prediction,
    Quarantined,
    Split,
    StageTime,
    Verdict,
)
from thaw.report import RunSummary, render_html, render_markdown, write_report

CLASSES = ("cat", "dog")
PLATEAUED = Verdict(
    state="plateaued",
    statistic=0.0011,
    threshold=0.002,
    epoch=12,
    reason="in the last 5 epochs val loss improved by 0.0011 nats, no more than 0.0020",
)
IMPROVING = Verdict(
    state="improving",
    statistic=0.0164,
    threshold=0.002,
    epoch=12,
    reason="in the last 5 epochs val loss improved by 0.0164 nats, more than 0.0020, when the budget ran out",
)


def make_history(epochs=12, floor=0.08, start=None):
    return History(
        validation_counts=(500, 500),
        start=start,
        epochs=tuple(
            Epoch(
                loss=floor + 0.3 * 0.7**number,
                accuracy=0.99 - 0.1 * 0.7**number,
                val_loss=floor + 0.02 + 0.3 * 0.72**number + 0.004 * (number % 3),
                val_accuracy=0.97 - 0.09 * 0.7**number - 0.003 * (number % 3),
                learning_rate=1e-3,
            )
            for number in range(epochs)
        ),
    )


def make_rows(side, labels):
    return tuple(
        ImageRow(path=f"{side}/{label}.{n}.jpg", label=label, sha256=f"{n:064x}", width=200, height=200)
        for n, label in enumerate(labels)
    )


def make_evaluation(stage, wrong, split="5b11d16e5b11d16e", classes=CLASSES, images=1000):
    """The first `wrong` images of the first class are called the second."""
    per_class = images // len(classes)
    predictions, confusion = [], np.zeros((len(classes), len(classes)), int)
    for number in range(images):
        label = number // per_class
        called = 1 if number < wrong else label
        confusion[label, called] += 1
        sure = 0.999 - number * 1e-5
        spread = [(1 - sure) / (len(classes) - 1)] * len(classes)
        spread[called] = sure
        predictions.append(
            Prediction(path=f"test/{number}.jpg", label=classes[label], probabilities=tuple(spread))
        )
    accuracy = 1 - wrong / images
    return Evaluation(
        checkpoint="c0ffee",
        stage=stage,
        split=split,
        classes=classes,
        predictions=tuple(predictions),
        metrics=Metrics(
            images=images,
            accuracy=accuracy,
            accuracy_interval=(accuracy - 0.011, accuracy + 0.007),
            log_loss=0.0712,
            auc=0.9971,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
        ),
    )


def make_checkpoint(stage, history):
    cut = "block5_pool" if stage == "head" else "block4_pool"
    return Checkpoint(
        address=f"{stage}-a1b2", stage=stage, cut=cut, split="5b11d16e5b11d16e", space="f00d", history=history
    )


def make_run(classes=CLASSES, quarantined=(), **changes):
    """A run that fine-tuned behind a converged head, with three real pictures."""
    sides = {side: make_rows(side, classes * n) for side, n in (("train", 9), ("validation", 4), ("test", 4))}
    images = (*sides["train"], *sides["validation"], *sides["test"], *make_rows("spare", classes))
    head, fine_tune = make_history(), make_history(8, floor=0.05)
    tested = make_evaluation("fine_tuned", wrong=22, classes=classes)
    settings = {
        "title": "book2-finetune on dogs-vs-cats-200px.zip",
        "config": build_config({"dump": {"path": "dogs-vs-cats-200px.zip"}, "recipe": "book2-finetune"}),
        "manifest": Manifest(layout="flat", classes=classes, images=images, quarantined=quarantined),
        "split": Split(manifest="3a41fe57", strategy="index", seed=0, classes=classes, **sides),
        "head": make_checkpoint("head", head),
        "verdict": PLATEAUED,
        "fine_tuned": make_checkpoint("fine_tuned", fine_tune),
        "head_evaluation": make_evaluation("head", wrong=31, classes=classes),
        "evaluation": tested,
        "backbone": Backbone(
            name="vgg16", weights="imagenet", weights_sha256="ab" * 32, preprocessing="caffe", layers=()
        ),
        "precision": "bfloat16",
        "stages": (
            StageTime(stage="scan dump", seconds=3.21, cached=True),
            StageTime(stage="cache features", seconds=131.0, cached=False),
            StageTime(stage="train head", seconds=14.8, cached=False),
            StageTime(stage="fine-tune", seconds=733.0, cached=False),
        ),
        "pictures": {
            "curves": plot_curves(head, fine_tune, PLATEAUED, patience_epochs=5),
            "confusion": plot_confusion(tested.metrics, classes),
            "views": plot_views(make_photographs(8)),
        },
        "versions": {"thaw": "0.1.0", "keras": "3.15.1"},
    }
    return RunSummary(**{**settings, **changes})


def make_photographs(number, size=180):
    """Smooth colours with grain, as hard to compress as a photograph."""
    across = np.linspace(0, 255, size)
    plain = np.stack(np.broadcast_arrays(across[:, None], across[None, :], 128.0), axis=-1)
    grain = np.random.default_rng(0).normal(0, 25, (number, size, size, 3))
    return (plain + grain).clip(0, 255).astype(np.uint8)


def close_gate(**changes):
    closed = {"verdict": IMPROVING, "fine_tuned": None, "evaluation": None, **changes}
    return make_run(**closed)


def read_text(html):
    """What a reader sees: the page without its style and tags."""
    body = re.sub(r"<[^>]+>", " ", html.partition("<body>")[2])
    return " ".join(body.replace("&#39;", "'").replace("\u00a0", " ").split())


def open_picture(png):
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture.size


@pytest.fixture(scope="module")
def run():
    return make_run()


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
    figure = draw_curves(make_history(12), make_history(8), PLATEAUED)
    for panel in figure.axes:
        (line,) = [line for line in panel.lines if line.get_label() == "thaw"]
        assert list(line.get_xdata()) == [12.5, 12.5]
    assert "backbone thaws" in [text.get_text() for text in figure.axes[0].texts]


def test_the_curves_of_a_closed_gate_have_no_thaw_and_name_the_verdict():
    figure = draw_curves(make_history(12), None, IMPROVING, patience_epochs=5)
    assert not [line for panel in figure.axes for line in panel.lines if line.get_label() == "thaw"]
    assert "gate: improving" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_fine_tune_goes_on_where_the_head_stopped():
    figure = draw_curves(make_history(12), make_history(8), PLATEAUED)
    epochs = np.concatenate([line.get_xdata() for line in figure.axes[1].lines])
    assert {1, 12, 13, 20} <= set(epochs)
    assert max(epochs) == 20


def test_the_best_epochs_of_head_and_fine_tune_are_marked():
    head, fine_tune = make_history(12), make_history(8)
    figure = draw_curves(head, fine_tune, PLATEAUED)
    marks = [line for line in figure.axes[1].lines if line.get_label() == "best epoch"]
    assert [mark.get_xdata()[0] for mark in marks] == [head.best_epoch, 12 + fine_tune.best_epoch]
    assert [mark.get_ydata()[0] for mark in marks] == [head.best.val_loss, fine_tune.best.val_loss]


def test_a_fine_tune_that_never_beat_its_head_has_its_mark_on_the_thaw():
    head = make_history(12)
    fine_tune = make_history(4, floor=2.0, start=head.best)
    marks = [
        line
        for line in draw_curves(head, fine_tune, PLATEAUED).axes[0].lines
        if line.get_label() == "best epoch"
    ]
    assert marks[1].get_xdata()[0] == 12.5


def test_epoch_ticks_are_whole_numbers():
    for epochs in (1, 2, 3, 7):
        ticks = draw_curves(make_history(epochs), None, PLATEAUED).axes[1].get_xticks()
        assert all(tick == int(tick) for tick in ticks)


def test_curves_bear_losses_that_are_not_finite_and_trainings_of_any_length():
    broken = Epoch(loss=math.nan, accuracy=0.5, val_loss=math.inf, val_accuracy=0.5, learning_rate=1e-3)
    history = make_history(5)
    diverged = replace(history, epochs=(*history.epochs, broken))
    for head in (diverged, replace(history, epochs=(broken,)), replace(history, epochs=()), make_history(1)):
        for fine_tune in (None, head):
            open_picture(plot_curves(head, fine_tune, PLATEAUED, patience_epochs=5))


def test_a_loss_that_would_flatten_all_others_gets_a_log_scale():
    history = make_history(12)
    huge = replace(history, epochs=(replace(history.epochs[0], loss=60.0), *history.epochs[1:]))
    assert draw_curves(huge, None, PLATEAUED).axes[1].get_yscale() == "log"
    assert draw_curves(history, None, PLATEAUED).axes[1].get_yscale() == "linear"


@pytest.mark.parametrize("number", [2, 3, 10, 20, 60])
def test_the_confusion_matrix_can_be_drawn_for_any_number_of_classes(number):
    classes = tuple(f"class {n}" for n in range(number))
    picture = plot_confusion(make_evaluation("head", wrong=5, classes=classes, images=600).metrics, classes)
    assert len(picture) < 120_000
    assert min(open_picture(picture)) > 300


def test_class_names_that_no_font_or_formula_knows_are_drawn_all_the_same():
    classes = ("猫", "$a_b$", "new\nline", "<b>", "a name that is longer than its tick can be")
    open_picture(plot_confusion(make_evaluation("head", wrong=5, classes=classes).metrics, classes))


def test_views_of_photographs_stay_small():
    for number in (1, 2, 9, 30):
        picture = plot_views(make_photographs(number))
        assert len(picture) < 120_000
        open_picture(picture)


def test_importing_the_report_and_the_plots_loads_neither_matplotlib_nor_keras():
    code = "import sys, thaw.report, thaw.plots; print(*{'matplotlib', 'keras', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_report_is_one_small_file_that_needs_nothing_else(run, tmp_path):
    path = write_report(tmp_path, run)
    assert path == tmp_path / "report.html"
    assert list(tmp_path.iterdir()) == [path]
    html = path.read_text(encoding="utf-8")
    assert len(html) < 1_000_000
    assert "<script" not in html
    assert not re.search(r"https?://|url\(|@import|<link", html)
    assert set(re.findall(r'(?:src|href)="(.{5})', html)) == {"data:"} | {
        f"#{name[:4]}" for name in re.findall(r'<section id="(\w+)"', html)
    }


def test_the_report_shows_every_picture(run):
    html = render_html(run)
    assert html.count('src="data:image/png;base64,iVBOR') == 3
    for picture in run.pictures.values():
        assert len(picture) < 120_000
        open_picture(picture)


def test_the_first_sentence_says_how_often_the_model_was_right(run):
    said = "Fine-tuned: 97.8 % of 1,000 test images right (96.7–98.5 %), head alone 96.9 %."
    assert said in read_text(render_html(run))
    assert said in render_markdown(run).replace("\u00a0", " ")


def test_a_fine_tune_that_made_it_worse_says_so():
    worse = make_run(evaluation=make_evaluation("fine_tuned", wrong=40))
    assert "less than the head alone 96.9 %" in read_text(render_html(worse))


def test_fine_tuning_is_compared_with_the_head_image_by_image(run):
    assert "mended 9 of the head's mistakes and made no new ones" in read_text(render_html(run))


def test_evaluations_of_different_splits_are_not_reported_side_by_side():
    with pytest.raises(UnlikeSplits, match="aaaa"):
        make_run(head_evaluation=make_evaluation("head", wrong=31, split="aaaa"))


def test_a_closed_gate_says_why():
    text = read_text(render_html(close_gate()))
    assert f"Gate closed: {IMPROVING.reason}." in text
    assert "Head alone: 96.9 %" in text
    assert "Gate closed: in the last 5 epochs" in render_markdown(close_gate())


def test_a_run_that_nothing_was_tested_in_has_a_report():
    run = close_gate(head_evaluation=None, pictures={}, stages=())
    assert "Most confident mistakes" not in read_text(render_html(run))
    assert "## Gate" in render_markdown(run)


def test_an_overridden_gate_is_said_first():
    run = make_run(verdict=replace(IMPROVING, overridden=True))
    for text in (read_text(render_html(run)), render_markdown(run).replace("\\", "")):
        assert "Gate overridden: fine-tuned from an unconverged head" in text.split("Split")[0]
        assert "overridden by override_gate: true. Its verdict was improving" in text.split("Split")[0]


def test_a_head_whose_loss_was_never_finite_has_a_report():
    broken = Epoch(loss=math.nan, accuracy=0.5, val_loss=math.nan, val_accuracy=0.5, learning_rate=1e-3)
    history = History(validation_counts=(4, 4), epochs=(broken,))
    reason = "the loss is not finite in epoch 1"
    verdict = Verdict(state="diverged", statistic=None, threshold=None, epoch=1, reason=reason)
    run = close_gate(head=make_checkpoint("head", history), verdict=verdict, head_evaluation=None)
    assert "Gate closed: the loss is not finite in epoch 1." in read_text(render_html(run))


def test_quarantined_images_are_listed_with_their_reasons():
    bad = Quarantined(path="train/dog.7.jpg", label="dog", reason="cut short: 812 of 20,113 bytes")
    html = render_html(make_run(quarantined=(bad,)))
    assert "train/dog.7.jpg dog cut short: 812 of 20,113 bytes" in read_text(html)
    assert "<details><summary>" not in html


def test_a_long_quarantine_list_is_folded_and_cut():
    bad = [Quarantined(path=f"{'x' * 4000}/{n}.jpg", label=None, reason="empty " * 900) for n in range(5000)]
    html = render_html(make_run(quarantined=tuple(bad)))
    assert "<summary>All 5,000 quarantined images and why</summary>" in html
    assert "and 4,800 more, in the manifest" in html
    assert len(html) < 1_000_000


def test_names_from_the_dump_can_not_inject_anything():
    hostile = "<script>alert(1)</script>"
    bad = Quarantined(path=f"{hostile}.jpg", label=hostile, reason=f'"{hostile}" | `x`')
    run = make_run(classes=(hostile, "a|b"), quarantined=(bad,), title=hostile)
    html, markdown = render_html(run), render_markdown(run)
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script" not in markdown
    assert "a\\|b" in markdown


def test_names_that_are_not_unicode_can_be_written(tmp_path):
    bad = Quarantined(path="caf\udce9.jpg", label=None, reason="empty file")
    assert b"caf\\udce9.jpg" in write_report(tmp_path, make_run(quarantined=(bad,))).read_bytes()


def test_the_split_table_counts_every_class_on_every_side(run):
    text = read_text(render_html(run))
    assert "cat 9 4 4 1 dog 9 4 4 1 all 18 8 8 2" in text
    assert "| cat | 9 | 4 | 4 | 1 |" in render_markdown(run)


def test_the_gate_shows_statistic_threshold_and_settings(run):
    for text in (read_text(render_html(run)), render_markdown(run).replace("\u00a0", " ").replace("\\", "")):
        assert "0.0011 nats" in text
        assert "0.0020 nats" in text
        assert "patience_epochs 5" in text


def test_mistakes_are_listed_from_the_most_confident_one(run):
    text = read_text(render_html(run))
    assert "22 of 1,000 test images were called wrongly. The 12 most confident:" in text
    assert "test/0.jpg cat dog 0.9990 test/1.jpg cat dog 0.9990" in text
    assert "test/12.jpg" not in text


def test_the_small_backbone_is_never_taken_for_imagenet():
    mini = Backbone(
        name="vgg16-mini", weights="drawings", weights_sha256="cd" * 32, preprocessing="unit", layers=()
    )
    run = make_run(backbone=mini)
    for text in (read_text(render_html(run)), render_markdown(run)):
        assert "vgg16-mini, pretrained on drawings; not ImageNet" in text


def test_provenance_names_what_the_run_can_be_repeated_from(run):
    text = read_text(render_html(run))
    for fact in (
        "ab" * 32,
        "3a41fe57",
        "bfloat16",
        "keras 3.15.1",
        "seeds split 0",
        "recipe: book2-finetune",
    ):
        assert fact in text


def test_cost_says_which_stages_were_cached(run):
    text = read_text(render_html(run))
    assert "scan dump 3.2 s cached cache features 2 min 11 s made" in text
    assert "all 14 min 42 s" in text


def test_markdown_leaves_out_pictures_that_would_make_it_too_long(run):
    assert len(render_markdown(run)) < 300_000
    assert render_markdown(run).count("](data:image/png;base64,") == 2
    large = make_run(pictures={"curves": run.pictures["curves"], "confusion": bytes(250_000)})
    text = render_markdown(large)
    assert len(text) < 300_000
    assert text.count("](data:image/png;base64,") == 1
    assert "(The picture is in the report: confusion.)" in text
