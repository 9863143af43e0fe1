"""Tasks that label images: with a saved model, or with a backbone's own top."""

from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from tasks.screen import announce_drift, show
from tasks.sharing import Sharing
from tasks.stage import stage
from thaw import batch, imagenet
from thaw.batch import Labelled, LabelRequest
from thaw.imagenet import NamedImages
from thaw.location import Url
from thaw.portions import Portion, PortionPlan, PortionReport, PortionSize
from thaw.records import Made
from thaw.report.drift import render_drift
from thaw.store import Store

_SHOWN_IMAGES = 100


def _show_labelled(labelled: Labelled) -> None:
    rows = [{"class": label, "images": count} for label, count in labelled.counts.items()]
    rows += [{"class": "(could not be read)", "images": labelled.unreadable}] if labelled.unreadable else []
    title = f"{labelled.images:,} images by {labelled.model}, in {labelled.file}"
    show(create_table_artifact, rows, key="predictions", description=title)
    title = f"{labelled.images:,} images by {labelled.model}"
    show(create_markdown_artifact, render_drift(labelled.drift, title), key="drift", description=title)
    if labelled.drift.state == "alarm":
        announce_drift(labelled)


@stage("{request.title}", wants_gpu=True)
def begin_labels(request: LabelRequest, size: PortionSize, store: Store) -> Made[PortionPlan[LabelRequest]]:
    return batch.begin_labels(request, size, store)


@stage("{request.title}: {portion.title}", wants_gpu=True)
def label_portion(
    request: LabelRequest, portion: Portion, store: Store, backwards: bool = False
) -> Made[PortionReport]:
    return batch.label_portion(request, portion, store, backwards)


@stage("{request.title}", sharing=Sharing(begin_labels, label_portion), retries=1, present=_show_labelled)
def label_request(request: LabelRequest, store: Store) -> Made[Labelled]:
    return batch.label_request(request, store)


def label_images(
    images: Sequence[Path | Url], model: str, file: Path | None, store: Store, false_alarm_rate: float
) -> Labelled:
    """Label images, and say whether they drifted. A run that is tried again goes on with what it had labelled."""
    request = LabelRequest(
        sources=tuple(str(image) for image in images),
        model=model,
        file=file and str(file),
        false_alarm_rate=false_alarm_rate,
        batch=flow_run.get_id() or "",
        name=model,
    )
    return label_request(request, store)


def _show_names(named: NamedImages) -> None:
    rows = [
        {"image": image.path, "names": ", ".join(f"{name} {share:.2f}" for name, share in image.names)}
        for image in named.images[:_SHOWN_IMAGES]
    ]
    title = f"{len(named.images):,} images by {named.backbone}, in {named.csv}"
    show(create_table_artifact, rows, key="imagenet-names", description=title)


@stage("name images with {backbone}", retries=1, present=_show_names)
def name_images(
    images: Sequence[Path | Url],
    store: Store,
    backbone: str,
    weights: str,
    class_index: Path | None,
    top: int,
) -> Made[NamedImages]:
    return imagenet.name_images(images, store, backbone, weights, class_index, top)
