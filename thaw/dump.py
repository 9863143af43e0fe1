"""Scan a dump: label, hash and verify every image, and set the bad ones aside with a reason."""

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from thaw.archive import Dump, is_image_name, open_dump
from thaw.config import DumpConfig
from thaw.errors import BadDump, BadImage, TooManyBad
from thaw.images import decode_image
from thaw.layout import Reading, natural_key, read_layout
from thaw.progress import track
from thaw.records import SIDES, ImageRow, Made, Manifest, Quarantined
from thaw.store import Store

__all__ = ["Dump", "check_quarantine", "natural_key", "open_dump", "scan_dump"]

logger = logging.getLogger(__name__)
Result = TypeVar("Result")

# Raised when what counts as a usable image changes, so that no verdict of older rules is taken over.
SCANNER = 1

_BAD_KINDS = ("unreadable", "contested")
_REASONS_SHOWN = 5


@dataclass(frozen=True)
class _Finding:
    """What decoding found out about some bytes: their size in pixels, or why they are no usable image.

    Bytes that were set aside for another reason are sound, but their size was not kept.
    """

    width: int = 0
    height: int = 0
    reason: str = ""


def scan_dump(config: DumpConfig, store: Store) -> Made[Manifest]:
    """Make the manifest of a dump, decoding only images whose bytes no manifest in the store knows.

    Every image's bytes are hashed each time. The manifest does not depend on where the dump lies, and
    is published before its quarantine list is held against `config.max_quarantine_fraction`.

    Byte-identical images of one label count once: the first in natural order stays, or with ready splits
    the one in test, then validation. The same bytes under two labels are all set aside. Images without a
    label, such as Kaggle's `test1/`, are set aside unread and count against no class.

    Raises:
        BadDump: the dump can't be opened, or holds no images, no labels, or fewer than two classes.
        TooManyBad: too large a share of a class can't be used.
    """
    with open_dump(config.path) as dump:
        names = sorted(dump.members(), key=natural_key)
        reading = _read_layout(dump, names, config)
        logger.info("%s: layout %s, classes %s", config.path, reading.layout, ", ".join(reading.classes))
        labelled = sorted(reading.labels, key=natural_key)
        hashes = dict(zip(labelled, _map_images(dump, labelled, _hash, "hash images"), strict=True))
        findings = _look_up(store, {text for text in hashes.values() if isinstance(text, str)})
        firsts = _first_paths_to_verify(hashes, reading, findings)
        verified = _map_images(dump, list(firsts.values()), _verify, "verify images") if firsts else ()
        findings |= zip(firsts, verified, strict=True)
        ignored = [name for name in names if not is_image_name(name)]
        manifest = _compile(reading, hashes, findings, dump.refused, ignored)
    digest = manifest.digest
    reused = store.read("manifests", digest, Manifest) is not None
    if not reused:
        store.publish("manifests", digest, manifest)
    note = _summarise(manifest, decoded=len(firsts))
    logger.info("manifest %s%s: %s", digest, " found published" if reused else "", note)
    check_quarantine(manifest, config.max_quarantine_fraction)
    return Made(value=manifest, reused=reused, note=note)


def check_quarantine(manifest: Manifest, max_fraction: float) -> None:
    """Hold the share of each class that can't be used against the limit.

    Duplicates, unlabelled and refused members are not bad images and don't count.

    Raises:
        TooManyBad: a class exceeds the limit.
        BadDump: a class has no usable image left.
    """
    usable = Counter(row.label for row in manifest.images)
    for label in manifest.classes:
        bad = [row for row in manifest.quarantined if row.label == label and row.kind in _BAD_KINDS]
        total = usable[label] + len(bad)
        if len(bad) > max_fraction * total:
            raise TooManyBad(
                f"class '{label}' has {len(bad)} bad images of {total} ({len(bad) / total:.1%}), more than "
                f"max_quarantine_fraction {max_fraction:g} allows. Mend or remove them, or raise "
                f"max_quarantine_fraction.{_list_reasons(bad)}"
            )
        if not usable[label]:
            raise BadDump(
                f"class '{label}' has no usable image: {len(bad)} are bad. Add images to it, or remove it."
                f"{_list_reasons(bad)}"
            )


def _read_layout(dump: Dump, names: Sequence[str], config: DumpConfig) -> Reading:
    images = [name for name in names if is_image_name(name)]
    try:
        if not images:
            raise BadDump(_explain_no_images(dump, names))
        return read_layout(images, dump.folders, config.layout)
    except BadDump as error:
        raise BadDump(f"{config.path} can't be used: {error}") from None


