"""The task that labels images with a saved model."""

from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_table_artifact

from tasks.screen import show
from tasks.stage import stage
from thaw import predict
from thaw.predict import Labelled
from thaw.records import Made
from thaw.store import Store


def _show_counts(labelled: Labelled) -> None:
    rows = [{"class": label, "images": count} for label, count in labelled.counts.items()]
    rows += [{"class": "(could not be read)", "images": labelled.unreadable}] if labelled.unreadable else []
    title = f"{labelled.images:,} images by {labelled.model}, in {labelled.csv}"
    show(create_table_artifact, rows, key="predictions", description=title)


@stage("label images with {model}", retries=1, present=_show_counts)
def label_images(images: Sequence[Path], model: str, csv: Path | None, store: Store) -> Made[Labelled]:
    return predict.label_images(images, model, csv, store)
