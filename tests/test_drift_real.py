"""Drift on real images: another part of the dump is quiet; blurred, inverted or of another mix it is not."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageFilter, ImageOps

from tests.drift_samples import save_model_of
from tests.salted import write_zip
from thaw.backbone import load_backbone
from thaw.batch import Labelled, label_images
from thaw.config import build_config
from thaw.dump import scan_dump
from thaw.features import cache_features
from thaw.head import train_head
from thaw.split import publish_split
from thaw.store import Store

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(900)]

# Of each class the first images are learned from, and others are labelled.
LEARNED, OTHERS = range(300), range(500, 700)


class Pets:
    """A head on a part of Kaggle's dump at its own resolution, and what it makes of other images."""

    def __init__(self, shared: Path, folder: Path):
        self.folder, self.store = folder, Store(folder / "store")
        self.dump = zipfile.ZipFile(shared / "data" / "dogs-vs-cats-original.zip")
        learned = {f"train/{name}": self.dump.read(f"train/{name}") for name in name_images(LEARNED, LEARNED)}
        config = build_config(
            {
                "dump": {"path": write_zip(folder / "learned.zip", learned)},
                "recipe": "book2-bottleneck",
                "split": {"train": 200, "validation": 50, "test": 50},
                "head": {"epochs": 5},
                "backbone": {
                    "weights": str(shared / "weights" / "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
                    "image_size_pixels": 150,
                },
            }
        )
        backbone = load_backbone(config.backbone, self.store).value
        split = publish_split(scan_dump(config.dump, self.store).value, config.split, self.store).value
        given = (split, config.dump, backbone, config.backbone)
        features = cache_features(*given, "block5_pool", self.store).value
        head = train_head(features, config.head, config.gate, self.store, 1).value
        save_model_of(head, backbone, config.backbone, split.classes, self.store, folder / "model.keras")

    def label(
        self, name: str, cats: range, dogs: range, change: Callable[[Image.Image], Image.Image] | None = None
    ) -> Labelled:
        images = {}
        for image in name_images(cats, dogs):
            images[image] = self.dump.read(f"train/{image}")
            if change:
                with Image.open(io.BytesIO(images[image])) as opened:
                    changed = io.BytesIO()
                    change(opened.convert("RGB")).save(changed, "JPEG", quality=92)
                images[image] = changed.getvalue()
        batch = write_zip(self.folder / f"{name}.zip", images)
        file = self.folder / f"{name}.parquet"
        return label_images([batch], str(self.folder / "model.keras"), file, self.store).value


def name_images(cats: range, dogs: range) -> list[str]:
    return [*(f"cat.{number}.jpg" for number in cats), *(f"dog.{number}.jpg" for number in dogs)]


@pytest.fixture(scope="module")
def pets(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Pets:
    return Pets(shared, tmp_path_factory.mktemp("pets"))


def test_another_part_of_the_dump_is_quiet(pets: Pets):
    drift = pets.label("others", OTHERS[:100], OTHERS[:100]).drift
    assert (drift.state, drift.tested_images, drift.components_tested) == ("quiet", 200, 25)
    assert (drift.reference_side, drift.reference_images) == ("train", 300)


@pytest.mark.parametrize(
    "change",
    [
        # Two pixels of the network's own 150.
        lambda image: image.filter(ImageFilter.GaussianBlur(2 * max(image.size) / 150)),
        ImageOps.invert,
    ],
    ids=["blurred", "inverted"],
)
def test_the_same_images_blurred_or_inverted_are_an_alarm(pets: Pets, change):
    drift = pets.label("changed", OTHERS[:30], OTHERS[:30], change).drift
    assert drift.state == "alarm", drift


def test_four_dogs_to_a_cat_are_an_alarm_and_the_shares_say_so(pets: Pets):
    drift = pets.label("mixed", OTHERS[:40], OTHERS[:160]).drift
    assert drift.state == "alarm", drift
    assert drift.classes[0].trained == 0.5
    assert abs(drift.classes[0].called - 0.5) > 0.2
