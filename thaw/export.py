"""Export a saved model to other runtimes, once it is proved on real images that it gives the same probabilities."""

import glob
import hashlib
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from thaw.archive import open_dump
from thaw.errors import BadConfig, BadDump, BadImage, MissingPackage
from thaw.formats import FORMATS, Format, Quantised, write_format
from thaw.images import read_image
from thaw.location import Url, parse_location
from thaw.model import ModelFacts, read_facts
from thaw.parity import CheckedImage, Difference, prove_export
from thaw.predict import count_readers, find_model, list_images
from thaw.records import Made, Record, Split
from thaw.registry import read_registry
from thaw.store import Store

CHECKED_IMAGES = 200
_ABANDONED_SECONDS = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Exported(Record):
    """What was exported, where it lies, and what it was proved with. `jpeg` is of a SavedModel's JPEG signature."""

    model: str
    format: Format
    quantised: Quantised
    path: str
    bytes: int
    pixels: Difference
    jpeg: Difference | None = None


def export_model(
    model: str,
    format: Format,
    store: Store,
    to: Path | None = None,
    images: Sequence[Path | Url] = (),
    quantised: Quantised = "none",
    most_images: int = CHECKED_IMAGES,
) -> Made[Exported]:
    """Convert a model, prove it, and put it in place by one rename; a folder that is there is renamed away before.

    Args:
        model: as `find_model` takes it.
        to: the file, or for `savedmodel` the folder, to write; `exports/<checkpoint>/` in the store when None.
            A file that is there is replaced, a folder only if it is a SavedModel.
        images: files, folders and archives to prove it with; the test images that the model was tested on
            when empty.
        most_images: how many of them are taken, spread over all.

    Raises:
        ParityFailed: the export differs from the model by more than its limit, or its runtime can't run it.
        MissingPackage: the format's packages are not installed.
        BadConfig: the target can't be written, or the format can't be quantised.
        BadDump: there are no images to prove it with.
        BadModel, NoSuchModel: there is no such model.
    """
    _check_format(format, quantised)
    source = find_model(model, store)
    facts = read_facts(source)
    target = store.folder("exports", facts.checkpoint, _name_file(format, quantised))
    target = to.expanduser().absolute() if to else target
    _check_target(target, format)
    checked = _gather_images(images, facts, store, most_images)
    with _scratch_beside(target) as scratch:
        partial_target = scratch / f"model{FORMATS[format].suffix}"
        write_format(source, format, quantised, partial_target)
        with tempfile.TemporaryDirectory() as folder:
            given = (source, partial_target, facts, format, quantised, checked)
            pixels, jpeg = prove_export(*given, Path(folder))
        exported = Exported(
            model=model,
            format=format,
            quantised=quantised,
            path=str(target),
            bytes=_count_bytes(partial_target),
            pixels=pixels,
            jpeg=jpeg,
        )
        _put_in_place(partial_target, target, scratch / "replaced")
    store.share(target)
    return Made(value=exported, reused=False, note=f"{format} in {target}")


def _put_in_place(made: Path, target: Path, replaced: Path) -> None:
    """Rename an export to its target. What is there goes first, where it is a folder, and comes back if that fails."""
    if not target.is_dir():
        made.rename(target)
        return
    target.rename(replaced)
    try:
        made.rename(target)
    except OSError as error:
        if not target.exists():
            replaced.rename(target)
        raise BadConfig(
            f"there is no writing to {target}: {error.strerror}. Is another export writing there?"
        ) from None


