"""What a model costs: its arithmetic and its weights, the seconds that made it, the images decoded for it."""

import itertools
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from thaw.augment import MIRROR
from thaw.backbone import cut_points, find_cut, load_backbone, order_cuts
from thaw.config import AugmentationConfig, TrainConfig
from thaw.device import prepare_keras
from thaw.errors import BadModel
from thaw.features import describe_space
from thaw.folds import make_folds
from thaw.index import Key
from thaw.model import load_model
from thaw.records import Backbone, Made, Outcome, Record, Side, Split, StageTime, digest_of
from thaw.shards import SpaceFolder
from thaw.split import Groups
from thaw.store import Store
from thaw.trainer import find_checkpoint, load_network

# The titles that tasks/features.py, tasks/search.py and tasks/training.py give their stages.
_EXTRACTS = re.compile(r"(features|\w+ views|mirror images) at |features of fold ")
_TRAINS = re.compile(r"train head|fine-tune after |candidate |average ")


@dataclass(frozen=True, kw_only=True)
class ModelCost(Record):
    """What a released model is made of, and what it computes for one image.

    `trained_parameters` are the weights that training moved. `flops` are the floating-point operations of
    one forward pass: two for each multiplication and addition of a convolution or dense layer.
    """

    parameters: int
    trained_parameters: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class StageCost(Record):
    """What one stage took when its output was made."""

    stage: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Spent(Record):
    """What the stages of one kind took: `here` in this run, `earlier` in the runs that made what it found cached.

    `unknown` says that some were found cached, and the store does not know what they took.
    """

    here: float = 0.0
    earlier: float = 0.0
    unknown: bool = False

    @property
    def seconds(self) -> float | None:
        """What they took altogether, or None where the store does not know all of it."""
        return None if self.unknown else self.here + self.earlier


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What a stage of extraction is for: so many images, of which so many have to be decoded."""

    images: int
    decodes: int

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is cached."""
        return self.images == self.decodes


_NOTHING_CACHED = Pass(images=0, decodes=0)


def count_flops(model: Any) -> int:
    """Floating-point operations of one forward pass over one image, counted from the layers' graph.

    Convolutions and dense layers count, each multiplication with its addition as two; biases, activations,
    normalisation and pooling are negligible beside them and left out. Each element of a kernel is used once
    for every place of the output.

    Args:
        model: functional or sequential, with networks inside it or not.

    Raises:
        BadModel: the size of its images is open.
    """
    return sum(2 * _count_kernels(layer) * _count_places(layer, shape) for layer, shape in _list_calls(model))


def measure_model(outcome: Outcome, store: Store) -> Made[ModelCost]:
    """The cost of the model that a run released, kept in the store under the run's digest.

    Raises:
        BadModel: the run released none, or it is not in the store any more.
    """
    known = store.read("model-costs", outcome.run, ModelCost)
    if known:
        return Made(value=known, reused=True, note=_note(known))
    model, _ = load_model(store.fetch("runs", outcome.run, "model.keras"))
    trained = load_network(store, outcome.fine_tuned or outcome.head)
    cost = ModelCost(
        parameters=model.count_params(),
        trained_parameters=sum(math.prod(weights.shape) for weights in trained.trainable_weights),
        flops=count_flops(model),
    )
    store.publish("model-costs", outcome.run, cost)
    return Made(value=cost, reused=False, note=_note(cost))


def account_seconds(
    config: TrainConfig, outcome: Outcome, planned: Mapping[str, Pass] | None, split: Split, store: Store
) -> tuple[Spent, Spent]:
    """What extraction took, and what training took.

    What a stage took that made all of its output is kept in the store, the longest time of several, for runs
    that find some of it cached.

    Args:
        planned: as `plan_passes` found it before the run; None where nobody looked, and then no time of an
            extraction is kept, since rows that were cached may have shortened it.
    """
    spent = {_EXTRACTS: Spent(), _TRAINS: Spent()}
    seen: Counter[str] = Counter()
    for stage in outcome.stages:
        kind = next((kind for kind in spent if kind.match(stage.stage)), None)
        if kind is None:
            continue
        seen[stage.stage] += 1
        address = _address_stage(stage, seen[stage.stage], config, outcome, split)
        here = 0.0 if stage.cached else stage.seconds
        passes = _NOTHING_CACHED if kind is _TRAINS else (planned or {}).get(stage.stage)
        known = store.read("stage-costs", address, StageCost)
        if here and passes and passes.is_whole and (known is None or known.seconds < here):
            known = StageCost(stage=stage.stage, seconds=here)
            store.publish("stage-costs", address, known)
        in_part = stage.cached or (passes is not None and not passes.is_whole)
        earlier = max(known.seconds - here, 0.0) if known and in_part else 0.0
        before = spent[kind]
        spent[kind] = Spent(
            here=before.here + here,
            earlier=before.earlier + earlier,
            unknown=before.unknown or (in_part and known is None),
        )
    return spent[_EXTRACTS], spent[_TRAINS]


