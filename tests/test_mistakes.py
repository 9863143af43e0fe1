"""The images that were called wrong: which they are, their picture, and the run folder they are shown in."""

import zipfile
from dataclasses import replace

import numpy as np
import pytest

from tests.run_samples import (
    close_gate,
    make_evaluation,
    make_heat,
    make_map,
    make_photographs,
    make_run,
    open_picture,
)
from thaw.images import read_image
from thaw.records import ImageRow
from thaw.report import render_markdown
from thaw.report.heat import plot_heat
from thaw.report.photographs import MOST_IMAGES, draw_mistakes, plot_mistakes, plot_views
from thaw.report.pictures import draw_pictures
from thaw.report.summary import WrongCall, list_mistakes


def make_mistakes(number, label="dog", called="cat"):
    return [
        WrongCall(path=f"{n}.jpg", label=label, called=called, probability=0.998 - 0.01 * n)
        for n in range(number)
    ]


def read_captions(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def list_test_rows(evaluation):
    return tuple(
        ImageRow(path=row.path, label=row.label, sha256="ab" * 32, width=64, height=64)
        for row in evaluation.predictions
    )


def make_tested_run(wrong):
    """A run whose test rows are those of its evaluation."""
    tested = make_evaluation("fine_tuned", wrong=wrong)
    run = make_run(evaluation=tested, pictures={})
    return replace(run, split=replace(run.split, test=list_test_rows(tested)))


def test_mistakes_come_with_the_most_confident_first():
    made = make_evaluation("head", wrong=5)
    shuffled = replace(made, predictions=made.predictions[::-1])
    mistakes = list_mistakes(shuffled)
    assert [one.path for one in mistakes] == [f"test/{n}.jpg" for n in range(5)]
    assert {(one.label, one.called) for one in mistakes} == {("cat", "dog")}
    assert [one.probability for one in mistakes] == sorted(
        (one.probability for one in mistakes), reverse=True
    )


def test_each_image_says_what_it_is_what_it_was_called_and_how_surely():
    figure = draw_mistakes(make_mistakes(2), make_photographs(2))
    assert read_captions(figure) == ["dog, called cat 0.998", "dog, called cat 0.988"]


def test_captions_with_long_names_take_two_lines_each():
    mistakes = make_mistakes(1) + make_mistakes(1, called="labrador retriever")
    captions = read_captions(draw_mistakes(mistakes, make_photographs(2)))
    assert captions == ["dog,\ncalled cat 0.998", "dog,\ncalled labrador … 0.998"]


def test_names_that_no_font_or_formula_knows_are_drawn_all_the_same():
    for name in ("猫", r"$\no$", "new\nline", "<b>"):
        open_picture(plot_mistakes(make_mistakes(1, label=name), make_photographs(1)))


@pytest.mark.parametrize("number", [1, 2, 5, 12, 40])
def test_any_number_of_mistakes_makes_a_picture_of_at_most_twelve(number):
    mistakes, images = make_mistakes(number), make_photographs(number, size=64)
    assert len(read_captions(draw_mistakes(mistakes, images))) == min(number, MOST_IMAGES)
    open_picture(plot_mistakes(mistakes, images))


def test_a_run_shows_the_very_images_that_it_lists():
    read = []

    def read_row(row):
        read.append(row.path)
        return make_photographs(1, size=64)[0]

    pictures = draw_pictures(make_tested_run(wrong=22), read_row)
    assert set(pictures) == {"curves", "gate", "reliability", "confusion", "mistakes", "views"}
    first_train_row = make_run().split.train[0].path
    assert read == [*(f"test/{n}.jpg" for n in range(MOST_IMAGES)), first_train_row]


def test_a_run_without_mistakes_has_no_picture_of_them():
    pictures = draw_pictures(make_tested_run(wrong=0), lambda row: make_photographs(1, size=64)[0])
    assert set(pictures) == {"curves", "gate", "reliability", "confusion", "views"}


def test_behind_a_closed_gate_no_test_image_is_looked_at():
    read = []

    def read_row(row):
        read.append(row.path)
        return make_photographs(1, size=64)[0]

    run = close_gate()
    assert set(draw_pictures(run, read_row)) == {"curves", "gate", "views"}
    assert read == [run.split.train[0].path]


@pytest.mark.real
@pytest.mark.parametrize("size_pixels", [150, 224])
def test_markdown_holds_all_pictures_of_the_noisiest_real_photographs(shared, size_pixels):
    dump = shared / "data" / "dogs-vs-cats-200px.zip"
    with zipfile.ZipFile(dump) as archive:
        # Of JPEGs of one size and quality, the largest are the hardest to compress.
        members = sorted(archive.infolist(), key=lambda member: -member.file_size)[:MOST_IMAGES]
        photographs = [archive.read(member) for member in members]
    images = np.stack([read_image(data, size_pixels, "bilinear") for data in photographs])
    run = make_tested_run(wrong=22)
    heat = {
        label: [make_map(label, called) for called in ("cat", "cat", "dog", "dog")]
        for label in ("cat", "dog")
    }
    run = replace(run, heat=make_heat(*heat["cat"], *heat["dog"]))
    pictures = draw_pictures(run, lambda row: images[0]) | {
        "mistakes": plot_mistakes(make_mistakes(MOST_IMAGES), images),
        "looked_1": plot_heat(heat["cat"], images[:4]),
        "looked_2": plot_heat(heat["dog"], images[4:8]),
        "views": plot_views(images[:8]),
    }
    markdown = render_markdown(replace(run, pictures=pictures))
    assert len(markdown.encode()) < 300_000
    assert markdown.count("](data:image/") == len(pictures) == 8
