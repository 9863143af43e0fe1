"""What the gate compared, epoch by epoch, as PNG bytes: its statistic, its threshold and where it opened."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from thaw.records import Verdict
from thaw.report.canvas import GATE, INK, QUIET, TRAIN, VALIDATION, encode_png, start_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Below it the scale is linear: a statistic can be zero or negative.
_LEAST_LINEAR_NATS = 1e-4


@dataclass(frozen=True, kw_only=True)
class GatePart:
    """The verdicts that one training would have got after each epoch.

    `answer` is what the gate behind it did, such as opens; empty where nothing was to thaw behind it.
    """

    trace: tuple[Verdict, ...]
    answer: str


def plot_gate(parts: Sequence[GatePart], least_threshold_nats: float) -> bytes:
    """The statistic of each epoch with its threshold, for the head and for each phase behind it.

    Args:
        least_threshold_nats: the smallest threshold there can be, from which on the scale is logarithmic.
    """
    return encode_png(draw_gate(parts, least_threshold_nats))


def draw_gate(parts: Sequence[GatePart], least_threshold_nats: float) -> Figure:
    """The figure behind `plot_gate`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator, SymmetricalLogLocator

    figure = start_figure(5.4, 4.4)
    axes = figure.subplots()
    style_axes(axes)
    axes.set_xlim(0.4, max(sum(len(part.trace) for part in parts), 1) + 0.6)
    linear = max(least_threshold_nats, _LEAST_LINEAR_NATS)
    axes.set_yscale("symlog", linthresh=linear)
    axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=linear, subs=(1, 3)))
    axes.yaxis.set_major_formatter(lambda nats, _: f"{nats:.3g}")
    ends = list(itertools.accumulate(len(part.trace) for part in parts))
    for part, offset in zip(parts, [0, *ends], strict=False):
        _draw_part(axes, part, offset)
    _make_room_above(axes, 0.06 + 0.09 * len(parts))
    for row, (part, end) in enumerate(zip(parts, ends, strict=True)):
        _mark_end(axes, part, end + 0.5, row)
    axes.set_title(
        "Improvement of validation loss, in nats", loc="left", fontsize=13, fontweight="bold", color=INK
    )
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend = {
        "statistic: improvement in the gate's window": Line2D([], [], color=VALIDATION, lw=2.4),
        "threshold: what noise alone could give": Line2D([], [], color=TRAIN, lw=1.8, ls=(0, (4, 2))),
        "no more than the threshold": Patch(color=GATE, alpha=0.18, lw=0),
    }
    figure.legend(legend.values(), legend.keys(), loc="outside lower center", frameon=False, fontsize=11)
    return figure


def _draw_part(axes: Axes, part: GatePart, offset: int) -> None:
    epochs = np.arange(1, len(part.trace) + 1) + offset
    statistics, thresholds = (
        np.array([np.nan if figure is None else figure for figure in figures], dtype=float)
        for figures in zip(*((one.statistic, one.threshold) for one in part.trace), strict=True)
    )
    below = statistics <= thresholds
    for epoch in epochs[below]:
        axes.axvspan(epoch - 0.5, epoch + 0.5, color=GATE, alpha=0.18, lw=0)
    axes.plot(epochs, thresholds, color=TRAIN, lw=1.8, ls=(0, (4, 2)), marker=".", ms=8, label="threshold")
    axes.plot(epochs, statistics, color=VALIDATION, lw=2.4, marker=".", ms=10, label="statistic")


def _make_room_above(axes: Axes, share: float) -> None:
    """Leave a share of the panel's height free of lines, for captions."""
    scale = axes.yaxis.get_transform()
    low, high = scale.transform(axes.get_ylim())
    axes.set_ylim(*scale.inverted().transform([low, low + (high - low) / (1 - share)]))


def _mark_end(axes: Axes, part: GatePart, end: float, row: int) -> None:
    """A line where the gate was asked, with what it did and the verdict."""
    last = part.trace[-1]
    state = last.state.replace("_", " ")
    said = f"{part.answer}: {state}" if part.answer else state
    axes.axvline(end, color=GATE if part.answer == "opens" else QUIET, lw=1.6, ls=(0, (4, 3)), label=said)
    if last.statistic is not None:
        beyond = ">" if last.statistic > last.threshold else "≤"
        said += f", {last.statistic:.2g} {beyond} {last.threshold:.2g}"
    room_right = end < sum(axes.get_xlim()) / 2
    caption = axes.annotate(
        said,
        (end, 1),
        (6 if room_right else -6, -14 - 16 * row),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="left" if room_right else "right",
        color=INK,
        fontsize=11,
        bbox={"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1.5},
        parse_math=False,
        zorder=6,
    )
    # A caption wider than its side of the panel must not squeeze the panel.
    caption.set_in_layout(False)
