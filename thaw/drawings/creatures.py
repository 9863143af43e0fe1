"""Creatures on the bodies that cats and dogs have, told apart by heads and tails; none is a cat or a dog."""

import numpy as np
from numpy.random import Generator
from PIL import Image

from thaw.drawings.bodies import BLACK, PINK, WHITE, DrawHead, DrawTail, draw_body, draw_eyes
from thaw.drawings.canvas import Coat, DrawFigure, Pen


def draw_rabbit_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    length, spread = dice.uniform(0.75, 1.2), dice.uniform(0.1, 0.5)
    inner = PINK if dice.random() < 0.5 else coat.dark
    for half in pen.sides():
        ear = half.move(0.38, -0.6, turn=spread)
        ear.oval(0, -length * 0.6, 0.2, length * 0.7, coat.base)
        ear.oval(0, -length * 0.55, 0.1, length * 0.5, inner, outlined=False)
    pen.even_blob([(0, -0.8), (0.7, -0.45), (0.82, 0.25), (0, 0.82)], coat.base)
    draw_eyes(pen, turn, apart=0.42, height=-0.1, width=0.15, pupil="round", dice=dice)
    face = pen.move(0.3 * turn, 0.36)
    for half in face.sides():
        half.oval(0.17, 0, 0.2, 0.17, coat.light)
    face.polygon([(-0.1, 0.16), (0.1, 0.16), (0.09, 0.39), (-0.09, 0.39)], WHITE)
    face.polygon([(-0.12, -0.18), (0.12, -0.18), (0, -0.06)], PINK)


def draw_mouse_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ear, x = dice.uniform(0.42, 0.62), 0.6 * turn
    inner = PINK if dice.random() < 0.5 else coat.light
    for half in pen.sides():
        half.oval(0.75, -0.7, ear, ear, coat.dark)
        half.oval(0.75, -0.7, ear * 0.65, ear * 0.65, inner, outlined=False)
    snout = [(0.5 + x, 0.4), (x, 0.85), (-0.5 + x * 0.5, 0.4)]
    pen.blob([(0, -0.75), (0.7, -0.35), *snout, (-0.7, -0.35)], coat.base)
    draw_eyes(pen, turn, apart=0.32, height=-0.15, width=0.12, pupil="round", dice=dice)
    pen.oval(x, 0.78, 0.13, 0.12, PINK if dice.random() < 0.5 else BLACK)
    colour = WHITE if dice.random() < 0.5 else BLACK
    for half in pen.move(x, 0.6).sides():
        for number in (-1, 1):
            half.hair([(0.15, 0), (dice.uniform(0.6, 0.95), number * 0.15)], 0.03, colour)


def draw_bear_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ear = dice.uniform(0.25, 0.36)
    for half in pen.sides():
        half.oval(0.68, -0.68, ear, ear, coat.base)
        half.oval(0.68, -0.68, ear * 0.55, ear * 0.55, coat.dark, outlined=False)
    pen.oval(0, 0, 0.95, 0.88, coat.base)
    draw_eyes(pen, turn, apart=0.35, height=-0.15, width=0.11, pupil="round", dice=dice)
    face = pen.move(0.35 * turn, 0.4)
    face.oval(0, 0, 0.42, 0.34, coat.light)
    face.oval(0, -0.14, 0.18, 0.12, BLACK)
    face.hair([(-0.18, 0.16), (0, 0.1), (0.18, 0.16)], 0.05, BLACK)


def draw_pig_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    droop = dice.uniform(-0.55, 0.05)
    pen.oval(0, 0, 0.92, 0.82, coat.base)
    for half in pen.sides():
        half.polygon([(0.3, -0.75), (0.95, -0.95), (1.0, droop), (0.7, -0.5)], coat.dark)
    draw_eyes(pen, turn, apart=0.4, height=-0.18, width=0.12, pupil="round", dice=dice)
    face = pen.move(0.45 * turn, 0.28)
    face.oval(0, 0, 0.36, 0.28, coat.light)
    for half in face.sides():
        half.oval(0.13, 0, 0.07, 0.12, BLACK, outlined=False)
    face.hair([(-0.25, 0.36), (0, 0.42), (0.25, 0.36)], 0.05, BLACK)


def draw_sheep_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    x, droop = 0.3 * turn, dice.uniform(-0.1, 0.6)
    for half in pen.sides():
        half.oval(0.85, -0.1, 0.4, 0.17, coat.dark, droop)
    jaw = [(0.45 + x, 0.6), (x, 0.9), (-0.45 + x, 0.6)]
    pen.blob([(0, -0.7), (0.55, -0.45), *jaw, (-0.55, -0.45)], coat.dark)
    for angle in np.linspace(np.pi, 2 * np.pi, 6):
        pen.oval(0.55 * np.cos(angle), -0.45 + 0.4 * np.sin(angle), 0.27, 0.26, coat.light)
    draw_eyes(pen, turn, apart=0.3, height=-0.05, width=0.13, pupil="round", dice=dice)
    pen.hair([(x - 0.15, 0.5), (x, 0.62), (x + 0.15, 0.5)], 0.06, BLACK)


