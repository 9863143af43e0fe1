"""A comparison of recipes: what is run, how its rows are ordered, and what its tables, picture and page show."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tests.command import Ended, Server
from tests.run_samples import make_evaluation, open_picture
from thaw.comparison import (
    CompareConfig,
    ComparisonTable,
    PlannedRun,
    RunResult,
    build_table,
    describe_failure,
    list_runs,
    order_recipes,
    summarise_runs,
)
from thaw.config import build_section
from thaw.cost import ModelCost, Spent
from thaw.ensemble import list_members
from thaw.errors import BadConfig, BadWeights, NoSuchModel, UnlikeSplits
from thaw.records import ImageRow, Split
from thaw.report.comparison import (
    list_costs,
    list_pairs,
    list_results,
    list_rows,
    publish_comparison,
    render_markdown,
    render_page,
    say_best,
    say_spent,
)
from thaw.report.scatter import draw_accuracy, plot_accuracy
from thaw.store import Store

IMAGES = 200


def plan(*recipes: dict, **changes) -> tuple[PlannedRun, ...]:
    return list_runs(
        build_section(CompareConfig, {"dump": {"path": "train.zip"}, "recipes": recipes, **changes})
    )


def make_split() -> Split:
    def rows(side: str, count: int) -> tuple[ImageRow, ...]:
        return tuple(
            ImageRow(path=f"{side}/{n}.jpg", label=label, sha256=f"{n:064x}", width=9, height=9)
            for n, label in enumerate(["cat", "dog"] * (count // 2))
        )

    sides = {"train": rows("train", 8), "validation": rows("validation", 4), "test": rows("test", IMAGES)}
    return Split(strategy="index", seed=0, classes=("cat", "dog"), **sides)


SPLIT = make_split()


def make_run(name: str, wrong: int = 10, seed: int = 0, gflops: float = 30.7, **changes) -> RunResult:
    run = RunResult(
        name=name,
        recipe=name,
        seed=seed,
        state="completed",
        run=f"{name}-{seed}",
        split=SPLIT.digest,
        val_accuracy=0.9,
        metrics=make_evaluation("head", wrong, images=IMAGES).metrics,
        model=ModelCost(parameters=16_812_353, trained_parameters=2_097_665, flops=int(gflops * 1e9)),
        extraction=Spent(earlier=140.0),
        training=Spent(here=12.5),
        images_decoded=0,
    )
    return dataclasses.replace(run, **changes)


CLOSED = {"state": "gate_closed", "reason": "val loss still improved", "metrics": None, "model": None}
FAILED = RunResult(name="broken", recipe="broken", seed=0, state="failed", reason="no weights at x.h5")


def tabulate(store: Store, *runs: RunResult) -> ComparisonTable:
    """The table of some runs, whose evaluations are in the store."""
    for run in runs:
        if run.metrics:
            wrong = round((1 - run.metrics.accuracy) * IMAGES)
            with store.publish_folder("runs", run.run) as folder:
                evaluation = make_evaluation("head", wrong, images=IMAGES)
                (folder / "evaluation.json").write_text(evaluation.to_json())
    return build_table("/data/train.zip", SPLIT, runs, store)


def test_every_recipe_is_run_with_the_split_of_the_first():
    first, second = plan({"recipe": "demo"}, {"recipe": "flowers-xception"})
    assert (first.config.split.strategy, first.config.split.train) == ("index", 120)
    assert second.config.split == first.config.split


def test_a_setting_for_all_recipes_changes_their_split_too():
    first, second = plan(
        {"recipe": "demo"}, {"recipe": "flowers-xception"}, settings={"split": {"train": 60, "seed": 3}}
    )
    assert first.config.split.train == 60
    assert second.config.split == first.config.split
    assert second.config.recipe == "flowers-xception"


def test_a_setting_of_one_recipe_is_in_its_name_and_in_no_other():
    plain, changed = plan({"recipe": "demo"}, {"recipe": "demo", "settings": {"head": {"dropout": 0.2}}})
    assert [plain.name, changed.name] == ["demo", "demo, head.dropout=0.2"]
    assert [plain.config.head.dropout, changed.config.head.dropout] == [0.5, 0.2]


def test_a_recipe_that_is_given_twice_is_run_once():
    assert len(plan({"recipe": "demo"}, {"recipe": "demo"})) == 1


def test_a_recipe_can_not_have_a_split_of_its_own():
    with pytest.raises(BadConfig, match=r"'split' of demo, split.train=9: .* one split"):
        plan({"recipe": "demo", "settings": {"split": {"train": 9}}})


def test_a_wrong_setting_is_told_before_anything_runs():
    with pytest.raises(BadConfig, match="dropout"):
        plan({"recipe": "demo"}, settings={"head": {"drop": 0.1}})
    with pytest.raises(BadConfig, match="Did you mean 'demo'"):
        plan({"recipe": "demmo"})


def test_seeds_change_what_trains_and_nothing_before_it():
    runs = plan({"recipe": "demo"}, seeds=3)
    assert [run.seed for run in runs] == [run.config.head.seed for run in runs] == [0, 1, 2]
    assert [run.config.fine_tune[0].seed for run in runs] == [0, 1, 2]
    assert {run.config.augmentation.seed for run in runs} == {0}
    assert len({run.config.backbone for run in runs}) == 1


def test_two_runs_that_average_networks_have_none_of_them_in_common():
    runs = plan({"recipe": "demo", "settings": {"ensemble": {"members": 3}}}, seeds=2)
    assert [run.seed for run in runs] == [0, 3]
    assert [[own.head.seed for own in list_members(run.config)] for run in runs] == [[0, 1, 2], [3, 4, 5]]


def test_rows_fall_in_accuracy_then_come_closed_gates_and_failures(store: Store):
    runs = (FAILED, make_run("shut", **CLOSED), make_run("worse", wrong=20), make_run("better", wrong=4))
    table = tabulate(store, *runs)
    assert [recipe.name for recipe in table.recipes] == ["better", "worse", "shut", "broken"]
    assert [recipe.state for recipe in table.recipes] == ["completed", "completed", "gate_closed", "failed"]
    assert [recipe.name for recipe in table.tested] == ["better", "worse"]


def test_equal_accuracies_are_ordered_by_log_loss():
    sure = make_run("sure")
    less = make_run("less", metrics=dataclasses.replace(sure.metrics, log_loss=0.3))
    ordered = order_recipes([summarise_runs([less]), summarise_runs([sure])])
    assert [recipe.name for recipe in ordered] == ["sure", "less"]


def test_an_error_becomes_a_row_with_its_reason():
    (planned,) = plan({"recipe": "demo"})
    assert describe_failure(planned, BadWeights("no weights at\n x.h5")).reason == "no weights at x.h5"
    assert describe_failure(planned, KeyError("x")).reason == "unforeseen KeyError: 'x'"


def test_several_seeds_give_means_and_deviations_and_the_interval_of_the_mean():
    row = summarise_runs([make_run("a", wrong=wrong, seed=seed) for seed, wrong in enumerate((8, 10, 12))])
    assert row.accuracy.mean == pytest.approx(0.95)
    assert row.accuracy.deviation == pytest.approx(0.01)
    # Wilson's interval of 190 right of 200.
    assert row.accuracy_interval == pytest.approx((0.9104, 0.9726), abs=1e-4)
    assert row.training.seconds == pytest.approx(12.5)


def test_one_seed_without_a_model_leaves_the_others_and_says_so():
    row = summarise_runs([make_run("a"), make_run("a", seed=1, **CLOSED)])
    assert row.state == "completed"
    assert row.accuracy.mean == pytest.approx(0.95)
    assert row.reason == "1 of 2 runs have no model: val loss still improved"


def test_neighbours_are_compared_image_by_image(store: Store):
    table = tabulate(store, make_run("c", wrong=30), make_run("a", wrong=4), make_run("b", wrong=10), FAILED)
    assert [(pair.better, pair.worse) for pair in table.pairs] == [("a", "b"), ("b", "c")]
    found = table.pairs[0].comparison
    assert found.accuracy_difference == pytest.approx(6 / IMAGES)
    assert (found.challenger_right_only, found.champion_right_only) == (6, 0)
    # 6 heads of 6, on either side.
    assert found.mcnemar_p == pytest.approx(2 / 2**6)
    neighbours, points, p, alone, nats = list_pairs(table).rows[0]
    assert (neighbours, p, alone) == ("1 a over 2 b", "0.031", "6 : 0")
    assert points.startswith("+3.0 (+0.") and nats.startswith("-0.")


def test_with_several_seeds_runs_of_the_same_seed_are_compared(store: Store):
    runs = [make_run("a", wrong=4, seed=0, **CLOSED), make_run("a", wrong=4, seed=1)]
    runs += [make_run("b", wrong=10, seed=seed) for seed in (0, 1)]
    table = tabulate(store, *runs)
    assert [pair.seed for pair in table.pairs] == [1]
    assert table.seeds == 2


def test_runs_of_another_split_are_refused(store: Store):
    with pytest.raises(UnlikeSplits, match="b was run on split other"):
        tabulate(store, make_run("a"), make_run("b", split="other"))


def test_a_lost_evaluation_is_told(store: Store):
    with pytest.raises(NoSuchModel, match="evaluation.json of run b-0"):
        build_table("train.zip", SPLIT, [make_run("a", wrong=4), make_run("b")], store)


def test_times_say_who_took_them():
    assert say_spent(Spent(here=12.5)) == "12\u00a0s"
    assert say_spent(Spent(earlier=140.0)) == "2\u00a0min 20\u00a0s, earlier"
    assert say_spent(Spent(here=2.0, earlier=5.0)) == "7.0\u00a0s, part earlier"
    assert say_spent(Spent(unknown=True)) == "cached"
    assert say_spent(Spent(here=2.0, unknown=True)) == "over 2.0\u00a0s"
    assert say_spent(None) == "–"
    assert Spent(here=2.0, unknown=True).seconds is None


def test_the_tables_have_results_costs_and_what_is_of_this_run_only(store: Store):
    table = tabulate(store, make_run("b"), make_run("a", wrong=4, images_decoded=2000), FAILED)
    name, accuracy, *figures = list_results(table).rows[0]
    assert (name, accuracy.text[:4]) == ("1 a", "98.0")
    assert 0 <= accuracy.start < accuracy.end <= 1
    assert figures == ["0.0712", "0.9971", "90.0\u00a0%"]
    costs = list_costs(table)
    assert costs.columns[-1] == "images decoded, this run only"
    assert costs.rows[0] == (
        *("1 a", "16.8\u00a0M", "2.1\u00a0M", "30.7", "12\u00a0s"),
        *("2\u00a0min 20\u00a0s, earlier", "2,000"),
    )


def test_the_table_of_the_ui_has_a_row_for_every_recipe(store: Store):
    rows = list_rows(tabulate(store, FAILED, make_run("shut", **CLOSED), make_run("a")))
    assert [row["recipe"] for row in rows] == ["a", "shut", "broken"]
    assert rows[0]["test accuracy"].startswith("95.0")
    assert rows[1] == {"recipe": "shut", "state": "gate closed", "reason": "val loss still improved"}
    assert rows[2]["reason"] == "no weights at x.h5"


def test_the_first_sentence_names_the_best_and_how_far_it_is_ahead(store: Store):
    said = say_best(tabulate(store, make_run("b"), make_run("a", wrong=4))).replace("\u00a0", " ")
    assert said.startswith("a: 98.0 % (")
    assert said.endswith("of 200 test images right, 3.0 points more than b (p = 0.031)")
    assert say_best(tabulate(store, make_run("b"), make_run("c"))).endswith("as many as c")
    assert say_best(tabulate(store, FAILED)) == "No recipe has a model: 1 failed"


@pytest.fixture
def twelve(store: Store) -> ComparisonTable:
    costs = [(0.16, 4), (0.16, 300), (1.3, 40), (13.8, 10), (13.8, 11), (13.8, 15), (13.8, 700), (19.8, 12)]
    costs += [(19.8, 14), (19.8, 30), (19.8, 900), (8.9, 60)]
    runs = [
        make_run(f"recipe-number-{n}", wrong=4 + 3 * n // 2, gflops=gflops, training=Spent(here=seconds))
        for n, (gflops, seconds) in enumerate(costs)
    ]
    return tabulate(store, *runs)


def find_markers(axes) -> np.ndarray:
    """Centres of the markers of recipes, in pixels (n, 2)."""
    marked = [line for line in axes.lines if line.get_marker() == "o"]
    return np.array([axes.transData.transform(line.get_xydata()[0]) for line in marked])


def test_no_marker_of_twelve_recipes_hides_another_or_leaves_its_panel(twelve: ComparisonTable):
    figure = draw_accuracy(twelve)
    for axes in figure.axes:
        centres = find_markers(axes)
        assert len(centres) == 12
        apart = np.linalg.norm(centres[:, None] - centres[None], axis=-1) + np.eye(12) * 1e6
        assert apart.min() >= 15 * figure.dpi / 72
        assert (centres[:, 0] > axes.bbox.x0).all() and (centres[:, 0] < axes.bbox.x1).all()
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "1   recipe-number-0"
    assert len(names) == 12


def test_recipes_of_unknown_training_time_are_left_out_of_its_panel_alone(store: Store):
    table = tabulate(store, make_run("a", wrong=4), make_run("b", training=Spent(unknown=True)))
    assert [len(find_markers(axes)) for axes in draw_accuracy(table).axes] == [2, 1]
    table = tabulate(store, make_run("c", training=Spent(unknown=True)))
    assert open_picture(plot_accuracy(table))


def test_one_recipe_has_a_picture(store: Store):
    width, height = open_picture(plot_accuracy(tabulate(store, make_run("a"))))
    assert width > 500 and height > 500


def test_the_page_is_one_file_that_needs_nothing_else(twelve: ComparisonTable):
    html = render_page(twelve, {"accuracy": plot_accuracy(twelve)})
    assert len(html) < 500_000
    assert "<script" not in html
    assert not re.search(r"https?://|url\(|@import|<link", html)
    for words in ("Results", "Neighbours", "Cost", "Runs", "recipe-number-11", "data:image/png"):
        assert words in html


def test_the_page_and_the_markdown_say_why_a_recipe_has_no_model(store: Store):
    table = tabulate(store, make_run("a"), FAILED, make_run("shut", **CLOSED))
    pictures = {"accuracy": plot_accuracy(table)}
    for text in (render_page(table, pictures), render_markdown(table, pictures)):
        assert "no weights at x.h5" in text
        assert "val loss still improved" in text
    nothing = tabulate(store, FAILED)
    assert "no weights at x.h5" in render_page(nothing, {})
    assert "## No model" in render_markdown(nothing, {})


def test_a_comparison_that_came_to_the_same_is_found_published(store: Store):
    first = publish_comparison(tabulate(store, make_run("a"), FAILED), store)
    folder = store.folder("comparisons", first.value.address)
    files = {"report.html", "report.md", "comparison.json", "accuracy.png", "published.json"}
    assert {file.name for file in folder.iterdir()} == files
    assert ComparisonTable.from_json((folder / "comparison.json").read_bytes()) == first.value
    cached = make_run("a", training=Spent(earlier=12.5))
    again = publish_comparison(tabulate(store, cached, FAILED), store)
    assert (first.reused, again.reused) == (False, True)
    assert again.value.address == first.value.address
    assert again.value.recipes[0].training == Spent(earlier=12.5)
    other = tabulate(store, dataclasses.replace(cached, run="other"), FAILED)
    assert other.address != first.value.address


def test_a_comparison_without_a_model_is_published_as_well(store: Store):
    made = publish_comparison(tabulate(store, FAILED), store)
    assert not store.folder("comparisons", made.value.address, "accuracy.png").exists()


# The command, as a user runs it: four recipes, of which one can't be cut where it is asked to.
SMALL = ("--set=split.train=60", "--set=split.validation=20", "--set=split.test=20")
RECIPES = (
    "--recipe=demo,head.epochs=20,gate.noise_multiplier=2,fine_tune.epochs=2,fine_tune.views=1",
    "--recipe=demo,head.dense_units=[32,16],head.epochs=3,fine_tune=[]",
    "--recipe=blog-convnet,head.epochs=2",
    "--recipe=demo,fine_tune.cut=block9_pool",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare") / "store"


@pytest.fixture(scope="module")
def run(server: Server, drawn_dump: Path, place: Path):
    def compare() -> Ended:
        images = "--set=backbone.image_size_pixels=64"
        given = (*RECIPES, *SMALL, images, "--store", place, "--json")
        return server.thaw("compare", "--dump", drawn_dump, *given)

    return compare


@pytest.fixture(scope="module")
def compared(run) -> Ended:
    return run()


@pytest.mark.slow
def test_each_recipe_has_its_row_and_one_that_fails_its_reason(compared: Ended):
    assert compared.code == 0, compared.err
    rows = {row["recipe"]: row for row in compared.json["recipes"]}
    assert len(rows) == 4
    failed = rows.pop("demo, fine_tune.cut=block9_pool")
    assert failed["state"] == "failed"
    assert "no layer 'block9_pool'" in failed["reason"]
    for row in rows.values():
        assert row["state"] == "completed"
        assert 0 <= row["test_accuracy_interval"][0] <= row["test_accuracy"] <= 1
        assert row["flops"] > 1e6
        assert row["parameters"] >= row["trained_parameters"] > 0
        assert row["training_seconds"] > 0
    assert len(compared.json["neighbours"]) == 2


@pytest.mark.slow
def test_all_runs_have_the_same_split_and_the_order_is_by_accuracy(compared: Ended):
    rows = compared.json["recipes"]
    splits = {run["split"] for row in rows for run in row["runs"] if run["run"]}
    assert splits == {compared.json["split"]}
    accuracies = [row["test_accuracy"] for row in rows if row["test_accuracy"] is not None]
    assert accuracies == sorted(accuracies, reverse=True)


@pytest.mark.slow
def test_one_recipe_decodes_and_the_next_finds_its_rows_cached(compared: Ended):
    rows = {row["recipe"].split(",")[1]: row for row in compared.json["recipes"]}
    first, second = rows[" head.epochs=20"], rows[" head.dense_units=[32"]
    # Every image, and those to train on once more for their views.
    assert first["images_decoded_here"] == 200 + 120
    assert second["images_decoded_here"] == 0
    assert second["extraction_seconds_here"] == 0
    assert second["extraction_seconds"] > 0


@pytest.mark.slow
def test_a_network_on_fresh_views_decodes_in_every_epoch(compared: Ended):
    (row,) = [row for row in compared.json["recipes"] if row["recipe"].startswith("blog-convnet")]
    assert row["images_decoded_here"] == 80 + 2 * 120
    assert row["parameters"] == row["trained_parameters"]


@pytest.mark.slow
def test_the_runs_are_runs_of_their_own_and_the_report_is_there(
    compared: Ended, server: Server, drawn_dump: Path
):
    flows = {"name": {"any_": ["compare"]}}
    parent = server.ask("flow_runs/filter", flows=flows, sort="START_TIME_DESC", limit=1)[0]
    names = sorted(server.children(parent["id"]))
    assert len(names) >= 3
    assert all(drawn_dump.name in name for name in names)
    assert Path(compared.json["report"]).is_file()
    artifacts = server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [parent["id"]]}})
    found = {artifact["key"]: artifact for artifact in artifacts if artifact["key"]}
    assert {"recipes", "compared-recipes"} <= set(found)
    assert "data:image/png;base64" in found["compared-recipes"]["data"]


@pytest.mark.slow
def test_the_second_comparison_finds_everything_and_knows_what_it_took(compared: Ended, run):
    again = run()
    assert again.code == 0, again.err
    assert again.json["report"] == compared.json["report"]
    before = {row["recipe"]: row for row in compared.json["recipes"]}
    for row in again.json["recipes"]:
        if row["state"] == "completed":
            assert row["images_decoded_here"] == 0
            assert row["training_seconds_here"] == row["extraction_seconds_here"] == 0
            assert row["training_seconds"] == pytest.approx(before[row["recipe"]]["training_seconds"])
            assert row["test_accuracy"] == before[row["recipe"]]["test_accuracy"]
    assert "predict" not in again.err
