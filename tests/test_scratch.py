"""Networks trained from scratch: on pixels, grey or coloured, of any number of classes, from any kind of dump."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import Server

pytestmark = pytest.mark.slow

BARS = ("level", "upright", "slanted")


def draw_bar(kind: str, dice: np.random.Generator, side: int) -> np.ndarray:
    """A bright bar on a dark, noisy ground: uint8 (side, side)."""
    rows, columns = np.mgrid[:side, :side]
    across = {"level": rows, "upright": columns, "slanted": (rows + columns) * 0.7}[kind]
    middle = dice.uniform(0.35, 0.65) * side * (1.4 if kind == "slanted" else 1)
    bright = np.abs(across - middle) < side / 9
    return np.clip(bright * 150 + dice.normal(50, 15, (side, side)), 0, 255).astype(np.uint8)


def draw_bars(per_class: int, side: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(BARS)), per_class)
    return np.stack([draw_bar(BARS[label], dice, side) for label in labels]), labels


def test_grey_images_of_28_pixels_in_three_classes_train_end_to_end_from_a_numpy_archive(
    server: Server, tmp_path: Path
):
    train, test = draw_bars(60, 28, seed=0), draw_bars(20, 28, seed=1)
    dump = tmp_path / "bars.npz"
    np.savez(dump, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1], classes=BARS)
    short = ["--set=head.epochs=8", "--set=head.batch_size=16", "--set=split.validation=0.15"]
    ended = server.thaw("train", "--dump", dump, "--recipe=lenet5", "--store", tmp_path, "--json", *short)
    assert ended.code == 0, ended.err
    result = ended.json
    assert result["test_images"] == 60
    assert result["test_accuracy"] > 0.9
    images = tmp_path / "one.png"
    Image.fromarray(test[0][0]).save(images)
    told = server.thaw("predict", result["model"], images, "--json")
    assert told.code == 0, told.err
    assert told.json["images"][0]["label"] == "level"


def test_three_class_folders_in_colour_train_end_to_end(server: Server, tmp_path: Path):
    images, labels = draw_bars(60, 48, seed=0)
    tint = np.array([1.0, 0.8, 0.5])
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "bars" / BARS[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[..., None] * tint).astype(np.uint8)).save(folder / f"{number}.png")
    settings = ["--set=split.train=40", "--set=split.validation=10", "--set=split.test=10"]
    settings += ["--set=backbone.image_size_pixels=48", "--set=head.epochs=6", "--set=head.batch_size=16"]
    ended = server.thaw(
        *("train", "--dump", tmp_path / "bars", "--recipe=blog-convnet", "--store", tmp_path, "--json"),
        *(*settings, "--set=head.views=2"),
    )
    assert ended.code == 0, ended.err
    assert ended.json["test_images"] == 30
    assert ended.json["test_accuracy"] > 0.7
    assert Path(ended.json["report"]).read_text().count("Trained from scratch") >= 1


def test_a_thawed_backbone_learns_in_two_phases_and_tells_of_both(
    server: Server, drawn_dump: Path, tmp_path: Path
):
    phases = "[{cut: block4_pool, epochs: 3, views: 1}, {cut: block3_pool, epochs: 2}]"
    small = ["--recipe=demo", "--set=split.train=60", "--set=split.validation=20", "--set=split.test=20"]
    small += ["--set=backbone.image_size_pixels=64", "--set=head.epochs=20", "--set=gate.noise_multiplier=2"]
    ended = server.thaw(
        *("train", "--dump", drawn_dump, "--store", tmp_path, "--json", *small),
        *(f"--set=fine_tune={phases}", "--set=gate.override_gate=true"),
    )
    assert ended.code == 0, ended.err
    states = server.task_states(server.newest_run()["id"])
    assert {"fine-tune after block4_pool, seed 0", "fine-tune after block3_pool, seed 0"} <= set(states)
    report = Path(ended.json["report"]).read_text()
    assert "(after block4_pool):" in report
    assert "(after block3_pool):" in report
