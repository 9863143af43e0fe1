"""NumPy archives: each row of an array is an image of the dump, exact to the pixel."""

import io
import logging
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.salted import jpeg, write_folder, write_zip
from thaw.archive import FolderDump, ZipDump, is_image_name, open_dump
from thaw.arrays import ACCEPTED_ARRAYS, ArrayDump, encode_netpbm
from thaw.config import DumpConfig, SplitConfig
from thaw.dump import scan_dump
from thaw.errors import BadDump, BadImage
from thaw.images import decode_image
from thaw.records import Manifest
from thaw.split import split_manifest
from thaw.store import Store

LABELS = np.arange(12, dtype=np.uint8) % 3


def pixels(seed: int, count: int = 12, shape: tuple[int, ...] = (28, 28)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def keras_layout() -> dict[str, np.ndarray]:
    """Twelve images to train on and six to test with, grey, of three classes."""
    return {"x_train": pixels(1), "y_train": LABELS, "x_test": pixels(2, 6), "y_test": LABELS[:6]}


def save(path: Path, /, **arrays) -> Path:
    with path.open("wb") as file:  # numpy puts .npz behind a path that lacks it
        np.savez_compressed(file, **arrays)
    return path


def scan(path: Path, store: Store, **settings) -> Manifest:
    return scan_dump(DumpConfig(path=path, **settings), store).value


def decode(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data))