def average_spent(spent: Sequence[Spent]) -> Spent | None:
    """The mean over several runs, or None of none."""
    if not spent:
        return None
    return Spent(
        here=statistics.fmean(each.here for each in spent),
        earlier=statistics.fmean(each.earlier for each in spent),
        unknown=any(each.unknown for each in spent),
    )


def plan_passes(config: TrainConfig, split: Split, store: Store, groups: Groups = ()) -> dict[str, Pass]:
    """What each stage of extraction has to do, by its title, as the cache is now.

    An image is decoded where a row of it can't be computed from features at a shallower cut; once for all
    its views.

    Args:
        groups: images that stay together in folds.

    Raises:
        BadWeights, BadConfig, BadCut: the run can't start.
    """
    backbone = load_backbone(config.backbone, store).value
    order = order_cuts(backbone)
    planned: dict[str, Pass] = {}
    # How shallow a cut earlier stages of the run reach, for each row.
    reached: dict[tuple[AugmentationConfig | None, Key], int] = {}
    for title, cut, rows in _list_passes(config, split, backbone, groups):
        depth, images, decodes = order.index(cut), 0, 0
        for augmentation, wanted in rows:
            absent = [key for key in wanted if reached.get((augmentation, key), len(order)) > depth]
            reached |= {(augmentation, key): depth for key in absent}
            images += _count_images(absent)
            for start in cut_points(backbone, cut) if absent else ():
                space = describe_space(backbone, config.backbone, start, store, augmentation)
                folder = SpaceFolder(store, space)
                folder.verify(absent)
                absent = folder.missing(absent)
            decodes += _count_images(absent)
        planned.setdefault(title, Pass(images=images, decodes=decodes))
    return planned


def _list_passes(
    config: TrainConfig, split: Split, backbone: Backbone, groups: Groups
) -> Iterator[tuple[str, str, list[tuple[AugmentationConfig | None, list[Key]]]]]:
    """Each stage of extraction in a run's order: title, shallowest cut, and its rows, augmented in what way."""
    order = order_cuts(backbone)
    stages = [(backbone.end, config.head.views), *((phase.cut, phase.views) for phase in config.fine_tune)]
    cuts = [find_cut(backbone, cut) for cut, _ in stages]
    augmentation = config.augmentation
    for number, ((_, views), cut) in enumerate(zip(stages, cuts, strict=True)):
        # The head's pass, which comes first, fills the cuts of the phases as well.
        shallowest = cut if number else min(cuts, key=order.index)
        title = f"{views} views at {cut}" if views else f"features at {cut}"
        yield title, shallowest, _list_rows(split, ("validation", "test"), views, augmentation)
        if number == 0 and config.search.grid:
            learned = replace(split, validation=(), test=())
            choices = dict.fromkeys(head.views for head in config.search.list_candidates(config.head))
            for views, fold in itertools.product(
                choices, make_folds(learned, config.search.folds, config.split.seed, groups)
            ):
                rows = _list_rows(fold, ("validation",), views, augmentation)
                yield f"features of {fold.strategy}, seed {fold.seed}", cut, rows
    if config.ensemble.mirrored:
        mirrored = [(row.sha256, 1) for side in ("validation", "test") for row in split.rows(side)]
        yield f"mirror images at {cut}", cut, [(MIRROR, mirrored)]


