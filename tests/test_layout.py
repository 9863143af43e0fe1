"""Labels come off paths: what is detected, what an override changes, and what is refused."""

import pytest

from thaw.errors import BadDump
from thaw.layout import Reading, label_in_name, natural_key, read_layout


def read(*images: str, layout: str = "auto", folders: tuple[str, ...] = ()) -> Reading:
    parents = {path.rsplit("/", depth)[0] for path in images for depth in range(1, path.count("/") + 1)}
    return read_layout(images, parents | set(folders), layout)


def numbered(*patterns: str, count: int = 4) -> list[str]:
    """cat.#.jpg gives cat.0.jpg, cat.1.jpg …"""
    return [pattern.replace("#", str(number)) for pattern in patterns for number in range(count)]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cat.123.jpg", "cat"),
        ("train/cat.123.jpg", "cat"),
        ("cat_123.jpg", "cat"),
        ("cat-123.png", "cat"),
        ("cat123.jpg", "cat"),
        ("golden_retriever_12.jpg", "golden_retriever"),
        ("cat.0 (1).jpg", "cat"),
        ("Katze.7.JPG", "Katze"),
        ("猫.7.jpg", "猫"),
        ("123.jpg", None),
        ("2024.01.05.jpg", None),
        ("_12.jpg", None),
        ("cat.jpg", None),
    ],
)
def test_a_label_is_what_stands_before_the_number(name, label):
    assert label_in_name(name) == label


def test_natural_order_counts():
    paths = ["cat.10.jpg", "cat.2.jpg", "cat.02.jpg", "cat.jpg", "a/cat.3.jpg", "cat", "10.jpg", "9.jpg"]
    assert sorted(paths, key=natural_key) == [
        "9.jpg",
        "10.jpg",
        "a/cat.3.jpg",
        "cat",
        "cat.02.jpg",
        "cat.2.jpg",
        "cat.10.jpg",
        "cat.jpg",
    ]
    assert sorted([f"cat.{'9' * 5000}.jpg", "cat.8.jpg", "cat.³.jpg"], key=natural_key)[0] == "cat.8.jpg"


@pytest.mark.parametrize("folder", ["", "train/", "dogs-vs-cats/train/", "some/where/"])
def test_flat_names_are_found_in_whatever_folder_they_lie(folder):
    reading = read(*numbered(f"{folder}cat.#.jpg", f"{folder}dog.#.jpg"))
    assert (reading.layout, reading.classes) == ("flat", ("cat", "dog"))
    assert reading.labels[f"{folder}dog.3.jpg"] == "dog"
    assert reading.unlabelled == {}


@pytest.mark.parametrize("root", ["", "PetImages/", "train/", "a/b/"])
def test_class_folders_are_found_below_the_folders_that_all_share(root):
    reading = read(*numbered(f"{root}Cat/#.jpg", f"{root}Dog/#.jpg"))
    assert (reading.layout, reading.classes) == ("class_folders", ("Cat", "Dog"))
    assert reading.sides == {}


def test_names_inside_class_folders_do_not_matter():
    reading = read(*numbered("cats/IMG_#.jpg", "cats/DSC_#.jpg", "dogs/cat.#.jpg"))
    assert reading.classes == ("cats", "dogs")
    assert reading.labels["dogs/cat.1.jpg"] == "dogs"


def test_files_deeper_down_belong_to_the_class_folder():
    reading = read("cats/1.jpg", "cats/kittens/tabby/2.jpg", "dogs/3.jpg")
    assert reading.labels["cats/kittens/tabby/2.jpg"] == "cats"


def test_an_image_beside_class_folders_is_unlabelled():
    reading = read(*numbered("cats/#.jpg", "dogs/#.jpg"), "logo1.jpg", "banner2.jpg")
    assert reading.classes == ("cats", "dogs")
    assert set(reading.unlabelled) == {"logo1.jpg", "banner2.jpg"}
    assert "outside the class folders" in reading.unlabelled["logo1.jpg"]


