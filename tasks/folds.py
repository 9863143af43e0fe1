"""Tasks of cross-validation: the folds drawn, each trained without and predicted, all of them measured."""

from collections.abc import Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.features import cache_features
from tasks.screen import show
from tasks.stage import stage
from thaw import folds, suspects
from thaw.config import GateConfig, HeadConfig, TrainConfig
from thaw.duplicates import Duplicates
from thaw.folds import CrossValidation, FoldsConfig, ScoredFold
from thaw.records import Features, Made, Split
from thaw.report import suspects as suspects_report
from thaw.report.folds import FOLD_COLUMNS, list_folds, render_markdown
from thaw.rows import ViewSource
from thaw.store import Store
from thaw.suspects import SuspectLabels


@stage("draw folds")
def draw_folds(
    split: Split, settings: FoldsConfig, seed: int, store: Store, duplicates: Duplicates
) -> Made[tuple[Split, ...]]:
    return folds.publish_folds(split, settings, seed, store, duplicates.rows)


def cache_fold(fold: Split, source: ViewSource, settings: HeadConfig, store: Store) -> Features:
    """Fill the cache with what a head needs of a fold: to train on, and to be measured with."""
    images = (source.dump, source.backbone, source.settings, source.backbone.end, store)
    views = (settings.views, source.augmentation if settings.views else None)
    title = f"{fold.strategy}, seed {fold.seed}"
    return cache_features(fold, *images, (), *views, sides=("train", "validation"), fold=title)


@stage("train without {fold.strategy}, seed {fold.seed}", wants_gpu=True, retries=1)
def score_fold(
    fold: Split,
    bottlenecks: Features,
    settings: HeadConfig,
    gate: GateConfig,
    store: Store,
    source: ViewSource,
) -> Made[ScoredFold]:
    return folds.score_fold(bottlenecks, settings, gate, store, source)


@stage("publish cross-validation", retries=1)
def publish_crossvalidation(
    scored: Sequence[ScoredFold], split: Split, settings: FoldsConfig, config: TrainConfig, store: Store
) -> Made[CrossValidation]:
    made = folds.publish_crossvalidation(scored, split, settings, config, store)
    title = f"{config.recipe} on {config.dump.path.name}, {settings.folds}-fold cross-validation"
    rows = [dict(zip(FOLD_COLUMNS, row, strict=True)) for row in list_folds(made.value)]
    show(create_table_artifact, rows, key="folds", description=title)
    picture = store.fetch("crossvalidations", made.value.address, folds.PICTURE).read_bytes()
    markdown = render_markdown(made.value, picture)
    show(create_markdown_artifact, markdown, key="cross-validation", description=title)
    return made


@stage("rank labels", retries=1)
def rank_labels(
    made: CrossValidation, split: Split, config: TrainConfig, store: Store
) -> Made[SuspectLabels]:
    ranked = suspects.publish_suspects(made, split, config, store)
    file = store.fetch("suspects", ranked.value.address, suspects.PICTURE)
    markdown = suspects_report.render_markdown(ranked.value, file.read_bytes() if file.is_file() else None)
    title = f"Suspect labels of {config.dump.path.name}, by {config.recipe}"
    show(create_markdown_artifact, markdown, key="suspect-labels", description=title)
    return ranked
