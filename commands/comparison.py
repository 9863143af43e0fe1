"""The command that compares recipes."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from commands.options import (
    DumpOption,
    JsonOption,
    LayoutOption,
    RunnerOption,
    SetOption,
    StoreOption,
    WeightsOption,
    gather_settings,
    read_runner,
)
from commands.terminal import notes, print_json, print_table, results
from commands.training import EXIT_GATE_CLOSED
from thaw.config import build_section
from thaw.store import Store

if TYPE_CHECKING:
    from thaw.comparison import ComparisonTable, RecipeResult, Spent
    from thaw.report.parts import Table

EXIT_NO_MODEL = 1
# Before a comma that a setting follows; a comma within a value stays.
_NEXT_SETTING = re.compile(r",(?=\s*[\w.]+=)")


def compare(
    dump: DumpOption,
    recipes: Annotated[
        list[str],
        typer.Option(
            "--recipe",
            help="What to compare; repeat it. NAME,KEY=VALUE,… changes settings of this one alone. "
            "The first one's split holds for all.",
        ),
    ],
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, max=100, help="Runs of each recipe, with different seeds.")
    ] = 1,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    changes: SetOption = None,
    runner: RunnerOption = "local",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train several recipes on one split, and print what each gives for its cost."""
    from commands.session import run_flow
    from thaw.comparison import CompareConfig, list_runs

    common = gather_settings(dump, "", weights, layout, changes)
    given = {"dump": common.pop("dump"), "seeds": seeds, "recipes": [_read_choice(text) for text in recipes]}
    common.pop("recipe")
    config = build_section(CompareConfig, {**given, "settings": common})
    # A wrong setting of the last recipe is told before the first one trains.
    list_runs(config)
    place = Store(store)
    table = run_flow("compare", config, place, runner=read_runner(runner)).data
    report = place.fetch("comparisons", table.address, "report.html")
    if as_json:
        print_json(**_flatten(table), report=str(report))
    else:
        _print(table)
        results.print(f"report  {report}", soft_wrap=True)
    if not table.tested:
        closed = all(recipe.state == "gate_closed" for recipe in table.recipes)
        raise typer.Exit(EXIT_GATE_CLOSED if closed else EXIT_NO_MODEL)


def _read_choice(text: str) -> dict[str, Any]:
    """A recipe's name and the settings of its own: `demo,head.dropout=0.3,head.dense_units=[256,64]`."""
    name, *changes = _NEXT_SETTING.split(text)
    nothing = gather_settings(Path(), "", None, None, None)
    settings = gather_settings(Path(), "", None, None, changes)
    own = {key: value for key, value in settings.items() if value != nothing.get(key)}
    return {"recipe": name.strip(), "settings": own}


def _print(table: "ComparisonTable") -> None:
    from thaw.report.comparison import list_costs, list_pairs, list_results, list_withheld, say_best

    if table.tested:
        split = f"{table.images['test']:,} test images of split {table.split}"
        _print_table(list_results(table), split)
        _print_table(list_costs(table), "of the released models; times are those of the run that made it")
    if table.pairs:
        _print_table(
            list_pairs(table), "each recipe beside the next one, image by image; intervals are at 95 %"
        )
    if without := list_withheld(table):
        _print_table(without, None)
        notes.print(
            f"[yellow]{len(without.rows)} of {len(table.recipes)} recipes have runs without a model[/yellow]"
        )
    results.print(say_best(table), markup=False, soft_wrap=True)


def _print_table(table: "Table", title: str | None) -> None:
    rows = [tuple(getattr(cell, "text", cell) for cell in row) for row in table.rows]
    print_table(list(table.columns), rows, title=title)


def _flatten(table: "ComparisonTable") -> dict[str, Any]:
    """A comparison as the keys and values that `compare --json` prints."""
    return {
        "dump": table.dump,
        "split": table.split,
        "test_images": table.images["test"],
        "recipes": [_flatten_recipe(recipe) for recipe in table.recipes],
        "neighbours": [asdict(pair) for pair in table.pairs],
    }


def _flatten_recipe(recipe: "RecipeResult") -> dict[str, Any]:
    figures = {
        "test_accuracy": recipe.accuracy,
        "test_log_loss": recipe.log_loss,
        "test_auc": recipe.auc,
        "val_accuracy": recipe.val_accuracy,
    }
    flat: dict[str, Any] = {"recipe": recipe.name, "state": recipe.state, "reason": recipe.reason}
    for name, figure in figures.items():
        flat |= {name: figure and figure.mean, f"{name}_deviation": figure and figure.deviation}
    return {
        **flat,
        "test_accuracy_interval": recipe.accuracy_interval,
        "parameters": recipe.model and recipe.model.parameters,
        "trained_parameters": recipe.model and recipe.model.trained_parameters,
        "flops": recipe.model and recipe.model.flops,
        **_flatten_spent("training", recipe.training),
        **_flatten_spent("extraction", recipe.extraction),
        "images_decoded_here": recipe.images_decoded,
        "runs": [
            {
                "seed": run.seed,
                "state": run.state,
                "run": run.run,
                "split": run.split,
                "test_accuracy": run.metrics and run.metrics.accuracy,
            }
            for run in recipe.runs
        ],
    }


def _flatten_spent(what: str, spent: "Spent | None") -> dict[str, float | None]:
    """Seconds in the runs that made it, None where they are not known, and those of them in this run."""
    return {f"{what}_seconds": spent and spent.seconds, f"{what}_seconds_here": spent and spent.here}
