"""The confusion matrix of an evaluation as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thaw.records import Metrics
from thaw.report.canvas import INK, QUIET, TRAIN, VALIDATION, encode_png, fit_name, start_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NUMBERED_CLASSES = 20


def plot_confusion(metrics: Metrics, classes: Sequence[str]) -> bytes:
    """What test images of each class were called: counts, and their share of the row."""
    return encode_png(draw_confusion(metrics, classes))


def draw_confusion(metrics: Metrics, classes: Sequence[str]) -> Figure:
    """The figure behind `plot_confusion`. Beyond 20 classes the cells are coloured, not numbered."""
    counts = np.asarray(metrics.confusion, dtype=float).reshape(len(classes), len(classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    number = len(classes)
    numbered = number <= _MOST_NUMBERED_CLASSES
    cell = min(1.5, max(0.52, 4.6 / number)) if numbered else 8 / number
    size = cell * number + 1.7
    figure = start_figure(max(size, 5.0), max(size - 0.6, 3.4))
    axes = figure.subplots()
    axes.imshow(_confusion_colours(shares), interpolation="nearest")
    for edge in ("top", "right", "bottom", "left"):
        axes.spines[edge].set_visible(False)
    axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=2 if numbered else 0.3)
    axes.tick_params(which="both", length=0, colors=INK)
    if number <= 40:
        names = [fit_name(name) for name in classes]
        font = {"fontsize": 11 if number <= 8 else 9, "parse_math": False}
        slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        slanted = number > 5 or max(map(len, names)) > 9
        axes.set_xticks(range(number), names, **font, **(slant if slanted else {}))
        axes.set_yticks(range(number), names, **font)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
    axes.set_xlabel("called", color=QUIET, fontsize=11)
    axes.set_ylabel("labelled", color=QUIET, fontsize=11)
    if numbered:
        _number_cells(axes, counts, shares, cell)
    return figure


def _confusion_colours(shares: np.ndarray) -> np.ndarray:
    """Blue for right calls, orange for mistakes, deeper with the share; the root shows small shares."""
    strength = np.sqrt(shares)[..., None]
    right = np.eye(len(shares), dtype=bool)[..., None]
    full = np.where(right, _rgb(VALIDATION), _rgb(TRAIN))
    return _rgb("#f5f6f7") * (1 - strength) + full * strength


def _number_cells(axes: Axes, counts: np.ndarray, shares: np.ndarray, cell: float) -> None:
    points = min(15.0, cell * 72 / 4.2)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "#b3b8bd" if not count else "white" if share > 0.35 else INK
        weight = "bold" if row == column else "normal"
        lines = [(f"{count:,.0f}", points, weight, 0.55), (_share(share), 0.78 * points, "normal", -0.65)]
        for text, size, boldness, lift in lines if count else [("0", points, weight, 0)]:
            axes.annotate(
                text,
                (column, row),
                (0, lift * points),
                textcoords="offset points",
                ha="center",
                va="center",
                color=colour,
                fontsize=size,
                fontweight=boldness,
            )


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
