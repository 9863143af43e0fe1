"""Where a backbone can be cut in two, where that is cheap, and the parts on either side.

A cut is a layer whose output alone carries everything that later layers need: no other branch passes
it by. A backbone of blocks with shortcuts can be cut between its blocks, but not inside them.
"""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from thaw.device import prepare_keras
from thaw.errors import BadCut


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A layer that a network can be split after: its place in `model.layers`, its output without the batch."""

    name: str
    index: int
    shape: tuple[int, ...]


def find_cuts(model: Any) -> tuple[Cut, ...]:
    """The layers that every path from input to output runs through, from shallow to deep, the input left out.

    After such a layer its single output is the only tensor that is still needed. A layer that the
    network calls more than once has no single output.
    """
    nodes = sort_nodes(model)
    last_use = {id(tensor): place for place, node in enumerate(nodes) for tensor in node.input_tensors}
    last_use |= {id(tensor): len(nodes) for tensor in model.outputs}
    index = {id(layer): place for place, layer in enumerate(model.layers)}
    calls = [id(node.operation) for node in nodes]
    cuts, needed_until = [], 0
    for place, node in enumerate(nodes):
        operation, outputs = node.operation, node.output_tensors
        crosses_alone = needed_until <= place and len(outputs) == 1
        is_layer = id(operation) in index and not node.is_input
        if crosses_alone and is_layer and calls.count(id(operation)) == 1:
            shape = tuple(outputs[0].shape[1:])
            cuts.append(Cut(name=operation.name, index=index[id(operation)], shape=shape))
        needed_until = max([needed_until, *(last_use.get(id(tensor), place) for tensor in outputs)])
    return tuple(cuts)


def find_stages(model: Any, cuts: Sequence[Cut]) -> tuple[str, ...]:
    """The cuts that end the network's stages: where features are cheapest to keep, and the last one.

    Wherever the maps shrink to half their side, that is the layer that shrinks them, if it pools or no
    cut comes right before it. Where a block shrinks them, it is the cheapest output before that block:
    the smallest, each convolution that would have to be done again counted as a doubling. So it is the
    end of the block before, and not the wider maps that some blocks begin with.

    Args:
        cuts: of this model, feature maps (height, width, channels) of known size.
    """
    keras = prepare_keras()
    poolings = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
    layers = model.layers
    sources = {id(node.operation): node.input_tensors for node in sort_nodes(model)}
    convolves = [any(len(weight.shape) > 1 for weight in layer.weights) for layer in layers]

    def ends_stage(cut: Cut, before: Cut) -> bool:
        layer = layers[cut.index]
        source = sources[id(layer)][0]
        follows = source._keras_history.operation is layers[before.index]
        return isinstance(layer, poolings) or (not follows and _halves(source.shape[1:], cut.shape))

    stages: list[Cut] = []
    level: list[Cut] = []  # Cuts of one map size that could still end a stage.
    before = None
    for cut in cuts:
        if not any(convolves[: cut.index + 1]):
            continue
        if before is None or not _halves(before.shape, cut.shape):
            level.append(cut)
        elif ends_stage(cut, before):
            stages.append(cut)
            level = []
        else:
            stages += _cheapest(level, convolves)
            level = [cut]
        before = cut
    if cuts and cuts[-1] not in stages:
        stages.append(cuts[-1])
    return tuple(stage.name for stage in stages)


def resolve_cut(
    cut: str | int, cuts: Sequence[Cut], stages: Sequence[str], backbone_name: str, layers: Sequence[str]
) -> str:
    """The name of the cut that is meant.

    Args:
        cut: the name of a layer; or a number N, as digits too, of the first layer that thaws, counted
            from the input, which is layer 0: layers[N:] thaw, and the cut is after layers[N - 1].
        layers: names of all layers of the network, in its order, the input first.

    Raises:
        BadCut: no such layer, or the network can't be split there; the message names the nearest cuts.
    """
    if isinstance(cut, int) or cut.lstrip("-").isdecimal():
        return _resolve_index(int(cut), cuts, backbone_name, len(layers))
    names = [known.name for known in cuts]
    if cut in names:
        return cut
    hint = f"Cut at one of {', '.join(stages)}, where its stages end."
    if cut == layers[0]:
        raise BadCut(
            f"'{cut}' is the input of {backbone_name}: no layer before it could stay frozen. To thaw all of them, "
            f"cut at 'pixels'. {hint}"
        )
    if cut in layers:
        place = layers.index(cut)
        around = " and ".join(known.name for known in _find_around(cuts, place) if known)
        raise BadCut(
            f"{backbone_name} can't be cut at '{cut}': other tensors than its output are needed after it. "
            f"The nearest cuts are {around}. {hint}"
        )
    near = difflib.get_close_matches(cut, names, n=1)
    meant = f" Did you mean '{near[0]}'?" if near else ""
    raise BadCut(f"{backbone_name} has no layer '{cut}' to cut at.{meant} {hint}")


def split_model(model: Any, start: str | None, end: str | None) -> Any:
    """The part of a network after cut `start` up to and with cut `end`, sharing its weights.

    None stands for the input and for the output.

    Raises:
        BadCut: the network can't be split there, or `end` does not come after `start`.
    """
    outputs = {node.operation.name: node.output_tensors[0] for node in sort_nodes(model)}
    places = {cut.name: cut.index for cut in find_cuts(model)}
    for name in (start, end):
        if name is not None and name not in places:
            raise BadCut(f"{model.name} can't be split at '{name}'. It can be at {', '.join(places)}.")
    if start is not None and places[start] >= (len(model.layers) - 1 if end is None else places[end]):
        raise BadCut(
            f"no layers of {model.name} lie after '{start}' and up to {end or 'its output'}. "
            "Take a shallower cut to start from."
        )
    keras = prepare_keras()
    # Not layer.output: a layer keeps that of the first network it was part of, a network its own inner one.
    return keras.Model(
        model.inputs[0] if start is None else outputs[start],
        model.outputs[0] if end is None else outputs[end],
    )


def group_by_stage(model: Any, cut: str | None, stages: Sequence[str]) -> dict[str, int]:
    """How many stages below the top each layer after `cut` lies: 0 in the last stage, 1 in the one before.

    Layers of networks inside the network are listed too, at the depth of the network they are part of.

    Args:
        cut: a layer's name, or None for all layers but the input.
        stages: the last layer of each stage, from shallow to deep.

    Raises:
        BadCut: the cut is no layer of the model.
    """
    names = [layer.name for layer in model.layers]
    if cut is not None and cut not in names:
        raise BadCut(f"{model.name} has no layer '{cut}'. Take the name of one of its layers.")
    ends = [names.index(stage) for stage in stages[:-1]]
    first = 1 if cut is None else names.index(cut) + 1
    depths = {}
    for place, layer in enumerate(model.layers[first:], start=first):
        depth = sum(place <= end for end in ends)
        depths |= dict.fromkeys(_list_names(layer), depth)
    return depths


def sort_nodes(model: Any) -> list[Any]:
    """The layer calls of a network, Keras's nodes, each after those that it takes its inputs from."""
    entries = {id(tensor) for tensor in model.inputs}
    nodes, seen = [], set()
    # A stack instead of recursion: the deepest networks have more layers than Python has frames.
    waiting = [(tensor, False) for tensor in reversed(model.outputs)]
    while waiting:
        tensor, inputs_done = waiting.pop()
        operation, call, _ = tensor._keras_history
        node = operation._inbound_nodes[call]
        if inputs_done:
            nodes.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((tensor, True))
            if id(tensor) not in entries:
                waiting += [(source, False) for source in reversed(node.input_tensors)]
    return nodes


