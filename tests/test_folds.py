"""Cross-validation: who is held out when, what the folds come to, and that the test images stay out of it."""

import csv
import io
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import SMALL, Ended, Server
from tests.run_samples import IMPROVING, PLATEAUED, make_evaluation, make_history
from thaw.config import build_section
from thaw.errors import BadConfig, ShortClass
from thaw.folds import (
    CrossValidation,
    Fold,
    FoldsConfig,
    OutOfFold,
    Spread,
    make_folds,
    publish_folds,
)
from thaw.records import SIDES, Checkpoint, Epoch, History, ImageRow, Split
from thaw.report.folds import (
    FOLD_COLUMNS,
    draw_folds,
    list_folds,
    list_remarks,
    plot_folds,
    render_markdown,
    say_accuracy,
)
from thaw.shards import SpaceFolder, read_space
from thaw.store import Store


def make_split(test: int = 5, **learned: int) -> Split:
    """A split of so many images of each class that are learned from, a third of them to validate."""
    sides: dict[str, list[ImageRow]] = {side: [] for side in SIDES}
    for number, (label, count) in enumerate(sorted(learned.items())):
        for place in range(count + test):
            row = ImageRow(
                path=f"{label}.{place}.jpg",
                label=label,
                sha256=f"{1000 * number + place:064x}",
                width=9,
                height=9,
            )
            side = "test" if place >= count else "validation" if place < count / 3 else "train"
            sides[side].append(row)
    rows = {side: tuple(rows) for side, rows in sides.items()}
    return Split(strategy="index", seed=0, classes=tuple(sorted(learned)), **rows)


def test_every_image_that_is_learned_from_validates_once_and_trains_in_every_other_fold():
    split = make_split(cat=31, dog=20)
    folds = make_folds(split, 4, seed=0)
    learned = {*split.train, *split.validation}
    assert Counter(row for fold in folds for row in fold.validation) == Counter(learned)
    for fold in folds:
        assert set(fold.train) == learned - set(fold.validation)
        assert len(fold.train) + len(fold.validation) == 51


def test_the_test_rows_stay_what_they_are_and_none_of_them_trains_or_validates():
    split = make_split(cat=12, dog=12, test=7)
    for fold in make_folds(split, 3, seed=0):
        assert fold.test == split.test
        assert not set(split.test) & {*fold.train, *fold.validation}


