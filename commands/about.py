"""Commands that tell what there is: this machine, the recipes."""

from pathlib import Path

from commands.options import (
    DEFAULT_RECIPE,
    JsonOption,
    RecipeOption,
    StoreOption,
    WeightsOption,
    gather_settings,
)
from commands.terminal import in_words, print_json, print_table
from thaw.config import build_config
from thaw.recipe import RECIPES, list_recipes, read_recipe
from thaw.store import Store


def doctor(
    recipe: RecipeOption = DEFAULT_RECIPE,
    weights: WeightsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine is: devices, precision, weights, disk, versions."""
    from thaw.doctor import examine_machine

    config = build_config(gather_settings(Path(), recipe, weights, None, None))
    facts = examine_machine(config.backbone, Store(store))
    if as_json:
        print_json(**facts)
        return
    rows = [(name.replace("_", " "), in_words(value)) for name, value in facts.items()]
    print_table(["", "this machine"], rows)


def recipes(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the recipes: what each is, and what it is expected to reach."""
    headers = {name: _read_header(RECIPES / f"{name}.yaml") for name in list_recipes()}
    if as_json:
        print_json(recipes={name: {"about": header, **read_recipe(name)} for name, header in headers.items()})
        return
    print_table(["recipe", "what it is"], list(headers.items()))


def _read_header(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    header = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(line for line in header if not line.startswith(("thaw ", "Source:")))
