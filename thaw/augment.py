"""Augmented views: one random affine transform per image and view, the same whoever computes it.

Sources: F. Chollet, Building powerful image classification models using very little data, 2016
(shear, zoom, flip); Deep Learning with Python, 1st ed. ch. 5.2.5 (rotation, shift, shear, zoom, flip)
and 2nd ed. ch. 8.2.5 (flip, rotation, zoom). All fill what lies outside with the nearest edge pixel.
"""

import numpy as np
from PIL import Image

from thaw.config import AugmentationConfig

# What the mirror image is: the one view of an augmentation that does nothing else.
MIRROR = AugmentationConfig(
    rotation_degrees=0, shift_fraction=0, shear_degrees=0, zoom_fraction=0, horizontal_flip="always"
)


def draw_view(pixels: np.ndarray, sha256: str, view: int, augmentation: AugmentationConfig) -> np.ndarray:
    """View number `view` of an image, drawn from a generator seeded by the image's digest and the number.

    Args:
        pixels: uint8 (size, size, channels).

    Returns:
        uint8 (size, size, channels); view 0 is the image itself.
    """
    if view == 0:
        return pixels
    generator = np.random.default_rng([augmentation.seed, view, int(sha256[:16], 16)])
    matrix = _draw_transform(generator, augmentation, pixels.shape[0])
    return _sample(pixels, matrix)


def _draw_transform(
    generator: np.random.Generator, augmentation: AugmentationConfig, size: int
) -> np.ndarray:
    """A 3 × 3 matrix from the view's pixel coordinates (x, y, 1) to the image's."""
    angle, shear = np.deg2rad(
        generator.uniform(-1, 1, 2) * (augmentation.rotation_degrees, augmentation.shear_degrees)
    )
    shift_x, shift_y = generator.uniform(-1, 1, 2) * augmentation.shift_fraction * size
    zoom_x, zoom_y = 1 + generator.uniform(-1, 1, 2) * augmentation.zoom_fraction
    is_drawn = generator.random() < 0.5
    mirror = (
        -1 if augmentation.horizontal_flip == "always" or (is_drawn and augmentation.horizontal_flip) else 1
    )
    rotate = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    slant = [[1, -np.sin(shear), 0], [0, np.cos(shear), 0], [0, 0, 1]]
    scale = [[mirror * zoom_x, 0, shift_x], [0, zoom_y, shift_y], [0, 0, 1]]
    centre = (size - 1) / 2
    to_centre = np.array([[1, 0, -centre], [0, 1, -centre], [0, 0, 1]])
    return np.linalg.inv(to_centre) @ np.array(rotate) @ np.array(slant) @ np.array(scale) @ to_centre


def _sample(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    size = pixels.shape[0]
    corners = matrix[:2] @ np.array([[0, 0, size, size], [0, size, 0, size], [1, 1, 1, 1]])
    # Pillow fills with black, so the edge is first repeated as far as the transform reaches.
    margin = int(np.ceil(max(0, -corners.min(), corners.max() - size))) + 2
    wider = np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    padded = Image.fromarray(wider if pixels.shape[2] == 3 else wider[..., 0])
    # Pillow maps pixel centres, at half coordinates, where the matrix maps pixel indices.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    shift = np.array([[1, 0, margin], [0, 1, margin], [0, 0, 1]])
    coefficients = (shift @ half @ matrix @ np.linalg.inv(half))[:2].ravel()
    view = padded.transform(
        (size, size), Image.Transform.AFFINE, tuple(coefficients), Image.Resampling.BILINEAR
    )
    return np.asarray(view).reshape(pixels.shape)
