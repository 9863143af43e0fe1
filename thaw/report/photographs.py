"""Images of the dump as PNG bytes: augmented views of one, and those called most confidently wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thaw.report.canvas import INK, encode_png, fit_name, start_figure
from thaw.report.summary import WrongCall

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_IMAGES = 12

_COLUMNS = 3
_INCHES = 1.6
# What fits above an image: a whole caption of one line, and a name in one of two lines.
_CAPTION_CHARACTERS = 23
_NAME_CHARACTERS = 10


def plot_views(views: np.ndarray) -> bytes:
    """An image beside augmented views of it.

    Args:
        views: uint8 (n, size, size, channels), the image itself first. The first 12 are drawn.
    """
    return encode_png(draw_views(views))


def plot_mistakes(mistakes: Sequence[WrongCall], images: np.ndarray) -> bytes:
    """Images that were called wrong, each with what it is, what it was called and how surely.

    Args:
        images: uint8 (n, size, size, channels), those of `mistakes` in their order. The first 12 are drawn.
    """
    return encode_png(draw_mistakes(mistakes, images))


def draw_views(views: np.ndarray) -> Figure:
    """The figure behind `plot_views`."""
    return _draw_grid(views, ["original", *(f"view {number}" for number in range(1, len(views)))])


def draw_mistakes(mistakes: Sequence[WrongCall], images: np.ndarray) -> Figure:
    """The figure behind `plot_mistakes`."""
    return _draw_grid(images, _break_captions([_caption(one) for one in mistakes]))


def _caption(mistake: WrongCall) -> tuple[str, str]:
    label, called = (fit_name(name, _NAME_CHARACTERS) for name in (mistake.label, mistake.called))
    return f"{label},", f"called {called} {mistake.probability:.3f}"


def _break_captions(captions: Sequence[tuple[str, str]]) -> list[str]:
    """Captions of one line each, or all of two lines, so that images stay in their rows."""
    fits = all(len(" ".join(caption)) <= _CAPTION_CHARACTERS for caption in captions)
    return [(" " if fits else "\n").join(caption) for caption in captions]


def _draw_grid(images: np.ndarray, captions: Sequence[str]) -> Figure:
    shown = np.asarray(images, dtype=np.uint8)[:MOST_IMAGES]
    columns = min(_COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    lines = 1 + max(caption.count("\n") for caption in captions)
    figure = start_figure(_INCHES * columns, (_INCHES + 0.16 * lines) * rows)
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if number < len(shown):
            axes.imshow(shown[number], cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
            axes.set_title(captions[number], fontsize=9, color=INK, pad=4, parse_math=False)
    return figure
