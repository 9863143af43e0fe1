"""Properties of a dump's images as tables, as notices, and as a part of a run's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thaw.properties import GIVEAWAY_AUC, GIVEAWAY_P
from thaw.report.parts import Section, Table
from thaw.report.wording import shorten

if TYPE_CHECKING:
    from thaw.properties import Hint, PropertyCheck

_MOST_ROWS, _MOST_UNFOLDED, _MOST_CLASSES = 200, 8, 20
# What more of a property, and less of it, is called.
_WORDS = {
    "brightness": ("brighter", "darker"),
    "contrast": ("richer in contrast", "poorer in contrast"),
    "sharpness": ("sharper", "blurrier"),
    "aspect": ("wider for their height", "taller for their width"),
    "resolution": ("larger", "smaller"),
}


def tabulate_problems(made: PropertyCheck) -> Table:
    """A row for each class, and a column for each problem that any image has."""
    found = [name for name in next(iter(made.problems.values())) if _add_up(made, name)]
    rows = [
        (label, f"{count:,}", *(f"{made.problems[label][name]:,}" for name in found))
        for label, count in made.images.items()
    ]
    totals = (f"{_add_up(made, name):,}" for name in found)
    rows.append(("all", f"{sum(made.images.values()):,}", *totals))
    return Table(
        columns=("class", "usable images", *found),
        rows=rows,
        align="l" + "r" * (1 + len(found)),
        folded=f"All {len(rows) - 1} classes" if len(rows) > _MOST_CLASSES else "",
        totals=True,
    )


def tabulate_hints(made: PropertyCheck) -> Table:
    """Of each property the class that it tells most of, the most telling property first."""
    best: dict[str, Hint] = {}
    for hint in made.hints:
        best.setdefault(hint.name, hint)
    rows = [
        (hint.name, hint.label, _say_way(hint), f"{hint.strength:.3f}", _say_p(hint.p_value))
        for hint in best.values()
    ]
    return Table(columns=("property", "class", "its images are", "AUC", "p"), rows=rows, align="lllrr")


def list_warnings(made: PropertyCheck) -> list[str]:
    """What a reader must not miss: each property that gives a class away, in a sentence."""
    return [
        f"Images of {hint.label} are {_say_way(hint)} than others: that alone tells them apart with an AUC "
        f"of {hint.strength:.2f}. The model may have learned it in place of what they show."
        for hint in made.giveaways
    ]


def describe_properties(made: PropertyCheck) -> Section:
    """What is wrong with how many images of each class, and what else could tell the classes apart."""
    total, count = sum(made.images.values()), len(made.troubled)
    lead = f"{count:,} of {total:,} usable images" if count else f"None of {total:,} usable images"
    text = [
        f"{lead} {'has' if count < 2 else 'have'} a problem that no training mends. All of them stay in; "
        "properties.csv has the measures of each.",
        "How well a property by itself tells a class from the others is given as an AUC (0.5 is chance), with "
        "the p value of a Mann-Whitney test times the number of tests. From an AUC of "
        f"{GIVEAWAY_AUC} on, with a p below {GIVEAWAY_P}, it counts as giving the class away.",
        *list_warnings(made),
    ]
    troubled = [tabulate_problems(made), _list_troubled(made)] if made.troubled else []
    tables = [*troubled, tabulate_hints(made)]
    return Section(name="properties", title="Properties of the images", text=text, tables=tables)


def _list_troubled(made: PropertyCheck) -> Table:
    rows = [(shorten(one.path), one.label, ", ".join(one.problems)) for one in made.troubled[:_MOST_ROWS]]
    if len(made.troubled) > len(rows):
        rows.append((f"and {len(made.troubled) - len(rows):,} more, in properties.csv", "", ""))
    folded = f"All {len(made.troubled):,} images with a problem" if len(rows) > _MOST_UNFOLDED else ""
    return Table(columns=("image", "class", "problems"), rows=rows, align="lll", folded=folded)


def _add_up(made: PropertyCheck, problem: str) -> int:
    return sum(counts[problem] for counts in made.problems.values())


def _say_way(hint: Hint) -> str:
    if hint.auc == 0.5:
        return "like others"
    return _WORDS[hint.name][0 if hint.auc > 0.5 else 1]


def _say_p(p_value: float) -> str:
    return f"{p_value:.2g}" if p_value >= 0.0001 else "< 0.0001"
