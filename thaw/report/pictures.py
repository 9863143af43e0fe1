"""Which pictures a run has, drawn from its records and from images of its dump."""

from collections.abc import Callable

import numpy as np

from thaw.augment import draw_view
from thaw.records import ImageRow
from thaw.report.confusion import plot_confusion
from thaw.report.curves import plot_curves
from thaw.report.photographs import MOST_IMAGES, plot_mistakes, plot_views
from thaw.report.summary import RunSummary, list_mistakes

_PREVIEWED_VIEWS = 7

ReadPixels = Callable[[ImageRow], np.ndarray]


def draw_pictures(run: RunSummary, read: ReadPixels) -> dict[str, bytes]:
    """PNG files by name: curves and views, and of a tested run confusion and, if there are any, mistakes.

    Args:
        read: an image's pixels as the backbone gets them, uint8 (size, size, channels).
    """
    pictures = {"curves": _draw_curves(run)}
    if run.tested:
        pictures["confusion"] = plot_confusion(run.tested.metrics, run.split.classes)
        if mistakes := list_mistakes(run.tested)[:MOST_IMAGES]:
            rows = {row.path: row for row in run.split.test}
            images = np.stack([read(rows[mistake.path]) for mistake in mistakes])
            pictures["mistakes"] = plot_mistakes(mistakes, images)
    return pictures | {"views": _draw_views(run, read)}


def _draw_curves(run: RunSummary) -> bytes:
    phases = [(phase.cut, phase.history) for phase in run.phases]
    return plot_curves(run.head.history, phases, run.verdict, run.config.gate.patience_epochs)


def _draw_views(run: RunSummary, read: ReadPixels) -> bytes:
    row = run.split.train[0]
    pixels = read(row)
    numbers = range(_PREVIEWED_VIEWS + 1)
    return plot_views(
        np.stack([draw_view(pixels, row.sha256, view, run.config.augmentation) for view in numbers])
    )