def test_classes_and_all_images_spread_over_the_folds_to_within_one():
    folds = make_folds(make_split(ape=7, cat=22, dog=13), 5, seed=3)
    for counts in zip(*(fold.counts()["validation"].values() for fold in folds), strict=True):
        assert max(counts) - min(counts) <= 1
    sizes = [len(fold.validation) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


def test_folds_depend_on_bytes_and_seed_and_not_on_the_order_or_side_of_rows():
    split = make_split(cat=20, dog=20)
    shuffled = replace(split, train=split.validation[::-1], validation=split.train[::-1])
    assert make_folds(split, 5, seed=0) == make_folds(split, 5, seed=0) == make_folds(shuffled, 5, seed=0)
    first, other = (make_folds(split, 5, seed=seed)[0] for seed in (0, 1))
    assert set(first.validation) != set(other.validation)


def test_renamed_images_stay_in_their_fold():
    split = make_split(cat=20, dog=20)

    def rename(rows: tuple[ImageRow, ...]) -> tuple[ImageRow, ...]:
        return tuple(replace(row, path=f"a/{99 - number}.jpg") for number, row in enumerate(rows))

    renamed = replace(split, train=rename(split.train), validation=rename(split.validation))
    for before, after in zip(make_folds(split, 4, seed=0), make_folds(renamed, 4, seed=0), strict=True):
        assert {row.sha256 for row in before.validation} == {row.sha256 for row in after.validation}


def test_rows_of_a_fold_come_class_by_class_in_natural_order():
    fold = make_folds(make_split(cat=30, dog=30), 3, seed=0)[1]
    for rows in (fold.train, fold.validation):
        keys = [(row.label, int(row.path.split(".")[1])) for row in rows]
        assert keys == sorted(keys)


def test_a_fold_says_which_it_is_and_has_a_digest_of_its_own():
    folds = make_folds(make_split(cat=6, dog=6), 3, seed=4)
    assert [fold.strategy for fold in folds] == ["fold 1 of 3", "fold 2 of 3", "fold 3 of 3"]
    assert {fold.seed for fold in folds} == {4}
    assert len({fold.digest for fold in folds}) == 3


def test_a_class_with_an_image_for_each_fold_is_enough_and_one_less_is_refused():
    assert len(make_folds(make_split(cat=5, dog=9), 5, seed=0)) == 5
    with pytest.raises(ShortClass, match=r"class 'cat' has 5 images to learn from .*, 6 folds need 6"):
        make_folds(make_split(cat=5, dog=9), 6, seed=0)


@pytest.mark.parametrize("folds", [1, 0, -3])
def test_fewer_than_two_folds_are_refused(folds: int):
    with pytest.raises(BadConfig, match=rf"2 or more. Received: {folds}"):
        make_folds(make_split(cat=5, dog=5), folds, seed=0)


@pytest.mark.parametrize(
    ("given", "hint"),
    [({"folds": 1}, "nearest valid value is 2"), ({"repeats": 0}, "nearest valid value is 1")],
)
def test_settings_out_of_bounds_are_told_with_the_nearest_valid_one(given: dict, hint: str):
    with pytest.raises(BadConfig, match=hint):
        build_section(FoldsConfig, given)


def test_folds_are_published_like_any_split_and_a_repeat_draws_them_anew(store: Store):
    split = make_split(cat=12, dog=12)
    first = publish_folds(split, FoldsConfig(folds=3, repeats=2), 0, store)
    again = publish_folds(split, FoldsConfig(folds=3, repeats=2), 0, store)
    assert (first.reused, again.reused) == (False, True)
    assert first.value == again.value
    for fold in first.value:
        assert store.read("splits", fold.digest, Split) == fold
    assert [fold.seed for fold in first.value] == [0, 0, 0, 1, 1, 1]
    # The next seed's first repeat is this one's second.
    assert publish_folds(split, FoldsConfig(folds=3), 1, store).reused


def make_crossvalidation(folds: int = 5, verdict=PLATEAUED, repeats: int = 1, **changes) -> CrossValidation:
    """A made-up cross-validation, whose folds get better by a hundredth each."""
    made = tuple(
        Fold(
            repeat=repeat,
            number=number,
            split=f"{number:016x}",
            checkpoint=f"{number:016x}",
            train_images=800,
            images=200,
            history=make_history(10 + number),
            verdict=verdict,
            accuracy=0.9 + number / 100,
            log_loss=make_history(10 + number).best_loss,
        )
        for repeat in range(1, repeats + 1)
        for number in range(1, folds + 1)
    )
    evaluation = make_evaluation("head", 70)
    predictions = tuple(OutOfFold(**vars(row), repeat=1, fold=1) for row in evaluation.predictions)
    facts = {
        "address": "00aa11bb22cc33dd",
        "recipe": "demo",
        "split": "5b11d16e5b11d16e",
        "seed": 0,
        "repeats": repeats,
        "classes": ("cat", "dog"),
        "test_images": 1234,
        "phases_left_out": 0,
        "folds": made,
        "accuracy": Spread(mean=0.93, standard_deviation=0.0158, standard_error=0.0071),
        "log_loss": Spread(mean=0.27, standard_deviation=0.0158, standard_error=0.0071),
        "pooled": evaluation.metrics,
        "predictions": predictions,
    }
    return CrossValidation(**{**facts, **changes})


def test_a_cross_validation_goes_through_json():
    made = make_crossvalidation()
    assert CrossValidation.from_json(made.to_json()) == made


def test_the_table_has_a_row_for_each_fold_and_one_for_their_mean():
    made = make_crossvalidation()
    rows = list_folds(made)
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "mean ± deviation"]
    assert rows[1] == (
        "2",
        "200",
        f"12, best {make_history(12).best_epoch}",
        "0.9200",
        f"{make_history(12).best_loss:.4f}",
    )
    assert rows[-1] == ("mean ± deviation", "1,000 in all", "", "0.9300 ± 0.0158", "0.2700 ± 0.0158")
    assert all(len(row) == len(FOLD_COLUMNS) for row in rows)