def refuse(path: Path) -> str:
    with pytest.raises(BadDump) as caught:
        open_dump(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_layout_of_keras_is_scanned_as_ready_splits(tmp_path, store):
    manifest = scan(save(tmp_path / "digits.npz", **keras_layout()), store)
    assert (manifest.layout, manifest.classes) == ("ready_splits", ("0", "1", "2"))
    assert manifest.quarantined == () and manifest.ignored == ()
    rows = {row.path: row for row in manifest.images}
    assert set(rows) == {f"train/{number % 3}/{number:06}.pgm" for number in range(12)} | {
        f"test/{number % 3}/{number:06}.pgm" for number in range(6)
    }
    assert all(is_image_name(path) for path in rows)
    assert {(row.path.split("/")[0], row.side) for row in rows.values()} == {
        ("train", "train"),
        ("test", "test"),
    }
    assert all(row.label == path.split("/")[1] for path, row in rows.items())
    assert {(row.width, row.height) for row in rows.values()} == {(28, 28)}


def test_the_sides_of_the_arrays_are_the_sides_of_the_split(tmp_path, store):
    arrays = keras_layout() | {"x_val": pixels(3, 3), "y_val": LABELS[:3]}
    manifest = scan(save(tmp_path / "digits.npz", **arrays), store)
    split = split_manifest(manifest, SplitConfig(strategy="directory", train=0.7, validation=0.2, test=0.1))
    assert [len(split.rows(side)) for side in ("train", "validation", "test")] == [12, 3, 6]
    assert {row.path.split("/")[0] for row in split.validation} == {"validation"}


def test_a_side_that_the_archive_lacks_is_carved_out_of_train(tmp_path, store, caplog):
    arrays = {"x_train": pixels(1, 300), "y_train": np.arange(300) % 3}
    arrays |= {"x_test": pixels(2, 6), "y_test": LABELS[:6]}
    manifest = scan(save(tmp_path / "digits.npz", **arrays), store)
    with caplog.at_level(logging.WARNING):
        split = split_manifest(manifest, SplitConfig(strategy="directory"))
    assert "lacks validation" in caplog.text
    assert len(split.test) == 6 and len(split.train) + len(split.validation) == 300


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1), (9, 17), (9, 17, 3), (32, 32, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_pixel_is_kept(tmp_path, shape, order):
    images = pixels(4, shape=shape)
    # What netpbm's header could be confused with: comments, blanks, digits.
    images[0], images[1], images[2] = ord("#"), ord("\n"), ord("7")
    path = save(tmp_path / "dump.npz", x=np.asarray(images, order=order), y=LABELS)
    with open_dump(path) as dump:
        names = sorted(dump.members(), key=lambda name: name.split("/")[1])
        decoded = np.stack([decode(dump.read(name)) for name in names])
    expected = images.reshape(12, *shape[:2], -1)
    assert decoded.shape == (12, *shape[:2], 3)
    assert (decoded == expected).all()
    assert {name[-4:] for name in names} == {".ppm" if shape[2:] == (3,) else ".pgm"}


def test_images_are_binary_netpbm():
    assert encode_netpbm(np.zeros((2, 3), np.uint8)) == b"P5\n3 2\n255\n" + bytes(6)
    assert encode_netpbm(np.ones((2, 1, 3), np.uint8)) == b"P6\n1 2\n255\n" + b"\1" * 6


@pytest.mark.parametrize(("images", "labels"), [("x", "y"), ("images", "labels")])
def test_one_pair_without_sides_makes_class_folders(tmp_path, store, images, labels):
    manifest = scan(save(tmp_path / "dump.npz", **{images: pixels(1), labels: LABELS}), store)
    assert manifest.layout == "class_folders"
    assert [row.path for row in manifest.images][:2] == ["0/000000.pgm", "0/000003.pgm"]
    assert {row.side for row in manifest.images} == {None}


def test_train_alone_is_divided_like_any_dump_without_sides(tmp_path, store):
    manifest = scan(save(tmp_path / "dump.npz", x_train=pixels(1), y_train=LABELS), store)
    assert (manifest.layout, manifest.classes) == ("class_folders", ("0", "1", "2"))


def test_the_long_name_of_validation_is_taken_too(tmp_path, store):
    arrays = {"x_train": pixels(1), "y_train": LABELS}
    arrays |= {"x_validation": pixels(2), "y_validation": LABELS}
    manifest = scan(save(tmp_path / "dump.npz", **arrays), store)
    assert {row.side for row in manifest.images} == {"train", "validation"}


@pytest.mark.parametrize("dtype", ["uint8", "int64", ">i4", "uint64"])
def test_labels_of_any_integers_may_come_as_a_column(tmp_path, dtype):
    labels = LABELS.astype(dtype).reshape(-1, 1)
    with open_dump(save(tmp_path / "dump.npz", x=pixels(1), y=labels)) as dump:
        assert "2/000011.pgm" in dump.members()


def test_numbers_of_classes_have_one_width(tmp_path):
    arrays = keras_layout() | {"y_test": np.array([0, 0, 1, 1, 2, 10])}
    with open_dump(save(tmp_path / "dump.npz", **arrays)) as dump:
        assert {"train/00", "train/02", "test/10"} < dump.folders


@pytest.mark.parametrize("dtype", ["int64", "uint16", ">i4", "int16"])
def test_wider_integers_are_taken_where_they_fit(tmp_path, dtype):
    images = pixels(1)
    with open_dump(save(tmp_path / "dump.npz", x=images.astype(dtype), y=LABELS)) as dump:
        assert (decode(dump.read("2/000011.pgm"))[..., 1] == images[11]).all()


@pytest.mark.parametrize("array", ["classes", "class_names"])
@pytest.mark.parametrize("dtype", ["U", "S"])
def test_classes_go_by_their_names_in_the_archive(tmp_path, store, array, dtype):
    names = np.array(["Ankle boot", "T-shirt/top", "Bag", "unused"]).astype(dtype)
    manifest = scan(save(tmp_path / "fashion.npz", **keras_layout(), **{array: names}), store)
    assert manifest.classes == ("Ankle boot", "Bag", "T-shirt_top")
    assert manifest.quarantined == ()
    assert {row.label for row in manifest.images if row.path.endswith("/000001.pgm")} == {"T-shirt_top"}


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("../../etc", "_._.._etc"),
        (".hidden", "_hidden"),
        ("a\\b:c\n", "a_b:c"),
        ("tab\there", "tab_here"),
        ("\ud800lone", "_lone"),
        ("Größe 10%", "Größe 10%"),
        ("__MACOSX", "__MACOSX_"),
        ("train", "train_"),
        ("Training_set", "Training_set_"),
        ("test1", "test1_"),
        ("valid", "valid_"),
        ("validation-data", "validation-data_"),
        ("trainers", "trainers"),
        ("valve", "valve"),
    ],
)
@pytest.mark.parametrize("sides", [True, False])
def test_any_name_of_a_class_is_read_back_as_one_label(tmp_path, store, name, label, sides):
    arrays = keras_layout() if sides else {"x": pixels(1), "y": LABELS}
    manifest = scan(save(tmp_path / "dump.npz", **arrays, classes=np.array([name, "cat", "dog"])), store)
    assert set(manifest.classes) == {label, "cat", "dog"}
    assert manifest.layout == ("ready_splits" if sides else "class_folders")
    assert manifest.quarantined == () and len(manifest.images) == (18 if sides else 12)


