"""Commands that train: on a dump, or on drawn images to show the way."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

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
    put_setting,
    read_runner,
)
from commands.terminal import flatten_outcome, notes, print_json, print_outcome, results
from thaw.config import PromotionConfig, TrainConfig, build_config, build_section
from thaw.promotion import Decision
from thaw.runner import Runner
from thaw.store import Store

EXIT_GATE_CLOSED = 3
DEMO_RECIPE = "demo"
_RULE = PromotionConfig()
_HERE = Runner()


def train(
    dump: DumpOption,
    recipe: RecipeOption = DEFAULT_RECIPE,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    changes: SetOption = None,
    override_gate: Annotated[
        bool, typer.Option("--override-gate", help="Fine-tune even from an unconverged head, and say so.")
    ] = False,
    runner: RunnerOption = "local",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, test and save a model, as a Prefect flow."""
    settings = gather_settings(dump, recipe, weights, layout, changes)
    if override_gate:
        put_setting(settings, "gate.override_gate", True)
    _train(build_config(settings), Store(store), as_json, read_runner(runner))


def demo(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Run the whole method offline on drawn cats and dogs, with a small backbone."""
    place = Store(store)
    _train(build_config({"dump": {"path": draw_demo_dump(place)}, "recipe": DEMO_RECIPE}), place, as_json)


def draw_demo_dump(place: Store) -> Path:
    """The demo's dump in the store, drawn where it is not there yet."""
    from thaw.drawings import draw_dump

    place.check_writable()
    dump = place.folder("drawn-cats-and-dogs.zip")
    if not dump.exists():
        notes.print("drawing 400 cats and dogs …")
        draw_dump(dump)
    return dump


def retrain(
    dump: DumpOption,
    recipe: RecipeOption = DEFAULT_RECIPE,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    changes: SetOption = None,
    margin: Annotated[
        float, typer.Option("--margin", help="How much lower the new model's test accuracy may be.")
    ] = _RULE.margin,
    better_by: Annotated[
        str, typer.Option("--better-by", help="log_loss, accuracy, or nothing: not being worse is enough.")
    ] = _RULE.better_by,
    ask: Annotated[
        bool, typer.Option("--ask", help="Leave it to `thaw promote` to make the new model champion.")
    ] = False,
    runner: RunnerOption = "local",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on what is new in the dump since the champion, and promote the new model where it is better."""
    from commands.session import run_flow

    config = build_config(gather_settings(dump, recipe, weights, layout, changes))
    rule = {"margin": margin, "better_by": better_by, "approval": "ask" if ask else "automatic"}
    given = {"promotion": build_section(PromotionConfig, rule), "runner": read_runner(runner)}
    ended = run_flow("retrain", config, Store(store), **given)
    if as_json:
        decision = asdict(ended.data) if isinstance(ended.data, Decision) else None
        print_json(state=ended.state, reason=ended.message, decision=decision)
    else:
        results.print(f"[bold]{ended.state}[/bold]: {escape(ended.message)}", soft_wrap=True)
        if ended.state == "Held":
            results.print(f"to make it champion: thaw promote v{ended.data.challenger}")
    if ended.state == "GateClosed":
        raise typer.Exit(EXIT_GATE_CLOSED)


def _train(config: TrainConfig, store: Store, as_json: bool, runner: Runner = _HERE) -> None:
    from commands.session import run_flow

    outcome = run_flow("train", config, store, runner=runner).data
    report = store.fetch("runs", outcome.run, "report.html")
    model = None if outcome.withheld else store.fetch("runs", outcome.run, "model.keras")
    if as_json:
        print_json(**flatten_outcome(outcome), report=str(report), model=model and str(model))
    else:
        print_outcome(outcome)
        results.print(f"report  {report}", soft_wrap=True)
        if model:
            results.print(f"model   {model}", soft_wrap=True)
    if outcome.withheld:
        notes.print(
            f"[yellow]the gate stayed closed:[/yellow] {outcome.verdict.reason}. No model was released."
        )
        raise typer.Exit(EXIT_GATE_CLOSED)
