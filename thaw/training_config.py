"""The settings of training: the head, the gate, and the phases behind it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from thaw.errors import BadConfig
from thaw.networks import NETWORKS
from thaw.recipe import overlay
from thaw.section import RecipeSection, build_section

NetworkName = Literal[("dense", *NETWORKS)]
Views = Annotated[int, Field(ge=0, le=64)] | Literal["fresh"]
_VIEWS = (
    "Augmented views of each image, cached, that epochs cycle through; 0 trains on the image itself; "
    "fresh draws new ones each epoch, and pays for them each epoch."
)


_PENALISED = "those of the head, or of what thaws in a phase."


class OptimizerConfig(RecipeSection):
    """How weights are moved, and how the step size changes on the way."""

    name: Literal["rmsprop", "sgd", "adam"] = Field("rmsprop", description="Keras optimizer.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Step size at the start.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Of sgd and rmsprop.")
    schedule: Literal["constant", "exponential", "cosine", "plateau"] = Field(
        "constant",
        description="exponential: times decay_rate every decay_steps steps; cosine: down to nothing over each "
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
    l1: float = Field(0.0, ge=0, le=1, description="Weight of the absolute penalty on kernels: " + _PENALISED)
    l2: float = Field(0.0, ge=0, le=1, description="Weight of the squared penalty on kernels: " + _PENALISED)
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


class SearchConfig(RecipeSection):
    """Settings of the head to choose between, by cross-validation on the training images' cached features."""

    grid: Mapping[str, Any] = Field(
        default_factory=dict,
        description="Lists of values to try, under the names of the head's settings; each combination is "
        "a candidate. A grid replaces the recipe's; an empty one, {}, searches for nothing.",
    )
    folds: int = Field(5, ge=2, le=20, description="Parts of the training images, each held out once.")

    def list_candidates(self, head: HeadConfig) -> tuple[HeadConfig, ...]:
        """The head with each combination of the grid's values, the first setting's varying slowest.

        Raises:
            BadConfig: a setting has no list of values, or no head can have one of them.
        """
        changes: list[dict[str, Any]] = [{}]
        for path, values in _list_choices(self.grid):
            if path == ("seed",):
                raise BadConfig(
                    "setting 'search.grid.seed': luck is not to be chosen. ensemble.members averages it out."
                )
            changes = [overlay(change, _nest(path, value)) for change in changes for value in values]
        try:
            return tuple(build_section(HeadConfig, overlay(head.model_dump(), change)) for change in changes)
        except BadConfig as error:
            raise BadConfig(f"setting 'search.grid': {error}") from None


class EnsembleConfig(RecipeSection):
    """What the model's probabilities are the mean of."""

    members: int = Field(
        1, ge=1, le=20, description="Networks trained alike, from seeds of their own, that are averaged."
    )
    mirrored: bool = Field(
        False, description="Average also what is made of an image and of its mirror image, at twice the work."
    )


class CalibrationConfig(RecipeSection):
    """Whether the model's probabilities are made to mean what they say."""

    temperature: Literal["fitted", "none"] = Field(
        "fitted",
        description="fitted: the model's logits are divided by one number, the one of the smallest log loss on the "
        "validation images, where those are enough to tell; none: they are left as they were trained.",
    )


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


class PhaseOptimizerConfig(OptimizerConfig):
    """How thawed weights are moved: gently, unless told otherwise."""

    learning_rate: float = Field(1e-5, gt=0, le=10, description="Step size at the start.")


class PhaseConfig(TrainingConfig):
    """One phase of fine-tuning: what thaws, and how it is trained."""

    cut: str | int = Field(
        "block4_pool",
        description="Layers after this one thaw; what comes before stays frozen. A number is the index of the "
        "first layer that thaws; pixels thaws everything.",
    )
    epochs: int = Field(20, ge=0, le=10_000, description="Budget. 0 leaves the phase out.")
    optimizer: PhaseOptimizerConfig = Field(default_factory=PhaseOptimizerConfig)
    patience_epochs: int | None = Field(
        3, ge=1, le=1000, description=TrainingConfig.model_fields["patience_epochs"].description
    )
    depth_factor: float = Field(
        1.0, gt=0, le=1, description="Step size of each stage of the backbone, as a share of that above it."
    )
    precision: Literal["auto", "float32", "mixed_bfloat16"] = Field(
        "auto", description="Of training. auto computes in bfloat16 on a GPU that multiplies it faster."
    )


def _list_choices(
    grid: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[Any]]]:
    """The settings that a grid names, and the values it gives each to try."""
    for name, values in grid.items():
        path = (*place, name)
        if isinstance(values, Mapping):
            yield from _list_choices(values, path)
        elif isinstance(values, list | tuple) and values:
            yield path, list(values)
        else:
            raise BadConfig(
                f"setting 'search.grid.{'.'.join(path)}': takes a list of values to try. Received: {values!r}."
            )


def _nest(path: Sequence[str], value: Any) -> Any:
    return value if not path else {path[0]: _nest(path[1:], value)}
