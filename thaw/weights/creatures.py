"""Creatures on the bodies that cats and dogs have, told apart by heads and tails; none is a cat or a dog."""

import numpy as np
from numpy.random import Generator
from PIL import Image

from thaw.canvas import Coat, DrawFigure, Pen
from thaw.drawings import draw_body, draw_eyes

_PINK, _BLACK, _WHITE = (214, 138, 142), (24, 20, 22), (244, 242, 236)


def draw_rabbit_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    length, spread = dice.uniform(0.75, 1.2), dice.uniform(0.1, 0.5)
    for side in (-1, 1):
        ear = pen.move(side * 0.38, -0.6, turn=side * spread)
        ear.oval(0, -length * 0.6, 0.2, length * 0.7, coat.base)
        ear.oval(0, -length * 0.55, 0.1, length * 0.5, _PINK if dice.random() < 0.5 else coat.dark, outlined=False)
    pen.blob([(0, -0.8), (0.7, -0.45), (0.82, 0.25), (0, 0.82), (-0.82, 0.25), (-0.7, -0.45)], coat.base)
    draw_eyes(pen, dice, turn, reach=0.42, height=-0.1, width=0.15, slit=False)
    x = 0.3 * turn
    for side in (-1, 1):
        pen.oval(x + side * 0.17, 0.36, 0.2, 0.17, coat.light)
    pen.polygon([(x - 0.1, 0.52), (x + 0.1, 0.52), (x + 0.09, 0.75), (x - 0.09, 0.75)], _WHITE)
    pen.polygon([(x - 0.12, 0.18), (x + 0.12, 0.18), (x, 0.3)], _PINK)


def draw_mouse_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ear = dice.uniform(0.42, 0.62)
    for side in (-1, 1):
        pen.oval(side * 0.75, -0.7, ear, ear, coat.dark)
        pen.oval(side * 0.75, -0.7, ear * 0.65, ear * 0.65, _PINK if dice.random() < 0.5 else coat.light, outlined=False)
    x = 0.6 * turn
    pen.blob([(0, -0.75), (0.7, -0.35), (0.5 + x, 0.4), (x, 0.85), (-0.5 + x * 0.5, 0.4), (-0.7, -0.35)], coat.base)
    draw_eyes(pen, dice, turn, reach=0.32, height=-0.15, width=0.12, slit=False)
    pen.oval(x, 0.78, 0.13, 0.12, _PINK if dice.random() < 0.5 else _BLACK)
    colour = _WHITE if dice.random() < 0.5 else _BLACK
    for side in (-1, 1):
        for number in (-1, 1):
            pen.hair([(x + side * 0.15, 0.6), (x + side * dice.uniform(0.6, 0.95), 0.6 + number * 0.15)], 0.03, colour)


def draw_bear_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ear, x = dice.uniform(0.25, 0.36), 0.35 * turn
    for side in (-1, 1):
        pen.oval(side * 0.68, -0.68, ear, ear, coat.base)
        pen.oval(side * 0.68, -0.68, ear * 0.55, ear * 0.55, coat.dark, outlined=False)
    pen.oval(0, 0, 0.95, 0.88, coat.base)
    draw_eyes(pen, dice, turn, reach=0.35, height=-0.15, width=0.11, slit=False)
    pen.oval(x, 0.4, 0.42, 0.34, coat.light)
    pen.oval(x, 0.26, 0.18, 0.12, _BLACK)
    pen.hair([(x - 0.18, 0.56), (x, 0.5), (x + 0.18, 0.56)], 0.05, _BLACK)


def draw_pig_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    droop, x = dice.uniform(-0.9, -0.3), 0.45 * turn
    pen.oval(0, 0, 0.92, 0.82, coat.base)
    for side in (-1, 1):
        pen.polygon([(side * 0.3, -0.75), (side * 0.95, -0.95), (side * 1.0, droop + 0.35), (side * 0.7, -0.5)], coat.dark)
    draw_eyes(pen, dice, turn, reach=0.4, height=-0.18, width=0.12, slit=False)
    pen.oval(x, 0.28, 0.36, 0.28, coat.light)
    for side in (-1, 1):
        pen.oval(x + side * 0.13, 0.28, 0.07, 0.12, _BLACK, outlined=False)
    pen.hair([(x - 0.25, 0.64), (x, 0.7), (x + 0.25, 0.64)], 0.05, _BLACK)


def draw_sheep_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    x = 0.3 * turn
    for side in (-1, 1):
        pen.oval(side * 0.85, -0.1, 0.4, 0.17, coat.dark, side * dice.uniform(-0.1, 0.6))
    pen.blob([(0, -0.7), (0.55, -0.45), (0.45 + x, 0.6), (x, 0.9), (-0.45 + x, 0.6), (-0.55, -0.45)], coat.dark)
    for angle in np.linspace(np.pi, 2 * np.pi, 6):
        pen.oval(0.55 * np.cos(angle), -0.45 + 0.4 * np.sin(angle), 0.27, 0.26, coat.light)
    draw_eyes(pen, dice, turn, reach=0.3, height=-0.05, width=0.13, slit=False)
    pen.hair([(x - 0.15, 0.5), (x, 0.62), (x + 0.15, 0.5)], 0.06, _BLACK)


