"""The command that brings a model to other runtimes."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from commands.options import JsonOption, StoreOption
from commands.terminal import print_json, print_table, results
from thaw.location import parse_source
from thaw.store import Store

if TYPE_CHECKING:
    from thaw.parity import Difference

FormatOption = Annotated[
    Literal["savedmodel", "onnx", "tflite", "keras"], typer.Option("--format", help="What to write.")
]
QuantiseOption = Annotated[
    Literal["none", "float16", "int8"], typer.Option("--quantise", help="Smaller weights, for tflite alone.")
]


def export(
    format: FormatOption,
    model: Annotated[str, typer.Argument(help="champion, v3, or the path of a model.keras.")] = "champion",
    to: Annotated[
        Path | None,
        typer.Option("--to", help="File or folder to write; in exports/ of the store when not given."),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="PATH",
            help="Image, folder or zip archive, by path or URL, to prove the export with, instead of the model's test "
            "images. Repeatable.",
        ),
    ] = None,
    most_images: Annotated[
        int, typer.Option("--most-images", min=1, help="How many images to prove it with at most.")
    ] = 200,
    quantise: QuantiseOption = "none",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a model for another runtime, once it is proved to give the same probabilities there."""
    from thaw.export import export_model

    sources = [parse_source(image) for image in images or ()]
    made = export_model(model, format, Store(store), to, sources, quantise, most_images).value
    if as_json:
        print_json(**asdict(made))
        return
    rows = [("pixels", *_say_difference(made.pixels))]
    rows += [("JPEG files", *_say_difference(made.jpeg))] if made.jpeg else []
    columns = ["from", "images", "largest difference", "mean", "limit", "same class", "accuracy"]
    print_table(columns, rows, title=f"probabilities of {made.model} as {made.format}, beside Keras's")
    results.print(f"written to {made.path}, {made.bytes / 1e6:.1f} MB", soft_wrap=True)


def _say_difference(made: "Difference") -> tuple[str, ...]:
    accuracy = "" if made.accuracy is None else f"{made.accuracy:.4f}, Keras {made.model_accuracy:.4f}"
    limit = f"{made.limit.of} {made.limit.value:g}"
    figures = (f"{made.images:,}", f"{made.largest:.2g}", f"{made.mean:.2g}", limit, f"{made.same_class:,}")
    return (*figures, accuracy)
