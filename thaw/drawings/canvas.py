"""Scenes with one drawn figure: a pen in a movable frame, painted surfaces, backgrounds, clutter, light."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Point = tuple[float, float]
Points = Sequence[Point] | np.ndarray
Paint = Image.Image | Colour
DrawFigure = Callable[["Pen", "Coat", Generator], None]

# Drawn this many times larger and reduced, so that edges are smooth.
_OVERSAMPLING = 2

# Coats, backgrounds and clutter share these colours, so that none of them gives a figure away.
_COLOURS: tuple[Colour, ...] = (
    (60, 54, 52), (96, 92, 96), (150, 148, 146), (222, 220, 212), (238, 214, 170), (214, 160, 92),
    (196, 112, 52), (128, 80, 48), (84, 56, 40), (172, 140, 112), (110, 128, 148), (150, 168, 120),
    (196, 176, 84), (140, 92, 104), (88, 120, 104), (176, 196, 208),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Coat:
    """A figure's surface in three shades, each a picture as large as the scene, and its outline's colour."""

    base: Image.Image
    dark: Image.Image
    light: Image.Image
    accent: Colour
    line: Colour


@dataclass(frozen=True, kw_only=True)
class Pen:
    """Draws on a picture in a frame of its own: x to the right, y down, the figure within -1..1.

    `axes` is the 2 by 2 matrix from frame to pixels, `origin` the frame's centre in pixels, `line_width`
    the outlines' width in frame units, 0 for none.
    """

    picture: Image.Image
    axes: np.ndarray
    origin: np.ndarray
    line: Colour
    line_width: float

    def move(self, x: float, y: float, scale: float = 1.0, turn: float = 0.0) -> "Pen":
        """A pen in a frame centred at (x, y), scaled, turned clockwise by `turn` radians."""
        axes = self.axes @ _rotate(turn) * scale
        origin = self.origin + self.axes @ np.array([x, y])
        return replace(self, axes=axes, origin=origin, line_width=self.line_width / scale)

    def sides(self) -> tuple["Pen", "Pen"]:
        """This pen and its mirror image, for what comes in pairs."""
        return self, replace(self, axes=self.axes @ np.diag([-1.0, 1.0]))

    def polygon(self, points: Points, paint: Paint, *, outlined: bool = True) -> None:
        """Fill a closed polygon with a colour or, where `paint` is a picture, with what that shows there."""
        placed = np.asarray(points, float) @ self.axes.T + self.origin
        corners = _as_pairs(placed)
        if isinstance(paint, Image.Image):
            self._fill_with_picture(placed, paint)
        else:
            ImageDraw.Draw(self.picture).polygon(corners, fill=paint)
        width = round(self.line_width * self.scale)
        if outlined and width:
            rim = [*corners, *corners[:2]]
            ImageDraw.Draw(self.picture).line(rim, fill=self.line, width=width, joint="curve")

    def blob(self, points: Points, paint: Paint, *, outlined: bool = True) -> None:
        """Fill the smooth closed curve through the points."""
        self.polygon(_bend(np.asarray(points, float), closed=True), paint, outlined=outlined)

    def even_blob(self, points: Points, paint: Paint, *, outlined: bool = True) -> None:
        """Fill the smooth closed curve through the points of its right half and their mirror images."""
        mirrored = [(-x, y) for x, y in reversed(points) if x]
        self.blob([*points, *mirrored], paint, outlined=outlined)

    def oval(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        paint: Paint,
        turn: float = 0.0,
        *,
        outlined: bool = True,
    ) -> None:
        """Fill an ellipse of half-axes `width` and `height`."""
        angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        rim = np.stack([width * np.cos(angles), height * np.sin(angles)], axis=1)
        self.polygon(rim @ _rotate(turn).T + (x, y), paint, outlined=outlined)

    def stroke(self, points: Points, start: float, end: float, paint: Paint) -> None:
        """Fill a smooth band through the points with round ends, of half-width `start` to `end`."""
        spine = _bend(np.asarray(points, float), closed=False)
        along = np.gradient(spine, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
        across = along[:, ::-1] * (-1, 1) * np.linspace(start, end, len(spine))[:, None]
        cap = np.linspace(-1, 1, 5)[1:-1, None] * np.pi / 2
        tip = spine[-1] + across[-1] * -np.sin(cap) + along[-1] * end * np.cos(cap)
        foot = spine[0] + across[0] * np.sin(cap) - along[0] * start * np.cos(cap)
        self.polygon(np.concatenate([spine + across, tip, (spine - across)[::-1], foot]), paint)

    def hair(self, points: Points, width: float, colour: Colour) -> None:
        """Draw a smooth thin line, at least one pixel of the drawing wide."""
        placed = _bend(np.asarray(points, float), closed=False) @ self.axes.T + self.origin
        width = max(1, round(width * self.scale))
        ImageDraw.Draw(self.picture).line(_as_pairs(placed), fill=colour, width=width)

    @property
    def scale(self) -> float:
        """Pixels of the drawing per frame unit."""
        return float(np.sqrt(abs(np.linalg.det(self.axes))))

    def _fill_with_picture(self, placed: np.ndarray, paint: Image.Image) -> None:
        left, top = np.maximum(np.floor(placed.min(axis=0)).astype(int), 0).tolist()
        right, bottom = np.minimum(np.ceil(placed.max(axis=0)).astype(int) + 1, self.picture.size).tolist()
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon(_as_pairs(placed - (left, top)), fill=255)
        self.picture.paste(paint.crop((left, top, right, bottom)), (left, top), mask)


def draw_scene(draw_figure: DrawFigure, dice: Generator) -> Image.Image:
    """One figure in a random pose over a random background: an RGB picture with sides of 90 to 200 pixels."""
    long, aspect = int(dice.integers(110, 201)), dice.uniform(0.72, 1.0)
    short = max(90, round(long * aspect))
    width, height = (long, short) if dice.random() < 0.5 else (short, long)
    size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
    picture, coat = _paint_background(size, dice), mix_coat(size, dice)
    reach = min(size) * dice.uniform(0.36, 0.5)
    slant = np.array([[1.0, dice.normal(0, 0.1)], [0.0, dice.uniform(0.88, 1.12)]])
    facing = np.diag([dice.choice([-1.0, 1.0]), 1.0])
    pen = Pen(
        picture=picture,
        axes=_rotate(dice.normal(0, 0.22)) @ slant @ facing * reach,
        origin=np.array(size) * (0.5 + dice.uniform(-0.12, 0.12, 2)),
        line=coat.line,
        line_width=dice.uniform(0.012, 0.035) if dice.random() < 0.6 else 0.0,
    )
    draw_figure(pen, coat, dice)
    for _ in range(int(dice.integers(0, 3))):
        # In front of the figure, so at an edge, where it hides no more than a part.
        centre = dice.random(2)
        centre[dice.integers(2)] = dice.choice([0.02, 0.98])
        _draw_clutter(picture, centre, dice)
    return _expose(picture, (width, height), dice)


def mix_coat(size: tuple[int, int], dice: Generator) -> Coat:
    """A surface of one colour, or two in stripes, spots or patches."""
    first, second = pick_colour(dice), pick_colour(dice)
    base = Image.new("RGB", size, first)
    _paint_pattern(base, second, ("plain", "plain", "stripes", "spots", "patches")[dice.integers(5)], dice)
    shade, glow = dice.uniform(0.6, 0.85), dice.uniform(0.25, 0.6)
    return Coat(
        base=base,
        dark=base.point(lambda value: int(value * shade)),
        light=base.point(lambda value: int(value + (255 - value) * glow)),
        accent=second,
        line=tuple(int(part * 0.35) for part in first),
    )


def pick_colour(dice: Generator) -> Colour:
    """One of the shared colours, jittered."""
    jittered = np.array(_COLOURS[dice.integers(len(_COLOURS))]) + dice.normal(0, 14, 3) + dice.normal(0, 14)
    return tuple(np.clip(jittered, 8, 247).astype(int).tolist())


def _paint_background(size: tuple[int, int], dice: Generator) -> Image.Image:
    ramp = Image.linear_gradient("L").rotate(int(dice.integers(0, 4)) * 90).resize(size)
    near, far = Image.new("RGB", size, pick_colour(dice)), Image.new("RGB", size, pick_colour(dice))
    picture = Image.composite(near, far, ramp)
    kind = dice.random()
    if kind < 0.35:
        _paint_pattern(picture, pick_colour(dice), ("stripes", "spots", "patches")[dice.integers(3)], dice)
    elif kind < 0.7:
        horizon = int(size[1] * dice.uniform(0.4, 0.85))
        picture.paste(pick_colour(dice), (0, horizon, *size))
    for _ in range(int(dice.integers(0, 7))):
        _draw_clutter(picture, dice.random(2), dice)
    cells = dice.normal(128, dice.uniform(0, 26), (int(dice.integers(4, 24)),) * 2)
    mottle = Image.fromarray(np.clip(cells, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return ImageChops.overlay(picture, Image.merge("RGB", (mottle,) * 3))


def _paint_pattern(picture: Image.Image, colour: Colour, pattern: str, dice: Generator) -> None:
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    side = max(width, height)
    if pattern == "stripes":
        angle, gap = dice.uniform(0, np.pi), side * dice.uniform(0.05, 0.14)
        across, along = _rotate(angle).T * [[1], [side]]
        for step in np.arange(-side, side, gap):
            middle = np.array([width / 2, height / 2]) + across * step
            thick = max(1, int(gap * dice.uniform(0.15, 0.5)))
            draw.line(_as_pairs(np.stack([middle - along, middle + along])), fill=colour, width=thick)
    elif pattern != "plain":
        fewest, most, largest = (25, 60, 0.035) if pattern == "spots" else (5, 11, 0.17)
        count = int(dice.integers(fewest, most))
        for x, y, share in dice.random((count, 3)).tolist():
            x, y, reach = x * width, y * height, side * largest * (0.5 + share / 2)
            draw.ellipse((x - reach, y - reach * 0.8, x + reach, y + reach * 0.8), fill=colour)


def _draw_clutter(picture: Image.Image, centre: np.ndarray, dice: Generator) -> None:
    """One oval, line or polygon; `centre` is in shares of the picture's sides."""
    side, colour = min(picture.size), pick_colour(dice)
    centre, reach = centre * picture.size, side * dice.uniform(0.04, 0.2)
    draw, kind = ImageDraw.Draw(picture), dice.integers(4)
    if kind == 0:
        stretch = dice.uniform(0.4, 1)
        x, y = centre.tolist()
        draw.ellipse((x - reach, y - reach * stretch, x + reach, y + reach * stretch), fill=colour)
    elif kind == 1:
        away = dice.normal(0, 2.5 * reach, 2)
        thick = max(2, int(side * dice.uniform(0.008, 0.04)))
        draw.line(_as_pairs(np.stack([centre - away, centre + away])), fill=colour, width=thick)
    else:
        angles = np.sort(dice.uniform(0, 2 * np.pi, 2 + int(kind)))
        rim = centre + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon(_as_pairs(rim), fill=colour)


