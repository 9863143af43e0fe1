"""Which pictures a run has, drawn from its records and from images of its dump."""

from collections.abc import Callable

import numpy as np

from thaw.augment import draw_view
from thaw.convergence import trace_verdicts
from thaw.records import ImageRow
from thaw.report.confusion import plot_confusion
from thaw.report.curves import plot_curves
from thaw.report.gate import GatePart, plot_gate
from thaw.report.heat import group_by_class, plot_heat
from thaw.report.photographs import MOST_IMAGES, plot_mistakes, plot_views
from thaw.report.reliability import plot_reliability
from thaw.report.summary import RunSummary, list_mistakes

_PREVIEWED_VIEWS = 7

ReadPixels = Callable[[ImageRow], np.ndarray]


def draw_pictures(run: RunSummary, read: ReadPixels) -> dict[str, bytes]:
    """PNG files by name: curves, gate and views, and of a tested run confusion, reliability, mistakes and heat.

    What there is nothing to show of is left out: a gate that never compared, mistakes that were not made.

    Args:
        read: an image's pixels as the backbone gets them, uint8 (size, size, channels).
    """
    pictures = {"curves": _draw_curves(run)}
    parts = list_gate_parts(run)
    if any(found.statistic is not None for part in parts for found in part.trace):
        pictures["gate"] = plot_gate(parts, run.config.gate.min_improvement_nats)
    if run.tested:
        pictures["confusion"] = plot_confusion(run.tested.metrics, run.split.classes)
        if run.tested.reliability:
            pictures["reliability"] = plot_reliability(
                run.tested.reliability, run.tested.uncalibrated_reliability
            )
        rows = {row.path: row for row in run.split.test}
        if mistakes := list_mistakes(run.tested)[:MOST_IMAGES]:
            images = np.stack([read(rows[mistake.path]) for mistake in mistakes])
            pictures["mistakes"] = plot_mistakes(mistakes, images)
        for name, maps in group_by_class(run.heat).items() if run.heat else ():
            pictures[name] = plot_heat(maps, np.stack([read(rows[one.path]) for one in maps]))
    return pictures | {"views": _draw_views(run, read)}


def list_gate_parts(run: RunSummary) -> list[GatePart]:
    """How the gate saw the head, and every phase of fine-tuning behind it, after each epoch they were trained."""
    trained = [(run.head, run.verdict, run.config.head)]
    trained += zip(run.phases, run.phase_verdicts, run.config.fine_tune, strict=False)
    parts = []
    for number, (made, verdict, settings) in enumerate(trained):
        trace = trace_verdicts(made.history, run.config.gate, settings)
        answer = ""
        if number < len(run.config.fine_tune):
            answer = "overridden" if verdict.overridden else "opens" if verdict.opens_gate else "stays closed"
        if trace:
            parts.append(GatePart(trace=tuple(trace), answer=answer))
    return parts


def _draw_curves(run: RunSummary) -> bytes:
    phases = [(phase.cut, phase.history) for phase in run.phases]
    patience = run.config.head.patience_epochs or run.config.gate.patience_epochs
    return plot_curves(run.head.history, phases, run.verdict, patience)


def _draw_views(run: RunSummary, read: ReadPixels) -> bytes:
    row = run.split.train[0]
    pixels = read(row)
    numbers = range(_PREVIEWED_VIEWS + 1)
    return plot_views(
        np.stack([draw_view(pixels, row.sha256, view, run.config.augmentation) for view in numbers])
    )
