"""What the Prefect UI shows of a run: artifacts, progress, names, tags.

None of it is worth a run's life: what the server can't take is left out with a warning.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from prefect import get_client, get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.events import emit_event
from prefect.runtime import flow_run

from thaw.batch import Labelled
from thaw.registry import Version

_ARTIFACT_SECONDS = 5.0


def show(create: Callable[..., Any], *content: Any, **options: Any) -> Any:
    """Create or update an artifact in the Prefect UI."""
    try:
        return create(*content, **options)
    except Exception as error:
        get_run_logger().warning("an artifact was not kept: %s", error)
        return None


def label_run(outcome: str = "", tags: Iterable[str] = ()) -> None:
    """Add to the name of the flow run what it came to, and tags to those it started with."""
    base = flow_run.get_name().partition(": ")[0]
    changes: dict[str, Any] = {"name": f"{base}: {outcome}" if outcome else base}
    if tags:
        changes["tags"] = sorted({*flow_run.get_tags(), *tags})
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.get_id(), **changes)
    except Exception as error:
        get_run_logger().warning("the run could not be labelled: %s", error)


def announce(champion: Version, reason: str) -> None:
    """Emit the event `thaw.model.promoted`, with the new champion's figures, for automations to act on."""
    emit_event(
        event="thaw.model.promoted",
        resource={
            "prefect.resource.id": f"thaw.model.{champion.run}",
            "prefect.resource.name": f"v{champion.number}, {champion.recipe}",
        },
        payload={
            "version": champion.number,
            "run": champion.run,
            "recipe": champion.recipe,
            "test_accuracy": champion.accuracy,
            "test_log_loss": champion.log_loss,
            "test_images": champion.test_images,
            "reason": reason,
        },
    )


def announce_drift(labelled: Labelled) -> None:
    """Emit the event `thaw.drift.found`, with what moved and where the answers lie, for automations to act on."""
    drift = labelled.drift
    emit_event(
        event="thaw.drift.found",
        resource={
            "prefect.resource.id": f"thaw.model.{labelled.checkpoint}",
            "prefect.resource.name": labelled.model,
        },
        payload={
            "model": labelled.model,
            "file": labelled.file,
            "drift_file": labelled.drift_file,
            "images": labelled.images,
            "tested_images": drift.tested_images,
            "reference_images": drift.reference_images,
            "smallest_p": drift.smallest_p,
            "level": drift.level,
            "false_alarm_rate": drift.false_alarm_rate,
            "components_moved": [asdict(one) for one in drift.components if one.moved],
            "classes": [asdict(one) for one in drift.classes],
            "reason": drift.reason,
        },
    )


class ProgressArtifacts:
    """Shows long work in the Prefect UI, one progress artifact per label, with its rate and the time left."""

    def __init__(self) -> None:
        self._artifacts: dict[str, Any] = {}
        # When a label was first heard of, and how much was done by then.
        self._begun: dict[str, tuple[float, int]] = {}
        self._updated = time.monotonic()

    def __call__(self, label: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        started, before = self._begun.setdefault(label, (now, done))
        if now - self._updated < _ARTIFACT_SECONDS and not (done == total and label in self._artifacts):
            return
        self._updated = now
        rate = (done - before) / (now - started) if now > started else 0.0
        shown = {"progress": 100 * done / total, "description": f"{label}: {say_pace(done, total, rate)}"}
        if label not in self._artifacts:
            self._artifacts[label] = show(create_progress_artifact, **shown)
        elif self._artifacts[label]:
            show(update_progress_artifact, self._artifacts[label], **shown)


def say_pace(done: int, total: int, per_second: float) -> str:
    """How far work is, how fast it goes, and how long it will take: '1,234 of 4,000, 29 a second, 2 min left'."""
    said = f"{done:,} of {total:,}"
    if per_second <= 0:
        return said
    said += f", {per_second:,.0f} a second" if per_second >= 10 else f", {per_second:.2g} a second"
    if done >= total:
        return said
    seconds = (total - done) / per_second
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{said}, {seconds / length:.0f} {unit} left"
    return f"{said}, {seconds:.0f} s left"
