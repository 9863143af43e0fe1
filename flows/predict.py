"""Label images with the champion, or with any other model."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.method import StorePath, open_store
from tasks import prediction
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.errors import ThawError

Images = Annotated[
    list[Path],
    Field(min_length=1, description="Image files, folders and zip archives, where the worker runs."),
]
Model = Annotated[str, Field(description="champion, a version such as v3, or the path of a model.keras.")]
CsvPath = Annotated[
    Path | None,
    Field(description="File to write, relative to predictions/ in the store; a new one when empty."),
]


@flow(name="predict", flow_run_name="predict with {model}")
def predict(images: Images, model: Model = "champion", csv: CsvPath = None, store: StorePath = None) -> State:
    """Write class and probabilities of every image to a CSV file; those that can't be read have their reason."""
    try:
        with run_stages():
            labelled = prediction.label_images(images, model, csv, open_store(store))
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    label_run(f"{labelled.images:,} images", tags=(labelled.model,))
    unread = f", {labelled.unreadable:,} could not be read" if labelled.unreadable else ""
    return Completed(message=f"{labelled.images:,} images in {labelled.csv}{unread}", data=labelled)
