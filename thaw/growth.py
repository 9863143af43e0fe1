"""A dump that changes: what is new since a model was trained on it, and the split that grows with it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from thaw.config import SplitConfig
from thaw.layout import natural_key
from thaw.records import SIDES, Made, Manifest, Record, Side, Split
from thaw.split import (
    Groups,
    are_fractions,
    check_layout,
    check_no_side_is_empty,
    draw_side,
    find_leaders,
    publish_rows,
    shares_of,
    split_manifest,
)
from thaw.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DumpChange(Record):
    """What changed from one manifest to the next, image by image, as paths.

    An image is the same image as long as its bytes are: one that was only renamed is no change.
    `relabelled` are (path, label before, label now), `quarantined` those set aside that were not before.
    """

    before: str
    after: str
    added: tuple[str, ...]
    deleted: tuple[str, ...]
    relabelled: tuple[tuple[str, str, str], ...]
    quarantined: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to learn from it."""
        return not (self.added or self.deleted or self.relabelled)

    def __str__(self) -> str:
        counts = {
            "added": self.added,
            "deleted": self.deleted,
            "relabelled": self.relabelled,
            "newly quarantined": self.quarantined,
        }
        return ", ".join(f"{len(paths):,} {name}" for name, paths in counts.items() if paths) or "no change"


def compare_manifests(before: Manifest, after: Manifest) -> DumpChange:
    """What is new in a dump."""
    old = {row.sha256: row for row in before.images}
    new = {row.sha256: row for row in after.images}
    set_aside = {bad.path for bad in before.quarantined}
    return DumpChange(
        before=before.digest,
        after=after.digest,
        added=tuple(row.path for key, row in new.items() if key not in old),
        deleted=tuple(row.path for key, row in old.items() if key not in new),
        relabelled=tuple(
            (row.path, old[key].label, row.label)
            for key, row in new.items()
            if key in old and old[key].label != row.label
        ),
        quarantined=tuple(bad.path for bad in after.quarantined if bad.path not in set_aside),
    )


def publish_change(before: Manifest, after: Manifest, store: Store) -> Made[DumpChange]:
    """Compare two manifests of a dump, and keep what changed in `changes/`."""
    change = compare_manifests(before, after)
    reused = store.read("changes", change.digest, DumpChange) is not None
    if not reused:
        store.publish("changes", change.digest, change)
    return Made(value=change, reused=reused, note=str(change))


def grow_split(
    before: Split,
    known: Manifest,
    learned: Mapping[str, Side],
    manifest: Manifest,
    config: SplitConfig,
    groups: Groups = (),
) -> Split:
    """Split a dump that has changed: an image that was placed stays on its side, under its present label.

    Images that are new are placed by the strategy; with strategy index, which counts from the front, by
    their content instead, in the proportions of its counts. What the old split left out stays out. An
    image that left the dump and came back never turns from one learned from into one to test with.

    A new image that gets a side gets that of its group. Where the group has images on several sides, placed
    before this one tied them, none of those moves, and the new one goes to train, if that is among them, else
    to validation.

    Args:
        known: the manifest that `before` splits.
        learned: the side of every image that any earlier model learned from, by its SHA-256.
        groups: images of `manifest` that stay together.

    Raises:
        ShortClass: a class has no image left for a side.
        BadConfig: the strategy doesn't fit the dump's layout.
    """
    check_layout(manifest, config)
    sides: dict[str, Side | None] = dict.fromkeys(row.sha256 for row in known.images)
    sides |= {key: side for key, side in learned.items() if key not in sides}
    sides |= sides_of(before)
    new = [row for row in manifest.images if row.sha256 not in sides]
    drawn: dict[str, Side | None] = {}
    if new and config.strategy == "index":
        shares = shares_of(config)
        if not are_fractions(shares):
            shares = {side: count / sum(shares.values()) for side, count in shares.items()}
        leaders = find_leaders(groups)
        drawn = {row.sha256: draw_side(leaders.get(row, row), shares, config.seed) for row in new}
    elif new:
        fresh = sides_of(split_manifest(manifest, config, groups))
        drawn = {row.sha256: fresh.get(row.sha256) for row in new}
    sides |= _follow_groups(drawn, sides, groups)
    placed = {side: [row for row in manifest.images if sides[row.sha256] == side] for side in SIDES}
    for label in manifest.classes:
        of_class = {side: [row for row in rows if row.label == label] for side, rows in placed.items()}
        check_no_side_is_empty(label, sum(of_class.values(), []), of_class, config.strategy)
    order = {label: number for number, label in enumerate(manifest.classes)}
    for rows in placed.values():
        rows.sort(key=lambda row: (order[row.label], natural_key(row.path)))
    return Split(
        strategy=config.strategy,
        seed=0 if config.strategy == "index" else config.seed,
        classes=manifest.classes,
        **{side: tuple(rows) for side, rows in placed.items()},
    )


def publish_grown_split(
    before: Split,
    known: Manifest,
    learned: Mapping[str, Side],
    manifest: Manifest,
    config: SplitConfig,
    store: Store,
    groups: Groups = (),
) -> Made[Split]:
    """Grow a split, and publish the result under its digest.

    Raises:
        ShortClass, BadConfig: as `grow_split` does.
    """
    return publish_rows(grow_split(before, known, learned, manifest, config, groups), store)


def sides_of(split: Split) -> dict[str, Side]:
    """The side of every image of a split, by its SHA-256."""
    return {row.sha256: side for side in SIDES for row in split.rows(side)}


def _follow_groups(
    drawn: Mapping[str, Side | None], placed: Mapping[str, Side | None], groups: Groups
) -> dict[str, Side | None]:
    """The sides of new images, those of a group that is placed already with it."""
    joined = dict(drawn)
    for group in groups:
        new = [row for row in group if drawn.get(row.sha256)]
        known = {placed[row.sha256] for row in group if placed.get(row.sha256)}
        if new and known:
            side = min(known, key=SIDES.index)
            joined |= dict.fromkeys((row.sha256 for row in new), side)
            if len(known) > 1:
                paths = ", ".join(row.path for row in new)
                logger.warning(
                    "near-identical to images of %s, which stay there, and put to %s: %s",
                    " and ".join(sorted(known, key=SIDES.index)),
                    side,
                    paths,
                )
    return joined
