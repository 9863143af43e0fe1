"""Properties of images: which of them can hardly be learned from, and which property gives a class away."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from thaw.archive import Dump, open_dump
from thaw.claims import claim
from thaw.config import DumpConfig
from thaw.errors import BadDump, BadImage
from thaw.extract import map_ahead
from thaw.images import decode_image
from thaw.progress import track
from thaw.records import ImageRow, Made, Manifest, Record, digest_of
from thaw.store import Store

RECORD, TABLE = "properties.json", "properties.csv"

# Raised when what is measured, or what counts as a problem, changes.
MEASURER, CHECKER = 1, 1

# Of 4,000 photographs of dogs-vs-cats at 200 px none has a contrast below 0.058, 2 are too dark and none too
# bright.
_BLANK_CONTRAST = 0.04
_DARK, _BRIGHT = 0.3, 0.7
# 2 of these are blurry by this, and all of 200 after a Gaussian with a sigma of 1 % of their side.
_BLURRY_SHARPNESS = 0.8
# Squashed to a square, a side then has a third of the other's pixels.
_ODD_ASPECT = 3.0
# More than doubled in size, an image has nothing for the first layers to see.
_MOST_ENLARGED = 2.0
PROBLEMS = ("near-blank", "too dark", "too bright", "blurry", "odd aspect", "low resolution")

# Of thousands of images any difference is significant: the sharpness of cats and dogs has an AUC of 0.6. From
# 0.7 on, Hosmer and Lemeshow (Applied Logistic Regression, 5.2.4) call a discrimination acceptable.
GIVEAWAY_AUC, GIVEAWAY_P = 0.7, 0.01

# Enough to tell a blur that a network would see, and few enough that JPEGs are decoded at a reduced size.
_LONGER_SIDE_PIXELS = 128
_AHEAD = 64
# The variance of a tone's rounding. That of a Laplacian is 20 times it, that of two differences 4 times.
_ROUNDING = 1 / 255**2 / 12


@dataclass(frozen=True, kw_only=True)
class Measures(Record):
    """What an image's tones come to, from 0 (black) to 1, where its longer side is 128 pixels at most.

    `brightness` is their mean and `contrast` their standard deviation; `dark` and `bright` are the 5th and
    95th percentiles. `sharpness` is the root mean square of the Laplacian over that of the gradient: about
    1.5 for a photograph, whatever its contrast, and less the wider its edges are; 0 where all is of one tone.
    """

    sha256: str
    brightness: float
    contrast: float
    dark: float
    bright: float
    sharpness: float


@dataclass(frozen=True, kw_only=True)
class Measurement(Record):
    """The measures of all images of a manifest, in its order. `measurer` is the version of what took them."""

    measurer: int
    images: tuple[Measures, ...]


@dataclass(frozen=True, kw_only=True)
class Troubled(Record):
    """An image with one or more of `PROBLEMS`."""

    path: str
    label: str
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Hint(Record):
    """How well one property by itself tells the images of one class from all others.

    `auc` is the probability that an image of the class has more of the property than another: at 0.5 it
    tells nothing, at 0 and 1 everything. `p_value` is the Mann-Whitney test's, times the number of tests.
    """

    name: str
    label: str
    auc: float
    p_value: float

    @property
    def strength(self) -> float:
        return max(self.auc, 1 - self.auc)

    @property
    def gives_away(self) -> bool:
        return self.strength >= GIVEAWAY_AUC and self.p_value < GIVEAWAY_P


@dataclass(frozen=True, kw_only=True)
class PropertyCheck(Record):
    """What the properties of a dump's usable images came to, in the store's folder `properties/<address>/`.

    `images` and `problems` count by class; `troubled` are in the manifest's order; `hints` say the most
    telling first. An image is of low resolution where `image_size_pixels`, which is the network's, is more
    than twice its shorter side.
    """

    address: str
    image_size_pixels: int
    images: Mapping[str, int]
    problems: Mapping[str, Mapping[str, int]]
    troubled: tuple[Troubled, ...]
    hints: tuple[Hint, ...]

    @property
    def giveaways(self) -> tuple[Hint, ...]:
        return tuple(hint for hint in self.hints if hint.gives_away)


def measure_image(data: bytes, sha256: str = "") -> Measures:
    """Measure the bytes of an image file.

    Raises:
        BadImage: as `decode_image`.
    """
    from scipy.ndimage import laplace

    image = decode_image(data, _LONGER_SIDE_PIXELS).convert("L")
    image.thumbnail((_LONGER_SIDE_PIXELS, _LONGER_SIDE_PIXELS), Image.Resampling.BOX)
    tones = np.asarray(image, dtype=np.float32) / 255
    # Less what rounding to 256 tones puts in: in a very smooth image that is most of it.
    bends = np.square(laplace(tones)).mean() - 20 * _ROUNDING
    steps = sum(np.square(np.diff(tones, axis=axis)).mean() for axis in (0, 1)) - 4 * _ROUNDING
    sharpness = np.sqrt(max(bends, 0) / steps) if steps > 0 else 0
    dark, bright = np.percentile(tones, (5, 95))
    figures = {
        "brightness": tones.mean(),
        "contrast": tones.std(),
        "dark": dark,
        "bright": bright,
        "sharpness": sharpness,
    }
    return Measures(sha256=sha256, **{name: round(float(figure), 4) for name, figure in figures.items()})


def measure_images(manifest: Manifest, config: DumpConfig, store: Store) -> Made[Measurement]:
    """Measure every usable image of a dump, and decode only bytes that the store has no measures of.

    Raises:
        BadDump: an image changed since the dump was scanned.
    """
    digest = digest_of("measurement", MEASURER, manifest)
    found = store.read("measurements", digest, Measurement)
    if found:
        return Made(value=found, reused=True, note=f"{len(found.images):,} images measured before")
    known = _look_up(store, {row.sha256 for row in manifest.images})
    missing = [row for row in manifest.images if row.sha256 not in known]
    if missing:
        with open_dump(config.path) as dump, track("measure images", len(missing), "images") as advance:
            threads = dump.readers or os.cpu_count()
            for measures in map_ahead(partial(_measure_row, dump), missing, _AHEAD, threads):
                known[measures.sha256] = measures
                advance()
    made = Measurement(measurer=MEASURER, images=tuple(known[row.sha256] for row in manifest.images))
    store.publish("measurements", digest, made)
    return Made(value=made, reused=False, note=f"{len(missing):,} of {len(made.images):,} images measured")


def list_problems(row: ImageRow, measures: Measures, image_size_pixels: int) -> tuple[str, ...]:
    """Which of `PROBLEMS` an image has. A blank one is not called blurry as well."""
    shorter, longer = sorted((row.width, row.height))
    blank = measures.contrast < _BLANK_CONTRAST
    found = {
        "near-blank": blank,
        "too dark": measures.bright < _DARK,
        "too bright": measures.dark > _BRIGHT,
        "blurry": not blank and measures.sharpness < _BLURRY_SHARPNESS,
        "odd aspect": longer > _ODD_ASPECT * shorter,
        "low resolution": image_size_pixels > _MOST_ENLARGED * shorter,
    }
    return tuple(problem for problem in PROBLEMS if found[problem])


def find_hints(manifest: Manifest, measurement: Measurement) -> tuple[Hint, ...]:
    """How well each property tells each class from the others, the most telling first.

    Of two classes the first stands for both. The p values are corrected for all of these tests (Bonferroni).
    """
    from scipy.stats import mannwhitneyu

    labels = np.array([row.label for row in manifest.images])
    classes = manifest.classes[:1] if len(manifest.classes) == 2 else manifest.classes
    properties = {
        name: np.array([getattr(measures, name) for measures in measurement.images])
        for name in ("brightness", "contrast", "sharpness")
    }
    properties["aspect"] = np.array([row.width / row.height for row in manifest.images])
    properties["resolution"] = np.array([row.width * row.height for row in manifest.images])
    tests = len(properties) * len(classes)
    hints = []
    for name, values in properties.items():
        for label in classes:
            ours, others = values[labels == label], values[labels != label]
            auc, p_value = 0.5, 1.0
            if values.min() < values.max():
                statistic, p_value = mannwhitneyu(ours, others, method="asymptotic")
                auc = float(statistic) / (len(ours) * len(others))
            hints.append(Hint(name=name, label=label, auc=auc, p_value=min(1.0, tests * float(p_value))))
    return tuple(sorted(hints, key=lambda hint: -hint.strength))


def check_properties(manifest: Manifest, measurement: Measurement, image_size_pixels: int) -> PropertyCheck:
    """Count what is wrong with the images of each class, and find the properties that give a class away."""
    pairs = zip(manifest.images, measurement.images, strict=True)
    found = [(row, list_problems(row, measures, image_size_pixels)) for row, measures in pairs]
    counts = Counter((row.label, problem) for row, problems in found for problem in problems)
    images = Counter(row.label for row in manifest.images)
    return PropertyCheck(
        address=_address(manifest, image_size_pixels),
        image_size_pixels=image_size_pixels,
        images={label: images[label] for label in manifest.classes},
        problems={
            label: {problem: counts[label, problem] for problem in PROBLEMS} for label in manifest.classes
        },
        troubled=tuple(
            Troubled(path=row.path, label=row.label, problems=problems) for row, problems in found if problems
        ),
        hints=find_hints(manifest, measurement),
    )


def publish_properties(
    manifest: Manifest, config: DumpConfig, image_size_pixels: int, store: Store
) -> Made[PropertyCheck]:
    """Measure the images of a dump, check them, and publish the record and a table with every image.

    Raises:
        BadDump: an image changed since the dump was scanned.
    """
    address = _address(manifest, image_size_pixels)
    found = store.read_folder("properties", address, RECORD, PropertyCheck, (TABLE,))
    if found:
        return Made(value=found, reused=True, note=_summarise(found))
    with claim(store, "properties", address):
        found = store.read_folder("properties", address, RECORD, PropertyCheck, (TABLE,))
        if found:
            return Made(value=found, reused=True, note=_summarise(found))
        measured = measure_images(manifest, config, store)
        made = check_properties(manifest, measured.value, image_size_pixels)
        with store.publish_folder("properties", address) as folder:
            _write_table(folder / TABLE, manifest, measured.value, made)
            (folder / RECORD).write_text(made.to_json(), encoding="utf-8")
    return Made(value=made, reused=False, note=f"{_summarise(made)}; {measured.note}")


def _address(manifest: Manifest, image_size_pixels: int) -> str:
    return digest_of("properties", MEASURER, CHECKER, manifest, image_size_pixels)


def _measure_row(dump: Dump, row: ImageRow) -> Measures:
    try:
        data = dump.read(row.path)
        if hashlib.sha256(data).hexdigest() != row.sha256:
            raise BadImage("its bytes are others")
        return measure_image(data, row.sha256)
    except BadImage as error:
        raise BadDump(
            f"{row.path} changed since the dump was scanned ({error}). Run the same command again."
        ) from error


def _look_up(store: Store, wanted: set[str]) -> dict[str, Measures]:
    """What earlier measurements know of these bytes, the newest first, as far back as is needed."""
    known: dict[str, Measures] = {}
    for measurement in store.read_all("measurements", Measurement):
        if measurement.measurer == MEASURER:
            known |= {one.sha256: one for one in measurement.images if one.sha256 in wanted}
        if wanted <= known.keys():
            break
    return known


def _write_table(file: Path, manifest: Manifest, measurement: Measurement, made: PropertyCheck) -> None:
    problems = {one.path: "; ".join(one.problems) for one in made.troubled}
    names = ("brightness", "contrast", "dark", "bright", "sharpness")
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "width", "height", *names, "problems"])
        for row, measures in zip(manifest.images, measurement.images, strict=True):
            figures = [getattr(measures, name) for name in names]
            writer.writerow(
                [row.path, row.label, row.width, row.height, *figures, problems.get(row.path, "")]
            )


def _summarise(made: PropertyCheck) -> str:
    telling = ", ".join(f"{hint.name} gives {hint.label} away" for hint in made.giveaways)
    count = f"{len(made.troubled):,} of {sum(made.images.values()):,} images have a problem"
    return f"{count}; {telling}" if telling else count
