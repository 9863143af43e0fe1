"""What people write: the settings of a run, checked before anything starts.

A recipe (`recipes/*.yaml`) fills every section; what a user gives on top wins, key by key.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from thaw.architectures import ARCHITECTURES, Preprocessing
from thaw.errors import BadConfig
from thaw.faults import explain_fault
from thaw.networks import NETWORKS
from thaw.recipe import list_recipes, overlay, read_recipe

SomeSection = TypeVar("SomeSection", bound="Section")
WEIGHTS = ("imagenet", "drawings", "random")
# A backbone of no layers: nothing is frozen, and the head is the whole network.
NO_BACKBONE = "none"

BackboneName = Literal[(NO_BACKBONE, *ARCHITECTURES)]
NetworkName = Literal[("dense", *NETWORKS)]
Views = Annotated[int, Field(ge=0, le=64)] | Literal["fresh"]
_VIEWS = (
    "Augmented views of each image, cached, that epochs cycle through; 0 trains on the image itself; "
    "fresh draws new ones each epoch, and pays for them each epoch."
)

Layout = Literal["auto", "flat", "class_folders", "ready_splits"]


class Section(BaseModel):
    """A part of the configuration: frozen, and unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        model_title_generator=lambda section: section.__name__.removesuffix("Config"),
    )


def _hide_defaults(schema: dict[str, Any]) -> None:
    """Leave the fields of a form empty: what a form shows it sends, and the recipe would never be asked."""
    for field in schema["properties"].values():
        field.pop("default", None)


class RecipeSection(Section):
    """A section that a recipe fills; what the recipe leaves out has the default here."""

    model_config = ConfigDict(json_schema_extra=_hide_defaults)


class DumpConfig(Section):
    """Where the labelled images are."""

    path: Path = Field(description="A zip archive or a folder of labelled images.")
    layout: Layout = Field(
        "auto",
        description="flat: cat.123.jpg; class_folders: cats/1.jpg; ready_splits: train/cats/1.jpg "
        "with test/ or validation/ beside it; auto finds out.",
    )
    max_quarantine_fraction: float = Field(
        0.05, ge=0, le=1, description="Fail when more than this share of a class can't be used."
    )

    @field_validator("path")
    @classmethod
    def _stand_alone(cls, path: Path) -> Path:
        """A stage may run in another folder than the one that the path was written in."""
        return path.expanduser().absolute()


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
        """A file by its whole path, as in `DumpConfig`."""
        return weights if weights in WEIGHTS else str(Path(weights).expanduser().absolute())

    @model_validator(mode="after")
    def _grey_suits_the_network(self) -> "BackboneConfig":
        if self.colour == "grey" and self.name != NO_BACKBONE:
            raise ValueError(
                f"{self.name} takes three channels; colour 'grey' needs backbone.name 'none'. Received: 'grey'"
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
    horizontal_flip: bool = Field(True, description="Mirror every other view.")
    seed: int = Field(0, ge=0, description="Another seed draws other views.")


class OptimizerConfig(RecipeSection):
    """How weights are moved, and how the step size changes on the way."""

    name: Literal["rmsprop", "sgd", "adam"] = Field("rmsprop", description="Keras optimizer.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Step size at the start.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of sgd and rmsprop.")
    schedule: Literal["constant", "exponential", "cosine", "plateau"] = Field(
        "constant",
        description="exponential: times decay_rate every decay_steps steps; cosine: down to nothing over the "
        "budget; plateau: times decay_rate after plateau_epochs without a better validation.",
    )
    decay_rate: float = Field(0.5, gt=0, lt=1, description="Factor of the schedules exponential and plateau.")
    decay_steps: int = Field(1000, ge=1, description="Steps of schedule exponential, taken as stairs.")
    plateau_epochs: int = Field(5, ge=1, le=1000, description="Patience of schedule plateau.")


class TrainingConfig(RecipeSection):
    """What training a head and training what thaws behind it have in common."""

    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    batch_size: int = Field(32, ge=1, le=4096, description="Images per step.")
    views: Views = Field(0, description=_VIEWS)
    patience_epochs: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Stop after so many epochs without a better validation; null never stops for that.",
    )
    monitor: Literal["val_loss", "val_accuracy"] = Field(
        "val_loss", description="What makes a validation better. The best epoch's weights are kept."
    )
    min_improvement: float = Field(
        0.0, ge=0, le=1, description="Of what is monitored: less than this does not reset the patience."
    )
    l1: float = Field(0.0, ge=0, le=1, description="Weight of the absolute penalty on kernels that train.")
    l2: float = Field(0.0, ge=0, le=1, description="Weight of the squared penalty on kernels that train.")
    seed: int = Field(
        0, ge=0, description="Of the order of images, of dropout, and of a head's first weights."
    )


