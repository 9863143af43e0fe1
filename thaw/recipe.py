"""Recipes: the settings of published systems, one YAML file each, and what a user lays over them."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from thaw.errors import BadConfig

RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def list_recipes() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of `recipes/<name>.yaml`, as written there.

    Raises:
        BadConfig: no such recipe; the message names the nearest one.
    """
    known = list_recipes()
    if name in known:
        return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    raise BadConfig(f"no recipe '{name}'.{name_nearest(str(name), known)} Recipes: {', '.join(known)}.")


def overlay(base: Any, top: Any) -> Any:
    """Settings with others laid over them, key by key; nothing at all leaves a section as it is.

    A list is laid over a list item by item, and decides its length. Over a list of sections a lone section
    changes each of them, and one with numbers for keys those of that place.

    >>> overlay([{"epochs": 5, "views": 1}, {"epochs": 7}], {"epochs": 2})
    [{'epochs': 2, 'views': 1}, {'epochs': 2}]
    >>> overlay([{"epochs": 5}, {"epochs": 7}], {"1": {"epochs": 2}})
    [{'epochs': 5}, {'epochs': 2}]
    """
    if isinstance(top, BaseModel):
        top = top.model_dump(exclude_unset=True)
    if isinstance(base, Mapping):
        if isinstance(top, Mapping):
            return {**base, **{key: overlay(base.get(key), value) for key, value in top.items()}}
        return dict(base) if top is None else top
    if isinstance(base, Sequence) and not isinstance(base, str):
        if isinstance(top, Mapping):
            return _change_items(list(base), top)
        if isinstance(top, Sequence) and not isinstance(top, str):
            below = [*base, *[None] * len(top)]
            return [overlay(before, item) for before, item in zip(below, top, strict=False)]
        return list(base) if top is None else top
    return overlay({}, top) if isinstance(top, Mapping) else top


def name_nearest(word: str, known: Sequence[str]) -> str:
    """A hint at what was probably meant, or else at all that is valid."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" Did you mean '{match[0]}'?" if match else f" Valid here: {', '.join(known)}."


def _change_items(items: list[Any], change: Mapping[str, Any]) -> list[Any]:
    """Items with what has no number laid over each of them, and then what has over the one of that place."""
    numbered = {int(key): value for key, value in change.items() if str(key).isdigit()}
    common = {key: value for key, value in change.items() if not str(key).isdigit()}
    if not numbered:
        return [overlay(item, common) for item in items] or [common]
    if max(numbered) > len(items):
        raise BadConfig(
            f"a setting names item {max(numbered)} of a list of {len(items)}, counted from 0. To add one to the "
            f"list, name item {len(items)}."
        )
    if len(items) in numbered:
        items = [*items, {}]
    if common:
        items = [overlay(item, common) for item in items]
    return [overlay(item, numbered[place]) if place in numbered else item for place, item in enumerate(items)]
