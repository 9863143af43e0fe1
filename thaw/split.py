"""Assign each image of a manifest to train, validation or test."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence

from thaw.config import SplitConfig
from thaw.errors import BadConfig, ShortClass
from thaw.layout import natural_key
from thaw.records import SIDES, ImageRow, Made, Manifest, Side, Split
from thaw.store import Store

logger = logging.getLogger(__name__)

# What is carved out of the dump's own train folder for a side it lacks, where the setting is a count.
CARVED_FRACTION = 0.2

Sides = dict[Side, list[ImageRow]]
# Images that stay together, such as near-identical ones, of whatever classes; no image is in two groups.
Groups = Sequence[Sequence[ImageRow]]


def split_manifest(manifest: Manifest, config: SplitConfig, groups: Groups = ()) -> Split:
    """Divide the usable images of each class among train, validation and test.

    index: the first images of each class in natural order train, the next ones validate, the next ones
        test. Shares are counts, or fractions rounded down; fractions that add up to 1 use every image.
    hash: an image's side depends on its bytes and the seed alone, so that it keeps its side when the dump
        grows. Fractions only. Test is drawn first, so that a changed train fraction moves no test image.
    directory: the sides of the dump's own folders. A side that the dump lacks is carved out of train by
        hash: its fraction of train, or 0.2 of it where the setting is a count.

    A group lands on one side, its first member's by natural order. With index, one that does not fit into
    what is left of a side moves on to the next, and later images take its place, so that counts are kept.
    With hash, a new image moves the others where it comes first in a group or joins two; `grow_split` moves
    none. With directory, a group that the dump itself divides keeps those of its images that test, else those
    that validate; the others are left out.

    Returns:
        A split whose rows come class by class, in natural order of their paths. Its seed is 0 with
        strategy index, which draws nothing, so that the same rows have the same digest.
    Raises:
        ShortClass: a class has too few images for a side that the configuration asks for.
        BadConfig: strategy directory, but the dump has no ready splits; or index, but it has.
    """
    check_layout(manifest, config)
    shares = shares_of(config)
    leaders = find_leaders(groups)
    divided = _find_divided(groups) if config.strategy == "directory" else set()
    placed: dict[str, Side] = {}
    sides: Sides = {side: [] for side in SIDES}
    ready = {row.side for row in manifest.images if row.side}
    if config.strategy == "directory" and len(ready) < len(SIDES):
        logger.warning("the dump lacks %s: carved out of train", " and ".join(sorted(set(SIDES) - ready)))
    for label in manifest.classes:
        rows = sorted(
            (row for row in manifest.images if row.label == label), key=lambda row: natural_key(row.path)
        )
        if config.strategy == "index":
            parts = _split_by_index(label, rows, shares, leaders, placed)
        elif config.strategy == "hash":
            parts = _split_by_hash(label, rows, shares, config.seed, leaders)
        else:
            kept = [row for row in rows if row not in divided]
            parts = _split_by_directory(label, kept, shares, config.seed, ready, leaders)
        for side in SIDES:
            sides[side] += parts[side]
    return Split(
        strategy=config.strategy,
        seed=0 if config.strategy == "index" else config.seed,
        classes=manifest.classes,
        **{side: tuple(rows) for side, rows in sides.items()},
    )


def check_layout(manifest: Manifest, config: SplitConfig) -> None:
    """See that the strategy is one for the dump's layout.

    Raises:
        BadConfig: strategy directory, but the dump has no ready splits; or index, but it has.
    """
    if config.strategy == "directory" and manifest.layout != "ready_splits":
        raise BadConfig(
            f"setting 'split.strategy': 'directory' needs a dump with ready splits (train/cats/1.jpg beside "
            f"test/cats/2.jpg), this one's layout is '{manifest.layout}'. Use strategy 'index' or 'hash'."
        )
    if config.strategy == "index" and manifest.layout == "ready_splits":
        raise BadConfig(
            "setting 'split.strategy': this dump has ready splits, and 'index' would mix its test images with "
            "those to train on. Set it to 'directory', or to 'hash' with fractions to divide the dump anew."
        )


def shares_of(config: SplitConfig) -> dict[Side, float]:
    """Counts, or fractions, by side."""
    return {side: getattr(config, side) for side in SIDES}


def find_leaders(groups: Groups) -> dict[ImageRow, ImageRow]:
    """The first image by natural order of the group that an image is in."""
    firsts = (min(group, key=lambda row: natural_key(row.path)) for group in groups)
    return {row: first for first, group in zip(firsts, groups, strict=True) for row in group}


def publish_split(manifest: Manifest, config: SplitConfig, store: Store, groups: Groups = ()) -> Made[Split]:
    """Split a manifest, and publish the split in the store under its digest.

    Raises:
        ShortClass, BadConfig: as `split_manifest` does.
    """
    return publish_rows(split_manifest(manifest, config, groups), store)


def publish_rows(split: Split, store: Store) -> Made[Split]:
    """Publish a split in the store under its digest."""
    reused = store.read("splits", split.digest, Split) is not None
    if not reused:
        store.publish("splits", split.digest, split)
    note = ", ".join(f"{side} {len(split.rows(side))}" for side in SIDES)
    return Made(value=split, reused=reused, note=f"{note}, split {split.digest}")


def _split_by_index(
    label: str,
    rows: Sequence[ImageRow],
    shares: Mapping[Side, float],
    leaders: Mapping[ImageRow, ImageRow],
    placed: dict[str, Side],
) -> Sides:
    """Fill side after side with the next images, a group at a time.

    Args:
        placed: sides of groups that classes before this one have images of, by their leaders; added to.
    """
    counts = (
        _count(len(rows), shares) if are_fractions(shares) else {side: int(shares[side]) for side in SIDES}
    )
    needed = sum(counts.values())
    asked = " + ".join(f"{side} {counts[side]}" for side in SIDES)
    if needed > len(rows):
        raise ShortClass(
            f"class '{label}' has {len(rows)} usable images, the index split needs {needed} ({asked}). "
            "Add images, lower the counts, or use strategy 'hash' with fractions."
        )
    units: dict[str, list[ImageRow]] = {}
    for row in rows:
        units.setdefault(leaders.get(row, row).sha256, []).append(row)
    # What an earlier class decided comes first, before its side is full.
    waiting = sorted(units, key=lambda leader: leader not in placed)
    sides: dict[ImageRow, Side] = {}
    for side in SIDES:
        room = len(rows) if side == "test" and _use_everything(shares) else counts[side]
        for leader in waiting:
            if placed.get(leader, side) == side and len(units[leader]) <= room:
                placed[leader] = side
                room -= len(units[leader])
                sides |= dict.fromkeys(units[leader], side)
        waiting = [leader for leader in waiting if units[leader][0] not in sides]
        if room and not are_fractions(shares):
            raise ShortClass(
                f"class '{label}' has {len(rows)} usable images, but those near-identical stay together, and the "
                f"index split ({asked}) can't be made of such groups: {side} lacks {room}. Change the counts, or "
                "use strategy 'hash' with fractions, or set duplicates.placement to 'alone'."
            )
    parts: Sides = {side: [row for row in rows if sides.get(row) == side] for side in SIDES}
    return check_no_side_is_empty(label, rows, parts, "index", any(row in leaders for row in rows))


def _split_by_hash(
    label: str,
    rows: Sequence[ImageRow],
    shares: Mapping[Side, float],
    seed: int,
    leaders: Mapping[ImageRow, ImageRow],
) -> Sides:
    parts: Sides = {side: [] for side in SIDES}
    for row in rows:
        side = draw_side(leaders.get(row, row), shares, seed)
        if side:
            parts[side].append(row)
    return check_no_side_is_empty(label, rows, parts, "hash", any(row in leaders for row in rows))


def _split_by_directory(
    label: str,
    rows: Sequence[ImageRow],
    shares: Mapping[Side, float],
    seed: int,
    ready: set[Side],
    leaders: Mapping[ImageRow, ImageRow],
) -> Sides:
    parts: Sides = {side: [row for row in rows if row.side == side] for side in SIDES}
    for side in set(SIDES) - ready:
        fraction = shares[side] if shares[side] < 1 else CARVED_FRACTION
        train = parts["train"]
        drawn = {row for row in train if _position(leaders.get(row, row), seed) < fraction}
        parts[side] = [row for row in train if row in drawn]
        parts["train"] = [row for row in train if row not in drawn]
    return check_no_side_is_empty(label, rows, parts, "directory", any(row in leaders for row in rows))


def _find_divided(groups: Groups) -> set[ImageRow]:
    """Images that the dump's own folders put on an earlier side than others of their group."""
    latest = [max((row.side for row in group), key=SIDES.index) for group in groups]
    return {row for side, group in zip(latest, groups, strict=True) for row in group if row.side != side}


