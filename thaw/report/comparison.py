"""A comparison of recipes as tables, as a picture and as a page; published as one folder of the store."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thaw.comparison import ComparisonTable, Figure, Pair, RecipeResult, RunResult
from thaw.cost import Spent
from thaw.records import SIDES, Made
from thaw.report.canvas import INK, QUIET, VALIDATION, encode_png, fit_name, start_figure, style_axes
from thaw.report.contest import list_comparison
from thaw.report.page import _data_uri, _inline_pictures, _plain, _section_blocks, _writable
from thaw.report.sections import Bar, Section, Table
from thaw.report.wording import say_duration, say_interval, say_number, say_percent, shorten
from thaw.store import Store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Picture

_FILES = ("report.html", "report.md")
_MARKDOWN_BYTES = 300_000
_MARKER_POINTS = 15.0
_STATES = {"completed": "", "gate_closed": "gate closed", "failed": "failed"}


def publish_comparison(table: ComparisonTable, store: Store) -> Made[ComparisonTable]:
    """Publish `comparisons/<address>/`: the record, the picture, the page and the same as Markdown.

    One that compares the same and came to the same is found published, and keeps the figures of the run
    that made it.
    """
    note = say_best(table)
    found = store.read_folder("comparisons", table.address, "comparison.json", ComparisonTable, _FILES)
    if found:
        return Made(value=table, reused=True, note=note)
    pictures = {"accuracy": plot_accuracy(table)} if table.tested else {}
    with store.publish_folder("comparisons", table.address) as partial:
        for name, picture in pictures.items():
            (partial / f"{name}.png").write_bytes(picture)
        (partial / "report.html").write_text(render_page(table, pictures), encoding="utf-8")
        (partial / "report.md").write_text(render_markdown(table, pictures), encoding="utf-8")
        (partial / "comparison.json").write_text(table.to_json(), encoding="utf-8")
    return Made(value=table, reused=False, note=note)


def render_page(table: ComparisonTable, pictures: dict[str, bytes]) -> str:
    """The comparison as one HTML page that needs nothing else."""
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = pages.get_template("page.html.j2").render(
        title=f"{len(table.recipes)} recipes on {Path(table.dump).name}",
        outcome=say_best(table),
        tone="good" if all(recipe.state == "completed" for recipe in table.recipes) else "caution",
        notices=_list_notices(table),
        figures=_list_figures(table),
        sections=list_sections(table),
        pictures={name: _data_uri(picture) for name, picture in pictures.items()},
    )
    return _writable(page)


def render_markdown(table: ComparisonTable, pictures: dict[str, bytes]) -> str:
    """The comparison as Markdown for the Prefect UI, below 300,000 bytes of UTF-8."""
    blocks = [f"**{_plain(say_best(table))}**"]
    blocks += [f"> {_plain(notice)}" for notice in _list_notices(table)]
    blocks += [block for section in list_sections(table) for block in _section_blocks(section)]
    text = _writable("\n\n".join(blocks) + "\n")
    for name, inlined in _inline_pictures(pictures, _MARKDOWN_BYTES - len(text.encode())).items():
        text = text.replace(f"<!-- picture {name} -->", inlined)
    return text


def say_best(table: ComparisonTable) -> str:
    """The comparison in one sentence."""
    if not table.tested:
        return f"None of {len(table.recipes)} recipes has a model"
    best = table.tested[0]
    said = f"{best.name}: {_say_accuracy(best)} of {table.images['test']:,} test images right"
    ahead = next((pair for pair in table.pairs if pair.better == best.name), None)
    if ahead:
        found = ahead.comparison
        points = 100 * found.accuracy_difference
        said += f", {points:.1f} points more than {ahead.worse} (p = {found.mcnemar_p:.2g})"
    return said


def list_sections(table: ComparisonTable) -> list[Section]:
    """The parts of the page; those with nothing to say are left out."""
    tested = table.tested
    several = " Means over runs that differ in the seed of training, ± their standard deviation."
    shown = {"accuracy": "Test accuracy by cost, with 95 % intervals"} if tested else {}
    sections = []
    if tested:
        text = [
            f"On the same {table.images['test']:,} test images, looked at once by each run. In brackets the 95 % "
            f"interval. Log loss is in nats.{several if table.seeds > 1 else ''}"
        ]
        sections.append(
            Section(name="results", title="Results", text=text, tables=[list_results(table)], pictures=shown)
        )
    if table.pairs:
        sections.append(_neighbours(table))
    if tested:
        sections.append(_costs(table))
    if without := list_withheld(table):
        sections.append(Section(name="withheld", title="No model", tables=[without]))
    return [*sections, _runs(table)]


def list_results(table: ComparisonTable) -> Table:
    """What each recipe reaches, the best one first."""
    lowest = min(recipe.accuracy_interval[0] for recipe in table.tested)
    floor = min(0.95, math.floor(lowest * 20) / 20)
    rows = []
    for recipe in table.tested:
        low, high = recipe.accuracy_interval
        accuracy = Bar(
            text=_say_accuracy(recipe), start=(low - floor) / (1 - floor), end=(high - floor) / (1 - floor)
        )
        figures = (_say_figure(recipe.log_loss), _say_figure(recipe.auc), _say_share(recipe.val_accuracy))
        rows.append((recipe.name, accuracy, *figures))
    columns = ("recipe", "test accuracy", "log loss", "AUC", "validation accuracy")
    return Table(columns=columns, rows=rows, align="llrrr")


def list_costs(table: ComparisonTable) -> Table:
    """What each recipe costs, in the order of `list_results`."""
    rows = [
        (
            recipe.name,
            _say_count(recipe.model.parameters),
            _say_count(recipe.model.trained_parameters),
            f"{recipe.model.flops / 1e9:.3g}",
            say_spent(recipe.training),
            say_spent(recipe.extraction),
            "–" if recipe.images_decoded is None else f"{recipe.images_decoded:,}",
        )
        for recipe in table.tested
    ]
    columns = ("recipe", "parameters", "trained", "GFLOPs an image", "training", "features")
    return Table(columns=(*columns, "images decoded (this run only)"), rows=rows, align="lrrrrrr")


def list_pairs(table: ComparisonTable) -> Table:
    """Each recipe beside the next one: the difference in accuracy and log loss, and whether chance explains it."""
    rows = []
    for pair in table.pairs:
        (_, _, _, accuracy), (_, _, _, log_loss), _ = list_comparison(pair.comparison)
        found = pair.comparison
        alone = f"{found.challenger_right_only:,} : {found.champion_right_only:,}"
        p = f"{found.mcnemar_p:.3g}"
        rows.append((f"{pair.better} over {pair.worse}", accuracy, p, alone, log_loss))
    columns = ("neighbours", "accuracy, difference", "p", "right alone", "log loss, difference")
    return Table(columns=columns, rows=rows, align="lrrrr")


def list_withheld(table: ComparisonTable) -> Table | None:
    """The recipes of which a run has no model, and why; None where all have."""
    rows = [
        (recipe.name, _STATES[recipe.state] or "in part", shorten(recipe.reason, 400))
        for recipe in table.recipes
        if recipe.reason
    ]
    return Table(columns=("recipe", "state", "reason"), rows=rows, align="lll") if rows else None


def list_rows(table: ComparisonTable) -> list[dict[str, str]]:
    """Every recipe as one row, for the table of the Prefect UI."""
    reached = {row[0]: row for row in list_results(table).rows} if table.tested else {}
    costs = {row[0]: row for row in list_costs(table).rows}
    rows = []
    for recipe in table.recipes:
        row = {"recipe": recipe.name, "state": _STATES[recipe.state] or "completed", "reason": recipe.reason}
        if recipe.name in reached:
            cells = [cell.text if isinstance(cell, Bar) else cell for cell in reached[recipe.name]]
            row |= dict(zip(list_results(table).columns, cells, strict=True))
            row |= dict(zip(list_costs(table).columns, costs[recipe.name], strict=True))
        rows.append(row)
    return rows


def say_spent(spent: Spent | None) -> str:
    """Seconds of stages, and whether this run or an earlier one made what they make."""
    if spent is None:
        return "–"
    known = spent.here + spent.earlier
    if spent.unknown:
        return f"over {say_duration(known)}" if known else "cached"
    if spent.earlier:
        return f"{say_duration(known)}, {'part ' if spent.here else ''}earlier"
    return say_duration(known)


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
    handles = [Line2D([], [], ls="none", marker=f"${number}$", color=INK) for number in range(1, len(names) + 1)]
    figure.legend(handles, names, loc="outside lower left", frameon=False, fontsize=10.5, labelcolor=INK)
    # Where markers would hide each other is known once all parts of the figure have their room.
    figure.canvas.draw() if figure.canvas else None
    figure.draw_without_rendering()
    for axes, costs in ((tall, flops), (small, seconds)):
        _mark_recipes(axes, table.tested, costs)
    return figure
