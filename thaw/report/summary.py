"""What a run came to: the records a report needs, and their outcome in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from thaw.config import NO_BACKBONE, TrainConfig
from thaw.ensemble import Member
from thaw.errors import UnlikeSplits
from thaw.records import Backbone, Checkpoint, Evaluation, Manifest, Split, StageTime, Verdict
from thaw.report.properties import list_warnings
from thaw.report.wording import say_duration, say_interval, say_percent

if TYPE_CHECKING:
    from thaw.calibrate import Calibration
    from thaw.duplicates import Duplicates
    from thaw.gradcam import HeatMaps
    from thaw.properties import PropertyCheck
    from thaw.search import HeadSearch


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """All that a report of a run needs.

    `members` are the networks of the model, most often one; the first of them speaks for all. `left_out` are
    those that did not get as far, and `ensemble` is what averages more than one network or image.
    `head_evaluation`, of the first head, and `evaluation` are of the same test rows; `evaluation` is None where
    a head alone is the model. `calibration` is the model's, None where none was asked for; `heat` says where the
    model looked. `pictures` are PNG files by name: those that `thaw.report.pictures` draws have their places,
    others come last.
    """

    title: str
    config: TrainConfig
    manifest: Manifest
    split: Split
    members: tuple[Member, ...]
    backbone: Backbone
    precision: str
    duplicates: Duplicates | None = None
    properties: PropertyCheck | None = None
    search: HeadSearch | None = None
    left_out: tuple[Member, ...] = ()
    ensemble: Checkpoint | None = None
    stages: tuple[StageTime, ...] = ()
    head_evaluation: Evaluation | None = None
    evaluation: Evaluation | None = None
    heat: HeatMaps | None = None
    calibration: Calibration | None = None
    pictures: Mapping[str, bytes] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        splits = {made.split for made in (self.head_evaluation, self.evaluation) if made}
        if len(splits) > 1:
            raise UnlikeSplits(
                f"the head and the fine-tuned model were tested on different splits ({', '.join(splits)}). "
                "Evaluate both on the test rows of one split."
            )

    @property
    def head(self) -> Checkpoint:
        return self.members[0].head

    @property
    def verdict(self) -> Verdict:
        return self.members[0].verdict

    @property
    def phases(self) -> tuple[Checkpoint, ...]:
        return self.members[0].phases

    @property
    def phase_verdicts(self) -> tuple[Verdict, ...]:
        return self.members[0].phase_verdicts

    @property
    def model(self) -> Checkpoint:
        """What the run ends with."""
        return self.ensemble or self.members[0].model

    @property
    def is_overridden(self) -> bool:
        """Whether anything was thawed behind what had not converged."""
        return any(member.is_overridden for member in self.members)

    @property
    def tested(self) -> Evaluation | None:
        """The evaluation of the model that the run ends with."""
        return self.evaluation or self.head_evaluation

    @property
    def temperature(self) -> float:
        """What the model was tested with, and is released with."""
        return self.tested.temperature if self.tested else 1.0


@dataclass(frozen=True, kw_only=True)
class WrongCall:
    """A test image that was called by another class's name, and the probability that class was given."""

    path: str
    label: str
    called: str
    probability: float


def list_mistakes(made: Evaluation) -> list[WrongCall]:
    """The test images that were called wrong, the most confident first."""
    wrong = []
    for row in made.predictions:
        probability = max(row.probabilities)
        called = made.classes[row.probabilities.index(probability)]
        if called != row.label:
            wrong.append(WrongCall(path=row.path, label=row.label, called=called, probability=probability))
    return sorted(wrong, key=lambda one: (-one.probability, one.path))


def find_pictures(run: RunSummary, **pictures: str) -> dict[str, str]:
    """What those of the named pictures show that the run has."""
    return {name: shown for name, shown in pictures.items() if name in run.pictures}


def say_outcome(run: RunSummary) -> str:
    """The run in one sentence."""
    if run.model is not run.head:
        lead, mark = say_kind(run), ":"
        if run.is_overridden and run.phases:
            lead, mark = f"Gate overridden: {lead[0].lower()}{lead[1:]} from an unconverged head", ","
        if not run.evaluation:
            return f"{lead}, not tested."
        return f"{lead}{mark} {_say_accuracy(run.evaluation)}{_say_head_alone(run)}."
    head = f" {say_stage(run.tested)}: {_say_accuracy(run.tested)}." if run.tested else ""
    if run.tested and run.head.stage == "network":
        return head.strip()
    if run.tested:
        return f"Backbone kept frozen.{head}"
    return f"Gate closed: {run.verdict.reason.rstrip('. ')}.{head}"


