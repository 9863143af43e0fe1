"""What Prefect adds: the demo's recipe as a flow, on a running server and on a temporary one, against its stages alone.

Goal: 5 % and 10 s at most.
"""

import time
from functools import partial
from pathlib import Path

from benchmarks.harness import Place, run_benchmarks, run_rounds, serve_prefect, start_worker, time_command
from benchmarks.results import Entry, Goal
from benchmarks.stages import open_images
from thaw.calibrate import calibrate
from thaw.convergence import judge_convergence
from thaw.drawings import draw_dump
from thaw.duplicates import confirm_duplicates
from thaw.ensemble import Member
from thaw.evaluate import evaluate
from thaw.features import cache_features
from thaw.fine_tune import fine_tune
from thaw.gradcam import map_heat
from thaw.head import train_head
from thaw.properties import publish_properties
from thaw.release import release_run
from thaw.report import RunSummary
from thaw.store import Store

_SHARE, _SECONDS = 0.05, 10
_ALONE, _RUNNING, _TEMPORARY = "stages alone", "on a running server", "on a temporary server"
_QUICK = {
    "split": {"train": 60, "validation": 20, "test": 20},
    "backbone": {"image_size_pixels": 64},
    "head": {"epochs": 20},
    "gate": {"noise_multiplier": 2},
    "fine_tune": {"epochs": 2, "views": 1},
}


class Stages:
    """The stages of the flow `train`, without Prefect."""

    def run(self, dump: str, store: str, changes: dict[str, dict]) -> dict[str, float]:
        place = Store(store)
        images = open_images(place, Path(dump), "demo", **changes)
        config, given = images.config, images.given
        (tuning,) = config.fine_tune
        size_pixels = config.backbone.image_size_pixels
        properties = publish_properties(images.manifest, config.dump, size_pixels, place).value
        bottlenecks = cache_features(*given, images.backbone.end, place, keep=(tuning.cut,)).value
        duplicates = confirm_duplicates(images.duplicates, *given, place).value
        for budget in range(1, config.gate.max_extensions + 2):
            head = train_head(bottlenecks, config.head, config.gate, place, budget).value
            verdict = judge_convergence(head.history, config.gate)
            if verdict.state != "improving":
                break
        head_evaluation = evaluate(head, bottlenecks.test, place).value
        shallow = cache_features(*given, tuning.cut, place, tuning.views, config.augmentation).value
        tuned = fine_tune(head, shallow, images.backbone, config.backbone, tuning, place).value
        calibration = calibrate(tuned, shallow.validation, place).value
        evaluation = evaluate(tuned, shallow.test, place, temperature=calibration.temperature).value
        heat = map_heat(evaluation, tuned, shallow.test, place).value
        found = judge_convergence(tuned.history, config.gate, tuning)
        phases = {"phases": (tuned,), "phase_verdicts": (found,)}
        run = RunSummary(
            title="demo",
            config=config,
            manifest=images.manifest,
            duplicates=duplicates,
            properties=properties,
            split=images.split,
            members=(Member(seed=config.head.seed, head=head, verdict=verdict, **phases),),
            backbone=images.backbone,
            precision=config.backbone.precision,
            head_evaluation=head_evaluation,
            evaluation=evaluation,
            calibration=calibration,
            heat=heat,
        )
        return {"test accuracy": release_run(run, place).value.metrics.accuracy}


def measure(place: Place) -> list[Entry]:
    changes = place.pick({}, _QUICK)
    options = [
        f"--set={section}.{name}={value}"
        for section, settings in changes.items()
        for name, value in settings.items()
    ]
    dump = place.folder / "drawn.zip"
    draw_dump(dump, per_class=place.pick(200, 100))

    def run_stages(number: int) -> dict[str, float]:
        started = time.perf_counter()
        with start_worker("orchestration:Stages") as fresh:
            accuracy = fresh.call("run", dump=dump, store=place.folder / f"stages-{number}", changes=changes)
        return {"s": time.perf_counter() - started, **accuracy}

    def run_flow(number: int, kind: str, url: str | None = None) -> dict[str, float]:
        store = place.folder / f"{kind}-{number}"
        seconds, printed = time_command(
            *("train", "--dump", dump, "--recipe=demo", "--store", store, *options),
            prefect_home=home,
            prefect_url=url,
        )
        return {"s": seconds, "test accuracy": printed["test_accuracy"]}

    home = place.folder / "prefect"
    home.mkdir()
    with serve_prefect(home) as url:
        sides = {
            _ALONE: run_stages,
            _RUNNING: partial(run_flow, kind="running", url=url),
            _TEMPORARY: partial(run_flow, kind="temporary"),
        }
        figures = run_rounds(place.rounds, sides)
    alone = figures[_ALONE]["s"]
    return [
        Entry(
            benchmark="orchestration",
            name=f"seconds beyond {100 * _SHARE:g} % of the stages alone, {kind}",
            rounds=[
                whole - (1 + _SHARE) * part for whole, part in zip(figures[kind]["s"], alone, strict=True)
            ],
            unit="s",
            goal=Goal(bound="at most", value=_SECONDS),
            absolute={
                "flow, s": figures[kind]["s"],
                "stages alone, s": alone,
                "test accuracy of the flow": figures[kind]["test accuracy"],
                "of the stages": figures[_ALONE]["test accuracy"],
            },
            note="The demo's recipe on drawn cats and dogs, fresh stores, each run a process of its own from start to "
            f"exit. The flow is `thaw train`{meaning}.",
        )
        for kind, meaning in (
            (_RUNNING, ""),
            (
                _TEMPORARY,
                ", which without a server starts a temporary one, waits for its records and stops it",
            ),
        )
    ]


if __name__ == "__main__":
    run_benchmarks("orchestration")
