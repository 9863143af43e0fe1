"""Options that commands share, and the settings that they add up to."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from thaw.config import TrainConfig, build_section
from thaw.errors import BadConfig
from thaw.runner import Runner

DumpOption = Annotated[
    str,
    typer.Option(
        "--dump",
        metavar="PATH",
        help="Zip archive, folder, or NumPy archive of labelled images: a path or a URL.",
    ),
]
RecipeOption = Annotated[str, typer.Option("--recipe", help="Settings to start from; see `thaw recipes`.")]
WeightsOption = Annotated[
    str | None, typer.Option("--weights", help="imagenet, drawings, random, or the path of a file.")
]
LayoutOption = Annotated[
    str | None, typer.Option("--layout", help="auto, flat, class_folders or ready_splits.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting, such as head.epochs=10. Repeatable.")
]
StoreOption = Annotated[
    str | None, typer.Option("--store", help="Folder or URL of the store [THAW_STORE, or store].")
]
RunnerOption = Annotated[
    str,
    typer.Option(
        "--runner",
        help="Where to compute: local, pools, dask, or a Dask scheduler's address; KIND,KEY=VALUE,… changes settings "
        "of it, such as dask,workers=2.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

DEFAULT_RECIPE = TrainConfig.model_fields["recipe"].default


def gather_settings(
    dump: str | Path, recipe: str, weights: str | None, layout: str | None, changes: list[str] | None
) -> dict[str, Any]:
    """Nested settings, as `build_config` takes them, of what was given on the command line."""
    settings: dict[str, Any] = {"dump": {"path": dump}, "recipe": recipe}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise BadConfig(f"--set takes KEY=VALUE, such as head.epochs=10. Received: {change!r}.")
        try:
            put_setting(settings, key, yaml.safe_load(value))
        except yaml.YAMLError:
            raise BadConfig(
                f"setting '{key}': not a value that YAML can read. Received: {value!r}."
            ) from None
    if layout is not None:
        put_setting(settings, "dump.layout", layout)
    if weights is not None:
        put_setting(settings, "backbone.weights", weights)
    return settings


def read_runner(text: str) -> Runner:
    """The runner that an option names.

    Raises:
        BadConfig: there is no such kind, or a setting is unknown or out of bounds.
    """
    word, *changes = text.split(",")
    settings: dict[str, Any] = {"address": word, "kind": "dask"} if "://" in word else {"kind": word}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise BadConfig(f"--runner takes KIND,KEY=VALUE,… such as dask,workers=2. Received: {text!r}.")
        settings[key.strip()] = value.strip()
    try:
        return build_section(Runner, settings)
    except BadConfig as error:
        raise BadConfig(f"--runner {text}: {error}") from None


def put_setting(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set one value under a dotted key, such as head.epochs."""
    *sections, name = key.strip().split(".")
    place = settings
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise BadConfig(f"setting '{key}': '{section}' is already set to {place!r}, which has no parts.")
    place[name] = value
