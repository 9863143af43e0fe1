"""The command line, as `thaw`, as `python -m commands` and as `python -m flows`.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 a user's
mistake, 3 the gate stayed closed, 1 anything else.
"""

import os
import sys

import typer
from rich.markup import escape

from commands import (
    about,
    comparison,
    crossvalidation,
    data,
    exporting,
    labelling,
    models,
    server,
    training,
    upkeep,
)
from commands.terminal import notes
from thaw.errors import Mistake, ThawError

EXIT_MISTAKE, EXIT_FAULT = 2, 1
_TYPERS_INTERRUPT = 130
# These read no store, or make the server that the credentials would come from.
_WITHOUT_STORE = ("up", "down", "status", "recipes")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a labelled image dump to a tested, fine-tuned classifier.",
)
for command in (
    *(training.train, training.retrain, training.demo),
    *(data.split, data.features),
    crossvalidation.crossvalidate,
    comparison.compare,
    *(models.models, models.promote, models.rollback),
    *(labelling.predict, labelling.imagenet_top3),
    exporting.export,
    *(upkeep.verify, upkeep.prune),
    *(server.up, server.down, server.status),
    *(about.doctor, about.recipes),
):
    app.command()(command)


@app.callback()
def _open_credentials(context: typer.Context) -> None:
    if os.environ.get("THAW_STORAGE_BLOCK") and context.invoked_subcommand not in _WITHOUT_STORE:
        from commands.session import use_block

        use_block()


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except SystemExit as ending:
        if ending.code != _TYPERS_INTERRUPT:
            raise
        notes.print("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(EXIT_FAULT)
    except OSError as error:
        notes.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(EXIT_FAULT)
    except ThawError as error:
        notes.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(EXIT_MISTAKE if isinstance(error, Mistake) else EXIT_FAULT)


if __name__ == "__main__":
    main()
