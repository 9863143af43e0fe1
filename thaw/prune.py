"""Delete what nothing in a store refers to. What is in doubt stays.

It is safe beside running jobs, for these reasons. Nothing younger than a day is ever touched, and most must be as
old as was asked for. A run that is at work holds claims: as long as anybody does, features and checkpoints stay,
since it can't be told which of them the run reads. References are read again before the first thing is deleted,
age and claims before each. Each thing goes at once, its marker first: a run finds it whole or not at all, and where
pruning is killed what is left of it is never read. A run that in that very moment begins to use what nothing referred
to for so long may find it gone: it ends with an error, and makes it again when it is started again.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from time import time

import numpy as np

from thaw.errors import ThawError
from thaw.index import KEY_DTYPE
from thaw.kinds import KINDS
from thaw.marker import MARKER, read_marker
from thaw.objects import Facts
from thaw.progress import track
from thaw.records import FeatureSpace, Record
from thaw.references import References, gather_references
from thaw.store import Store

DAY_SECONDS = 24 * 3600.0
_YOUNGEST_DAYS = 1.0
_SHARD = "shard.json"
# What comes and goes with a run, and stays where the run was killed.
_PASSED = {
    "partial": "left over by a writer that was killed",
    "damaged": "damaged, and set aside",
    "pieces": "left over by a run that never put them together",
    "calls": "the run that asked is over",
    "answers": "the run that asked is over",
    "progress": "the run that watched it is over",
}
_READ_BY_RUNS = ("features", "checkpoints", "pieces", "calls", "answers", "progress")


@dataclass(frozen=True, kw_only=True)
class Waste(Record):
    """One thing that nothing refers to: where it lies, why it may go, its size, and how long it was not written."""

    kind: str
    place: str
    reason: str
    bytes: int
    days: float


@dataclass(frozen=True, kw_only=True)
class Pruning(Record):
    """What nothing refers to, and whether it was deleted.

    `busy` are the claims that are held; where there are any, `kept` is what stays because of them.
    """

    store: str
    days: float
    deleted: bool
    waste: tuple[Waste, ...]
    busy: tuple[str, ...] = ()
    kept: tuple[Waste, ...] = ()


def prune_store(store: Store, days: float = 30.0, delete: bool = False) -> Pruning:
    """Find what nothing refers to, and delete it where that is asked for.

    Args:
        days: how old it must be at least; one day where less is given.

    Raises:
        Undecided: a record can't be read, so that nobody can tell what it refers to.
        StoreUnreachable: an object store stayed away. What was deleted by then is whole things.
    """
    days = max(days, _YOUNGEST_DAYS)
    waste, busy = _find_waste(store, days)
    if delete:
        # Runs may have come to refer to some of it while all that was read.
        again, busy = _find_waste(store, days)
        still = {one.place for one in again}
        waste = [one for one in waste if one.place in still]
    going, kept = _part(waste, busy)
    gone = list(_delete(store, going, days)) if delete else going
    return Pruning(
        store=store.address,
        days=days,
        deleted=delete,
        waste=tuple(gone),
        busy=tuple(busy),
        kept=tuple(kept),
    )


def _part(waste: list[Waste], busy: list[str]) -> tuple[list[Waste], list[Waste]]:
    """What may go, and what must stay while claims are held."""
    return [one for one in waste if not _must_stay(one, busy)], [
        one for one in waste if _must_stay(one, busy)
    ]


def _must_stay(one: Waste, busy: list[str]) -> bool:
    """Whether a run at work may read it, or has claimed it."""
    may_be_read = busy and one.kind in _READ_BY_RUNS and not _is_payload_key(one.place)
    return bool(may_be_read) or any(claim.rpartition("-")[2] in one.place.split("/") for claim in busy)


def _delete(store: Store, waste: list[Waste], days: float) -> Iterator[Waste]:
    with track("prune", len(waste), "things") as advance:
        for one in waste:
            parts = one.place.split("/")
            found = store.survey(*parts) or {
                key: facts for key, facts in store.survey(*parts[:-1]).items() if key == one.place
            }
            oldest = _YOUNGEST_DAYS if one.kind == "journals" else days
            is_old = all(_age(facts) >= oldest for facts in found.values())
            may_go = is_old and not _must_stay(one, _list_claims(store))
            if may_go and not _is_published_by_now(store, one.place):
                if found:  # what killed writers left, any writer sweeps
                    store.discard(*parts)
                yield one
            advance()


def _is_published_by_now(store: Store, place: str) -> bool:
    """Whether a file that no marker named is named by one now."""
    if not _is_payload_key(place):
        return False
    folder, _, _ = _split_payload_key(place)
    try:
        data = store.mirror.objects.read(f"{folder}/{MARKER}")
        return place in {facts.find(folder, name) for name, facts in read_marker(data).items()}
    except FileNotFoundError:
        return False
    except ValueError:
        return True  # nobody can tell


def _find_waste(store: Store, days: float) -> tuple[list[Waste], list[str]]:
    looked, survey = store.looking(), store.survey()
    busy = _list_claims(store)
    places = _group(survey)

    def is_recent(place: str) -> bool:
        files = places.get(place, [place])
        return any(_age(survey[key]) < days for key in files if key in survey)

    needed = gather_references(looked, survey, is_recent)
    reasons = {
        **_judge_features(looked, survey, needed, is_recent),
        **_judge_checkpoints(places, needed),
        **_judge_journals(places),
        **{place: _PASSED[kind] for place in places if (kind := place.split("/")[0]) in _PASSED},
    }
    waste = [
        _describe(place, places[place], reason, survey)
        for place, reason in reasons.items()
        if not is_recent(place) or place.startswith("journals/")
    ]
    if store.mirror:
        waste += _list_payloads(store, places, survey, {one.place for one in waste})
    return [one for one in waste if one.days >= (_YOUNGEST_DAYS if one.kind == "journals" else days)], busy


def _group(survey: Mapping[str, Facts]) -> dict[str, list[str]]:
    """The files of every folder that is published, or left over, by its place."""
    places: dict[str, list[str]] = defaultdict(list)
    for key in survey:
        parts = key.split("/")
        kind = KINDS.get(parts[0])
        depth = kind.depth if kind else 2
        places["/".join(parts[:depth])].append(key)
    return places


def _judge_checkpoints(places: Mapping[str, list[str]], needed: References) -> dict[str, str]:
    return {
        place: "no run, search, cross-validation or comparison refers to it or its split"
        for place, files in places.items()
        if place.startswith("checkpoints/")
        and {f"{place}/checkpoint.json", f"{place}/{MARKER}"} & set(files)
        and place.split("/")[1] not in needed.checkpoints
    }


def _judge_journals(places: Mapping[str, list[str]]) -> dict[str, str]:
    """Journals that nobody goes on from: the checkpoint is published."""
    done = {
        place.split("/")[1]
        for place, files in places.items()
        if place.startswith("checkpoints/") and {f"{place}/checkpoint.json", f"{place}/{MARKER}"} & set(files)
    }
    return {
        place: "its checkpoint is published"
        for place in places
        if place.startswith("journals/") and place.split("/")[1] in done
    }


def _judge_features(
    store: Store, survey: Mapping[str, Facts], needed: References, is_recent: Callable[[str], bool]
) -> dict[str, str]:
    """Shards of spaces that nothing uses and nobody added to lately, and shards of nothing but unneeded images."""
    reasons: dict[str, str] = {}
    shards: dict[str, list[str]] = defaultdict(list)
    for key in survey:
        parts = key.split("/")
        if parts[0] == "features" and len(parts) == 4 and parts[3] in (MARKER, _SHARD):
            place = "/".join(parts[:3])
            if place not in shards[parts[1]]:
                shards[parts[1]].append(place)
    for digest, of_space in shards.items():
        space = store.read_file(store.folder("features", digest, "space.json"), FeatureSpace)
        if space is None:
            continue  # nobody can tell what it is
        if not needed.uses(digest, space):
            if not any(is_recent(place) for place in of_space):
                reasons |= dict.fromkeys(of_space, "no checkpoint that is needed uses its feature space")
            continue
        for place in of_space:
            if not is_recent(place) and _has_no_image(store, place, needed):
                reasons[place] = "none of its images is in a manifest or split that is needed"
    return reasons


def _has_no_image(store: Store, place: str, needed: References) -> bool:
    try:
        keys = np.load(store.fetch(*place.split("/"), "keys.npy"), allow_pickle=False)
    except (OSError, ValueError, EOFError, ThawError):
        return False  # damaged: whoever reads it sets it aside
    if keys.dtype != KEY_DTYPE:
        return False
    return not any(image.tobytes().hex() in needed.images for image in keys["image"])


def _list_payloads(
    store: Store, places: Mapping[str, list[str]], survey: Mapping[str, Facts], going: set[str]
) -> Iterator[Waste]:
    """Files in an object store that a writer put there which never came to publish them."""
    for place, files in places.items():
        kind = KINDS.get(place.split("/")[0])
        payloads = [key for key in files if _is_payload_key(key)]
        if kind is None or place in going or not payloads:
            continue
        marker = f"{place}/{MARKER}"
        try:
            named = read_marker(store.mirror.objects.read(marker)) if marker in survey else {}
        except (ValueError, FileNotFoundError):
            continue
        published = {facts.find(place, name) for name, facts in named.items()}
        for key in payloads:
            if key not in published:
                yield _describe(
                    key, [key], "no marker names it: its writer was killed, or it was set aside", survey
                )


def _is_payload_key(key: str) -> bool:
    """Whether a file lies where those lie, in an object store, that a folder is published of."""
    _, checksum, name = _split_payload_key(key)
    return bool(name) and len(checksum) == 16 and set(checksum) <= set("0123456789abcdef")


def _split_payload_key(key: str) -> tuple[str, str, str]:
    """The folder, the checksum and the file's name."""
    parts = key.split("/")
    depth = KINDS[parts[0]].depth if parts[0] in KINDS else 2
    return "/".join(parts[:depth]), "".join(parts[depth : depth + 1]), "/".join(parts[depth + 1 :])


def _describe(place: str, files: list[str], reason: str, survey: Mapping[str, Facts]) -> Waste:
    return Waste(
        kind=place.split("/")[0],
        place=place,
        reason=reason,
        bytes=sum(survey[key].size for key in files),
        days=round(min(_age(survey[key]) for key in files), 2),
    )


def _age(facts: Facts) -> float:
    """Days since it was written."""
    return (time() - facts.written) / DAY_SECONDS


def _list_claims(store: Store) -> list[str]:
    """The claims that are held: their holders go on writing them, and one that was not written for a day has none."""
    return sorted(
        key.partition("/")[2] for key, facts in store.survey("claims").items() if _age(facts) < _YOUNGEST_DAYS
    )