class HeadConfig(TrainingConfig):
    """The classifier on the backbone's features; without a backbone, the whole network."""

    network: NetworkName = Field(
        "dense", description="dense, or the convolutions of a published network that learns from pixels."
    )
    pooling: Literal["flatten", "average"] = Field(
        "flatten", description="How maps become one row of numbers; average takes the mean of each map."
    )
    dense_units: tuple[Annotated[int, Field(ge=1, le=8192)], ...] = Field(
        (256,), description="Units of each hidden dense layer; a single number for one, [] for none."
    )
    activation: Literal["relu", "linear", "tanh"] = Field("relu", description="Of the hidden dense layers.")
    input_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share dropped of what enters the dense layers."
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Share dropped after each hidden dense layer.")
    epochs: int = Field(50, ge=1, le=10_000, description="Budget; the gate may grant more of the same size.")
    stop: Literal["when_converged", "at_budget"] = Field(
        "when_converged", description="when_converged ends training once the gate's verdict is settled."
    )

    @field_validator("dense_units", mode="before")
    @classmethod
    def _one_layer(cls, units: Any) -> Any:
        return (units,) if isinstance(units, int) else units


class GateConfig(RecipeSection):
    """When a head counts as converged, so that the backbone may thaw."""

    patience_epochs: int = Field(5, ge=2, le=1000, description="Epochs without improvement beyond noise.")
    min_improvement_nats: float = Field(
        0.002, ge=0, le=1, description="Validation loss must fall by more than this in that time to count."
    )
    noise_multiplier: float = Field(
        1.0, ge=0, le=10, description="Times the standard deviation of val loss about its own trend."
    )
    max_extensions: int = Field(2, ge=0, le=100, description="Further budgets for a head still improving.")
    override_gate: bool = Field(
        False, description="Fine-tune even from an unconverged head. The report and the model say so."
    )


class PhaseConfig(TrainingConfig):
    """One phase of fine-tuning: what thaws, and how it is trained."""

    cut: str | int = Field(
        "block4_pool",
        description="Layers after this one thaw; what comes before stays frozen. A number is the index of the "
        "first layer that thaws; pixels thaws everything.",
    )
    epochs: int = Field(20, ge=0, le=10_000, description="Budget. 0 leaves the phase out.")
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    patience_epochs: int | None = Field(
        3, ge=1, le=1000, description=TrainingConfig.model_fields["patience_epochs"].description
    )
    depth_factor: float = Field(
        1.0, gt=0, le=1, description="Step size of each stage of the backbone, as a share of that above it."
    )
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto", description="Of training. auto computes in bfloat16 on a GPU that multiplies it faster."
    )


class TrainConfig(Section):
    """Everything that decides a run. Sections left out come from the recipe, as do keys left out of them."""

    dump: DumpConfig = Field(description="The labelled images.")
    recipe: str = Field(
        "book2-finetune",
        description="Whose settings to start from.",
        json_schema_extra=lambda schema: schema.update(enum=list_recipes()),
    )
    split: SplitConfig = Field(None, description="What to change of the recipe's split.")
    backbone: BackboneConfig = Field(None, description="What to change of the recipe's backbone.")
    augmentation: AugmentationConfig = Field(None, description="What to change of the recipe's augmentation.")
    head: HeadConfig = Field(None, description="What to change of the recipe's head.")
    gate: GateConfig = Field(None, description="What to change of the recipe's gate.")
    fine_tune: tuple[PhaseConfig, ...] = Field(
        None,
        description="What to change of the recipe's phases of fine-tuning, by their order. A later phase thaws no "
        "less than the one before it, and begins when the gate finds that one converged.",
    )

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
        return overlay(below, {**given, "recipe": name})

    @field_validator("fine_tune")
    @classmethod
    def _leave_out_empty_phases(cls, phases: tuple[PhaseConfig, ...]) -> tuple[PhaseConfig, ...]:
        return tuple(phase for phase in phases if phase.epochs)

    @model_validator(mode="after")
    def _networks_learn_from_pixels(self) -> "TrainConfig":
        if self.head.network != "dense" and self.backbone.name != NO_BACKBONE:
            raise ValueError(
                f"head.network '{self.head.network}' learns from pixels: set backbone.name to 'none', "
                f"or head.network to 'dense'. Received: backbone.name '{self.backbone.name}'"
            )
        return self


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


def build_section(section: type[SomeSection], settings: Mapping[str, Any]) -> SomeSection:
    """One checked section of the configuration.

    Raises:
        BadConfig: as `build_config` does.
    """
    try:
        return section.model_validate(settings)
    except ValidationError as error:
        raise BadConfig("\n".join(explain_fault(section, fault) for fault in error.errors())) from None
