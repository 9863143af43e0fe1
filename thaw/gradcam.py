"""Where a network looked: which places of an image raised the score of the class that it was called.

Each feature map is weighed by the mean gradient of the class's score, and what remains positive of their sum is
the heat. Source: R. R. Selvaraju et al., Grad-CAM, 2017. The score is that before the sigmoid or softmax: a
probability near 1 hardly changes with anything.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thaw.claims import claim
from thaw.cuts import sort_nodes
from thaw.device import differentiate_at, prepare_keras
from thaw.evaluate import list_sides
from thaw.records import Checkpoint, Evaluation, FeatureSet, Made, Prediction, Record, digest_of
from thaw.rows import Rows
from thaw.store import Store
from thaw.trainer import load_network

MOST_CLASSES = 6
_RIGHT = _WRONG = 2
# Of a picture nobody sees more; a JSON of ten digits each would be three times as long.
_DIGITS = 3


@dataclass(frozen=True, kw_only=True)
class HeatMap(Record):
    """One test image, what it was called, and how much each place of it spoke for that, from 0 to 1."""

    path: str
    label: str
    called: str
    probability: float
    heat: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class HeatMaps(Record):
    """Where a checkpoint looked on some test images, published as `heat/<address>.json`.

    `layer` is the one whose feature maps were weighed, or the cut that the network starts from; `size` their
    height and width. `networks` is how many were averaged.
    """

    checkpoint: str
    layer: str
    size: tuple[int, int]
    networks: int
    mirrored: bool
    maps: tuple[HeatMap, ...]


def map_heat(
    evaluation: Evaluation,
    checkpoint: Checkpoint,
    test: FeatureSet,
    store: Store,
    mirrored: FeatureSet | None = None,
) -> Made[HeatMaps]:
    """Map where the network looked on the test images of `choose_images`, from their cached features.

    Of a checkpoint that averages networks, or images and their mirror images, the maps are averaged.

    Args:
        evaluation: of the checkpoint, on these rows.
        mirrored: the mirror images of the test rows, for a checkpoint that averages over those as well.

    Raises:
        NotPublished: they were not mapped yet, and the store is only looked at.
    """
    sides = list_sides(checkpoint, test, mirrored)
    address = digest_of("heat", checkpoint.address, evaluation.temperature, *sides)
    found = store.read("heat", address, HeatMaps)
    if found is None:
        with claim(store, "heat", address):
            found = store.read("heat", address, HeatMaps)
            if found is None:
                made = _map_chosen(evaluation, checkpoint, sides, store)
                store.publish("heat", address, made)
                return Made(value=made, reused=False, note=_note(made))
    return Made(value=found, reused=True, note=_note(found))


def choose_images(evaluation: Evaluation) -> list[Prediction]:
    """Of each class the two images called right most confidently, and the two called wrong, if there are any.

    Of many classes the first six take part.
    """
    grouped = defaultdict(list)
    for row in sorted(evaluation.predictions, key=lambda row: (-max(row.probabilities), row.path)):
        grouped[row.label, _call(row, evaluation.classes) == row.label].append(row)
    chosen = []
    for label in evaluation.classes[:MOST_CLASSES]:
        chosen += [*grouped[label, True][:_RIGHT], *grouped[label, False][:_WRONG]]
    return chosen


def heat_up(network: Any, features: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Grad-CAM of one class for each row of features.

    The feature maps are those of `find_maps`. Heat that speaks against the class counts as none, so that a row
    without any heat is 0 everywhere.

    Args:
        network: from features to class probabilities. A lone sigmoid is the second class's; the score of the
            first is minus that of the second. It is left as it is.
        features: (n, height, width, channels).
        classes: the index of the class asked about, (n,).

    Returns:
        float32 (n, height, width) of the feature maps, 1 where a row is hottest.
    """
    ops = prepare_keras().ops
    calls = list(_list_calls(network))
    place = _place_maps(calls)
    shape = (features if place is None else calls[place][1]).shape[1:]

    def score(addition: Any) -> tuple[Any, Any]:
        # Where nothing is added, the gradient by what is added is the gradient by the maps themselves.
        maps = None
        numbers = iter(range(len(calls)))

        def call(operation: Any, arguments: Any, options: Any) -> Any:
            nonlocal maps
            number = next(numbers)
            if number == len(calls) - 1:
                return _call_linearly(operation, *arguments)
            outputs = operation(*arguments, **options)
            if number == place:
                outputs = maps = outputs + addition
            return outputs

        entry = ops.convert_to_tensor(features.astype(np.float32))
        if place is None:
            entry = maps = entry + addition
        scores = _run(network, entry, call)
        if scores.shape[-1] == 1:
            scores = ops.concatenate([-scores, scores], axis=-1)
        asked = np.eye(scores.shape[-1], dtype=np.float32)[np.asarray(classes)]
        return ops.sum(scores * asked), maps

    gradient, maps = differentiate_at(score, ops.zeros((len(features), *shape)))
    weights = np.asarray(gradient, dtype=np.float64).mean(axis=(1, 2), keepdims=True)
    heat = np.maximum((weights * np.asarray(maps)).sum(axis=-1), 0)
    hottest = heat.max(axis=(1, 2), keepdims=True)
    return (heat / np.where(hottest > 0, hottest, 1)).astype(np.float32)


