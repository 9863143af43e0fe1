"""Label images with the champion, or with any other model, and watch for drift."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.method import HERE, StorePath, Where, open_store
from tasks import prediction
from tasks.pools import cancel_children
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.drift import FALSE_ALARM_RATE
from thaw.errors import ThawError
from thaw.location import Source
from thaw.report.drift import say_drift

Images = Annotated[
    list[Source],
    Field(
        min_length=1,
        description="Image files, folders and zip archives: paths where the worker runs, or URLs.",
    ),
]
Model = Annotated[str, Field(description="champion, a version such as v3, or the path of a model.keras.")]
AnswersFile = Annotated[
    Path | None,
    Field(
        description="File to write, .csv or .parquet, relative to predictions/ in the store; a new one when empty."
    ),
]
FalseAlarmRate = Annotated[
    float,
    Field(gt=0, lt=1, description="How often images like the training images may be said to have drifted."),
]


@flow(name="predict", flow_run_name="predict with {model}", on_cancellation=[cancel_children])
def predict(
    images: Images,
    model: Model = "champion",
    file: AnswersFile = None,
    store: StorePath = None,
    false_alarm_rate: FalseAlarmRate = FALSE_ALARM_RATE,
    runner: Where = HERE,
) -> State:
    """Write class and probabilities of every image to a file, and say whether they drifted from the training images."""
    try:
        with run_stages(runner):
            labelled = prediction.label_images(images, model, file, open_store(store), false_alarm_rate)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    drifted = labelled.drift.state == "alarm"
    name = f"{labelled.images:,} images{', drift' if drifted else ''}"
    label_run(name, tags=(labelled.model, *(["drift"] if drifted else [])))
    unread = f", {labelled.unreadable:,} could not be read" if labelled.unreadable else ""
    message = f"{labelled.images:,} images in {labelled.file}{unread}; {say_drift(labelled.drift)}"
    return Completed(message=message, data=labelled)
