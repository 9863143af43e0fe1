"""Properties of images: which are found wanting, what gives a class away; nothing is measured twice."""

import csv
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.stats import mannwhitneyu

from tests.run_samples import make_run
from thaw import properties
from thaw.config import DumpConfig
from thaw.dump import scan_dump
from thaw.errors import BadDump
from thaw.properties import (
    GIVEAWAY_AUC,
    PROBLEMS,
    TABLE,
    Measurement,
    Measures,
    PropertyCheck,
    check_properties,
    find_hints,
    list_problems,
    measure_image,
    measure_images,
    publish_properties,
)
from thaw.records import ImageRow, Manifest
from thaw.report import render_html, render_markdown
from thaw.report.properties import describe_properties, list_warnings, tabulate_hints, tabulate_problems
from thaw.store import Store

SIZE = 64


def photograph(number: int = 0, width: int = 160, height: int = 120) -> Image.Image:
    """Shapes with sharp edges and a little grain; depends on its number alone."""
    random = np.random.default_rng(number)
    tones = random.integers(20, 235, (height // 20, width // 20)).repeat(20, axis=0).repeat(20, axis=1)
    return Image.fromarray((tones + random.normal(0, 4, tones.shape)).clip(0, 255).astype(np.uint8))


def shade(image: Image.Image, low: float, high: float) -> Image.Image:
    """The image with its tones squeezed between two."""
    return image.point([round(low + (high - low) * tone / 255) for tone in range(256)])


def encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def row_of(image: Image.Image, name: str = "cat.0.png") -> ImageRow:
    return ImageRow(path=name, label="cat", sha256="0" * 64, width=image.width, height=image.height)


def problems_of(image: Image.Image) -> tuple[str, ...]:
    return list_problems(row_of(image), measure_image(encode(image)), SIZE)


@pytest.mark.parametrize(
    ("image", "problems"),
    [
        (photograph(), ()),
        (shade(photograph(), 0, 60), ("too dark",)),
        (shade(photograph(), 200, 255), ("too bright",)),
        (photograph().filter(ImageFilter.GaussianBlur(2.5)), ("blurry",)),
        (photograph(width=400), ("odd aspect",)),
        (photograph(height=400).resize((100, 400)), ("odd aspect",)),
        (photograph().resize((28, 28)), ("low resolution",)),
        (Image.new("L", (160, 120), 128), ("near-blank",)),
        (shade(photograph(), 120, 125), ("near-blank",)),
        (Image.new("RGB", (160, 120)), ("near-blank", "too dark")),
        (Image.new("RGB", (160, 20), "white"), ("near-blank", "too bright", "odd aspect", "low resolution")),
    ],
)
def test_each_problem_is_found_and_no_other(image: Image.Image, problems: tuple[str, ...]):
    assert problems_of(image) == problems


def test_sharpness_does_not_depend_on_contrast_or_brightness_but_on_blur():
    sharp = measure_image(encode(photograph())).sharpness
    assert measure_image(encode(shade(photograph(), 100, 160))).sharpness == pytest.approx(sharp, rel=0.05)
    blurred = [
        measure_image(encode(photograph().filter(ImageFilter.GaussianBlur(radius)))).sharpness
        for radius in (1, 2, 4)
    ]
    assert sharp > blurred[0] > blurred[1] > blurred[2]


def test_an_image_so_smooth_that_rounding_is_all_its_grain_is_blurry():
    for radius in (8, 12):
        smooth = shade(photograph(), 60, 200).filter(ImageFilter.GaussianBlur(radius))
        assert measure_image(encode(smooth)).sharpness < 0.5
    slope = Image.fromarray(np.tile(np.linspace(60, 200, 160).astype(np.uint8), (120, 1)))
    assert problems_of(slope) == ("blurry",)


def test_measures_of_an_image_depend_little_on_the_size_it_comes_in():
    small, large = photograph(), photograph().resize((640, 480), Image.Resampling.NEAREST)
    first, second = (measure_image(encode(image)) for image in (small, large))
    for name in ("brightness", "contrast", "dark", "bright"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=0.02)
    assert first.sharpness == pytest.approx(second.sharpness, rel=0.2)


def test_an_image_enlarged_from_few_pixels_is_blurry():
    assert problems_of(photograph().resize((24, 18)).resize((160, 120), Image.Resampling.BICUBIC)) == (
        "blurry",
    )


def manifest_of(measures: Mapping[str, list[float]], name: str = "brightness", classes=()):
    """A manifest with so many images of each class, and a measurement in which one property differs."""
    neutral = {"brightness": 0.5, "contrast": 0.2, "dark": 0.1, "bright": 0.9, "sharpness": 1.5}
    rows, taken = [], []
    for label, values in measures.items():
        for number, value in enumerate(values):
            sha256 = f"{label}{number}"
            rows.append(
                ImageRow(path=f"{label}.{number}.jpg", label=label, sha256=sha256, width=200, height=200)
            )
            taken.append(Measures(sha256=sha256, **{**neutral, name: value}))
    manifest = Manifest(layout="flat", classes=tuple(classes or measures), images=tuple(rows), quarantined=())
    return manifest, Measurement(measurer=1, images=tuple(taken))


def drawn(count: int, mean: float, seed: int) -> list[float]:
    return np.random.default_rng(seed).normal(mean, 0.1, count).tolist()


def check(*given) -> PropertyCheck:
    return check_properties(*manifest_of(*given), SIZE)


def test_a_property_that_tells_the_classes_apart_is_warned_of():
    made = check({"cat": drawn(200, 0.6, 0), "dog": drawn(200, 0.4, 1)})
    (hint,) = made.giveaways
    assert (hint.name, hint.label) == ("brightness", "cat")
    assert 0.85 < hint.auc < 0.97
    (warning,) = list_warnings(made)
    assert (
        f"Images of cat are brighter than others: that alone tells them apart with an AUC of {hint.auc:.2f}"
        in warning
    )


def test_it_is_warned_of_whichever_class_has_more_of_it():
    made = check({"cat": drawn(200, 0.8, 0), "dog": drawn(200, 1.5, 1)}, "sharpness")
    assert "Images of cat are blurrier than others" in list_warnings(made)[0]


def test_a_difference_that_is_sure_but_small_is_no_giveaway():
    made = check({"cat": drawn(3000, 0.53, 0), "dog": drawn(3000, 0.5, 1)})
    hint = made.hints[0]
    assert hint.p_value < 1e-6
    assert 0.55 < hint.auc < GIVEAWAY_AUC
    assert made.giveaways == ()


def test_a_difference_that_is_large_but_of_few_images_is_no_giveaway():
    made = check({"cat": drawn(4, 0.9, 0), "dog": drawn(4, 0.1, 1)})
    assert made.hints[0].auc == 1
    assert made.hints[0].p_value > 0.01
    assert made.giveaways == ()


def test_p_values_are_corrected_for_all_the_tests_that_were_made():
    cats, dogs, foxes = drawn(50, 0.5, 0), drawn(50, 0.55, 1), drawn(50, 0.5, 2)
    plain = mannwhitneyu(cats, dogs, method="asymptotic").pvalue
    assert find_hints(*manifest_of({"cat": cats, "dog": dogs}))[0].p_value == pytest.approx(5 * plain)
    hints = find_hints(*manifest_of({"cat": cats, "dog": dogs, "fox": foxes}))
    assert len(hints) == 15
    plain = mannwhitneyu(dogs, cats + foxes, method="asymptotic").pvalue
    assert hints[0].label == "dog"
    assert hints[0].p_value == pytest.approx(15 * plain)


def test_of_many_classes_each_is_held_against_all_others():
    made = check(
        {label: drawn(60, 0.9 if label == "owl" else 0.5, ord(label[0])) for label in ("cat", "dog", "owl")}
    )
    assert [hint.label for hint in made.giveaways][0] == "owl"
    assert made.hints[0].auc > 0.99
    rows = tabulate_hints(made).rows
    assert len(rows) == 5
    assert rows[0][:3] == ("brightness", "owl", "brighter")


def test_a_property_that_all_images_share_tells_nothing():
    made = check({"cat": [0.5] * 30, "dog": [0.5] * 30})
    assert {(hint.auc, hint.p_value) for hint in made.hints} == {(0.5, 1.0)}
    assert all(row[2] == "like others" for row in tabulate_hints(made).rows)


def test_no_warning_comes_of_chance():
    """Of 40 dumps with nothing in them, by 5 properties each, at a level of one in a hundred."""
    made = [
        check({"cat": drawn(12, 0.5, 2 * seed), "dog": drawn(12, 0.5, 2 * seed + 1)}) for seed in range(40)
    ]
    assert sum(bool(one.giveaways) for one in made) <= 1


def write_dump(path: Path, images: Mapping[str, Image.Image]) -> DumpConfig:
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in images.items():
            archive.writestr(name, encode(image))
    return DumpConfig(path=path)


def some_images(count: int = 6) -> dict[str, Image.Image]:
    return {
        f"{label}.{number}.png": photograph(100 * place + number)
        for place, label in enumerate(("cat", "dog"))
        for number in range(count)
    }


@pytest.fixture
def measured(monkeypatch) -> list[bytes]:
    """The bytes that were decoded to be measured."""
    decoded: list[bytes] = []
    decode = properties.decode_image
    monkeypatch.setattr(
        properties, "decode_image", lambda data, size: decoded.append(data) or decode(data, size)
    )
    return decoded


def test_an_image_is_measured_once_for_all_dumps_that_hold_it(tmp_path: Path, store: Store, measured):
    config = write_dump(tmp_path / "dump.zip", some_images())
    manifest = scan_dump(config, store).value
    first = publish_properties(manifest, config, SIZE, store)
    assert (first.reused, len(measured)) == (False, 12)
    again = publish_properties(manifest, config, SIZE, store)
    assert (again.reused, again.value, len(measured)) == (True, first.value, 12)
    # Another network only holds the same measures against another size.
    other = publish_properties(manifest, config, 400, store)
    assert (other.reused, len(measured)) == (False, 12)
    assert len(other.value.troubled) == 12
    grown = write_dump(tmp_path / "grown.zip", some_images(8))
    made = publish_properties(scan_dump(grown, store).value, grown, SIZE, store)
    assert len(measured) == 16
    assert made.value.images == {"cat": 8, "dog": 8}


def test_measures_of_older_rules_are_not_taken_over(tmp_path: Path, store: Store, measured, monkeypatch):
    config = write_dump(tmp_path / "dump.zip", some_images())
    manifest = scan_dump(config, store).value
    measure_images(manifest, config, store)
    monkeypatch.setattr(properties, "MEASURER", 99)
    assert not measure_images(manifest, config, store).reused
    assert len(measured) == 24


def test_measures_come_in_the_order_of_the_manifest(tmp_path: Path, store: Store):
    config = write_dump(tmp_path / "dump.zip", some_images())
    manifest = scan_dump(config, store).value
    taken = measure_images(manifest, config, store).value
    assert [one.sha256 for one in taken.images] == [row.sha256 for row in manifest.images]
    assert Measurement.from_json(taken.to_json()) == taken


def test_an_image_that_changed_since_the_scan_is_not_measured(tmp_path: Path, store: Store):
    config = write_dump(tmp_path / "dump.zip", some_images())
    manifest = scan_dump(config, store).value
    write_dump(tmp_path / "dump.zip", {**some_images(), "dog.3.png": photograph(7)})
    with pytest.raises(BadDump, match=r"dog\.3\.png changed since the dump was scanned"):
        publish_properties(manifest, config, SIZE, store)


def test_problems_are_counted_by_class_and_the_table_has_every_image(tmp_path: Path, store: Store):
    images = some_images()
    images["cat.1.png"] = shade(images["cat.1.png"], 0, 60)
    images["cat.2.png"] = shade(images["cat.2.png"], 0, 60).resize((400, 20))
    images["dog.5.png"] = images["dog.5.png"].filter(ImageFilter.GaussianBlur(3))
    config = write_dump(tmp_path / "dump.zip", images)
    made = publish_properties(scan_dump(config, store).value, config, SIZE, store).value
    assert PropertyCheck.from_json(made.to_json()) == made
    assert [one.path for one in made.troubled] == ["cat.1.png", "cat.2.png", "dog.5.png"]
    assert made.problems["cat"] == {
        **dict.fromkeys(PROBLEMS, 0),
        "too dark": 2,
        "odd aspect": 1,
        "low resolution": 1,
    }
    table = tabulate_problems(made)
    assert table.columns == ("class", "usable images", "too dark", "blurry", "odd aspect", "low resolution")
    assert table.rows == [
        ("cat", "6", "2", "0", "1", "1"),
        ("dog", "6", "0", "1", "0", "0"),
        ("all", "12", "2", "1", "1", "1"),
    ]
    with (store.folder("properties", made.address) / TABLE).open(newline="") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 12
    assert rows["cat.2.png"]["problems"] == "too dark; odd aspect; low resolution"
    assert rows["cat.0.png"]["problems"] == ""
    assert float(rows["dog.5.png"]["sharpness"]) < float(rows["dog.4.png"]["sharpness"])


def test_a_run_s_report_shows_the_properties_and_a_giveaway_where_nobody_can_miss_it():
    made = check({"cat": drawn(200, 0.6, 0), "dog": drawn(200, 0.4, 1)})
    run = make_run(properties=made, pictures={})
    page = render_html(run)
    assert page.count("Images of cat are brighter than others") == 2
    assert '<p class="notice">Images of cat are brighter' in page
    assert "## Properties of the images" in render_markdown(run)
    assert "Properties of the images" not in render_html(make_run(pictures={}))


def test_long_lists_of_problems_are_folded_and_cut():
    made = check({"cat": [0.1] * 300, "dog": [1.5] * 300}, "sharpness")
    section = describe_properties(made)
    _, images, _ = section.tables
    assert images.folded == "All 300 images with a problem"
    assert images.rows[-1][0] == "and 100 more, in properties.csv"
    assert section.text[0].startswith("300 of 600 usable images have a problem")
    clean = describe_properties(check({"cat": [0.5] * 3, "dog": [0.5] * 3}))
    assert clean.text[0].startswith("None of 6 usable images has a problem")
    assert [table.columns[0] for table in clean.tables] == ["property"]


@pytest.mark.real
def test_the_real_photographs_have_few_problems_and_no_property_gives_cats_or_dogs_away(
    shared: Path, store: Store
):
    config = DumpConfig(path=shared / "data" / "dogs-vs-cats-200px.zip")
    manifest = scan_dump(config, store).value
    made = publish_properties(manifest, config, 180, store).value
    assert 1 <= len(made.troubled) <= 40
    assert made.giveaways == ()
    assert made.hints[0].strength < 0.65
