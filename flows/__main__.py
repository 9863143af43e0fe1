"""The command line, as `thaw` and as `python -m flows`.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 2 a user's
mistake, 3 the gate stayed closed, 1 anything else.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape

from flows.terminal import (
    flatten_outcome,
    in_words,
    notes,
    print_json,
    print_outcome,
    print_quarantine,
    print_table,
    results,
)
from thaw.config import RECIPES, TrainConfig, build_config, list_recipes, read_recipe
from thaw.errors import BadConfig, Mistake, ThawError
from thaw.store import Store

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a labelled image dump to a tested, fine-tuned classifier.",
)

DumpOption = Annotated[Path, typer.Option("--dump", help="Zip archive or folder of labelled images.")]
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
    Path | None, typer.Option("--store", help="Folder of the store [THAW_STORE, or store].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

_DEFAULT_RECIPE = TrainConfig.model_fields["recipe"].default
EXIT_MISTAKE, EXIT_GATE_CLOSED, EXIT_FAULT = 2, 3, 1
_TYPERS_INTERRUPT = 130


@app.command()
def train(
    dump: DumpOption,
    recipe: RecipeOption = _DEFAULT_RECIPE,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    changes: SetOption = None,
    override_gate: Annotated[
        bool, typer.Option("--override-gate", help="Fine-tune even from an unconverged head, and say so.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train, test and save a model, as a Prefect flow."""
    settings = _gather_settings(dump, recipe, weights, layout, changes)
    if override_gate:
        _set(settings, "gate.override_gate", True)
    _train(build_config(settings), Store(store), as_json)


