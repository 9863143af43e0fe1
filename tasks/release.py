"""Tasks at the end of a run: test rows scored, report and model published."""

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.stage import show, stage
from thaw import evaluate as evaluation
from thaw import release
from thaw.records import Checkpoint, Evaluation, FeatureSet, Made, Outcome
from thaw.report import RunSummary
from thaw.store import Store


@stage("evaluate {checkpoint.stage}", tags=("gpu",), retries=1)
def evaluate(checkpoint: Checkpoint, test: FeatureSet, store: Store) -> Made[Evaluation]:
    made = evaluation.evaluate(checkpoint, test, store)
    figures = {name: str(value) for name, value in vars(made.value.metrics).items()}
    show(create_table_artifact, [figures], key=f"metrics-{checkpoint.stage.replace('_', '-')}")
    return made


@stage("release", retries=1)
def release_run(run: RunSummary, store: Store) -> Made[Outcome]:
    made = release.release_run(run, store)
    report = store.folder("runs", made.value.run, "report.md").read_text(encoding="utf-8")
    show(create_markdown_artifact, report, key="report", description=run.title)
    return made