def draw_side(row: ImageRow, shares: Mapping[Side, float], seed: int) -> Side | None:
    """The side that an image's bytes and the seed give it; None where the fractions leave it out."""
    position, limit = _position(row, seed), 0.0
    for side in reversed(SIDES):
        limit += shares[side]
        if position < limit or (side == "train" and _use_everything(shares)):
            return side
    return None


def _position(row: ImageRow, seed: int) -> float:
    """A number from 0 to 1, drawn from the image's bytes and the seed."""
    digest = hashlib.sha256(f"{seed}:{row.sha256}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _count(images: int, shares: Mapping[Side, float]) -> dict[Side, int]:
    # 0.29 * 100 is 28.999…96 in floating point.
    counts = {side: math.floor(images * shares[side] + 1e-9) for side in SIDES}
    if _use_everything(shares):
        counts["test"] += images - sum(counts.values())
    return counts


def are_fractions(shares: Mapping[Side, float]) -> bool:
    return all(share < 1 for share in shares.values())


def _use_everything(shares: Mapping[Side, float]) -> bool:
    return math.isclose(sum(shares.values()), 1, abs_tol=1e-9)


def check_no_side_is_empty(
    label: str, rows: Sequence[ImageRow], parts: Sides, strategy: str, grouped: bool = False
) -> Sides:
    """Hand the rows of a class back, each side of them with one at least.

    Args:
        grouped: whether some of them had to stay together.

    Raises:
        ShortClass: a side has none.
    """
    for side in SIDES:
        if not parts[side]:
            remedy = {
                "index": "Add images, or change the shares.",
                "hash": "Add images, choose another seed, or use strategy 'index'.",
                "directory": f"Add images to the dump's {side} folder, or use strategy 'index' or 'hash'.",
            }[strategy]
            if grouped:
                remedy += " Near-identical images stay together, unless duplicates.placement is 'alone'."
            counts = ", ".join(f"{name} {len(parts[name])}" for name in SIDES)
            raise ShortClass(
                f"class '{label}' has {len(rows)} usable images, and the {strategy} split leaves none "
                f"for {side} ({counts}); each side needs 1 at least. {remedy}"
            )
    return parts
