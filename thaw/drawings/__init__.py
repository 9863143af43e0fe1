"""Procedural drawings: the demo's `pets`, and the `objects` and `creatures` that the small backbone learned from."""

from thaw.drawings.pets import draw_animal, draw_dump

__all__ = ["draw_animal", "draw_dump"]