def _expose(picture: Image.Image, size: tuple[int, int], dice: Generator) -> Image.Image:
    reduced = picture.resize(size, Image.Resampling.BOX)
    if (blur := dice.uniform(-0.5, 1.1)) > 0:
        reduced = reduced.filter(ImageFilter.GaussianBlur(blur))
    width, height = size
    slope = dice.normal(0, 0.25, 2)
    light = dice.uniform(0.75, 1.2) + np.add.outer(
        slope[1] * np.linspace(-0.5, 0.5, height), slope[0] * np.linspace(-0.5, 0.5, width)
    )
    grain = dice.normal(0, dice.uniform(0, 10), (height, width, 1))
    pixels = np.asarray(reduced, float) * (light[..., None] * dice.normal(1, 0.05, 3)) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _as_pairs(points: np.ndarray) -> list[Point]:
    return [(x, y) for x, y in points.tolist()]


def _rotate(turn: float) -> np.ndarray:
    return np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def _bend(points: np.ndarray, closed: bool, steps: int = 7) -> np.ndarray:
    """A Catmull-Rom curve through the points: float64 of shape (samples, 2)."""
    if closed:
        before, after = np.roll(points, 1, axis=0), np.roll(points, -1, axis=0)
        beyond = np.roll(points, -2, axis=0)
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
        before, points, after, beyond = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    before, points, after, beyond = (part[:, None] for part in (before, points, after, beyond))
    curve = (
        2 * points
        + (after - before) * t
        + (2 * before - 5 * points + 4 * after - beyond) * t**2
        + (3 * points - before - 3 * after + beyond) * t**3
    ) / 2
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, after[-1]])