def draw_cow_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    horn, x = dice.uniform(0.3, 0.65), 0.4 * turn
    for side in (-1, 1):
        pen.stroke([(side * 0.35, -0.7), (side * 0.75, -0.85), (side * 0.8, -0.85 - horn)], 0.13, 0.03, coat.light)
        pen.oval(side * 0.95, -0.4, 0.36, 0.18, coat.dark, side * dice.uniform(-0.2, 0.5))
    pen.blob([(0, -0.85), (0.65, -0.6), (0.5 + x * 0.5, 0.4), (x, 0.75), (-0.5 + x * 0.5, 0.4), (-0.65, -0.6)], coat.base)
    draw_eyes(pen, dice, turn, reach=0.4, height=-0.25, width=0.14, slit=False)
    pen.oval(x, 0.55, 0.52, 0.32, _PINK if dice.random() < 0.5 else coat.light)
    for side in (-1, 1):
        pen.oval(x + side * 0.22, 0.48, 0.08, 0.1, _BLACK, outlined=False)


def draw_monkey_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ear, x = dice.uniform(0.28, 0.4), 0.2 * turn
    for side in (-1, 1):
        pen.oval(side * 0.95, 0, ear, ear, coat.base)
        pen.oval(side * 0.95, 0, ear * 0.6, ear * 0.6, coat.light, outlined=False)
    pen.oval(0, -0.05, 0.88, 0.85, coat.base)
    for side in (-1, 1):
        pen.oval(x + side * 0.28, -0.15, 0.34, 0.36, coat.light, outlined=False)
    pen.oval(x, 0.38, 0.55, 0.4, coat.light)
    draw_eyes(pen, dice, turn, reach=0.27, height=-0.12, width=0.12, slit=False)
    pen.hair([(x - 0.3, 0.45), (x, 0.58), (x + 0.3, 0.45)], 0.05, _BLACK)


def draw_horse_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    length, x = dice.uniform(0.9, 1.25), dice.uniform(0.5, 0.9) * turn
    for side in (-1, 1):
        pen.polygon([(side * 0.45, -0.55), (side * 0.4, -1.15), (side * 0.12, -0.75)], coat.base)
    pen.blob([(0, -0.8), (0.5, -0.5), (0.35 + x, length * 0.7), (x, length), (-0.35 + x, length * 0.7), (-0.5, -0.5)], coat.base)
    pen.blob([(0.1, -0.95), (-0.2, -0.9), (-0.75, -0.2), (-0.7, 0.5), (-0.4, 0.1), (-0.1, -0.5)], coat.accent)
    draw_eyes(pen, dice, turn, reach=0.35, height=-0.25, width=0.12, slit=False)
    for side in (-1, 1):
        pen.oval(x + side * 0.15, length * 0.82, 0.06, 0.09, _BLACK, outlined=False)


def draw_stub_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    size = dice.uniform(0.12, 0.2)
    pen.oval(-0.1, -0.08, size, size, paint)


def draw_thin_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    length, sway = dice.uniform(0.7, 1.1), dice.uniform(-0.3, 0.3)
    pen.stroke([(0.1, 0.05), (-0.35, 0.1), (-0.6, -0.3 * length), (-0.5 + sway, -0.6 * length), (-0.9, -length)], 0.05, 0.02, paint)


def draw_curled_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    turns, size = np.linspace(0, dice.uniform(1.5, 2.6) * np.pi, 9), dice.uniform(0.15, 0.3)
    reach = size * (1 - turns / 14)
    curl = [(-0.4 + r * np.cos(a), -0.35 + r * np.sin(a)) for a, r in zip(turns + 1, reach, strict=True)]
    pen.stroke([(0.1, 0.05), (-0.15, 0.0), *curl], 0.05, 0.04, paint)


def draw_tufted_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    swing, length = dice.uniform(-0.5, 0.1), dice.uniform(0.5, 0.75)
    pen.stroke([(0.1, 0), (-0.2, 0), (-0.3 + swing * 0.5, length * 0.5), (-0.35 + swing, length)], 0.05, 0.04, paint)
    pen.oval(-0.35 + swing, length, 0.1, 0.16, paint)


def _join(draw_head, draw_tail) -> DrawFigure:
    return lambda pen, coat, dice: draw_body(pen, coat, dice, draw_head, draw_tail)


CREATURES: dict[str, DrawFigure] = {
    "rabbit": _join(draw_rabbit_head, draw_stub_tail),
    "mouse": _join(draw_mouse_head, draw_thin_tail),
    "bear": _join(draw_bear_head, draw_stub_tail),
    "pig": _join(draw_pig_head, draw_curled_tail),
    "sheep": _join(draw_sheep_head, draw_stub_tail),
    "cow": _join(draw_cow_head, draw_tufted_tail),
    "monkey": _join(draw_monkey_head, draw_curled_tail),
    "horse": _join(draw_horse_head, draw_tufted_tail),
}
