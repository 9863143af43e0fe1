"""The model card: what a released model is for, what it was made from, how well it does and where it ends.

It says in Markdown, for whoever is handed the model alone, what the report says to whoever trained it, from the
same record.

Source: its parts are those of M. Mitchell et al., Model Cards for Model Reporting, 2019, arXiv:1810.03993.
"""

import statistics
from collections.abc import Iterator
from dataclasses import replace

from thaw.config import NO_BACKBONE
from thaw.records import Evaluation, Outcome
from thaw.report.page import drop_surrogates, escape_markdown, list_blocks
from thaw.report.parts import Section, Table
from thaw.report.sections import list_sections
from thaw.report.summary import RunSummary, list_notices, say_backbone, say_kind, say_outcome
from thaw.report.wording import say_interval, say_number, say_percent

# The report's own parts that a card has as well, under their headings there.
_DATA, _TRAINING, _EVALUATION = ("data", "split"), ("search", "gate", "curves", "ensemble"), ("evaluation",)


def render_card(run: RunSummary, outcome: Outcome) -> str:
    """The card of a run's model, as Markdown without pictures.

    Args:
        run: one that was tested, so that it has a model.
    """
    # A card stands alone: pictures stay with the report.
    sections = {section.name: section for section in list_sections(replace(run, pictures={}))}
    blocks = [f"# {escape_markdown(_say_title(run))}", f"**{escape_markdown(say_outcome(run))}**"]
    blocks += [f"> {escape_markdown(notice)}" for notice in list_notices(run)]
    blocks += list_blocks(_describe_model(run, outcome))
    blocks += list_blocks(_describe_use(run))
    for heading, names in (("Data", _DATA), ("Training", _TRAINING), ("Evaluation", _EVALUATION)):
        blocks.append(f"## {heading}")
        for name in names:
            if name in sections:
                blocks += _list_inner_blocks(sections[name], heading)
    blocks += ["## Limits", "\n".join(f"- {escape_markdown(limit)}" for limit in _list_limits(run))]
    blocks += list_blocks(sections["provenance"])
    return drop_surrogates("\n\n".join(blocks) + "\n")


def _list_inner_blocks(section: Section, heading: str) -> list[str]:
    """A section of the report one level deeper, or without its title where it has the heading's."""
    title, *blocks = list_blocks(section)
    return blocks if section.title == heading else [f"#{title}", *blocks]


def _say_title(run: RunSummary) -> str:
    return f"{_list_classes(run)}: {run.title}"


def _list_classes(run: RunSummary, most: int = 6) -> str:
    classes = run.split.classes
    if len(classes) > most:
        return f"{', '.join(classes[:most])} and {len(classes) - most} more"
    return f"{', '.join(classes[:-1])} or {classes[-1]}"


def _describe_model(run: RunSummary, outcome: Outcome) -> Section:
    settings, classes = run.config.backbone, run.split.classes
    size, colour = settings.image_size_pixels, "red, green and blue" if settings.channels == 3 else "grey"
    fit = (
        "squashed to" if settings.resize_fit == "squash" else "cropped to their middle square and resized to"
    )
    takes = f"float32 or uint8 pixels of 0 to 255, {colour}, (n, {size}, {size}, {settings.channels})"
    gives = f"(n, 1), the probability of '{classes[-1]}'"
    if len(classes) > 2:
        gives = f"(n, {len(classes)}), the probability of each class in this order"
    rows = [
        ("file", f"model.keras of run {outcome.run}, which plain Keras loads"),
        ("kind", say_kind(run)),
        ("backbone", say_backbone(run.backbone)),
        ("takes", takes),
        (
            "images",
            f"{fit} {size} × {size} pixels with the {settings.resize_filter} filter; no further steps",
        ),
        ("gives", gives),
        ("classes", ", ".join(classes)),
        ("parity", f"from raw pixels it gives what was tested, to {outcome.parity:.2g} on average"),
        ("made by", f"thaw {run.versions.get('thaw', '')}".strip()),
    ]
    return Section(name="model", title="Model", tables=[Table(columns=("", ""), rows=rows, align="ll")])


def _describe_use(run: RunSummary) -> Section:
    text = [
        f"For photographs like those it was trained on, each of which shows {_list_classes(run)}: it says which, "
        "and how sure it is.",
        "Not for images that show none of these or several at once: it gives every image one of its classes. Not for "
        "decisions about people, or others that harm when they are wrong, unless it was tested for those.",
    ]
    return Section(name="use", title="Intended use", text=text)


def _list_limits(run: RunSummary) -> Iterator[str]:
    tested, counts = run.tested, run.split.counts()
    low, high = tested.metrics.accuracy_interval
    yield (
        f"The figures hold for images from {run.config.dump.path.name}: the test images come from there too. "
        "Other cameras, places or times can do worse, and no figure here says by how much."
    )
    yield (
        f"{tested.metrics.images:,} test images leave the accuracy open within {say_interval(low, high)}, "
        "at 95 % and for images drawn alike."
    )
    sure, right = statistics.fmean(max(row.probabilities) for row in tested.predictions), tested.metrics
    yield (
        f"On the test images it was {say_percent(sure)} sure on average and {say_percent(right.accuracy)} right; "
        f"log loss {say_number(right.log_loss)} nats, expected calibration error "
        f"{say_number(right.calibration_error)}. {_say_temperature(run)}"
    )
    worst = _find_worst(tested)
    if worst:
        name, share, images = worst
        yield f"It knows '{name}' least: {say_percent(share)} of {images:,} test images right."
    trained = counts["train"]
    rare, common = min(trained, key=trained.get), max(trained, key=trained.get)
    if trained[common] > 1.5 * trained[rare]:
        yield (
            f"It learned from {trained[common]:,} images of '{common}' and {trained[rare]:,} of '{rare}', and "
            "leans to what it saw more of."
        )
    sides = sorted({min(image.width, image.height) for image in run.split.train})
    size = run.config.backbone.image_size_pixels
    lengths = f"{sides[0]:,} to {sides[-1]:,}" if len(sides) > 1 else f"{sides[0]:,}"
    yield (
        f"It sees {size} × {size} pixels; its training images were {lengths} pixels long on their shorter side. "
        "What is small in a picture is lost to it."
    )
    if run.backbone.name != NO_BACKBONE and run.backbone.origin != "random":
        yield f"What its backbone ({say_backbone(run.backbone)}) learned before, good or bad, it passes on."
    aside = len(run.manifest.quarantined)
    if aside:
        yield f"{aside:,} images of the dump were set aside, and it neither learned from them nor was tested on them."


def _say_temperature(run: RunSummary) -> str:
    if run.tested.temperature == 1:
        return "Its probabilities are as it was trained to give them."
    return f"Its logits are divided by {run.tested.temperature:g}, which was fitted on the validation images."


def _find_worst(made: Evaluation) -> tuple[str, float, int] | None:
    """The class of which the smallest share was called right, that share, and its test images."""
    shares = [
        (calls[index] / sum(calls), name, sum(calls))
        for index, (name, calls) in enumerate(zip(made.classes, made.metrics.confusion, strict=True))
        if sum(calls)
    ]
    share, name, images = min(shares, default=(0.0, "", 0))
    return (name, share, images) if len(shares) > 1 else None
