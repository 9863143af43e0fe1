"""The end of a run: the model that takes raw pixels, the pictures and the report, published as one folder."""

import dataclasses
import functools
import importlib.metadata
import platform
from pathlib import Path

import numpy as np

from thaw.archive import open_dump
from thaw.card import render_card
from thaw.drift import summarize_population
from thaw.errors import ParityFailed
from thaw.extract import read_pixels
from thaw.model import ModelFacts, assemble_model, predict_pixels, save_model
from thaw.records import Made, Outcome, digest_of
from thaw.report import RunSummary, render_markdown, write_report
from thaw.report.pictures import draw_pictures
from thaw.store import Store

_PARITY_IMAGES = 32
# Mean difference of probabilities. Rounding of cached features gives a tenth of it at most; a wrong
# preprocessing, resize or cut gives ten times it.
_PARITY_LIMIT = 0.03
_PACKAGES = ("thaw", "tensorflow", "keras", "prefect", "numpy", "pillow")


def release_run(run: RunSummary, store: Store) -> Made[Outcome]:
    """Publish `runs/<digest>/`: report, pictures, and unless the gate stayed closed evaluation, model and its card.

    Raises:
        ParityFailed: the model doesn't reproduce from pixels what was tested from cached features.
    """
    checkpoint = run.model
    settings = run.config.model_dump(mode="json", exclude={"dump"})
    verdicts = [found for member in run.members for found in (member.verdict, *member.phase_verdicts)]
    given = (run.manifest.digest, checkpoint.address, verdicts, run.precision, run.tested is None)
    scaled = [] if run.temperature == 1 else [run.temperature]
    address = digest_of("run", settings, *given, *scaled)
    files = ("report.html", "report.md", *(("model.keras",) if run.tested else ()))
    found = store.read_folder("runs", address, "outcome.json", Outcome, files)
    if found:
        return Made(value=found, reused=True, note=f"run {address}")
    outcome = Outcome(
        run=address,
        recipe=run.config.recipe,
        manifest=run.manifest.digest,
        split=checkpoint.split,
        verdict=run.verdict,
        head=run.head.address,
        fine_tuned=None if checkpoint is run.head else checkpoint.address,
        gate_overridden=run.is_overridden,
        val_accuracy=checkpoint.history.best.val_accuracy if checkpoint.history.best else None,
    )
    with open_dump(run.config.dump.path) as dump:
        pictures = draw_pictures(run, functools.partial(read_pixels, dump, settings=run.config.backbone))
    run = dataclasses.replace(run, pictures=pictures, versions=list_versions())
    with store.publish_folder("runs", address) as partial:
        if run.tested:
            outcome = dataclasses.replace(
                outcome,
                head_metrics=run.head_evaluation.metrics,
                metrics=run.tested.metrics,
                parity=_release_model(run, partial / "model.keras", store),
                temperature=run.temperature,
            )
            (partial / "evaluation.json").write_text(run.tested.to_json(), encoding="utf-8")
            (partial / "model-card.md").write_text(render_card(run, outcome), encoding="utf-8")
        for name, picture in run.pictures.items():
            (partial / f"{name}.png").write_bytes(picture)
        write_report(partial, run)
        (partial / "report.md").write_text(render_markdown(run), encoding="utf-8")
        (partial / "outcome.json").write_text(outcome.to_json(), encoding="utf-8")
    return Made(value=outcome, reused=False, note=f"run {address}")


def list_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }


def _release_model(run: RunSummary, path: Path, store: Store) -> float:
    checkpoint = run.model
    model = assemble_model(checkpoint, run.backbone, run.config.backbone, store, run.temperature)
    parity = _measure_parity(run, model)
    if parity > _PARITY_LIMIT:
        raise ParityFailed(
            f"the assembled model's probabilities differ from the tested ones by {parity:.3f} on average; "
            f"the limit is {_PARITY_LIMIT}. The model was not released; checkpoint {checkpoint.address} is kept."
        )
    facts = ModelFacts(
        classes=run.split.classes,
        image_size_pixels=run.config.backbone.image_size_pixels,
        resize_filter=run.config.backbone.resize_filter,
        resize_fit=run.config.backbone.resize_fit,
        colour=run.config.backbone.colour,
        backbone=run.backbone.name,
        stage=checkpoint.stage,
        checkpoint=checkpoint.address,
        split=checkpoint.split,
        gate_overridden=run.is_overridden,
        temperature=run.temperature,
    )
    save_model(model, path, facts, summarize_population(checkpoint, store))
    return parity


def _measure_parity(run: RunSummary, model) -> float:
    """Mean absolute difference of probabilities, on test images spread over the classes."""
    step = max(1, len(run.split.test) // _PARITY_IMAGES)
    tested = {row.path: row.probabilities for row in run.tested.predictions}
    chosen = run.split.test[::step][:_PARITY_IMAGES]
    with open_dump(run.config.dump.path) as dump:
        pixels = np.stack([read_pixels(dump, row, run.config.backbone) for row in chosen])
    again = predict_pixels(model, pixels)
    return float(np.abs(again - np.array([tested[row.path] for row in chosen])).mean())