def test_folds_of_several_repeats_are_told_apart():
    made = make_crossvalidation(folds=2, repeats=2)
    assert [row[0] for row in list_folds(made)][:-1] == ["1.1", "1.2", "2.1", "2.2"]
    assert "over 4 folds" in say_accuracy(made)
    assert "each 2 times" in say_accuracy(made)


def test_the_remarks_say_what_was_left_alone_and_left_out():
    remarks = " ".join(list_remarks(make_crossvalidation()))
    assert "The 1,234 test images were not touched" in remarks
    assert "fine-tuning" not in remarks
    assert "converge" not in remarks
    assert "nats" not in remarks
    remarks = " ".join(list_remarks(make_crossvalidation(phases_left_out=2, verdict=IMPROVING)))
    assert "Only the head was cross-validated" in remarks
    assert "the 2 phases of fine-tuning" in remarks
    assert "Of 5 heads 5 did not converge: the gate calls them improving." in remarks


def test_the_remarks_say_why_curves_and_table_disagree_where_probabilities_round_to_certainty():
    made = make_crossvalidation()
    sure = tuple(replace(fold, log_loss=fold.log_loss / 4) for fold in made.folds)
    assert "36 nats at most" in " ".join(list_remarks(replace(made, folds=sure)))


def test_the_markdown_holds_the_table_the_picture_and_the_remarks():
    made = make_crossvalidation()
    text = render_markdown(made, plot_folds([fold.history for fold in made.folds]))
    assert "| fold | images | epochs | accuracy | log loss |" in text
    assert "| mean ± deviation | 1,000 in all |  | 0.9300 ± 0.0158 | 0.2700 ± 0.0158 |" in text
    assert "](data:image/png;base64,iVBOR" in text
    assert "were not touched" in text
    assert len(text.encode()) < 300_000


def test_the_mean_curve_goes_as_far_as_every_fold_was_trained():
    histories = [make_history(12, floor=0.1), make_history(8, floor=0.2), make_history(10, floor=0.3)]
    for axes, field in zip(draw_folds(histories).axes, ("val_accuracy", "val_loss"), strict=True):
        lines = {label: [line for line in axes.lines if line.get_label() == label] for label in _LABELS}
        assert [len(line.get_xdata()) for line in lines["fold"]] == [12, 8, 10]
        (mean,) = lines["mean"]
        assert list(mean.get_xdata()) == list(range(1, 9))
        third = np.mean([getattr(history.epochs[2], field) for history in histories])
        assert mean.get_ydata()[2] == pytest.approx(third)
        assert mean.get_linewidth() > 2 * lines["fold"][0].get_linewidth()
        marks = [line.get_xdata()[0] for line in lines["best epoch"]]
        assert marks == [history.best_epoch for history in histories]


_LABELS = ("fold", "mean", "best epoch")


