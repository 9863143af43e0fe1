"""Commands for a Prefect server and its workers on this machine."""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from commands.options import DEFAULT_RECIPE, JsonOption, StoreOption, WeightsOption
from commands.terminal import notes, print_json, print_table, results
from commands.training import DEMO_RECIPE, draw_demo_dump
from thaw.location import parse_location
from thaw.store import Store

if TYPE_CHECKING:
    from deployments.apply import Changes
    from deployments.setup import Setup
    from deployments.status import Status

EXIT_NOT_WELL = 1


def up(
    dump: Annotated[
        str | None,
        typer.Option(
            "--dump",
            metavar="PATH",
            help="Images that the deployments train on, by path or URL; drawn ones if none.",
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Settings to start from; see `thaw recipes`.")
    ] = None,
    weights: WeightsOption = None,
    store: StoreOption = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Of the server and its UI [4200].")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address that the server listens at [127.0.0.1].")
    ] = None,
) -> None:
    """Start a Prefect server with workers here, deploy everything, and wait until it runs.

    What is not given is as it was the last time. With all of it up, only what changed is done.
    """
    from deployments.local import bring_up
    from deployments.setup import find_home, locate_weights, read_setup

    home = find_home()
    options = {
        "dump": dump and str(parse_location(dump)),
        "recipe": recipe,
        "weights": weights and locate_weights(weights),
        "store": store,
        "port": port,
        "host": host,
    }
    given = replace(read_setup(home), **{name: value for name, value in options.items() if value is not None})
    place = Store(given.store)
    given = replace(given, store=place.address)
    with notes.status("looking at what is up …") as spinner:

        def tell(line: str) -> None:
            notes.print(escape(line), soft_wrap=True)
            spinner.update(escape(line))

        effective = _fill_in(given, place)
        changes = bring_up(given, effective, home, tell)
    _print_changes(changes)
    _print_next_steps(effective, home)


def down() -> None:
    """Stop all that `thaw up` started. What the server knows, and the store, stay for the next time."""
    from deployments.local import bring_down
    from deployments.setup import find_home

    with notes.status("stopping …"):
        was_up = bring_down(find_home(), tell=notes.print)
    notes.print("all is down; what runs had published is kept" if was_up else "nothing is up")


def status(as_json: JsonOption = False) -> None:
    """Say what is up, what waits and what is wrong; exit code 0 when all is well, 1 otherwise."""
    from deployments.setup import find_home
    from deployments.status import read_status

    seen = read_status(find_home())
    if as_json:
        print_json(**asdict(seen))
    else:
        _print_status(seen)
    if seen.problems:
        raise typer.Exit(EXIT_NOT_WELL)


def _fill_in(given: "Setup", place: Store) -> "Setup":
    """The setup with what stands for the dump and the recipe where none was given."""
    if given.dump is not None:
        return replace(given, recipe=given.recipe or DEFAULT_RECIPE)
    effective = replace(given, dump=str(draw_demo_dump(place)), recipe=given.recipe or DEMO_RECIPE)
    notes.print(f"no --dump: the deployments train on drawn images, with the recipe {effective.recipe}")
    return effective


def _print_changes(changes: "Changes") -> None:
    rows = [(what, "\n".join(names)) for what, names in asdict(changes).items() if names]
    if rows:
        print_table(["", "on the server"], rows)
    else:
        results.print("nothing on the server had to change")


def _print_next_steps(setup: "Setup", home: Path) -> None:
    from deployments.local import is_ours, pointer
    from deployments.supervise import list_gpus

    if not list_gpus():
        notes.print("no GPU here: the GPU pool's worker runs on the processor")
    export, elsewhere = f"export PREFECT_API_URL={setup.server.url}", os.environ.get("PREFECT_API_URL")
    lines = [f"UI       {setup.url}", f"API      {export}"]
    if setup.server.password:
        lines.append("         export PREFECT_API_AUTH_STRING=…, the user:password that you set")
    if is_ours(pointer(home)):
        lines.append(f"         not needed in {pointer(home).parent}")
    lines += [
        "next     prefect deployment run train/gpu --watch",
        "         thaw status",
        "         thaw down",
    ]
    for line in lines:
        results.print(line, soft_wrap=True)
    if elsewhere and elsewhere.rstrip("/") != setup.server.url:
        notes.print(
            f"PREFECT_API_URL is {elsewhere} here: `prefect` typed in this shell goes there", soft_wrap=True
        )


def _print_status(seen: "Status") -> None:
    results.print(f"server   {seen.url}", soft_wrap=True)
    if seen.children:
        rows = [
            (child.name, child.process or "dead", child.since or "", child.restarts)
            for child in seen.children
        ]
        print_table(["process", "id", "since", "restarts"], rows)
    if seen.pools:
        _print_server(seen)
    for problem in seen.problems:
        notes.print(f"[red]problem:[/red] {escape(problem)}", soft_wrap=True)


def _print_server(seen: "Status") -> None:
    pools = [
        (
            f"{pool.name}{' (paused)' if pool.paused else ''}",
            ", ".join(pool.queues),
            ", ".join(pool.workers) or "none",
            pool.waiting,
            pool.running,
        )
        for pool in seen.pools
    ]
    print_table(["pool", "queues", "live workers", "waiting", "running"], pools)
    deployments = [
        (
            deployment.name,
            f"{deployment.pool}, {deployment.queue}",
            "\n".join(
                f"{schedule.slug}: {f'next {schedule.next_run}' if schedule.active else 'off'}"
                for schedule in deployment.schedules
            ),
        )
        for deployment in seen.deployments
    ]
    print_table(["deployment", "pool, queue", "schedules"], deployments)
    print_table(["automation", ""], [(name, "on" if on else "off") for name, on in seen.automations.items()])
    counts = [f"{count} {state}" for state, count in seen.runs.items() if count]
    results.print(f"runs     {', '.join(counts) or 'none'}")
