"""Whether a batch of images still looks like the population that a model learned from.

What is compared are features of the frozen prefix, averaged over their map and turned to the population's
principal components: those of the images that the model learned from, which its file keeps, and those of the
batch. Each component is tested by the two-sample Kolmogorov-Smirnov test, at the false-alarm rate divided by
the number of components (Bonferroni). Source: S. Rabanser, S. Günnemann, Z. C. Lipton, Failing Loudly: An
Empirical Study of Methods for Detecting Dataset Shift, 2019, section 3.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thaw.records import PIXELS, Checkpoint, FeatureSet, Record, Side, Split
from thaw.rows import Rows
from thaw.shards import read_space
from thaw.store import Store

FALSE_ALARM_RATE = 0.01
# Fewer images than this say nothing: only a shift that anybody sees would be found.
FEWEST_IMAGES = 20
# Of a larger batch a sample is tested: else a shift too small to matter would be significant. At a rate of
# 0.01, 1,000 images beside 1,500 find a component that moved by a quarter of its standard deviation.
MOST_IMAGES = 1000

_MOST_ROWS = 2000
_MOST_COMPONENTS = 32
# Components are fitted on rows of their own. Along them those rows lie wider than any others, new images of the
# same population included: beside 100 such rows false alarms are twice as frequent as they may be.
_FITTED_SHARE, _MOST_FITTED = 1 / 4, 500
_ROWS_PER_COMPONENT = 4
# Below this share of the widest component's deviation there is nothing but rounding.
_LEAST_DEVIATION = 1e-4
_READ_ROWS = 128
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """What a model's file keeps of the images that it learned from, to compare others with.

    Attributes:
        side: which side of the split they are from.
        counts: int64 (classes,), training images of each class.
        mean: float32 (channels,), of the pooled features.
        basis: float32 (components, channels); along each row a population has a standard deviation of one.
        rows: float32 (images, components), the images along the basis, which was fitted on others.
    """

    side: Side
    counts: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    rows: np.ndarray

    def to_bytes(self) -> bytes:
        """As the bytes of an `.npz` file."""
        file = io.BytesIO()
        np.savez_compressed(file, allow_pickle=False, **vars(self))
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Population":
        """From the bytes of an `.npz` file.

        Raises:
            ValueError, KeyError: they are none, or not of a population.
        """
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            kept = {name: arrays[name] for name in ("counts", "mean", "basis", "rows")}
            return cls(side=str(arrays["side"]), **kept)


@dataclass(frozen=True, kw_only=True)
class ComponentShift(Record):
    """How one component of the features moved.

    `statistic` is the largest difference between the two cumulative distributions, 0 to 1, `p` its chance where
    nothing moved, `shift` the difference of the means in standard deviations of the population.
    """

    component: int
    statistic: float
    p: float
    shift: float
    moved: bool


@dataclass(frozen=True, kw_only=True)
class ClassShare(Record):
    """The share of a class among the training images, and among those that were called by its name."""

    label: str
    trained: float
    called: float


@dataclass(frozen=True, kw_only=True)
class Drift(Record):
    """Whether a batch of images comes from the population that the model learned from.

    `images` could be read, `tested_images` of them were tested, beside `reference_images` of the side
    `reference_side`. An alarm is a `smallest_p` of at most `level`, which is the `false_alarm_rate` divided by
    the number of `components_tested`; `statistic` belongs to it. `components` and `classes` are those that
    moved most, the first the most. The shares of the classes are shown and not tested.
    """

    state: Literal["quiet", "alarm", "untested"]
    reason: str
    images: int
    false_alarm_rate: float
    tested_images: int = 0
    reference_images: int = 0
    reference_side: Side | None = None
    components_tested: int = 0
    level: float | None = None
    smallest_p: float | None = None
    statistic: float | None = None
    components: tuple[ComponentShift, ...] = ()
    classes: tuple[ClassShare, ...] = ()


def summarize_population(checkpoint: Checkpoint, store: Store) -> Population | None:
    """The population behind a model, from cached features at its cut; None where there is none to keep.

    It is the training images where those were learned from as they are, and else the validation images, of
    which no augmented view is ever made. A network from scratch has no frozen prefix, and so no population.
    """
    if checkpoint.cut == PIXELS:
        return None
    learned = read_space(checkpoint.space, store)
    side: Side = "train" if learned.augmentation is None else "validation"
    space = dataclasses.replace(learned, cut=checkpoint.cut, augmentation=None)
    rows = Rows(FeatureSet(space=space.digest, split=checkpoint.split, side=side), store)
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:_MOST_ROWS])
    parts = [chosen[start : start + _READ_ROWS] for start in range(0, len(chosen), _READ_ROWS)]
    pooled = np.concatenate([pool_maps(part) for part in rows.read_ahead(parts)])
    trained = store.read("splits", checkpoint.split, Split).counts()["train"]
    return fit_population(pooled, side, list(trained.values()))


def pool_maps(features: np.ndarray) -> np.ndarray:
    """Feature maps (n, height, width, channels) averaged over the map: float32 (n, channels)."""
    return features.mean(axis=tuple(range(1, features.ndim - 1)), dtype=np.float32)


def fit_population(pooled: np.ndarray, side: Side, counts: Sequence[int]) -> Population | None:
    """A population from pooled features (n, channels), some of which fit the basis; None of too few, or all alike.

    Args:
        counts: training images of each class.
    """
    from sklearn.decomposition import PCA

    order = np.random.default_rng(0).permutation(len(pooled))
    fitted = min(int(len(pooled) * _FITTED_SHARE), _MOST_FITTED)
    components = min(_MOST_COMPONENTS, fitted // _ROWS_PER_COMPONENT, pooled.shape[1])
    fit = pooled[order[:fitted]]
    if len(pooled) - fitted < FEWEST_IMAGES or components < 1 or (fit == fit[0]).all():
        return None
    # The full decomposition draws no random numbers.
    found = PCA(components, svd_solver="full").fit(fit)
    deviations = np.sqrt(found.explained_variance_)
    varying = deviations > _LEAST_DEVIATION * deviations.max()
    mean = found.mean_.astype(np.float32)
    basis = (found.components_[varying] / deviations[varying, None]).astype(np.float32)
    rows = project(pooled[order[fitted:]], mean, basis)
    return Population(side=side, counts=np.array(counts), mean=mean, basis=basis, rows=rows)


def project(pooled: np.ndarray, mean: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Pooled features (n, channels) along the basis: float32 (n, components)."""
    return ((pooled - mean) @ basis.T).astype(np.float32)


