"""Accuracy against cost: what each recipe gives for its operations and its training time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from thaw.comparison import ComparisonTable, RecipeResult
from thaw.report.canvas import INK, VALIDATION, encode_png, fit_name, start_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

_MARKER_POINTS = 15.0


def plot_accuracy(table: ComparisonTable) -> bytes:
    """Test accuracy by the arithmetic for one image, and by seconds of training, as PNG."""
    return encode_png(draw_accuracy(table))


def draw_accuracy(table: ComparisonTable) -> Picture:
    """The figure behind `plot_accuracy`. Numbers stand for recipes, the best one is 1."""
    from matplotlib.lines import Line2D

    names = [fit_name(recipe.name, 44) for recipe in table.tested]
    figure = start_figure(5.6, 6.0 + 0.22 * len(names))
    tall, small = figure.subplots(2, 1, sharey=True, height_ratios=(5, 3))
    flops = [recipe.model.flops / 1e9 for recipe in table.tested]
    seconds = [recipe.training and recipe.training.seconds for recipe in table.tested]
    low = min(recipe.accuracy_interval[0] for recipe in table.tested)
    high = max(recipe.accuracy_interval[1] for recipe in table.tested)
    tall.set_ylim(low - 0.06 * (1 - low), min(high + 0.06 * (1 - low), 1 + 0.03 * (1 - low)))
    for axes, costs, title, label in (
        (tall, flops, "Test accuracy by arithmetic", "GFLOPs for one image, log scale"),
        (small, seconds, "and by training", "Seconds of training, log scale"),
    ):
        style_axes(axes)
        axes.set_title(title, loc="left", fontsize=13, fontweight="bold", color=INK)
        axes.set_xlabel(label)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.4g} %")
        _set_costs(axes, [cost for cost in costs if cost])
    labels = [f"{number}   {name}" for number, name in enumerate(names, 1)]
    blank = [Line2D([], [], ls="none") for _ in labels]
    legend = figure.legend(
        blank, labels, loc="outside lower left", frameon=False, fontsize=10.5, labelcolor=INK, handlelength=0
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    # Which markers would hide each other is known once every part of the figure has its room.
    figure.draw_without_rendering()
    for axes, costs in ((tall, flops), (small, seconds)):
        _mark_recipes(axes, table.tested, costs)
    return figure


def _set_costs(axes: Axes, costs: Sequence[float]) -> None:
    """A logarithmic axis around these costs, with a few plain numbers on it."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = min(costs, default=1), max(costs, default=1)
    # Wide enough for the markers, and for one cost alone.
    margin = max(0.08 * math.log10(high / low), 0.25)
    axes.set_xscale("log")
    axes.set_xlim(low / 10**margin, high * 10**margin)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,), numticks=12))
    axes.xaxis.set_major_formatter(lambda cost, _: f"{cost:,.4g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def _mark_recipes(axes: Axes, recipes: Sequence[RecipeResult], costs: Sequence[float | None]) -> None:
    """A numbered marker with its interval for each recipe of known cost; those that collide stand side by side."""
    pixels = axes.figure.dpi / 72
    reach = (_MARKER_POINTS + 2) * pixels
    placed: list[tuple[float, float]] = []
    for number, (recipe, cost) in enumerate(zip(recipes, costs, strict=True), 1):
        if not cost:
            continue
        x, y = axes.transData.transform((cost, recipe.accuracy.mean))
        # In steps to the right and to the left in turn, until neither markers nor intervals hide each other.
        x += next(
            shift
            for step in itertools.count()
            for shift in (0.4 * step * reach, -0.4 * step * reach)
            if all(
                abs(x + shift - other_x) > 0.35 * reach
                and math.hypot(x + shift - other_x, y - other_y) >= reach
                for other_x, other_y in placed
            )
        )
        placed.append((x, y))
        at = axes.transData.inverted().transform((x, y))[0]
        low, high = recipe.accuracy_interval
        axes.plot([at, at], [low, high], color=VALIDATION, lw=1.6, alpha=0.45, solid_capstyle="round")
        best = {"mfc": VALIDATION, "mec": VALIDATION} if number == 1 else {"mfc": "white", "mec": VALIDATION}
        axes.plot([at], [recipe.accuracy.mean], "o", ms=_MARKER_POINTS, mew=1.5, zorder=number + 3, **best)
        axes.annotate(
            f"{number}",
            (at, recipe.accuracy.mean),
            ha="center",
            va="center_baseline",
            color="white" if number == 1 else INK,
            fontsize=9,
            fontweight="bold",
            zorder=number + 3,
        )
