"""Commands about trained models."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from commands.options import JsonOption, StoreOption
from commands.terminal import notes, print_json, print_table, results
from thaw.errors import Mistake
from thaw.store import Store

if TYPE_CHECKING:
    from thaw.registry import Registry

_STANDING = {"promoted": "promoted", "kept": "not promoted", "held": "waits for promotion"}


def predict(
    model: Annotated[str, typer.Argument(help="A model.keras that `thaw train` saved; or champion, v3, …")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or zip archives.")],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a CSV file here.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print class and probability of each image."""
    from thaw.model import load_model
    from thaw.predict import find_model, predict_images, write_csv

    if csv and not csv.absolute().parent.is_dir():
        raise Mistake(f"there is no folder {csv.absolute().parent} to write {csv.name} to. Make it first.")
    network, facts = load_model(find_model(model, Store(store)))
    rows = list(predict_images(network, facts, images))
    if csv:
        write_csv(csv, facts.classes, rows)
    if as_json:
        print_json(classes=facts.classes, images=[vars(row) for row in rows], csv=str(csv) if csv else None)
    elif csv:
        results.print(f"{len(rows)} images written to {csv}", soft_wrap=True)
    else:
        shown = [
            (
                row.path,
                row.label or "",
                f"{max(row.probabilities):.4f}" if row.probabilities else "",
                row.error or "",
            )
            for row in rows
        ]
        print_table(["path", "class", "probability", "error"], shown)
    if rows and all(row.error for row in rows):
        raise Mistake("none of the images could be read.")
    if not rows:
        raise Mistake(f"no images found in {', '.join(map(str, images))}.")


def models(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the trained models, which of them is champion, and what was decided about each."""
    from thaw.registry import read_registry

    registry = read_registry(Store(store))
    champion = registry.champion.number if registry.champion else None
    if as_json:
        print_json(champion=champion, **asdict(registry))
        return
    standing = {decision.challenger: _STANDING[decision.outcome] for decision in registry.decisions}
    standing |= {move.champion: "former champion" for move in registry.moves} | {champion: "champion"}
    rows = [
        (
            f"v{version.number}",
            standing.get(version.number, ""),
            version.recipe,
            f"{version.accuracy:.4f} of {version.test_images:,}",
            f"{version.log_loss:.4f}",
            version.registered_at[:10],
            version.run,
        )
        for version in registry.versions
    ]
    print_table(["model", "", "recipe", "test accuracy", "log loss", "trained", "run"], rows)


def promote(
    model: Annotated[str, typer.Argument(help="v3, or the first digits of a run.")],
    reason: Annotated[str, typer.Option("--reason", help="Kept with the move.")] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a model champion."""
    from thaw import registry

    place = Store(store)
    before = registry.read_registry(place)
    after = registry.promote(place, before.find(model).number, reason or "by hand")
    _crown(after, as_json, moved=after.moves != before.moves)


def rollback(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Make the champion before the present one champion again; once more goes one further back."""
    from thaw.registry import roll_back

    _crown(roll_back(Store(store)), as_json, moved=True)


def _crown(registry: "Registry", as_json: bool, moved: bool) -> None:
    """Tell the champion; a new one to the Prefect server as well, where one is set."""
    from commands.session import tell_server

    champion, move = registry.champion, registry.moves[-1]
    before = f", after v{move.before}" if move.before else ""
    if as_json:
        print_json(champion=asdict(champion), before=move.before if moved else champion.number)
    elif moved:
        results.print(f"v{champion.number} is champion{before}: {escape(move.reason)}", soft_wrap=True)
    else:
        results.print(f"v{champion.number} is champion already")
    if moved:
        try:
            tell_server(champion, move.reason)
        except Mistake as error:
            notes.print(f"no event was emitted: {escape(str(error))}", soft_wrap=True)
