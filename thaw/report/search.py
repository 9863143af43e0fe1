"""The search for a head as a table, and as a part of a run's report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from thaw.report.parts import Section, Table
from thaw.report.wording import say_number, say_percent

if TYPE_CHECKING:
    from thaw.folds import Spread
    from thaw.search import HeadSearch


def say_changes(changes: Mapping[str, Any]) -> str:
    """Settings in a line, such as `dropout 0.5, optimizer.learning_rate 0.001`."""
    said = (f"{name} {_say_value(value)}" for name, value in changes.items())
    return ", ".join(said) or "the head as it is"


def tabulate_search(search: HeadSearch) -> Table:
    """A column for each setting that was tried, and a row for each candidate, the chosen one first."""
    names = tuple(search.chosen.changes)
    rows = [
        (
            *(_say_value(value) for value in candidate.changes.values()),
            _say_accuracy(candidate.accuracy),
            f"{say_number(candidate.log_loss.mean)} ± {say_number(candidate.log_loss.standard_deviation)}",
            f"{candidate.best_epoch:.1f}",
        )
        for candidate in sorted(
            search.candidates, key=lambda candidate: (not candidate.chosen, candidate.rank)
        )
    ]
    return Table(
        columns=(*names, "accuracy", "log loss", "best epoch"), rows=rows, align="l" * len(names) + "rrr"
    )


def describe_search(search: HeadSearch) -> Section:
    """What was tried, how the head was chosen, and how far its figures can be trusted."""
    count = len(search.candidates)
    text = [
        f"{count} {'candidate was' if count == 1 else 'candidates were'} cross-validated: the "
        f"{search.images:,} training images were divided into {search.folds} folds, and a head trained "
        "without each of them, for one budget of epochs, and judged on it. Validation and test images "
        f"took no part. The smallest mean log loss was that of {say_changes(search.chosen.changes)}.",
        "Its figures flatter it a little, since it was chosen by them, as was each head's best epoch by the "
        "fold that judges it. They are means and standard deviations over the folds; log loss is in nats.",
    ]
    return Section(name="search", title="Search for a head", text=text, tables=[tabulate_search(search)])


def _say_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _say_accuracy(accuracy: Spread) -> str:
    return f"{say_percent(accuracy.mean, unit='')} ± {say_percent(accuracy.standard_deviation)}"
