"""Decoding single images: everything sound becomes upright RGB, everything else has a reason."""

import io
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.salted import animation, bad_images, encode, noise, odd_images
from thaw.drawings import draw_animal
from thaw.errors import BadImage
from thaw.images import decode_image, is_upright_jpeg, read_image, resize_image

COLOUR = noise(1)


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def differ(left: np.ndarray, right) -> float:
    """Largest difference of any pixel. Pillow images and arrays of one shape."""
    return np.abs(left - np.asarray(right).astype(int)).max()


@pytest.mark.parametrize("kind", bad_images())
def test_a_file_that_is_no_usable_image_is_refused_with_a_plain_reason(kind):
    data, reason = bad_images()[kind]
    with pytest.raises(BadImage) as caught:
        decode_image(data)
    assert reason in str(caught.value)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_back_the_very_pixels(kind):
    assert differ(pixels(encode(COLOUR, kind)), COLOUR) == 0


def test_webp_and_jpeg_give_back_the_colours():
    assert differ(pixels(encode(COLOUR, "WEBP", lossless=True)), COLOUR) == 0
    assert np.abs(pixels(encode(COLOUR, quality=95, subsampling=0)) - np.asarray(COLOUR)).mean() < 4


def test_the_bytes_decide_and_not_the_name():
    kinds = {name: decode_image(data).size for name, data in odd_images().items()}
    assert kinds == {**dict.fromkeys(kinds, (48, 40)), "rotated": (40, 48)}


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_has_three_equal_channels(mode):
    grey = COLOUR.convert(mode)
    assert differ(pixels(encode(grey, "PNG")), grey.convert("RGB")) == 0


def test_a_cmyk_jpeg_is_not_inverted():
    red = pixels(encode(Image.new("RGB", (16, 16), (200, 30, 40)).convert("CMYK"), quality=95))
    assert differ(red, np.full((16, 16, 3), (200, 30, 40))) <= 3


def test_a_palette_gives_its_colours():
    palette = COLOUR.quantize(256)
    assert differ(pixels(encode(palette, "PNG")), palette.convert("RGB")) == 0
    assert differ(pixels(encode(palette, "GIF")), palette.convert("RGB")) == 0


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_composited_on_white(kind):
    image = Image.new("RGBA", (16, 16), (200, 0, 0, 255))
    image.paste((0, 0, 200, 0), (0, 0, 8, 16))
    image.paste((0, 0, 0, 128), (0, 0, 16, 4))
    seen = pixels(encode(image, kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {})))
    assert seen[10, 2].tolist() == [255, 255, 255]
    assert seen[10, 12].tolist() == [200, 0, 0]
    assert seen[1, 12].tolist() == [127, 127, 127]


