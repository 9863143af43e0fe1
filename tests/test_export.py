"""Models in other runtimes: they give the same probabilities there, or they are not written."""

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.command import PROJECT, SMALL, Ended, Server
from thaw import export, parity
from thaw.architectures import preprocess
from thaw.device import prepare_keras
from thaw.ensemble import average_networks
from thaw.errors import BadConfig, BadDump, BadModel, MissingPackage, ParityFailed
from thaw.export import export_model
from thaw.mini import DRAWINGS_WEIGHTS, build_vgg16_mini
from thaw.model import ModelFacts, save_model
from thaw.parity import CheckedImage, Difference, Limit
from thaw.store import Store

SIZE = 64
IMAGES = 24
FACTS = ModelFacts(
    classes=("cat", "dog"),
    image_size_pixels=SIZE,
    resize_filter="bicubic",
    backbone="vgg16-mini",
    stage="head",
    checkpoint="c0ffee",
    split="5b11d16e5b11d16e",
    gate_overridden=False,
)
NAMES = {"savedmodel": "model", "onnx": "model.onnx", "tflite": "model.tflite", "keras": "model.keras"}

for_onnx, for_tflite = (
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("tf2onnx", "ai_edge_litert")
)
EVERY_FORMAT = [
    pytest.param("savedmodel", marks=pytest.mark.slow),
    pytest.param("onnx", marks=for_onnx),
    pytest.param("tflite", marks=for_tflite),
    pytest.param("keras", marks=pytest.mark.slow),
]


def make_model(
    path: Path, classes: tuple[str, ...] = ("cat", "dog"), members: int = 1, seed: int = 0
) -> Path:
    """The small backbone and untrained heads of it, averaged over images and mirror images if there are several."""
    keras = prepare_keras()
    backbone = build_vgg16_mini((SIZE, SIZE, 3))
    backbone.load_weights(DRAWINGS_WEIGHTS)
    outputs = 1 if len(classes) == 2 else len(classes)
    heads = []
    for number in range(members):
        keras.utils.set_random_seed(10 * seed + number)
        activation = "sigmoid" if outputs == 1 else "softmax"
        layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.5)]
        heads.append(
            keras.Sequential([keras.Input((2, 2, 64)), *layers, keras.layers.Dense(outputs, activation)])
        )
    network = average_networks(heads)
    pixels = keras.Input((SIZE, SIZE, 3), name="pixels")
    given = network(backbone(preprocess(pixels, "unit")))
    if members > 1:
        mirrored = network(backbone(preprocess(keras.ops.flip(pixels, axis=2), "unit")))
        given = keras.layers.Average()([given, mirrored])
    facts = dataclasses.replace(FACTS, classes=classes)
    save_model(keras.Model(pixels, given, name="thaw"), path, facts)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model.keras", members=2)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("other") / "model.keras", members=2, seed=1)


def run_export(model: Path, format: str, target: Path, images: Path, **options):
    store = Store(target.parent / "store")
    made = export_model(str(model), format, store, target, [images], most_images=IMAGES, **options)
    assert sorted(file.name for file in target.parent.iterdir()) == [target.name]
    return made.value


