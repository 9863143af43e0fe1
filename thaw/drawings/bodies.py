"""What drawn four-legged animals have in common: poses, bodies and eyes. Heads and tails tell them apart."""

from collections.abc import Callable
from typing import Literal

from numpy.random import Generator
from PIL import Image

from thaw.drawings.canvas import Coat, Pen, pick_colour

DrawHead = Callable[[Pen, Coat, float, Generator], None]
DrawTail = Callable[[Pen, Image.Image, Generator], None]

PINK, BLACK, WHITE = (214, 138, 142), (24, 20, 22), (244, 242, 236)


def draw_body(pen: Pen, coat: Coat, dice: Generator, draw_head: DrawHead, draw_tail: DrawTail) -> None:
    """A four-legged animal in one of four poses, with the head and the tail given."""
    poses = (_draw_portrait, _draw_sitting, _draw_standing, _draw_lying)
    pose = dice.choice(4, p=[0.4, 0.22, 0.22, 0.16])
    # The head of a standing or lying animal is to the right of its body; together they are centred.
    poses[pose](pen.move(-0.15, 0.05) if pose > 1 else pen, coat, dice, draw_head, draw_tail)


def draw_eyes(
    pen: Pen,
    turn: float,
    apart: float,
    height: float,
    width: float,
    pupil: Literal["slit", "round"],
    dice: Generator,
) -> None:
    """Two eyes at the height given, `apart` from the middle; `turn` is 0 for a face from the front, 1 from the side."""
    iris, slant = pick_colour(dice), dice.uniform(0, 0.3)
    closed = dice.random() < 0.12
    across, along = (0.35, 0.8) if pupil == "slit" else (0.6, 0.6)
    for half in pen.move(0.22 * turn, height).sides():
        if closed:
            half.hair([(apart - width, 0), (apart, 0.06), (apart + width, 0)], 0.05, BLACK)
        else:
            half.oval(apart, 0, width, width * 0.85, iris, -slant)
            half.oval(apart, 0, width * across, width * along, BLACK, outlined=False)


def _draw_portrait(pen: Pen, coat: Coat, dice: Generator, draw_head: DrawHead, draw_tail: DrawTail) -> None:
    shoulders = dice.uniform(0.6, 0.95)
    pen.even_blob([(0.3, 0.35), (shoulders, 1.1), (0.5, 1.6)], coat.dark)
    head = pen.move(0, -0.02, dice.uniform(0.66, 0.82), dice.normal(0, 0.15))
    draw_head(head, coat, dice.uniform(0, 0.5), dice)


def _draw_sitting(pen: Pen, coat: Coat, dice: Generator, draw_head: DrawHead, draw_tail: DrawTail) -> None:
    girth = dice.uniform(0.36, 0.54)
    draw_tail(pen.move(girth * 0.8, 0.82, 0.8, dice.normal(-0.2, 0.3)), coat.dark, dice)
    pen.even_blob([(0.2, -0.3), (girth, 0.5), (girth, 0.9)], coat.base)
    if dice.random() < 0.6:
        pen.oval(0, 0.3, girth * 0.5, 0.38, coat.light, outlined=False)
    for half in pen.sides():
        half.stroke([(0.14, 0.25), (0.16, 0.6), (0.18, 0.93)], 0.1, 0.09, coat.light)
        half.oval(girth * 0.85, 0.9, 0.2, 0.1, coat.dark)
    head = pen.move(dice.normal(0, 0.05), -0.45, dice.uniform(0.44, 0.54), dice.normal(0, 0.15))
    draw_head(head, coat, dice.uniform(0, 0.6), dice)


def _draw_standing(pen: Pen, coat: Coat, dice: Generator, draw_head: DrawHead, draw_tail: DrawTail) -> None:
    hips, girth, floor = dice.uniform(0.45, 0.6), dice.uniform(0.2, 0.3), dice.uniform(0.55, 0.75)
    stride, back = dice.uniform(-0.14, 0.14), dice.uniform(-0.25, -0.12)
    draw_tail(pen.move(-hips - 0.08, 0, 0.8, dice.normal(-0.4, 0.3)), coat.dark, dice)
    for x, step in ((0.1 - hips, stride), (hips, -stride)):
        pen.stroke([(x, 0.1), (x + step, floor)], 0.1, 0.07, coat.dark)
    upper = [(-hips - 0.1, 0.0), (-0.2, back - 0.05), (hips, -girth - 0.02), (hips + 0.14, 0.05)]
    pen.blob([*upper, (0.2, girth + 0.05), (-hips, girth)], coat.base)
    for x, step in ((-hips, -stride), (hips - 0.08, stride)):
        pen.stroke([(x, 0.08), (x + step, floor)], 0.11, 0.07, coat.base)
        pen.oval(x + step + 0.04, floor, 0.11, 0.06, coat.light)
    head = pen.move(hips + 0.12, dice.normal(-0.36, 0.05), dice.uniform(0.38, 0.47), dice.normal(0, 0.15))
    draw_head(head, coat, dice.uniform(0.2, 1), dice)


def _draw_lying(pen: Pen, coat: Coat, dice: Generator, draw_head: DrawHead, draw_tail: DrawTail) -> None:
    back = dice.uniform(-0.24, -0.14)
    draw_tail(pen.move(-0.72, 0.3, 0.8, dice.normal(0.5, 0.4)), coat.dark, dice)
    upper = [(-0.85, 0.2), (-0.5, back), (0.3, back + 0.02), (0.62, 0.1)]
    pen.blob([*upper, (0.5, 0.42), (-0.7, 0.42)], coat.base)
    pen.oval(-0.5, 0.25, 0.27, 0.2, coat.dark, dice.normal(0, 0.2))
    for y in (0.36, 0.43):
        pen.stroke([(0.3, y), (0.6, y), (0.92, y + 0.02)], 0.08, 0.07, coat.light)
    head = pen.move(0.55, dice.normal(-0.14, 0.05), dice.uniform(0.4, 0.5), dice.normal(0.05, 0.2))
    draw_head(head, coat, dice.uniform(0, 0.9), dice)
