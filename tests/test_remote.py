"""Dumps in object stores are the same dumps as on a disk, and a network that fails is no image's fault."""

import os
import struct
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from tests.s3 import Bucket
from tests.salted import damage_member, flat_images, jpeg, link_member, write_folder, write_zip
from thaw import objects, remote
from thaw.archive import open_dump
from thaw.config import DumpConfig, build_config
from thaw.dump import scan_dump
from thaw.errors import BadConfig, BadDump, BadImage, StoreUnreachable
from thaw.location import Url, parse_location
from thaw.objects import Objects
from thaw.predict import list_images
from thaw.store import Store

FILES = {
    **flat_images(per_class=4),
    "train/cat.90.jpg": b"no image",
    "train/cat 91 [1] #?%20+é.jpg": jpeg(91),
    "train/.hidden/cat.92.jpg": jpeg(92),
    "notes.txt": b"text",
}


@pytest.fixture(params=["memory", "s3", "gs"])
def base(request, tmp_path: Path) -> Url:
    if request.param == "memory":
        return Url(f"memory://{tmp_path.name}-{os.getpid()}")
    if request.param == "gs":
        return Url(request.getfixturevalue("gs"))
    return Url(request.getfixturevalue("s3").url)


def put(path: Path, base: str) -> Url:
    """Put a file, or a folder with all that is in it, below a URL, under its own name."""
    store = Objects(Url(base))
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            store.upload(file, file.relative_to(path.parent).as_posix())
    return Url(f"{base}/{path.name}")


def scan(path: Path | Url, folder: Path, **settings) -> tuple[str, dict[str, str]]:
    """The digest of a dump's manifest, scanned into a store of its own, and what was set aside, and why."""
    config = DumpConfig(path=path, max_quarantine_fraction=0.5, **settings)
    manifest = scan_dump(config, Store(folder)).value
    return manifest.digest, {row.path: row.reason for row in manifest.quarantined}


def test_a_dump_is_the_same_wherever_it_lies(base, tmp_path):
    folder = write_folder(tmp_path / "photos", FILES)
    archive = write_zip(tmp_path / "photos.zip", FILES)
    expected = scan(folder, tmp_path / "0")
    assert scan(archive, tmp_path / "1") == expected
    assert scan(put(folder, base), tmp_path / "2") == expected
    assert scan(put(archive, base), tmp_path / "3") == expected
    assert "train/cat.90.jpg" in expected[1]


def test_a_bucket_may_be_the_dump(s3: Bucket, tmp_path):
    for name, data in FILES.items():
        Objects(Url(s3.url)).replace(name, data)
    with open_dump(s3.url) as dump:
        assert {name: dump.read(name) for name in dump.members()} == FILES
        assert dump.folders == {"train"}


def test_a_numpy_archive_is_fetched_whatever_it_is_called(base, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16), dtype=np.uint8)
    np.savez_compressed(tmp_path / "arrays.npz", x_train=pixels, y_train=np.arange(12) % 2)
    (tmp_path / "arrays.zip").write_bytes((tmp_path / "arrays.npz").read_bytes())
    expected = scan(tmp_path / "arrays.npz", tmp_path / "0")
    assert scan(put(tmp_path / "arrays.npz", base), tmp_path / "1") == expected
    assert scan(put(tmp_path / "arrays.zip", base), tmp_path / "2") == expected


def test_images_at_urls_are_listed_like_those_at_paths(base, tmp_path):
    folder = write_folder(tmp_path / "photos", {"cats/1.jpg": b"one", "cats/2.jpg": b"two", "notes.txt": b""})
    at = put(folder, base)
    archive = put(write_zip(tmp_path / "more.ZIP", {"3.jpg": b"three"}), base)
    sources = [at, archive, Url(f"{at}/cats/2.jpg"), Url(f"{at}/cats/none.jpg")]
    with ExitStack() as opened:
        *found, (name, read) = list_images(sources, opened)
        assert [(path, take()) for path, take in found] == [
            (f"{at}/cats/1.jpg", b"one"),
            (f"{at}/cats/2.jpg", b"two"),
            (f"{archive}/3.jpg", b"three"),
            (f"{at}/cats/2.jpg", b"two"),
        ]
        assert name == f"{at}/cats/none.jpg"
        with pytest.raises(BadImage):
            read()


