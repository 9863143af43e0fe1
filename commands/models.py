"""Commands about trained models: which there are, and which of them is champion."""

from dataclasses import asdict
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
