"""A drawn stand-in for Kaggle's dogs-vs-cats dump: the same layout, no download, always the same bytes."""

import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from thaw.drawings.bodies import BLACK, PINK, WHITE, draw_body, draw_eyes
from thaw.drawings.canvas import Coat, DrawFigure, Pen, draw_scene


def draw_dump(path: Path, per_class: int = 200, seed: int = 0) -> None:
    """Write a zip of drawn cats and dogs in Kaggle's flat layout, `train/cat.0.jpg` to `train/dog.<n>.jpg`.

    Images are RGB JPEGs with sides of 90 to 200 pixels. The two animals differ in shape alone: coats,
    backgrounds, poses and light are drawn from the same chances. Image n of a class is the same whatever
    `per_class` is, and the same seed writes the same bytes with the same releases of NumPy and Pillow.
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
    """A cat: pointed upright ears, as a rule, a short muzzle with whiskers, a long thin tail."""
    draw_body(pen, coat, dice, _draw_cat_head, _draw_cat_tail)


def draw_dog(pen: Pen, coat: Coat, dice: Generator) -> None:
    """A dog: ears that hang, as a rule, a long muzzle with a large nose, a short tail."""
    draw_body(pen, coat, dice, _draw_dog_head, _draw_dog_tail)


ANIMALS: dict[str, DrawFigure] = {"cat": draw_cat, "dog": draw_dog}


def _draw_cat_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    spread, height = dice.uniform(0.62, 0.82), dice.uniform(1.15, 1.5)
    tip = (spread, -0.95) if dice.random() < 0.12 else (spread, -height)
    inner = PINK if dice.random() < 0.5 else coat.dark
    for half in pen.sides():
        ear = np.array([(0.95, -0.2), tip, (0.18, -0.78)]) + [(0, 0), dice.normal(0, 0.05, 2), (0, 0)]
        half.polygon(ear, coat.base)
        half.polygon(ear * 0.62 + ear.mean(axis=0) * 0.36, inner, outlined=False)
    pen.even_blob([(0, -0.85), (0.7, -0.6), (0.98, 0.1), (0.6, 0.72), (0, 0.86)], coat.base)
    draw_eyes(pen, turn, apart=0.4, height=-0.1, width=0.2, pupil="slit", dice=dice)
    face = pen.move(0.3 * turn, 0.42)
    for half in face.sides():
        half.oval(0.17, 0, 0.24, 0.19, coat.light)
    face.polygon([(-0.13, -0.22), (0.13, -0.22), (0, -0.08)], PINK if dice.random() < 0.5 else BLACK)
    colour = WHITE if dice.random() < 0.5 else BLACK
    for half in face.sides():
        for number in (-1, 0, 1):
            half.hair([(0.25, number * 0.06), (dice.uniform(0.95, 1.35), number * 0.2 - 0.02)], 0.03, colour)


def _draw_cat_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    sway, length, width = dice.uniform(-0.25, 0.35), dice.uniform(0.8, 1.15), dice.uniform(0.045, 0.075)
    end = [(-0.5, -0.35 * length + sway * 0.3), (-0.4 - sway, -0.8 * length), (-0.6, -length)]
    pen.stroke([(0.1, 0.05), (-0.3, 0), *end], width * 1.2, width, paint)


def _draw_dog_head(pen: Pen, coat: Coat, turn: float, dice: Generator) -> None:
    ears = dice.choice(["hanging", "folded", "pricked"], p=[0.66, 0.22, 0.12])
    length, flare = dice.uniform(0.25, 0.85), dice.uniform(1.0, 1.25)
    outlines = {
        "hanging": [
            (0.4, -0.8),
            (0.85, -0.75),
            (flare, 0),
            (flare * 0.95, length),
            (0.8, length),
            (0.72, -0.1),
        ],
        "folded": [(0.3, -0.8), (0.75, -1.1), (1.1, -0.55), (0.98, -0.3), (0.7, -0.55)],
        "pricked": [(0.85, -0.35), (0.9, -0.9), (0.72, -1.25), (0.45, -1.0), (0.2, -0.7)],
    }
    skull = [(0, -0.9), (0.62, -0.72), (0.8, 0), (0.52, 0.7), (0, 0.9)]
    if ears != "pricked":
        pen.even_blob(skull, coat.base)
    for half in pen.sides():
        half.blob(outlines[ears], coat.dark)
    if ears == "pricked":
        pen.even_blob(skull, coat.base)
    draw_eyes(pen, turn, apart=0.34, height=-0.2, width=0.15, pupil="round", dice=dice)
    x, reach = 0.75 * turn, dice.uniform(0.38, 0.5)
    face = pen.move(0, 0.42 - 0.05 * turn)
    if dice.random() < 0.35:
        face.move(x, 0.45).even_blob([(0.12, -0.2), (0.12, 0.2)], PINK)
    upper = [(x * 0.3, -0.36), (x + reach * 0.8, -0.28), (x + reach, 0.1)]
    face.blob([*upper, (x, 0.4), (x * 0.3 - reach, 0.12)], coat.light)
    face.oval(x * 1.3, -0.18, 0.2, 0.14, BLACK)
    face.hair([(x * 1.25, -0.1), (x * 1.1, 0.14), (x * 0.8 - 0.2, 0.2)], 0.04, coat.line)


def _draw_dog_tail(pen: Pen, paint: Image.Image, dice: Generator) -> None:
    length, curl, width = dice.uniform(0.3, 0.7), dice.uniform(-0.1, 0.3), dice.uniform(0.06, 0.1)
    end = [(-0.7 * length, -0.5 * length), (-0.8 * length + curl, -length)]
    pen.stroke([(0.1, 0.05), (-0.25 * length, -0.1), *end], width, dice.uniform(0.02, 0.07), paint)
