"""Whether a batch drifted, in a line and as Markdown."""

from thaw.drift import Drift
from thaw.report.wording import say_percent

_SIDES = {"train": "training", "validation": "validation", "test": "test"}
_SHOWN_CLASSES = 3


def say_drift(drift: Drift) -> str:
    """What came of the comparison with the population, in one line."""
    if drift.state == "untested":
        return f"drift was not tested: {drift.reason}"
    lead = "drift found" if drift.state == "alarm" else "no drift found"
    return f"{lead}: {say_sample(drift)}; {drift.reason}"


def say_sample(drift: Drift) -> str:
    """Which images were compared with which."""
    images = f"{drift.tested_images:,}"
    if drift.tested_images < drift.images:
        images += f" of {drift.images:,}"
    return f"{images} images beside {drift.reference_images:,} {_SIDES[drift.reference_side]} images"


def list_moves(drift: Drift) -> list[str]:
    """What moved most, a sentence each: components of the features, then shares of classes."""
    moves = [
        f"component {one.component} moved by {one.shift:+.2f} standard deviations "
        f"(KS {one.statistic:.3f}, p {one.p:.2g})"
        for one in drift.components
        if one.moved
    ]
    moves += [
        f"{one.label} is {say_percent(one.called, ' %')} of the answers, {say_percent(one.trained, ' %')} "
        "of the training images"
        for one in drift.classes[:_SHOWN_CLASSES]
    ]
    return moves


def render_drift(drift: Drift, title: str) -> str:
    """A drift as Markdown: its line, the components and the classes that moved most."""
    blocks = [f"**{title}**", f"{say_drift(drift).capitalize().rstrip('.')}."]
    if drift.components:
        blocks.append(
            _render_table(
                ("component", "moved by, standard deviations", "KS statistic", "p", "moved"),
                [
                    (
                        str(one.component),
                        f"{one.shift:+.2f}",
                        f"{one.statistic:.3f}",
                        f"{one.p:.2g}",
                        "yes" if one.moved else "no",
                    )
                    for one in drift.components
                ],
            )
        )
        blocks.append(
            f"A component moved where its p is not above {drift.level:.2g}: {drift.false_alarm_rate:g}, the "
            f"false-alarm rate, divided by {drift.components_tested} components."
        )
    if drift.classes:
        rows = [(one.label, say_percent(one.trained), say_percent(one.called)) for one in drift.classes]
        blocks.append(_render_table(("class", "of the training images", "of the answers"), rows))
    return "\n\n".join(blocks)


def _render_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    ruled = [columns, ("---", *["---:"] * (len(columns) - 1)), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in ruled)