def test_an_image_that_is_in_train_and_test_stays_in_test(tmp_path, store):
    arrays = keras_layout()
    arrays["x_train"][3] = arrays["x_test"][0]
    manifest = scan(save(tmp_path / "dump.npz", **arrays), store, max_quarantine_fraction=0)
    (row,) = manifest.quarantined
    assert (row.path, row.kind) == ("train/0/000003.pgm", "duplicate")
    assert row.reason == "the same bytes as test/0/000000.pgm, which it would leak into train"


def test_arrays_that_are_not_used_are_listed_with_what_was_refused(tmp_path, store):
    path = save(tmp_path / "dump.npz", **keras_layout(), labels=np.array(["a"]), ids=np.array([None]))
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr("readme.txt", "about")
    manifest = scan(path, store)
    assert {row.path: (row.kind, row.reason) for row in manifest.quarantined} == dict.fromkeys(
        ("labels.npy", "ids.npy", "readme.txt"), ("refused", "an array that is not used")
    )


def test_the_manifest_is_the_same_however_the_arrays_are_packed(tmp_path):
    arrays = keras_layout()
    save(tmp_path / "one.npz", **arrays)
    np.savez(tmp_path / "two.npz", **dict(reversed(arrays.items())))
    first, second = (scan(tmp_path / f"{name}.npz", Store(tmp_path / name)) for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize("name", ["DUMP.NPZ", "dump.zip", "dump"])
def test_an_archive_of_arrays_is_known_by_its_suffix_or_by_what_it_holds(tmp_path, name):
    path = save(tmp_path / name, **keras_layout())
    with open_dump(path) as dump:
        assert isinstance(dump, ArrayDump)


def test_other_archives_and_folders_are_opened_as_before(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, pixels(1))
    files = {"cats/1.jpg": jpeg(1), "dogs/2.jpg": jpeg(2), "features.npy": buffer.getvalue()}
    with open_dump(write_zip(tmp_path / "dump.zip", files)) as dump:
        assert type(dump) is ZipDump
        assert {name: dump.read(name) for name in dump.members()} == files
    with open_dump(write_zip(tmp_path / "empty.zip", {})) as dump:
        assert type(dump) is ZipDump
    arrays_only = {"x.npy": buffer.getvalue()}
    with open_dump(write_folder(tmp_path / "folder", arrays_only)) as dump:
        assert type(dump) is FolderDump


def test_eight_threads_read_the_right_images_and_the_array_once(tmp_path, monkeypatch):
    images = pixels(5, 400)
    arrays = {"x_train": images, "y_train": np.arange(400) % 3, "x_test": images[:12] ^ 255, "y_test": LABELS}
    path = save(tmp_path / "dump.npz", **arrays)
    loads, start = [], threading.Barrier(8)
    read_array = np.lib.format.read_array
    monkeypatch.setattr(
        np.lib.format, "read_array", lambda *args, **named: loads.append(1) or read_array(*args, **named)
    )
    with open_dump(path) as dump, ThreadPoolExecutor(8) as pool:
        names = list(dump.members())

        def read_all(_: int) -> dict[str, np.ndarray]:
            start.wait()
            return {name: decode(dump.read(name))[..., 0] for name in names}

        loads.clear()
        for found in pool.map(read_all, range(8)):
            for name, image in found.items():
                side, _, row = name.removesuffix(".pgm").split("/")
                assert (image == arrays[f"x_{side}"][int(row)]).all()
    assert len(loads) == 2


def test_a_closed_dump_reads_nothing_more_and_keeps_no_pixels(tmp_path):
    with open_dump(save(tmp_path / "dump.npz", x=pixels(1), y=LABELS)) as dump:
        dump.read("0/000000.pgm")
    with pytest.raises(BadImage, match="closed"):
        dump.read("0/000000.pgm")
    assert not dump._pixels


def test_a_row_that_is_not_there_is_a_bad_image(tmp_path):
    path = save(tmp_path / "dump.npz", x=pixels(1), y=LABELS)
    with open_dump(path) as dump, pytest.raises(BadImage, match="not in the dump"):
        dump.read("1/000000.pgm")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is an empty file. Download or copy it again"),
        (b"just some text", r"is no zip archive\. Pass .* or a NumPy archive \(\.npz"),
        (b"\x93NUMPY\x01\x00" + bytes(80), r"is a single NumPy array \(\.npy\)\. Pass"),
        (b"PK\x03\x04" + bytes(80), "is a truncated or corrupt zip archive"),
        (b"<!doctype html>", "is an HTML page"),
    ],
)
def test_a_file_called_npz_that_is_none_is_named_for_what_it_is(tmp_path, content, message):
    path = tmp_path / "dump.npz"
    path.write_bytes(content)
    assert re.search(message, refuse(path))


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"arr_0": pixels(1), "arr_1": LABELS}, "no pair .* arr_0 uint8 (12, 28, 28), arr_1 uint8 (12,)."),
        ({"x_train": pixels(1)}, "lacks y_train. It holds the arrays: x_train uint8 (12, 28, 28)."),
        ({"y_train": LABELS}, "lacks x_train. It holds the arrays: y_train uint8 (12,)."),
        (keras_layout() | {"x_val": pixels(3)}, "of x_val and y_val, it lacks y_val"),
        ({"images": pixels(1)}, "lacks labels"),
        ({"x_test": pixels(1), "y_test": LABELS}, "holds x_test, but no x_train and y_train"),
        ({"x": np.array([None]), "z": LABELS}, "x object (1,) (Python objects, which are never unpickled)"),
        (
            {"x": pixels(1), "y": LABELS, "images": pixels(2), "labels": LABELS},
            "of x, images, two stand for the same",
        ),
        (
            {f"{letter}_{side}": LABELS for side in ("train", "val", "validation") for letter in "xy"},
            "of x_train, x_val, x_validation, two stand for the same images",
        ),
    ],
)
def test_arrays_that_are_no_pairs_are_named_with_what_is_accepted(tmp_path, arrays, found):
    message = refuse(save(tmp_path / "dump.npz", **arrays))
    assert re.search(".*".join(map(re.escape, found.split(".*"))), message)
    assert message.endswith(ACCEPTED_ARRAYS)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(1, 13), "array x holds 13 images, y 12 labels. Save one label for each image"),
        (pixels(1).reshape(12, 784), "array x is uint8 (12, 784); images have the shape (n, height, width)"),
        (pixels(1, shape=(8, 8, 4)), "array x is uint8 (12, 8, 8, 4); images have the shape"),
        (pixels(1, shape=(3, 8, 8)), "array x is uint8 (12, 3, 8, 8); images have the shape"),
        (pixels(1, shape=(1, 8, 8, 3)), "array x is uint8 (12, 1, 8, 8, 3); images have the shape"),
        (
            pixels(1) / np.float32(255),
            "array x is float32 (12, 28, 28); pixels are whole numbers from 0 to 255",
        ),
        (pixels(1).astype("float64"), "Multiply pixels from 0 to 1 by 255 and cast them to uint8"),
        (pixels(1) > 127, "array x is bool (12, 28, 28); pixels are whole numbers"),
        (np.full((12, 28, 28), -1), "array x, int64, holds values from -1 to -1; pixels are whole numbers"),
        (np.arange(12 * 784).reshape(12, 28, 28) % 257, "array x, int64, holds values from 0 to 256"),
        (np.array(["a"] * 12), "array x is <U1 (12,); pixels are whole numbers"),
        (np.full((12, 28, 28), None), "array x is object (12, 28, 28) (Python objects, which are never unp"),
        (np.zeros((0, 28, 28), np.uint8), "array x is uint8 (0, 28, 28): it holds no pixels"),
        (np.zeros((12, 0, 28), np.int64), "array x is int64 (12, 0, 28): it holds no pixels"),
        (
            np.zeros((12, 28, 28), [("a", "u1")]),
            "array x is [('a', 'u1')] (12, 28, 28); pixels are whole numbers",
        ),
    ],
)
def test_images_of_another_kind_are_refused(tmp_path, images, message):
    assert message in refuse(save(tmp_path / "dump.npz", x=images, y=LABELS))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:11], "array x holds 12 images, y 11 labels"),
        (LABELS.astype(float), "array y is float64 (12,); labels are integers of shape (n,) or (n, 1)"),
        (np.eye(12, dtype=int), "array y is int64 (12, 12); labels are integers of shape (n,) or (n, 1)"),
        (np.uint8(3), "array y is uint8 (); labels are integers"),
        (LABELS > 1, "array y is bool (12,); labels are integers"),
        (np.array(["cat"] * 12), "array y is <U3 (12,); labels are integers"),
        (
            np.array(["cat"] * 12, dtype=object),
            "array y is object (12,) (Python objects, which are never unp",
        ),
        (LABELS.astype(int) - 1, "array y holds class -1. Count the classes from 0"),
    ],
)
def test_labels_of_another_kind_are_refused(tmp_path, labels, message):
    assert message in refuse(save(tmp_path / "dump.npz", x=pixels(1), y=labels))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (np.array(["cat", "dog"]), "the labels hold class 2, but 2 classes have names, counted from 0"),
        (np.array([1, 2, 3]), "array classes is int64 (3,), not class names. Save one string for each class"),
        (np.array([["cat", "dog", "cow"]]), "array classes is <U3 (1, 3), not class names"),
        (np.array(["cat", None, "dog"]), "array classes is object (3,) (Python objects, which are never unp"),
        (np.array(["cat", "  ", "dog"]), "class 1 has no name: it is '  '"),
        (np.array(["cat", "dog", "cat"]), "classes 0 and 2, 'cat' and 'cat', would share the name 'cat'"),
        (np.array(["a/b", "a\\b", "c"]), "would share the name 'a_b'. Rename one of them"),
    ],
)
def test_names_that_do_not_fit_the_classes_are_refused(tmp_path, names, message):
    assert message in refuse(save(tmp_path / "dump.npz", x=pixels(1), y=LABELS, classes=names))


