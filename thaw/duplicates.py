"""Near-identical images of a dump: found once, kept in the store, and those with different labels told."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from thaw.archive import open_dump
from thaw.claims import claim
from thaw.config import BackboneConfig, DumpConfig, DuplicatesConfig
from thaw.extract import map_ahead, read_pixels
from thaw.features import cache_features, describe_space
from thaw.likeness import HASHER, HASHES, SIDE_PIXELS, SIMILARITY, find_groups, hash_image, measure_similarity
from thaw.progress import track
from thaw.records import PIXELS, SIDES, Backbone, ImageRow, Made, Manifest, Record, Split, digest_of
from thaw.shards import SpaceFolder
from thaw.store import Store

logger = logging.getLogger(__name__)

_SQUARE = BackboneConfig(name="none", image_size_pixels=SIDE_PIXELS)
_AHEAD = 64


@dataclass(frozen=True, kw_only=True)
class ImageHashes(Record):
    """The hashes of images by their SHA-256, as hexadecimal digits of what `hash_image` gives."""

    hasher: int
    hashes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class ImageGroup(Record):
    """Images that are near-identical, in natural order: each to one of the others, not all to all.

    `distance_bits` is the largest distance that ties one of them to the others, of 128 bits. `similarity` is the
    same by features, as `measure_similarity` gives it; None where no backbone saw two of them. Images of a
    `doubted` group are less alike than copies are.
    """

    images: tuple[ImageRow, ...]
    distance_bits: int
    similarity: float | None = None
    doubted: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({row.label for row in self.images}))


@dataclass(frozen=True, kw_only=True)
class Duplicates(Record):
    """The near-identical images of a manifest, in `duplicates/<address>.json`.

    `compared` counts the images that were looked at; the others are too small to be told by a hash.
    """

    address: str
    manifest: str
    compared: int
    groups: tuple[ImageGroup, ...]

    @property
    def conflicts(self) -> tuple[ImageGroup, ...]:
        """The groups whose images don't have all the same label: some of those labels must be wrong."""
        return tuple(group for group in self.groups if len(group.labels) > 1)

    @property
    def rows(self) -> tuple[tuple[ImageRow, ...], ...]:
        """The images of each group, as `split_manifest` takes them."""
        return tuple(group.images for group in self.groups)


def find_duplicates(
    manifest: Manifest, dump: DumpConfig, settings: DuplicatesConfig, store: Store
) -> Made[Duplicates]:
    """Group the near-identical images of a manifest, and publish the groups.

    Only images are hashed whose hashes the store does not hold. Nothing is looked for, and nothing published,
    where `settings.placement` is `alone`.

    Raises:
        BadDump: an image changed since the dump was scanned.
        NotPublished: it was not done yet, and the store is only looked at.
    """
    address = digest_of("duplicates", HASHER, manifest.digest, settings)
    if settings.placement == "alone":
        nothing = Duplicates(address=address, manifest=manifest.digest, compared=0, groups=())
        return Made(value=nothing, reused=True, note="near-identical images are not looked for")
    if found := store.read("duplicates", address, Duplicates):
        return Made(value=found, reused=True, note=_summarise(found))
    with claim(store, "duplicates", address):
        if found := store.read("duplicates", address, Duplicates):
            return Made(value=found, reused=True, note=_summarise(found))
        smallest = settings.smallest_side_pixels
        rows = [row for row in manifest.images if min(row.width, row.height) >= smallest]
        groups = find_groups(cache_hashes(rows, dump, store), distance_bits=settings.distance_bits)
        made = Duplicates(
            address=address,
            manifest=manifest.digest,
            compared=len(rows),
            groups=tuple(
                ImageGroup(
                    images=tuple(rows[member] for member in group.members), distance_bits=group.distance_bits
                )
                for group in groups
            ),
        )
        store.publish("duplicates", address, made)
    for group in made.conflicts:
        paths = ", ".join(f"{row.path} ({row.label})" for row in group.images)
        logger.warning("near-identical images with different labels: %s", paths)
    return Made(value=made, reused=False, note=_summarise(made))


