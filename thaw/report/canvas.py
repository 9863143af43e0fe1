"""What all pictures share: colours, figures, and their encoding in few bytes.

Everything is drawn through figure objects and none of pyplot's global state, so threads can draw at
once. matplotlib is imported on the first drawing only.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by every kind of colour vision, and in grey by lightness.
TRAIN, VALIDATION, GATE = "#D55E00", "#0072B2", "#009E73"
INK, QUIET, GRID = "#22262b", "#646b73", "#e4e7ea"

_DOTS_PER_INCH = 110
_PICTURE_BYTES = 250_000
# Of a page of photographs each step down saves a tenth to a quarter; below the last of both, captions blur.
_JPEG_QUALITIES = (90, 80, 70, 60, 50, 40, 30)
_SCALES = (1.0, 0.7)


def start_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty white figure whose parts make room for each other."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure((width_inches, height_inches), _DOTS_PER_INCH, facecolor="white", layout=layout)


def style_axes(axes: Axes) -> None:
    """Leave of a chart's frame its foot and quiet lines across."""
    for edge in ("top", "right", "left"):
        axes.spines[edge].set_visible(False)
    axes.spines["bottom"].set_color("#b3b8bd")
    axes.grid(axis="y", color=GRID, lw=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=QUIET, labelsize=11, length=0)
    axes.xaxis.label.set(fontsize=11, color=QUIET)


def encode_png(figure: Figure) -> bytes:
    """Draw a figure as PNG in 256 colours, and in fewer pixels where photographs make it large."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas, dots_per_inch = FigureCanvasAgg(figure), float(_DOTS_PER_INCH)
    while True:
        figure.set_dpi(dots_per_inch)
        canvas.draw()
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        encoded = io.BytesIO()
        picture.quantize(256, dither=Image.Dither.NONE).save(encoded, "PNG", optimize=True)
        if encoded.tell() <= _PICTURE_BYTES:
            return encoded.getvalue()
        dots_per_inch *= 0.97 * math.sqrt(_PICTURE_BYTES / encoded.tell())


def shrink_picture(picture: bytes, limit_bytes: int) -> bytes | None:
    """A PNG as it is where it fits, else as JPEG, of less quality and then smaller until it does, else None."""
    from PIL import Image

    if len(picture) <= limit_bytes:
        return picture
    with Image.open(io.BytesIO(picture)) as opened:
        image = opened.convert("RGB")
    for scale in _SCALES:
        scaled = image.resize(
            (round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS
        )
        for quality in _JPEG_QUALITIES:
            encoded = io.BytesIO()
            scaled.save(encoded, "JPEG", quality=quality, optimize=True)
            if encoded.tell() <= limit_bytes:
                return encoded.getvalue()
    return None


def fit_name(name: str, limit: int = 20) -> str:
    """A class name that fits its place: shortened, and a box for each character the font lacks."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    drawn = "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "\u25a1" for c in name)
    return drawn if len(drawn) <= limit else f"{drawn[: limit - 1]}\u2026"