def _explain_no_images(dump: Dump, names: Sequence[str]) -> str:
    archives = [
        name for name in names if name.lower().endswith((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"))
    ]
    if archives:
        return (
            f"it holds no images, only further archives ({', '.join(archives[:3])}). "
            "Unpack it, and pass the archive or the folder with the labelled images."
        )
    found = ", ".join(names[:3]) or "nothing"
    refused = "".join(f"; {name}: {reason}" for name, reason in list(dump.refused.items())[:3])
    return f"it holds no images, but {found}{refused}. Pass a zip archive or a folder of images."


def _hash(dump: Dump, name: str) -> str | BadImage:
    try:
        return hashlib.sha256(dump.read(name)).hexdigest()
    except BadImage as error:
        return error


def _verify(dump: Dump, name: str) -> _Finding:
    try:
        image = decode_image(dump.read(name))
    except BadImage as error:
        return _Finding(reason=str(error))
    return _Finding(width=image.width, height=image.height)


def _map_images(
    dump: Dump, names: Sequence[str], work: Callable[[Dump, str], Result], title: str
) -> Iterator[Result]:
    """Do the same to many images at once; results come in the order of the names."""
    pool = ThreadPoolExecutor(dump.readers or os.cpu_count())
    try:
        with track(title, len(names), "images") as advance:
            for result in pool.map(lambda name: work(dump, name), names):
                advance()
                yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _look_up(store: Store, wanted: set[str]) -> dict[str, _Finding]:
    """What earlier manifests know of these bytes, the newest first, as far back as is needed."""
    findings: dict[str, _Finding] = {}
    for manifest in store.read_all("manifests", Manifest):
        if manifest.scanner != SCANNER:
            continue
        for row in manifest.images:
            findings[row.sha256] = _Finding(width=row.width, height=row.height)
        for row in manifest.quarantined:
            if row.sha256 and row.kind in _BAD_KINDS:
                reason = row.reason if row.kind == "unreadable" else ""
                findings.setdefault(row.sha256, _Finding(reason=reason))
        if wanted <= findings.keys():
            break
    return {sha256: findings[sha256] for sha256 in wanted & findings.keys()}


def _first_paths_to_verify(
    hashes: Mapping[str, str | BadImage], reading: Reading, findings: Mapping[str, _Finding]
) -> dict[str, str]:
    """One path for each hash that must be decoded, in natural order."""
    firsts: dict[str, str] = {}
    labels = defaultdict(set)
    for path, sha256 in hashes.items():
        if isinstance(sha256, str):
            firsts.setdefault(sha256, path)
            labels[sha256].add(reading.labels[path])
    for sha256, finding in findings.items():
        if finding.reason or finding.width or len(labels[sha256]) > 1:
            del firsts[sha256]
    return firsts


def _compile(
    reading: Reading,
    hashes: Mapping[str, str | BadImage],
    findings: Mapping[str, _Finding],
    refused: Mapping[str, str],
    ignored: Iterable[str],
) -> Manifest:
    images: list[ImageRow] = []
    quarantined = [
        Quarantined(path=path, label=None, reason=reason, kind="unlabelled")
        for path, reason in reading.unlabelled.items()
    ]
    quarantined += [
        Quarantined(path=path, label=None, reason=reason, kind="refused") for path, reason in refused.items()
    ]
    twins = defaultdict(list)
    for path, sha256 in hashes.items():
        if isinstance(sha256, str):
            twins[sha256].append(path)
        else:
            quarantined.append(Quarantined(path=path, label=reading.labels[path], reason=str(sha256)))
    for sha256, paths in twins.items():
        kept, reasons = _settle(paths, reading, findings[sha256])
        for path, (kind, reason) in reasons.items():
            label = reading.labels[path]
            quarantined.append(Quarantined(path=path, label=label, reason=reason, kind=kind, sha256=sha256))
        if kept:
            width, height = findings[sha256].width, findings[sha256].height
            label, side = reading.labels[kept], reading.sides.get(kept)
            images.append(
                ImageRow(path=kept, label=label, sha256=sha256, width=width, height=height, side=side)
            )
    return Manifest(
        layout=reading.layout,
        classes=reading.classes,
        images=tuple(sorted(images, key=lambda row: natural_key(row.path))),
        quarantined=tuple(sorted(quarantined, key=lambda row: (natural_key(row.path), row.kind, row.reason))),
        ignored=tuple(ignored),
        scanner=SCANNER,
    )


def _settle(
    paths: Sequence[str], reading: Reading, finding: _Finding
) -> tuple[str | None, dict[str, tuple[str, str]]]:
    """Of paths with the same bytes, in natural order: the one to keep, and why not the others."""
    if finding.reason:
        return None, dict.fromkeys(paths, ("unreadable", finding.reason))
    labels = reading.labels
    if len({labels[path] for path in paths}) > 1:
        reasons = {}
        for path in paths:
            other = next(twin for twin in paths if labels[twin] != labels[path])
            reasons[path] = f"the same bytes are labelled {labels[path]} and {labels[other]} ({other})"
        return None, {path: ("contested", reason) for path, reason in reasons.items()}
    sides = reading.sides
    kept = max(paths, key=lambda path: SIDES.index(sides[path])) if sides else paths[0]
    reasons = {}
    for path in paths:
        leak = f", which it would leak into {sides[path]}" if sides and sides[path] != sides[kept] else ""
        reasons[path] = ("duplicate", f"the same bytes as {kept}{leak}")
    del reasons[kept]
    return kept, reasons


def _summarise(manifest: Manifest, decoded: int) -> str:
    kinds = Counter(row.kind for row in manifest.quarantined)
    aside = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items())) or "none"
    return (
        f"{len(manifest.images):,} images of {len(manifest.classes)} classes ({manifest.layout}); "
        f"set aside: {aside}; {decoded:,} decoded"
    )


def _list_reasons(bad: Sequence[Quarantined]) -> str:
    lines = [f"\n  {row.path}: {row.reason}" for row in bad[:_REASONS_SHOWN]]
    if len(bad) > _REASONS_SHOWN:
        lines.append(f"\n  and {len(bad) - _REASONS_SHOWN} more")
    return "".join(lines)
