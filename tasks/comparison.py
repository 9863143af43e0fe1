"""Tasks of a comparison: what each run came to and cost, and the table of them all."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect import get_client
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.states import Cancelled

from tasks.dispatch import cancel_children
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
    report = store.folder("comparisons", made.value.address, "report.md").read_text(encoding="utf-8")
    show(create_markdown_artifact, report, key="compared-recipes", description=made.note)
    return made


def cancel_runs(flow: Any, run: Any, state: Any) -> None:
    """Cancel the runs of a cancelled comparison, and what those handed to GPU workers."""
    children = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id]))
    with get_client(sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=children):
            cancel_children(flow, child, state)
            if not child.state.is_final():
                client.set_flow_run_state(child.id, Cancelled(message="the comparison was cancelled"))