def _check_format(format: Format, quantised: Quantised) -> None:
    if quantised != "none" and format != "tflite":
        raise BadConfig(f"only tflite can be quantised. Received: {format}, quantised {quantised}.")
    missing = [name for name in FORMATS[format].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingPackage(
            f"an export as {format} needs {', '.join(missing)}, not installed here. It comes with the extra "
            "'export': pip install -c constraints.txt -e '.[export]'"
        )


def _name_file(format: Format, quantised: Quantised) -> str:
    stem = "model" if quantised == "none" else f"model-{quantised}"
    return f"{stem}{FORMATS[format].suffix}" if FORMATS[format].suffix else format


def _check_target(target: Path, format: Format) -> None:
    suffix = FORMATS[format].suffix
    if suffix and target.suffix != suffix:
        raise BadConfig(f"an export as {format} is a file that ends in {suffix}. Received: {target}")
    if target.is_dir():
        is_ours = format == "savedmodel" and (
            (target / "saved_model.pb").is_file() or not any(target.iterdir())
        )
    else:
        is_ours = format != "savedmodel"
    if target.exists() and not is_ours:
        raise BadConfig(f"there is something else at {target}, and an export would replace it. Name another.")


@contextmanager
def _scratch_beside(target: Path) -> Iterator[Path]:
    """A folder on the target's disk that is gone afterwards, with all that was not moved out of it."""
    parent = target.parent
    is_new = not parent.exists()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        # What a killed export left behind, the next to the same target takes away.
        for leftover in parent.glob(f".exporting-{glob.escape(target.name)}-*"):
            if time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                shutil.rmtree(leftover, ignore_errors=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".exporting-{target.name}-", dir=parent)
    except OSError as error:
        raise BadConfig(f"there is no writing to {target}: {error.strerror}. Give another path.") from None
    try:
        with scratch as folder:
            yield Path(folder)
    finally:
        if is_new:
            with suppress(OSError):  # it holds the export
                parent.rmdir()


def _gather_images(
    sources: Sequence[Path | Url], facts: ModelFacts, store: Store, most: int
) -> list[CheckedImage]:
    """Images spread over all there are, in their order; those that can't be read are passed over."""
    with ExitStack() as opened:
        readers = count_readers(sources)
        if sources:
            found = [(read, None) for _, read in list_images(sources, opened)]
        else:
            found, readers = _list_test_images(facts, store, opened)
        chosen = [found[index * len(found) // most] for index in range(most)] if len(found) > most else found
        pool = opened.enter_context(ThreadPoolExecutor(readers))
        read = [image for image in pool.map(partial(_read_checked, facts=facts), chosen) if image]
    if not read:
        raise BadDump(
            f"none of {len(found):,} images can be read, and an export is proved with images. "
            "Give some: --images PATH."
        )
    return read


def _list_test_images(
    facts: ModelFacts, store: Store, opened: ExitStack
) -> tuple[list[tuple[Callable[[], bytes], str]], int | None]:
    """The images that the model was tested on, in the dump of the newest version of its split, and its readers."""
    split = store.read("splits", facts.split, Split)
    version = next((one for one in read_registry(store).versions[::-1] if one.split == facts.split), None)
    if split is None or version is None:
        raise BadDump(
            f"the store at {store.address} does not know the images that the model was tested on. "
            "Give others to prove the export with: --images PATH."
        )
    path = parse_location(version.settings["dump"]["path"])
    try:
        dump = opened.enter_context(open_dump(path))
    except BadDump as error:
        raise BadDump(
            f"the dump that the model was tested on can't be opened: {error} "
            "Give other images to prove the export with: --images PATH."
        ) from None

    def read(name: str, sha256: str) -> bytes:
        data = dump.read(name)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BadImage("its bytes are others than those that were tested on")
        return data

    return [(partial(read, row.path, row.sha256), row.label) for row in split.test], dump.readers


def _read_checked(found: tuple[Callable[[], bytes], str | None], facts: ModelFacts) -> CheckedImage | None:
    read, label = found
    try:
        data = read()
        pixels = read_image(
            data, facts.image_size_pixels, facts.resize_filter, facts.resize_fit, facts.colour
        )
    except BadImage:
        return None
    return CheckedImage(data=data, pixels=pixels, label=label)


def _count_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
