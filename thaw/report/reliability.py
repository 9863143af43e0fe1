"""The reliability diagram of an evaluation as PNG bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from thaw.records import Reliability
from thaw.report.canvas import INK, QUIET, TRAIN, VALIDATION, encode_png, start_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A bin of fewer images says little: its mark is drawn small.
_LARGEST_POINTS, _SMALLEST_POINTS = 90.0, 12.0


def plot_reliability(after: Reliability, before: Reliability | None = None) -> bytes:
    """How often calls of each probability are right, above how many such calls there are.

    Args:
        before: without the temperature, where there is one.
    """
    return encode_png(draw_reliability(after, before))


def draw_reliability(after: Reliability, before: Reliability | None = None) -> Figure:
    """The figure behind `plot_reliability`."""
    figure = start_figure(6.4, 5.6)
    diagram, counts = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    shown = [("as trained", before, TRAIN, "o"), ("calibrated", after, VALIDATION, "s")]
    if before is None:
        shown = [("as trained", after, VALIDATION, "s")]
    left = min(made.bins[0].low for _, made, _, _ in shown)
    for axes in (diagram, counts):
        style_axes(axes)
    diagram.plot([left, 1], [left, 1], color=QUIET, lw=1.2, ls=(0, (4, 3)), label="as sure as right")
    for place, (name, made, colour, mark) in enumerate(shown):
        _draw_bins(diagram, made, colour, mark, f"{name}, ECE {made.error:.3f}")
        _count_images(counts, made, colour, place, len(shown))
    diagram.set_ylabel("share right", color=QUIET, fontsize=11)
    diagram.legend(frameon=False, fontsize=11, labelcolor=INK, loc="best")
    counts.set_ylabel("images", color=QUIET, fontsize=11)
    counts.set_xlabel("probability of the called class")
    margin = 0.02 * (1 - left)
    counts.set_xlim(left - margin, 1 + margin)
    diagram.set_ylim(-0.03, 1.03)
    return figure


def _draw_bins(axes: Axes, made: Reliability, colour: str, mark: str, name: str) -> None:
    images = np.array([one.images for one in made.bins], dtype=float)
    points = np.maximum(_LARGEST_POINTS * np.sqrt(images / images.max()), _SMALLEST_POINTS)
    sure, right = [one.probability for one in made.bins], [one.accuracy for one in made.bins]
    axes.plot(sure, right, color=colour, lw=1.6, alpha=0.7)
    axes.scatter(sure, right, s=points, color=colour, marker=mark, zorder=3, label=name)


def _count_images(axes: Axes, made: Reliability, colour: str, place: int, places: int) -> None:
    """Bars side by side within each bin."""
    widths = [(one.high - one.low) / (places + 0.4) for one in made.bins]
    starts = [one.low + (place + 0.2) * width for one, width in zip(made.bins, widths, strict=True)]
    axes.bar(starts, [one.images for one in made.bins], widths, align="edge", color=colour)
