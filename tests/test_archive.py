"""Opening dumps: members are read in place, nothing outside is touched, junk archives are one clear error."""

import json
import os
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.salted import damage_member, jpeg, link_member, write_folder, write_zip
from thaw import archive
from thaw.archive import is_image_name, open_dump
from thaw.errors import BadDump, BadImage

FILES = {"train/cat.1.jpg": b"one", "train/deep/er/dog.2.jpg": b"two", "notes.txt": b"three"}


@pytest.fixture(params=["zip", "folder"])
def path(request, tmp_path: Path) -> Path:
    if request.param == "zip":
        return write_zip(tmp_path / "dump.zip", FILES)
    return write_folder(tmp_path / "dump", FILES)


def rename_member(archive_path: Path, old: bytes, new: bytes) -> None:
    """Put other bytes of the same length in a member's name, flags untouched."""
    assert len(old) == len(new)
    archive_path.write_bytes(archive_path.read_bytes().replace(old, new))


def set_flag(archive_path: Path, flag: int) -> None:
    """Set a general-purpose flag bit of every member, in local and central headers."""
    content = bytearray(archive_path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            (flags,) = struct.unpack_from("<H", content, start + offset)
            struct.pack_into("<H", content, start + offset, flags | flag)
            start = content.find(signature, start + 4)
    archive_path.write_bytes(content)


def test_a_zip_and_a_folder_read_alike(path):
    with open_dump(path) as dump:
        assert {name: dump.read(name) for name in dump.members()} == FILES
        assert dump.folders == {"train", "train/deep", "train/deep/er"}
        assert dump.refused == {}


def test_a_member_that_is_not_there_is_a_bad_image(path):
    with open_dump(path) as dump, pytest.raises(BadImage, match="not in the dump"):
        dump.read("train/cat.99.jpg")


def test_threads_read_the_right_bytes(tmp_path):
    files = {f"cat.{number}.jpg": bytes([number]) * 5000 for number in range(200)}
    with zipfile.ZipFile(tmp_path / "dump.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        for name, data in files.items():
            opened.writestr(name, data)
    with open_dump(tmp_path / "dump.zip") as dump, ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            assert list(pool.map(dump.read, files)) == list(files.values())


def test_opening_and_reading_a_zip_writes_nothing(tmp_path, monkeypatch):
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    path = write_zip(
        place / "dump.zip", {"../cat.1.jpg": b"evil", "../../cat.2.jpg": b"evil", "cat.3.jpg": b"good"}
    )
    monkeypatch.chdir(place)
    with open_dump(path) as dump:
        assert [dump.read(name) for name in dump.members()] == [b"good"]
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == [path]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../cat.1.jpg", "leads outside"),
        ("train/../../cat.1.jpg", "leads outside"),
        ("..\\cat.1.jpg", "leads outside"),
        ("/etc/cat.1.jpg", "absolute"),
        ("\\\\server\\cat.1.jpg", "absolute"),
        ("C:/cat.1.jpg", "absolute"),
        ("d:cat.1.jpg", "absolute"),
    ],
)
def test_a_zip_member_that_leads_outside_is_refused(tmp_path, name, reason):
    with open_dump(write_zip(tmp_path / "dump.zip", {name: b"evil", "cat.2.jpg": b"good"})) as dump:
        assert list(dump.members()) == ["cat.2.jpg"]
        (refused,) = dump.refused
        assert reason in dump.refused[refused]
        with pytest.raises(BadImage):
            dump.read(refused)


def test_a_symbolic_link_in_a_zip_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "dump.zip", "w") as opened:
        opened.writestr(link_member("cat.1.jpg"), "/etc/passwd")
    with open_dump(tmp_path / "dump.zip") as dump:
        assert list(dump.members()) == []
        assert "symbolic link" in dump.refused["cat.1.jpg"]


