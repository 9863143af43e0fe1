"""The model card: what it says, and where it lies."""

import dataclasses

import pytest

from tests.run_samples import IMPROVING, make_checkpoint, make_evaluation, make_history, make_member, make_run
from thaw.card import render_card
from thaw.records import Outcome, Quarantined


def render(**changes) -> str:
    run = make_run(**{"pictures": {}, **changes})
    outcome = Outcome(
        run="2f00ba52f00ba5",
        recipe=run.config.recipe,
        manifest=run.manifest.digest,
        split=run.head.split,
        verdict=run.verdict,
        head=run.head.address,
        parity=0.0012,
    )
    return render_card(run, outcome).replace("\u00a0", " ")


def test_a_card_has_its_parts_in_order():
    headings = [line for line in render().splitlines() if line.startswith("## ")]
    assert headings == [
        *("## Model", "## Intended use", "## Data", "## Training", "## Evaluation", "## Limits"),
        "## Provenance",
    ]


def test_it_says_what_goes_in_and_what_the_outputs_mean():
    card = render()
    assert "(n, 180, 180, 3)" in card
    assert "(n, 1), the probability of 'dog'" in card
    assert "model.keras of run 2f00ba52f00ba5" in card
    many = render(classes=("ant", "bee", "cow", "eel"))
    assert "(n, 4), the probability of each class in this order" in many


def test_figures_come_with_their_interval_and_its_meaning_for_a_user():
    card = render()
    assert "97.8 % (96.7–98.5)" in card
    assert "1,000 test images leave the accuracy open within 96.7–98.5 %" in card
    assert "It knows 'cat' least: 95.6 % of 500 test images right." in card
    assert "99.4 % sure on average and 97.8 % right" in card


def test_it_says_what_was_set_aside_and_what_it_was_trained_from():
    bad = (Quarantined(path="x.jpg", label="cat", reason="truncated"),)
    card = render(quarantined=bad)
    assert "1 images of the dump were set aside" in card
    assert "ab" * 32 in card
    assert "vgg16, pretrained on ImageNet" in card


def test_an_overridden_gate_is_not_passed_over():
    overridden = dataclasses.replace(IMPROVING, overridden=True)
    assert "> The gate was overridden by override\\_gate: true." in render(
        members=(make_member(verdict=overridden),)
    )


def test_a_card_of_an_average_says_so():
    joined = make_checkpoint("ensemble", make_history(0, start=make_history().best))
    joined = dataclasses.replace(joined, mirrored=True)
    card = render(
        members=(make_member(0), make_member(1)),
        ensemble=joined,
        evaluation=make_evaluation("ensemble", wrong=15),
    )
    assert "2 networks averaged, over each image and its mirror image, fine-tuned" in card


@pytest.mark.parametrize("name", ["# cats", "a|b", "<script>", "$x$"])
def test_names_of_classes_are_shown_as_they_are(name: str):
    card = render(classes=(name, "dog"))
    assert f"\n{name}" not in card
    assert "<script>" not in card
    assert "a|b" not in card


def test_it_holds_no_pictures():
    assert "![" not in render()
    assert "<!--" not in render()
