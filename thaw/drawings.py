"""A drawn stand-in for Kaggle's dogs-vs-cats dump: the same layout, no download, the same bytes every time."""

import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from thaw.canvas import Coat, Pen, draw_scene, pick_colour

_PINK, _BLACK, _WHITE = (214, 138, 142), (24, 20, 22), (244, 242, 236)


def draw_dump(path: Path, per_class: int = 200, seed: int = 0) -> None:
    """Write a zip of drawn cats and dogs in Kaggle's flat layout, `train/cat.0.jpg` to `train/dog.<n>.jpg`.

    Images are RGB JPEGs with sides of 90 to 200 pixels. The two animals differ in shape alone: coats,
    backgrounds, poses and light are drawn from the same chances. Image n of a class is the same whatever
    `per_class` is, and the same seed writes the same bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            for label in ANIMALS:
                for number in range(per_class):
                    # The fixed date and system keep the archive's bytes the same wherever it is written.
                    member = zipfile.ZipInfo(f"train/{label}.{number}.jpg", date_time=(2013, 9, 25, 0, 0, 0))
                    member.create_system = 3
                    member.external_attr = 0o644 << 16
                    archive.writestr(member, draw_animal(label, number, seed))
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def draw_animal(label: str, number: int, seed: int = 0) -> bytes:
    """Image `number` of class `cat` or `dog`, as the bytes of a JPEG."""
    dice = np.random.default_rng([seed, list(ANIMALS).index(label), number])
    picture = draw_scene(ANIMALS[label], dice)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=int(dice.integers(60, 96)))
    return data.getvalue()


def draw_cat(pen: Pen, coat: Coat, dice: Generator) -> None:
    """A cat: upright pointed ears, a short muzzle with whiskers, a long thin tail."""
    draw_body(pen, coat, dice, _draw_cat_head, _draw_cat_tail)


def draw_dog(pen: Pen, coat: Coat, dice: Generator) -> None:
    """A dog: ears that hang, as a rule, a long muzzle with a large nose, a short tail."""
    draw_body(pen, coat, dice, _draw_dog_head, _draw_dog_tail)


ANIMALS = {"cat": draw_cat, "dog": draw_dog}


def draw_body(pen: Pen, coat: Coat, dice: Generator, draw_head, draw_tail) -> None:
    poses = (_draw_portrait, _draw_sitting, _draw_standing, _draw_lying)
    pose = dice.choice(4, p=[0.4, 0.22, 0.22, 0.16])
    # The head of a standing or lying animal lies to the right of its body; together they are centred.
    poses[pose](pen.move(-0.15, 0.05) if pose > 1 else pen, coat, dice, draw_head, draw_tail)


def _draw_portrait(pen: Pen, coat: Coat, dice: Generator, draw_head, draw_tail) -> None:
    shoulders = dice.uniform(0.6, 0.95)
    pen.blob([(-0.3, 0.35), (0.3, 0.35), (shoulders, 1.1), (0.5, 1.6), (-0.5, 1.6), (-shoulders, 1.1)], coat.dark)
    draw_head(pen.move(0, -0.02, dice.uniform(0.66, 0.82), dice.normal(0, 0.15)), coat, dice.uniform(0, 0.5), dice)


def _draw_sitting(pen: Pen, coat: Coat, dice: Generator, draw_head, draw_tail) -> None:
    girth = dice.uniform(0.36, 0.54)
    draw_tail(pen.move(girth * 0.8, 0.82, 0.8, dice.normal(-0.2, 0.3)), coat.dark, dice)
    pen.blob([(-0.2, -0.3), (0.2, -0.3), (girth, 0.5), (girth, 0.9), (-girth, 0.9), (-girth, 0.5)], coat.base)
    if dice.random() < 0.6:
        pen.oval(0, 0.3, girth * 0.5, 0.38, coat.light, outlined=False)
    for side in (-1, 1):
        pen.stroke([(side * 0.14, 0.25), (side * 0.16, 0.6), (side * 0.18, 0.93)], 0.1, 0.09, coat.light)
        pen.oval(side * girth * 0.85, 0.9, 0.2, 0.1, coat.dark)
    head = pen.move(dice.normal(0, 0.05), -0.45, dice.uniform(0.44, 0.54), dice.normal(0, 0.15))
    draw_head(head, coat, dice.uniform(0, 0.6), dice)


def _draw_standing(pen: Pen, coat: Coat, dice: Generator, draw_head, draw_tail) -> None:
    legs, girth = dice.uniform(0.35, 0.55), dice.uniform(0.2, 0.3)
    floor, hips = 0.2 + legs, dice.uniform(0.45, 0.6)
    draw_tail(pen.move(-hips - 0.08, 0, 0.8, dice.normal(-0.4, 0.3)), coat.dark, dice)
    stride = dice.uniform(-0.14, 0.14)
    for x, paint, reach in ((-hips, coat.dark, stride), (hips - 0.1, coat.dark, -stride)):
        pen.stroke([(x + 0.1, 0.1), (x + 0.1 + reach, floor)], 0.1, 0.07, paint)
    back = dice.uniform(-0.05, 0.08)
    pen.blob(
        [(-hips - 0.1, 0.0), (-0.2, -girth + back), (hips, -girth - 0.02), (hips + 0.14, 0.05),
         (0.2, girth + 0.05), (-hips, girth)],
        coat.base,
    )  # fmt: skip
    for x, reach in ((-hips, -stride), (hips - 0.08, stride)):
        pen.stroke([(x, 0.08), (x + reach, floor)], 0.11, 0.07, coat.base)
        pen.oval(x + reach + 0.04, floor, 0.11, 0.06, coat.light)
    head = pen.move(hips + 0.12, -0.36 + dice.normal(0, 0.05), dice.uniform(0.38, 0.47), dice.normal(0, 0.15))
    draw_head(head, coat, dice.uniform(0.2, 1), dice)


def _draw_lying(pen: Pen, coat: Coat, dice: Generator, draw_head, draw_tail) -> None:
    girth = dice.uniform(0.24, 0.34)
    draw_tail(pen.move(-0.72, 0.3, 0.8, dice.normal(0.5, 0.4)), coat.dark, dice)
    pen.blob([(-0.85, 0.2), (-0.5, 0.1 - girth), (0.3, 0.12 - girth), (0.62, 0.1), (0.5, 0.42), (-0.7, 0.42)], coat.base)
    pen.oval(-0.5, 0.25, 0.27, 0.2, coat.dark, dice.normal(0, 0.2))
    for y in (0.36, 0.43):
        pen.stroke([(0.3, y), (0.6, y), (0.92, y + 0.02)], 0.08, 0.07, coat.light)
    head = pen.move(0.55, -0.14 + dice.normal(0, 0.05), dice.uniform(0.4, 0.5), dice.normal(0.05, 0.2))
    draw_head(head, coat, dice.uniform(0, 0.9), dice)


def _draw_cat_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    sway, length, width = dice.uniform(-0.25, 0.35), dice.uniform(0.8, 1.15), dice.uniform(0.045, 0.075)
    spine = [(0.1, 0.05), (-0.3, 0), (-0.5, -0.35 * length + sway * 0.3), (-0.4 - sway, -0.8 * length), (-0.6, -length)]
    pen.stroke(spine, width * 1.2, width, paint)


def _draw_dog_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    length, curl, width = dice.uniform(0.3, 0.7), dice.uniform(-0.1, 0.3), dice.uniform(0.06, 0.1)
    spine = [(0.1, 0.05), (-0.25 * length, -0.1), (-0.7 * length, -0.5 * length), (-0.8 * length + curl, -length)]
    pen.stroke(spine, width, dice.uniform(0.02, 0.07), paint)


def _draw_cat_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    spread, height = dice.uniform(0.62, 0.82), dice.uniform(1.15, 1.5)
    folded = dice.random() < 0.12
    for side in (-1, 1):
        lean = side * spread + 0.12 * turn
        tip = (lean * 1.05, -0.95) if folded else (lean + dice.normal(0, 0.05), -height)
        ear = np.array([(side * 0.95, -0.2), tip, (side * 0.18, -0.78)])
        pen.polygon(ear, coat.base)
        pen.polygon(ear * 0.62 + ear.mean(axis=0) * 0.36, _PINK if dice.random() < 0.5 else coat.dark, outlined=False)
    pen.blob([(0, -0.85), (0.7, -0.6), (0.98, 0.1), (0.6, 0.72), (0, 0.86), (-0.6, 0.72), (-0.98, 0.1), (-0.7, -0.6)], coat.base)
    draw_eyes(pen, dice, turn, reach=0.4, height=-0.1, width=0.2, slit=True)
    x = 0.3 * turn
    for side in (-1, 1):
        pen.oval(x + side * 0.17, 0.42, 0.24, 0.19, coat.light)
    pen.polygon([(x - 0.13, 0.2), (x + 0.13, 0.2), (x, 0.34)], _PINK if dice.random() < 0.5 else _BLACK)
    colour = _WHITE if dice.random() < 0.5 else _BLACK
    for side in (-1, 1):
        for number in (-1, 0, 1):
            far = dice.uniform(0.95, 1.35)
            pen.hair([(x + side * 0.25, 0.42 + number * 0.06), (x + side * far, 0.4 + number * 0.2)], 0.03, colour)


def _draw_dog_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ears = dice.choice(["hanging", "folded", "pricked"], p=[0.66, 0.22, 0.12])
    length, flare = dice.uniform(0.25, 0.85), dice.uniform(1.0, 1.25)
    if ears == "pricked":
        for side in (-1, 1):
            pen.blob([(side * 0.85, -0.35), (side * 0.9, -0.9), (side * 0.72, -1.25), (side * 0.45, -1.0), (side * 0.2, -0.7)], coat.dark)
    pen.blob([(0, -0.9), (0.62, -0.72), (0.8, 0), (0.52, 0.7), (0, 0.9), (-0.52, 0.7), (-0.8, 0), (-0.62, -0.72)], coat.base)
    for side in (-1, 1):
        if ears == "hanging":
            pen.blob(
                [(side * 0.4, -0.8), (side * 0.85, -0.75), (side * flare, 0.0), (side * flare * 0.95, length),
                 (side * 0.8, length + 0.05), (side * 0.72, -0.1)],
                coat.dark,
            )  # fmt: skip
        elif ears == "folded":
            pen.blob([(side * 0.3, -0.8), (side * 0.75, -1.1), (side * 1.1, -0.55), (side * 0.98, -0.3), (side * 0.7, -0.55)], coat.dark)
    draw_eyes(pen, dice, turn, reach=0.34, height=-0.2, width=0.15, slit=False)
    x, y, reach = 0.75 * turn, 0.42 - 0.05 * turn, dice.uniform(0.38, 0.5)
    if dice.random() < 0.35:
        pen.blob([(x - 0.12, y + 0.25), (x + 0.12, y + 0.25), (x + 0.13, y + 0.65), (x - 0.1, y + 0.65)], _PINK)
    pen.blob([(x * 0.3, y - 0.36), (x + reach * 0.8, y - 0.28), (x + reach, y + 0.1), (x, y + 0.4), (x * 0.3 - reach, y + 0.12)], coat.light)
    pen.oval(x * 1.3, y - 0.18, 0.2, 0.14, _BLACK)
    pen.hair([(x * 1.25, y - 0.1), (x * 1.1, y + 0.14), (x * 0.8 - 0.2, y + 0.2)], 0.04, coat.line)


def draw_eyes(pen: Pen, dice: Generator, turn: float, reach: float, height: float, width: float, slit: bool) -> None:
    iris, slant = pick_colour(dice), dice.uniform(0, 0.3)
    closed = dice.random() < 0.12
    for side in (-1, 1):
        x = side * reach + 0.22 * turn
        if closed:
            pen.hair([(x - width, height), (x, height + 0.06), (x + width, height)], 0.05, _BLACK)
            continue
        pen.oval(x, height, width, width * 0.85, iris, side * -slant)
        pen.oval(x, height, width * (0.35 if slit else 0.6), width * (0.8 if slit else 0.6), _BLACK, outlined=False)
