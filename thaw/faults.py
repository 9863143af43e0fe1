"""What is wrong with settings, in words that say what to do."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from thaw.recipe import name_nearest

# How far from a bound, as pydantic names it, the nearest valid value lies.
_BOUNDS = {"ge": "", "le": "", "gt": "just above ", "lt": "just below "}
# Pydantic names the members of a union, and the kinds of checks, on the way to a value.
_NO_SETTING = re.compile(r"int|float|str|(constrained|function|literal|tuple|list)\b.*")


def explain_faults(section: type[BaseModel], faults: Sequence[Mapping[str, Any]]) -> str:
    """What pydantic found, a line for each setting, with the value and the nearest valid one."""
    lines: dict[str, str] = {}
    for fault in faults:
        where, line = _explain(section, fault)
        # Of a value that fits no member of a union, the member that says most of what it takes speaks.
        if where not in lines or "Did you mean" in line:
            lines[where] = line
    return "\n".join(lines.values())


def _explain(section: type[BaseModel], fault: Mapping[str, Any]) -> tuple[str, str]:
    """The setting, and the fault in words."""
    place = [str(part) for part in fault["loc"] if not _NO_SETTING.fullmatch(str(part))]
    where, kind, limits = ".".join(place), fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(_find(section, place[:-1]).model_fields)
        return where, f"unknown setting '{where}'.{name_nearest(place[-1], known)}"
    if kind == "missing":
        field = _find(section, place[:-1]).model_fields[place[-1]]
        return where, f"setting '{where}' is missing: {field.description}"
    message = (f"setting '{where}': " if where else "") + fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # from a section's own rule, which says what it received
        return where, message
    hint = next(
        (f" The nearest valid value is {_BOUNDS[key]}{limits[key]}." for key in _BOUNDS if key in limits), ""
    )
    if kind == "literal_error":
        hint = name_nearest(str(fault["input"]), re.findall(r"'([^']+)'", limits["expected"]))
    return where, f"{message}. Received: {fault['input']!r}.{hint}"


def _find(section: type[BaseModel], place: list[str]) -> type[BaseModel]:
    """The section at a place, such as fine_tune.0.optimizer."""
    model: Any = section
    for part in place:
        model = get_args(model)[0] if part.isdigit() else model.model_fields[part].annotation
    return model
