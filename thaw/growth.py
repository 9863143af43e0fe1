"""A dump that changes: what is new since a model was trained on it, and the split that grows with it."""

import dataclasses
from dataclasses import dataclass

from thaw.config import SplitConfig
from thaw.errors import UnlikeSplits
from thaw.layout import natural_key
from thaw.records import SIDES, Made, Manifest, Record, Side, Split
from thaw.split import check_no_side_is_empty, draw_side, publish_rows, split_manifest
from thaw.store import Store


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


def grow_split(before: Split, known: Manifest, manifest: Manifest, config: SplitConfig) -> Split:
    """Split a dump that has changed: an image that was placed stays on its side, under its present label.

    Images that are new are placed by the strategy; with strategy index, which counts from the front, by
    their content instead, in the proportions of its counts. What the old split left out stays out.

    Args:
        known: the manifest that `before` splits.

    Raises:
        ShortClass: a class has no image left for a side.
        BadConfig: the strategy doesn't fit the dump's layout.
    """
    sides: dict[str, Side | None] = dict.fromkeys(row.sha256 for row in known.images)
    sides |= _sides_of(before)
    new = [row for row in manifest.images if row.sha256 not in sides]
    if new and config.strategy == "index":
        counts = {side: getattr(config, side) for side in SIDES}
        shares = {side: count / sum(counts.values()) for side, count in counts.items()}
        sides |= {row.sha256: draw_side(row, shares, config.seed) for row in new}
    elif new:
        fresh = _sides_of(split_manifest(manifest, config))
        sides |= {row.sha256: fresh.get(row.sha256) for row in new}
    placed = {side: [row for row in manifest.images if sides[row.sha256] == side] for side in SIDES}
    for label in manifest.classes:
        of_class = {side: [row for row in rows if row.label == label] for side, rows in placed.items()}
        check_no_side_is_empty(label, sum(of_class.values(), []), of_class, config.strategy)
    order = {label: number for number, label in enumerate(manifest.classes)}
    for rows in placed.values():
        rows.sort(key=lambda row: (order[row.label], natural_key(row.path)))
    return dataclasses.replace(
        before, classes=manifest.classes, **{side: tuple(rows) for side, rows in placed.items()}
    )


def publish_grown_split(
    before: Split, known: Manifest, manifest: Manifest, config: SplitConfig, store: Store
) -> Made[Split]:
    """Grow a split, and publish the result under its digest.

    Raises:
        ShortClass, BadConfig: as `grow_split` does.
    """
    return publish_rows(grow_split(before, known, manifest, config), store)


def hold_out(split: Split, other: Split, store: Store) -> Split:
    """The split less those test rows that a model of another split trained or validated on, published.

    Raises:
        UnlikeSplits: the classes differ, or no test row of some class is left.
    """
    if other.classes != split.classes:
        raise UnlikeSplits(
            f"a model of the classes {', '.join(other.classes)} and one of {', '.join(split.classes)} can't "
            "be tested on the same images."
        )
    seen = {key for key, side in _sides_of(other).items() if side != "test"}
    test = tuple(row for row in split.test if row.sha256 not in seen)
    if {row.label for row in test} != set(split.classes):
        raise UnlikeSplits(
            f"of the {len(split.test):,} test images of split {split.digest} only {len(test):,} are new to the "
            f"model of split {other.digest}, and not of every class: there is nothing to compare on."
        )
    return publish_rows(dataclasses.replace(split, test=test), store).value


def _sides_of(split: Split) -> dict[str, Side]:
    return {row.sha256: side for side in SIDES for row in split.rows(side)}
