"""A part of the configuration: what all of them have in common, and how one is built from settings."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from thaw.errors import BadConfig
from thaw.faults import explain_faults

SomeSection = TypeVar("SomeSection", bound="Section")


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        model_title_generator=lambda section: section.__name__.removesuffix("Config"),
    )


def _hide_defaults(schema: dict[str, Any]) -> None:
    """Leave the fields of a form empty: what a form shows it sends, and the recipe would never be asked."""
    for field in schema["properties"].values():
        field.pop("default", None)


class RecipeSection(Section):
    """A section that a recipe fills; what the recipe leaves out has the default here."""

    model_config = ConfigDict(json_schema_extra=_hide_defaults)


def build_section(section: type[SomeSection], settings: Mapping[str, Any]) -> SomeSection:
    """One checked section of the configuration.

    Raises:
        BadConfig: a key is unknown or a value out of bounds; one line per fault, with the nearest valid one.
    """
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        raise BadConfig(explain_faults(section, error.errors())) from None