def _halves(before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether maps (height, width, channels) shrink by a stride, and not just by an unpadded border."""
    if len(before) != 3 or len(after) != 3:
        return False
    return all(
        small < large and 2 * small <= large + 1 for large, small in zip(before[:2], after[:2], strict=True)
    )


def _cheapest(level: Sequence[Cut], convolves: Sequence[bool]) -> list[Cut]:
    """The cut of one map size that costs least to keep and go on from; the latest of equals; none of none."""

    def cost(cut: Cut) -> int:
        return math.prod(cut.shape) * 2 ** sum(convolves[cut.index + 1 : level[-1].index + 1])

    return [min(reversed(level), key=cost)] if level else []


def _find_around(cuts: Sequence[Cut], place: int) -> tuple[Cut | None, Cut | None]:
    """The last cut before a place in `model.layers`, and the first one after it."""
    before = [cut for cut in cuts if cut.index < place]
    after = [cut for cut in cuts if cut.index > place]
    return (before[-1] if before else None, after[0] if after else None)


def _resolve_index(number: int, cuts: Sequence[Cut], backbone_name: str, count: int) -> str:
    found = [cut.name for cut in cuts if cut.index == number - 1]
    if found:
        return found[0]
    if not cuts[0].index < number <= count:
        raise BadCut(
            f"the layers of {backbone_name} can't be thawed from number {number} on: numbers run from "
            f"{cuts[0].index + 1} to {count - 1}, the input being 0. Give one of these, a layer's name, or 'pixels' "
            "to thaw all of them."
        )
    around = " and ".join(
        f"{cut.index + 1} (after {cut.name})" for cut in _find_around(cuts, number - 1) if cut
    )
    raise BadCut(
        f"the layers of {backbone_name} can't be thawed from number {number} on: that cuts a block in two. "
        f"The nearest numbers are {around}."
    )


def _list_names(layer: Any) -> Iterator[str]:
    yield layer.name
    for inner in getattr(layer, "layers", ()):
        yield from _list_names(inner)
