"""Models that keep their population, and drawings that they have not seen."""

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.prepared import Prepared, head_of
from thaw.config import BackboneConfig
from thaw.drawings import draw_animal
from thaw.drift import summarize_population
from thaw.model import ModelFacts, assemble_model, save_model
from thaw.records import Backbone, Checkpoint
from thaw.store import Store


def make_facts(checkpoint: Checkpoint, settings: BackboneConfig, classes: tuple[str, ...]) -> ModelFacts:
    return ModelFacts(
        classes=classes,
        image_size_pixels=settings.image_size_pixels,
        resize_filter=settings.resize_filter,
        resize_fit=settings.resize_fit,
        backbone=settings.name,
        stage=checkpoint.stage,
        checkpoint=checkpoint.address,
        split=checkpoint.split,
        gate_overridden=False,
    )


def save_model_of(
    checkpoint: Checkpoint,
    backbone: Backbone,
    settings: BackboneConfig,
    classes: tuple[str, ...],
    store: Store,
    path: Path,
    with_population: bool = True,
) -> None:
    """Save what a checkpoint makes of pixels, as a release does."""
    network = assemble_model(checkpoint, backbone, settings, store)
    kept = summarize_population(checkpoint, store) if with_population else None
    save_model(network, path, make_facts(checkpoint, settings, classes), kept)


def save_head(prepared: Prepared, path: Path, with_population: bool) -> None:
    """Save a head on drawings."""
    given = (prepared.backbone, prepared.config.backbone, prepared.split.classes, prepared.store)
    save_model_of(head_of(prepared).value, *given, path, with_population)


def draw_images(
    folder: Path, cats: int, dogs: int, change: Callable[[Image.Image], Image.Image] | None = None
) -> Path:
    """Drawings that no model has seen, changed where that is asked for."""
    folder.mkdir()
    for label, count in (("cat", cats), ("dog", dogs)):
        for number in range(count):
            data = draw_animal(label, number, seed=7)
            if change:
                with Image.open(io.BytesIO(data)) as opened:
                    changed = io.BytesIO()
                    change(opened).save(changed, "PNG")
                    data = changed.getvalue()
            (folder / f"{label}.{number}.{'png' if change else 'jpg'}").write_bytes(data)
    return folder
