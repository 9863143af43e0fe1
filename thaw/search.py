"""The search for a head's settings: each candidate is cross-validated on the training images alone.

What the candidates are judged by also chooses between them, so that the winner's own figures flatter it:
G. C. Cawley and N. L. C. Talbot, On Over-fitting in Model Selection, 2010. Validation and test images take no
part, and can tell.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from thaw.config import GateConfig, HeadConfig, SearchConfig, TrainConfig, build_section
from thaw.errors import ShortClass
from thaw.folds import FoldsConfig, ScoredFold, Spread, measure_spread, publish_folds, score_fold
from thaw.recipe import overlay
from thaw.records import Features, Made, Record, Split, digest_of
from thaw.report.search import say_changes
from thaw.rows import ViewSource
from thaw.split import Groups
from thaw.store import Store


@dataclass(frozen=True, kw_only=True)
class Candidate(Record):
    """Settings that were tried, and what they came to over the folds.

    `changes` are the settings, under names such as `optimizer.learning_rate`, that not all candidates and the
    recipe's head have alike.
    `log_loss` is in nats, and `best_epoch` the mean of the epochs whose weights were kept.
    """

    changes: Mapping[str, Any]
    accuracy: Spread
    log_loss: Spread
    best_epoch: float
    chosen: bool = False

    @property
    def rank(self) -> float:
        """The mean log loss; infinite where it is not finite."""
        return self.log_loss.mean if math.isfinite(self.log_loss.mean) else math.inf


@dataclass(frozen=True, kw_only=True)
class HeadSearch(Record):
    """What a search came to, published as `searches/<address>.json`.

    `images` were divided into `folds`: the training images of the `split`. The candidates are in the order of
    `SearchConfig.list_candidates`.
    """

    address: str
    split: str
    folds: int
    images: int
    candidates: tuple[Candidate, ...]

    @property
    def chosen(self) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.chosen)

    def apply(self, head: HeadConfig) -> HeadConfig:
        """The head with the chosen settings in place of its own."""
        settings = head.model_dump(mode="json")
        for name, value in self.chosen.changes.items():
            for part in reversed(name.split(".")):
                value = {part: value}
            settings = overlay(settings, value)
        return build_section(HeadConfig, settings)


def list_changes(search: SearchConfig, head: HeadConfig) -> list[dict[str, Any]]:
    """For each candidate the settings that not all of them and the head have alike, under dotted names."""
    tried = [_flatten(candidate.model_dump(mode="json")) for candidate in search.list_candidates(head)]
    own = _flatten(head.model_dump(mode="json"))
    names = [name for name in own if any(settings[name] != own[name] for settings in tried)]
    return [{name: settings[name] for name in names} for settings in tried]


def publish_search_folds(
    split: Split, settings: SearchConfig, seed: int, store: Store, groups: Groups = ()
) -> Made[tuple[Split, ...]]:
    """Divide the training images of a split into folds, and publish these. They have no test images.

    Raises:
        ShortClass: a class has fewer training images than there are folds, or groups leave a fold without.
    """
    for label, count in split.counts()["train"].items():
        if count < settings.folds:
            raise ShortClass(
                f"class '{label}' has {count} training images, the {settings.folds} folds of the search for "
                f"a head need {settings.folds} or more. Lower search.folds, or train on more images."
            )
    learned = replace(split, validation=(), test=())
    made = publish_folds(learned, FoldsConfig(folds=settings.folds), seed, store, groups)
    return replace(made, note=f"{settings.folds} folds of {len(split.train):,} training images")


def score_candidate(
    folds: Sequence[Features], settings: HeadConfig, gate: GateConfig, store: Store, source: ViewSource
) -> Made[tuple[ScoredFold, ...]]:
    """Train a head without each of the folds, and let it predict that one.

    Raises:
        NotPublished: it was not done yet, and the store is only looked at.
    """
    made = [score_fold(features, settings, gate, store, source) for features in folds]
    scored = tuple(fold.value for fold in made)
    losses = [fold.evaluation.metrics.log_loss for fold in scored]
    note = f"log loss {np.mean(losses):.4f} over {len(folds)} folds"
    return Made(value=scored, reused=all(fold.reused for fold in made), note=note)


def choose_head(candidates: Sequence[Candidate]) -> Candidate:
    """The candidate of the smallest mean log loss, the first of equals."""
    return min(candidates, key=lambda candidate: candidate.rank)


def publish_search(
    scored: Sequence[Sequence[ScoredFold]], split: Split, config: TrainConfig, store: Store
) -> Made[HeadSearch]:
    """Measure the candidates, choose between them, and publish both.

    Args:
        scored: the folds of each candidate, in the order of `SearchConfig.list_candidates`.
        split: the one whose training images were divided.
    """
    search = config.search
    checkpoints = [[fold.checkpoint.address for fold in folds] for folds in scored]
    address = digest_of("search", split.digest, search, config.head, checkpoints)
    found = store.read("searches", address, HeadSearch)
    if found:
        return Made(value=found, reused=True, note=_note(found))
    changes = list_changes(search, config.head)
    candidates = [_measure_candidate(*tried) for tried in zip(changes, scored, strict=True)]
    chosen = choose_head(candidates)
    made = HeadSearch(
        address=address,
        split=split.digest,
        folds=search.folds,
        images=len(split.train),
        candidates=tuple(replace(candidate, chosen=candidate is chosen) for candidate in candidates),
    )
    store.publish("searches", address, made)
    return Made(value=made, reused=False, note=_note(made))


def _measure_candidate(changes: Mapping[str, Any], folds: Sequence[ScoredFold]) -> Candidate:
    metrics = [fold.evaluation.metrics for fold in folds]
    return Candidate(
        changes=changes,
        accuracy=measure_spread([one.accuracy for one in metrics], len(folds)),
        log_loss=measure_spread([one.log_loss for one in metrics], len(folds)),
        best_epoch=float(np.mean([fold.checkpoint.history.best_epoch for fold in folds])),
    )


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        path = f"{prefix}{name}"
        flat |= _flatten(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _note(search: HeadSearch) -> str:
    chosen = say_changes(search.chosen.changes)
    return f"search {search.address}, of {len(search.candidates)} candidates {chosen}"
