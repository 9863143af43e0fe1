"""Tasks of the search for a head: folds of the training images, each candidate scored on them, one chosen."""

from collections.abc import Sequence

from prefect.artifacts import create_table_artifact

from tasks.screen import show
from tasks.stage import stage
from thaw import search
from thaw.config import GateConfig, HeadConfig, SearchConfig, TrainConfig
from thaw.duplicates import Duplicates
from thaw.folds import ScoredFold
from thaw.records import Features, Made, Split
from thaw.report.search import tabulate_search
from thaw.rows import ViewSource
from thaw.search import HeadSearch
from thaw.store import Store


@stage("draw folds of the training images")
def draw_search_folds(
    split: Split, settings: SearchConfig, seed: int, store: Store, duplicates: Duplicates
) -> Made[tuple[Split, ...]]:
    return search.publish_search_folds(split, settings, seed, store, duplicates.rows)


@stage("candidate {number} of {count}: {changes}", wants_gpu=True, retries=1)
def score_candidate(
    number: int,
    count: int,
    changes: str,
    folds: Sequence[Features],
    settings: HeadConfig,
    gate: GateConfig,
    store: Store,
    source: ViewSource,
) -> Made[tuple[ScoredFold, ...]]:
    return search.score_candidate(folds, settings, gate, store, source)


def _show_search(made: HeadSearch) -> None:
    table = tabulate_search(made)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    title = f"The search for a head, over {made.folds} folds of {made.images:,} training images"
    show(create_table_artifact, rows, key="head-search", description=title)


@stage("choose the head", retries=1, present=_show_search)
def publish_search(
    scored: Sequence[Sequence[ScoredFold]], split: Split, config: TrainConfig, store: Store
) -> Made[HeadSearch]:
    return search.publish_search(scored, split, config, store)
