"""What is wrong with settings, in words that say what to do."""

import re
from collections.abc import Mapping
from typing import Any, get_args

from pydantic import BaseModel

from thaw.recipe import name_nearest

# How far from a bound, as pydantic names it, the nearest valid value lies.
_BOUNDS = {"ge": "", "le": "", "gt": "just above ", "lt": "just below "}
# Pydantic names the members of a union on the way to a value.
_UNION_MEMBERS = ("int", "float", "str")


def explain_fault(section: type[BaseModel], fault: Mapping[str, Any]) -> str:
    """One fault that pydantic found, with the offender, the value, and the nearest valid one."""
    place = [str(part) for part in fault["loc"] if part not in _UNION_MEMBERS]
    where, kind, limits = ".".join(place), fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown setting '{where}'.{name_nearest(place[-1], list(_find(section, place[:-1]).model_fields))}"
    if kind == "missing":
        field = _find(section, place[:-1]).model_fields[place[-1]]
        return f"setting '{where}' is missing: {field.description}"
    message = (f"setting '{where}': " if where else "") + fault["msg"].removeprefix("Value error, ")
    if kind == "value_error":  # from a section's own rule, which says what it received
        return message
    hint = next(
        (f" The nearest valid value is {_BOUNDS[key]}{limits[key]}." for key in _BOUNDS if key in limits), ""
    )
    if kind == "literal_error":
        hint = name_nearest(str(fault["input"]), re.findall(r"'([^']+)'", limits["expected"]))
    return f"{message}. Received: {fault['input']!r}.{hint}"


def _find(section: type[BaseModel], place: list[str]) -> type[BaseModel]:
    """The section at a place, such as fine_tune.0.optimizer."""
    model: Any = section
    for part in place:
        model = get_args(model)[0] if part.isdigit() else model.model_fields[part].annotation
    return model
