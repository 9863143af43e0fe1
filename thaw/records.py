"""What code produces: frozen records that go in and out of JSON, and the digests that name them."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import TypeAdapter

Value = TypeVar("Value")
# Part of every digest: raise it when the method changes what the same inputs give.
_METHOD = 3
# The cut before the first layer: what passes it are the pixels themselves.
PIXELS = "pixels"
Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")


def digest_of(*parts: Any) -> str:
    """The content address of JSON-ready parts: the first 16 digits of the SHA-256 of their canonical JSON."""
    return _digest(_METHOD, *parts)


def is_digest_of(digest: str, *parts: Any) -> bool:
    """Whether a digest is that of JSON-ready parts, by the method of this version or of one before."""
    return any(_digest(method, *parts) == digest for method in range(_METHOD, 0, -1))


def _digest(method: int, *parts: Any) -> str:
    text = json.dumps([method, *parts], sort_keys=True, separators=(",", ":"), default=_jsonable)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _jsonable(value: Any) -> Any:
    if isinstance(value, Record):
        return asdict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


class Record:
    """Base of all records: a frozen dataclass with a JSON form and a digest of its content."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return TypeAdapter(cls).validate_json(text)

    @property
    def digest(self) -> str:
        return digest_of(self)


@dataclass(frozen=True, kw_only=True)
class Made(Generic[Value]):
    """What a stage hands back: its value, and whether it was found published rather than made."""

    value: Value
    reused: bool
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class ImageRow(Record):
    """One usable image of a dump. `side` is set where the dump comes with ready splits."""

    path: str
    label: str
    sha256: str
    width: int
    height: int
    side: Side | None = None


@dataclass(frozen=True, kw_only=True)
class Quarantined(Record):
    """One image set aside, and why.

    `kind` is unreadable (damaged, or no image); contested (the same bytes under two labels); duplicate;
    unlabelled; or refused (a link, or a path that leads outside the dump). The first two count as bad.
    `sha256` is None where the bytes were not read.
    """

    path: str
    label: str | None
    reason: str
    kind: Literal["unreadable", "contested", "duplicate", "unlabelled", "refused"] = "unreadable"
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest(Record):
    """Every image of a dump: the usable ones in natural order of their paths, and the quarantine list.

    `ignored` lists members that are no images by name: `__MACOSX`, `Thumbs.db`, a read-me file.
    `scanner` is the version of the rules that judged the images: facts found by others are not trusted.
    """

    layout: str
    classes: tuple[str, ...]
    images: tuple[ImageRow, ...]
    quarantined: tuple[Quarantined, ...]
    ignored: tuple[str, ...] = ()
    scanner: int = 1


@dataclass(frozen=True, kw_only=True)
class Split(Record):
    """Which images train, validate and test. A label's index is its place in `classes`.

    Its digest depends on these images alone, not on what else the dump holds.
    """

    strategy: str
    seed: int
    classes: tuple[str, ...]
    train: tuple[ImageRow, ...]
    validation: tuple[ImageRow, ...]
    test: tuple[ImageRow, ...]

    def rows(self, side: Side) -> tuple[ImageRow, ...]:
        return getattr(self, side)

    def labels(self, side: Side) -> list[int]:
        index = {label: number for number, label in enumerate(self.classes)}
        return [index[row.label] for row in self.rows(side)]

    def counts(self) -> dict[Side, dict[str, int]]:
        """Images of each class on each side."""
        table = {side: dict.fromkeys(self.classes, 0) for side in SIDES}
        for side in SIDES:
            for row in self.rows(side):
                table[side][row.label] += 1
        return table


@dataclass(frozen=True, kw_only=True)
class Backbone(Record):
    """A backbone that was built and loaded once: its weights, and where it can be cut.

    `origin` is what the weights were asked for by, `weights` the path or URL of their file, or their name where
    every machine has them of its own.
    `layers` are all of its layers, as Keras counts them; `cuts` those after which it can be split, and
    `stages` the cuts that end a stage: there features cost least to keep. A backbone of no layers has the
    one cut `pixels`.
    """

    name: str
    origin: str
    weights: str
    weights_sha256: str
    preprocessing: str
    layers: tuple[str, ...]
    cuts: tuple[str, ...]
    stages: tuple[str, ...]

    @property
    def end(self) -> str:
        """The last cut, whose output is the bottleneck."""
        return self.stages[-1] if self.stages else PIXELS


