"""Made-up records of a run, for the tests of pictures and reports."""

import io
from functools import cache

import numpy as np
from PIL import Image

from thaw.config import build_config
from thaw.ensemble import Member
from thaw.gradcam import HeatMap, HeatMaps
from thaw.records import (
    Backbone,
    Checkpoint,
    Epoch,
    Evaluation,
    History,
    ImageRow,
    Manifest,
    Metrics,
    Prediction,
    Split,
    StageTime,
    Verdict,
)
from thaw.reliability import measure_reliability
from thaw.report import RunSummary
from thaw.report.confusion import plot_confusion
from thaw.report.curves import plot_curves
from thaw.report.photographs import MOST_IMAGES, plot_mistakes, plot_views
from thaw.report.reliability import plot_reliability
from thaw.report.summary import list_mistakes

CLASSES = ("cat", "dog")
PLATEAUED = Verdict(
    state="plateaued",
    statistic=0.0011,
    threshold=0.002,
    epoch=12,
    reason="in the last 5 epochs val loss improved by 0.0011 nats, no more than 0.0020",
)
IMPROVING = Verdict(
    state="improving",
    statistic=0.0164,
    threshold=0.002,
    epoch=12,
    reason="in the last 5 epochs val loss improved by 0.0164 nats, more than 0.0020, when the budget ran out",
)


def make_history(epochs=12, floor=0.08, start=None):
    return History(
        validation_counts=(500, 500),
        start=start,
        epochs=tuple(
            Epoch(
                loss=floor + 0.3 * 0.7**number,
                accuracy=0.99 - 0.1 * 0.7**number,
                val_loss=floor + 0.02 + 0.3 * 0.72**number + 0.004 * (number % 3),
                val_accuracy=0.97 - 0.09 * 0.7**number - 0.003 * (number % 3),
                learning_rate=1e-3,
            )
            for number in range(epochs)
        ),
    )


def make_rows(side, labels):
    return tuple(
        ImageRow(path=f"{side}/{label}.{n}.jpg", label=label, sha256=f"{n:064x}", width=200, height=200)
        for n, label in enumerate(labels)
    )


def make_evaluation(stage, wrong, split="5b11d16e5b11d16e", classes=CLASSES, images=1000):
    """The first `wrong` images of the first class are called the second."""
    per_class = images // len(classes)
    predictions, confusion = [], np.zeros((len(classes), len(classes)), int)
    for number in range(images):
        label = number // per_class
        called = 1 if number < wrong else label
        confusion[label, called] += 1
        sure = 0.999 - number * 1e-5
        spread = [(1 - sure) / (len(classes) - 1)] * len(classes)
        spread[called] = sure
        predictions.append(
            Prediction(path=f"test/{number}.jpg", label=classes[label], probabilities=tuple(spread))
        )
    accuracy = 1 - wrong / images
    labels = [classes.index(row.label) for row in predictions]
    probabilities = np.array([row.probabilities for row in predictions])
    return Evaluation(
        checkpoint="c0ffee",
        stage=stage,
        split=split,
        classes=classes,
        predictions=tuple(predictions),
        metrics=Metrics(
            images=images,
            accuracy=accuracy,
            accuracy_interval=(accuracy - 0.011, accuracy + 0.007),
            log_loss=0.0712,
            auc=0.9971,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            average_precision=0.9968,
            brier=0.0213,
            calibration_error=0.0207,
            log_loss_unclipped=0.0712,
        ),
        reliability=measure_reliability(np.array(labels), probabilities),
    )


def make_checkpoint(stage, history):
    cut = "block5_pool" if stage == "head" else "block4_pool"
    return Checkpoint(
        address=f"{stage}-a1b2", stage=stage, cut=cut, split="5b11d16e5b11d16e", space="f00d", history=history
    )


def make_member(seed=0, verdict=PLATEAUED, phase_verdicts=(PLATEAUED,)):
    """A head, and a phase of fine-tuning for each of the verdicts on them."""
    phases = tuple(make_checkpoint("fine_tuned", make_history(8, floor=0.05)) for _ in phase_verdicts)
    head = make_checkpoint("head", make_history())
    return Member(seed=seed, head=head, verdict=verdict, phases=phases, phase_verdicts=phase_verdicts)


def make_map(label="cat", called="cat", path="test/0.jpg", heat=((0.0, 1.0), (0.0, 0.2))) -> HeatMap:
    return HeatMap(path=path, label=label, called=called, probability=0.98, heat=heat)


def make_heat(*maps: HeatMap, layer="block5_conv3", networks=1, mirrored=False) -> HeatMaps:
    return HeatMaps(
        checkpoint="c0ffee", layer=layer, size=(11, 11), networks=networks, mirrored=mirrored, maps=maps
    )


def make_run(classes=CLASSES, quarantined=(), **changes):
    """A run that fine-tuned behind a converged head, with all pictures of it."""
    sides = {side: make_rows(side, classes * n) for side, n in (("train", 9), ("validation", 4), ("test", 4))}
    images = (*sides["train"], *sides["validation"], *sides["test"], *make_rows("spare", classes))
    settings = {
        "title": "book2-finetune on dogs-vs-cats-200px.zip",
        "config": build_config({"dump": {"path": "dogs-vs-cats-200px.zip"}, "recipe": "book2-finetune"}),
        "manifest": Manifest(layout="flat", classes=classes, images=images, quarantined=quarantined),
        "split": Split(strategy="index", seed=0, classes=classes, **sides),
        "members": (make_member(),),
        "head_evaluation": make_evaluation("head", wrong=31, classes=classes),
        "evaluation": make_evaluation("fine_tuned", wrong=22, classes=classes),
        "backbone": Backbone(
            name="vgg16",
            origin="imagenet",
            weights="imagenet.h5",
            weights_sha256="ab" * 32,
            preprocessing="caffe",
            layers=(),
            cuts=(),
            stages=(),
        ),
        "precision": "bfloat16",
        "stages": (
            StageTime(stage="scan dump", seconds=3.21, cached=True),
            StageTime(stage="cache features", seconds=131.0, cached=False),
            StageTime(stage="train head", seconds=14.8, cached=False),
            StageTime(stage="fine-tune", seconds=733.0, cached=False),
        ),
        "pictures": {} if "pictures" in changes else make_pictures(classes),
        "versions": {"thaw": "0.1.0", "keras": "3.15.1"},
    }
    return RunSummary(**{**settings, **changes})


@cache
def make_pictures(classes):
    made = make_evaluation("fine_tuned", wrong=22, classes=classes)
    return {
        "curves": plot_curves(make_history(), [("block4_pool", make_history(8, floor=0.05))], PLATEAUED, 5),
        "confusion": plot_confusion(made.metrics, classes),
        "reliability": plot_reliability(made.reliability),
        "mistakes": plot_mistakes(list_mistakes(made), make_photographs(MOST_IMAGES)),
        "views": plot_views(make_photographs(8)),
    }


def make_photographs(number, size=180):
    """Smooth colours with grain, as hard to compress as a photograph."""
    across = np.linspace(0, 255, size)
    plain = np.stack(np.broadcast_arrays(across[:, None], across[None, :], 128.0), axis=-1)
    grain = np.random.default_rng(0).normal(0, 25, (number, size, size, 3))
    return (plain + grain).clip(0, 255).astype(np.uint8)


def close_gate(**changes):
    members = (make_member(verdict=IMPROVING, phase_verdicts=()),)
    return make_run(**{"members": members, "head_evaluation": None, "evaluation": None, **changes})


def open_picture(data, kind="PNG"):
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert picture.format == kind
        return picture.size