def test_names_of_classes_that_do_not_occur_do_not_matter(tmp_path):
    names = np.array(["cat", "dog", "cow", "", "cat"])
    with open_dump(save(tmp_path / "dump.npz", x=pixels(1), y=LABELS, classes=names)) as dump:
        assert dump.folders == {"cat", "dog", "cow"}


def test_one_class_only_is_one_clear_error(tmp_path, store):
    path = save(tmp_path / "dump.npz", x=pixels(1), y=LABELS * 0)
    with pytest.raises(BadDump, match="one class only, '0'"):
        scan(path, store)


def test_damaged_images_are_one_error_and_not_one_for_each_image(tmp_path, store):
    path = tmp_path / "dump.npz"
    np.savez(path, **keras_layout())
    content = bytearray(path.read_bytes())
    content[content.index(keras_layout()["x_test"].tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(BadDump, match=rf"{path} can't be used: array x_test can't be read: Bad CRC-32"):
        scan(path, store)
    assert list(store.folder("manifests").glob("*")) == []


def test_damaged_labels_are_told_on_opening(tmp_path):
    path = tmp_path / "dump.npz"
    np.savez(path, x=pixels(1), y=LABELS)
    path.write_bytes(path.read_bytes().replace(LABELS.tobytes(), bytes(12)))
    assert "array y can't be read: Bad CRC-32" in refuse(path)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (b"no array at all", "array x can't be read: the magic string is not correct"),
        (b"", "array x can't be read: EOF"),
        (b"\x93NUMPY\x01\x00\x09\x00{'a': 1}\n", "array x can't be read: Header does not contain"),
        (b"\x93NUMPY\x03\x00" + bytes(20), "array x can't be read: version (3, 0) of the format"),
    ],
)
def test_a_member_that_is_no_array_is_damaged(tmp_path, member, message):
    path = write_zip(tmp_path / "dump.npz", {"x.npy": member, "y.npy": b""})
    assert message in refuse(path)


@pytest.mark.parametrize(
    ("change", "message"), [(bytes(5), "longer than its header says"), (None, "expected 9408 bytes got 9403")]
)
def test_an_array_longer_or_shorter_than_it_says_is_damaged(tmp_path, change, message):
    members = {}
    for name, array in {"x": pixels(1), "y": LABELS}.items():
        buffer = io.BytesIO()
        np.save(buffer, array)
        members[f"{name}.npy"] = buffer.getvalue()
    members["x.npy"] = members["x.npy"] + change if change else members["x.npy"][:-5]
    path = write_zip(tmp_path / "dump.npz", members)
    with open_dump(path) as dump, pytest.raises(BadDump, match=f"array x can't be read: .*{message}"):
        dump.read("0/000000.pgm")
