"""The networks that a model averages, as a part of a run's report."""

from thaw.ensemble import Member
from thaw.records import Checkpoint
from thaw.report.parts import Section, Table
from thaw.report.summary import RunSummary, say_state
from thaw.report.wording import say_nats, say_percent


def describe_ensemble(run: RunSummary) -> Section:
    """What each member reached on the validation images, and what their average does."""
    columns = ("seed", *(["loss of the head", "its accuracy"] if run.phases else []), "loss", "accuracy", "")
    rows = [_list_member(member, run, "averaged") for member in run.members]
    rows += [_list_member(member, run, "left out") for member in run.left_out]
    rows.append(("averaged", *([""] * (len(columns) - 4)), *_say_figures(run.ensemble), ""))
    text = [f"{_say_members(run)} Figures are of the validation images."]
    table = Table(columns=columns, rows=rows, align="l" + "r" * (len(columns) - 2) + "l", totals=True)
    return Section(name="ensemble", title="Ensemble", text=text, tables=[table])


def _list_member(member: Member, run: RunSummary, part: str) -> tuple[str, ...]:
    last = member.phase_verdicts[-1] if member.phases else member.verdict
    figures = (*(_say_figures(member.head) if run.phases else ()), *_say_figures(member.model))
    return (f"{member.seed}", *figures, f"{part}, {say_state(last)}")


def _say_figures(trained: Checkpoint) -> tuple[str, str]:
    best = trained.history.best
    return (say_nats(best.val_loss), say_percent(best.val_accuracy)) if best else ("–", "–")


def _say_members(run: RunSummary) -> str:
    mirrored = "each image and its mirror image" if run.ensemble.mirrored else "each image"
    if len(run.members) == 1:
        return f"The model's probabilities are the mean of what the network makes of {mirrored}."
    return (
        f"The model's probabilities are the mean of what {len(run.members)} networks make of {mirrored}. They were "
        "trained alike, from seeds of their own."
    )
