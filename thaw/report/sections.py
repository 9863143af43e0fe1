"""The parts of a report, as words and tables: facts that the HTML and the Markdown share."""

import statistics
from collections import Counter
from collections.abc import Sequence

import yaml

from thaw.config import NO_BACKBONE
from thaw.config import Section as ConfigSection
from thaw.records import SIDES, Checkpoint, Manifest
from thaw.report.duplicates import describe_duplicates
from thaw.report.ensemble import describe_ensemble
from thaw.report.evaluation import describe_evaluation
from thaw.report.heat import describe_heat
from thaw.report.parts import Bar, Section, Table
from thaw.report.photographs import MOST_IMAGES
from thaw.report.properties import describe_properties
from thaw.report.search import describe_search
from thaw.report.summary import RunSummary, find_pictures, list_mistakes, say_backbone, say_state
from thaw.report.wording import say_duration, say_nats, say_percent, shorten

_MOST_QUARANTINED = 200


def list_sections(run: RunSummary) -> list[Section]:
    """The report's parts, in the order of the method. Parts with nothing to say are left out."""
    sections = [_data(run)]
    if run.properties:
        sections.append(describe_properties(run.properties))
    sections.append(_split(run))
    if run.duplicates and run.duplicates.groups:
        sections.append(describe_duplicates(run.duplicates, run.split))
    if run.search:
        sections.append(describe_search(run.search))
    sections += [_gate(run), _curves(run)]
    if run.ensemble:
        sections.append(describe_ensemble(run))
    if run.tested:
        sections += [describe_evaluation(run), _mistakes(run)]
    if run.heat:
        sections.append(describe_heat(run))
    if shown := find_pictures(run, views="One image beside augmented views of it"):
        settings = _settings(run.config.augmentation)
        text = f"One image, and views of it as the augmentation draws them: {settings}."
        sections.append(Section(name="views", title="Augmentation", text=[text], pictures=shown))
    sections += [_cost(run), _provenance(run)]
    placed = {name for section in sections for name in section.pictures}
    others = {name: name for name in run.pictures if name not in placed}
    if others:
        sections.append(Section(name="more", title="More pictures", pictures=others))
    return sections


def _data(run: RunSummary) -> Section:
    manifest = run.manifest
    usable = Counter(image.label for image in manifest.images)
    aside = Counter(bad.label for bad in manifest.quarantined)
    dump = run.config.dump.path
    text = [f"{dump.name or dump}, layout {manifest.layout.replace('_', ' ')}: {_sizes(manifest)}."]
    if manifest.ignored:
        names = ", ".join(shorten(name, 40) for name in manifest.ignored[:3])
        more = ", …" if len(manifest.ignored) > 3 else ""
        text.append(f"Ignored, no images by name: {len(manifest.ignored):,} ({names}{more}).")
    rows = [(name, f"{usable[name]:,}", f"{aside[name]:,}") for name in manifest.classes]
    strangers = aside.total() - sum(aside[name] for name in manifest.classes)
    if strangers:
        rows.append(("(no class)", "0", f"{strangers:,}"))
    rows.append(("all", f"{len(manifest.images):,}", f"{len(manifest.quarantined):,}"))
    tables = [Table(columns=("class", "usable images", "quarantined"), rows=rows, align="lrr", totals=True)]
    if manifest.quarantined:
        tables.append(_quarantine(manifest))
    return Section(name="data", title="Data", text=text, tables=tables)


def _quarantine(manifest: Manifest) -> Table:
    bad = manifest.quarantined
    rows = [(shorten(one.path), one.label or "–", shorten(one.reason)) for one in bad[:_MOST_QUARANTINED]]
    if len(bad) > len(rows):
        rows.append((f"and {len(bad) - len(rows):,} more, in the manifest", "", ""))
    folded = f"All {len(bad):,} quarantined images and why" if len(bad) > 8 else ""
    return Table(columns=("quarantined image", "class", "reason"), rows=rows, align="lll", folded=folded)


def _sizes(manifest: Manifest) -> str:
    if not manifest.images:
        return "no usable image"
    widths = [image.width for image in manifest.images]
    heights = [image.height for image in manifest.images]
    if min(widths) == max(widths) and min(heights) == max(heights):
        return f"every image {widths[0]} × {heights[0]} pixels"
    middle = f"{statistics.median_high(widths)} × {statistics.median_high(heights)}"
    return (
        f"images from {min(widths)} to {max(widths)} pixels wide and {min(heights)} to {max(heights)} high, "
        f"the median {middle}"
    )


def _split(run: RunSummary) -> Section:
    split, counts = run.split, run.split.counts()
    usable = Counter(image.label for image in run.manifest.images)
    rows = []
    for name in split.classes:
        placed = [counts[side][name] for side in SIDES]
        rows.append((name, *(f"{count:,}" for count in (*placed, usable[name] - sum(placed)))))
    totals = [len(split.rows(side)) for side in SIDES]
    rows.append(("all", *(f"{total:,}" for total in (*totals, len(run.manifest.images) - sum(totals)))))
    table = Table(columns=("class", *SIDES, "not used"), rows=rows, align="lrrrr", totals=True)
    text = f"Strategy {split.strategy}, seed {split.seed}, digest {run.head.split}."
    return Section(name="split", title="Split", text=[text], tables=[table])


