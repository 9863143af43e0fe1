"""Pictures of a run, as PNG bytes: learning curves, the confusion matrix, augmented views.

Everything is drawn through figure objects and none of pyplot's global state, so threads can draw at
once. matplotlib is imported on the first drawing only.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from thaw.records import History, Metrics, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by every kind of colour vision, and in grey by lightness.
TRAIN, VALIDATION, GATE = "#D55E00", "#0072B2", "#009E73"
INK, QUIET, GRID = "#22262b", "#646b73", "#e4e7ea"

_DOTS_PER_INCH = 110
_PICTURE_BYTES = 110_000
_MOST_NUMBERED_CLASSES = 20
_MOST_VIEWS = 12


def plot_curves(
    head: History,
    fine_tune: History | None,
    verdict: Verdict,
    cut: str | None = None,
    patience_epochs: int | None = None,
) -> bytes:
    """Accuracy and loss of the head and of the fine-tune behind it, each epoch and smoothed.

    `cut` names the layer behind which the backbone thaws; `patience_epochs` shades the window that the
    verdict was reached on.
    """
    return _png(draw_curves(head, fine_tune, verdict, cut, patience_epochs))


def plot_confusion(metrics: Metrics, classes: Sequence[str]) -> bytes:
    """What test images of each class were called: counts, and their share of the row."""
    return _png(draw_confusion(metrics, classes))


def plot_views(views: np.ndarray) -> bytes:
    """An image beside augmented views of it.

    Args:
        views: uint8 (n, size, size, 3), the image itself first. The first 12 are drawn.
    """
    return _png(draw_views(views))


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
    fine_tune: History | None,
    verdict: Verdict,
    cut: str | None = None,
    patience_epochs: int | None = None,
) -> Figure:
    """The figure behind `plot_curves`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    figure = _figure(5.4, 7.2)
    panels = figure.subplots(2, 1, sharex=True)
    phases = [(head, 0)] + ([(fine_tune, len(head.epochs))] if fine_tune else [])
    last = max(sum(len(history.epochs) for history, _ in phases), 1)
    window = min(patience_epochs or 0, verdict.epoch)
    for axes, name in zip(panels, ("accuracy", "loss"), strict=True):
        _style(axes)
        axes.set_xlim(0.4, last + 0.6)
        for history, offset in phases:
            _draw_phase(axes, history, offset, name)
        if window:
            axes.axvspan(verdict.epoch - window + 0.5, verdict.epoch + 0.5, color=GATE, alpha=0.14, lw=0)
        if fine_tune:
            axes.axvline(len(head.epochs) + 0.5, color=INK, lw=1.2, ls=(0, (4, 3)), label="thaw")
    if fine_tune:
        _caption_thaw(panels[0], len(head.epochs) + 0.5, cut)
    title = {"loc": "left", "fontsize": 13, "fontweight": "bold", "color": INK}
    panels[0].set_title("Accuracy", **title)
    panels[0].yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
    panels[1].set_title("Loss, in nats" + _fit_loss_scale(panels[1], phases), **title)
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


def _caption_thaw(axes: Axes, thaw: float, cut: str | None) -> None:
    room_right = thaw < sum(axes.get_xlim()) / 2
    caption = axes.annotate(
        f"thaws after {cut}" if cut else "backbone thaws",
        (thaw, 0),
        (6 if room_right else -6, 7),
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


def _fit_loss_scale(axes: Axes, phases: Sequence[tuple[History, int]]) -> str:
    """Draw losses on a log scale where a few large ones would flatten the rest; say so."""
    epochs = [epoch for history, _ in phases for epoch in history.epochs]
    losses = [loss for epoch in epochs for loss in (epoch.loss, epoch.val_loss) if 0 < loss < math.inf]
    if not losses or max(losses) < 20 * float(np.median(losses)):
        return ""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
    axes.yaxis.set_minor_formatter(lambda *_: "")
    axes.set_ylim(max(min(losses), max(losses) * 1e-5) / 1.5, max(losses) * 1.5)
    return " (log scale)"


def draw_confusion(metrics: Metrics, classes: Sequence[str]) -> Figure:
    """The figure behind `plot_confusion`. Beyond 20 classes the cells are coloured, not numbered."""
    counts = np.asarray(metrics.confusion, dtype=float).reshape(len(classes), len(classes))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    number = len(classes)
    numbered = number <= _MOST_NUMBERED_CLASSES
    cell = min(1.5, max(0.52, 4.6 / number)) if numbered else 8 / number
    size = cell * number + 1.7
    figure = _figure(max(size, 5.0), max(size - 0.6, 3.4))
    axes = figure.subplots()
    axes.imshow(_confusion_colours(shares), interpolation="nearest")
    for edge in ("top", "right", "bottom", "left"):
        axes.spines[edge].set_visible(False)
    axes.set_xticks(np.arange(number + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(number + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=2 if numbered else 0.3)
    axes.tick_params(which="both", length=0, colors=INK)
    if number <= 40:
        names = [_drawable(name) for name in classes]
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


def draw_views(views: np.ndarray) -> Figure:
    """The figure behind `plot_views`."""
    shown = np.asarray(views, dtype=np.uint8)[:_MOST_VIEWS]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = _figure(1.6 * columns, 1.8 * rows)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if number < len(shown):
            axes.imshow(shown[number], interpolation="antialiased")
            axes.set_title("original" if not number else f"view {number}", fontsize=10, color=INK, pad=4)
    return figure


def _figure(width_inches: float, height_inches: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure((width_inches, height_inches), _DOTS_PER_INCH, facecolor="white", layout=layout)


def _style(axes: Axes) -> None:
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    axes.spines["bottom"].set_color("#b3b8bd")
    axes.grid(axis="y", color=GRID, lw=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=QUIET, labelsize=11, length=0)
    axes.xaxis.label.set(fontsize=11, color=QUIET)


def _png(figure: Figure) -> bytes:
    """Encode a figure in few colours, and in fewer pixels where photographs make it large."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas, dots_per_inch = FigureCanvasAgg(figure), float(_DOTS_PER_INCH)
    while True:
        figure.set_dpi(dots_per_inch)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        encoded = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(encoded, "PNG", optimize=True)
        if encoded.tell() <= _PICTURE_BYTES:
            return encoded.getvalue()
        dots_per_inch *= 0.97 * math.sqrt(_PICTURE_BYTES / encoded.tell())


def _drawable(name: str, limit: int = 20) -> str:
    """A class name that fits its tick: shortened, and a box for each character the font lacks."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    drawn = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "\u25a1" for c in name)
    return drawn if len(drawn) <= limit else f"{drawn[: limit - 1]}\u2026"


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan


def _share(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _rgb(colour: str) -> np.ndarray:
    return np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