def count_decodes(
    config: TrainConfig, outcome: Outcome, planned: Mapping[str, Pass] | None, split: Split, store: Store
) -> int | None:
    """Images that a run decoded to learn from: those that extraction had to, and each fresh view of each epoch.

    None where that can't be told: of several phases on fresh views the epochs of the last alone are known, and of
    networks that are searched for or averaged none.

    Args:
        planned: as `plan_passes` found it before the run; None where nobody looked.
    """
    made = list(dict.fromkeys(stage.stage for stage in outcome.stages if not stage.cached))
    extracted = [title for title in made if _EXTRACTS.match(title)]
    if any(title not in (planned or {}) for title in extracted):
        return None
    if config.search.grid or config.ensemble.members > 1 or config.ensemble.mirrored:
        heads = config.search.list_candidates(config.head)
        if "fresh" in [part.views for part in (config.head, *heads, *config.fine_tune)]:
            return None
    decoded = sum(planned[title].decodes for title in extracted)
    if config.head.views == "fresh" and any(title.startswith("train head") for title in made):
        decoded += _count_epochs(outcome.head, store) * len(split.train)
    if any(phase.views == "fresh" for phase in config.fine_tune) and any(
        title.startswith("fine-tune") for title in made
    ):
        if len(config.fine_tune) > 1:
            return None
        decoded += _count_epochs(outcome.fine_tuned, store) * len(split.train)
    return decoded


def _list_rows(
    split: Split, sides: Sequence[Side], views: int | str, augmentation: AugmentationConfig
) -> list[tuple[AugmentationConfig | None, list[Key]]]:
    """The rows of the images on these sides, of the training images where those have no views, and of their views."""
    plain = sides if views else ("train", *sides)
    numbers = range(1, views + 1) if isinstance(views, int) else ()
    return [
        (None, [(row.sha256, 0) for side in plain for row in split.rows(side)]),
        (augmentation, [(row.sha256, view) for row in split.train for view in numbers]),
    ]


def _count_images(rows: Sequence[Key]) -> int:
    return len({sha256 for sha256, _ in rows})


def _count_epochs(address: str, store: Store) -> int:
    return len(find_checkpoint(store, address).history.epochs)


def _address_stage(stage: StageTime, number: int, config: TrainConfig, outcome: Outcome, split: Split) -> str:
    """Names what a stage made by what decides it. `number` tells stages of the same title apart."""
    images = (config.backbone, split.digest)
    if _EXTRACTS.match(stage.stage):
        plain = stage.stage.startswith(("features at", "mirror"))
        decides = (*images, None if plain else config.augmentation)
    elif stage.stage.startswith("candidate"):
        decides = (*images, config.augmentation, config.search, config.head, config.gate)
    else:
        decides = (outcome.head if stage.stage.startswith("train head") else outcome.fine_tuned, number)
    return digest_of("stage cost", stage.stage, *decides)


def _note(cost: ModelCost) -> str:
    return f"{cost.parameters:,} parameters, {cost.flops / 1e9:.3g} GFLOPs an image"


def _list_calls(model: Any) -> Iterator[tuple[Any, tuple[int | None, ...]]]:
    """Each use of a layer in a model's graph, with the shape of its output without the batch."""
    # A Sequential holds its graph in a functional model.
    graph = getattr(model, "_functional", None) or model
    for node in itertools.chain.from_iterable(graph._nodes_by_depth.values()):
        if hasattr(node.operation, "layers"):
            yield from _list_calls(node.operation)
        elif not node.is_input:
            yield node.operation, node.output_tensors[0].shape[1:]


def _count_kernels(layer: Any) -> int:
    """Elements of the kernels of a layer that multiplies; 0 of any other."""
    layers = prepare_keras().layers
    if not isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)):
        return 0
    names = ("kernel", "depthwise_kernel", "pointwise_kernel")
    kernels = (getattr(layer, name, None) for name in names)
    return sum(math.prod(kernel.shape) for kernel in kernels if kernel is not None)


def _count_places(layer: Any, shape: tuple[int | None, ...]) -> int:
    """Places of an output (…, channels) that every element of a kernel is used for."""
    if _count_kernels(layer) == 0:
        return 0
    if None in shape:
        raise BadModel(
            f"the operations of layer '{layer.name}' can't be counted: its output is {shape}, so the size of the "
            "images is open. Build the model for one size."
        )
    return math.prod(shape[:-1])