def _gate(run: RunSummary) -> Section:
    verdict, gate = run.verdict, run.config.gate
    state = say_state(verdict) + (", overridden" if run.verdict.overridden else "")
    rows = [
        ("verdict", state),
        ("reason", verdict.reason),
        ("at epoch", f"{verdict.epoch} of {len(run.head.history.epochs)}"),
        ("statistic", say_nats(verdict.statistic)),
        ("threshold", say_nats(verdict.threshold)),
        ("settings", _settings(gate)),
    ]
    for number, (phase, found) in enumerate(zip(run.phases, run.phase_verdicts, strict=True), 1):
        rows.append((f"phase {number}", f"{say_state(found)} (after {phase.cut}): {found.reason}"))
    text = "The backbone thaws behind a head whose validation loss has stopped improving beyond its noise."
    if run.head.stage == "network":
        text = "Whether the network had stopped learning, by the rule that a backbone thaws by."
    others = len(run.members) + len(run.left_out) - 1
    if others:
        text += f" This is the verdict on seed {run.members[0].seed}; there are {others} more."
    shown = find_pictures(
        run, gate="What the gate compared after each epoch: the statistic with its threshold"
    )
    return Section(name="gate", title="Gate", text=[text], tables=[_facts(rows)], pictures=shown)


def _curves(run: RunSummary) -> Section:
    made = [("head", run.head), *(("fine-tune", phase) for phase in run.phases)]
    trained = [(name, one) for name, one in made if one.history.best]
    measures = ("trained from", "epochs", "best epoch", "validation loss", "validation accuracy")
    measures += ("training accuracy", "learning rate")
    rows = list(zip(measures, *(_best_figures(one) for _, one in trained), strict=True)) if trained else []
    columns = ("at the best epoch", *(name for name, _ in trained))
    table = Table(columns=columns, rows=rows, align="l" + "r" * len(trained))
    lowest = run.members[0].model.history.monitor == "val_loss"
    best = "lowest validation loss" if lowest else "highest validation accuracy"
    return Section(
        name="curves",
        title="Curves",
        text=[f"The weights kept are those of the best epoch, the one of the {best}."],
        tables=[table] if rows else [],
        pictures=find_pictures(run, curves="Accuracy and loss by epoch"),
    )


def _best_figures(made: Checkpoint) -> tuple[str, ...]:
    history, best = made.history, made.history.best
    return (
        made.cut,
        f"{len(history.epochs)}",
        f"{history.best_epoch}" if history.best_epoch else "the start",
        say_nats(best.val_loss),
        say_percent(best.val_accuracy),
        # Before its first epoch a model has no training figures.
        say_percent(best.accuracy) if history.best_epoch else "–",
        f"{best.learning_rate:.3g}",
    )


def _mistakes(run: RunSummary) -> Section:
    wrong = list_mistakes(run.tested)
    rows = [
        (shorten(one.path), one.label, one.called, f"{one.probability:.4f}") for one in wrong[:MOST_IMAGES]
    ]
    table = Table(columns=("image", "label", "called", "probability"), rows=rows, align="lllr")
    text = f"{len(wrong):,} of {run.tested.metrics.images:,} test images were called wrongly."
    if len(wrong) > len(rows):
        text += f" The {len(rows)} most confident:"
    return Section(
        name="mistakes",
        title="Most confident mistakes",
        text=[text],
        tables=[table] if rows else [],
        pictures=find_pictures(
            run, mistakes="What each image is, what it was called and with what probability"
        ),
    )


def _cost(run: RunSummary) -> Section:
    total = sum(stage.seconds for stage in run.stages)
    rows, done = [], 0.0
    for stage in run.stages:
        end = done + stage.seconds
        bar = Bar(text=say_duration(stage.seconds), start=done / (total or 1), end=end / (total or 1))
        rows.append((stage.stage, bar, "cached" if stage.cached else "made"))
        done = end
    rows.append(("all", say_duration(total), ""))
    table = Table(columns=("stage", "time", "output"), rows=rows, align="lll", totals=True)
    text = "A cached stage found its output published in the store and made nothing."
    return Section(name="cost", title="Cost", text=[text], tables=[table])


def _provenance(run: RunSummary) -> Section:
    config = run.config
    seeds = {
        "split": run.split.seed,
        "augmentation": config.augmentation.seed,
        "head": config.head.seed,
    }
    pretrained = run.backbone.name != NO_BACKBONE
    seeds |= {f"phase {number}": phase.seed for number, phase in enumerate(config.fine_tune, 1)}
    rows = [
        ("dump", str(config.dump.path)),
        ("recipe", config.recipe),
        ("manifest", run.manifest.digest),
        ("split", run.head.split),
        ("backbone", say_backbone(run.backbone)),
        *([("weights, SHA-256", run.backbone.weights_sha256)] if pretrained else []),
        ("preprocessing", run.backbone.preprocessing),
        *([("precision", run.precision)] if pretrained else []),
        ("head", f"{run.head.address}, on features {run.head.space}"),
    ]
    rows += [("fine-tuned", f"{phase.address}, on features {phase.space}") for phase in run.phases]
    for member in run.members[1:]:
        rows.append(
            (f"with seed {member.seed}", ", ".join(one.address for one in (member.head, *member.phases)))
        )
    if run.ensemble:
        rows.append(("averaged", run.ensemble.address))
    rows.append(("seeds", ", ".join(f"{name} {seed}" for name, seed in seeds.items())))
    rows.append(("versions", ", ".join(f"{name} {number}" for name, number in run.versions.items())))
    settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return Section(name="provenance", title="Provenance", tables=[_facts(rows)], code=settings)


def _facts(rows: Sequence[tuple[str, str]]) -> Table:
    return Table(columns=("", ""), rows=rows, align="ll")


def _settings(section: ConfigSection) -> str:
    def say(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value).lower()

    return ", ".join(f"{name} {say(value)}" for name, value in section.model_dump(mode="json").items())
