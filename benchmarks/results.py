"""What benchmarks found: figures with their goals, as a table, as JSON and as Markdown."""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLUMNS = ("benchmark", "figure", "median (lowest to highest)", "goal", "met", "in absolute terms")
_FILE_WIDTH = 160
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_PACKAGES = ("tensorflow", "keras", "thaw")


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a figure should come to."""

    bound: Literal["at least", "at most"]
    value: float

    def is_met(self, figure: float) -> bool:
        return figure >= self.value if self.bound == "at least" else figure <= self.value


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One figure of a benchmark.

    Attributes:
        name: what was measured; with the benchmark's name it tells entries apart.
        rounds: the figure, round by round; its median is held against the goal.
        unit: such as `×` or `s`.
        absolute: further figures of the same rounds, each round by round, by names that tell their units.
        note: on what, under what conditions, and what was multiplied or left out.
    """

    benchmark: str
    name: str
    rounds: Sequence[float]
    unit: str
    goal: Goal | None = None
    absolute: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        return self.goal.is_met(statistics.median(self.rounds)) if self.goal else None

    def say(self) -> tuple[str, ...]:
        """The entry as cells of the table."""
        goal = f"{self.goal.bound} {_with_unit(f'{self.goal.value:g}', self.unit)}" if self.goal else ""
        met = {True: "yes", False: "no", None: ""}[self.met]
        absolute = "; ".join(f"{name} {say_spread(values)}" for name, values in self.absolute.items())
        return self.benchmark, self.name, say_spread(self.rounds, self.unit), goal, met, absolute


def divide(numerators: Sequence[float], denominators: Sequence[float]) -> tuple[float, ...]:
    """The ratio of each round."""
    return tuple(one / other for one, other in zip(numerators, denominators, strict=True))


def say_spread(values: Sequence[float], unit: str = "") -> str:
    """The median of the rounds, and the lowest and highest where they differ."""
    low, middle, high = map(_say_number, (min(values), statistics.median(values), max(values)))
    return _with_unit(middle, unit) + (f" ({low} to {high})" if low != high else "")


def print_results(entries: Sequence[Entry], title: str | None) -> None:
    """Print the table and the notes on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    table = Table(*_COLUMNS, title=title, title_justify="left")
    for entry in entries:
        table.add_row(*map(escape, entry.say()))
    console.print(table)
    for remark in _list_remarks(entries):
        console.print(escape(remark))


def keep_results(folder: Path, entries: Sequence[Entry], order: Sequence[str]) -> None:
    """Merge entries into `results.json` and write `results.md` anew; other benchmarks' entries stay."""
    path = folder / "results.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    circumstances = {"date": datetime.date.today().isoformat(), "machine": describe_machine()}
    measured = [
        {**asdict(entry), "median": statistics.median(entry.rounds), "met": entry.met, **circumstances}
        for entry in entries
    ]
    again = {entry.benchmark for entry in entries}
    merged = [entry for entry in known if entry["benchmark"] not in again] + measured
    places = {name: place for place, name in enumerate(order)}
    merged.sort(key=lambda entry: places.get(entry["benchmark"], len(places)))
    _write(path, json.dumps(merged, indent=1, ensure_ascii=False) + "\n")
    _write(folder / "results.md", _render_markdown(merged))


def describe_machine() -> dict[str, Any]:
    """The machine, and the versions that decide how fast it is."""
    facts = _read_processor()
    return {
        "processor": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "bfloat16_in_hardware": not _BFLOAT16_FLAGS.isdisjoint(facts.get("flags", "").split()),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def _render_markdown(kept: Sequence[Mapping[str, Any]]) -> str:
    """The table, the notes, and on what machine and day each benchmark was run."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    entries, places = [], {}
    for facts in kept:
        goal = Goal(**facts["goal"]) if facts["goal"] else None
        fields = {name: facts[name] for name in Entry.__dataclass_fields__}
        entry = Entry(**{**fields, "goal": goal})
        lines.append(f"| {' | '.join(entry.say())} |")
        entries.append(entry)
        names = places.setdefault(_say_circumstances(facts), [])
        if entry.benchmark not in names:
            names.append(entry.benchmark)
    if len(places) == 1:
        measured = [f"Measured {place}." for place in places]
    else:
        measured = [f"- {', '.join(names)}: {place}." for place, names in places.items()]
    remarks = [f"- {remark}" for remark in _list_remarks(entries)]
    return "\n".join([*lines, "", *measured, "", *remarks]) + "\n"


def _list_remarks(entries: Sequence[Entry]) -> list[str]:
    """Each note once, after the figures that it belongs to."""
    names: dict[tuple[str, str], list[str]] = {}
    for entry in entries:
        names.setdefault((entry.benchmark, entry.note), []).append(entry.name)
    return [
        f"{benchmark}, {' and '.join(named)}: {note}" for (benchmark, note), named in names.items() if note
    ]


def _say_circumstances(facts: Mapping[str, Any]) -> str:
    machine = facts["machine"]
    precision = "with" if machine["bfloat16_in_hardware"] else "without"
    return (
        f"{facts['date']} on {machine['cores']} cores of {machine['processor']} {precision} bfloat16 in hardware, "
        f"{machine['memory_gib']:g} GiB; Python {machine['python']}, TensorFlow {machine['tensorflow']}, "
        f"Keras {machine['keras']}, Thaw {machine['thaw']}"
    )


def _read_processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    facts = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in facts}


def _say_number(value: float) -> str:
    """Three digits of a figure; all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".") if value else "0"


def _with_unit(text: str, unit: str) -> str:
    return f"{text} {unit}" if unit else text


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
