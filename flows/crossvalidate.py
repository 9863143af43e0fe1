"""How good is a recipe's head, and how much of that is luck of the split? Asked without the test images."""

import dataclasses

from prefect import flow
from prefect.states import Completed, Failed, State

from flows.method import HERE, StorePath, Where, open_dump, open_store, open_views, split_dump
from tasks.folds import cache_fold, draw_folds, publish_crossvalidation, rank_labels, score_fold
from tasks.pools import cancel_children
from tasks.screen import label_run
from tasks.stage import run_stages
from thaw.config import TrainConfig
from thaw.errors import ThawError
from thaw.folds import FoldsConfig

_FIVE = FoldsConfig()


@flow(
    name="crossvalidate",
    flow_run_name="cross-validate {config.recipe} on {config.dump.path.name}",
    on_cancellation=[cancel_children],
)
def crossvalidate(
    config: TrainConfig, folds: FoldsConfig = _FIVE, store: StorePath = None, runner: Where = HERE
) -> State:
    """Let each part of the images that are learned from be predicted by a head trained on the others.

    Only the head as the recipe has it, with one budget of epochs each. What the heads make of the images'
    labels says which labels are suspect. Test images are left alone. Ends as Completed, with a
    `CrossValidation`; or as Failed with one plain sentence.
    """
    try:
        place = open_store(store)
        with run_stages(runner) as stages:
            backbone, manifest = open_dump(config, place)
            duplicates, split = split_dump(config, manifest, place)
            source = open_views(config, backbone)
            scored = []
            for fold in draw_folds(split, folds, config.split.seed, place, duplicates):
                features = cache_fold(fold, source, config.head, place)
                given = (features, config.head, config.gate, place, source)
                scored.append(score_fold(fold, *given))
            made = publish_crossvalidation(scored, split, folds, config, place)
            ranked = rank_labels(made, split, config, place)
    except ThawError as error:
        label_run("failed")
        return Failed(message=str(error), data=error)
    accuracy = f"{made.accuracy.mean:.4f} ± {made.accuracy.standard_deviation:.4f}"
    label_run(accuracy)
    suspect = f"{len(ranked.suspects):,} suspect labels"
    message = f"accuracy {accuracy} over {len(made.folds)} folds, {suspect}, cross-validation {made.address}"
    return Completed(message=message, data=dataclasses.replace(made, stages=tuple(stages)))
