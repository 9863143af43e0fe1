"""The search for a head, as flows share it: which settings do best on images that they did not learn from?"""

from tasks.folds import cache_fold
from tasks.search import draw_search_folds, publish_search, score_candidate
from thaw.config import TrainConfig, Views
from thaw.duplicates import Duplicates
from thaw.records import Features, Split
from thaw.report.search import say_changes
from thaw.rows import ViewSource
from thaw.search import HeadSearch, list_changes
from thaw.store import Store


def cache_folds(
    config: TrainConfig, source: ViewSource, split: Split, duplicates: Duplicates, store: Store
) -> dict[Views, tuple[Features, ...]]:
    """The features of each fold, for each number of views among the candidates: nothing else decides them."""
    folds = draw_search_folds(split, config.search, config.split.seed, store, duplicates)
    heads = {head.views: head for head in config.search.list_candidates(config.head)}
    return {
        views: tuple(cache_fold(fold, source, head, store) for fold in folds) for views, head in heads.items()
    }


def search_head(
    config: TrainConfig, source: ViewSource, split: Split, duplicates: Duplicates, store: Store
) -> HeadSearch | None:
    """Try each candidate of the grid on folds of the training images; None where there is no grid."""
    if not config.search.grid:
        return None
    features = cache_folds(config, source, split, duplicates, store)
    candidates = config.search.list_candidates(config.head)
    scored = []
    tried = zip(candidates, list_changes(config.search, config.head), strict=True)
    for number, (head, changes) in enumerate(tried, 1):
        given = (features[head.views], head, config.gate, store, source)
        scored.append(score_candidate(number, len(candidates), say_changes(changes), *given))
    return publish_search(scored, split, config, store)
