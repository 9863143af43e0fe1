"""Tasks at the end of a run: test rows scored, report and model published, the champion chosen."""

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.screen import announce, show
from tasks.sharing import Sharing
from tasks.stage import stage
from thaw import evaluate as evaluation
from thaw import gradcam, promotion, registry, release
from thaw.config import TrainConfig
from thaw.evaluate import EvaluationRequest
from thaw.gradcam import HeatMaps
from thaw.portions import Portion, PortionPlan, PortionReport, PortionSize
from thaw.promotion import Comparison, Decision
from thaw.records import Checkpoint, Evaluation, FeatureSet, Made, Outcome
from thaw.registry import Registry, Version
from thaw.report import RunSummary
from thaw.report.contest import list_comparison
from thaw.report.evaluation import list_metrics
from thaw.report.summary import say_stage
from thaw.store import Store


def _show_metrics(made: Evaluation) -> None:
    columns, figures = list_metrics(made)
    rows = [dict(zip(("", *columns), row, strict=True)) for row in figures]
    title = f"{say_stage(made)}, on {made.metrics.images:,} test images"
    show(create_table_artifact, rows, key=f"metrics-{made.stage.replace('_', '-')}", description=title)


@stage("{request.title}", wants_gpu=True)
def begin_evaluation(
    request: EvaluationRequest, size: PortionSize, store: Store
) -> Made[PortionPlan[EvaluationRequest]]:
    return evaluation.begin_evaluation(request, size, store)


@stage("{request.title}: {portion.title}", wants_gpu=True)
def score_portion(
    request: EvaluationRequest, portion: Portion, store: Store, backwards: bool = False
) -> Made[PortionReport]:
    return evaluation.score_portion(request, portion, store, backwards)


@stage("{request.title}", sharing=Sharing(begin_evaluation, score_portion), retries=1, present=_show_metrics)
def evaluate_request(request: EvaluationRequest, store: Store) -> Made[Evaluation]:
    return evaluation.evaluate_request(request, store)


def evaluate(
    checkpoint: Checkpoint,
    test: FeatureSet,
    store: Store,
    mirrored: FeatureSet | None = None,
    temperature: float = 1.0,
) -> Evaluation:
    """Score a checkpoint on test rows."""
    request = EvaluationRequest(checkpoint=checkpoint, test=test, mirrored=mirrored, temperature=temperature)
    return evaluate_request(request, store)


# A few images take a fraction of a second: a GPU worker would take longer to start.
@stage("heat maps", retries=1)
def map_heat(
    scored: Evaluation,
    checkpoint: Checkpoint,
    test: FeatureSet,
    store: Store,
    mirrored: FeatureSet | None = None,
) -> Made[HeatMaps]:
    return gradcam.map_heat(scored, checkpoint, test, store, mirrored)


@stage("release", retries=1)
def release_run(run: RunSummary, store: Store) -> Made[Outcome]:
    made = release.release_run(run, store)
    report = store.fetch("runs", made.value.run, "report.md").read_text(encoding="utf-8")
    show(create_markdown_artifact, report, key="report", description=run.title)
    return made


@stage("register")
def register_model(outcome: Outcome, config: TrainConfig, store: Store) -> Made[Version]:
    known = any(version.run == outcome.run for version in registry.read_registry(store).versions)
    version = registry.register_run(store, outcome, config.model_dump(mode="json"))
    return Made(value=version, reused=known, note=f"run {version.run} is v{version.number}")


def _show_comparison(comparison: Comparison) -> None:
    rows = [
        {"": what, "champion": theirs, "challenger": ours, "difference": difference}
        for what, theirs, ours, difference in list_comparison(comparison)
    ]
    title = f"Champion and challenger on the same {comparison.images:,} test images"
    show(create_table_artifact, rows, key="comparison", description=title)


@stage("compare models", present=_show_comparison)
def compare_models(champion: Evaluation, challenger: Evaluation) -> Made[Comparison]:
    comparison = promotion.compare(champion, challenger)
    note = f"accuracy {comparison.challenger_accuracy:.4f} against {comparison.champion_accuracy:.4f}"
    return Made(value=comparison, reused=False, note=note)


@stage("decide")
def record_decision(decision: Decision, challenger: Version, store: Store) -> Made[Registry]:
    revised = registry.record_decision(store, decision)
    if decision.outcome == "promoted":
        announce(challenger, decision.reason)
    return Made(value=revised, reused=False, note=f"v{challenger.number} {decision.reason}")
