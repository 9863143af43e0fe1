"""Suspect labels as a table, as a part of a report, and as Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thaw.report.page import drop_surrogates, inline_pictures, list_blocks
from thaw.report.parts import Section, Table
from thaw.report.summary import WrongCall
from thaw.report.wording import say_percent, shorten

if TYPE_CHECKING:
    from thaw.suspects import SuspectLabels

# Prefect keeps its artifacts in its database.
_PICTURE_BYTES = 200_000
_MOST_ROWS = 25


def list_doubts(ranked: SuspectLabels) -> list[WrongCall]:
    """Images of which another class than their label is the most probable, the worst label first."""
    return [
        WrongCall(path=one.path, label=one.label, called=one.suggested, probability=one.probability)
        for one in ranked.images
        if one.suggested != one.label
    ]


def tabulate_suspects(ranked: SuspectLabels, most: int = _MOST_ROWS) -> Table:
    """The worst of the suspect labels, with what the image probably shows."""
    rows = [
        (shorten(one.path), one.label, one.suggested, f"{one.probability:.4f}", f"{one.score:.4f}")
        for one in ranked.suspects[:most]
    ]
    if len(ranked.suspects) > len(rows):
        rows.append((f"and {len(ranked.suspects) - len(rows):,} more, in suspects.csv", "", "", "", ""))
    return Table(
        columns=("image", "label", "suggested", "probability", "label quality"), rows=rows, align="lllrr"
    )


def say_suspects(ranked: SuspectLabels) -> str:
    """How many labels are suspect, in one sentence."""
    count, images = len(ranked.suspects), len(ranked.images)
    if not count:
        return f"None of {images:,} labels is suspect."
    verb = "is" if count == 1 else "are"
    return f"{count:,} of {images:,} labels ({say_percent(count / images)}) {verb} suspect."


def describe_suspects(ranked: SuspectLabels) -> Section:
    """Which labels to look at, and how far to trust that; the picture is called `suspects`."""
    text = [
        f"{say_suspects(ranked)} The quality of a label is the probability that heads which trained without the "
        "image give it. How many labels count as wrong is estimated, by confident learning, from how often each "
        "class is taken for each other.",
        "An image that is hard, or shows both classes, looks the same: look at it before its label is changed. "
        "Test images were left alone, and so are not among them. suspects.csv has every other image, the worst "
        "label first.",
    ]
    shown = {"suspects": "The worst labels: what each image is labelled, and what it was called instead"}
    return Section(
        name="suspects",
        title="Suspect labels",
        text=text,
        tables=[tabulate_suspects(ranked)] if ranked.suspects else [],
        pictures=shown if list_doubts(ranked) else {},
    )


def render_markdown(ranked: SuspectLabels, picture: bytes | None) -> str:
    """The section as Markdown for the Prefect UI, with the picture inside."""
    text = drop_surrogates("\n\n".join(list_blocks(describe_suspects(ranked))) + "\n")
    pictures = {"suspects": picture} if picture else {}
    for name, inlined in inline_pictures(pictures, _PICTURE_BYTES).items():
        text = text.replace(f"<!-- picture {name} -->", inlined)
    return text
