"""A comparison of recipes as tables, as a picture and as a page; published as one folder of the store."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from thaw.comparison import ComparisonTable, Figure, RecipeResult
from thaw.cost import Spent
from thaw.records import SIDES, Made
from thaw.report.page import drop_surrogates, escape_markdown, inline_pictures, list_blocks, write_data_uri
from thaw.report.parts import Bar, Section, Table
from thaw.report.scatter import plot_accuracy
from thaw.report.wording import say_duration, say_interval, say_number, say_percent, shorten
from thaw.store import Store

if TYPE_CHECKING:
    pass

_FILES = ("report.html", "report.md")
_MARKDOWN_BYTES = 300_000
_STATES = {"completed": "completed", "gate_closed": "gate closed", "failed": "failed"}


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
        pictures={name: write_data_uri(picture) for name, picture in pictures.items()},
    )
    return drop_surrogates(page)


def render_markdown(table: ComparisonTable, pictures: dict[str, bytes]) -> str:
    """The comparison as Markdown for the Prefect UI, below 300,000 bytes of UTF-8."""
    blocks = [f"**{escape_markdown(say_best(table))}**"]
    blocks += [f"> {escape_markdown(notice)}" for notice in _list_notices(table)]
    blocks += [block for section in list_sections(table) for block in list_blocks(section)]
    text = drop_surrogates("\n\n".join(blocks) + "\n")
    for name, inlined in inline_pictures(pictures, _MARKDOWN_BYTES - len(text.encode())).items():
        text = text.replace(f"<!-- picture {name} -->", inlined)
    return text


def say_best(table: ComparisonTable) -> str:
    """The comparison in one sentence."""
    if not table.tested:
        counts = Counter(_STATES[recipe.state] for recipe in table.recipes)
        return f"No recipe has a model: {', '.join(f'{count} {state}' for state, count in counts.items())}"
    best = table.tested[0]
    said = f"{best.name}: {_say_accuracy(best)} of {table.images['test']:,} test images right"
    if len(table.tested) == 1:
        return said
    points = 100 * (best.accuracy.mean - table.tested[1].accuracy.mean)
    lead = f"{points:.1f} points more than" if points else "as many as"
    # A test compares two runs, and so says nothing about the means of several.
    p = f" (p = {table.pairs[0].comparison.mcnemar_p:.2g})" if points and table.seeds == 1 else ""
    return f"{said}, {lead} {table.tested[1].name}{p}"


def list_sections(table: ComparisonTable) -> list[Section]:
    """The parts of the page; those with nothing to say are left out."""
    tested = table.tested
    several = " Means over runs that differ in the seed of training, ± their standard deviation."
    caption = (
        "Test accuracy by cost, with 95 % intervals; markers that would hide each other stand side by side"
    )
    shown = {"accuracy": caption} if tested else {}
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
    for number, recipe in enumerate(table.tested, 1):
        low, high = recipe.accuracy_interval
        accuracy = Bar(
            text=_say_accuracy(recipe), start=(low - floor) / (1 - floor), end=(high - floor) / (1 - floor)
        )
        figures = (_say_figure(recipe.log_loss), _say_figure(recipe.auc), _say_share(recipe.val_accuracy))
        rows.append((f"{number} {recipe.name}", accuracy, *figures))
    columns = ("recipe", "test accuracy", "log loss", "AUC", "validation")
    return Table(columns=columns, rows=rows, align="llrrr")


def list_costs(table: ComparisonTable) -> Table:
    """What each recipe costs, in the order of `list_results`."""
    names = _shorten_names(table)
    rows = [
        (
            names[recipe.name],
            _say_count(recipe.model.parameters),
            _say_count(recipe.model.trained_parameters),
            f"{recipe.model.flops / 1e9:.3g}",
            say_spent(recipe.training),
            say_spent(recipe.extraction),
            "–" if recipe.images_decoded is None else f"{recipe.images_decoded:,}",
        )
        for recipe in table.tested
    ]
    columns = (
        "recipe",
        "weights",
        "trained",
        "GFLOPs",
        "training",
        "features",
        "images decoded, this run only",
    )
    return Table(columns=columns, rows=rows, align="lrrrrrr")


def list_pairs(table: ComparisonTable) -> Table:
    """Each recipe beside the next one: the difference in accuracy and log loss, and whether chance explains it."""
    rows, names = [], _shorten_names(table)
    for pair in table.pairs:
        found = pair.comparison
        points = [100 * share for share in (found.accuracy_difference, *found.accuracy_difference_interval)]
        nats = (found.log_loss_difference, *found.log_loss_difference_interval)
        alone = f"{found.challenger_right_only:,} : {found.champion_right_only:,}"
        cells = (_say_difference(points, 1), f"{found.mcnemar_p:.2g}", alone, _say_difference(nats, 3))
        rows.append((f"{names[pair.better]} over {names[pair.worse]}", *cells))
    columns = ("neighbours", "accuracy, points", "p", "right alone", "log loss")
    return Table(columns=columns, rows=rows, align="lrrrr")


def list_withheld(table: ComparisonTable) -> Table | None:
    """The recipes of which a run has no model, and why; None where all have."""
    rows = [
        (recipe.name, _STATES[recipe.state], shorten(recipe.reason, 400))
        for recipe in table.recipes
        if recipe.reason
    ]
    return Table(columns=("recipe", "state", "reason"), rows=rows, align="lll") if rows else None


def list_rows(table: ComparisonTable) -> list[dict[str, str]]:
    """Every recipe as one row, for the table of the Prefect UI."""
    tables = (list_results(table), list_costs(table)) if table.tested else ()
    rows = []
    for number, recipe in enumerate(table.recipes):
        row = {"recipe": recipe.name, "state": _STATES[recipe.state], "reason": recipe.reason}
        for part in tables if recipe.accuracy else ():
            cells = [getattr(cell, "text", cell) for cell in part.rows[number]]
            row |= dict(zip(part.columns[1:], cells[1:], strict=True))
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


def _neighbours(table: ComparisonTable) -> Section:
    text = (
        "Each recipe beside the next one, on the same images: the first one's figure less the second's, with the "
        "95 % interval of the paired difference. p is McNemar's exact test of the images that one alone got right."
    )
    more = " Of recipes with several runs, the first ones are compared." if table.seeds > 1 else ""
    return Section(name="neighbours", title="Neighbours", text=[text + more], tables=[list_pairs(table)])


def _costs(table: ComparisonTable) -> Section:
    text = [
        "Weights, and how many of them were trained, are those of the released model; so are the GFLOPs, thousand "
        "millions of operations for one image, a multiplication and an addition counting as two. Training and "
        "features took these times in the run that made them: 'earlier' marks what another run had made, 'over' "
        "and 'cached' what was found made and nobody timed. Images decoded are of this run only: those that were "
        "learned from and tested with, without the check of the dump before them."
    ]
    return Section(name="cost", title="Cost", text=text, tables=[list_costs(table)])


def _runs(table: ComparisonTable) -> Section:
    counts = ", ".join(f"{side} {table.images[side]:,}" for side in SIDES)
    runs = [run for recipe in table.recipes for run in recipe.runs]
    rows = [
        (
            run.name,
            f"{run.seed}",
            say_percent(run.metrics.accuracy) if run.metrics else _STATES[run.state],
            f"runs/{run.run}" if run.run else "–",
        )
        for run in runs
    ]
    listed = Table(
        columns=("recipe", "seed", "test accuracy", "in the store"),
        rows=rows,
        align="lrrl",
        folded=f"All {len(rows)} runs" if len(rows) > 12 else "",
    )
    text = (
        f"All of them on split {table.split} of {table.dump}: {counts}. Each run's folder has its own report."
    )
    return Section(name="runs", title="Runs", text=[text], tables=[listed])


def _shorten_names(table: ComparisonTable) -> dict[str, str]:
    """Each recipe's number in the first table, and its name without the settings of its own."""
    return {recipe.name: f"{number} {recipe.runs[0].recipe}" for number, recipe in enumerate(table.tested, 1)}


