import io
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

from thaw.drawings import draw_animal, draw_dump
from thaw.mini import DRAWINGS_WEIGHTS, build_vgg16_mini
from thaw.mini.pretrain import add_normalization, fold_normalization


@pytest.fixture(scope="module")
def drawn_animals() -> dict[str, list[Image.Image]]:
    return {
        label: [Image.open(io.BytesIO(draw_animal(label, number))) for number in range(60)]
        for label in ("cat", "dog")
    }


def test_the_same_seed_draws_the_same_bytes(tmp_path):
    for name in ("first.zip", "second.zip"):
        draw_dump(tmp_path / name, per_class=4, seed=3)
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()


def test_another_seed_draws_other_images():
    assert draw_animal("cat", 0, seed=0) != draw_animal("cat", 0, seed=1)


def test_an_image_does_not_depend_on_how_many_are_drawn(tmp_path):
    draw_dump(tmp_path / "small.zip", per_class=2)
    draw_dump(tmp_path / "grown.zip", per_class=5)
    with zipfile.ZipFile(tmp_path / "small.zip") as small, zipfile.ZipFile(tmp_path / "grown.zip") as grown:
        assert all(small.read(name) == grown.read(name) for name in small.namelist())


def test_a_dump_is_laid_out_as_kaggle_does(tmp_path):
    draw_dump(tmp_path / "dump.zip", per_class=2)
    with zipfile.ZipFile(tmp_path / "dump.zip") as archive:
        assert archive.namelist() == [
            "train/cat.0.jpg",
            "train/cat.1.jpg",
            "train/dog.0.jpg",
            "train/dog.1.jpg",
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["dump.zip"]


def test_images_are_rgb_jpegs_of_many_sizes(drawn_animals):
    images = [image for images in drawn_animals.values() for image in images]
    assert {(image.format, image.mode) for image in images} == {("JPEG", "RGB")}
    sides = [side for image in images for side in image.size]
    assert 90 <= min(sides) < 110
    assert 180 < max(sides) <= 200
    assert len({image.size for image in images}) > 60


def test_mean_colour_does_not_tell_cats_from_dogs(drawn_animals):
    colours = [np.asarray(image).mean(axis=(0, 1)) for images in drawn_animals.values() for image in images]
    labels = np.repeat([0, 1], 60)
    assert cross_val_score(LogisticRegression(), np.array(colours) / 255, labels, cv=5).mean() < 0.65


def test_vgg16_mini_has_the_layers_of_vgg16():
    import keras

    vgg16 = keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
    mini = build_vgg16_mini((64, 64, 3))
    assert [layer.name for layer in mini.layers[1:]] == [layer.name for layer in vgg16.layers[1:]]
    for thin, full in zip(mini.layers[1:], vgg16.layers[1:], strict=True):
        assert thin.output.shape == (*full.output.shape[:3], full.output.shape[3] // 8)


def test_the_shipped_weights_are_small_and_load():
    assert DRAWINGS_WEIGHTS.stat().st_size < 1_000_000
    model = build_vgg16_mini((64, 64, 3))
    before = model.get_layer("block5_conv3").get_weights()[0]
    model.load_weights(DRAWINGS_WEIGHTS)
    assert np.abs(model.get_layer("block5_conv3").get_weights()[0] - before).max() > 0
    assert np.isfinite(model.predict(np.full((1, 64, 64, 3), 0.5, "float32"), verbose=0)).all()


def test_folding_the_normalization_keeps_the_features():
    mini, dice = build_vgg16_mini((64, 64, 3)), np.random.default_rng(0)
    normalized = add_normalization(mini)
    for layer in normalized.layers:
        if layer.name.endswith("_normalization"):
            layer.set_weights([dice.uniform(0.5, 1.5, weights.shape) for weights in layer.get_weights()])
    fold_normalization(normalized, mini)
    pixels = dice.random((2, 64, 64, 3), dtype=np.float32)
    expected = normalized.predict(pixels, verbose=0)
    np.testing.assert_allclose(mini.predict(pixels, verbose=0), expected, rtol=1e-3, atol=1e-4)
