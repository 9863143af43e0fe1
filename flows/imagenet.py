"""What images show, in the words of ImageNet's thousand classes."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows.method import StorePath, open_store
from flows.predict import Images
from tasks import prediction
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.errors import ThawError

BackboneOption = Annotated[str, Field(description="Any of keras.applications.")]
Weights = Annotated[
    str, Field(description="imagenet (downloaded once), random, or a file that holds the top too.")
]
ClassIndex = Annotated[
    Path | None, Field(description="A copy of Keras's imagenet_class_index.json; downloaded once when empty.")
]
Top = Annotated[int, Field(ge=1, le=100, description="How many names each image is given.")]


@flow(name="imagenet-top3", flow_run_name="name images with {backbone}")
def name_images(
    images: Images,
    backbone: BackboneOption = "resnet50",
    weights: Weights = "imagenet",
    class_index: ClassIndex = None,
    top: Top = 3,
    store: StorePath = None,
) -> State:
    """Give every image its likeliest names, by a backbone with its own top."""
    try:
        with run_stages():
            named = prediction.name_images(images, open_store(store), backbone, weights, class_index, top)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    label_run(f"{len(named.images):,} images")
    return Completed(message=f"{len(named.images):,} images in {named.csv}", data=named)