@dataclass(frozen=True, kw_only=True)
class FeatureSpace(Record):
    """Everything that decides a feature's value. Its digest names the folder that caches the rows.

    `augmentation` is None for the images themselves.
    """

    backbone: str
    weights_sha256: str
    cut: str
    image_size_pixels: int
    resize_fit: str
    resize_filter: str
    colour: str
    preprocessing: str
    precision: str
    storage: str
    augmentation: Mapping[str, Any] | None

    def at(self, cut: str) -> "FeatureSpace":
        """The space at another cut. Pixels are kept as they are, whatever the backbone and its precision.

        Their preprocessing stays named: it is the first thing that a network behind them does.
        """
        if cut != PIXELS:
            return replace(self, cut=cut)
        return replace(self, cut=cut, backbone="", weights_sha256="", precision="exact", storage="uint8")


@dataclass(frozen=True, kw_only=True)
class FeatureSet(Record):
    """A handle to the rows of one side of a split in a space: digests, never arrays.

    `views` is 0 for the images themselves, else the number of augmented views of each image, or fresh
    where each epoch draws its own, of which nothing is cached.
    """

    space: str
    split: str
    side: Side
    views: int | Literal["fresh"] = 0


@dataclass(frozen=True, kw_only=True)
class Features(Record):
    """The three sides of a split at one cut."""

    cut: str
    train: FeatureSet
    validation: FeatureSet
    test: FeatureSet


@dataclass(frozen=True, kw_only=True)
class Epoch(Record):
    """One epoch's figures. Losses are mean cross-entropies in nats."""

    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float


@dataclass(frozen=True, kw_only=True)
class History(Record):
    """What training saw, epoch by epoch.

    `validation_counts` are the validation images of each class. `start` holds the validation figures
    before the first epoch, where a model was taken over: a fine-tune starts from its head. `monitor` says
    what makes one epoch better than another: a lower loss, or a higher accuracy.
    """

    validation_counts: tuple[int, ...]
    epochs: tuple[Epoch, ...] = ()
    start: Epoch | None = None
    monitor: Literal["val_loss", "val_accuracy"] = "val_loss"

    def rank_of(self, epoch: Epoch) -> float:
        """What is monitored of an epoch, so that less is better; infinite where it is not finite."""
        figure = epoch.val_loss if self.monitor == "val_loss" else -epoch.val_accuracy
        return figure if math.isfinite(epoch.val_loss) and math.isfinite(figure) else math.inf

    @property
    def best_epoch(self) -> int:
        """The 1-based epoch that validated best, the first of equals; 0 is the start."""
        ranks = {0: self.rank_of(self.start)} if self.start else {}
        ranks |= {number: self.rank_of(epoch) for number, epoch in enumerate(self.epochs, 1)}
        finite = {number: rank for number, rank in ranks.items() if rank < math.inf}
        return min(finite, key=finite.get, default=0)

    def count_idle_epochs(self, min_improvement: float = 0.0) -> int:
        """Epochs since one was last better than all before it, by more than `min_improvement`."""
        best, idle = self.rank_of(self.start) if self.start else math.inf, 0
        for epoch in self.epochs:
            rank = self.rank_of(epoch)
            idle = 0 if rank < best - min_improvement else idle + 1
            best = rank if idle == 0 else best
        return idle

    @property
    def best(self) -> Epoch | None:
        """The figures at `best_epoch`."""
        return self.epochs[self.best_epoch - 1] if self.best_epoch else self.start

    @property
    def best_loss(self) -> float:
        """The validation loss of the best epoch; infinite where none was finite."""
        return self.best.val_loss if self.best else math.inf


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """The gate's finding, with the statistic it compared and the threshold it used, in nats."""

    state: Literal["plateaued", "improving", "diverged", "at_chance"]
    statistic: float | None
    threshold: float | None
    epoch: int
    reason: str
    overridden: bool = False

    @property
    def opens_gate(self) -> bool:
        return self.state == "plateaued" or self.overridden

    @property
    def is_hopeless(self) -> bool:
        """Whether the head is no classifier at all, so that it is not released even by itself."""
        return self.state in ("diverged", "at_chance")


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """A trained network, from its cut to class probabilities, saved in `checkpoints/<address>/`.

    Its stage is `network` where it was trained from scratch, on pixels, and `ensemble` where it averages the
    checkpoints `members`, and its history holds nothing but validation figures. A `mirrored` one is to be asked
    about mirror images too, and the answers averaged.
    """

    address: str
    stage: Literal["head", "network", "fine_tuned", "ensemble"]
    cut: str
    split: str
    space: str
    history: History
    members: tuple[str, ...] = ()
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True)
class Prediction(Record):
    """One test image and the probability the model gave each class."""

    path: str
    label: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Metrics(Record):
    """Figures over a set of predictions. `log_loss` is in nats; the interval is Wilson's, at 95 %.

    `confusion[i][j]` counts images of class i that were called class j. `auc` and `average_precision` are None
    where a class has no rows: of two classes both take the second for what is looked for, of more they are means
    over the classes, each against the rest.

    `log_loss` takes a probability of 0 for 2.2e-16, as scikit-learn does, which is 36 nats;
    `log_loss_unclipped` takes it as it is, and is None where that makes it infinite, since JSON has no infinity.
    `brier` is the mean squared distance of the probabilities from certainty of the true class, summed over the
    classes and so from 0 to 2; of two classes it is half of that, the squared error of the second one's
    probability, from 0 to 1. `calibration_error` is that of `Reliability`. All four are None in records of
    versions that did not measure them.
    """

    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    log_loss: float
    auc: float | None
    confusion: tuple[tuple[int, ...], ...]
    average_precision: float | None = None
    brier: float | None = None
    calibration_error: float | None = None
    log_loss_unclipped: float | None = None


