"""Tasks of a comparison: what each run came to and cost, and the table of them all."""

from collections.abc import Mapping, Sequence

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from tasks.screen import show
from tasks.stage import stage
from thaw import comparison
from thaw.comparison import ComparisonTable, PlannedRun, RunResult
from thaw.cost import Pass
from thaw.records import Made, Outcome, Split
from thaw.report.comparison import list_rows, publish_comparison, say_best
from thaw.store import Store


@stage("cost of {planned.name}", retries=1)
def describe_run(
    planned: PlannedRun, outcome: Outcome, passes: Mapping[str, Pass] | None, split: Split, store: Store
) -> Made[RunResult]:
    return comparison.describe_run(planned, outcome, passes, split, store)


def _show_table(table: ComparisonTable) -> None:
    show(create_table_artifact, list_rows(table), key="recipes", description=say_best(table))


@stage("compare recipes", retries=1, present=_show_table)
def compare_recipes(
    dump: str, split: Split, runs: Sequence[RunResult], store: Store
) -> Made[ComparisonTable]:
    made = publish_comparison(comparison.build_table(dump, split, runs, store), store)
    report = store.fetch("comparisons", made.value.address, "report.md").read_text(encoding="utf-8")
    show(create_markdown_artifact, report, key="compared-recipes", description=made.note)
    return made
