"""Commands that label images: with a trained model, or in the words of ImageNet."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import JsonOption, StoreOption
from commands.terminal import print_json, print_table, results
from thaw.errors import Mistake
from thaw.store import Store

ImagesArgument = Annotated[list[Path], typer.Argument(help="Image files, folders or zip archives.")]


def predict(
    model: Annotated[str, typer.Argument(help="A model.keras that `thaw train` saved; or champion, v3, …")],
    images: ImagesArgument,
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


def imagenet_top3(
    images: ImagesArgument,
    backbone: Annotated[str, typer.Option("--backbone", help="Any of keras.applications.")] = "resnet50",
    weights: Annotated[
        str, typer.Option("--weights", help="imagenet, random, or a file that holds the top as well.")
    ] = "imagenet",
    class_index: Annotated[
        Path | None,
        typer.Option(
            "--class-index", help="A copy of Keras's imagenet_class_index.json, instead of a download."
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=100, help="Names for each image.")] = 3,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Name what each image shows, by a published backbone with its own top."""
    from thaw.imagenet import name_images

    named = name_images(images, Store(store), backbone, weights, class_index, top).value
    if as_json:
        print_json(backbone=named.backbone, csv=named.csv, images=[vars(image) for image in named.images])
    else:
        rows = [(image.path, *map(_say_name, image.names), image.error or "") for image in named.images]
        print_table(["path", *map(str, range(1, top + 1)), "error"], [_pad(row, top + 2) for row in rows])
        results.print(f"written to {named.csv}", soft_wrap=True)


def _say_name(name: tuple[str, float]) -> str:
    return f"{name[0]} {name[1]:.3f}"


def _pad(row: tuple[str, ...], length: int) -> tuple[str, ...]:
    """A row whose image has no names, with room for them before its error."""
    return (row[0], *[""] * (length - len(row)), *row[1:])