def test_the_curves_draw_what_is_not_finite_as_a_gap_and_large_losses_on_a_log_scale():
    broken = Epoch(loss=math.nan, accuracy=0.5, val_loss=math.nan, val_accuracy=0.5, learning_rate=1)
    large = Epoch(loss=90, accuracy=0.5, val_loss=90, val_accuracy=0.5, learning_rate=1)
    usual = make_history(9)
    histories = [
        replace(usual, epochs=(large, *usual.epochs)),
        History(validation_counts=(1,), epochs=(broken,)),
    ]
    loss = draw_folds(histories).axes[1]
    assert loss.get_yscale() == "log"
    assert "log scale" in loss.get_title(loc="left")
    with Image.open(io.BytesIO(plot_folds(histories))) as picture:
        assert picture.width > 500
    assert draw_folds([usual, usual]).axes[1].get_yscale() == "linear"


FOLDS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the commands of this file share."""
    return tmp_path_factory.mktemp("folds") / "store"


@pytest.fixture(scope="module")
def done(server: Server, drawn_dump: Path, place: Path) -> Ended:
    """The first cross-validation of the small job."""
    return crossvalidate(server, drawn_dump, place)


def crossvalidate(server: Server, dump: Path, place: Path) -> Ended:
    ended = server.thaw(
        *("crossvalidate", "--dump", dump, "--store", place, f"--folds={FOLDS}", "--json"), *SMALL
    )
    assert ended.code == 0, ended.err
    return ended


def read_record(done: Ended) -> CrossValidation:
    return CrossValidation.from_json(Path(done.json["files"]["record"]).read_bytes())


@pytest.mark.slow
def test_each_image_that_is_learned_from_has_one_prediction_and_no_test_image_any(done: Ended, place: Path):
    made = read_record(done)
    split = Store(place).read("splits", made.split, Split)
    learned = {row.path for row in (*split.train, *split.validation)}
    assert Counter(row.path for row in made.predictions) == Counter(learned)
    assert not {row.path for row in split.test} & learned
    with Path(done.json["files"]["table"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "repeat", "fold", "label_quality", "p_cat", "p_dog"]
    assert [row["path"] for row in rows] == [row.path for row in made.predictions]
    assert Counter(row["fold"] for row in rows) == dict.fromkeys("1234", 40)


@pytest.mark.slow
def test_no_features_of_test_images_are_made_for_cross_validation(done: Ended, place: Path):
    store, made = Store(place), read_record(done)
    split = store.read("splits", made.split, Split)
    for space in store.folder("features").iterdir():
        rows = SpaceFolder(store, read_space(space.name, store))
        keys = [(row.sha256, 0) for row in split.test]
        assert rows.missing(keys) == keys


@pytest.mark.slow
def test_the_figures_are_those_of_the_folds(done: Ended):
    made, printed = read_record(done), done.json
    assert [fold["number"] for fold in printed["folds"]] == [1, 2, 3, 4]
    accuracies = [fold["accuracy"] for fold in printed["folds"]]
    assert printed["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert printed["accuracy"]["standard_deviation"] == pytest.approx(np.std(accuracies, ddof=1))
    assert printed["accuracy"]["standard_error"] == pytest.approx(np.std(accuracies, ddof=1) / 2)
    assert printed["log_loss"]["mean"] == pytest.approx(np.mean([fold.log_loss for fold in made.folds]))
    for fold in made.folds:
        rows = [row for row in made.predictions if row.fold == fold.number]
        right = [made.classes[int(np.argmax(row.probabilities))] == row.label for row in rows]
        assert (fold.images, fold.train_images) == (len(rows), 160 - len(rows)) == (40, 120)
        assert fold.accuracy == pytest.approx(np.mean(right))
        assert fold.accuracy == pytest.approx(fold.history.best.val_accuracy)
        assert fold.log_loss == pytest.approx(fold.history.best.val_loss, abs=1e-4)
    assert printed["pooled"]["images"] == 160
    low, high = printed["pooled"]["accuracy_interval"]
    assert low < printed["pooled"]["accuracy"] < high
    assert printed["pooled"]["accuracy"] == pytest.approx(np.mean(accuracies))
    assert printed["test_images"] == 40
    assert any("40 test images were not touched" in remark for remark in printed["remarks"])
    assert any("Only the head was cross-validated" in remark for remark in printed["remarks"])


@pytest.mark.slow
def test_a_prediction_is_that_of_the_head_that_trained_without_the_image(done: Ended, place: Path):
    from thaw.device import prepare_keras

    store, made = Store(place), read_record(done)
    fold = made.folds[2]
    folder = store.folder("checkpoints", fold.checkpoint)
    checkpoint = Checkpoint.from_json((folder / "checkpoint.json").read_bytes())
    split = store.read("splits", fold.split, Split)
    assert split.strategy == "fold 3 of 4"
    rows = [row for row in made.predictions if row.fold == 3]
    assert {row.path for row in rows} == {row.path for row in split.validation}
    keys = {row.path: (row.sha256, 0) for row in split.validation}
    features = SpaceFolder(store, read_space(checkpoint.space, store))
    inputs = features.read(features.find(keys[row.path] for row in rows)).astype(np.float32)
    network = prepare_keras().models.load_model(folder / "model.keras", compile=False)
    by_hand = np.asarray(network(inputs, training=False))[:, 0]
    assert [row.probabilities[1] for row in rows] == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.slow
def test_the_second_run_finds_every_stage_published_and_leaves_table_and_curves_in_the_prefect_ui(
    server: Server, done: Ended, drawn_dump: Path, place: Path
):
    again = crossvalidate(server, drawn_dump, place)
    timing = ("cached", "seconds")
    first, second = (
        {key: value for key, value in ended.json.items() if key not in timing} for ended in (done, again)
    )
    assert first == second
    assert set(again.json["cached"]) == set(again.json["seconds"])
    run = server.newest_run()
    states = server.task_states(run["id"])
    assert "train without fold 2 of 4, seed 0" in states
    assert set(states.values()) == {"Cached"}
    assert run["name"].startswith(
        f"cross-validate demo on {drawn_dump.name}: {done.json['accuracy']['mean']:.4f} ± "
    )
    artifacts = server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run["id"]]}})
    found = {artifact["key"]: artifact for artifact in artifacts if artifact["key"]}
    table = json.loads(found["folds"]["data"])
    assert [row["fold"] for row in table] == ["1", "2", "3", "4", "mean ± deviation"]
    assert "data:image/png;base64" in found["cross-validation"]["data"]


@pytest.mark.slow
def test_more_folds_than_images_of_a_class_are_a_mistake_and_one_plain_message(
    server: Server, drawn_dump: Path, place: Path
):
    ended = server.thaw("crossvalidate", "--dump", drawn_dump, "--store", place, "--folds=81", *SMALL)
    assert ended.code == 2, ended.err
    assert "class 'cat' has 80 images to learn from" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_repeats_draw_other_folds_and_a_network_from_scratch_is_cross_validated_alike(
    server: Server, drawn_dump: Path, tmp_path: Path
):
    scratch = [
        "--recipe=demo",
        "--set=split.train=12",
        "--set=split.validation=4",
        "--set=split.test=4",
        "--set=backbone.name=none",
        "--set=backbone.image_size_pixels=32",
        "--set=head.pooling=average",
        "--set=head.views=2",
        "--set=head.epochs=2",
        "--set=fine_tune.epochs=0",
    ]
    ended = server.thaw(
        *("crossvalidate", "--dump", drawn_dump, "--store", tmp_path / "store", *scratch),
        *("--folds=2", "--repeats=2", "--json"),
    )
    assert ended.code == 0, ended.err
    made = read_record(ended)
    assert [(fold.repeat, fold.number) for fold in made.folds] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert len({fold.checkpoint for fold in made.folds}) == 4
    assert Counter((row.repeat, row.path) for row in made.predictions).most_common(1)[0][1] == 1
    assert len(made.predictions) == 64
    assert made.pooled.images == 32
    assert sum(map(sum, made.pooled.confusion)) == 64
