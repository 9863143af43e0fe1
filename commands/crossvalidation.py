"""The command that cross-validates a recipe's head."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from commands.options import (
    DEFAULT_RECIPE,
    DumpOption,
    JsonOption,
    LayoutOption,
    RecipeOption,
    RunnerOption,
    SetOption,
    StoreOption,
    WeightsOption,
    gather_settings,
    read_runner,
)
from commands.terminal import print_json, print_table, results
from thaw.config import build_config, build_section
from thaw.store import Store

if TYPE_CHECKING:
    from thaw.folds import CrossValidation
    from thaw.suspects import SuspectLabels

_WORST = 10


def crossvalidate(
    dump: DumpOption,
    recipe: RecipeOption = DEFAULT_RECIPE,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    changes: SetOption = None,
    folds: Annotated[int, typer.Option("--folds", help="Parts, each held out once.")] = 5,
    repeats: Annotated[int, typer.Option("--repeats", help="Times that folds are drawn anew.")] = 1,
    runner: RunnerOption = "local",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say how well a recipe's head does on images it did not train on, and which labels look wrong to it."""
    from commands.session import run_flow
    from thaw.folds import FoldsConfig
    from thaw.suspects import read_suspects

    config = build_config(gather_settings(dump, recipe, weights, layout, changes))
    settings = build_section(FoldsConfig, {"folds": folds, "repeats": repeats})
    place = Store(store)
    made: CrossValidation = run_flow(
        "crossvalidate", config, place, folds=settings, runner=read_runner(runner)
    ).data
    (_print_json if as_json else _print_tables)(made, read_suspects(made, place), place)


def _print_tables(made: "CrossValidation", ranked: "SuspectLabels", store: Store) -> None:
    from thaw.report.folds import FOLD_COLUMNS, list_folds, list_remarks, say_accuracy
    from thaw.report.suspects import say_suspects, tabulate_suspects
    from thaw.report.wording import say_duration

    title = f"{made.recipe}, cross-validation {made.address}"
    print_table([*FOLD_COLUMNS], list_folds(made), title=title)
    for line in (say_accuracy(made), *list_remarks(made)):
        results.print(line, soft_wrap=True)
    if ranked.suspects:
        worst = tabulate_suspects(ranked, _WORST)
        print_table([*worst.columns], worst.rows, title=say_suspects(ranked))
    else:
        results.print(say_suspects(ranked), soft_wrap=True)
    cached = sum(stage.cached for stage in made.stages)
    seconds = sum(stage.seconds for stage in made.stages)
    results.print(f"time     {say_duration(seconds)}, {cached} of {len(made.stages)} stages cached")
    for name, file in _list_files(made, ranked, store).items():
        results.print(f"{name:8} {file}", soft_wrap=True)


def _print_json(made: "CrossValidation", ranked: "SuspectLabels", store: Store) -> None:
    from thaw.report.folds import list_remarks

    values = asdict(made)
    for fold, row in zip(made.folds, values["folds"], strict=True):
        del row["history"]
        row |= {"epochs": len(fold.history.epochs), "best_epoch": fold.history.best_epoch}
    # One line for each image and one for each epoch are in the files.
    del values["predictions"]
    stages = values.pop("stages")
    print_json(
        **values,
        remarks=list_remarks(made),
        suspects=len(ranked.suspects),
        worst_labels=[asdict(image) for image in ranked.suspects[:_WORST]],
        cached=[stage["stage"] for stage in stages if stage["cached"]],
        seconds={stage["stage"]: stage["seconds"] for stage in stages},
        files=_list_files(made, ranked, store),
    )


def _list_files(made: "CrossValidation", ranked: "SuspectLabels", store: Store) -> dict[str, str]:
    from thaw import suspects
    from thaw.folds import PICTURE, RECORD, TABLE

    folder = store.fetch("crossvalidations", made.address)
    files = {"record": folder / RECORD, "table": folder / TABLE, "curves": folder / PICTURE}
    folder = store.fetch("suspects", ranked.address)
    files |= {"suspects": folder / suspects.TABLE, "worst": folder / suspects.PICTURE}
    return {name: str(file) for name, file in files.items() if file.is_file()}