def find_maps(network: Any) -> str | None:
    """The layer whose output is the last feature maps before they are pooled; None where that is the input.

    So of VGG's block 5 it is the last convolution, of a block with a shortcut what follows the addition, and of
    a head alone its input. A pooling's own maps would show the same places, at half their resolution.
    """
    calls = list(_list_calls(network))
    place = _place_maps(calls)
    return None if place is None else calls[place][0].name


def _map_chosen(
    evaluation: Evaluation, checkpoint: Checkpoint, sides: Sequence[FeatureSet], store: Store
) -> HeatMaps:
    chosen = choose_images(evaluation)
    called = [_call(row, evaluation.classes) for row in chosen]
    indices = [evaluation.classes.index(name) for name in called]
    networks = [load_network(store, address) for address in checkpoint.members or (checkpoint.address,)]
    heats = []
    for side, flip in zip(sides, (1, -1), strict=False):
        rows = Rows(side, store)
        numbers = {image.path: number for number, image in enumerate(rows.images)}
        features = rows.read(np.array([numbers[row.path] for row in chosen]))
        heats += [heat_up(network, features, indices)[:, :, ::flip] for network in networks]
    mean = np.mean(heats, axis=0)
    return HeatMaps(
        checkpoint=checkpoint.address,
        layer=find_maps(networks[0]) or checkpoint.cut,
        size=mean.shape[1:],
        networks=len(networks),
        mirrored=len(sides) > 1,
        maps=tuple(
            HeatMap(
                path=row.path,
                label=row.label,
                called=name,
                probability=max(row.probabilities),
                heat=tuple(map(tuple, np.round(heat.astype(np.float64), _DIGITS).tolist())),
            )
            for row, name, heat in zip(chosen, called, mean, strict=True)
        ),
    )


def _call(row: Prediction, classes: Sequence[str]) -> str:
    return classes[row.probabilities.index(max(row.probabilities))]


def _note(made: HeatMaps) -> str:
    return f"{len(made.maps)} images, {made.size[0]} x {made.size[1]} places of {made.layer}"


def _list_calls(network: Any) -> Iterator[tuple[Any, Any]]:
    """Every operation of a network and its output, in the order of `_run`."""
    for node in sort_nodes(network):
        if _is_network(node.operation):
            yield from _list_calls(node.operation)
        elif not node.is_input:
            yield node.operation, node.output_tensors[0]


def _run(network: Any, entry: Any, call: Callable[[Any, Any, Any], Any]) -> Any:
    """The output of a network with one input, computed call by call, those of networks inside it included."""
    values = {id(network.inputs[0]): entry}
    for node in sort_nodes(network):
        if node.is_input:
            continue
        arguments, options = node.arguments.fill_in(values)
        if _is_network(node.operation):
            output = _run(node.operation, arguments[0], call)
        else:
            output = call(node.operation, arguments, options)
        values[id(node.output_tensors[0])] = output
    return values[id(network.outputs[0])]


def _is_network(operation: Any) -> bool:
    """Whether an operation is a graph of others; a Sequential counts as one layer."""
    models = prepare_keras().models
    return isinstance(operation, models.Model) and not isinstance(operation, models.Sequential)


def _place_maps(calls: Sequence[tuple[Any, Any]]) -> int | None:
    """The place of `find_maps` among all calls."""
    layers = prepare_keras().layers
    poolings = (layers.MaxPooling2D, layers.AveragePooling2D)
    poolings += (layers.GlobalMaxPooling2D, layers.GlobalAveragePooling2D)
    # None of these finds anything that was not in its input.
    passing = (*poolings, layers.Dropout, layers.Rescaling, layers.ZeroPadding2D)
    for place in reversed(range(len(calls))):
        operation, output = calls[place]
        is_map = len(output.shape) == 4 and output.shape[1] * output.shape[2] > 1
        if is_map and isinstance(operation, layers.Layer) and not isinstance(operation, passing):
            return place
    return None


def _call_linearly(layer: Any, inputs: Any) -> Any:
    """The output of a dense layer before its activation."""
    return prepare_keras().ops.matmul(inputs, layer.kernel) + layer.bias
