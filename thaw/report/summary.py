"""What a run came to: the records a report needs, and their outcome in a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from thaw.config import NO_BACKBONE, TrainConfig
from thaw.errors import UnlikeSplits
from thaw.records import Backbone, Checkpoint, Evaluation, Manifest, Split, StageTime, Verdict
from thaw.report.wording import say_duration, say_interval, say_percent


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """All that a report of a run needs.

    `phases` are what fine-tuning came to, phase by phase, and `phase_verdicts` the gate's findings on them.
    `head_evaluation` and `evaluation` are of the same test rows; `evaluation` is of the last phase, None
    where nothing was fine-tuned. `pictures` are PNG files by name: curves, confusion, mistakes and views
    have their places, others come last.
    """

    title: str
    config: TrainConfig
    manifest: Manifest
    split: Split
    head: Checkpoint
    verdict: Verdict
    backbone: Backbone
    precision: str
    stages: tuple[StageTime, ...] = ()
    phases: tuple[Checkpoint, ...] = ()
    phase_verdicts: tuple[Verdict, ...] = ()
    head_evaluation: Evaluation | None = None
    evaluation: Evaluation | None = None
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
    def fine_tuned(self) -> Checkpoint | None:
        """What the last phase came to."""
        return self.phases[-1] if self.phases else None

    @property
    def is_overridden(self) -> bool:
        """Whether anything was thawed behind what had not converged."""
        return any(found.overridden for found in (self.verdict, *self.phase_verdicts[:-1]))

    @property
    def tested(self) -> Evaluation | None:
        """The evaluation of the model that the run ends with."""
        return self.evaluation or self.head_evaluation


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


def say_outcome(run: RunSummary) -> str:
    """The run in one sentence."""
    if run.fine_tuned:
        lead = "Fine-tuned"
        if run.is_overridden:
            lead = "Gate overridden: fine-tuned from an unconverged head"
        if not run.evaluation:
            return f"{lead}, not tested."
        return f"{lead}{', ' if ':' in lead else ': '}{_say_accuracy(run.evaluation)}{_say_head_alone(run)}."
    head = f" {say_stage(run.tested)}: {_say_accuracy(run.tested)}." if run.tested else ""
    if run.tested and run.head.stage == "network":
        return head.strip()
    if run.tested:
        return f"Backbone kept frozen.{head}"
    return f"Gate closed: {run.verdict.reason.rstrip('. ')}.{head}"


def list_notices(run: RunSummary) -> list[str]:
    """What a reader must not miss."""
    notices = []
    overridden = [found for found in (run.verdict, *run.phase_verdicts[:-1]) if found.overridden]
    if overridden:
        notices.append(
            f"The gate was overridden by override_gate: true. Its verdict was {say_state(overridden[0])}: "
            f"{overridden[0].reason.rstrip('. ')}."
        )
    elif run.tested and not run.verdict.opens_gate:
        notices.append(
            f"The head was released {say_state(run.verdict)}: {run.verdict.reason.rstrip('. ')}. "
            "No fine-tune was planned, so the gate kept nothing back."
        )
    if run.phases and len(run.phases) < len(run.config.fine_tune):
        notices.append(
            f"The gate stayed closed behind phase {len(run.phases)}, after {run.fine_tuned.cut}: "
            f"{run.phase_verdicts[-1].reason.rstrip('. ')}. What was to thaw in later phases stayed frozen."
        )
    if run.backbone.name == "vgg16-mini" or run.backbone.origin == "random":
        notices.append(f"Backbone: {say_backbone(run.backbone)}.")
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


def say_stage(made: Evaluation) -> str:
    known = {"head": "Head alone", "network": "Trained from scratch", "fine_tuned": "Fine-tuned"}
    return known.get(made.stage, made.stage)


def say_state(verdict: Verdict) -> str:
    return verdict.state.replace("_", " ")


def _say_accuracy(made: Evaluation) -> str:
    metrics = made.metrics
    interval = say_interval(*metrics.accuracy_interval)
    return f"{say_percent(metrics.accuracy)} of {metrics.images:,} test images right ({interval})"


def _say_head_alone(run: RunSummary) -> str:
    if not run.head_evaluation:
        return ""
    alone = run.head_evaluation.metrics.accuracy
    less = "less than the " if run.evaluation.metrics.accuracy < alone else ""
    return f", {less}head alone {say_percent(alone)}"
