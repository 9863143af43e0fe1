"""Several recipes on one split and one test set: what is run, what each gives for its cost, and which differ."""

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from thaw.config import DumpConfig, Section, TrainConfig, build_config
from thaw.cost import ModelCost, Pass, Spent, account_seconds, average_spent, count_decodes, measure_model
from thaw.errors import BadConfig, NoSuchModel, ThawError, UnlikeSplits
from thaw.promotion import Comparison, compare
from thaw.recipe import overlay
from thaw.records import SIDES, Evaluation, Made, Metrics, Outcome, Record, Side, Split, digest_of
from thaw.store import Store

State = Literal["completed", "gate_closed", "failed"]
# What recipes can't have of their own.
_COMMON = {"dump", "recipe", "split", "duplicates"}


class RecipeChoice(Section):
    """One recipe to compare, with settings of its own."""

    recipe: str = Field(description="Whose settings to start from.")
    settings: dict[str, Any] = Field(
        {}, description="What to change of this recipe alone, in sections such as {head: {dropout: 0.3}}."
    )

    @property
    def name(self) -> str:
        """The recipe, and what was changed of it alone: `demo, head.dropout=0.3`."""
        return ", ".join((self.recipe, *_list_settings(self.settings)))


class CompareConfig(Section):
    """Which recipes are compared, and on what."""

    dump: DumpConfig = Field(description="The labelled images.")
    recipes: tuple[RecipeChoice, ...] = Field(
        min_length=1, description="What is compared; the first one's split holds for all."
    )
    settings: dict[str, Any] = Field(
        {}, description="What to change of every recipe, in sections such as {split: {train: 500}}."
    )
    seeds: int = Field(
        1, ge=1, le=100, description="Runs of each recipe, which differ in the seed of training alone."
    )


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of a comparison: the recipe's name in it, the seed of training, and all settings."""

    name: str
    seed: int
    config: TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunResult(Record):
    """What one run came to, and what it cost.

    `reason` says why there is no model; `run` names the run's folder in the store, None where it failed.
    `images_decoded` are those of this very run, fresh views included; None where they can't be told.
    """

    name: str
    recipe: str
    seed: int
    state: State
    reason: str = ""
    run: str | None = None
    split: str | None = None
    val_accuracy: float | None = None
    metrics: Metrics | None = None
    model: ModelCost | None = None
    extraction: Spent | None = None
    training: Spent | None = None
    images_decoded: int | None = None


