"""Near-identical images as a part of a report: what was taken for the same, and where it went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thaw.likeness import SIMILARITY
from thaw.records import SIDES, Split
from thaw.report.parts import Section, Table
from thaw.report.wording import say_number, shorten

if TYPE_CHECKING:
    from thaw.duplicates import Duplicates, ImageGroup
    from thaw.records import ImageRow

_MOST_ROWS = 200


def describe_duplicates(duplicates: Duplicates, split: Split) -> Section:
    """The groups, those with different labels first, and the side that each of their images is on."""
    sides = {row.sha256: side for side in SIDES for row in split.rows(side)}
    groups, images = duplicates.groups, sum(len(group.images) for group in duplicates.groups)
    title = "Near-identical images"
    if not groups:
        text = [f"None of {duplicates.compared:,} images is near-identical to another."]
        return Section(name="duplicates", title=title, text=text)
    text = [
        f"{images:,} of {duplicates.compared:,} images are near-identical to others: resized, recompressed, "
        f"slightly cropped or mirrored copies, in {_count(len(groups), 'group')}. A group is placed on one side."
    ]
    if conflicts := duplicates.conflicts:
        text.append(f"{_count(len(conflicts), 'group')} with different labels: some of those must be wrong.")
    divided = [group for group in groups if len(_find_sides(group, sides)) > 1]
    if divided:
        text.append(
            f"{_count(len(divided), 'group')} on several sides: those images were placed before another one tied "
            "them together, and an image that was placed stays."
        )
    if doubted := [group for group in groups if group.doubted]:
        text.append(
            f"In {_count(len(doubted), 'group')} the backbone sees images less alike than copies are: features alike "
            f"by less than {SIMILARITY}. Look at those; they may be other pictures with similar outlines."
        )
    listed = list_images(duplicates)
    rows = [
        (
            str(number) if first else "",
            shorten(row.path),
            row.label,
            sides.get(row.sha256, "not used"),
            str(group.distance_bits) if first else "",
            say_number(group.similarity) if first else "",
        )
        for number, group, row, first in listed
    ]
    if images > len(listed):
        rows.append(("", f"and {images - len(listed):,} images more, in the store", "", "", "", ""))
    folded = "The groups, image by image" if len(rows) > 20 else ""
    columns = ("group", "image", "class", "side", "bits apart", "features alike")
    table = Table(columns=columns, rows=rows, align="rlllrr", folded=folded)
    return Section(name="duplicates", title=title, text=text, tables=[table])


def list_images(
    duplicates: Duplicates, most: int = _MOST_ROWS
) -> list[tuple[int, ImageGroup, ImageRow, bool]]:
    """Images group by group, those of different labels first: the group's number, it, the image, if it is the first."""
    groups = sorted(duplicates.groups, key=lambda group: len(group.labels) == 1)
    rows = [
        (number, group, row, row is group.images[0])
        for number, group in enumerate(groups, 1)
        for row in group.images
    ]
    return rows[:most]


def _find_sides(group: ImageGroup, sides: dict[str, str]) -> set[str]:
    return {sides[row.sha256] for row in group.images if row.sha256 in sides}


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
