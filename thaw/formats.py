"""A saved model in the formats of other runtimes. Each carries the model's facts, as the `.keras` file does.

They are `thaw.json`: in `assets.extra/` of a SavedModel, among an ONNX file's metadata, in the archive at the end of a
TFLite file. SavedModel and TFLite are TensorFlow's own formats, so this module speaks to TensorFlow itself.
"""

import logging
import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from thaw.device import prepare_keras
from thaw.errors import BadConfig
from thaw.model import FACTS_MEMBER, ModelFacts, load_model

Format = Literal["savedmodel", "onnx", "tflite", "keras"]
Quantised = Literal["none", "float16", "int8"]


@dataclass(frozen=True, kw_only=True)
class FileFormat:
    """How a format is named on disk, and the packages, beside Thaw's own, that write it and run it."""

    suffix: str
    packages: tuple[str, ...] = ()


FORMATS: dict[Format, FileFormat] = {
    "savedmodel": FileFormat(suffix=""),
    "onnx": FileFormat(suffix=".onnx", packages=("onnx", "tf2onnx", "onnxruntime")),
    "tflite": FileFormat(suffix=".tflite", packages=("ai_edge_litert",)),
    "keras": FileFormat(suffix=".keras"),
}


def write_format(source: Path, format: Format, quantised: Quantised, target: Path) -> None:
    """Convert a saved model: a folder for `savedmodel`, a file for every other format.

    Args:
        source: the `.keras` file.
        target: ends in the format's suffix; nothing is there yet.

    Raises:
        BadModel: Thaw did not save the model.
        BadConfig: Keras runs on something else than TensorFlow, which writes all formats but `keras`.
    """
    if format == "keras":
        shutil.copyfile(source, target)
        return
    backend = prepare_keras().backend.backend()
    if backend != "tensorflow":
        raise BadConfig(
            f"an export as {format} needs TensorFlow behind Keras. Received: {backend}. Unset KERAS_BACKEND."
        )
    model, facts = load_model(source)
    with _quiet():
        if format == "savedmodel":
            _write_savedmodel(model, facts, target)
        elif format == "onnx":
            _write_onnx(model, facts, target)
        else:
            _write_tflite(model, facts, quantised, target)


def takes_jpegs(facts: ModelFacts) -> bool:
    """Whether a SavedModel of the model reads JPEG files too: the crop of others ends at half pixels."""
    return facts.resize_fit == "squash"


def _write_savedmodel(model: Any, facts: ModelFacts, folder: Path) -> None:
    """Signatures `serve`, of pixels, and where it can be `jpeg`, of JPEG files; both give `probabilities`."""
    import tensorflow

    keras = prepare_keras()

    def serve(pixels: Any) -> dict[str, Any]:
        return {"probabilities": model(pixels, training=False)}

    def jpeg(files: Any) -> dict[str, Any]:
        pixels = tensorflow.map_fn(
            lambda data: _read_jpeg(data, facts), files, fn_output_signature=tensorflow.float32
        )
        return serve(tensorflow.ensure_shape(pixels, (None, *facts.shape)))

    # It finds the weights that its endpoints use. Those of a model that it tracks as well it writes twice.
    archive = keras.export.ExportArchive()
    pixels = tensorflow.TensorSpec((None, *facts.shape), tensorflow.float32, name="pixels")
    archive.add_endpoint("serve", serve, input_signature=[pixels])
    if takes_jpegs(facts):
        files = tensorflow.TensorSpec((None,), tensorflow.string, name="files")
        archive.add_endpoint("jpeg", jpeg, input_signature=[files])
    archive.write_out(folder, verbose=False)
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / FACTS_MEMBER).write_text(facts.to_json(), encoding="utf-8")


def _read_jpeg(data: Any, facts: ModelFacts) -> Any:
    """Decode and resize as `thaw.images` does, but for EXIF orientation and the reduced decoding of large files."""
    import tensorflow

    image = tensorflow.io.decode_jpeg(data, channels=facts.shape[-1], dct_method="INTEGER_ACCURATE")
    method = {"lanczos": "lanczos3"}.get(facts.resize_filter, facts.resize_filter)
    square = tensorflow.image.resize(image, facts.shape[:2], method, antialias=method != "nearest")
    # Pillow's images hold whole numbers.
    return tensorflow.clip_by_value(tensorflow.round(tensorflow.cast(square, tensorflow.float32)), 0, 255)


def _write_onnx(model: Any, facts: ModelFacts, file: Path) -> None:
    """Input `pixels`, output `probabilities`, of any batch size."""
    import onnx

    signature = [prepare_keras().InputSpec(shape=(None, *facts.shape), dtype="float32", name="pixels")]
    model.export(file, format="onnx", verbose=False, input_signature=signature)
    written = onnx.load(file)
    (entry,), (end,) = written.graph.input, written.graph.output
    for node in written.graph.node:
        node.input[:] = ["pixels" if name == entry.name else name for name in node.input]
        node.input[:] = ["probabilities" if name == end.name else name for name in node.input]
        node.output[:] = ["probabilities" if name == end.name else name for name in node.output]
    entry.name, end.name = "pixels", "probabilities"
    for value in (entry, end):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    written.metadata_props.add(key=FACTS_MEMBER, value=facts.to_json())
    onnx.save(written, file)


def _write_tflite(model: Any, facts: ModelFacts, quantised: Quantised, file: Path) -> None:
    """Of TFLite's own operations alone. `int8` keeps weights so and computes activations as it goes."""
    import tensorflow

    lite = tensorflow.lite
    target: dict[str, Any] = {"supported_ops": [lite.OpsSet.TFLITE_BUILTINS]}
    options: dict[str, Any] = {} if quantised == "none" else {"optimizations": [lite.Optimize.DEFAULT]}
    if quantised == "float16":
        target["supported_types"] = [tensorflow.float16]
    model.export(file, format="litert", verbose=False, target_spec=target, **options)
    # Readers of the format stop at its end; what is appended is what TFLite calls associated files.
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(FACTS_MEMBER, facts.to_json())


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the converters say about themselves."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "absl", "tensorflow")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