@dataclass(frozen=True, kw_only=True)
class Figure(Record):
    """A mean over the runs of a recipe, and their standard deviation where there are several."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True, kw_only=True)
class RecipeResult(Record):
    """One row of a comparison: the figures of a recipe over its runs, None where no run has them.

    `accuracy_interval` is Wilson's at 95 % for the mean accuracy: what the test images leave open, not what
    the seeds do. Seconds are means over runs, as far as the store knows them; decoded images are added up.
    """

    name: str
    state: State
    reason: str
    runs: tuple[RunResult, ...]
    accuracy: Figure | None
    accuracy_interval: tuple[float, float] | None
    log_loss: Figure | None
    auc: Figure | None
    val_accuracy: Figure | None
    model: ModelCost | None
    extraction: Spent | None
    training: Spent | None
    images_decoded: int | None


@dataclass(frozen=True, kw_only=True)
class Pair(Record):
    """Two neighbours of a table, image by image: differences are the better one's figure less the other's.

    Of recipes with several runs, the first for which both have a model are compared; `seed` is the better one's.
    """

    better: str
    worse: str
    seed: int
    comparison: Comparison


@dataclass(frozen=True, kw_only=True)
class ComparisonTable(Record):
    """Recipes by falling test accuracy, those without a model last; and each pair of neighbours."""

    dump: str
    split: str
    classes: tuple[str, ...]
    images: Mapping[Side, int]
    seeds: int
    recipes: tuple[RecipeResult, ...]
    pairs: tuple[Pair, ...]

    @property
    def address(self) -> str:
        """Names what was compared and what it came to, whatever of it was found cached."""
        runs = [run for recipe in self.recipes for run in recipe.runs]
        return digest_of(
            "comparison", self.split, [(run.name, run.seed, run.state, run.run, run.reason) for run in runs]
        )

    @property
    def tested(self) -> tuple[RecipeResult, ...]:
        """The recipes that have a model, the best one first."""
        return tuple(recipe for recipe in self.recipes if recipe.accuracy)


def list_runs(config: CompareConfig) -> tuple[PlannedRun, ...]:
    """Every run of a comparison, with the split of the first recipe. A recipe given twice is run once.

    Raises:
        BadConfig: a setting is wrong, or changes the split of one recipe alone.
    """
    planned: list[PlannedRun] = []
    common: dict[str, Any] = {}
    for choice in {choice.name: choice for choice in config.recipes}.values():
        for section in _COMMON & choice.settings.keys():
            raise BadConfig(
                f"setting '{section}' of {choice.name}: recipes are compared on one dump and one split. Change it for "
                "all of them, with --set or under 'settings'."
            )
        given = overlay(overlay(config.settings, choice.settings), common)
        built = build_config({**given, "dump": config.dump, "recipe": choice.recipe})
        common = {"split": built.split.model_dump(), "duplicates": built.duplicates.model_dump()}
        for number in range(config.seeds):
            seeded = built.raise_seeds(number * built.ensemble.members)
            planned.append(PlannedRun(name=choice.name, seed=seeded.head.seed, config=seeded))
    return tuple(planned)


def describe_run(
    planned: PlannedRun, outcome: Outcome, passes: Mapping[str, Pass] | None, split: Split, store: Store
) -> Made[RunResult]:
    """The figures and the cost of a run that came to an end.

    Args:
        passes: what extraction had to do, as `plan_passes` found it before the run; None where nobody looked.
    """
    extraction, training = account_seconds(planned.config, outcome, passes, split, store)
    model = None if outcome.withheld else measure_model(outcome, store)
    result = RunResult(
        name=planned.name,
        recipe=planned.config.recipe,
        seed=planned.seed,
        state="gate_closed" if outcome.withheld else "completed",
        reason=outcome.verdict.reason if outcome.withheld else "",
        run=outcome.run,
        split=outcome.split,
        val_accuracy=outcome.val_accuracy,
        metrics=outcome.metrics,
        model=model and model.value,
        extraction=extraction,
        training=training,
        images_decoded=count_decodes(planned.config, outcome, passes, split, store),
    )
    note = model.note if model else f"gate closed: {result.reason}"
    return Made(value=result, reused=bool(model and model.reused), note=note)


def describe_failure(planned: PlannedRun, error: BaseException) -> RunResult:
    """The row of a run that an error ended."""
    reason = str(error) if isinstance(error, ThawError) else f"unforeseen {type(error).__name__}: {error}"
    return RunResult(
        name=planned.name,
        recipe=planned.config.recipe,
        seed=planned.seed,
        state="failed",
        reason=" ".join(reason.split()),
    )


def build_table(dump: str, split: Split, runs: Sequence[RunResult], store: Store) -> ComparisonTable:
    """Order recipes by what they reached on the test images, and test each pair of neighbours.

    Raises:
        UnlikeSplits: a run was made on another split.
        NoSuchModel: the store has lost a run's evaluation.
    """
    digest = split.digest
    for run in runs:
        if run.split not in (None, digest):
            raise UnlikeSplits(
                f"{run.name} was run on split {run.split}, the comparison is of split {digest}. "
                "Recipes can be compared on one split only; run the comparison again."
            )
    names = dict.fromkeys(run.name for run in runs)
    recipes = order_recipes([summarise_runs([run for run in runs if run.name == name]) for name in names])
    return ComparisonTable(
        dump=dump,
        split=digest,
        classes=split.classes,
        images={side: len(split.rows(side)) for side in SIDES},
        seeds=max(len(recipe.runs) for recipe in recipes),
        recipes=recipes,
        pairs=tuple(_compare_neighbours(recipes, store)),
    )


def order_recipes(recipes: Sequence[RecipeResult]) -> tuple[RecipeResult, ...]:
    """By falling mean accuracy, equals by log loss; then closed gates, then failures, in the order given."""

    def rank(recipe: RecipeResult) -> tuple[float, ...]:
        if recipe.accuracy:
            return (0, -recipe.accuracy.mean, recipe.log_loss.mean)
        return (1, recipe.state == "failed")

    return tuple(sorted(recipes, key=rank))


def summarise_runs(runs: Sequence[RunResult]) -> RecipeResult:
    """The row of a recipe, from its runs with different seeds."""
    tested = [run for run in runs if run.metrics]
    without = [run for run in runs if not run.metrics]
    reason = without[0].reason if without else ""
    if without and len(runs) > 1:
        reason = f"{len(without)} of {len(runs)} runs have no model: {reason}"
    failed = any(run.state == "failed" for run in runs)
    accuracy = _average(run.metrics.accuracy for run in tested)
    return RecipeResult(
        name=runs[0].name,
        state="completed" if tested else "failed" if failed else "gate_closed",
        reason=reason,
        runs=tuple(runs),
        accuracy=accuracy,
        accuracy_interval=_bound_accuracy(accuracy.mean, tested[0].metrics.images) if accuracy else None,
        log_loss=_average(run.metrics.log_loss for run in tested),
        auc=_average(run.metrics.auc for run in tested),
        val_accuracy=_average(run.val_accuracy for run in runs),
        model=tested[0].model if tested else None,
        extraction=average_spent([run.extraction for run in runs if run.extraction]),
        training=average_spent([run.training for run in runs if run.training]),
        images_decoded=_add_decodes(runs),
    )


def _list_settings(settings: Mapping[str, Any], section: str = "") -> Iterator[str]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _list_settings(value, f"{section}{key}.")
        else:
            yield f"{section}{key}={value}"


def _average(values: Iterable[float | None]) -> Figure | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    deviation = statistics.stdev(known) if len(known) > 1 else None
    return Figure(mean=statistics.fmean(known), deviation=deviation)


def _add_decodes(runs: Sequence[RunResult]) -> int | None:
    """What all runs decoded that came to an end; None where one of them can't tell."""
    counts = [run.images_decoded for run in runs if run.run]
    return None if not counts or None in counts else sum(counts)


def _bound_accuracy(accuracy: float, images: int) -> tuple[float, float]:
    """Wilson's interval at 95 %, of whole images right: of several runs' mean, the nearest number of them."""
    from scipy.stats import binomtest

    interval = binomtest(round(accuracy * images), images).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _compare_neighbours(recipes: Sequence[RecipeResult], store: Store) -> Iterator[Pair]:
    tested = [recipe for recipe in recipes if recipe.accuracy]
    for better, worse in itertools.pairwise(tested):
        ours, theirs = (
            {number: run for number, run in enumerate(recipe.runs) if run.metrics}
            for recipe in (better, worse)
        )
        for number in sorted(ours.keys() & theirs.keys())[:1]:
            comparison = compare(*(_read_evaluation(runs[number].run, store) for runs in (theirs, ours)))
            yield Pair(better=better.name, worse=worse.name, seed=ours[number].seed, comparison=comparison)


def _read_evaluation(run: str, store: Store) -> Evaluation:
    found = store.read_file(store.folder("runs", run, "evaluation.json"), Evaluation)
    if found is None:
        raise NoSuchModel(
            f"the store at {store.address} has lost evaluation.json of run {run}. Run the comparison again."
        )
    return found
