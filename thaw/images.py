"""One image: decode, orient, resize. Everything here may be called from many threads at once."""

import io
import re
import warnings

import numpy as np
from PIL import Image

from thaw.errors import BadImage

SMALLEST_SIDE_PIXELS = 8
# How many times the target a JPEG stays when it is decoded at a reduced size.
_REDUCED_FACTOR = 2

# The formats that people keep photographs in. Pillow's rarer readers (EPS runs Ghostscript) stay shut.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# Values of EXIF tag 0x0112 other than 1, upright (CIPA DC-008-2019, 4.6.4 A).
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OTHER_FILES = (
    (re.compile(rb"<(!doctype\s+html|html|head|body)\b", re.IGNORECASE), "an HTML page, not an image"),
    (re.compile(rb"(<\?xml.{0,1000})?<svg\b", re.IGNORECASE | re.DOTALL), "an SVG drawing, not a photograph"),
    (re.compile(rb"<\?xml\b"), "an XML file, not an image"),
    (re.compile(rb"%PDF"), "a PDF file, not an image"),
    (re.compile(rb"PK\x03\x04"), "a zip archive, not an image"),
    (re.compile(rb"[{\[]\s*[\"{\[]"), "a JSON file, not an image"),
    (re.compile(rb".{4}ftyp(hei|hev|mif1|msf1)", re.DOTALL), "a HEIC image, which can't be read here"),
)


def read_image(
    data: bytes, size_pixels: int, resize_filter: str, fit: str = "squash", colour: str = "rgb"
) -> np.ndarray:
    """Decode an image file in memory and bring it to a square: uint8 (size_pixels, size_pixels, channels).

    A JPEG of more than twice that size is decoded smaller where the filter averages over what it shrinks:
    the decoder's own averaging then differs from the filter's by less than one filter from another.

    Args:
        fit: `squash` takes the whole image, `crop` the middle square of it.
        colour: `rgb` gives three channels, `grey` one.

    Raises:
        BadImage: as `decode_image`.
    """
    smallest = None if resize_filter == "nearest" else _REDUCED_FACTOR * size_pixels
    image, orientation, extent = _decode(data, smallest)
    if fit == "crop":
        extent = _find_middle(extent or (0, 0, *image.size))
    square = Image.fromarray(resize_image(image, size_pixels, resize_filter, extent))
    upright = _turn_upright(square, orientation)
    return np.array(upright) if colour == "rgb" else np.array(upright.convert("L"))[..., None]


def _find_middle(box: tuple[float, ...]) -> tuple[float, ...]:
    """The largest square in the middle of a box, as (left, upper, right, lower)."""
    left, upper, right, lower = box
    side = min(right - left, lower - upper)
    left, upper = (left + right - side) / 2, (upper + lower - side) / 2
    return left, upper, left + side, upper + side


def decode_image(data: bytes, smallest_pixels: int | None = None) -> Image.Image:
    """Decode an image file in memory, whole, to upright 8-bit RGB.

    EXIF orientation is applied, alpha is composited on white, 16-bit greys are scaled to 8 bits.

    Args:
        smallest_pixels: lets a JPEG come out at a half, a quarter or an eighth of its size, in a fraction of
            the time, as long as both sides keep so many pixels.

    Raises:
        BadImage: the bytes are empty, truncated, damaged or no image, or the image is animated, larger
            than Pillow's limit against decompression bombs, or smaller than 8 pixels on a side.
    """
    image, orientation, _ = _decode(data, smallest_pixels)
    return _turn_upright(image, orientation)


def resize_image(
    image: Image.Image, size_pixels: int, resize_filter: str, box: tuple[float, ...] | None = None
) -> np.ndarray:
    """Squash an RGB image to a square, as Keras' loaders do.

    Args:
        box: the part to take, as (left, upper, right, lower) in pixels; the whole when None.

    Returns:
        uint8 of shape (size_pixels, size_pixels, 3), values 0 to 255.
    """
    return np.array(image.resize((size_pixels, size_pixels), _FILTERS[resize_filter], box=box))


def _decode(
    data: bytes, smallest_pixels: int | None
) -> tuple[Image.Image, int | None, tuple[float, ...] | None]:
    """The pixels as they are stored, their EXIF orientation, and what part of a reduced image the picture fills.

    Where a side is no multiple of the reduction, the last pixels of a reduced image reach beyond the picture.
    """
    if not data:
        raise BadImage("an empty file")
    _silence_pillow()
    try:
        image, extent = _open(data), None
        if smallest_pixels and image.format == "JPEG":
            _, extent = image.draft(None, (smallest_pixels, smallest_pixels)) or (None, None)
        image.load()
        return _to_rgb(image), _read_orientation(image), extent
    except BadImage:
        raise
    except Exception as error:  # Pillow's readers raise whatever damaged bytes lead them to
        raise BadImage(_explain(error, data)) from error


def _open(data: bytes) -> Image.Image:
    """Read the header only; refuse what its size or its number of frames rules out."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        raise BadImage(_describe(data)) from error
    width, height = image.size
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise BadImage(f"a decompression bomb: {width} × {height} pixels, the limit is {limit:,}")
    if min(width, height) < SMALLEST_SIDE_PIXELS:
        raise BadImage(f"too small: {width} × {height} pixels, each side needs {SMALLEST_SIDE_PIXELS}")
    # Cameras' JPEGs may hold previews as further frames (MPO); the first one is the photograph.
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImage(f"{frames} pages" if image.format == "TIFF" else f"animated, {frames} frames")
    return image


def _read_orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged metadata does not make the pixels worse
        return None


def is_upright_jpeg(data: bytes) -> bool:
    """Whether an image file that can be read is a JPEG whose pixels are stored as they are to be seen."""
    if not data.startswith(b"\xff\xd8\xff"):
        return False
    with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        return _read_orientation(image) not in _UPRIGHT


def _turn_upright(image: Image.Image, orientation: int | None) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _scale_to_8_bits(image)
    elif image.mode == "F":
        raise BadImage("floating-point pixels, which have no known range")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
    return image.convert("RGB")


def _scale_to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit greys; Pillow's own conversion to 8 bits clips them at 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise BadImage("32-bit pixels, which have no known range")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _silence_pillow() -> None:
    """Let Pillow's warnings of odd metadata pass: the pixels decide, and bombs are refused above.

    `warnings.catch_warnings` would undo what other threads set meanwhile; a standing filter does not.
    """
    if warnings.filters[:1] != [_SILENCE]:
        warnings.filterwarnings("ignore", module=_FROM_PILLOW)


_FROM_PILLOW = r"PIL\."
_SILENCE = ("ignore", None, Warning, re.compile(_FROM_PILLOW), 0)


def _describe(data: bytes) -> str:
    """What bytes are that no reader took for an image."""
    start = data[:2000].lstrip(b"\xef\xbb\xbf \t\r\n")
    for pattern, description in _OTHER_FILES:
        if pattern.match(start):
            return description
    if data.startswith((b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"GIF8", b"BM")):
        return "truncated or damaged: its header can't be read"
    return "not an image"


def _explain(error: Exception, data: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return "a decompression bomb: more than twice as many pixels as Pillow's limit"
    text = str(error).strip() or type(error).__name__
    # A RIFF file (WebP) states its own length after the first four bytes.
    cut_off = data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")
    if cut_off or isinstance(error, EOFError) or "truncated" in text.lower():
        return "truncated: the end of the file is missing"
    return f"damaged: {text}"
