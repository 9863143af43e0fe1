"""Champion and challenger side by side, as a table and as Markdown."""

from collections.abc import Sequence

from thaw.promotion import Comparison, Decision


def list_comparison(comparison: Comparison) -> list[tuple[str, str, str, str]]:
    """Rows: what, the champion's figure, the challenger's, the difference with its 95 % interval."""
    return [
        (
            "accuracy",
            f"{comparison.champion_accuracy:.4f}",
            f"{comparison.challenger_accuracy:.4f}",
            _say_difference(comparison.accuracy_difference, comparison.accuracy_difference_interval),
        ),
        (
            "log loss, nats",
            f"{comparison.champion_log_loss:.4f}",
            f"{comparison.challenger_log_loss:.4f}",
            _say_difference(comparison.log_loss_difference, comparison.log_loss_difference_interval),
        ),
        (
            "images that it alone got right",
            f"{comparison.champion_right_only:,}",
            f"{comparison.challenger_right_only:,}",
            f"McNemar's exact p {comparison.mcnemar_p:.3g}",
        ),
    ]


def render_decision(decision: Decision) -> str:
    """A decision as Markdown: its reason, and the figures of both models where there are two."""
    champion = "no champion" if decision.champion is None else f"champion v{decision.champion}"
    blocks = [f"**v{decision.challenger}, beside {champion}**", decision.reason]
    if decision.comparison:
        rows = [("", "champion", "challenger", "difference"), ("---", *["---:"] * 3)]
        rows += list_comparison(decision.comparison)
        blocks.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        blocks.append(f"Both on the same {decision.comparison.images:,} test images.")
    return "\n\n".join(blocks)


def _say_difference(difference: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{difference:+.4f} ({low:+.4f} to {high:+.4f})"
