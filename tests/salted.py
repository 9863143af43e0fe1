"""Dumps salted with every bad input that Thaw must survive, for the tests of scanning and of whole runs."""

import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from thaw import dump as dumps


@dataclass(frozen=True)
class SaltedDump:
    """What a scan must find: why each member set aside is bad (in part), what is ignored, what is sound."""

    path: Path
    quarantined: dict[str, str]
    ignored: set[str]
    sound: set[str]


def noise(number: int, width: int = 48, height: int = 40) -> Image.Image:
    """An RGB image whose pixels depend on its number alone."""
    pixels = np.random.default_rng(number).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels.repeat(8, axis=0).repeat(8, axis=1))


def encode(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def jpeg(number: int) -> bytes:
    return encode(noise(number))


def flat_images(
    per_class: int = 10, folder: str = "train/", classes: tuple[str, ...] = ("cat", "dog")
) -> dict[str, bytes]:
    """Kaggle's layout: train/cat.0.jpg, no two images alike."""
    return {
        f"{folder}{label}.{number}.jpg": jpeg(1000 * place + number)
        for place, label in enumerate(classes)
        for number in range(per_class)
    }


def animation(kind: str, frames: int) -> bytes:
    first, *others = (Image.new("RGB", (16, 16), (6 * number, 0, 0)) for number in range(frames))
    return encode(first, kind, save_all=True, append_images=others)


def bomb(side_pixels: int) -> bytes:
    """A PNG of a few bytes whose header announces a huge square."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", side_pixels, side_pixels, 1, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def bad_images() -> dict[str, tuple[bytes, str]]:
    """Bytes that are no usable image, and a piece of the reason that must be given."""
    whole = encode(noise(77, 160, 120))
    return {
        "empty": (b"", "an empty file"),
        "truncated": (whole[: len(whole) // 2], "truncated"),
        "header_only": (whole[:20], "truncated"),
        "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "an HTML page, not an image"),
        "text": (b"no image at all, just words", "not an image"),
        "bomb": (bomb(12_000), "decompression bomb"),
        "big_bomb": (bomb(60_000), "decompression bomb"),
        "animated_gif": (animation("GIF", 40), "animated, 40 frames"),
        "animated_webp": (animation("WEBP", 5), "animated, 5 frames"),
        "animated_png": (animation("PNG", 6), "animated, 6 frames"),
        "one_pixel": (encode(Image.new("RGB", (1, 1)), "PNG"), "too small: 1 × 1"),
        "thin": (encode(Image.new("RGB", (300, 7)), "PNG"), "too small: 300 × 7"),
    }


def odd_images() -> dict[str, bytes]:
    """Sound images of every kind, all by the name of a JPEG."""
    colour = noise(500)
    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = colour.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(colour.size))
    deep = Image.fromarray(np.linspace(0, 65535, 48 * 40).astype(np.uint16).reshape(40, 48))
    return {
        "png": encode(colour, "PNG"),
        "webp": encode(colour, "WEBP", lossless=True),
        "bmp": encode(colour, "BMP"),
        "grey": encode(colour.convert("L")),
        "cmyk": encode(colour.convert("CMYK")),
        "palette": encode(colour.quantize(256), "PNG"),
        "alpha": encode(alpha, "PNG"),
        "deep": encode(deep, "PNG"),
        "rotated": encode(colour, exif=exif),
    }


def salt_dump(target: Path, good: Mapping[str, bytes] | None = None) -> SaltedDump:
    """Write good images (Kaggle's flat layout) and every bad input to a zip, or to a folder if no `.zip`.

    The salt is labelled cat and dog, as the good images must be, or can't be labelled. Most bad ones are
    cats; 9 more dogs are sound but oddly encoded. A zip also gets what only zips can hold (members that lead
    outside, a damaged member), a folder what only folders can (a link that leads outside, a pipe).
    """
    images = dict(good) if good is not None else flat_images()
    some_cat = next(path for path in images if "cat." in path)
    folder = some_cat[: some_cat.rindex("cat.")]
    quarantined, files = {}, dict(images)
    for number, (data, reason) in enumerate(bad_images().values(), 90_000):
        files[f"{folder}cat.{number}.jpg"] = data
        quarantined[f"{folder}cat.{number}.jpg"] = reason
    for number, data in enumerate(odd_images().values(), 91_000):
        files[f"{folder}dog.{number}.jpg"] = data
    files[f"{folder}cat.92000.jpg"] = images[some_cat]
    quarantined[f"{folder}cat.92000.jpg"] = f"the same bytes as {some_cat}"
    files |= {f"{folder}cat.92001.jpg": jpeg(92_001), f"{folder}dog.92001.jpg": jpeg(92_001)}
    quarantined |= dict.fromkeys((f"{folder}cat.92001.jpg", f"{folder}dog.92001.jpg"), "labelled")
    files |= {"test1/1.jpg": jpeg(93_001), "test1/2.jpg": jpeg(93_002)}
    quarantined |= dict.fromkeys(("test1/1.jpg", "test1/2.jpg"), "no label in its name")
    junk = {
        f"__MACOSX/{some_cat}": b"junk",
        f"{folder}Thumbs.db": b"junk",
        ".DS_Store": b"junk",
        f"{folder}.hidden.1.jpg": b"junk",
        "sampleSubmission.csv": b"id,label",
    }
    files |= junk
    write = _salt_zip if target.suffix == ".zip" else _salt_folder
    quarantined |= write(target, files, folder)
    return SaltedDump(
        path=target,
        quarantined=quarantined,
        ignored=set(junk),
        sound={path for path in files if path not in quarantined and path not in junk},
    )


def record_decodes(patch: pytest.MonkeyPatch) -> list[bytes]:
    """A list to which the bytes of every image that a scan decodes are added from now on."""
    decoded: list[bytes] = []
    decode = dumps.decode_image
    patch.setattr(dumps, "decode_image", lambda data: (decoded.append(data), decode(data))[1])
    return decoded


def write_folder(target: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return target


def write_zip(target: Path, files: Mapping[str, bytes]) -> Path:
    """Names that end in a slash become folders."""
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target


def damage_member(archive: Path, name: str) -> None:
    """Change one stored byte in the middle of a member, so that its CRC is wrong."""
    with zipfile.ZipFile(archive) as opened:
        info = opened.getinfo(name)
    content = bytearray(archive.read_bytes())
    content[info.header_offset + 30 + len(name) + info.file_size // 2] ^= 0xFF
    archive.write_bytes(content)


def link_member(name: str) -> zipfile.ZipInfo:
    link = zipfile.ZipInfo(name)
    link.create_system = 3
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return link


def _salt_zip(target: Path, files: Mapping[str, bytes], folder: str) -> dict[str, str]:
    write_zip(target, files)
    damaged = f"{folder}cat.94005.jpg"
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("../outside/cat.1.jpg", jpeg(94_001))
        archive.writestr("/tmp/cat.2.jpg", jpeg(94_002))
        archive.writestr("C:\\pictures\\cat.3.jpg", jpeg(94_003))
        archive.writestr(link_member(f"{folder}cat.94004.jpg"), "/etc/passwd")
        archive.writestr(damaged, jpeg(94_005))
    damage_member(target, damaged)
    return {
        "../outside/cat.1.jpg": "leads outside",
        "/tmp/cat.2.jpg": "absolute",
        "C:/pictures/cat.3.jpg": "absolute",
        f"{folder}cat.94004.jpg": "symbolic link",
        damaged: "CRC",
    }


def _salt_folder(target: Path, files: Mapping[str, bytes], folder: str) -> dict[str, str]:
    write_folder(target, files)
    outside = target.parent / f"{target.name}-outside.jpg"
    outside.write_bytes(jpeg(94_001))
    (target / f"{folder}cat.94001.jpg").symlink_to(outside)
    (target / f"{folder}cat.94002.jpg").symlink_to(target / "nothing.jpg")
    (target / f"{folder}more").symlink_to(target.parent, target_is_directory=True)
    os.mkfifo(target / f"{folder}cat.94003.jpg")
    return {
        f"{folder}cat.94001.jpg": "leads outside",
        f"{folder}cat.94002.jpg": "a link to nothing",
        f"{folder}more": "a link to a folder",
        f"{folder}cat.94003.jpg": "not a regular file",
    }
