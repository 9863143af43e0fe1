"""Where the network looked, as a part of a run's report: heat over the images it was mapped for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from thaw.report.canvas import INK, encode_png, fit_name, start_figure
from thaw.report.parts import Section
from thaw.report.summary import RunSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from thaw.gradcam import HeatMap, HeatMaps

_INCHES = 1.4
_GAP_PIXELS = 3
# The photograph stays to be made out below the hottest places, and loses its colours for those of the heat.
_MOST_COVER = 0.75
_NAME_CHARACTERS = 13


def group_by_class(heat: HeatMaps) -> dict[str, list[HeatMap]]:
    """The maps of each class under the name of its picture: `looked_1`, `looked_2` and so on."""
    labels = list(dict.fromkeys(one.label for one in heat.maps))
    return {
        f"looked_{number}": [one for one in heat.maps if one.label == label]
        for number, label in enumerate(labels, 1)
    }


def describe_heat(run: RunSummary) -> Section:
    """What the heat is, what it is not, and a picture of each class."""
    heat = run.heat
    averaged = f"{heat.networks} networks" if heat.networks > 1 else ""
    if heat.mirrored:
        averaged = " and ".join([*([averaged] if averaged else []), "image and mirror image"])
    text = [
        "Grad-CAM of the class that each image was called: yellow is where its feature maps raised the score of "
        f"that class most, violet where little, grey where not at all. The maps are those of {heat.layer}, "
        f"{heat.size[0]} × {heat.size[1]} places, drawn smoothly over the image."
        + (f" They are averaged over {averaged}." if averaged else ""),
        "It shows where the network found what it went by. It does not show what that was, nor whether it was a "
        "good reason, nor what speaks against the class, and no edge finer than one place. Each map is drawn to "
        "its own maximum: two of them can't be compared in strength.",
    ]
    if heat.layer == run.model.cut:
        text[0] += f" Of this network everything up to {heat.layer} is frozen."
    if run.config.head.pooling == "flatten":
        text.append(
            "The dense layers weigh every place for itself, and the method knows one weight for all places of a "
            "feature map: the maps are rougher for it."
        )
    groups = group_by_class(heat)
    text.append(
        "For each class the images called right most confidently, and below them those called wrong most "
        "confidently, up to two of each."
        + (
            f" Shown are the first {len(groups)} of {len(run.split.classes)} classes."
            if len(groups) < len(run.split.classes)
            else ""
        )
    )
    shown = {
        name: f"{maps[0].label}: each image, and its heat for the class it was called"
        for name, maps in groups.items()
        if name in run.pictures
    }
    return Section(name="looked", title="Where it looked", text=text, pictures=shown)


def plot_heat(maps: Sequence[HeatMap], images: np.ndarray) -> bytes:
    """The images of one class beside their heat, those called right above those called wrong, two in a row.

    Args:
        images: uint8 (n, size, size, channels), those of `maps` in their order.
    """
    return encode_png(draw_heat(maps, images))


def draw_heat(maps: Sequence[HeatMap], images: np.ndarray) -> Figure:
    """The figure behind `plot_heat`."""
    pairs = list(zip(maps, images, strict=True))
    right = [pair for pair in pairs if pair[0].called == pair[0].label]
    wrong = [pair for pair in pairs if pair[0].called != pair[0].label]
    lines = [called for called in (right, wrong) if called]
    columns = max(len(line) for line in lines)
    figure = start_figure(2 * _INCHES * columns, (_INCHES + 0.2) * len(lines))
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for line, row in zip(lines, grid, strict=True):
        for axes in row:
            axes.axis("off")
        for axes, (one, image) in zip(row, line, strict=False):
            axes.imshow(
                _place_beside(image, lay_over(image, np.array(one.heat))), interpolation="antialiased"
            )
            axes.set_title(_caption(one), fontsize=9, color=INK, pad=4, parse_math=False)
    return figure


def lay_over(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """An image in grey, under the colours of its heat.

    Args:
        image: uint8 (height, width, channels).
        heat: of 0 to 1, (rows, columns).

    Returns:
        uint8 (height, width, 3).
    """
    import matplotlib
    from PIL import Image

    height, width = image.shape[:2]
    small = Image.fromarray(heat.astype(np.float32))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    grey = image.mean(axis=-1, keepdims=True)
    colours = matplotlib.colormaps["plasma"](smooth[..., 0])[..., :3] * 255
    # Cold places keep the photograph; cover grows fast from there, so that what is tinted can be told from grey.
    cover = _MOST_COVER * np.sqrt(smooth)
    return (grey * (1 - cover) + colours * cover).astype(np.uint8)


def _place_beside(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    coloured = np.broadcast_to(image, (*image.shape[:2], 3))
    gap = np.full((len(image), _GAP_PIXELS, 3), 255, np.uint8)
    return np.concatenate([coloured, gap, other], axis=1)


def _caption(one: HeatMap) -> str:
    label, called = (fit_name(name, _NAME_CHARACTERS) for name in (one.label, one.called))
    return f"{label}, called {called} {one.probability:.3f}"
