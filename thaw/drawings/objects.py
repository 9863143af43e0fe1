"""What VGG16-mini is pretrained on: drawn things and creatures, none of them a cat or a dog.

Each is drawn with a pen in a frame of -1..1 over the same backgrounds, in the same coats and poses as the
animals of `thaw.drawings.pets`, so that what tells them apart is shape.
"""

import numpy as np
from numpy.random import Generator

from thaw.drawings.bodies import BLACK, WHITE
from thaw.drawings.canvas import Coat, DrawFigure, Pen
from thaw.drawings.creatures import CREATURES


def draw_fish(pen: Pen, coat: Coat, dice: Generator) -> None:
    girth, fin = dice.uniform(0.3, 0.55), dice.uniform(0.3, 0.6)
    pen.polygon([(-0.5, 0), (-1.05, -fin), (-0.9, 0), (-1.05, fin)], coat.dark)
    pen.blob([(-0.2, -girth * 0.7), (0.1, -girth - 0.35), (0.4, -girth * 0.6)], coat.dark)
    pen.blob([(-0.65, 0), (0, -girth), (0.7, -0.15), (0.85, 0.05), (0.6, 0.2), (0, girth)], coat.base)
    pen.polygon([(0.1, 0.05), (-0.25, 0.3), (-0.2, -0.05)], coat.light)
    _draw_eye(pen, 0.55, -0.1, 0.09)


def draw_bird(pen: Pen, coat: Coat, dice: Generator) -> None:
    lift = dice.uniform(-0.9, 0.3)
    pen.polygon([(-0.4, 0.1), (-1.05, dice.uniform(-0.2, 0.2)), (-0.95, 0.35)], coat.dark)
    for x in (-0.05, 0.15):
        pen.hair([(x, 0.4), (x + 0.05, 0.9), (x + 0.2, 0.92)], 0.06, coat.line)
    pen.blob([(-0.6, 0.15), (-0.1, -0.35), (0.4, -0.3), (0.5, 0.15), (0.1, 0.5)], coat.base)
    pen.oval(0.5, -0.4, 0.3, 0.28, coat.base)
    pen.polygon([(0.74, -0.5), (1.1, -0.36), (0.74, -0.28)], coat.accent)
    pen.blob([(0.2, -0.05), (-0.2, -0.2), (-0.65, lift), (-0.25, 0.2)], coat.dark)
    _draw_eye(pen, 0.58, -0.46, 0.07)


def draw_butterfly(pen: Pen, coat: Coat, dice: Generator) -> None:
    span, tip = dice.uniform(0.75, 1.05), dice.uniform(0.5, 0.95)
    for half in pen.sides():
        half.blob([(0, -0.05), (0.4, -tip), (span, -tip * 0.8), (0.75, -0.05)], coat.base)
        half.blob([(0, 0.05), (0.75, 0.1), (span * 0.75, 0.75), (0.25, 0.7)], coat.dark)
        half.oval(0.55, -0.45, 0.16, 0.16, coat.light)
        half.hair([(0, -0.5), (0.1, -0.8), (0.3, -1)], 0.03, coat.line)
    pen.oval(0, 0, 0.09, 0.55, coat.accent)


def draw_snail(pen: Pen, coat: Coat, dice: Generator) -> None:
    size = dice.uniform(0.45, 0.62)
    pen.stroke([(-0.95, 0.7), (0, 0.68), (0.6, 0.62), (0.85, 0.1)], 0.08, 0.16, coat.light)
    for x in (0.75, 0.98):
        pen.hair([(x, 0.05), (x + 0.08, -0.35)], 0.05, coat.line)
    pen.oval(-0.15, 0.15, size, size, coat.base)
    turns = np.linspace(0, 4.5 * np.pi, 22)
    reach = size * (0.9 - turns / turns[-1] * 0.85)
    spiral = np.stack([reach * np.cos(turns) - 0.15, reach * np.sin(turns) + 0.15], axis=1)
    pen.hair(spiral, 0.05, coat.line)


def draw_turtle(pen: Pen, coat: Coat, dice: Generator) -> None:
    dome, step = dice.uniform(0.5, 0.8), dice.uniform(-0.1, 0.1)
    for x in (-0.5, 0.4):
        pen.stroke([(x, 0.2), (x + step, 0.62)], 0.14, 0.12, coat.light)
    pen.stroke([(0.5, 0.2), (0.8, 0.1), (0.95, -0.1)], 0.12, 0.17, coat.light)
    pen.blob([(-0.8, 0.3), (-0.6, -0.1), (0, -dome), (0.6, -0.1), (0.75, 0.3), (0, 0.38)], coat.base)
    pen.polygon([(-0.25, -0.1), (0, -0.35), (0.25, -0.1), (0.15, 0.15), (-0.15, 0.15)], coat.dark)
    _draw_eye(pen, 1.0, -0.15, 0.06)


def draw_owl(pen: Pen, coat: Coat, dice: Generator) -> None:
    tuft, eye = dice.uniform(0.0, 0.3), dice.uniform(0.2, 0.3)
    pen.even_blob([(0.5, -0.8), (0.65, 0.2), (0.35, 0.95)], coat.base)
    for half in pen.sides():
        half.polygon([(0.62, -0.6), (0.55, -0.95 - tuft), (0.15, -0.8)], coat.dark)
        half.blob([(0.55, -0.2), (0.8, 0.3), (0.5, 0.8), (0.4, 0.3)], coat.dark)
        half.oval(0.27, -0.45, eye, eye, coat.light)
        half.oval(0.27, -0.45, eye * 0.5, eye * 0.5, BLACK)
    pen.polygon([(-0.1, -0.32), (0.1, -0.32), (0, -0.08)], coat.accent)
    pen.oval(0, 0.35, 0.32, 0.4, coat.light, outlined=False)


