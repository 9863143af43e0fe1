"""What test images say of a model, as a part of a run's report and as an artifact of the stage that scored it."""

import math
from collections.abc import Sequence

from thaw.records import Evaluation, Metrics
from thaw.report.parts import Bar, Section, Table
from thaw.report.summary import RunSummary, find_pictures, list_mistakes, say_stage, say_start
from thaw.report.wording import say_interval, say_number, say_percent

_FIGURES = ("log loss", "AUC", "average precision", "Brier", "ECE")


def describe_evaluation(run: RunSummary) -> Section:
    """The head and the model on the test images, the model before and after its temperature."""
    rows = [row for made in (run.head_evaluation, run.evaluation) if made for row in _list_stages(made)]
    floor = min(0.95, *(math.floor(metrics.accuracy_interval[0] * 20) / 20 for _, metrics in rows))
    table = Table(
        columns=("model", "accuracy", *_FIGURES),
        rows=[(name, _draw_accuracy(metrics, floor), *_say_figures(metrics)) for name, metrics in rows],
        align="ll" + "r" * len(_FIGURES),
    )
    text = [
        f"On {run.tested.metrics.images:,} test images, looked at once after training. In brackets the 95 % "
        f"interval, drawn from {100 * floor:.0f} to 100 %. Log loss is in nats. The Brier score is the mean squared "
        "error of the probabilities, and the expected calibration error, ECE, how far they lie from the share of "
        "calls that are right.",
        _say_temperature(run),
    ]
    if clipped := _say_clipping(rows):
        text.append(clipped)
    if run.evaluation and run.head_evaluation:
        text.append(_say_difference(run))
    pictures = find_pictures(
        run,
        reliability="Calls of each probability, and the share of them that is right",
        confusion=f"Confusion matrix, {say_stage(run.tested).lower()}",
    )
    return Section(
        name="evaluation",
        title="Evaluation",
        text=text,
        tables=[table, _recalls(run.tested)],
        pictures=pictures,
    )


def list_metrics(made: Evaluation) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Column names and a row for each figure: its name, and its value before a temperature and after it."""
    stages = _list_stages(made)
    names = ("as trained", f"temperature {made.temperature:g}") if made.uncalibrated else ("value",)
    columns = [("accuracy", "95 % interval", *_FIGURES, "confusion")]
    for _, metrics in stages:
        accuracy = (say_percent(metrics.accuracy), say_interval(*metrics.accuracy_interval))
        columns.append((*accuracy, *_say_figures(metrics), str(metrics.confusion)))
    return names, list(zip(*columns, strict=True))


def _list_stages(made: Evaluation) -> list[tuple[str, Metrics]]:
    """Names and metrics: as trained and behind the temperature, or the only ones there are."""
    if made.uncalibrated is None:
        return [(say_stage(made), made.metrics)]
    return [
        (f"{say_stage(made)}, as trained", made.uncalibrated),
        (f"{say_stage(made)}, calibrated", made.metrics),
    ]


def _draw_accuracy(metrics: Metrics, floor: float) -> Bar:
    low, high = metrics.accuracy_interval
    return Bar(
        text=f"{say_percent(metrics.accuracy)} ({say_interval(low, high, unit='')})",
        start=(low - floor) / (1 - floor),
        end=(high - floor) / (1 - floor),
    )


def _say_figures(metrics: Metrics) -> tuple[str, ...]:
    """The figures of `_FIGURES`."""
    values = (metrics.log_loss, metrics.auc, metrics.average_precision)
    return tuple(say_number(value) for value in (*values, metrics.brier, metrics.calibration_error))


def _say_temperature(run: RunSummary) -> str:
    made = run.calibration
    if made is None:
        return "Probabilities are as the model was trained to give them: no temperature was asked for."
    if made.temperature == 1:
        return (
            f"Probabilities are as the model was trained to give them, without a temperature: {made.reason}."
        )
    sure = "less" if made.temperature > 1 else "more"
    return (
        f"The calibrated model divides its logits by a temperature of {made.temperature:g}, which makes it {sure} sure "
        "and calls no image otherwise; before that, a probability below 1e-7 is taken for 1e-7. It was fitted on the "
        f"{made.images:,} validation images: there log loss went from {say_number(made.log_loss_before)} to "
        f"{say_number(made.log_loss_after)}, ECE from {say_number(made.error_before)} to "
        f"{say_number(made.error_after)}."
    )


def _say_clipping(rows: Sequence[tuple[str, Metrics]]) -> str:
    """What log loss owes to scikit-learn's clipping; nothing where no row was measured without it."""
    measured = [(name, metrics) for name, metrics in rows if metrics.brier is not None]
    clipped = []
    for name, metrics in measured:
        plain = metrics.log_loss_unclipped
        if plain is None or not math.isclose(plain, metrics.log_loss, abs_tol=1e-6):
            clipped.append(f"{name}: {'infinite' if plain is None else say_number(plain)}")
    if clipped:
        return (
            "Log loss takes a probability of less than 2.2e-16 for that, so that no image costs more than 36 nats. "
            f"Unclipped it would be: {'; '.join(clipped)}."
        )
    return "No probability is so small that log loss was clipped." if measured else ""


def _recalls(made: Evaluation) -> Table:
    rows = []
    for index, (name, calls) in enumerate(zip(made.classes, made.metrics.confusion, strict=True)):
        total, right = sum(calls), calls[index]
        wrong = {other: calls[at] for at, other in enumerate(made.classes) if at != index and calls[at]}
        worst = max(wrong, key=wrong.get, default=None)
        taken = f"{worst} ({wrong[worst]:,})" if worst else "–"
        share = say_percent(right / total) if total else "–"
        rows.append((name, f"{total:,}", f"{right:,}", share, taken))
    columns = ("class", "images", "right", "share", "mistaken for")
    folded = f"All {len(rows)} classes" if len(rows) > 20 else ""
    return Table(columns=columns, rows=rows, align="lrrrl", folded=folded)


def _say_difference(run: RunSummary) -> str:
    evaluated = (run.head_evaluation, run.evaluation)
    before, after = ({one.path for one in list_mistakes(made)} for made in evaluated)
    steps = [*(["fine-tuning"] if run.phases else []), *(["averaging"] if run.ensemble else [])]
    mended, broken = len(before - after), len(after - before)
    made = f"{broken or 'no'} new {'one' if broken == 1 else 'ones'}"
    lead = " and ".join(steps).capitalize()
    return f"{lead} mended {mended or 'none'} of the {say_start(run)}'s mistakes and made {made}."