def list_notices(run: RunSummary) -> list[str]:
    """What a reader must not miss."""
    notices = []
    overridden = [found for member in run.members for found in member.list_overridden()]
    if overridden:
        times = f" {len(overridden)} times" if len(overridden) > 1 else ""
        notices.append(
            f"The gate was overridden{times} by override_gate: true. Its{' first' if times else ''} verdict was "
            f"{say_state(overridden[0])}: {overridden[0].reason.rstrip('. ')}."
        )
    elif run.tested and not run.verdict.opens_gate:
        notices.append(
            f"The head was released {say_state(run.verdict)}: {run.verdict.reason.rstrip('. ')}. "
            "No fine-tune was planned, so the gate kept nothing back."
        )
    if run.phases and len(run.phases) < len(run.config.fine_tune):
        notices.append(
            f"The gate stayed closed behind phase {len(run.phases)}, after {run.phases[-1].cut}: "
            f"{run.phase_verdicts[-1].reason.rstrip('. ')}. What was to thaw in later phases stayed frozen."
        )
    if run.left_out:
        reached = [f"seed {one.seed} stopped {_say_stop(one)}" for one in run.left_out]
        notices.append(
            f"{len(run.left_out)} of {len(run.left_out) + len(run.members)} members "
            f"{'is' if len(run.left_out) == 1 else 'are'} left out of the model: {', '.join(reached)}."
        )
    if run.backbone.name == "vgg16-mini" or run.backbone.origin == "random":
        notices.append(f"Backbone: {say_backbone(run.backbone)}.")
    if run.properties:
        notices += list_warnings(run.properties)
    return notices


def list_figures(run: RunSummary) -> list[tuple[str, str, str]]:
    """The key figures: label, value, remark."""
    figures = []
    for made in (run.evaluation, run.head_evaluation):
        if made:
            remark = f"interval {say_interval(*made.metrics.accuracy_interval)}"
            figures.append(
                (f"Accuracy, {say_stage(made).lower()}", say_percent(made.metrics.accuracy), remark)
            )
    gate = "open" if run.verdict.opens_gate else "not asked" if run.tested else "closed"
    gate = "overridden" if run.is_overridden else gate
    figures.append(("Gate", gate, f"{say_state(run.verdict)}, epoch {run.verdict.epoch}"))
    cached = sum(stage.cached for stage in run.stages)
    remark = f"{cached} of {len(run.stages)} stages cached"
    figures.append(("Time", say_duration(sum(stage.seconds for stage in run.stages)), remark))
    return figures


def say_backbone(backbone: Backbone) -> str:
    origins = {
        "imagenet": "pretrained on ImageNet",
        "drawings": "pretrained on drawings",
        "random": "random weights, not pretrained",
    }
    if backbone.name == NO_BACKBONE:
        return "none; the whole network was trained from scratch"
    origin = origins.get(backbone.origin, f"weights from {backbone.origin}")
    return f"{backbone.name}, {origin}" + ("; not ImageNet" if backbone.name == "vgg16-mini" else "")


def say_stage(made: Checkpoint | Evaluation) -> str:
    known = {
        "head": "Head alone",
        "network": "Trained from scratch",
        "fine_tuned": "Fine-tuned",
        "ensemble": "Averaged",
    }
    return known.get(made.stage, made.stage)


def say_kind(run: RunSummary) -> str:
    """What the model is, in a few words."""
    kind = "Fine-tuned" if run.phases else say_stage(run.head)
    if not run.ensemble:
        return kind
    if kind == "Head alone":
        kind = "Backbone kept frozen"
    many = f"{len(run.members)} networks averaged" if len(run.members) > 1 else "One network"
    mirrored = ", over each image and its mirror image" if run.ensemble.mirrored else ""
    return f"{many}{mirrored}, {kind.lower()}"


def say_start(run: RunSummary) -> str:
    """What was tested first: the head that fine-tuning starts from, or one of the networks that are averaged."""
    part = "head" if run.head_evaluation.stage == "head" else "network"
    return f"first {part}" if len(run.members) > 1 else part


def say_state(verdict: Verdict) -> str:
    return verdict.state.replace("_", " ")


def _say_accuracy(made: Evaluation) -> str:
    metrics = made.metrics
    interval = say_interval(*metrics.accuracy_interval)
    return f"{say_percent(metrics.accuracy)} of {metrics.images:,} test images right ({interval})"


def _say_stop(member: Member) -> str:
    """Where a member's training ended, and in what state."""
    if member.phases:
        return f"behind phase {len(member.phases)}, {say_state(member.phase_verdicts[-1])}"
    return f"at its head, {say_state(member.verdict)}"


def _say_head_alone(run: RunSummary) -> str:
    if not run.head_evaluation:
        return ""
    alone = run.head_evaluation.metrics.accuracy
    less = "less than the " if run.evaluation.metrics.accuracy < alone else ""
    return f", {less}{say_start(run)} alone {say_percent(alone)}"