def _list_notices(table: ComparisonTable) -> list[str]:
    return [f"{recipe.name}: {shorten(recipe.reason, 300)}" for recipe in table.recipes if recipe.reason]


def _list_figures(table: ComparisonTable) -> list[tuple[str, str, str]]:
    figures = [("Recipes with a model", f"{len(table.tested)} of {len(table.recipes)}", "")]
    if table.tested:
        best = table.tested[0]
        remark = f"interval {say_interval(*best.accuracy_interval)}"
        figures.insert(0, ("Best accuracy", say_percent(best.accuracy.mean), remark))
        least = min(table.tested, key=lambda recipe: recipe.model.flops)
        figures.append(
            ("Least arithmetic", f"{least.model.flops / 1e9:.3g} GFLOPs", f"an image, {least.name}")
        )
    decoded = [recipe.images_decoded for recipe in table.recipes if recipe.images_decoded is not None]
    figures.append(("Images decoded", f"{sum(decoded):,}", "in this run, to learn from"))
    return figures


def _say_difference(figures: Sequence[float], decimals: int) -> str:
    """A difference and the two ends of its interval."""
    middle, low, high = (f"{figure:+.{decimals}f}" for figure in figures)
    return f"{middle} ({low} to {high})"


def _say_accuracy(recipe: RecipeResult) -> str:
    return f"{_say_share(recipe.accuracy)} ({say_interval(*recipe.accuracy_interval, unit='')})"


def _say_share(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    spread = "" if figure.deviation is None else f" ± {100 * figure.deviation:.1f}"
    return f"{say_percent(figure.mean)}{spread}"


def _say_figure(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    spread = "" if figure.deviation is None else f" ± {figure.deviation:.4f}"
    return f"{say_number(figure.mean)}{spread}"


def _say_count(count: int) -> str:
    return f"{count / 1e6:,.1f}\u00a0M" if count >= 1e6 else f"{count:,}"
