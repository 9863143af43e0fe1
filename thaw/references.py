"""What the models, runs and comparisons of a store rest on: manifests, splits, checkpoints, images and feature spaces.

Records name some of it by digest. What they don't name is taken in as well where it may belong to them: earlier
budgets, phases, members that took no part and heads of a search are not written down, so that every checkpoint
counts which learned, on a split that something was made on or on a fold of it, from features of the same backbone and
the same images; and so does every cut of a space that such a checkpoint learned from.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from thaw.augment import MIRROR
from thaw.comparison import ComparisonTable
from thaw.errors import Undecided
from thaw.folds import CrossValidation
from thaw.marker import MARKER
from thaw.objects import Facts
from thaw.records import PIXELS, SIDES, Checkpoint, FeatureSpace, Manifest, Outcome, Record, Split
from thaw.registry import read_registry
from thaw.search import HeadSearch
from thaw.store import Store

SomeRecord = TypeVar("SomeRecord", bound=Record)
_FOLD = "fold "
_REVISION = re.compile(r"registry/\d+/registry\.json")


@dataclass(frozen=True, kw_only=True)
class References:
    """What is needed.

    Attributes:
        checkpoints: addresses of those that are named, or are of a split that something was made on.
        images: SHA-256 of every image of a manifest or split that is needed.
        uses: whether rows of a space, given with its digest, may be asked for by what is needed.
    """

    checkpoints: frozenset[str]
    images: frozenset[str]
    uses: Callable[[str, FeatureSpace], bool]


def gather_references(
    store: Store, survey: Mapping[str, Facts], is_recent: Callable[[str], bool]
) -> References:
    """Read what refers to anything, in a store that is only looked at.

    Args:
        survey: every file of the store.
        is_recent: whether what lies at a place is so young that it is needed, whatever refers to it.

    Raises:
        Undecided: a record can't be read, so that nobody can tell what it refers to.
    """
    named = _list_named(store, survey)
    known = {
        digest: _read(store, survey, f"splits/{digest}.json", Split)
        for digest in _list_records(survey, "splits")
    }
    made = dict(named.made)
    for digest, split in known.items():
        if split.strategy.startswith(_FOLD):
            of = [one for one in named.made if one in known and _is_fold_of(split, known[one])]
            made[digest] = {*made.get(digest, ()), *(one for whole in of for one in named.made[whole])}
    splits = {digest for digest, by in made.items() if by}
    trained = dict(_read_folders(store, survey, "checkpoints", "checkpoint.json", Checkpoint))
    spaces = {
        digest: _read(store, survey, f"features/{digest}/space.json", FeatureSpace)
        for digest in {checkpoint.space for checkpoint in trained.values()}
        if f"features/{digest}/space.json" in survey
    }

    def may_belong(checkpoint: Checkpoint) -> bool:
        """Whether it may have been made on the way to what was made on its split."""
        by = [trained.get(address) for address in made.get(checkpoint.split, ())]
        own = spaces.get(checkpoint.space)
        learned = [one and spaces.get(one.space) for one in by]
        return any(own is None or one is None or _is_like(one, own) for one in learned)

    needed = {
        address: checkpoint
        for address, checkpoint in trained.items()
        if address in named.checkpoints or is_recent(f"checkpoints/{address}") or may_belong(checkpoint)
    }
    members = {member for checkpoint in needed.values() for member in checkpoint.members}
    digests = _list_records(survey, "manifests")
    newest = store.list("manifests")[:1]
    images: set[str] = set()
    for digest in digests:
        if digest in named.manifests or f"{digest}.json" in newest or is_recent(f"manifests/{digest}.json"):
            manifest = _read(store, survey, f"manifests/{digest}.json", Manifest)
            images |= {row.sha256 for row in manifest.images}
    for digest, split in known.items():
        if digest in splits or is_recent(f"splits/{digest}.json"):
            images |= _list_images(split)
    return References(
        checkpoints=frozenset({*named.checkpoints, *needed, *members}),
        images=frozenset(images),
        uses=_judge_spaces({checkpoint.space for checkpoint in needed.values()}, spaces),
    )


@dataclass(frozen=True, kw_only=True)
class _Named:
    """What records name: manifests and checkpoints, and by split the checkpoints of what was made on it.

    Where it is not known which those are there is an empty address among them.
    """

    manifests: set[str]
    checkpoints: set[str]
    made: Mapping[str, set[str]]


def _list_named(store: Store, survey: Mapping[str, Facts]) -> _Named:
    registry = read_registry(store)
    revisions = [int(key.split("/")[1]) for key in survey if _REVISION.fullmatch(key)]
    if registry.revision < max(revisions, default=0):
        raise Undecided(_say_unreadable(f"registry/{max(revisions):06}", store))
    outcomes = dict(_read_folders(store, survey, "runs", "outcome.json", Outcome))
    made: dict[str, set[str]] = defaultdict(set)
    checkpoints = set()
    for one in (*registry.versions, *outcomes.values()):
        made[one.split].add(one.head)
        checkpoints |= {one.head, *([one.fine_tuned] if one.fine_tuned else [])}
    for _, validation in _read_folders(
        store, survey, "crossvalidations", "crossvalidation.json", CrossValidation
    ):
        for fold in validation.folds:
            made[validation.split].add(fold.checkpoint)
            made[fold.split].add(fold.checkpoint)
            checkpoints.add(fold.checkpoint)
    for _, table in _read_folders(store, survey, "comparisons", "comparison.json", ComparisonTable):
        runs = [run.run for recipe in table.recipes for run in recipe.runs if run.run]
        made[table.split] |= {"" for run in runs if run not in outcomes}
    for digest in _list_records(survey, "searches"):
        search = _read(store, survey, f"searches/{digest}.json", HeadSearch)
        made[search.split].add("")
    manifests = {one.manifest for one in (*registry.versions, *outcomes.values())}
    return _Named(manifests=manifests, checkpoints=checkpoints, made=made)


def _judge_spaces(used: set[str], spaces: Mapping[str, FeatureSpace]) -> Callable[[str, FeatureSpace], bool]:
    learned = [spaces[digest] for digest in used if digest in spaces]

    def uses(digest: str, space: FeatureSpace) -> bool:
        return digest in used or any(_may_read(one, space) for one in learned)

    return uses


def _may_read(learned: FeatureSpace, space: FeatureSpace) -> bool:
    """Whether a run that learned from one space may read another: a cut of it, of the images or the same views."""
    plain = (None, MIRROR.model_dump())
    if space.augmentation not in (*plain, learned.augmentation):
        return False
    at = learned.at(PIXELS) if space.cut == PIXELS else learned
    return dataclasses.replace(at, cut=space.cut, augmentation=space.augmentation) == space


def _is_like(one: FeatureSpace, other: FeatureSpace) -> bool:
    """Whether both are of one backbone and images made alike, whatever the cut, the views and the precision."""
    at = one.at(PIXELS) if other.cut == PIXELS else one
    same = {"cut": "", "augmentation": None, "precision": "", "storage": ""}
    return dataclasses.replace(at, **same) == dataclasses.replace(other, **same)


def _is_fold_of(fold: Split, split: Split) -> bool:
    """Whether it divides the images that a split trains on, as a search does, or those it learns from."""
    divided = {row.sha256 for row in (*fold.train, *fold.validation)}
    trained = {row.sha256 for row in split.train}
    return divided in (trained, trained | {row.sha256 for row in split.validation})


def _list_images(split: Split) -> set[str]:
    return {row.sha256 for side in SIDES for row in split.rows(side)}


def _list_records(survey: Mapping[str, Facts], kind: str) -> list[str]:
    """Digests of the records of a kind."""
    names = [key.split("/") for key in survey]
    return [
        parts[1].removesuffix(".json")
        for parts in names
        if len(parts) == 2 and parts[0] == kind and parts[1].endswith(".json")
    ]


def _read_folders(
    store: Store, survey: Mapping[str, Facts], kind: str, file: str, record: type[SomeRecord]
) -> Iterator[tuple[str, SomeRecord]]:
    """The records that speak for the published folders of a kind, with their digests."""
    for digest in store.list(kind):
        key = f"{kind}/{digest}/{file}"
        if key in survey or f"{kind}/{digest}/{MARKER}" in survey:
            yield digest, _read(store, survey, key, record)


def _read(store: Store, survey: Mapping[str, Facts], key: str, record: type[SomeRecord]) -> SomeRecord:
    found = store.read_file(store.folder(*key.split("/")), record)
    if found is None:
        raise Undecided(_say_unreadable(key, store))
    return found


def _say_unreadable(key: str, store: Store) -> str:
    return (
        f"{key} in the store at {store.address} can't be read, so that it can't be told what it refers to. "
        "Nothing was deleted. Set it aside with `thaw verify --set-aside`, or wait for the run that changes it."
    )