def judge_drift(
    population: Population | None,
    rows: np.ndarray,
    called: Mapping[str, int],
    false_alarm_rate: float = FALSE_ALARM_RATE,
) -> Drift:
    """Test whether images come from a population.

    Args:
        population: None where the model keeps none; then nothing is tested.
        rows: (n, components), the images along the population's basis; ignored where there is none.
        called: images that were given each class, by class index.
        false_alarm_rate: how often images of the very same population may raise an alarm.
    """
    images = sum(called.values())
    if population is None:
        reason = (
            "the model's file keeps no population to compare with: it has no frozen prefix, or was saved by "
        )
        reason += "an earlier version, or learned from too few images"
        return Drift(state="untested", reason=reason, images=images, false_alarm_rate=false_alarm_rate)
    facts = {
        "images": images,
        "false_alarm_rate": false_alarm_rate,
        "reference_images": len(population.rows),
        "reference_side": population.side,
        "classes": _compare_shares(population.counts, called),
    }
    if images < FEWEST_IMAGES:
        reason = f"{images} images are too few to compare with a population: it takes {FEWEST_IMAGES}"
        return Drift(state="untested", reason=reason, **facts)
    sample = np.sort(np.random.default_rng(0).permutation(len(rows))[:MOST_IMAGES])
    level = false_alarm_rate / len(population.basis)
    components = _compare_components(population.rows, rows[sample], level)
    first = components[0]
    moved = sum(one.moved for one in components)
    found = f"the smallest p of {len(components)} components is {first.p:.2g}"
    reason = f"{found}, above {level:.2g}" if not moved else f"{found}, not above {level:.2g}: {moved} moved"
    return Drift(
        state="alarm" if moved else "quiet",
        reason=reason,
        tested_images=len(sample),
        components_tested=len(components),
        level=level,
        smallest_p=first.p,
        statistic=first.statistic,
        components=components[:_SHOWN],
        **facts,
    )


def _compare_components(
    reference: np.ndarray, incoming: np.ndarray, level: float
) -> tuple[ComponentShift, ...]:
    """All components, the most improbable first."""
    from scipy.stats import ks_2samp

    found = []
    for number, (old, new) in enumerate(zip(reference.T, incoming.T, strict=True), 1):
        # Not the exact distribution: it warns where it can't be had, and differs by nothing that matters.
        statistic, p = ks_2samp(old, new, method="asymp")
        shift = (new.mean(dtype=float) - old.mean(dtype=float)) / max(float(old.std(dtype=float)), 1e-12)
        found.append(
            ComponentShift(
                component=number,
                statistic=float(statistic),
                p=float(p),
                shift=float(shift),
                moved=bool(p <= level),
            )
        )
    return tuple(sorted(found, key=lambda one: (one.p, -one.statistic)))


def _compare_shares(counts: np.ndarray, called: Mapping[str, int]) -> tuple[ClassShare, ...]:
    """All classes, the one whose share differs most first."""
    images, trained = max(sum(called.values()), 1), max(int(counts.sum()), 1)
    shares = [
        ClassShare(label=label, trained=int(count) / trained, called=given / images)
        for (label, given), count in zip(called.items(), counts, strict=True)
    ]
    return tuple(sorted(shares, key=lambda one: -abs(one.called - one.trained)))