@app.command()
def demo(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Run the whole method offline on drawn cats and dogs, with a small backbone."""
    from thaw.drawings import draw_dump

    place = Store(store)
    place.check_writable()
    dump = place.root / "drawn-cats-and-dogs.zip"
    if not dump.exists():
        notes.print("drawing 400 cats and dogs …")
        draw_dump(dump)
    _train(build_config({"dump": {"path": dump}, "recipe": "demo"}), place, as_json)


@app.command()
def split(
    dump: DumpOption,
    recipe: RecipeOption = _DEFAULT_RECIPE,
    layout: LayoutOption = None,
    changes: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write and print the split of a dump: counts per class, and what is quarantined."""
    from thaw.dump import check_quarantine, scan_dump
    from thaw.split import publish_split

    place = Store(store)
    place.check_writable()
    config = build_config(_gather_settings(dump, recipe, None, layout, changes))
    # Whoever has too many bad images wants to see them first.
    manifest = scan_dump(config.dump.model_copy(update={"max_quarantine_fraction": 1.0}), place).value
    if not as_json:
        print_quarantine(manifest)
    check_quarantine(manifest, config.dump.max_quarantine_fraction)
    made = publish_split(manifest, config.split, place).value
    quarantined = [vars(bad) for bad in manifest.quarantined]
    file = place.folder("splits", f"{made.digest}.json")
    if as_json:
        print_json(
            split=made.digest,
            file=str(file),
            layout=manifest.layout,
            counts=made.counts(),
            quarantined=quarantined,
        )
        return
    rows = [(side, *counts.values()) for side, counts in made.counts().items()]
    print_table(["side", *made.classes], rows, title=f"split {made.digest}, layout {manifest.layout}")
    results.print(f"written to {file}", soft_wrap=True)


@app.command()
def features(
    dump: DumpOption,
    recipe: RecipeOption = _DEFAULT_RECIPE,
    weights: WeightsOption = None,
    layout: LayoutOption = None,
    changes: SetOption = None,
    cut: Annotated[
        str | None, typer.Option("--cut", help="Layer to stop at; the last pooling if not given.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", help="Also write bottleneck_features_<side>.npy and labels here."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fill the feature cache: every image of the split, once through the frozen backbone."""
    from thaw.backbone import check_cut, load_backbone
    from thaw.dump import scan_dump
    from thaw.features import cache_features
    from thaw.rows import export_features
    from thaw.split import publish_split

    place = Store(store)
    config = build_config(_gather_settings(dump, recipe, weights, layout, changes))
    place.check_writable()
    backbone = load_backbone(config.backbone, place).value
    check_cut(backbone, cut or backbone.end)
    manifest = scan_dump(config.dump, place).value
    made = publish_split(manifest, config.split, place).value
    cached = cache_features(made, config.dump, backbone, config.backbone, cut or backbone.end, place)
    files = [str(file) for file in export_features(cached.value, export, place)] if export else []
    if as_json:
        space = cached.value.train.space
        print_json(space=space, split=made.digest, cached=cached.reused, note=cached.note, files=files)
        return
    results.print(f"{cached.note}; {place.folder('features', cached.value.train.space)}", soft_wrap=True)
    for file in files:
        results.print(file, soft_wrap=True)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A model.keras that `thaw train` saved.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, folders or zip archives.")],
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a CSV file here.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print class and probability of each image."""
    from thaw.model import load_model
    from thaw.predict import predict_images, write_csv

    if csv and not csv.absolute().parent.is_dir():
        raise Mistake(f"there is no folder {csv.absolute().parent} to write {csv.name} to. Make it first.")
    network, facts = load_model(model)
    rows = list(predict_images(network, facts, images))
    if csv:
        write_csv(csv, facts.classes, rows)
    if as_json:
        print_json(classes=facts.classes, images=[vars(row) for row in rows], csv=str(csv) if csv else None)
    elif csv:
        results.print(f"{len(rows)} images written to {csv}", soft_wrap=True)
    else:
        shown = [
            (
                row.path,
                row.label or "",
                f"{max(row.probabilities):.4f}" if row.probabilities else "",
                row.error or "",
            )
            for row in rows
        ]
        print_table(["path", "class", "probability", "error"], shown)
    if rows and all(row.error for row in rows):
        raise Mistake("none of the images could be read.")
    if not rows:
        raise Mistake(f"no images found in {', '.join(map(str, images))}.")


@app.command()
def doctor(
    recipe: RecipeOption = _DEFAULT_RECIPE,
    weights: WeightsOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine is: devices, precision, weights, disk, versions."""
    from thaw.doctor import examine_machine

    config = build_config(_gather_settings(Path(), recipe, weights, None, None))
    facts = examine_machine(config.backbone, Store(store))
    if as_json:
        print_json(**facts)
        return
    rows = [(name.replace("_", " "), in_words(value)) for name, value in facts.items()]
    print_table(["", "this machine"], rows)


@app.command()
def recipes(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the recipes: what each is, and what it is expected to reach."""
    headers = {name: _read_header(RECIPES / f"{name}.yaml") for name in list_recipes()}
    if as_json:
        print_json(recipes={name: {"about": header, **read_recipe(name)} for name, header in headers.items()})
        return
    print_table(["recipe", "what it is"], list(headers.items()))


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except SystemExit as ending:
        if ending.code != _TYPERS_INTERRUPT:
            raise
        notes.print("interrupted; what was finished is kept, the same command goes on from there")
        sys.exit(EXIT_FAULT)
    except OSError as error:
        notes.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(EXIT_FAULT)
    except ThawError as error:
        notes.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        sys.exit(EXIT_MISTAKE if isinstance(error, Mistake) else EXIT_FAULT)


def _train(config: TrainConfig, store: Store, as_json: bool) -> None:
    from flows.session import run_flow

    outcome = run_flow(config, store)
    folder = store.folder("runs", outcome.run)
    report, model = folder / "report.html", folder / "model.keras"
    if as_json:
        print_json(
            **flatten_outcome(outcome), report=str(report), model=None if outcome.withheld else str(model)
        )
    else:
        print_outcome(outcome)
        results.print(f"report  {report}", soft_wrap=True)
        if not outcome.withheld:
            results.print(f"model   {model}", soft_wrap=True)
    if outcome.withheld:
        notes.print(
            f"[yellow]the gate stayed closed:[/yellow] {outcome.verdict.reason}. No model was released."
        )
        raise typer.Exit(EXIT_GATE_CLOSED)


def _gather_settings(
    dump: Path, recipe: str, weights: str | None, layout: str | None, changes: list[str] | None
) -> dict[str, Any]:
    settings: dict[str, Any] = {"dump": {"path": dump}, "recipe": recipe}
    for change in changes or []:
        key, equals, value = change.partition("=")
        if not equals:
            raise BadConfig(f"--set takes KEY=VALUE, such as head.epochs=10. Received: {change!r}.")
        try:
            _set(settings, key, yaml.safe_load(value))
        except yaml.YAMLError:
            raise BadConfig(
                f"setting '{key}': not a value that YAML can read. Received: {value!r}."
            ) from None
    if layout is not None:
        _set(settings, "dump.layout", layout)
    if weights is not None:
        _set(settings, "backbone.weights", weights)
    return settings


def _set(settings: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.strip().split(".")
    place = settings
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise BadConfig(f"setting '{key}': '{section}' is already set to {place!r}, which has no parts.")
    place[name] = value


def _read_header(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    header = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(line for line in header if not line.startswith(("thaw ", "Source:")))


if __name__ == "__main__":
    main()
