"""Commands about trained models."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, StoreOption
from commands.terminal import print_json, print_table, results
from thaw.errors import Mistake


def predict(
    model: Annotated[Path, typer.Argument(help="A model.keras that `thaw train` saved.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or zip archives.")],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a CSV file here.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print class and probability of each image."""
    from thaw.model import load_model
    from thaw.predict import predict_images, write_csv

    if csv and not csv.absolute().parent.is_dir():
        raise Mistake(f"there is no folder {csv.absolute().parent} to write {csv.name} to. Make it first.")
    network, facts = load_model(model)
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
