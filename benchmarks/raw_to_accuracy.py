"""From raw images to an accuracy: `thaw train --recipe book2-finetune` against the book's script end to end.

Goal: a test accuracy of 0.975 within 12 minutes; 20 times as fast as the script.
"""

from benchmarks.dumps import find_dump, find_weights, unpack_classes, write_archive
from benchmarks.harness import Place, notes, run_benchmarks, run_rounds, start_worker, step, time_command
from benchmarks.results import Entry, Goal

HEAD_EPOCHS, BLOCK5_EPOCHS = 50, 30
# 2,000 images to train on and 1,000 to validate on, in batches of 32.
TRAINING_STEPS, VALIDATION_STEPS = 63, 32
_STEPS = 2  # of a round, after one that is not timed
_QUICK = (
    *("--set=split.train=16", "--set=split.validation=8", "--set=split.test=8", "--set=head.epochs=3"),
    *("--set=backbone.image_size_pixels=48", "--set=fine_tune.epochs=1", "--set=fine_tune.views=1"),
    "--set=gate.max_extensions=0",
    "--override-gate",
)


def measure(place: Place) -> list[Entry]:
    pixels, dump = place.pick(180, 48), find_dump("200px")
    archive = place.pick(dump, place.folder / "dump.zip")
    if place.sizes == "quick":
        write_archive(dump, archive, range(32))
    images = unpack_classes(dump, place.folder / "images", range(32 * (_STEPS + 1) // 2))
    given = {"weights": find_weights(), "train": images, "validation": images, "pixels": pixels}

    with (
        start_worker("plain.end_to_end:EndToEnd", stage="head", **given) as head,
        start_worker("plain.end_to_end:EndToEnd", stage="block5", **given) as block5,
    ):
        step("warm-up of plain Keras, head", head.call, "warm_up")
        step("warm-up of plain Keras, block 5", block5.call, "warm_up")
        sides = {
            "training the head": lambda _: head.call("time_training", steps=_STEPS),
            "training block 5": lambda _: block5.call("time_training", steps=_STEPS),
            "validating": lambda _: head.call("time_validation", steps=_STEPS),
        }
        before = run_rounds(1, sides)
        notes.print("  thaw train, the longest part, which reports by itself:")
        seconds, printed = time_command(
            *("train", "--recipe=book2-finetune", "--dump", archive, "--weights", given["weights"]),
            *("--store", place.folder / "store", *place.pick((), _QUICK)),
            progress="shown",
            prefect_home=place.folder / "prefect",
        )
        after = run_rounds(place.rounds - 1, sides)
    unit = "s per step"
    steps = {f"{side}, {unit}": figures[unit] + after[side].get(unit, []) for side, figures in before.items()}
    script = [_project(*seconds_of_steps) for seconds_of_steps in zip(*steps.values(), strict=True)]
    return [
        Entry(
            benchmark="raw_to_accuracy",
            name="minutes from raw images to the tested model",
            rounds=[seconds / 60],
            unit="min",
            goal=Goal(bound="at most", value=12),
            absolute={f"{stage}, s": [spent] for stage, spent in printed["seconds"].items() if spent >= 1},
            note=f"The whole command on the 200 px dump at {pixels} px, in a fresh store and a fresh Prefect home.",
        ),
        Entry(
            benchmark="raw_to_accuracy",
            name="test accuracy",
            rounds=[printed["test_accuracy"]],
            unit="",
            goal=Goal(bound="at least", value=0.975),
            absolute={"of the head alone": [printed["head_test_accuracy"]]},
            note=f"Of {printed['test_images']} images.",
        ),
        Entry(
            benchmark="raw_to_accuracy",
            name="against the book's script end to end",
            rounds=[other / seconds for other in script],
            unit="×",
            goal=Goal(bound="at least", value=20),
            absolute={"the script, min": [other / 60 for other in script], **steps},
            note=f"The script is not run to its end: its seconds per step, the median of {_STEPS} in each round, are "
            f"multiplied by {HEAD_EPOCHS} epochs of the head and {BLOCK5_EPOCHS} of block 5, each of "
            f"{TRAINING_STEPS} training and {VALIDATION_STEPS} validation steps. Thaw ran once, between rounds.",
        ),
    ]


def _project(train_head: float, train_block5: float, validate: float) -> float:
    """Seconds of the whole script by those of its steps."""
    head = TRAINING_STEPS * train_head + VALIDATION_STEPS * validate
    block5 = TRAINING_STEPS * train_block5 + VALIDATION_STEPS * validate
    return HEAD_EPOCHS * head + BLOCK5_EPOCHS * block5


if __name__ == "__main__":
    run_benchmarks("raw_to_accuracy")
