"""What commands print: tables for people, one JSON object for scripts."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from thaw.records import Manifest, Outcome, StageTime

notes = Console(stderr=True, highlight=False)
results = Console(highlight=False)

_QUARANTINED_ROWS = 50


def flatten_outcome(outcome: Outcome) -> dict[str, Any]:
    """An outcome as the keys and values that `train --json` prints."""
    metrics, head = outcome.metrics, outcome.head_metrics
    return {
        "run": outcome.run,
        "recipe": outcome.recipe,
        "split": outcome.split,
        "verdict": outcome.verdict.state,
        "reason": outcome.verdict.reason,
        "gate_overridden": outcome.gate_overridden,
        "val_accuracy": outcome.val_accuracy,
        "test_accuracy": metrics and metrics.accuracy,
        "test_accuracy_interval": metrics and metrics.accuracy_interval,
        "test_log_loss": metrics and metrics.log_loss,
        "test_auc": metrics and metrics.auc,
        "test_average_precision": metrics and metrics.average_precision,
        "test_brier": metrics and metrics.brier,
        "test_calibration_error": metrics and metrics.calibration_error,
        "temperature": outcome.temperature,
        "test_images": metrics and metrics.images,
        "head_test_accuracy": head and head.accuracy,
        "head_test_log_loss": head and head.log_loss,
        "cached": [stage.stage for stage in outcome.stages if stage.cached],
        "seconds": _add_up(outcome.stages),
    }


def _add_up(stages: Sequence[StageTime]) -> dict[str, float]:
    """Seconds by stage; each budget of a head is judged by a stage of the same name."""
    seconds: dict[str, float] = {}
    for stage in stages:
        seconds[stage.stage] = round(seconds.get(stage.stage, 0) + stage.seconds, 3)
    return seconds


def print_outcome(outcome: Outcome) -> None:
    """Print the figures of a run as a table."""
    rows = [("verdict", f"{outcome.verdict.state}: {outcome.verdict.reason}")]
    if outcome.val_accuracy is not None:
        rows.append(("validation accuracy", f"{outcome.val_accuracy:.4f}"))
    for name, metrics in (("head", outcome.head_metrics), ("model", outcome.metrics)):
        if metrics:
            low, high = metrics.accuracy_interval
            rows.append((f"test accuracy, {name}", f"{metrics.accuracy:.4f} ({low:.4f} to {high:.4f})"))
            rows.append((f"test log loss, {name}", f"{metrics.log_loss:.4f} nats"))
    if outcome.temperature != 1:
        rows.append(("temperature", f"{outcome.temperature:g}, in the model"))
    cached = sum(stage.cached for stage in outcome.stages)
    seconds = sum(stage.seconds for stage in outcome.stages)
    rows.append(("time", f"{seconds:.0f} s, {cached} of {len(outcome.stages)} stages cached"))
    print_table(["", f"{outcome.recipe}, run {outcome.run}"], rows)


def print_quarantine(manifest: Manifest) -> None:
    """Print the images set aside with their reasons; those without a label only as a count."""
    unlabelled = sum(bad.kind == "unlabelled" for bad in manifest.quarantined)
    listed = [bad for bad in manifest.quarantined if bad.kind != "unlabelled"]
    rows = [(bad.path, bad.label or "", bad.reason) for bad in listed[:_QUARANTINED_ROWS]]
    if len(listed) > len(rows):
        rows.append((f"and {len(listed) - len(rows)} more", "", "see the manifest in the store"))
    if unlabelled:
        rows.append((f"{unlabelled} images", "", "no label in their names"))
    if rows:
        print_table(["quarantined", "class", "reason"], rows)


def in_words(value: Any) -> str:
    """A value as one cell of a table."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return ("\n".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def print_json(**values: Any) -> None:
    """Print one JSON object on standard output."""
    sys.stdout.write(json.dumps(values, indent=1) + "\n")


def print_table(columns: list[str], rows: list[tuple[Any, ...]], title: str | None = None) -> None:
    """Print rows under their column names."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    results.print(table)
