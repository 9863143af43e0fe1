"""What people write: the settings of a run, checked before anything starts.

A recipe (`recipes/*.yaml`) fills every section; what a user gives on top wins, key by key.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from thaw.errors import BadConfig

# How far from a bound, as pydantic names it, the nearest valid value lies.
_BOUNDS = {"ge": "", "le": "", "gt": "just above ", "lt": "just below "}

SomeSection = TypeVar("SomeSection", bound="Section")
WEIGHTS = ("imagenet", "drawings", "random")
RECIPES = Path(__file__).resolve().parent.parent / "recipes"

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

    name: Literal["vgg16", "vgg16-mini"] = Field(
        "vgg16", description="vgg16-mini is a small one, pretrained on drawings, for demos and tests."
    )
    weights: str = Field(
        "imagenet",
        description="imagenet (downloaded once), drawings (vgg16-mini's own), random, or the path of a file.",
    )
    image_size_pixels: int = Field(180, ge=32, le=1024, description="Images are resized to this square.")
    resize_filter: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        "bilinear", description="Pillow's filter for resizing."
    )
    preprocessing: Literal["native", "caffe", "unit"] = Field(
        "native",
        description="unit: 1/255; caffe: BGR less ImageNet's means; native: what the backbone was trained with.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Of the frozen prefix. auto takes bfloat16 where the hardware multiplies it.",
    )
    storage: Literal["float16", "float32"] = Field("float16", description="Of cached features on disk.")

    @field_validator("weights")
    @classmethod
    def _stand_alone(cls, weights: str) -> str:
        """A file by its whole path, as in `DumpConfig`."""
        return weights if weights in WEIGHTS else str(Path(weights).expanduser().absolute())


class AugmentationConfig(RecipeSection):
    """Random views of a training image: one affine transform each, drawn from its own seed."""

    rotation_degrees: float = Field(36.0, ge=0, le=180, description="Rotation, at most this much either way.")
    shift_fraction: float = Field(0.0, ge=0, le=0.9, description="Shift, at most this share of the side.")
    shear_degrees: float = Field(0.0, ge=0, le=60, description="Shear, at most this angle either way.")
    zoom_fraction: float = Field(0.2, ge=0, le=0.9, description="Zoom in or out, at most this share.")
    horizontal_flip: bool = Field(True, description="Mirror every other view.")
    seed: int = Field(0, ge=0, description="Another seed draws other views.")


class OptimizerConfig(RecipeSection):
    """How weights are moved."""

    name: Literal["rmsprop", "sgd", "adam"] = Field("rmsprop", description="Keras optimizer.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Step size.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of sgd and rmsprop.")


class HeadConfig(RecipeSection):
    """The dense classifier trained on bottleneck features."""

    dense_units: int = Field(256, ge=1, le=8192, description="Units of the dense layer.")
    activation: Literal["relu", "linear"] = Field("relu", description="Of the dense layer.")
    dropout: float = Field(0.5, ge=0, lt=1, description="Share of dense units dropped while training.")
    l2: float = Field(0.0, ge=0, le=1, description="Weight of the squared penalty on dense kernels.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    batch_size: int = Field(32, ge=1, le=4096, description="Images per step.")
    views: Views = Field(0, description=_VIEWS)
    epochs: int = Field(50, ge=1, le=10_000, description="Budget; the gate may grant more of the same size.")
    stop: Literal["when_converged", "at_budget"] = Field(
        "when_converged", description="when_converged ends training once the gate's verdict is settled."
    )
    seed: int = Field(0, ge=0, description="Of initial weights, order of images and dropout.")


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


class FineTuneConfig(RecipeSection):
    """What thaws behind a converged head, and how it is trained."""

    cut: str = Field("block4_pool", description="Layers after this one thaw; what comes before stays frozen.")
    epochs: int = Field(20, ge=0, le=10_000, description="Budget. 0 leaves the backbone frozen.")
    optimizer: OptimizerConfig = Field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    batch_size: int = Field(32, ge=1, le=4096, description="Images per step.")
    patience_epochs: int | None = Field(
        3,
        ge=1,
        le=1000,
        description="Stop after so many epochs without a better val loss; null never stops early.",
    )
    views: Views = Field(0, description=_VIEWS)
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto", description="Of training. auto computes in bfloat16 on a GPU that multiplies it faster."
    )
    seed: int = Field(0, ge=0, description="Of the order of images and of dropout.")


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
    fine_tune: FineTuneConfig = Field(None, description="What to change of the recipe's fine-tuning.")

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        name = given.get("recipe", cls.model_fields["recipe"].default)
        blank = {section: {} for section in cls.model_fields if section not in ("dump", "recipe")}
        return _overlay(_overlay(blank, read_recipe(name)), {**given, "recipe": name})


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


def list_recipes() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of `recipes/<name>.yaml`, as written there.

    Raises:
        BadConfig: no such recipe; the message names the nearest one.
    """
    known = list_recipes()
    if name in known:
        return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    raise BadConfig(f"no recipe '{name}'.{_nearest(str(name), known)} Recipes: {', '.join(known)}.")


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
        raise BadConfig("\n".join(_explain(section, fault) for fault in error.errors())) from None


def _overlay(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(exclude_unset=True)
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _overlay(merged[key], value)
        elif value is not None or key not in merged or not isinstance(merged[key], Mapping):
            merged[key] = value
    return merged


def _explain(section: type[Section], fault: Mapping[str, Any]) -> str:
    place = [str(part) for part in fault["loc"] if part not in ("int", "float")]
    where, kind, limits = ".".join(place), fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown setting '{where}'.{_nearest(place[-1], _keys_at(section, place[:-1]))}"
    if kind == "missing":
        return f"setting '{where}' is missing: {_field_at(section, place).description}"
    message = f"setting '{where}': {fault['msg'].removeprefix('Value error, ')}"
    if kind == "value_error":  # from a section's own rule, which says what it received
        return message
    hint = next(
        (f" The nearest valid value is {_BOUNDS[key]}{limits[key]}." for key in _BOUNDS if key in limits), ""
    )
    if kind == "literal_error":
        hint = _nearest(str(fault["input"]), re.findall(r"'([^']+)'", limits["expected"]))
    return f"{message}. Received: {fault['input']!r}.{hint}"


def _field_at(section: type[Section], place: list[str]) -> Any:
    model: Any = section
    for part in place[:-1]:
        model = model.model_fields[part].annotation
    return model.model_fields[place[-1]]


def _keys_at(section: type[Section], place: list[str]) -> list[str]:
    model: Any = section
    for part in place:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _nearest(word: str, known: list[str]) -> str:
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f" Did you mean '{match[0]}'?" if match else f" Valid here: {', '.join(known)}."
