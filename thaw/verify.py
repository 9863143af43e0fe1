"""Look through a store: every byte that has a checksum is read and compared, every record is parsed.

Nothing is changed, unless what is damaged is to be set aside. Runs may work on the store meanwhile: what they
publish later is not looked at, and what they delete is not missed. Of an object store everything is read there,
piece by piece; this machine's copies are neither looked at nor added to.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from thaw.kinds import KINDS, PASSING, Kind, parse_record
from thaw.marker import MARKER, read_marker
from thaw.objects import Facts
from thaw.progress import track
from thaw.records import Record, is_digest_of
from thaw.store import Store

_PIECE_BYTES = 8 * 1024 * 1024
_AT_ONCE = 8
_SHARD = "shard.json"
# Beside the shards of a space.
_SPACE = Kind(name="features", record="thaw.records:FeatureSpace", file="space.json", names_content=True)


@dataclass(frozen=True, kw_only=True)
class Damage(Record):
    """One thing that is not what was published, and what becomes of it.

    `place` is where it lies in the store. Runs that `notice` it by themselves set it aside when they read it; any
    other is used as it is until it is set aside.
    """

    kind: str
    place: str
    reason: str
    again: str
    notices: bool

    @property
    def remedy(self) -> str:
        """What the next run does about it."""
        noticed = "set aside when it is read" if self.notices else "used as it is until it is set aside"
        return f"{noticed}; then {self.again}"


@dataclass(frozen=True, kw_only=True)
class KindCount(Record):
    """What was found of one kind: things, the `bytes` that were read, and how many things are damaged.

    `unchecked` are files without a checksum, such as those that older versions published; their records, which
    are parsed, are not among them.
    """

    kind: str
    things: int
    bytes: int
    damaged: int
    unchecked: int


@dataclass(frozen=True, kw_only=True)
class Verification(Record):
    """What a look through a store came to. `set_aside` says whether what is damaged was set aside."""

    store: str
    kinds: tuple[KindCount, ...]
    damaged: tuple[Damage, ...]
    set_aside: bool = False


@dataclass(frozen=True, kw_only=True)
class _Thing:
    """A record or a folder of the store, and its files by their names in it."""

    kind: Kind
    place: str
    files: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """A file as it was published: its key, its size where that is known, and its checksum."""

    key: str
    bytes: int | None
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What one look at a thing came to."""

    reason: str | None = None
    bytes: int = 0
    unchecked: int = 0
    notices: bool = True
    gone: bool = False


def verify_store(store: Store, set_aside: bool = False) -> Verification:
    """Read everything that a store holds and compare it with what was published.

    Raises:
        StoreUnreachable: an object store stayed away.
        StoreNotWritable: what is damaged can't be set aside.
    """
    survey = store.survey()
    things = list(_list_things(survey))
    total = sum(survey[key].size for thing in things for key in thing.files.values())
    findings: list[_Finding] = []
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        with track("verify", total, "bytes") as advance:
            looked = pool.map(lambda thing: _look_at(thing, survey, store), things)
            for thing, finding in zip(things, looked, strict=True):
                findings.append(finding)
                advance(sum(survey[key].size for key in thing.files.values()))
    finally:
        pool.shutdown(cancel_futures=True)
    found = [(thing, finding) for thing, finding in zip(things, findings, strict=True) if not finding.gone]
    damaged = [
        Damage(
            kind=thing.kind.name,
            place=thing.place,
            reason=finding.reason,
            again=thing.kind.again,
            notices=finding.notices,
        )
        for thing, finding in found
        if finding.reason
    ]
    if set_aside:
        for one in damaged:
            store.set_aside(store.folder(*one.place.split("/")), one.reason, certain=True)
    return Verification(
        store=store.address,
        kinds=tuple(_count(found)),
        damaged=tuple(sorted(damaged, key=lambda one: one.place)),
        set_aside=set_aside,
    )


def _count(found: Sequence[tuple[_Thing, _Finding]]) -> Iterator[KindCount]:
    for kind in sorted({thing.kind.name for thing, _ in found}):
        of_kind = [finding for thing, finding in found if thing.kind.name == kind]
        yield KindCount(
            kind=kind,
            things=len(of_kind),
            bytes=sum(finding.bytes for finding in of_kind),
            damaged=sum(finding.reason is not None for finding in of_kind),
            unchecked=sum(finding.unchecked for finding in of_kind),
        )


def _list_things(survey: Mapping[str, Facts]) -> Iterator[_Thing]:
    """Everything published, with its files as they lie there; and what else lies there, file by file."""
    things: dict[str, dict[str, str]] = {}
    for key in survey:
        top, *rest = key.split("/")
        if top in PASSING or not (rest or top in KINDS):
            continue
        kind = KINDS.get(top) or Kind(name=top)
        parts = key.split("/")
        place = "/".join(parts[: kind.depth]) if len(parts) > kind.depth else key
        things.setdefault(place, {})[key[len(place) + 1 :]] = key
    for place, files in things.items():
        kind = KINDS.get(place.split("/")[0]) or Kind(name=place.split("/")[0])
        # In an object store files without a marker were never published.
        if MARKER in files or not _looks_like_payload(files):
            yield _Thing(kind=kind, place=place, files=files)


def _looks_like_payload(files: Mapping[str, str]) -> bool:
    """Whether all files lie below checksums, as those of a folder do that is published in an object store."""
    return all(
        "/" in name and len(name.split("/")[0]) == 16 and set(name.split("/")[0]) <= set("0123456789abcdef")
        for name in files
    )