def test_a_transparent_palette_entry_is_white():
    palette = Image.new("P", (16, 16), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.paste(1, (8, 0, 16, 16))
    for transparency in (0, b"\x00\xff"):
        seen = pixels(encode(palette, "PNG", transparency=transparency))
        assert seen[0, 0].tolist() == [255, 255, 255]
        assert seen[0, 15].tolist() == [0, 255, 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_greys_are_scaled_and_not_clipped(kind):
    levels = np.array([0, 200, 257, 12_850, 32_896, 65_535], dtype=np.uint16)
    image = Image.fromarray(np.tile(levels.repeat(4), (10, 1)))
    assert pixels(encode(image, kind))[3, ::4, 0].tolist() == [0, 1, 1, 50, 128, 255]


def test_pixels_without_a_known_range_are_refused():
    image = Image.fromarray(np.full((16, 16), 0.5, dtype=np.float32))
    with pytest.raises(BadImage, match="floating-point"):
        decode_image(encode(image, "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, kind):
    """The corners of the upright picture are red, green, blue, white, clockwise from the top left."""
    upright = np.zeros((48, 32, 3), dtype=np.uint8)
    upright[:24, :16], upright[:24, 16:] = (255, 0, 0), (0, 255, 0)
    upright[24:, 16:], upright[24:, :16] = (0, 0, 255), (255, 255, 255)
    undo = {  # how a camera held that way stores the picture, after the table in the EXIF standard
        1: lambda rows: rows,
        2: lambda rows: rows[:, ::-1],
        3: lambda rows: rows[::-1, ::-1],
        4: lambda rows: rows[::-1],
        5: lambda rows: rows.transpose(1, 0, 2),
        6: lambda rows: np.rot90(rows, 1),
        7: lambda rows: rows[::-1, ::-1].transpose(1, 0, 2),
        8: lambda rows: np.rot90(rows, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    seen = pixels(encode(stored, kind, exif=exif))
    assert seen.shape == (48, 32, 3)
    for row, column in ((4, 4), (4, 28), (44, 28), (44, 4)):
        assert np.abs(seen[row, column] - upright[row, column]).max() < 20


def test_only_a_jpeg_stored_as_it_is_to_be_seen_is_an_upright_one():
    image, turned, level = Image.new("RGB", (40, 30)), Image.Exif(), Image.Exif()
    turned[0x0112], level[0x0112] = 6, 1
    assert is_upright_jpeg(encode(image, "jpeg"))
    assert is_upright_jpeg(encode(image, "jpeg", exif=level))
    assert not is_upright_jpeg(encode(image, "jpeg", exif=turned))
    assert not is_upright_jpeg(encode(image, "png"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("place", [6, 20], ids=["byte order", "count of values"])
def test_damaged_exif_costs_the_orientation_only(place, kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    metadata = bytearray(exif.tobytes())
    metadata[place : place + 4] = b"\xff\xff\xff\x7f"
    assert decode_image(encode(COLOUR, kind, exif=bytes(metadata))).size == (48, 40)


def test_the_first_picture_of_a_camera_s_multi_picture_jpeg_is_taken():
    assert differ(pixels(animation("MPO", 3)), np.zeros((16, 16, 3))) <= 2


@pytest.mark.parametrize("action", ["always", "error"])
def test_no_warning_reaches_the_caller_whatever_filters_are_set(action):
    decode_image(encode(COLOUR))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)
        for data, reason in bad_images().values():
            with pytest.raises(BadImage) as refused:
                decode_image(data)
            assert reason in str(refused.value)
    assert caught == []


def test_a_truncated_file_of_any_format_is_refused():
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        data = encode(COLOUR, kind)
        for share in (0.02, 0.3, 0.6, 0.9):
            with pytest.raises(BadImage) as refused:
                decode_image(data[: int(len(data) * share)])
            assert share < 0.1 or "truncated" in str(refused.value)


def test_random_damage_never_raises_anything_but_bad_image():
    dice = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"):
        whole = np.frombuffer(encode(COLOUR, kind), dtype=np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[dice.integers(0, len(data), 5)] = dice.integers(0, 256, 5)
            try:
                assert decode_image(data.tobytes()).mode == "RGB"
            except BadImage as error:
                assert str(error)


def test_threads_see_the_same_pixels_as_one():
    images = [encode(noise(number)) for number in range(40)] + [data for data, _ in bad_images().values()]

    def look(data: bytes):
        try:
            return resize_image(decode_image(data), 32, "bilinear").sum()
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look, images)) == list(map(look, images))


@pytest.mark.parametrize("resize_filter", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resizing_squashes_to_a_square_with_pillow_s_filter(resize_filter):
    image = noise(3, 120, 80)
    seen = resize_image(image, 64, resize_filter)
    assert (seen.shape, seen.dtype) == ((64, 64, 3), np.uint8)
    expected = image.resize((64, 64), Image.Resampling[resize_filter.upper()])
    assert np.array_equal(seen, np.asarray(expected))
    assert seen.flags.writeable


@cache
def photograph(width: int = 1600, height: int = 1200) -> Image.Image:
    """Noise with the spectrum of photographs, whose amplitudes fall about as fast as frequencies rise."""
    dice = np.random.default_rng(0)
    frequencies = np.hypot(np.fft.fftfreq(height, 1 / height)[:, None], np.fft.rfftfreq(width, 1 / width))
    channels = []
    for _ in range(3):
        waves = dice.normal(size=(2, *frequencies.shape)) / np.maximum(frequencies, 1) ** 1.5
        channels.append(np.fft.irfft2(waves[0] + 1j * waves[1], s=(height, width)))
    values = np.stack(channels, axis=-1)
    return Image.fromarray(np.clip(127 + 50 * values / values.std(), 0, 255).astype(np.uint8))


def enlarged_pet(label: str) -> Image.Image:
    drawing = Image.open(io.BytesIO(draw_animal(label, 0)))
    return drawing.resize((1600, 1200), Image.Resampling.BICUBIC)


def rms(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.sqrt(np.mean((left.astype(float) - right) ** 2)))


def compare_with_full_decoding(data: bytes, size_pixels: int, resize_filter: str) -> tuple[float, float]:
    """How far reading a file is from decoding it whole, and how far one filter is from another."""
    whole = decode_image(data)
    bilinear, bicubic = (resize_image(whole, size_pixels, name) for name in ("bilinear", "bicubic"))
    expected = resize_image(whole, size_pixels, resize_filter)
    return rms(read_image(data, size_pixels, resize_filter), expected), rms(bilinear, bicubic)


@pytest.mark.parametrize("resize_filter", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size_pixels", [75, 150, 180])
@pytest.mark.parametrize("sides", [(1600, 1200), (1200, 1600), (1601, 1203)], ids=str)
def test_a_large_jpeg_is_read_more_like_its_full_decoding_than_filters_are_like_each_other(
    sides: tuple[int, int], size_pixels: int, resize_filter: str
):
    data = encode(photograph(*sides), quality=90)
    difference, other_filter = compare_with_full_decoding(data, size_pixels, resize_filter)
    assert 0 < difference < other_filter


@pytest.mark.parametrize("label", ["cat", "dog"])
def test_a_large_drawing_is_read_like_its_full_decoding_too(label: str):
    difference, other_filter = compare_with_full_decoding(encode(enlarged_pet(label)), 75, "bilinear")
    assert 0 < difference < other_filter


@pytest.mark.parametrize(
    ("sides", "smallest_pixels", "reduced"),
    [
        ((1600, 1200), 150, (200, 150)),
        ((1600, 1200), 151, (400, 300)),
        ((1600, 1200), 300, (400, 300)),
        ((1600, 1200), 600, (800, 600)),
        ((1600, 1200), 601, (1600, 1200)),
        ((1601, 1203), 150, (201, 151)),
        ((1600, 320), 150, (800, 160)),
        ((320, 1600), 150, (160, 800)),
    ],
)
def test_a_jpeg_is_decoded_as_small_as_both_its_sides_allow(sides, smallest_pixels: int, reduced):
    data = encode(photograph().resize(sides))
    assert decode_image(data).size == sides
    assert decode_image(data, smallest_pixels).size == reduced


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_decoded_smaller_is_upright_too(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Odd sides, so that what reduced pixels reach beyond the picture has to be put upright too.
    data = encode(photograph().resize((643, 485)), quality=90, exif=exif)
    whole, reduced = decode_image(data), decode_image(data, 80)
    assert whole.size == ((485, 643) if orientation > 4 else (643, 485))
    assert reduced.size == ((122, 161) if orientation > 4 else (161, 122))
    difference, other_filter = compare_with_full_decoding(data, 40, "bilinear")
    assert difference < other_filter


def test_the_nearest_pixel_is_looked_up_in_the_whole_jpeg():
    data = encode(photograph())
    expected = resize_image(decode_image(data), 75, "nearest")
    assert np.array_equal(read_image(data, 75, "nearest"), expected)


@pytest.mark.parametrize(
    ("kind", "sides"), [("PNG", (640, 480)), ("WEBP", (640, 480)), ("BMP", (640, 480)), ("JPEG", (640, 299))]
)
def test_other_formats_and_jpegs_less_than_four_times_the_size_are_decoded_whole(kind: str, sides):
    data = encode(photograph().resize(sides), kind)
    assert decode_image(data, 150).size == sides
    assert np.array_equal(read_image(data, 75, "bilinear"), resize_image(decode_image(data), 75, "bilinear"))


def test_a_jpeg_decoded_smaller_keeps_its_colours_whatever_its_mode():
    picture = photograph().resize((640, 480))
    grey = read_image(encode(picture.convert("L")), 75, "bilinear")
    assert rms(grey, resize_image(picture.convert("L").convert("RGB"), 75, "bilinear")) < 2
    inks = read_image(encode(Image.new("CMYK", (640, 480), (55, 225, 215, 0))), 75, "bilinear")
    assert differ(inks.astype(int), np.full((75, 75, 3), (200, 30, 40))) <= 3


def test_a_truncated_jpeg_is_refused_at_any_size():
    data = encode(photograph())
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(BadImage, match="truncated"):
            read_image(data[: int(len(data) * share)], 75, "bilinear")


@pytest.mark.real
def test_real_photographs_are_read_more_like_their_full_decoding_than_filters_are_like_each_other(
    shared: Path,
):
    with zipfile.ZipFile(shared / "data" / "dogs-vs-cats-original.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        photographs = {name: archive.read(name) for name in names[::70]}
    large = {name: data for name, data in photographs.items() if min(decode_image(data).size) >= 300}
    assert len(large) >= 15
    figures = {name: compare_with_full_decoding(data, 75, "bilinear") for name, data in large.items()}
    assert {name: pair for name, pair in figures.items() if not 0 < pair[0] < pair[1]} == {}
