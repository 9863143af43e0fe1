"""What people write: the settings of a run, checked before anything starts.

A recipe (`recipes/*.yaml`) fills every section; what a user gives on top wins, key by key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from thaw.architectures import ARCHITECTURES, GREY_PREPROCESSING, Preprocessing
from thaw.location import Location
from thaw.networks import find_smallest_side
from thaw.recipe import list_recipes, overlay, read_recipe
from thaw.section import RecipeSection, Section, build_section
from thaw.training_config import (
    CalibrationConfig,
    EnsembleConfig,
    GateConfig,
    HeadConfig,
    OptimizerConfig,
    PhaseConfig,
    PhaseOptimizerConfig,
    SearchConfig,
    TrainingConfig,
    Views,
)

__all__ = [
    "NO_BACKBONE",
    "WEIGHTS",
    "AugmentationConfig",
    "BackboneConfig",
    "CalibrationConfig",
    "DumpConfig",
    "DuplicatesConfig",
    "EnsembleConfig",
    "GateConfig",
    "HeadConfig",
    "Layout",
    "OptimizerConfig",
    "PhaseConfig",
    "PhaseOptimizerConfig",
    "PromotionConfig",
    "SearchConfig",
    "Section",
    "SplitConfig",
    "TrainConfig",
    "TrainingConfig",
    "Views",
    "build_config",
    "build_section",
]

WEIGHTS = ("imagenet", "drawings", "random")
# A backbone of no layers: nothing is frozen, and the head is the whole network.
NO_BACKBONE = "none"

BackboneName = Literal[(NO_BACKBONE, *ARCHITECTURES)]
Layout = Literal["auto", "flat", "class_folders", "ready_splits"]


class DumpConfig(Section):
    """Where the labelled images are."""

    path: Location = Field(
        description="A zip archive, a folder or a NumPy archive of labelled images; a path or a URL."
    )
    layout: Layout = Field(
        "auto",
        description="flat: cat.123.jpg; class_folders: cats/1.jpg; ready_splits: train/cats/1.jpg "
        "with test/ or validation/ beside it; auto finds out.",
    )
    max_quarantine_fraction: float = Field(
        0.05, ge=0, le=1, description="Fail when more than this share of a class can't be used."
    )


class DuplicatesConfig(RecipeSection):
    """Which images count as the same one, and what that means for the split."""

    placement: Literal["together", "alone"] = Field(
        "together",
        description="together: near-identical images (resized, recompressed, slightly cropped, mirrored) are looked "
        "for and land on one side; alone: each image is placed by itself.",
    )
    distance_bits: int = Field(
        16,
        ge=0,
        le=32,
        description="How many of 128 bits the hashes of two images may differ in: 16 finds nearly all copies, 20 "
        "all of them and a few that are none.",
    )
    smallest_side_pixels: int = Field(
        64, ge=8, le=1024, description="Smaller images are not looked at: their hashes can't tell them apart."
    )


class SplitConfig(RecipeSection):
    """Which images train, validate and test."""

    strategy: Literal["index", "hash", "directory"] = Field(
        "index",
        description="index: the first images of each class by number; hash: by content, so that an image "
        "never changes side when the dump grows; directory: the dump's own folders.",
    )
    train: int | float = Field(1000, gt=0, description="Images of each class, or a fraction below 1.")
    validation: int | float = Field(500, gt=0, description="Images of each class, or a fraction below 1.")
    test: int | float = Field(500, gt=0, description="Images of each class, or a fraction below 1.")
    seed: int = Field(0, ge=0, description="Changes which side the hash strategy gives an image.")

    @model_validator(mode="after")
    def _counts_fit_the_strategy(self) -> "SplitConfig":
        shares = (self.train, self.validation, self.test)
        fractions = [share for share in shares if 0 < share < 1]
        if fractions and any(share >= 1 for share in shares):
            raise ValueError(f"give three counts or three fractions, not both. Received: {shares}")
        if fractions and sum(fractions) > 1 + 1e-9:
            raise ValueError(f"the fractions add up to more than 1. Received: {shares}")
        if self.strategy == "hash" and not fractions:
            raise ValueError(f"strategy 'hash' takes fractions such as 0.7, 0.15, 0.15. Received: {shares}")
        if any(share != int(share) for share in shares if share >= 1):
            raise ValueError(f"counts of images are whole numbers. Received: {shares}")
        return self


class BackboneConfig(RecipeSection):
    """The convolutional base and how images enter it."""

    name: BackboneName = Field(
        "vgg16",
        description="Any of keras.applications; vgg16-mini, a small one pretrained on drawings, for demos and "
        "tests; or none, so that the head is the whole network and learns from pixels.",
    )
    weights: str = Field(
        "imagenet",
        description="imagenet (downloaded once), drawings (vgg16-mini's own), random, or the path of a file.",
    )
    image_size_pixels: int = Field(180, ge=16, le=1024, description="Images are resized to this square.")
    resize_fit: Literal["squash", "crop"] = Field(
        "squash", description="crop cuts the middle square out of an image before it is resized."
    )
    resize_filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="Pillow's filter for resizing."
    )
    colour: Literal["rgb", "grey"] = Field("rgb", description="grey: one channel, without a backbone only.")
    preprocessing: Literal["native"] | Preprocessing = Field(
        "native",
        description="native: what the backbone was trained with; unit: 1/255; signed: -1 to 1; caffe: BGR less "
        "ImageNet's means; torch: ImageNet's mean and deviation; raw: 0 to 255.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the frozen prefix. auto takes bfloat16 for VGG where the hardware multiplies it.",
    )
    storage: Literal["float16", "float32"] = Field("float16", description="Of cached features on disk.")

    @field_validator("weights")
    @classmethod
    def _stand_alone(cls, weights: str) -> str:
        """A file by its whole path: a stage may run in another folder than the one that it was written in."""
        return weights if weights in WEIGHTS else str(Path(weights).expanduser().absolute())

    @model_validator(mode="after")
    def _images_suit_the_backbone(self) -> "BackboneConfig":
        if self.name == NO_BACKBONE:
            if self.colour == "grey" and self.preprocessing not in ("native", *GREY_PREPROCESSING):
                raise ValueError(
                    f"preprocessing of grey images is one of {', '.join(GREY_PREPROCESSING)}. "
                    f"Received: '{self.preprocessing}'"
                )
            return self
        if self.colour == "grey":
            raise ValueError(
                f"{self.name} takes three channels; colour 'grey' needs backbone.name 'none'. Received: 'grey'"
            )
        smallest = ARCHITECTURES[self.name].smallest_side_pixels
        if self.image_size_pixels < smallest:
            raise ValueError(
                f"{self.name} needs image_size_pixels of {smallest} or more. Received: {self.image_size_pixels}"
            )
        return self

    @property
    def channels(self) -> int:
        return 1 if self.colour == "grey" else 3


class AugmentationConfig(RecipeSection):
    """Random views of a training image: one affine transform each, drawn from its own seed."""

    rotation_degrees: float = Field(36.0, ge=0, le=180, description="Rotation, at most this much either way.")
    shift_fraction: float = Field(0.0, ge=0, le=0.9, description="Shift, at most this share of the side.")
    shear_degrees: float = Field(0.0, ge=0, le=60, description="Shear, at most this angle either way.")
    zoom_fraction: float = Field(0.2, ge=0, le=0.9, description="Zoom in or out, at most this share.")
    horizontal_flip: bool | Literal["always"] = Field(
        True, description="Mirror every other view, or always each of them."
    )
    seed: int = Field(0, ge=0, description="Another seed draws other views.")


class TrainConfig(Section):
    """Everything that decides a run. Sections left out come from the recipe, as do keys left out of them."""

    dump: DumpConfig = Field(description="The labelled images.")
    recipe: str = Field(
        "book2-finetune",
        description="Whose settings to start from.",
        json_schema_extra=lambda schema: schema.update(enum=list_recipes()),
    )
    split: SplitConfig = Field(None, description="What to change of the recipe's split.")
    duplicates: DuplicatesConfig = Field(
        None, description="What to change of the recipe's search for near-identical images."
    )
    backbone: BackboneConfig = Field(None, description="What to change of the recipe's backbone.")
    augmentation: AugmentationConfig = Field(None, description="What to change of the recipe's augmentation.")
    head: HeadConfig = Field(None, description="What to change of the recipe's head.")
    search: SearchConfig = Field(None, description="What to change of the recipe's search for a head.")
    gate: GateConfig = Field(None, description="What to change of the recipe's gate.")
    fine_tune: tuple[PhaseConfig, ...] = Field(
        None,
        description="What to change of the recipe's phases of fine-tuning, by their order. A later phase thaws no "
        "less than the one before it, and begins when the gate finds that one converged.",
    )
    ensemble: EnsembleConfig = Field(None, description="What to change of the recipe's ensemble.")
    calibration: CalibrationConfig = Field(None, description="What to change of the recipe's calibration.")

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        name = given.get("recipe", cls.model_fields["recipe"].default)
        blank = {
            section: {} for section in cls.model_fields if section not in ("dump", "recipe", "fine_tune")
        }
        below = overlay({**blank, "fine_tune": []}, read_recipe(name))
        search = given.get("search")
        if isinstance(search, Mapping) and "grid" in search:
            # Of two grids none is what was meant: the one that is given replaces the recipe's.
            below["search"].pop("grid", None)
        return overlay(below, {**given, "recipe": name})

    @field_validator("fine_tune")
    @classmethod
    def _leave_out_empty_phases(cls, phases: tuple[PhaseConfig, ...]) -> tuple[PhaseConfig, ...]:
        return tuple(phase for phase in phases if phase.epochs)

    @model_validator(mode="after")
    def _networks_learn_from_pixels(self) -> "TrainConfig":
        for head in (self.head, *self.search.list_candidates(self.head)):
            self._check_network(head.network)
        return self

    def raise_seeds(self, number: int) -> "TrainConfig":
        """The same settings with seeds of training that are so many higher: features stay as they are."""

        def shift(section: TrainingConfig) -> TrainingConfig:
            return section.model_copy(update={"seed": section.seed + number})

        phases = tuple(shift(phase) for phase in self.fine_tune)
        return self.model_copy(update={"head": shift(self.head), "fine_tune": phases})

    def _check_network(self, network: str) -> None:
        size = self.backbone.image_size_pixels
        if network == "dense":
            return
        if self.backbone.name != NO_BACKBONE:
            raise ValueError(
                f"head.network '{network}' learns from pixels: set backbone.name to 'none', or head.network to "
                f"'dense'. Received: backbone.name '{self.backbone.name}'"
            )
        if size < find_smallest_side(network):
            raise ValueError(
                f"head.network '{network}' needs backbone.image_size_pixels of {find_smallest_side(network)} or "
                f"more. Received: {size}"
            )


class PromotionConfig(Section):
    """When a newly trained model takes the champion's place. Both are measured on the same test images."""

    margin: float = Field(
        0.01,
        ge=0,
        le=0.5,
        description="How much lower its test accuracy may be; the lower end of the paired difference decides.",
    )
    better_by: Literal["log_loss", "accuracy", "nothing"] = Field(
        "log_loss",
        description="What it must be better by, beyond chance. nothing: not being worse is enough.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of both findings, each one-sided.")
    approval: Literal["automatic", "ask"] = Field(
        "automatic", description="ask: a person decides, in the Prefect UI or with `thaw promote`."
    )


def build_config(settings: Mapping[str, Any]) -> TrainConfig:
    """A checked configuration from nested settings, such as `{"dump": {"path": "train.zip"}}`.

    Raises:
        BadConfig: a key is unknown or a value out of bounds; one line per fault, with the nearest valid one.
    """
    return build_section(TrainConfig, settings)