@pytest.mark.parametrize("name", ["nowhere", "nowhere.zip", "nowhere.npz", "deep/nowhere/"])
def test_a_url_with_nothing_at_it_is_named(base, name):
    Objects(base).replace("something", b"")
    with pytest.raises(
        BadDump, match=rf"no dump at {base}/{name.rstrip('/')}: .*Pass the URL of a zip archive"
    ):
        open_dump(f"{base}/{name}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file"),
        (b"<!DOCTYPE html><title>Log in</title>", "an HTML page, not a zip archive"),
        (b"PK\x03\x04" + bytes(5000), "truncated or corrupt zip archive"),
    ],
)
def test_an_object_that_is_no_zip_is_named_for_what_it_is(base, content, message):
    Objects(base).replace("dump.zip", content)
    with pytest.raises(BadDump, match=f"{base}/dump.zip .*{message}"):
        open_dump(f"{base}/dump.zip")


def test_what_is_refused_on_a_disk_is_refused_in_an_object_store(base, tmp_path):
    with zipfile.ZipFile(tmp_path / "dump.zip", "w") as opened:
        opened.writestr("../cat.1.jpg", b"evil")
        opened.writestr(link_member("cat.2.jpg"), "/etc/passwd")
        opened.writestr("cat.3.jpg", b"good")
    with open_dump(put(tmp_path / "dump.zip", base)) as dump:
        assert list(dump.members()) == ["cat.3.jpg"]
        assert set(dump.refused) == {"../cat.1.jpg", "cat.2.jpg"}


def test_a_key_that_leads_outside_is_refused(s3: Bucket):
    for key in ("a/../../cat.1.jpg", "a//cat.2.jpg", "a/cat.3.jpg"):
        Objects(Url(s3.url)).replace(f"dump/{key}", key.encode())
    with open_dump(f"{s3.url}/dump") as dump:
        assert {name: dump.read(name) for name in dump.members()} == {
            "a/cat.2.jpg": b"a//cat.2.jpg",
            "a/cat.3.jpg": b"a/cat.3.jpg",
        }
        assert dump.refused == {"a/../../cat.1.jpg": "its path leads outside the dump"}


def test_a_damaged_member_spoils_no_other(base, tmp_path):
    path = write_zip(tmp_path / "dump.zip", {"cat.1.jpg": jpeg(1), "cat.2.jpg": jpeg(2)})
    damage_member(path, "cat.1.jpg")
    with open_dump(put(path, base)) as dump:
        with pytest.raises(BadImage, match="CRC"):
            dump.read("cat.1.jpg")
        assert dump.read("cat.2.jpg") == jpeg(2)


def test_a_member_whose_own_header_is_long_is_read(base, tmp_path):
    """Some writers note more beside a member than in the table of contents."""
    path = write_zip(tmp_path / "dump.zip", {"cat.1.jpg": jpeg(1)})
    content = bytearray(path.read_bytes())
    notes = struct.pack("<HH", 0x9999, 60_000) + bytes(60_000)
    struct.pack_into("<H", content, 28, len(notes))
    content[30 + len("cat.1.jpg") : 30 + len("cat.1.jpg")] = notes
    end = content.rindex(b"PK\x05\x06") + 16
    struct.pack_into("<I", content, end, struct.unpack_from("<I", content, end)[0] + len(notes))
    path.write_bytes(content)
    with open_dump(path) as local, open_dump(put(path, base)) as dump:
        assert dump.read("cat.1.jpg") == local.read("cat.1.jpg") == jpeg(1)