def test_a_class_may_be_called_train():
    images = numbered("train/train_#.jpg", "bus/bus_#.jpg", "plane/plane_#.jpg")
    assert read(*images).classes == ("bus", "plane", "train")


@pytest.mark.parametrize("wrap", ["", "dogs-vs-cats/"])
@pytest.mark.parametrize("test_folder", ["test1", "test"])
def test_kaggle_s_unlabelled_test_folder_is_set_aside(wrap, test_folder):
    """The user wants the labelled images of the full dump; the others are for a submission."""
    images = numbered(f"{wrap}train/cat.#.jpg", f"{wrap}train/dog.#.jpg", f"{wrap}{test_folder}/#.jpg")
    reading = read(*images)
    assert (reading.layout, reading.classes) == ("flat", ("cat", "dog"))
    assert reading.unlabelled == dict.fromkeys(numbered(f"{wrap}{test_folder}/#.jpg"), "no label in its name")


def test_a_folder_of_unlabelled_extras_beside_flat_names_is_set_aside():
    reading = read(*numbered("train/cat.#.jpg", "train/dog.#.jpg", "sample/#.jpg"))
    assert (reading.layout, reading.classes) == ("flat", ("cat", "dog"))
    assert set(reading.unlabelled) == set(numbered("sample/#.jpg"))


def test_an_unlabelled_test_folder_beside_class_folders_is_set_aside():
    reading = read(*numbered("train/cats/#.jpg", "train/dogs/#.jpg", "test/#.jpg"))
    assert (reading.layout, reading.classes) == ("class_folders", ("cats", "dogs"))
    assert set(reading.unlabelled) == set(numbered("test/#.jpg"))


@pytest.mark.parametrize(
    ("train", "other", "side"),
    [
        ("train", "test", "test"),
        ("train", "val", "validation"),
        ("train", "valid", "validation"),
        ("Train", "Validation", "validation"),
        ("training_set", "test_set", "test"),
        ("training_set/training_set", "test_set/test_set", "test"),
        ("shoes/train", "shoes/test", "test"),
    ],
)
def test_ready_splits_are_found(train, other, side):
    reading = read(
        *numbered(
            f"{train}/nike/#.jpg", f"{train}/adidas/#.jpg", f"{other}/nike/#.jpg", f"{other}/adidas/#.jpg"
        )
    )
    assert (reading.layout, reading.classes) == ("ready_splits", ("adidas", "nike"))
    assert reading.sides[f"{train}/nike/1.jpg"] == "train"
    assert reading.sides[f"{other}/nike/1.jpg"] == side
    assert reading.labels[f"{other}/nike/1.jpg"] == "nike"


def test_ready_splits_may_have_three_sides_and_flat_names():
    reading = read(*numbered("train/cat.#.jpg", "train/dog.#.jpg", "val/cat.#.jpg", "test/dog.#.jpg"))
    assert (reading.layout, reading.classes) == ("ready_splits", ("cat", "dog"))
    assert {reading.sides[path] for path in ("val/cat.1.jpg", "test/dog.1.jpg")} == {"validation", "test"}


def test_a_side_with_one_class_still_agrees_with_the_others_on_what_a_class_is():
    reading = read(*numbered("train/cats/#.jpg", "train/dogs/#.jpg", "test/cats/#.jpg"))
    assert reading.labels["test/cats/1.jpg"] == "cats"


def test_an_image_outside_the_sides_is_unlabelled():
    reading = read(
        *numbered("train/a/#.jpg", "train/b/#.jpg", "test/a/#.jpg", "test/b/#.jpg"), "sample/1.jpg"
    )
    assert reading.layout == "ready_splits"
    assert "outside the sides" in reading.unlabelled["sample/1.jpg"]


def test_train_alone_is_no_ready_split():
    assert read(*numbered("train/cats/#.jpg", "train/dogs/#.jpg")).layout == "class_folders"


def test_an_override_decides_between_two_readings():
    images = numbered("part1/cat.#.jpg", "part2/dog.#.jpg", "part1/dog.9#.jpg")
    assert read(*images).classes == ("part1", "part2")
    assert read(*images, layout="class_folders").classes == ("part1", "part2")
    assert read(*images, layout="flat").classes == ("cat", "dog")


