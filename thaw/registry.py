"""The registry: every model that was trained, which of them is champion, and every decision about it.

Each change is a new revision of the whole, `registry/<number>/registry.json` in the store, published under a
number that nobody has taken; who comes second reads again and applies the change anew. So several
processes change it at once without a lock, and one that is killed leaves the newest revision whole.
`registry.json` beside them is a copy of the newest, for people and scripts.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from thaw.disk import write_through
from thaw.errors import ChampionMoved, DiskFull, NoSuchModel, NotPublished, StoreNotWritable
from thaw.promotion import Decision
from thaw.records import Outcome, Record
from thaw.store import Store

_FILE = "registry.json"
_LISTED = 10
# A mistyped number must not pass for the beginning of a run's digest.
_SHORTEST_PREFIX = 4


@dataclass(frozen=True, kw_only=True)
class Version(Record):
    """One model: what it was made from, where it is, and what it reached on its test images.

    `manifest` and `split` are digests, `head` and `fine_tuned` addresses of checkpoints as in `Outcome`, `run` names
    `runs/<run>/`. `settings` are a whole `TrainConfig` as JSON, so that the run can be made again. `temperature`
    is part of the model.
    """

    number: int
    run: str
    recipe: str
    manifest: str
    split: str
    head: str
    fine_tuned: str | None
    settings: Mapping[str, Any]
    test_images: int
    accuracy: float
    log_loss: float
    registered_at: str
    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Move(Record):
    """One change of champion, by the rule of promotion or by a person. `before` is None for the first."""

    kind: Literal["promotion", "roll_back"]
    champion: int
    before: int | None
    reason: str
    by: Literal["rule", "person"]
    moved_at: str


@dataclass(frozen=True, kw_only=True)
class Registry(Record):
    """One revision: versions, moves and decisions, each oldest first. Times are in UTC."""

    revision: int = 0
    versions: tuple[Version, ...] = ()
    moves: tuple[Move, ...] = ()
    decisions: tuple[Decision, ...] = ()

    @property
    def champion(self) -> Version | None:
        return self.find(self.moves[-1].champion) if self.moves else None

    def find(self, name: int | str) -> Version:
        """The version of a number (`3` or `v3`), of a run's digest or its first digits, or `champion`.

        Raises:
            NoSuchModel: none or several go by that name; the message lists what there is.
        """
        if name == "champion" and self.moves:
            name = self.moves[-1].champion
        number = str(name).removeprefix("v")
        found = [version for version in self.versions if str(version.number) == number]
        if not found and isinstance(name, str) and len(name) >= _SHORTEST_PREFIX:
            found = [version for version in self.versions if version.run.startswith(name)]
        if len(found) == 1:
            return found[0]
        count = "several models" if found else "no model"
        raise NoSuchModel(
            f"'{name}' names {count}. Give a version's number, the first {_SHORTEST_PREFIX} or more digits "
            f"of its run, or 'champion'. {self._list_versions()}"
        )

    def _list_versions(self) -> str:
        if not self.versions:
            return "The registry is empty: train a model first."
        champion = self.moves[-1].champion if self.moves else None
        listed = [
            f"v{version.number} (run {version.run}{', champion' if version.number == champion else ''})"
            for version in self.versions
        ]
        older = f" and {len(listed) - _LISTED} older" if len(listed) > _LISTED else ""
        return f"There are: {', '.join(reversed(listed[-_LISTED:]))}{older}."


def read_registry(store: Store) -> Registry:
    """The newest revision that can be read, or an empty registry. Mends `registry.json` where it lags."""
    _copy_newest(store)
    return _read_newest(store)


def register_run(store: Store, outcome: Outcome, settings: Mapping[str, Any]) -> Version:
    """Give a run's model the next number. A run that has one keeps it.

    Args:
        settings: the run's whole `TrainConfig` as JSON, with its dump.

    Raises:
        NoSuchModel: the gate stayed closed, so that the run has no model.
    """
    if outcome.withheld:
        raise NoSuchModel(
            f"run {outcome.run} has no model to register: its gate stayed closed ({outcome.verdict.reason})."
        )

    def register(registry: Registry) -> Registry:
        if any(version.run == outcome.run for version in registry.versions):
            return registry
        version = Version(
            number=len(registry.versions) + 1,
            run=outcome.run,
            recipe=outcome.recipe,
            manifest=outcome.manifest,
            split=outcome.split,
            head=outcome.head,
            fine_tuned=outcome.fine_tuned,
            settings=settings,
            test_images=outcome.metrics.images,
            accuracy=outcome.metrics.accuracy,
            log_loss=outcome.metrics.log_loss,
            registered_at=_now(),
            temperature=outcome.temperature,
        )
        return replace(registry, versions=(*registry.versions, version))

    return _change(store, register).find(outcome.run)


def record_decision(store: Store, decision: Decision) -> Registry:
    """Keep a decision, and make its challenger champion where it was promoted.

    A decision that is kept already changes nothing, so that whoever was killed may try again.

    Raises:
        ChampionMoved: it was made against a model that is champion no more.
        NoSuchModel: the challenger is not registered.
    """

    def record(registry: Registry) -> Registry:
        if decision in registry.decisions:
            return registry
        challenger = registry.find(decision.challenger)
        present = registry.champion.number if registry.champion else None
        if decision.champion != present:
            raise ChampionMoved(
                f"v{challenger.number} was compared with {_name(decision.champion)}, and by now the champion is "
                f"{_name(present)}: the decision is not applied. Compare v{challenger.number} with the present "
                "champion and decide again."
            )
        registry = replace(registry, decisions=(*registry.decisions, decision))
        if decision.outcome != "promoted":
            return registry
        return _move(registry, challenger.number, "promotion", decision.reason, "rule")

    return _change(store, record)


def promote(store: Store, number: int, reason: str) -> Registry:
    """Make a version champion, as a person's decision. The present champion stays so, without a move.

    Raises:
        NoSuchModel: no version has that number.
    """

    def move(registry: Registry) -> Registry:
        return _move(registry, registry.find(number).number, "promotion", reason, "person")

    return _change(store, move)


def roll_back(store: Store) -> Registry:
    """Make the champion before the present one champion again; a second call goes one further back.

    Raises:
        NoSuchModel: there is no earlier champion.
    """

    def move(registry: Registry) -> Registry:
        line = _trace_champions(registry)
        if len(line) < 2:
            present = f"v{line[0]} is the first champion" if line else "nothing was promoted yet"
            raise NoSuchModel(f"there is no earlier champion to go back to: {present}.")
        return _move(registry, line[-2], "roll_back", f"rolled back from v{line[-1]}", "person")

    return _change(store, move)


def _trace_champions(registry: Registry) -> list[int]:
    """The champions up to the present one, oldest first, without those that were rolled back."""
    line: list[int] = []
    for move in registry.moves:
        if move.kind == "roll_back":
            line.pop()
        else:
            line.append(move.champion)
    return line


def _move(
    registry: Registry,
    champion: int,
    kind: Literal["promotion", "roll_back"],
    reason: str,
    by: Literal["rule", "person"],
) -> Registry:
    before = registry.moves[-1].champion if registry.moves else None
    if champion == before:
        return registry
    move = Move(kind=kind, champion=champion, before=before, reason=reason, by=by, moved_at=_now())
    return replace(registry, moves=(*registry.moves, move))


def _change(store: Store, change: Callable[[Registry], Registry]) -> Registry:
    """Apply a change to the newest revision until it could be published as the next one."""
    while True:
        present = _read_newest(store)
        changed = change(present)
        if changed is present:
            return present
        revised = replace(changed, revision=present.revision + 1)
        if _publish(store, revised):
            _copy_newest(store)
            return revised


def _read_newest(store: Store) -> Registry:
    revisions = sorted((name for name in store.list("registry") if name.isdecimal()), reverse=True)
    found = (store.read_file(store.folder("registry", name, _FILE), Registry) for name in revisions)
    newest = next((registry for registry in found if registry), Registry())
    # The copy steps in where the newest revision was damaged.
    copy = store.read_file(store.folder(_FILE), Registry) or newest
    return max(newest, copy, key=lambda registry: registry.revision)


def _publish(store: Store, registry: Registry) -> bool:
    """Publish a revision unless its number is taken, and say whether it was free: no change is ever dropped."""
    return store.create("registry", f"{registry.revision:06}", _FILE, data=registry.to_json().encode())


def _copy_newest(store: Store) -> None:
    """Make `registry.json` the newest revision, also where others publish newer ones meanwhile."""
    # The revision counts, the copy can wait: the next reader mends it.
    with suppress(StoreNotWritable, DiskFull, NotPublished):
        while (newest := _read_newest(store)).revision:
            if store.read_file(store.folder(_FILE), Registry) == newest:
                return
            with store.publish_file(_FILE) as partial:
                write_through(partial, newest.to_json().encode())


def _name(number: int | None) -> str:
    return "no champion" if number is None else f"v{number}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