def draw_frog(pen: Pen, coat: Coat, dice: Generator) -> None:
    width, smile = dice.uniform(0.6, 0.8), dice.uniform(0.02, 0.2)
    for half in pen.sides():
        half.blob([(0.4, 0.3), (1.0, 0.35), (0.75, 0.75), (1.05, 0.9), (0.4, 0.9)], coat.dark)
        half.oval(0.42, -0.55, 0.24, 0.24, coat.base)
    pen.even_blob([(0, -0.45), (width, -0.15), (0.55, 0.75), (0, 0.9)], coat.base)
    pen.oval(0, 0.5, 0.35, 0.3, coat.light, outlined=False)
    for half in pen.sides():
        _draw_eye(half, 0.42, -0.58, 0.13)
    pen.hair([(-width * 0.7, 0), (0, smile), (width * 0.7, 0)], 0.05, coat.line)


def draw_elephant(pen: Pen, coat: Coat, dice: Generator) -> None:
    swing, ear = dice.uniform(-0.2, 0.5), dice.uniform(0.28, 0.42)
    pen.stroke([(-0.7, 0), (-0.95, 0.15), (-0.98, 0.45)], 0.04, 0.03, coat.dark)
    for x in (-0.5, -0.25, 0.15, 0.35):
        pen.stroke([(x, 0.2), (x, 0.85)], 0.14, 0.13, coat.dark)
    pen.blob([(-0.75, 0.1), (-0.4, -0.5), (0.3, -0.45), (0.45, 0.2), (-0.1, 0.45), (-0.6, 0.4)], coat.base)
    trunk = [(0.6, -0.2), (0.85, 0.2), (0.8 + swing * 0.4, 0.6), (0.85 + swing, 0.5 + 0.2 * swing)]
    pen.stroke(trunk, 0.2, 0.06, coat.base)
    pen.oval(0.52, -0.35, 0.33, 0.33, coat.base)
    pen.oval(0.3, -0.3, ear * 0.8, ear * 1.2, coat.light)
    _draw_eye(pen, 0.68, -0.42, 0.05)


def draw_flower(pen: Pen, coat: Coat, dice: Generator) -> None:
    petals, length = int(dice.integers(5, 9)), dice.uniform(0.22, 0.34)
    pen.stroke([(0, -0.3), (dice.normal(0, 0.1), 0.4), (0, 1.0)], 0.05, 0.05, coat.dark)
    pen.blob([(0, 0.7), (0.3, 0.4), (0.6, 0.35), (0.35, 0.65)], coat.dark)
    for angle in np.arange(petals) * 2 * np.pi / petals + dice.random():
        pen.oval(0.38 * np.cos(angle), -0.4 + 0.38 * np.sin(angle), length, 0.15, coat.base, angle)
    pen.oval(0, -0.4, 0.2, 0.2, coat.accent)


def draw_house(pen: Pen, coat: Coat, dice: Generator) -> None:
    width, eaves, ridge = dice.uniform(0.5, 0.8), dice.uniform(-0.2, 0.1), dice.uniform(-0.9, -0.6)
    pen.polygon([(-width, eaves), (width, eaves), (width, 0.85), (-width, 0.85)], coat.base)
    pen.polygon([(0.25, -0.8), (0.42, -0.8), (0.42, eaves), (0.25, eaves)], coat.dark)
    pen.polygon([(-width - 0.15, eaves), (0, ridge), (width + 0.15, eaves)], coat.dark)
    door = dice.uniform(-0.3, 0.1)
    pen.polygon([(door, 0.35), (door + 0.25, 0.35), (door + 0.25, 0.85), (door, 0.85)], coat.accent)
    pen.polygon([(0.2, 0.25), (0.42, 0.25), (0.42, 0.5), (0.2, 0.5)], coat.light)


def draw_car(pen: Pen, coat: Coat, dice: Generator) -> None:
    roof, nose = dice.uniform(-0.55, -0.35), dice.uniform(0.35, 0.6)
    pen.polygon([(-0.6, 0), (-0.4, roof), (0.25, roof), (nose, 0)], coat.light)
    pen.polygon([(-0.05, 0), (-0.05, roof), (0.02, roof), (0.02, 0)], coat.dark, outlined=False)
    pen.blob([(-0.98, 0.35), (-0.92, 0.02), (0, -0.03), (0.9, 0.08), (1.0, 0.38), (0, 0.42)], coat.base)
    for x in (-0.52, 0.52):
        pen.oval(x, 0.42, 0.22, 0.22, BLACK)
        pen.oval(x, 0.42, 0.1, 0.1, coat.light)


def draw_star(pen: Pen, coat: Coat, dice: Generator) -> None:
    rays, depth = int(dice.integers(5, 8)), dice.uniform(0.38, 0.6)
    angles = np.arange(2 * rays) * np.pi / rays - np.pi / 2
    reach = np.where(np.arange(2 * rays) % 2, depth, 1) * 0.95
    rim = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
    pen.polygon(rim, coat.base)
    pen.polygon(rim * 0.6, coat.light, outlined=False)


def _draw_eye(pen: Pen, x: float, y: float, reach: float) -> None:
    pen.oval(x, y, reach, reach, WHITE)
    pen.oval(x, y, reach * 0.5, reach * 0.5, BLACK, outlined=False)


OBJECTS: dict[str, DrawFigure] = {
    "fish": draw_fish, "bird": draw_bird, "butterfly": draw_butterfly, "snail": draw_snail,
    "turtle": draw_turtle, "owl": draw_owl, "frog": draw_frog, "elephant": draw_elephant,
    "flower": draw_flower, "house": draw_house, "car": draw_car, "star": draw_star,
    **CREATURES,
}  # fmt: skip
