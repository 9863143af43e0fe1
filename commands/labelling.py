"""Commands that label images: with a trained model, or in the words of ImageNet."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from commands.options import JsonOption, StoreOption
from commands.terminal import notes, print_json, print_table, results
from thaw.answers import LabelledImage
from thaw.drift import FALSE_ALARM_RATE
from thaw.errors import Mistake
from thaw.location import parse_source
from thaw.store import Store

ImagesArgument = Annotated[
    list[str],
    typer.Argument(metavar="IMAGES...", help="Image files, folders or zip archives: paths or URLs."),
]


def predict(
    model: Annotated[str, typer.Argument(help="A model.keras that `thaw train` saved; or champion, v3, …")],
    images: ImagesArgument,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Write here, .csv or .parquet [a new file in the store's predictions/]."),
    ] = None,
    false_alarm_rate: Annotated[
        float,
        typer.Option(
            "--false-alarm-rate",
            help="How often images like the training images may be said to have drifted.",
        ),
    ] = FALSE_ALARM_RATE,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write and print class and probability of each image, and say whether they drifted."""
    from thaw.answers import read_answers
    from thaw.batch import label_images
    from thaw.report.drift import list_moves, say_drift

    if file and not file.absolute().parent.is_dir():
        raise Mistake(f"there is no folder {file.absolute().parent} to write {file.name} to. Make it first.")
    # Relative to where the command is typed, and not to the store.
    place = file.absolute() if file else None
    sources = [parse_source(image) for image in images]
    labelled = label_images(sources, model, place, Store(store), false_alarm_rate).value
    if as_json:
        rows = [vars(row) for row in read_answers(Path(labelled.file))]
        print_json(
            classes=tuple(labelled.counts),
            images=rows,
            file=labelled.file,
            drift=asdict(labelled.drift),
            drift_file=labelled.drift_file,
        )
    else:
        if not file:
            rows = [_list_cells(row) for row in read_answers(Path(labelled.file))]
            print_table(["path", "class", "probability", "error"], rows)
        results.print(f"{labelled.images} images written to {labelled.file}", soft_wrap=True)
    if labelled.drift.state == "alarm":
        notes.print(f"[bold]Warning:[/bold] {escape(say_drift(labelled.drift))}.", soft_wrap=True)
        for move in list_moves(labelled.drift):
            notes.print(f"  {escape(move)}", soft_wrap=True)
    else:
        notes.print(escape(f"{say_drift(labelled.drift)}."), soft_wrap=True)


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

    sources = [parse_source(image) for image in images]
    named = name_images(sources, Store(store), backbone, weights, class_index, top).value
    if as_json:
        print_json(backbone=named.backbone, csv=named.csv, images=[vars(image) for image in named.images])
    else:
        rows = [(image.path, *map(_say_name, image.names), image.error or "") for image in named.images]
        print_table(["path", *map(str, range(1, top + 1)), "error"], [_pad(row, top + 2) for row in rows])
        results.print(f"written to {named.csv}", soft_wrap=True)


def _list_cells(row: LabelledImage) -> tuple[str, ...]:
    """An answer as the cells of a table."""
    probability = f"{max(row.probabilities):.4f}" if row.probabilities else ""
    return (row.path, row.label or "", probability, row.error or "")


def _say_name(name: tuple[str, float]) -> str:
    return f"{name[0]} {name[1]:.3f}"


def _pad(row: tuple[str, ...], length: int) -> tuple[str, ...]:
    """A row whose image has no names, with room for them before its error."""
    return (row[0], *[""] * (length - len(row)), *row[1:])
