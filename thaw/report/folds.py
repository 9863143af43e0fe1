"""Cross-validation as a table, as remarks, as Markdown and CSV, and its curves as PNG bytes."""

from __future__ import annotations

import csv
import math
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thaw.records import History
from thaw.report.canvas import (
    INK,
    QUIET,
    VALIDATION,
    encode_png,
    shrink_picture,
    start_figure,
    style_axes,
)

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from thaw.folds import CrossValidation, Fold, OutOfFold, Spread

FOLD_COLUMNS = ("fold", "images", "epochs", "accuracy", "log loss")

# Prefect keeps its artifacts in its database.
_PICTURE_BYTES = 200_000
# Beside rounding, the two losses of one epoch are the same figure.
_CAPPED_SHARE = 0.9
# A loss so many times the median would leave the others no room.
_LOG_SCALE_RATIO = 20


def list_folds(made: CrossValidation) -> list[tuple[str, str, str, str, str]]:
    """Rows under `FOLD_COLUMNS`, one for each fold, and last their mean and standard deviation."""
    rows = [
        (
            f"{fold.number}" if made.repeats == 1 else f"{fold.repeat}.{fold.number}",
            f"{fold.images:,}",
            f"{len(fold.history.epochs)}, best {fold.history.best_epoch}",
            f"{fold.accuracy:.4f}",
            f"{fold.log_loss:.4f}",
        )
        for fold in made.folds
    ]
    images = f"{made.pooled.images:,} in all"
    return [*rows, ("mean ± deviation", images, "", _say(made.accuracy), _say(made.log_loss))]


def say_accuracy(made: CrossValidation) -> str:
    """The accuracies, over folds and over images, in two sentences."""
    low, high = made.pooled.accuracy_interval
    times = f", each {made.repeats} times" if made.repeats > 1 else ""
    return (
        f"Accuracy {_say(made.accuracy)} over {len(made.folds)} folds (mean and standard deviation; standard "
        f"error {made.accuracy.standard_error:.4f}). Over all {made.pooled.images:,} images{times} it is "
        f"{made.pooled.accuracy:.4f}, Wilson's 95 % interval {low:.4f} to {high:.4f}."
    )


def list_remarks(made: CrossValidation) -> list[str]:
    """What a reader must know of the figures."""
    monitored = "accuracy" if made.folds[0].history.monitor == "val_accuracy" else "loss"
    remarks = [
        f"The {made.test_images:,} test images were not touched: nothing learned from them or predicted them.",
        f"A fold's {monitored} also chose the epoch whose weights predict it, as a validation set does: images "
        "that are new throughout may fare a little worse.",
    ]
    if made.phases_left_out:
        phases = "phase" if made.phases_left_out == 1 else f"{made.phases_left_out} phases"
        remarks.append(
            f"Only the head was cross-validated, with one budget of epochs: the {phases} of fine-tuning that the "
            "recipe has behind it did not run."
        )
    if any(_is_capped(fold) for fold in made.folds):
        remarks.append(
            "Heads this sure of themselves round to probabilities of 0 and 1. The log losses of the table, which are "
            "of probabilities, charge such a mistake 36 nats at most; the losses of the curves, taken before that "
            "rounding, know no limit."
        )
    unsettled = [fold for fold in made.folds if fold.verdict.state != "plateaued"]
    if unsettled:
        states = sorted({fold.verdict.state.replace("_", " ") for fold in unsettled})
        remarks.append(
            f"Of {len(made.folds)} heads {len(unsettled)} did not converge: the gate calls "
            f"{'it' if len(unsettled) == 1 else 'them'} {' or '.join(states)}."
        )
    return remarks


def render_markdown(made: CrossValidation, picture: bytes) -> str:
    """The figures as Markdown, with the curves inside."""
    rows = [FOLD_COLUMNS, ("---", *["---:"] * (len(FOLD_COLUMNS) - 1)), *list_folds(made)]
    blocks = [
        f"**{made.recipe}: accuracy {_say(made.accuracy)}**",
        say_accuracy(made),
        "\n".join(f"| {' | '.join(row)} |" for row in rows),
    ]
    fitting = shrink_picture(picture, _PICTURE_BYTES)
    if fitting:
        kind = "png" if fitting == picture else "jpeg"
        blocks.append(f"![curves](data:image/{kind};base64,{b64encode(fitting).decode()})")
    blocks += [f"- {remark}" for remark in list_remarks(made)]
    return "\n\n".join(blocks) + "\n"