def _look_at(thing: _Thing, survey: Mapping[str, Facts], store: Store) -> _Finding:
    try:
        if MARKER in thing.files:
            return _look_at_folder(thing, survey, store)
        if _SHARD in thing.files and thing.kind.name == "features":
            return _look_at_old_shard(thing, survey, store)
        return _look_at_record(thing, survey, store)
    except FileNotFoundError:
        return _Finding(gone=True)


def _look_at_folder(thing: _Thing, survey: Mapping[str, Facts], store: Store) -> _Finding:
    """Compare a folder with its marker."""
    marker_key = thing.files[MARKER]
    data = _read(marker_key, store)
    try:
        marker = read_marker(data)
    except ValueError as error:
        return _Finding(reason=str(error), bytes=len(data), notices=bool(store.mirror))
    places = {
        name: facts.find(thing.place, name) if store.mirror else f"{thing.place}/{name}"
        for name, facts in marker.items()
    }
    expected = {
        name: _Expected(key=places[name], bytes=facts.bytes, sha256=facts.sha256)
        for name, facts in marker.items()
    }
    finding = _compare(expected, survey, store)
    if finding.reason and _read_again(marker_key, store) != data:
        return _Finding(gone=True)  # deleted, or made again, while it was looked at
    read = finding.bytes + len(data)
    if finding.reason:
        # A disk's own folders are read without a look at their markers, but for shards.
        notices = bool(store.mirror) or thing.kind.name == "features"
        return _Finding(reason=finding.reason, bytes=read, notices=notices)
    name = thing.kind.file
    if name and name not in marker:
        return _Finding(reason=f"it lacks {name}", bytes=read)
    if name:
        record = _read(places[name], store)
        own = {file: facts.sha256 for file, facts in marker.items() if file != name}
        reason = _parse_shard(record, own) if name == _SHARD else parse_record(thing.kind, record)
        return _Finding(reason=reason, bytes=read)
    return _Finding(bytes=read)


def _parse_shard(data: bytes, expected: Mapping[str, str]) -> str | None:
    """What is wrong with a shard's own checksums, or None."""
    try:
        return (
            None
            if json.loads(data)["sha256"] == expected
            else f"{_SHARD} names other checksums than {MARKER}"
        )
    except (ValueError, KeyError, TypeError) as error:
        return f"{_SHARD} is not readable: {error}"


def _look_at_old_shard(thing: _Thing, survey: Mapping[str, Facts], store: Store) -> _Finding:
    """Compare a shard that has no marker with the checksums that it has of its own."""
    own = thing.files[_SHARD]
    data = _read(own, store)
    try:
        checksums = json.loads(data)["sha256"]
        expected = {
            name: _Expected(key=f"{thing.place}/{name}", bytes=None, sha256=sha256)
            for name, sha256 in checksums.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return _Finding(reason=f"shard.json is not readable: {error}", bytes=len(data))
    finding = _compare(expected, survey, store)
    if finding.reason and _read_again(own, store) != data:
        return _Finding(gone=True)
    return _Finding(reason=finding.reason, bytes=finding.bytes + len(data))


def _look_at_record(thing: _Thing, survey: Mapping[str, Facts], store: Store) -> _Finding:
    """Parse a record, or that of a folder without a marker; other files of such a folder are not checked."""
    kind, names = thing.kind, thing.place.split("/")
    digest = names[-1].removesuffix(".json")
    if names[0] == _SPACE.name and names[-1] == _SPACE.file:
        kind, digest = _SPACE, names[1]
    key = thing.files.get(kind.file or "", thing.files.get(""))
    if kind.record is None or key is None:
        return _Finding(unchecked=len(thing.files))
    data = _read(key, store)
    reason, notices = parse_record(kind, data), True
    # Of the text itself: a record of an older version has fields less.
    if reason is None and kind.names_content and not is_digest_of(digest, json.loads(data)):
        reason, notices = "its digest is not that of its content", False
    return _Finding(reason=reason, bytes=len(data), unchecked=len(thing.files) - 1, notices=notices)


def _compare(expected: Mapping[str, _Expected], survey: Mapping[str, Facts], store: Store) -> _Finding:
    read = 0
    for name, file in expected.items():
        size = _measure(file.key, survey, store)
        if size is None:
            return _Finding(reason=f"{name} is lost", bytes=read)
        if file.bytes not in (None, size):
            return _Finding(reason=f"{name} has {size} bytes, not {file.bytes}", bytes=read)
        found = hashlib.sha256()
        try:
            for piece in _read_pieces(file.key, size, store):
                found.update(piece)
        except FileNotFoundError:
            return _Finding(reason=f"{name} is lost", bytes=read)
        read += size
        if found.hexdigest() != file.sha256:
            return _Finding(reason=f"{name} does not match its checksum", bytes=read)
    return _Finding(bytes=read)


def _read(key: str, store: Store) -> bytes:
    """A record, as it is now: one that is replaced may have grown since the survey."""
    return store.mirror.objects.read(key) if store.mirror else store.folder(key).read_bytes()


def _read_again(key: str, store: Store) -> bytes | None:
    with suppress(FileNotFoundError):
        return _read(key, store)
    return None


def _measure(key: str, survey: Mapping[str, Facts], store: Store) -> int | None:
    """The size of a file, None where there is none. A listing of many pages may show less than there is."""
    facts = survey.get(key)
    if facts is None and store.mirror:
        with suppress(FileNotFoundError):
            facts = store.mirror.objects.find(key)
    return facts.size if facts else None


def _read_pieces(key: str, size: int, store: Store) -> Iterator[bytes]:
    if store.mirror:
        for start in range(0, size, _PIECE_BYTES):
            yield store.mirror.objects.read(key, start, min(start + _PIECE_BYTES, size))
        return
    with store.folder(key).open("rb") as opened:
        while piece := opened.read(_PIECE_BYTES):
            yield piece