def test_a_table_of_contents_longer_than_what_is_looked_at_first_is_read(base, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_TABLE_BYTES", 100)
    files = {f"cat.{number}.jpg": bytes([number]) for number in range(50)}
    with open_dump(put(write_zip(tmp_path / "dump.zip", files), base)) as dump:
        assert {name: dump.read(name) for name in dump.members()} == files


def test_an_image_that_is_gone_is_a_bad_image(base, tmp_path):
    at = put(write_folder(tmp_path / "dump", {"cat.1.jpg": b"one", "cat.2.jpg": b"two"}), base)
    with open_dump(at) as dump:
        Objects(at).delete(["cat.1.jpg"])
        with pytest.raises(BadImage, match="not in the dump any more"):
            dump.read("cat.1.jpg")
        assert dump.read("cat.2.jpg") == b"two"


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_an_archive_that_changes_while_it_is_read_is_not_its_images_fault(base, tmp_path, change):
    at = put(write_zip(tmp_path / "dump.zip", {"cat.1.jpg": jpeg(1), "cat.2.jpg": jpeg(2)}), base)
    with open_dump(at) as dump:
        if change == "deleted":
            Objects(base).delete(["dump.zip"])
        else:
            Objects(base).replace("dump.zip", bytes(50))
        with pytest.raises(BadDump, match="dump.zip changed while it was read. Run the same command again"):
            dump.read("cat.2.jpg")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_store_that_is_away_sets_no_image_aside(s3: Bucket, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(objects, "PATIENCE_SECONDS", 0.5)
    make = write_zip if kind == "zip" else write_folder
    at = put(make(tmp_path / f"dump.{kind}", flat_images(per_class=3)), s3.url)
    with open_dump(at) as dump:
        s3.faults(die_after=0)
        with pytest.raises(StoreUnreachable, match="did not answer"):
            dump.read("train/cat.1.jpg")
    s3.faults()
    # Away once the scan has begun.
    opened = open_dump
    monkeypatch.setattr("thaw.dump.open_dump", lambda path: (opened(path), s3.faults(die_after=0))[0])
    with pytest.raises(StoreUnreachable):
        scan(at, tmp_path / "store")
    assert not list((tmp_path / "store").glob("manifests/*.json"))


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_hundred_images_are_waited_for_at_once(s3: Bucket, tmp_path, kind):
    files = {f"cat.{number}.jpg": bytes([number]) * 20_000 for number in range(100)}
    make = write_zip if kind == "zip" else write_folder
    at = put(make(tmp_path / f"dump.{kind}", files), s3.url)
    s3.faults(seconds=0.05)
    began = time.monotonic()
    with open_dump(at) as dump, ThreadPoolExecutor(dump.readers) as pool:
        assert list(pool.map(dump.read, files)) == list(files.values())
    assert time.monotonic() - began < 0.5 * 100 * 0.05
    assert s3.counts()["requests"] < 110


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_store_that_fails_now_and_then_gives_the_right_bytes(s3: Bucket, tmp_path, kind):
    files = {f"cat.{number}.jpg": os.urandom(20_000) for number in range(60)}
    make = write_zip if kind == "zip" else write_folder
    at = put(make(tmp_path / f"dump.{kind}", files), s3.url)
    s3.faults(fail_share=0.1, seed=2)
    with open_dump(at) as dump, ThreadPoolExecutor(dump.readers) as pool:
        assert list(pool.map(dump.read, files)) == list(files.values())


@pytest.mark.parametrize(
    "url",
    [
        "s3://AKIAPLANTED:planted-secret@bucket/photos",
        "s3://AKIAPLANTED:planted/secret@bucket/photos",
        "s3://AKIAPLANTED:7/planted/secret@bucket/photos",
        "S3://AKIAPLANTED:planted-secret@bucket/photos",
        "s3://bucket/photos?secret=planted",
    ],
)
def test_credentials_in_a_url_are_refused_without_a_word_of_them(url):
    for ask in (lambda: open_dump(url), lambda: build_config({"dump": {"path": url}})):
        with pytest.raises(BadConfig, match="credentials come from their usual places") as caught:
            ask()
        assert "planted" not in str(caught.value).lower()


def test_a_protocol_may_be_written_in_capitals():
    assert parse_location("S3://Bucket/Photos") == "s3://Bucket/Photos"
    assert parse_location("FILE:///photos") == Path("/photos")


def test_a_url_stays_text_in_settings():
    config = build_config({"dump": {"path": "s3://bucket/photos/"}})
    assert config.dump.path.name == "photos"
    assert config.model_dump(mode="json")["dump"]["path"] == "s3://bucket/photos"
    assert DumpConfig.model_validate_json(config.dump.model_dump_json()) == config.dump
    assert DumpConfig.model_json_schema()["properties"]["path"]["type"] == "string"


def test_what_is_no_text_is_no_place_for_a_dump():
    with pytest.raises(BadConfig, match="dump.path.*a path or a URL is text. Received: 5"):
        build_config({"dump": {"path": 5}})