@dataclass(frozen=True, kw_only=True)
class Bin(Record):
    """Images whose class was called with a probability from `low` to `high`: their mean probability, and the
    share of them that was called right."""

    low: float
    high: float
    images: int
    probability: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Reliability(Record):
    """Probabilities of the called class beside the share that was right, in bins of equal width that hold images.

    `error` is the expected calibration error: the mean difference between the two, weighted by images.
    """

    bins: tuple[Bin, ...]
    error: float


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """What a checkpoint makes of the test rows of a split, image by image.

    `temperature` was applied to its probabilities, 1 being none. Where it is another, `uncalibrated` and
    `uncalibrated_reliability` are of the probabilities before. Of what older versions evaluated, `reliability`
    is None.
    """

    checkpoint: str
    stage: str
    split: str
    classes: tuple[str, ...]
    metrics: Metrics
    predictions: tuple[Prediction, ...]
    temperature: float = 1.0
    reliability: Reliability | None = None
    uncalibrated: Metrics | None = None
    uncalibrated_reliability: Reliability | None = None


@dataclass(frozen=True, kw_only=True)
class StageTime(Record):
    """How long one stage of a run took, and whether its output was found published."""

    stage: str
    seconds: float
    cached: bool


@dataclass(frozen=True, kw_only=True)
class Outcome(Record):
    """What a run came to. Its folder in the store, `runs/<run>/`, holds the report and the model.

    `head` is the first member's head, `fine_tuned` the model where that is another: fine-tuned, or averaged.
    `metrics` are the released model's on the test rows, `head_metrics` the head's; both are None where
    the gate stayed closed, for then no test row was looked at and no model released.
    `gate_overridden` is whether anything thawed behind what had not converged. `parity` is the mean difference
    between the released model's probabilities, computed from raw pixels, and those it was tested with.
    `temperature` is part of the released model, 1 being none; `metrics` are of what comes behind it.
    """

    run: str
    recipe: str
    manifest: str
    split: str
    verdict: Verdict
    head: str
    fine_tuned: str | None = None
    val_accuracy: float | None = None
    head_metrics: Metrics | None = None
    metrics: Metrics | None = None
    parity: float | None = None
    gate_overridden: bool = False
    stages: tuple[StageTime, ...] = ()
    temperature: float = 1.0

    @property
    def withheld(self) -> bool:
        """Whether the gate stayed closed, so that there is no model."""
        return self.metrics is None