def test_links_in_a_folder_are_read_only_where_they_stay_inside(tmp_path):
    folder = write_folder(tmp_path / "dump", {"cats/1.jpg": b"inside"})
    (tmp_path / "secret.jpg").write_bytes(b"outside")
    (tmp_path / "dumpling").mkdir()
    (tmp_path / "dumpling" / "9.jpg").write_bytes(b"outside, with a path that begins alike")
    (folder / "cats/2.jpg").symlink_to("1.jpg")
    (folder / "cats/3.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "cats/4.jpg").symlink_to("../../dumpling/9.jpg")
    (folder / "cats/5.jpg").symlink_to("5.jpg")
    (folder / "more").symlink_to(tmp_path / "dumpling")
    (folder / "round").symlink_to(folder)
    os.mkfifo(folder / "cats/6.jpg")
    with open_dump(folder) as dump:
        assert {name: dump.read(name) for name in dump.members()} == {
            "cats/1.jpg": b"inside",
            "cats/2.jpg": b"inside",
        }
        assert {name: reason.split(",")[0] for name, reason in dump.refused.items()} == {
            "cats/3.jpg": "a link that leads outside the dump",
            "cats/4.jpg": "a link that leads outside the dump",
            "cats/5.jpg": "a link to nothing",
            "cats/6.jpg": "not a regular file",
            "more": "a link to a folder",
            "round": "a link to a folder",
        }


def test_a_folder_reached_through_a_link_is_read(tmp_path):
    write_folder(tmp_path / "there", {"cat.1.jpg": b"one"})
    (tmp_path / "here").symlink_to(tmp_path / "there")
    with open_dump(tmp_path / "here") as dump:
        assert dump.read("cat.1.jpg") == b"one"


def test_names_in_a_zip_are_readable_whatever_they_are_encoded_in(tmp_path):
    path = write_zip(
        tmp_path / "dump.zip", {"cat.aaaa.1.jpg": b"utf-8 without its flag", "cat.bb.2.jpg": b"latin-1"}
    )
    rename_member(path, b"cat.aaaa.1.jpg", "cat.éü.1.jpg".encode())
    rename_member(path, b"cat.bb.2.jpg", "cat.éü.2.jpg".encode("latin-1"))
    with open_dump(path) as dump:
        first, second = dump.members()
        assert first == "cat.éü.1.jpg"
        assert second.startswith("cat.") and second.isprintable()
        assert dump.read(first) == b"utf-8 without its flag"
        assert dump.read(second) == b"latin-1"


def test_a_zip_whose_names_claim_a_wrong_encoding_is_one_clear_error(tmp_path):
    path = write_zip(tmp_path / "dump.zip", {"cat.bb.2.jpg": b"latin-1"})
    rename_member(path, b"cat.bb.2.jpg", "cat.éü.2.jpg".encode("latin-1"))
    set_flag(path, 0x800)
    with pytest.raises(BadDump, match="corrupt zip archive"):
        open_dump(path)


def test_a_file_name_that_is_no_utf_8_is_escaped_and_can_still_be_read(tmp_path):
    folder = os.fsencode(tmp_path)
    for name, data in ((b"cat.\xe9.1.jpg", b"one"), (b"cat\n.2.jpg", b"two")):
        with open(os.path.join(folder, name), "wb") as file:  # noqa: PTH118, PTH123
            file.write(data)
    with open_dump(tmp_path) as dump:
        names = {dump.read(name): name for name in dump.members()}
    assert names == {b"one": r"cat.\xe9.1.jpg", b"two": r"cat\n.2.jpg"}
    json.dumps(list(names.values())).encode("utf-8")


def test_folders_are_told_apart_by_forward_slashes_even_if_windows_wrote_the_zip(tmp_path):
    path = write_zip(tmp_path / "dump.zip", {"cats|1.jpg": b"one", "./dogs//2.jpg": b"two"})
    rename_member(path, b"cats|1.jpg", b"cats\\1.jpg")
    with open_dump(path) as dump:
        assert {name: dump.read(name) for name in dump.members()} == {
            "cats/1.jpg": b"one",
            "dogs/2.jpg": b"two",
        }


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_of_two_members_with_one_path_the_first_is_used(tmp_path):
    with zipfile.ZipFile(tmp_path / "dump.zip", "w") as opened:
        opened.writestr("cat.1.jpg", b"first")
        opened.writestr("cat.1.jpg", b"second")
    with open_dump(tmp_path / "dump.zip") as dump:
        assert dump.read("cat.1.jpg") == b"first"
        assert "same path" in dump.refused["cat.1.jpg"]


def test_a_damaged_member_spoils_no_other(tmp_path):
    path = write_zip(tmp_path / "dump.zip", {"cat.1.jpg": jpeg(1), "cat.2.jpg": jpeg(2)})
    damage_member(path, "cat.1.jpg")
    with open_dump(path) as dump:
        with pytest.raises(BadImage, match="CRC"):
            dump.read("cat.1.jpg")
        assert dump.read("cat.2.jpg") == jpeg(2)


def test_a_member_compressed_by_an_unknown_method_is_a_bad_image(tmp_path):
    path = write_zip(tmp_path / "dump.zip", {"cat.1.jpg": jpeg(1)})
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, content.index(b"PK\x03\x04") + 8, 9)
    struct.pack_into("<H", content, content.index(b"PK\x01\x02") + 10, 9)
    path.write_bytes(content)
    with open_dump(path) as dump, pytest.raises(BadImage, match="compression"):
        dump.read("cat.1.jpg")


