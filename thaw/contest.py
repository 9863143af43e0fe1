"""Champion and challenger: who is entered, whether there is a contest at all, and on which images."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from thaw.config import PromotionConfig, TrainConfig, build_config
from thaw.errors import BadConfig, NoSuchModel
from thaw.growth import DumpChange, sides_of
from thaw.records import Checkpoint, Manifest, Side, Split
from thaw.registry import Registry, Version
from thaw.store import Store
from thaw.trainer import find_checkpoint

# The settings that decide which weights a head has.
_SHAPE = ("network", "pooling", "dense_units", "activation")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A registered model with all that it was made from. `model` is its last checkpoint: what is tested."""

    version: Version
    config: TrainConfig
    manifest: Manifest
    split: Split
    head: Checkpoint
    model: Checkpoint

    def starts(self, config: TrainConfig, split: Split) -> bool:
        """Whether its head can go on learning as the head of another run, which searches for none of its own."""
        theirs, ours = self.config, config
        return (
            not (theirs.search.grid or ours.search.grid)
            and theirs.backbone == ours.backbone
            and all(getattr(theirs.head, part) == getattr(ours.head, part) for part in _SHAPE)
            and self.split.classes == split.classes
        )


def enter(version: Version, store: Store) -> Contender:
    """Read from the store what a version was made from.

    Raises:
        NoSuchModel: the store has lost a part of it.
    """
    found = {
        "manifest": store.read("manifests", version.manifest, Manifest),
        "split": store.read("splits", version.split, Split),
        "head": find_checkpoint(store, version.head),
        "model": find_checkpoint(store, version.fine_tuned or version.head),
    }
    lost = [name for name, record in found.items() if record is None]
    if lost:
        raise NoSuchModel(
            f"v{version.number} can't be compared with: the store at {store.address} has lost its "
            f"{', '.join(lost)}. Put it back, or make another version champion with `thaw promote`."
        )
    try:
        config = build_config(version.settings)
    except BadConfig as error:
        raise NoSuchModel(
            f"v{version.number} can't be compared with, since its settings are none any more: {error}. "
            "Make another version champion with `thaw promote`."
        ) from None
    return Contender(version=version, config=config, **found)


def recall_learned(registry: Registry, store: Store) -> dict[str, Side]:
    """The side of every image that a registered model trained or validated on, by its SHA-256."""
    digests = dict.fromkeys(version.split for version in registry.versions)
    splits = (store.read("splits", digest, Split) for digest in digests)
    return {key: side for split in splits if split for key, side in sides_of(split).items() if side != "test"}


def find_reason_to_skip(
    registry: Registry, change: DumpChange, config: TrainConfig, rule: PromotionConfig
) -> str | None:
    """Why there is nothing to train: dump, settings and rule are those of a model that was judged already."""
    champion = registry.champion
    settings = describe_settings(config)
    if change.is_empty and _settings_of(champion) == settings:
        return f"nothing new since the champion, v{champion.number}, was trained: {change}"
    for decision in reversed(registry.decisions):
        judged = registry.find(decision.challenger)
        if (
            decision.champion == champion.number
            and judged.manifest == change.after
            and _settings_of(judged) == settings
            and decision.rule == rule.model_dump(mode="json")
        ):
            return (
                f"nothing new since v{judged.number} was judged, {decision.reason} "
                f"(`thaw promote v{judged.number}` makes it champion all the same)"
            )
    return None


def describe_settings(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide a model, as JSON: all but where the dump lies."""
    return config.model_dump(mode="json", exclude={"dump"})


def _settings_of(version: Version) -> Mapping[str, Any]:
    """A version's settings as they would be written today, so that a new setting alone trains nothing."""
    try:
        return describe_settings(build_config(version.settings))
    except BadConfig:
        return {section: given for section, given in version.settings.items() if section != "dump"}