def test_an_override_may_pool_ready_splits_of_flat_names():
    reading = read(*numbered("train/cat.#.jpg", "train/dog.#.jpg", "test/dog.#.jpg"), layout="flat")
    assert (reading.layout, reading.sides, len(reading.labels)) == ("flat", {}, 12)


@pytest.mark.parametrize(
    ("layout", "patterns", "found"),
    [
        ("flat", ("cats/#.jpg", "dogs/#.jpg"), "class_folders"),
        ("class_folders", ("train/cat.#.jpg", "train/dog.#.jpg"), "flat"),
        ("class_folders", ("cat.#.jpg", "dog.#.jpg"), "flat"),
        ("class_folders", ("train/a/#.jpg", "train/b/#.jpg", "test/a/#.jpg"), "ready_splits"),
        ("ready_splits", ("cats/#.jpg", "dogs/#.jpg"), "class_folders"),
        ("ready_splits", ("train/cat.#.jpg", "train/dog.#.jpg", "test1/#.jpg"), "flat"),
    ],
)
def test_an_override_that_does_not_fit_is_refused_naming_what_was_found(layout, patterns, found):
    images = numbered(*patterns)
    with pytest.raises(BadDump) as caught:
        read(*images, layout=layout)
    assert f"layout '{layout}' was asked for, but the dump looks like '{found}'" in str(caught.value)
    assert any(path in str(caught.value) for path in images)


@pytest.mark.parametrize("layout", ["auto", "flat", "class_folders", "ready_splits"])
@pytest.mark.parametrize("folder", ["", "test1/"])
def test_unlabelled_names_are_refused_with_examples_and_the_accepted_layouts(layout, folder):
    with pytest.raises(BadDump) as caught:
        read(*numbered(f"{folder}#.jpg"), layout=layout)
    assert f"no image has a label: the names are like {folder}0.jpg" in str(caught.value)
    assert "Accepted layouts: flat names (train/cat.123.jpg), a folder for each class" in str(caught.value)


def test_names_at_random_are_no_labels():
    with pytest.raises(BadDump, match="no image has a label"):
        read(*(f"{letter}{letter}x-9{number}.jpg" for number, letter in enumerate("abcdefghijkl")))


@pytest.mark.parametrize(
    "patterns", [("cats/#.jpg",), ("cat.#.jpg",), ("train/cats/#.jpg", "test/cats/#.jpg")]
)
def test_one_class_is_refused(patterns):
    with pytest.raises(BadDump, match=r"one class only, 'cats?' \(\d images such as .*needs two at least"):
        read(*numbered(*patterns))


@pytest.mark.parametrize(
    ("patterns", "empty"),
    [
        (("cats/#.jpg", "dogs/#.jpg"), "birds"),
        (("cats/#.jpg",), "dogs"),
        (("PetImages/cats/#.jpg", "PetImages/dogs/#.jpg"), "PetImages/birds"),
        (("train/a/#.jpg", "train/b/#.jpg", "test/a/#.jpg"), "test/b"),
        (("train/a/#.jpg", "train/b/#.jpg", "test/a/#.jpg"), "train/c"),
    ],
)
def test_a_class_folder_without_images_is_refused(patterns, empty):
    with pytest.raises(BadDump, match=f"class folder '{empty}' holds no images"):
        read(*numbered(*patterns), folders=(empty,))


def test_an_empty_folder_elsewhere_does_no_harm():
    assert read(*numbered("cats/#.jpg", "dogs/#.jpg"), folders=("cats/more",)).classes == ("cats", "dogs")
    assert read(*numbered("train/cat.#.jpg", "train/dog.#.jpg"), folders=("models",)).layout == "flat"


def test_sides_without_a_train_side_are_no_classes():
    with pytest.raises(BadDump, match="test, val look like the sides of a split"):
        read(*numbered("test/a/#.jpg", "test/b/#.jpg", "val/a/#.jpg"))


def test_no_image_at_all_is_refused():
    with pytest.raises(BadDump, match="no images"):
        read()
