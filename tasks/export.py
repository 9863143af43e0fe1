"""The task that exports a model."""

from collections.abc import Sequence
from pathlib import Path

from prefect.artifacts import create_table_artifact

from tasks.screen import show
from tasks.stage import stage
from thaw import export
from thaw.export import Exported
from thaw.formats import Format, Quantised
from thaw.records import Made
from thaw.store import Store


def _show_differences(made: Exported) -> None:
    proofs = {"pixels": made.pixels, "JPEG files": made.jpeg}
    rows = [
        {"probabilities of": name, **{figure: str(value) for figure, value in vars(proof).items()}}
        for name, proof in proofs.items()
        if proof
    ]
    title = f"{made.model} as {made.format} beside Keras, in {made.path}"
    show(create_table_artifact, rows, key="export", description=title)


@stage("export {model} as {format}", present=_show_differences)
def export_model(
    model: str, format: Format, store: Store, to: Path | None, images: Sequence[Path], quantised: Quantised
) -> Made[Exported]:
    return export.export_model(model, format, store, to, images, quantised)
