"""3 × 3 convolutions with a third of the multiplications, for training on processor cores.

An output tile of m × m pixels depends on (m + 2)² inputs. Winograd's minimal filtering computes it with
(m + 2)² multiplications instead of 9 m², between transforms of input, kernel and output that are linear:
here all three are plain matrix products, and so are their gradients. The small maps of a network's deep
blocks are what it suits; block 5 of VGG16 at 150 pixels (9 × 9) takes 225 multiplications for 729.

Source: A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks, 2016, arXiv:1509.09308.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from thaw.device import computes_on_cpu, list_layers, prepare_keras

# Where the polynomials are evaluated. Further points would cost float32 more digits than training has to spare.
_POINTS = (0, 1, -1, 2, -2)
_TILES_PIXELS = (2, 3, 4)
# Of the direct work, counted in multiplications: the transforms cost memory traffic that this does not see.
_WORTH_IT = 0.75


@dataclass(frozen=True)
class Transforms:
    """Matrices that take maps of `size` × `size` pixels, flattened, to tile frequencies and back.

    `enter` is (frequencies · tiles, size²), `leave` (size², frequencies · tiles), `kernel` (frequencies, 9).
    """

    enter: np.ndarray
    leave: np.ndarray
    kernel: np.ndarray

    @property
    def frequencies(self) -> int:
        return len(self.kernel)

    @property
    def tiles(self) -> int:
        return len(self.enter) // self.frequencies


def speed_up_convolutions(network: Any) -> None:
    """Let every convolution of a network compute by minimal filtering where that saves work on this device."""
    if computes_on_cpu():
        for layer in list_layers(network):
            if isinstance(layer, prepare_keras().layers.Conv2D):
                filter_minimally(layer)


def filter_minimally(layer: Any) -> None:
    """Let a convolution layer compute by minimal filtering from now on, wherever that saves work.

    The layer, its weights and its saved form stay what they were: only how it computes changes.
    """
    plain = {
        "kernel_size": (3, 3),
        "strides": (1, 1),
        "dilation_rate": (1, 1),
        "padding": "same",
        "groups": 1,
    }
    if any(getattr(layer, name) != value for name, value in plain.items()):
        return
    convolve = layer.convolution_op

    def filter_maps(maps: Any, kernel: Any) -> Any:
        height, width, inputs = maps.shape[1:]
        # bfloat16 would lose in the transforms the digits that it has.
        suits = (
            height is not None
            and height == width
            and prepare_keras().backend.standardize_dtype(maps.dtype) == "float32"
        )
        transforms = choose_transforms(height, inputs, kernel.shape[-1]) if suits else None
        return _convolve(maps, kernel, transforms) if transforms else convolve(maps, kernel)

    layer.convolution_op = filter_maps


def choose_transforms(size_pixels: int, inputs: int, outputs: int) -> Transforms | None:
    """The transforms that cost least for square maps and so many channels, or None where none saves work."""

    def cost(tile_pixels: int) -> float:
        frequencies, tiles = (tile_pixels + 2) ** 2, math.ceil(size_pixels / tile_pixels) ** 2
        products = inputs * outputs + size_pixels**2 * (inputs + outputs)
        return frequencies * tiles * products / (9 * size_pixels**2 * inputs * outputs)

    best = min(_TILES_PIXELS, key=cost)
    return build_transforms(size_pixels, best) if cost(best) < _WORTH_IT else None


def _convolve(maps: Any, kernel: Any, transforms: Transforms) -> Any:
    ops = prepare_keras().ops
    size, inputs, outputs = maps.shape[1], *kernel.shape[2:]
    kernel = ops.matmul(transforms.kernel, ops.reshape(kernel, (9, inputs * outputs)))
    kernel = ops.reshape(kernel, (transforms.frequencies, inputs, outputs))
    # Pixels first, so that each transform is one product with a wide matrix.
    pixels = ops.transpose(ops.reshape(maps, (-1, size**2, inputs)), (1, 0, 2))
    tiles = ops.matmul(transforms.enter, ops.reshape(pixels, (size**2, -1)))
    products = ops.matmul(ops.reshape(tiles, (transforms.frequencies, -1, inputs)), kernel)
    products = ops.reshape(products, (len(transforms.enter), -1))
    pixels = ops.reshape(ops.matmul(transforms.leave, products), (size**2, -1, outputs))
    return ops.reshape(ops.transpose(pixels, (1, 0, 2)), (-1, size, size, outputs))


@cache
def build_transforms(size_pixels: int, tile_pixels: int) -> Transforms:
    """The transforms of F(tile × tile, 3 × 3) for square maps padded with one pixel of zeros: float32."""
    leave, kernel, enter = _minimal_filter(tile_pixels)
    reach = len(enter)
    tiles = math.ceil(size_pixels / tile_pixels)
    entering = np.zeros((reach, tiles, size_pixels))
    leaving = np.zeros((size_pixels, reach, tiles))
    for tile in range(tiles):
        start = tile * tile_pixels
        for offset in range(reach):
            if 0 <= start + offset - 1 < size_pixels:
                entering[:, tile, start + offset - 1] = enter[:, offset]
        for offset in range(min(tile_pixels, size_pixels - start)):
            leaving[start + offset, :, tile] = leave[offset]
    both = reach**2 * tiles**2
    return Transforms(
        enter=np.einsum("fty,gux->fgtuyx", entering, entering).reshape(both, -1).astype(np.float32),
        leave=np.einsum("yft,xgu->yxfgtu", leaving, leaving).reshape(-1, both).astype(np.float32),
        kernel=np.einsum("fk,gl->fgkl", kernel, kernel).reshape(reach**2, 9).astype(np.float32),
    )


def _minimal_filter(tile_pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices A (tile, n), G (n, 3) and B (n, n) with A · [(G · kernel) * (B · inputs)] the 1-D convolution.

    A and G evaluate polynomials at n - 1 points and at infinity (Toom and Cook); B follows from what they
    must give together.
    """
    reach = tile_pixels + 2
    points = np.array(_POINTS[: reach - 1], dtype=np.float64)
    scales = [np.prod([point - other for other in points if other != point]) for point in points]
    leave = np.vstack([points**power for power in range(tile_pixels)])
    kernel = np.vstack([points**power for power in range(3)]).T / np.array(scales)[:, None]
    leave = np.hstack([leave, np.eye(tile_pixels)[:, -1:]])
    kernel = np.vstack([kernel, np.eye(3)[-1:]])
    both = np.einsum("if,fj->ijf", leave, kernel).reshape(-1, reach)
    asked = np.array(
        [[position == i + j for position in range(reach)] for i in range(tile_pixels) for j in range(3)]
    )
    enter, *_ = np.linalg.lstsq(both, asked.astype(np.float64), rcond=None)
    return leave, kernel, enter