def test_a_member_too_large_for_memory_is_a_bad_image(path, monkeypatch):
    monkeypatch.setattr(archive, "_LARGEST_MEMBER_BYTES", 4)
    with open_dump(path) as dump:
        assert dump.read("train/cat.1.jpg") == b"one"
        with pytest.raises(BadImage, match="too large"):
            dump.read("notes.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file. Download or copy it again"),
        (b"just some text", "is no zip archive. Pass a zip archive, or a folder"),
        (b"<!DOCTYPE html><title>Log in to Kaggle</title>", "an HTML page, not a zip archive"),
        (b"\x1f\x8b\x08" + bytes(50), "is a gzip archive"),
        (b"Rar!\x1a\x07" + bytes(50), "is a RAR archive"),
        (bytes(257) + b"ustar" + bytes(50), "is a tar archive"),
        (jpeg(1), "is a JPEG image"),
    ],
)
def test_a_file_that_is_no_zip_is_named_for_what_it_is(tmp_path, content, message):
    path = tmp_path / "dump.zip"
    path.write_bytes(content)
    with pytest.raises(BadDump) as caught:
        open_dump(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_a_truncated_zip_is_one_clear_error(tmp_path, share):
    path = write_zip(tmp_path / "dump.zip", {f"cat.{number}.jpg": jpeg(number) for number in range(20)})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BadDump, match="truncated or corrupt zip archive.*Download or copy it again"):
        open_dump(path)


def test_a_zip_with_a_damaged_table_of_contents_is_one_clear_error(tmp_path):
    path = write_zip(tmp_path / "dump.zip", {"cat.1.jpg": jpeg(1)})
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"XX\x01\x02"))
    with pytest.raises(BadDump, match="corrupt"):
        open_dump(path)


def test_an_encrypted_zip_is_one_clear_error(tmp_path):
    path = write_zip(tmp_path / "dump.zip", {"cat.1.jpg": jpeg(1)})
    set_flag(path, 0x1)
    with pytest.raises(BadDump, match=r"encrypted \(cat.1.jpg needs a password\).*Unpack it"):
        open_dump(path)


def test_a_missing_path_is_named(tmp_path):
    with pytest.raises(BadDump, match=r"no dump at .*nowhere\.zip.*Pass a zip archive or a folder"):
        open_dump(tmp_path / "nowhere.zip")


@pytest.mark.parametrize(
    "name", ["a/cat.1.jpg", "cat.1.JPEG", "x.png", "x.webp", "x.bmp", "x.gif", "x.tif", "x.heic"]
)
def test_images_are_known_by_their_names(name):
    assert is_image_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX/a/._1.jpg",
        "a/__MACOSX/1.jpg",
        "a/Thumbs.db",
        "THUMBS.DB",
        ".DS_Store",
        ".git/1.jpg",
        "a/._1.jpg",
    ]
    + ["labels.csv", "readme.md", "notes.txt", "1.jpg.txt", "jpg", "a.jpg/notes", ".jpg"],
)
def test_junk_is_known_by_its_name(name):
    assert not is_image_name(name)