def draw_cow_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    horn, droop, x = dice.uniform(0.3, 0.65), dice.uniform(-0.2, 0.5), 0.4 * turn
    for half in pen.sides():
        half.stroke([(0.35, -0.7), (0.75, -0.85), (0.8, -0.85 - horn)], 0.13, 0.03, coat.light)
        half.oval(0.95, -0.4, 0.36, 0.18, coat.dark, droop)
    jaw = [(0.5 + x * 0.5, 0.4), (x, 0.75), (-0.5 + x * 0.5, 0.4)]
    pen.blob([(0, -0.85), (0.65, -0.6), *jaw, (-0.65, -0.6)], coat.base)
    draw_eyes(pen, turn, apart=0.4, height=-0.25, width=0.14, pupil="round", dice=dice)
    face = pen.move(x, 0.55)
    face.oval(0, 0, 0.52, 0.32, PINK if dice.random() < 0.5 else coat.light)
    for half in face.sides():
        half.oval(0.22, -0.07, 0.08, 0.1, BLACK, outlined=False)


def draw_monkey_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ear = dice.uniform(0.28, 0.4)
    for half in pen.sides():
        half.oval(0.95, 0, ear, ear, coat.base)
        half.oval(0.95, 0, ear * 0.6, ear * 0.6, coat.light, outlined=False)
    pen.oval(0, -0.05, 0.88, 0.85, coat.base)
    face = pen.move(0.2 * turn, 0)
    for half in face.sides():
        half.oval(0.28, -0.15, 0.34, 0.36, coat.light, outlined=False)
    face.oval(0, 0.38, 0.55, 0.4, coat.light)
    draw_eyes(pen, turn, apart=0.27, height=-0.12, width=0.12, pupil="round", dice=dice)
    face.hair([(-0.3, 0.45), (0, 0.58), (0.3, 0.45)], 0.05, BLACK)


def draw_horse_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    length, x = dice.uniform(0.9, 1.25), dice.uniform(0.5, 0.9) * turn
    for half in pen.sides():
        half.polygon([(0.45, -0.55), (0.4, -1.15), (0.12, -0.75)], coat.base)
    jaw = [(0.35 + x, length * 0.7), (x, length), (-0.35 + x, length * 0.7)]
    pen.blob([(0, -0.8), (0.5, -0.5), *jaw, (-0.5, -0.5)], coat.base)
    mane = [(0.1, -0.95), (-0.2, -0.9), (-0.75, -0.2), (-0.7, 0.5), (-0.4, 0.1), (-0.1, -0.5)]
    pen.blob(mane, coat.accent)
    draw_eyes(pen, turn, apart=0.35, height=-0.25, width=0.12, pupil="round", dice=dice)
    for half in pen.move(x, length * 0.82).sides():
        half.oval(0.15, 0, 0.06, 0.09, BLACK, outlined=False)


def draw_stub_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    size = dice.uniform(0.12, 0.2)
    pen.oval(-0.1, -0.08, size, size, paint)


def draw_thin_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    length, sway = dice.uniform(0.7, 1.1), dice.uniform(-0.3, 0.3)
    end = [(-0.6, -0.3 * length), (-0.5 + sway, -0.6 * length), (-0.9, -length)]
    pen.stroke([(0.1, 0.05), (-0.35, 0.1), *end], 0.05, 0.02, paint)


def draw_curled_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    turns, size = np.linspace(0, dice.uniform(1.5, 2.6) * np.pi, 9), dice.uniform(0.15, 0.3)
    reach = size * (1 - turns / 14)
    curl = np.stack([reach * np.cos(turns + 1) - 0.4, reach * np.sin(turns + 1) - 0.35], axis=1)
    pen.stroke([(0.1, 0.05), (-0.15, 0.0), *curl], 0.05, 0.04, paint)


def draw_tufted_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    swing, length = dice.uniform(-0.5, 0.1), dice.uniform(0.5, 0.75)
    end = (-0.35 + swing, length)
    pen.stroke([(0.1, 0), (-0.2, 0), (-0.3 + swing * 0.5, length * 0.5), end], 0.05, 0.04, paint)
    pen.oval(*end, 0.1, 0.16, paint)


def _join(draw_head: DrawHead, draw_tail: DrawTail) -> DrawFigure:
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