LOADERS = {
    "savedmodel": """
import tensorflow
answer = tensorflow.saved_model.load(path).signatures["serving_default"](pixels=pixels)["probabilities"].numpy()
""",
    "onnx": """
import onnxruntime
(answer,) = onnxruntime.InferenceSession(path).run(["probabilities"], {"pixels": pixels})
assert "tensorflow" not in sys.modules
""",
    "tflite": """
from ai_edge_litert.interpreter import Interpreter
(answer,) = Interpreter(path).get_signature_runner()(pixels=pixels).values()
assert "tensorflow" not in sys.modules
""",
    "keras": """
import keras
answer = keras.models.load_model(path, compile=False).predict(pixels, verbose=0)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("format", EVERY_FORMAT)
def test_an_averaging_model_gives_its_probabilities_in_every_format_to_whoever_has_its_runtime_alone(
    model: Path, drawn_dump: Path, tmp_path: Path, format: str
):
    target = tmp_path / NAMES[format]
    made = run_export(model, format, target, drawn_dump)
    assert made.pixels.images == made.pixels.same_class == IMAGES
    assert made.pixels.limit == Limit(of="largest", value=1e-3)
    assert made.pixels.largest < 1e-3
    assert made.bytes > 200_000
    if format == "savedmodel":
        assert made.jpeg.images == IMAGES
        assert made.jpeg.largest < 0.01
    script = f"""
import sys
import numpy as np
path, pixels = sys.argv[1], np.random.default_rng(0).uniform(0, 255, (5, {SIZE}, {SIZE}, 3)).astype("float32")
{LOADERS[format]}
assert answer.shape == (5, 1)
assert "thaw" not in sys.modules
"""
    ended = subprocess.run(
        [sys.executable, "-P", "-c", script, str(target)], check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_an_export_that_gives_other_probabilities_is_not_written(
    model: Path, other: Path, drawn_dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export, "write_format", lambda source, format, kind, to: shutil.copy(other, to))
    with pytest.raises(ParityFailed, match=r"Over 24 images their largest difference is 0\.\d+; the limit"):
        run_export(model, "keras", tmp_path / "model.keras", drawn_dump)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_export_that_its_runtime_can_not_run_is_not_written(
    model: Path, drawn_dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = tmp_path / "model.keras"
    kept.write_bytes(b"an earlier export")
    monkeypatch.setattr(export, "write_format", lambda source, format, kind, to: to.write_bytes(b"broken"))
    with pytest.raises(ParityFailed, match="keras can't run it"):
        run_export(model, "keras", kept, drawn_dump)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an earlier export"]


@pytest.mark.parametrize(("given", "differs"), [(0.5, 0.0), (0.5009, 9e-4), (0.502, None), (np.nan, None)])
def test_one_image_that_differs_is_enough_and_what_is_no_number_differs(given: float, differs: float | None):
    expected, answers = np.full((3, 1), 0.5), np.array([[0.5], [given], [0.5]])
    if differs is None:
        with pytest.raises(ParityFailed, match="the onnx export gives other probabilities"):
            compare(expected, answers, "none")
    else:
        assert compare(expected, answers, "none").largest == pytest.approx(differs)


def test_of_quantised_weights_the_mean_counts_and_labels_are_compared():
    expected, answers = np.full((40, 1), 0.6), np.full((40, 1), 0.6)
    answers[0] = 0.4
    made = compare(expected, answers, "int8")
    assert (made.same_class, made.model_accuracy, made.accuracy) == (39, 1.0, 39 / 40)
    with pytest.raises(ParityFailed, match="their mean difference is 0.2; the limit is 0.02"):
        compare(expected, answers * 0 + 0.4, "int8")


def compare(expected: np.ndarray, given: np.ndarray, quantised: str) -> Difference:
    images = [CheckedImage(data=b"", pixels=np.zeros(1), label="dog")] * len(expected)
    return parity._compare(expected, given, images, FACTS, parity.LIMITS[quantised], "the onnx export")


@pytest.mark.slow
def test_what_is_there_is_replaced_by_a_new_export(model: Path, drawn_dump: Path, tmp_path: Path):
    (tmp_path / "model.keras").write_bytes(b"old")
    run_export(model, "keras", tmp_path / "model.keras", drawn_dump)
    assert zipfile.is_zipfile(tmp_path / "model.keras")


@pytest.mark.slow
def test_a_savedmodel_is_replaced_and_another_folder_is_not(model: Path, drawn_dump: Path, tmp_path: Path):
    target = tmp_path / "served"
    target.mkdir()
    for name in ("saved_model.pb", "old"):
        (target / name).touch()
    run_export(model, "savedmodel", target, drawn_dump)
    assert not (target / "old").exists()
    (target / "saved_model.pb").unlink()
    with pytest.raises(BadConfig, match="something else at"):
        run_export(model, "savedmodel", target, drawn_dump)


def test_a_format_whose_packages_are_missing_names_the_extra(
    model: Path, drawn_dump: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"needs onnx, tf2onnx, onnxruntime.*'\.\[export\]'"):
        run_export(model, "onnx", tmp_path / "model.onnx", drawn_dump)
    assert list(tmp_path.iterdir()) == []


def test_only_tflite_is_quantised(model: Path, drawn_dump: Path, tmp_path: Path):
    with pytest.raises(BadConfig, match="only tflite can be quantised. Received: keras, quantised int8"):
        run_export(model, "keras", tmp_path / "model.keras", drawn_dump, quantised="int8")


def test_a_file_has_the_suffix_of_its_format(model: Path, drawn_dump: Path, tmp_path: Path):
    with pytest.raises(BadConfig, match=r"a file that ends in \.keras"):
        run_export(model, "keras", tmp_path / "model.zip", drawn_dump)


def test_a_model_of_unknown_test_images_asks_for_others(model: Path, tmp_path: Path):
    with pytest.raises(BadDump, match="--images PATH"):
        export_model(str(model), "keras", Store(tmp_path / "store"), tmp_path / "model.keras")


def test_images_that_can_not_be_read_prove_nothing(model: Path, tmp_path: Path):
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    with pytest.raises(BadDump, match="none of 1 images can be read"):
        given = [tmp_path / "broken.jpg"]
        export_model(str(model), "keras", Store(tmp_path / "store"), tmp_path / "out" / "model.keras", given)


def test_what_thaw_did_not_save_is_not_exported(drawn_dump: Path, tmp_path: Path):
    with pytest.raises(BadModel):
        run_export(drawn_dump, "keras", tmp_path / "model.keras", drawn_dump)


@pytest.mark.slow
@for_tflite
@pytest.mark.parametrize(("quantised", "share"), [("float16", 0.6), ("int8", 0.4)])
def test_quantised_weights_are_smaller_and_their_price_is_told(
    model: Path, drawn_dump: Path, tmp_path: Path, quantised: str, share: float
):
    plain = run_export(model, "tflite", tmp_path / "plain" / "model.tflite", drawn_dump)
    small = run_export(model, "tflite", tmp_path / "small" / "model.tflite", drawn_dump, quantised=quantised)
    assert small.bytes < share * plain.bytes
    assert plain.pixels.largest < small.pixels.largest
    assert small.pixels.mean < small.pixels.limit.value


@pytest.mark.slow
@pytest.mark.parametrize("format", EVERY_FORMAT[1:3])
def test_three_classes_are_three_probabilities(drawn_dump: Path, tmp_path: Path, format: str):
    model = make_model(tmp_path / "three.keras", classes=("cat", "dog", "fox"))
    made = run_export(model, format, tmp_path / "out" / NAMES[format], drawn_dump)
    assert made.pixels.largest < 1e-3


@pytest.mark.slow
def test_each_file_says_what_the_model_takes(model: Path, drawn_dump: Path, tmp_path: Path):
    folder = tmp_path / "served"
    run_export(model, "savedmodel", folder, drawn_dump)
    facts = ModelFacts.from_json((folder / "assets.extra" / "thaw.json").read_bytes())
    assert (facts.classes, facts.resize_filter) == (("cat", "dog"), "bicubic")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported") / "store"


@pytest.fixture(scope="module")
def trained(server: Server, drawn_dump: Path, store: Path) -> Ended:
    ended = server.thaw("train", "--dump", drawn_dump, "--store", store, "--json", *SMALL)
    assert ended.code == 0, ended.err
    return ended


@pytest.mark.slow
@for_onnx
def test_a_version_is_exported_into_the_store_and_proved_on_the_images_it_was_tested_on(
    server: Server, trained: Ended, store: Path
):
    ended = server.thaw("export", "v1", "--format", "onnx", "--store", store, "--json")
    assert ended.code == 0, ended.err
    made = ended.json
    assert Path(made["path"]).is_relative_to(store / "exports")
    assert made["pixels"]["images"] == 40
    assert made["pixels"]["accuracy"] == made["pixels"]["model_accuracy"] == trained.json["test_accuracy"]


@pytest.mark.slow
def test_a_wrong_name_is_a_mistake(server: Server, trained: Ended, store: Path):
    ended = server.thaw("export", "v7", "--format", "keras", "--store", store)
    assert ended.code == 2
    assert "'v7' names no model" in ended.err


@pytest.mark.slow
def test_the_flow_leaves_what_it_proved_in_its_message(server: Server, trained: Ended, store: Path):
    script = """
import sys
from flows.export import export
state = export("keras", "v1", "mine/model.keras", store=sys.argv[1], return_state=True)
print(state.message)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script, str(store)],
        check=False,
        capture_output=True,
        text=True,
        env=server.environment,
        cwd=PROJECT,
    )
    assert ended.returncode == 0, ended.stderr
    assert (store / "exports" / "mine" / "model.keras").is_file()
    assert "on 40 images" in ended.stdout


@pytest.mark.slow
def test_a_card_lies_beside_the_model(trained: Ended):
    folder = Path(trained.json["model"]).parent
    card = (folder / "model-card.md").read_text(encoding="utf-8")
    assert json.loads((folder / "outcome.json").read_text())["run"] in card
    assert "vgg16-mini, pretrained on drawings; not ImageNet" in card.replace("\u00a0", " ")
