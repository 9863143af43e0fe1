"""Bring the champion, or any other model, to another runtime."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.method import StorePath, open_store
from flows.predict import Model
from tasks.export import export_model
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.errors import ThawError
from thaw.formats import Format, Quantised

Target = Annotated[
    Path | None,
    Field(description="File, or folder of a SavedModel, to write, relative to exports/ in the store."),
]
Proof = Annotated[
    list[Path] | None,
    Field(
        description="Images, folders and zip archives to prove it with; the model's test images when empty."
    ),
]


@flow(name="export", flow_run_name="export {model} as {format}")
def export(
    format: Annotated[Format, Field(description="What to write.")] = "savedmodel",
    model: Model = "champion",
    to: Target = None,
    images: Proof = None,
    quantise: Annotated[Quantised, Field(description="Smaller weights, for tflite alone.")] = "none",
    store: StorePath = None,
) -> State:
    """Write a model for another runtime, once it is proved to give the same probabilities there."""
    try:
        place = open_store(store)
        with run_stages():
            target = place.folder("exports", str(to)) if to else None
            made = export_model(model, format, place, target, images or (), quantise)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    label_run(f"within {made.pixels.largest:.1g}", tags=(made.model,))
    difference = f"probabilities differ from Keras's by up to {made.pixels.largest:.2g}"
    return Completed(message=f"{made.path}: {difference} on {made.pixels.images:,} images", data=made)
