"""Commands that look into a dump: its split, its features."""

from pathlib import Path
from typing import Annotated

import typer

from commands.options import (
    DEFAULT_RECIPE,
    DumpOption,
    JsonOption,
    LayoutOption,
    RecipeOption,
    SetOption,
    StoreOption,
    WeightsOption,
    gather_settings,
)
from commands.terminal import print_json, print_quarantine, print_table, results
from thaw.config import build_config
from thaw.store import Store


def split(
    dump: DumpOption,
    recipe: RecipeOption = DEFAULT_RECIPE,
    layout: LayoutOption = None,
    changes: SetOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write and print the split of a dump: counts per class, and what is quarantined."""
    from thaw.dump import check_quarantine, scan_dump
    from thaw.duplicates import find_duplicates
    from thaw.split import publish_split

    place = Store(store)
    place.check_writable()
    config = build_config(gather_settings(dump, recipe, None, layout, changes))
    # Whoever has too many bad images wants to see them first.
    manifest = scan_dump(config.dump.model_copy(update={"max_quarantine_fraction": 1.0}), place).value
    if not as_json:
        print_quarantine(manifest)
    check_quarantine(manifest, config.dump.max_quarantine_fraction)
    duplicates = find_duplicates(manifest, config.dump, config.duplicates, place)
    made = publish_split(manifest, config.split, place, duplicates.value.rows).value
    quarantined = [vars(bad) for bad in manifest.quarantined]
    file = place.fetch("splits", f"{made.digest}.json")
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
    if duplicates.value.groups:
        results.print(duplicates.note, soft_wrap=True)
    results.print(f"written to {file}", soft_wrap=True)


def features(
    dump: DumpOption,
    recipe: RecipeOption = DEFAULT_RECIPE,
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
    from thaw.backbone import find_cut, load_backbone
    from thaw.dump import scan_dump
    from thaw.duplicates import find_duplicates
    from thaw.features import cache_features
    from thaw.rows import export_features
    from thaw.split import publish_split

    place = Store(store)
    config = build_config(gather_settings(dump, recipe, weights, layout, changes))
    place.check_writable()
    backbone = load_backbone(config.backbone, place).value
    cut = find_cut(backbone, cut or backbone.end)
    manifest = scan_dump(config.dump, place).value
    duplicates = find_duplicates(manifest, config.dump, config.duplicates, place).value
    made = publish_split(manifest, config.split, place, duplicates.rows).value
    cached = cache_features(made, config.dump, backbone, config.backbone, cut, place)
    files = [str(file) for file in export_features(cached.value, export, place)] if export else []
    if as_json:
        space = cached.value.train.space
        print_json(space=space, split=made.digest, cached=cached.reused, note=cached.note, files=files)
        return
    results.print(f"{cached.note}; {place.folder('features', cached.value.train.space)}", soft_wrap=True)
    for file in files:
        results.print(file, soft_wrap=True)