def write_predictions(
    file: Path, classes: Sequence[str], rows: Iterable[OutOfFold], qualities: Mapping[str, float]
) -> None:
    """Write rows as CSV: `path`, `label`, `repeat`, `fold`, `label_quality`, and `p_<class>` for each class.

    Args:
        qualities: of the label of each path, from 0 (wrong) to 1.
    """
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        names = [f"p_{name}" for name in classes]
        writer.writerow(["path", "label", "repeat", "fold", "label_quality", *names])
        for row in rows:
            shares = [f"{value:.6f}" for value in row.probabilities]
            quality = f"{qualities[row.path]:.6f}"
            writer.writerow([row.path, row.label, row.repeat, row.fold, quality, *shares])


def plot_folds(histories: Sequence[History]) -> bytes:
    """Validation accuracy and loss of every fold, thin, and their mean, thick."""
    return encode_png(draw_folds(histories))


def draw_folds(histories: Sequence[History]) -> Figure:
    """The figure behind `plot_folds`. The mean goes as far as every fold was trained."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = start_figure(5.4, 7.2)
    panels = figure.subplots(2, 1, sharex=True)
    last = max(1, *(len(history.epochs) for history in histories))
    for axes, field in zip(panels, ("val_accuracy", "val_loss"), strict=True):
        style_axes(axes)
        axes.set_xlim(0.4, last + 0.6)
        _draw_field(axes, histories, field)
    title = {"loc": "left", "fontsize": 13, "fontweight": "bold", "color": INK}
    panels[0].set_title("Accuracy on the fold held out", **title)
    panels[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    panels[1].set_title("Loss on the fold held out, in nats" + _fit_loss_scale(panels[1], histories), **title)
    panels[1].set_xlabel("Epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend = {
        f"each of {len(histories)} folds": Line2D([], [], **_THIN),
        "best epoch of a fold": Line2D([], [], **_BEST),
        "mean, while all of them train": Line2D([], [], **_THICK),
    }
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=11
    )
    return figure


_THIN = {"color": QUIET, "lw": 1, "alpha": 0.6}
_THICK = {"color": VALIDATION, "lw": 2.6, "solid_capstyle": "round"}
_BEST = {"marker": "o", "ms": 5, "mfc": "white", "mec": QUIET, "mew": 1.2, "ls": "none"}


def _draw_field(axes: Axes, histories: Sequence[History], field: str) -> None:
    curves = [[_finite(getattr(epoch, field)) for epoch in history.epochs] for history in histories]
    # A line of one point would not be seen.
    marker = "." if max(map(len, curves)) < 2 else None
    for history, curve in zip(histories, curves, strict=True):
        axes.plot(range(1, len(curve) + 1), curve, **_THIN, marker=marker, label="fold")
        if history.best_epoch:
            best = curve[history.best_epoch - 1]
            axes.plot([history.best_epoch], [best], **_BEST, zorder=4, clip_on=False, label="best epoch")
    common = min(map(len, curves))
    mean = np.mean([curve[:common] for curve in curves], axis=0)
    axes.plot(range(1, common + 1), mean, **_THICK, marker=marker, zorder=5, label="mean")


def _fit_loss_scale(axes: Axes, histories: Sequence[History]) -> str:
    """Draw losses on a log scale where a few large ones would flatten the rest; say so."""
    losses = [epoch.val_loss for history in histories for epoch in history.epochs]
    losses = [loss for loss in losses if 0 < loss < math.inf]
    if not losses or max(losses) < _LOG_SCALE_RATIO * float(np.median(losses)):
        return ""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
    axes.yaxis.set_minor_formatter(lambda *_: "")
    return " (log scale)"


def _is_capped(fold: Fold) -> bool:
    """Whether the log loss of a fold's probabilities lies clearly below what training measured at that epoch."""
    return fold.log_loss < _CAPPED_SHARE * fold.history.best_loss < math.inf


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _say(spread: Spread) -> str:
    return f"{spread.mean:.4f} ± {spread.standard_deviation:.4f}"
