"""Suspect labels: those that heads which never saw the image find hardest to believe, the worst first."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from thaw.archive import open_dump
from thaw.config import TrainConfig
from thaw.extract import read_pixels
from thaw.records import Made, Record, Split, digest_of
from thaw.report.photographs import MOST_IMAGES, plot_mistakes
from thaw.report.suspects import list_doubts
from thaw.store import Store

if TYPE_CHECKING:
    from thaw.folds import CrossValidation

RECORD, TABLE, PICTURE = "suspects.json", "suspects.csv", "suspects.png"


@dataclass(frozen=True, kw_only=True)
class RankedLabel(Record):
    """One image, the label it was given, and what heads that trained without it make of that.

    `score` says how good the label is, from 0 (wrong) to 1. `suggested` is the class they find most probable,
    with `probability`; it may be the label itself. `suspect` is whether the label counts as wrong.
    """

    path: str
    label: str
    suggested: str
    probability: float
    score: float
    suspect: bool


@dataclass(frozen=True, kw_only=True)
class SuspectLabels(Record):
    """The label of every image of a cross-validation, the worst first, equals in the order of predictions.

    Its folder in the store is `suspects/<address>/`.
    """

    address: str
    recipe: str
    crossvalidation: str
    images: tuple[RankedLabel, ...]

    @property
    def suspects(self) -> tuple[RankedLabel, ...]:
        return tuple(image for image in self.images if image.suspect)


def rank_labels(made: CrossValidation) -> SuspectLabels:
    """Order images by how well out-of-fold probabilities, averaged over repeats, bear out their labels.

    The score is the probability of the given label (Kuan and Mueller, 2022, call it self-confidence). Which
    labels count as wrong is decided by confident learning (Northcutt et al., 2021): it estimates how many
    images of each class are labelled as each other class, and takes so many of the clearest.
    """
    # They bring pandas along, which takes a moment.
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    given = {row.path: row.label for row in made.predictions}
    shares = defaultdict(list)
    for row in made.predictions:
        shares[row.path].append(row.probabilities)
    probabilities = np.array([np.mean(shares[path], axis=0) for path in given])
    order = {label: number for number, label in enumerate(made.classes)}
    labels = np.array([order[label] for label in given.values()])
    scores = get_label_quality_scores(labels, probabilities, method="self_confidence")
    # In this process: others would be forks of one that runs TensorFlow's threads. Nothing is removed, so
    # that no image of a class has to stay.
    suspect = find_label_issues(labels, probabilities, n_jobs=1, min_examples_per_class=0)
    paths, suggested = list(given), probabilities.argmax(axis=1)
    return SuspectLabels(
        address=digest_of("suspects", made.address),
        recipe=made.recipe,
        crossvalidation=made.address,
        images=tuple(
            RankedLabel(
                path=paths[place],
                label=given[paths[place]],
                suggested=made.classes[suggested[place]],
                probability=float(probabilities[place].max()),
                score=float(scores[place]),
                suspect=bool(suspect[place]),
            )
            for place in np.argsort(scores, kind="stable")
        ),
    )


def publish_suspects(
    made: CrossValidation, split: Split, config: TrainConfig, store: Store
) -> Made[SuspectLabels]:
    """Rank the labels of a cross-validation and publish them: the record, a table, a picture of the worst.

    There is no picture where each label is the most probable class of its image.

    Args:
        split: the one whose images were divided.

    Raises:
        BadDump: an image changed since the dump was scanned.
    """
    found = read_suspects(made, store)
    if found:
        return Made(value=found, reused=True, note=_summarise(found))
    ranked = rank_labels(made)
    rows = {row.path: row for row in (*split.train, *split.validation)}
    doubts = list_doubts(ranked)[:MOST_IMAGES]
    with open_dump(config.dump.path) as dump:
        pixels = [read_pixels(dump, rows[doubt.path], config.backbone) for doubt in doubts]
    with store.publish_folder("suspects", ranked.address) as partial:
        _write_table(partial / TABLE, ranked)
        if doubts:
            (partial / PICTURE).write_bytes(plot_mistakes(doubts, np.stack(pixels)))
        (partial / RECORD).write_text(ranked.to_json(), encoding="utf-8")
    return Made(value=ranked, reused=False, note=_summarise(ranked))


def read_suspects(made: CrossValidation, store: Store) -> SuspectLabels | None:
    """What is published of the labels of a cross-validation, or None."""
    return store.read_folder("suspects", digest_of("suspects", made.address), RECORD, SuspectLabels, (TABLE,))


def _write_table(file: Path, ranked: SuspectLabels) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "suggested", "probability", "label_quality", "suspect"])
        for image in ranked.images:
            figures = (f"{image.probability:.6f}", f"{image.score:.6f}", "yes" if image.suspect else "no")
            writer.writerow([image.path, image.label, image.suggested, *figures])


def _summarise(ranked: SuspectLabels) -> str:
    return f"{len(ranked.suspects):,} of {len(ranked.images):,} labels are suspect, {ranked.address}"