def confirm_duplicates(
    duplicates: Duplicates,
    split: Split,
    dump: DumpConfig,
    backbone: Backbone,
    settings: BackboneConfig,
    store: Store,
) -> Made[Duplicates]:
    """The same groups, with how alike those of their images that the split uses are to the backbone.

    Nobody's side depends on it: recipes with different backbones share a split. Only VGG16 is trusted to doubt a
    group, for of others nobody measured how alike copies are.

    Raises:
        As `cache_features` does.
    """
    used = {row for side in SIDES for row in split.rows(side)}
    seen = [tuple(row for row in group.images if row in used) for group in duplicates.groups]
    images = tuple(row for rows in seen if len(rows) > 1 for row in rows)
    if not images or backbone.end == PIXELS:
        return Made(
            value=duplicates, reused=True, note="no near-identical images to look at through a backbone"
        )
    wanted = replace(split, train=images, validation=(), test=())
    cached = cache_features(wanted, dump, backbone, settings, backbone.end, store, sides=("train",))
    folder = SpaceFolder(store, describe_space(backbone, settings, backbone.end, store))
    confirmed = []
    for group, rows in zip(duplicates.groups, seen, strict=True):
        if len(rows) > 1:
            places = folder.find((row.sha256, 0) for row in rows)
            similarity = measure_similarity(folder.read(places))
            doubted = backbone.name == "vgg16" and similarity < SIMILARITY
            group = replace(group, similarity=similarity, doubted=doubted)
        confirmed.append(group)
    doubts = sum(group.doubted for group in confirmed)
    note = f"{len(images):,} near-identical images seen through {backbone.name}, {doubts:,} groups doubted"
    return Made(value=replace(duplicates, groups=tuple(confirmed)), reused=cached.reused, note=note)


def cache_hashes(rows: Sequence[ImageRow], dump: DumpConfig, store: Store) -> np.ndarray:
    """The hashes of images, reading only those that no record in the store has: uint64 (n, HASHES, 2).

    Raises:
        BadDump: an image changed since the dump was scanned.
    """
    wanted = {row.sha256: row for row in rows}
    known = _look_up(store, set(wanted))
    missing = [row for key, row in wanted.items() if key not in known]
    if missing:
        known |= _hash_images(missing, dump)
        hashes = {key: known[key].tobytes().hex() for key in wanted}
        store.publish(
            "hashes",
            digest_of("hashes", HASHER, sorted(hashes)),
            ImageHashes(hasher=HASHER, hashes=hashes),
        )
    return np.stack([known[row.sha256] for row in rows]) if rows else np.empty((0, HASHES, 2), np.uint64)


def _hash_images(rows: Sequence[ImageRow], dump: DumpConfig) -> dict[str, np.ndarray]:
    with (
        open_dump(dump.path) as opened,
        track("look for near-identical images", len(rows), "images") as advance,
    ):
        hashes = {}
        made = map_ahead(
            lambda row: hash_image(read_pixels(opened, row, _SQUARE)), rows, _AHEAD, opened.readers
        )
        for row, hashed in zip(rows, made, strict=True):
            hashes[row.sha256] = hashed
            advance()
    return hashes


def _look_up(store: Store, wanted: set[str]) -> dict[str, np.ndarray]:
    """What earlier records know of these images, the newest first, as far back as is needed."""
    known: dict[str, str] = {}
    for record in store.read_all("hashes", ImageHashes):
        if record.hasher == HASHER:
            known |= record.hashes
        if wanted <= known.keys():
            break
    return {
        key: np.frombuffer(bytes.fromhex(known[key]), dtype=np.uint64).reshape(HASHES, 2)
        for key in wanted & known.keys()
    }


def _summarise(found: Duplicates) -> str:
    if not found.groups:
        return f"no near-identical images among {found.compared:,}"
    images = sum(len(group.images) for group in found.groups)
    many = f"{len(found.groups):,} group" + ("s" if len(found.groups) > 1 else "")
    conflicts = f", {len(found.conflicts):,} with different labels" if found.conflicts else ""
    return f"{images:,} of {found.compared:,} images in {many} of near-identical ones{conflicts}"
