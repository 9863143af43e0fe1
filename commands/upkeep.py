"""Commands about the store itself: whether what it holds is whole, and what of it nothing needs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from commands.options import JsonOption, StoreOption
from commands.terminal import print_json, print_table, results
from thaw.store import Store

if TYPE_CHECKING:
    from thaw.prune import Waste

_FOUND_DAMAGED = 1


def verify(
    set_aside: Annotated[
        bool,
        typer.Option("--set-aside", help="Move what is damaged out of the way, so that it is made again."),
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read all that the store holds and compare it with its checksums. Exits with 1 where something is damaged."""
    from thaw.verify import verify_store

    found = verify_store(Store(store), set_aside)
    if as_json:
        damaged = [{**asdict(one), "remedy": one.remedy} for one in found.damaged]
        print_json(**{**asdict(found), "damaged": damaged})
    else:
        rows = [
            (one.kind, f"{one.things:,}", _say_bytes(one.bytes), one.damaged or "", one.unchecked or "")
            for one in found.kinds
        ]
        columns = ["kind", "published", "read", "damaged", "files without a checksum"]
        print_table(columns, rows)
        if found.damaged:
            aside = "set aside; " if set_aside else ""
            print_table(
                ["damaged", "what is wrong", "what becomes of it"],
                [
                    (one.place, one.reason, f"{aside}{one.again}" if set_aside else one.remedy)
                    for one in found.damaged
                ],
            )
        if any(one.unchecked for one in found.kinds):
            results.print(
                "files without a checksum were not checked: older versions wrote none, and exports and tables of "
                "answers have none",
                soft_wrap=True,
            )
        results.print(
            f"{_count(len(found.damaged), 'thing')} damaged in {escape(found.store)}", soft_wrap=True
        )
    if found.damaged:
        raise typer.Exit(_FOUND_DAMAGED)


def prune(
    days: Annotated[float, typer.Option("--days", help="Touch nothing that is younger; 1 at least.")] = 30.0,
    yes: Annotated[bool, typer.Option("--yes", help="Delete it, instead of telling what would go.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what nothing in the store refers to, and delete it with --yes. What is in doubt stays."""
    from thaw.prune import prune_store

    found = prune_store(Store(store), days, delete=yes)
    if as_json:
        print_json(**asdict(found))
        return
    if found.waste:
        rows = [
            (kind, f"{len(of_kind):,}", _say_bytes(sum(one.bytes for one in of_kind)), reason)
            for (kind, reason), of_kind in _group(found.waste).items()
        ]
        print_table(["kind", "deleted" if yes else "would go", "size", "because"], rows)
    if found.kept:
        results.print(
            f"{_count(len(found.kept), 'thing')}, {_say_bytes(sum(one.bytes for one in found.kept))}, may go once "
            f"no run is at work on the store. Held now: {escape(', '.join(found.busy))}",
            soft_wrap=True,
        )
    size = _say_bytes(sum(one.bytes for one in found.waste))
    what = f"{_count(len(found.waste), 'thing')}, {size}, of {escape(found.store)}"
    if yes:
        results.print(f"{what} deleted", soft_wrap=True)
    else:
        results.print(f"{what} would go; nothing was changed. --yes deletes it", soft_wrap=True)


def _group(waste: Sequence["Waste"]) -> dict[tuple[str, str], list["Waste"]]:
    groups: dict[tuple[str, str], list[Waste]] = {}
    for one in waste:
        groups.setdefault((one.kind, one.reason), []).append(one)
    return groups


def _count(count: int, noun: str) -> str:
    return f"{count or 'no'} {noun}{'' if count == 1 else 's'}"


def _say_bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
