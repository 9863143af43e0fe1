"""Learning curves of a run as PNG bytes, with the gate's window and the thaw marked."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thaw.records import History, Verdict
from thaw.report.canvas import GATE, INK, QUIET, TRAIN, VALIDATION, encode_png, start_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_curves(
    head: History,
    phases: Sequence[tuple[str, History]],
    verdict: Verdict,
    patience_epochs: int | None = None,
) -> bytes:
    """Accuracy and loss of the head and of the phases of fine-tuning behind it, each epoch and smoothed.

    `phases` are histories with the layers behind which the backbone thaws; `patience_epochs` shades the
    window that the verdict on the head was reached on.
    """
    return encode_png(draw_curves(head, phases, verdict, patience_epochs))


def smooth(values: Iterable[float], factor: float = 0.8) -> list[float]:
    """Exponential smoothing: each value weighs 1 - factor, what came before weighs factor.

    Starts at the first value, as in Chollet's Deep Learning with Python (2017), section 5.3. A value
    that is not finite stays a gap and leaves the average as it was.

    >>> smooth([1.0, 0.0, 0.0], factor=0.5)
    [1.0, 0.5, 0.25]
    """
    smoothed: list[float] = []
    average: float | None = None
    for value in values:
        if math.isfinite(value):
            average = value if average is None else factor * average + (1 - factor) * value
            smoothed.append(average)
        else:
            smoothed.append(math.nan)
    return smoothed


def draw_curves(
    head: History,
    phases: Sequence[tuple[str, History]],
    verdict: Verdict,
    patience_epochs: int | None = None,
) -> Figure:
    """The figure behind `plot_curves`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    figure = start_figure(5.4, 7.2)
    panels = figure.subplots(2, 1, sharex=True)
    histories = [head, *(history for _, history in phases)]
    ends = list(itertools.accumulate(len(history.epochs) for history in histories))
    parts = list(zip(histories, [0, *ends], strict=False))
    thaws = [end + 0.5 for end in ends[:-1]]
    last = max(ends[-1], 1)
    window = min(patience_epochs or 0, verdict.epoch)
    for axes, name in zip(panels, ("accuracy", "loss"), strict=True):
        style_axes(axes)
        axes.set_xlim(0.4, last + 0.6)
        for history, offset in parts:
            _draw_phase(axes, history, offset, name)
        if window:
            axes.axvspan(verdict.epoch - window + 0.5, verdict.epoch + 0.5, color=GATE, alpha=0.14, lw=0)
        for thaw in thaws:
            axes.axvline(thaw, color=INK, lw=1.2, ls=(0, (4, 3)), label="thaw")
    for row, ((cut, _), thaw) in enumerate(zip(phases, thaws, strict=True)):
        _caption_thaw(panels[0], thaw, cut, row)
    title = {"loc": "left", "fontsize": 13, "fontweight": "bold", "color": INK}
    panels[0].set_title("Accuracy", **title)
    panels[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    panels[1].set_title("Loss, in nats" + _fit_loss_scale(panels[1], parts), **title)
    panels[1].set_xlabel("Epoch")
    panels[1].xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    legend = {
        "training": Line2D([], [], color=TRAIN, lw=2.4),
        "validation": Line2D([], [], color=VALIDATION, lw=2.4),
        "smoothed, factor 0.8": Line2D([], [], color=QUIET, lw=2.4),
        "each epoch": Line2D([], [], color=QUIET, lw=1, alpha=0.55),
        "lowest validation loss": Line2D([], [], **_BEST),
    }
    if window:
        legend[f"gate: {verdict.state.replace('_', ' ')}"] = Patch(color=GATE, alpha=0.14, lw=0)
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=11
    )
    return figure


_BEST = {"marker": "o", "ms": 8, "mfc": "white", "mec": VALIDATION, "mew": 2, "ls": "none"}


def _draw_phase(axes: Axes, history: History, offset: int, name: str) -> None:
    epochs = np.arange(1, len(history.epochs) + 1) + offset
    for field, colour in ((name, TRAIN), (f"val_{name}", VALIDATION)):
        values = [_finite(getattr(epoch, field)) for epoch in history.epochs]
        axes.plot(epochs, values, color=colour, lw=1, alpha=0.45, marker="." if len(values) < 3 else None)
        axes.plot(epochs, smooth(values), color=colour, lw=2.4, solid_capstyle="round")
    if history.best:
        at = history.best_epoch + offset if history.best_epoch else offset + 0.5
        best = _finite(getattr(history.best, f"val_{name}"))
        axes.plot([at], [best], **_BEST, zorder=5, clip_on=False, label="best epoch")


def _caption_thaw(axes: Axes, thaw: float, cut: str, row: int) -> None:
    room_right = thaw < sum(axes.get_xlim()) / 2
    caption = axes.annotate(
        f"thaws after {cut}",
        (thaw, 0),
        (6 if room_right else -6, 7 + 16 * row),
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


def _fit_loss_scale(axes: Axes, parts: Sequence[tuple[History, int]]) -> str:
    """Draw losses on a log scale where a few large ones would flatten the rest; say so."""
    epochs = [epoch for history, _ in parts for epoch in history.epochs]
    losses = [loss for epoch in epochs for loss in (epoch.loss, epoch.val_loss) if 0 < loss < math.inf]
    if not losses or max(losses) < 20 * float(np.median(losses)):
        return ""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.set_ylim(max(min(losses), max(losses) * 1e-5) / 1.5, max(losses) * 1.5)
    return " (log scale)"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
