"""Naming images with a backbone's own top: random weights here, for the published ones take a download."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import Server
from thaw.errors import BadConfig, BadWeights
from thaw.imagenet import CLASSES, build_classifier, name_images, read_classes
from thaw.model import predict_pixels
from thaw.store import Store


@pytest.fixture
def class_index(tmp_path: Path) -> Path:
    """A file as Keras keeps one: index, WordNet's number, name."""
    file = tmp_path / "imagenet_class_index.json"
    index = {str(number): [f"n{number:08d}", f"thing_{number}"] for number in range(CLASSES)}
    file.write_text(json.dumps(index))
    return file


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    dice = np.random.default_rng(0)
    for number in range(3):
        pixels = dice.integers(0, 256, (40, 60, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no image")
    return folder


def test_each_image_has_its_likeliest_names_and_a_bad_one_its_reason(
    photographs: Path, class_index: Path, store: Store
):
    named = name_images([photographs], store, "mobilenet", "random", class_index).value
    assert [Path(image.path).name for image in named.images] == ["0.png", "1.png", "2.png", "3.png"]
    model, facts = build_classifier("mobilenet", "random", read_classes(class_index))
    with Image.open(photographs / "0.png") as opened:
        pixels = np.array(opened.resize((224, 224), Image.Resampling.BILINEAR))
    (shares,) = predict_pixels(model, pixels[None])
    told = [name for name, _ in named.images[0].names]
    assert told == [facts.classes[index] for index in np.argsort(shares)[::-1][:3]]
    assert [share for _, share in named.images[0].names] == sorted(shares, reverse=True)[:3]
    assert named.images[3].names == ()
    assert "not an image" in named.images[3].error
    with Path(named.csv).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name1"] for row in rows[:3]] == [image.names[0][0] for image in named.images[:3]]
    assert rows[3]["error"] and not rows[3]["name1"]


def test_a_backbone_without_a_published_top_is_refused_with_the_nearest(class_index: Path):
    with pytest.raises(BadConfig, match="Did you mean 'resnet50'"):
        build_classifier("resnet5", "random", read_classes(class_index))
    with pytest.raises(BadConfig, match="'vgg16-mini'"):
        build_classifier("vgg16-mini", "random", read_classes(class_index))


def test_weights_without_a_top_are_refused(class_index: Path, tmp_path: Path):
    wrong = tmp_path / "wrong.weights.h5"
    wrong.write_bytes(b"\x89HDF\r\n\x1a\n" + b"0" * 1000)
    with pytest.raises(BadWeights, match="--weights PATH"):
        build_classifier("mobilenet", str(wrong), read_classes(class_index))


def test_a_file_that_holds_no_names_is_refused(tmp_path: Path):
    other = tmp_path / "other.json"
    other.write_text("{}")
    with pytest.raises(BadWeights, match="other.json does not hold them"):
        read_classes(other)


@pytest.mark.slow
def test_the_command_prints_names_and_says_how_to_go_without_a_download(
    server: Server, photographs: Path, class_index: Path, tmp_path: Path
):
    given = ["imagenet-top3", photographs, "--backbone=mobilenet", "--store", tmp_path / "store"]
    offline = [*given, "--class-index", class_index]
    printed = server.thaw(*offline, "--weights=random", "--top=2", "--json")
    assert printed.code == 0, printed.err
    assert [len(image["names"]) for image in printed.json["images"]] == [2, 2, 2, 0]
    table = server.thaw(*offline, "--weights=random")
    assert "thing_" in table.out
    missing = server.thaw(*offline, KERAS_HOME=str(tmp_path / "keras"), https_proxy="http://127.0.0.1:9")
    assert missing.code == 2
    assert "--weights PATH" in missing.err
