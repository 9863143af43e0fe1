"""The command line, as a user meets it: every command in its own process, on a real Prefect server."""

import csv
import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import SMALL, Ended, Server
from tests.salted import salt_dump

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store that the commands of this file share."""
    return tmp_path_factory.mktemp("commands") / "store"


@pytest.fixture(scope="module")
def trained(server: Server, drawn_dump: Path, place: Path) -> Ended:
    """The first run of the small job."""
    return server.thaw("train", "--dump", drawn_dump, "--store", place, "--json", *SMALL)


def test_train_prints_one_json_object_with_all_that_a_script_needs(trained: Ended):
    assert trained.code == 0, trained.err
    result = trained.json
    assert result["verdict"] == "plateaued"
    assert 0.5 < result["test_accuracy"] <= 1
    assert 0 < result["test_log_loss"] < 1
    assert 0 <= result["head_test_accuracy"] <= 1
    assert len(result["split"]) == 16
    assert result["cached"] == []
    assert {"scan dump", "train head, seed 0, budget 1", "fine-tune after block4_pool, seed 0"} <= set(
        result["seconds"]
    )
    assert Path(result["model"]).is_file()
    assert Path(result["report"]).is_file()


def test_progress_goes_to_standard_error_with_rate_and_time_left(trained: Ended):
    assert "block4_pool and block5_pool of images" in trained.err
    assert "images/s" in trained.err


def test_the_run_folder_holds_model_report_evaluation_and_pictures(trained: Ended):
    folder = Path(trained.json["model"]).parent
    names = {file.name for file in folder.iterdir()}
    assert {
        "model.keras",
        "model-card.md",
        "report.html",
        "evaluation.json",
        "curves.png",
        "confusion.png",
        "views.png",
    } <= names
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert len(evaluation["predictions"]) == 40


def test_the_second_identical_run_finds_every_stage_published(
    server: Server, trained: Ended, drawn_dump: Path, place: Path
):
    again = server.thaw("train", "--dump", drawn_dump, "--store", place, "--json", *SMALL)
    assert again.code == 0, again.err
    figures = (
        "test_accuracy",
        "test_log_loss",
        "head_test_accuracy",
        "verdict",
        "model",
        "report",
        "split",
        "run",
    )
    assert {key: again.json[key] for key in figures} == {key: trained.json[key] for key in figures}
    assert set(again.json["seconds"]) - set(again.json["cached"]) == {"judge convergence"}
    states = server.task_states(server.newest_run()["id"])
    assert states["judge convergence"] == "Completed"
    assert {state for name, state in states.items() if name != "judge convergence"} == {"Cached"}


def test_the_run_and_its_stages_have_names_that_say_what_they_are_and_came_to(
    server: Server, trained: Ended, drawn_dump: Path
):
    run = server.newest_run()
    assert run["name"] == f"demo on {drawn_dump.name}: {trained.json['test_accuracy']:.4f}"
    assert {"demo", drawn_dump.name} <= set(run["tags"])
    assert "1 views at block4_pool" in server.task_states(run["id"])


def test_a_run_leaves_tables_and_pictures_in_the_prefect_ui(server: Server, trained: Ended):
    artifacts = server.ask(
        "artifacts/filter", artifacts={"flow_run_id": {"any_": [server.newest_run()["id"]]}}
    )
    found = {artifact["key"]: artifact for artifact in artifacts if artifact["key"]}
    assert {"split", "gate", "report"} <= set(found)
    assert "data:image/png;base64" in found["report"]["data"]
    assert len(found["report"]["data"]) < 300_000


def test_a_head_that_trains_on_views_takes_those_of_the_fine_tune_through_in_the_same_pass(
    server: Server, trained: Ended, drawn_dump: Path, place: Path
):
    # A seed of its own, so that no view is found cached from other tests.
    settings = ["--set=head.views=2", "--set=augmentation.seed=7"]
    short = [
        "--set=head.epochs=2",
        "--set=fine_tune.epochs=1",
        "--set=gate.max_extensions=0",
        "--override-gate",
    ]
    ended = server.thaw("train", "--dump", drawn_dump, "--store", place, "--json", *SMALL, *settings, *short)
    assert ended.code == 0, ended.err
    states = server.task_states(server.newest_run()["id"])
    assert states["2 views at block5_pool"] == "Completed"
    assert states["1 views at block4_pool"] == "Cached"
    assert "block4_pool and block5_pool of views" in ended.err
    assert "features at block5_pool" not in states


def test_a_closed_gate_is_exit_code_3_a_named_state_and_a_report_without_a_model(
    server: Server, trained: Ended, drawn_dump: Path, place: Path
):
    impatient = ["--set=head.epochs=2", "--set=gate.max_extensions=1"]
    ended = server.thaw("train", "--dump", drawn_dump, "--store", place, "--json", *SMALL, *impatient)
    assert ended.code == 3, ended.err
    assert "gate stayed closed" in ended.err
    assert "Traceback" not in ended.err
    result = ended.json
    assert result["verdict"] == "improving"
    assert result["model"] is None
    assert result["test_accuracy"] is None
    assert "Gate closed" in Path(result["report"]).read_text()
    run = server.newest_run()
    assert run["state"]["name"] == "GateClosed"
    assert run["state"]["message"].startswith("no model: ")
    states = server.task_states(run["id"])
    assert "fine-tune after block4_pool, seed 0" not in states
    assert "evaluate head" not in states


def test_an_overridden_gate_fine_tunes_and_says_so_everywhere(
    server: Server, trained: Ended, drawn_dump: Path, place: Path
):
    settings = ["--set=head.epochs=2", "--set=gate.max_extensions=0", "--override-gate"]
    ended = server.thaw("train", "--dump", drawn_dump, "--store", place, "--json", *SMALL, *settings)
    assert ended.code == 0, ended.err
    result = ended.json
    assert result["gate_overridden"] is True
    assert result["verdict"] == "improving"
    assert "overridden" in Path(result["report"]).read_text()
    with zipfile.ZipFile(result["model"]) as archive:
        assert json.loads(archive.read("thaw.json"))["gate_overridden"] is True


def test_a_head_at_chance_is_not_released_even_where_no_fine_tune_is_planned(
    server: Server, trained: Ended, drawn_dump: Path, place: Path
):
    blind = [
        "--set=backbone.weights=random",
        "--set=fine_tune.epochs=0",
        "--set=head.optimizer.learning_rate=1e-7",
    ]
    patient = ["--set=gate.min_improvement_nats=1"]
    ended = server.thaw("train", "--dump", drawn_dump, "--store", place, "--json", *SMALL, *blind, *patient)
    assert ended.code == 3, ended.err
    assert ended.json["verdict"] == "at_chance"
    assert ended.json["model"] is None


def test_a_run_whose_model_was_deleted_is_released_again(
    server: Server, trained: Ended, drawn_dump: Path, place: Path
):
    Path(trained.json["model"]).unlink()
    again = server.thaw("train", "--dump", drawn_dump, "--store", place, "--json", *SMALL)
    assert again.code == 0, again.err
    assert "release" not in again.json["cached"]
    assert Path(again.json["model"]).is_file()


def test_predict_answers_for_each_image_and_reports_a_bad_one_in_its_row(
    server: Server, trained: Ended, drawn_dump: Path, tmp_path: Path
):
    folder = tmp_path / "images"
    folder.mkdir()
    with zipfile.ZipFile(drawn_dump) as archive:
        for name in ("train/cat.55.jpg", "train/dog.55.jpg"):
            (folder / Path(name).name).write_bytes(archive.read(name))
    (folder / "broken.jpg").write_bytes(b"<html>not found</html>")
    model, table = trained.json["model"], tmp_path / "out.csv"
    ended = server.thaw("predict", model, folder, tmp_path / "missing.jpg", "--file", table)
    assert ended.code == 0, ended.err
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "label", "p_cat", "p_dog", "error"]
    by_name = {Path(row["path"]).name: row for row in rows}
    assert set(by_name) == {"broken.jpg", "cat.55.jpg", "dog.55.jpg", "missing.jpg"}
    assert "HTML" in by_name["broken.jpg"]["error"]
    assert by_name["missing.jpg"]["error"]
    for name in ("cat.55.jpg", "dog.55.jpg"):
        shares = {key: float(by_name[name][f"p_{key}"]) for key in ("cat", "dog")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert by_name[name]["label"] == max(shares, key=shares.get)


def test_predict_reproduces_from_raw_files_what_the_model_was_tested_with(
    server: Server, trained: Ended, drawn_dump: Path
):
    evaluation = json.loads((Path(trained.json["model"]).parent / "evaluation.json").read_text())
    tested = {row["path"]: row["probabilities"] for row in evaluation["predictions"]}
    ended = server.thaw("predict", trained.json["model"], drawn_dump, "--json")
    again = {row["path"].partition(".zip/")[2]: row["probabilities"] for row in ended.json["images"]}
    assert len(again) == 200
    assert max(abs(again[path][1] - tested[path][1]) for path in tested) < 0.02
    # Block 5 learned from augmented views, so that the model keeps its 40 validation images; 10 fit the basis.
    drift = ended.json["drift"]
    assert (drift["state"], drift["reference_side"], drift["reference_images"]) == ("quiet", "validation", 30)


def test_split_writes_and_prints_counts_and_quarantine(server: Server, drawn_dump: Path, tmp_path: Path):
    dump = tmp_path / "salted.zip"
    dump.write_bytes(drawn_dump.read_bytes())
    with zipfile.ZipFile(dump, "a") as archive:
        archive.writestr("train/cat.900.jpg", b"")
    ended = server.thaw("split", "--dump", dump, "--store", tmp_path / "store", "--json", *SMALL[:4])
    assert ended.code == 0, ended.err
    assert ended.json["counts"]["train"] == {"cat": 60, "dog": 60}
    assert [row["path"] for row in ended.json["quarantined"]] == ["train/cat.900.jpg"]
    assert Path(ended.json["file"]).is_file()
    table = server.thaw("split", "--dump", dump, "--store", tmp_path / "store", *SMALL[:4])
    assert "cat.900.jpg" in table.out
    assert "an empty file" in table.out


def test_features_fills_the_cache_and_exports_arrays(
    server: Server, trained: Ended, drawn_dump: Path, place: Path
):
    out = place.parent / "notebook"
    ended = server.thaw(
        "features", "--dump", drawn_dump, "--store", place, "--export", out, "--json", *SMALL[:5]
    )
    assert ended.code == 0, ended.err
    assert ended.json["cached"] is True
    assert (out / "bottleneck_features_validation.npy").is_file()


def test_doctor_tells_what_the_machine_is_and_what_is_missing(server: Server, tmp_path: Path):
    sound = server.thaw("doctor", "--recipe", "demo", "--store", tmp_path / "store", "--json").json
    assert sound["problems"] == []
    assert sound["precision"] == "float32"
    assert sound["versions"]["prefect"] == "3.8.8"
    assert sound["disk_left_gb"] > 0
    ill = server.thaw(
        "doctor", "--weights", tmp_path / "none.h5", "--store", tmp_path / "store", "--json"
    ).json
    assert "none.h5" in ill["problems"][0]


def test_recipes_lists_every_recipe(server: Server):
    listed = server.thaw("recipes", "--json").json["recipes"]
    assert {"blog-bottleneck", "book2-finetune", "demo"} <= set(listed)
    assert "Expected" in listed["book2-finetune"]["about"]


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "--dump", "{dump}", "--recipe", "book2-finetun"], "Did you mean 'book2-finetune'?"),
        (["train", "--dump", "{dump}", "--set", "head.dropuot=0.1"], "'dropout'"),
        (["train", "--dump", "{dump}", "--set", "head.dropout=1.5"], "nearest valid value"),
        (["train", "--dump", "{dump}", "--set", "nonsense"], "KEY=VALUE"),
        (["train", "--dump", "{dump}", "--set", "gate=5", "--override-gate"], "has no parts"),
        (["train", "--dump", "{dump}", "--set", "head.epochs=[1"], "YAML"),
        (["train", "--dump", "{dump}", "--set", "recipe=5"], "no recipe '5'"),
        (["train", "--dump", "{dump}", "--recipe", "../recipes/demo"], "no recipe"),
        (["predict", "{dump}", "{dump}", "--file", "/nowhere/out.csv"], "no folder /nowhere"),
        (["predict", "{dump}", "{dump}", "--file", "/out.json"], ".csv or .parquet"),
        (["predict", "{dump}", "{dump}", "--false-alarm-rate", "1"], "between 0 and 1"),
        (["features", "--dump", "{dump}", "--recipe=demo", "--cut=block9_pool"], "no layer 'block9_pool'"),
        (["train", "--dump", "{dump}", "--layout", "flatt"], "'flat'"),
        (["train", "--dump", "/nowhere.zip", "--recipe", "demo"], "/nowhere.zip"),
        (["retrain", "--dump", "/nowhere.zip", "--weights", "/nowhere.h5"], "no dump at /nowhere.zip"),
        (["train", "--dump", "{dump}", "--recipe", "demo"], "class 'cat' has 100 usable images"),
        (["train", "--dump", "{dump}", "--weights", "/nowhere.h5"], "no weights at /nowhere.h5"),
        (
            [
                "train",
                "--dump",
                "{dump}",
                "--recipe",
                "demo",
                "--set",
                "fine_tune.cut=block6_pool",
                *SMALL[1:4],
            ],
            "block4_pool",
        ),
        (["predict", "/nowhere.keras", "{dump}"], "no model at /nowhere.keras"),
        (["predict", "{dump}", "{dump}"], "not a model that Thaw saved"),
        (["export", "/nowhere.keras", "--format", "keras"], "no model at /nowhere.keras"),
        (["train"], "--dump"),
        (["trian"], "trian"),
    ],
)
def test_a_users_mistake_is_exit_code_2_and_one_plain_message(
    server: Server, drawn_dump: Path, tmp_path: Path, arguments: list[str], hint: str
):
    given = [argument.replace("{dump}", str(drawn_dump)) for argument in arguments]
    ended = server.thaw(*given, THAW_STORE=str(tmp_path / "store"))
    assert ended.code == 2, ended.err
    assert hint in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""


def test_weights_are_checked_before_any_image_is_decoded(server: Server, drawn_dump: Path, tmp_path: Path):
    ended = server.thaw(
        "train", "--dump", drawn_dump, "--weights", "/nowhere.h5", "--store", tmp_path / "store"
    )
    assert ended.code == 2
    assert "verify images" not in ended.err
    assert not (tmp_path / "store" / "manifests").exists()


def test_imagenet_weights_that_can_not_be_downloaded_say_what_to_do(
    server: Server, drawn_dump: Path, tmp_path: Path
):
    closed = {
        name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    }
    ended = server.thaw(
        *("train", "--dump", drawn_dump, "--store", tmp_path / "store"),
        **closed,
        no_proxy="127.0.0.1",
        KERAS_HOME=str(tmp_path / "keras"),
    )
    assert ended.code == 2, ended.err
    assert "--weights PATH" in ended.err
    assert "copy them from another machine's" in ended.err
    assert "verify images" not in ended.err


def test_a_server_that_does_not_answer_is_told_at_once(server: Server, drawn_dump: Path, tmp_path: Path):
    for url in ("http://127.0.0.1:9/api", "nonsense"):
        ended = server.thaw(
            *("train", "--dump", drawn_dump, "--store", tmp_path / "store", *SMALL), PREFECT_API_URL=url
        )
        assert ended.code == 2
        assert "does not answer" in ended.err
        assert "`thaw up` starts one" in ended.err
        assert "Traceback" not in ended.err


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB, where the machine lets the tests mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk can't be mounted here, which takes root")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up_is_told_and_the_run_resumes_when_there_is_room(
    server: Server, drawn_dump: Path, tiny_disk: Path
):
    command = ["features", "--dump", drawn_dump, "--store", tiny_disk / "store", "--json", *SMALL]
    full = server.thaw(*command, "--cut=block3_pool")
    assert full.code == 1, full.err
    assert "room" in full.err
    assert "Traceback" not in full.err
    subprocess.run(["mount", "-o", "remount,size=20m", tiny_disk], check=True)
    resumed = server.thaw(*command, "--cut=block3_pool")
    assert resumed.code == 0, resumed.err
    assert not (tiny_disk / "store" / "damaged").exists()


def test_a_salted_dump_trains_on_all_good_images_and_lists_all_bad_ones(
    server: Server, drawn_dump: Path, tmp_path: Path
):
    with zipfile.ZipFile(drawn_dump) as archive:
        good = {name: archive.read(name) for name in archive.namelist()}
    salted = salt_dump(tmp_path / "salted.zip", good)
    shares = ["--set=split.train=0.6", "--set=split.validation=0.2", "--set=split.test=0.2"]
    tolerant = ["--set=split.strategy=hash", *shares, "--set=dump.max_quarantine_fraction=0.4"]
    command = [*SMALL, *tolerant, "--store", tmp_path / "store", "--json"]
    ended = server.thaw("train", "--dump", salted.path, *command)
    assert ended.code == 0, ended.err
    manifest = json.loads(next((tmp_path / "store" / "manifests").glob("*.json")).read_text())
    listed = {row["path"]: row["reason"] for row in manifest["quarantined"]}
    assert set(listed) == set(salted.quarantined)
    assert all(salted.quarantined[path] in reason for path, reason in listed.items())
    split = json.loads((tmp_path / "store" / "splits" / f"{ended.json['split']}.json").read_text())
    used = {row["path"] for side in ("train", "validation", "test") for row in split[side]}
    assert used == salted.sound
    report = Path(ended.json["report"]).read_text()
    assert "decompression bomb" in report


def test_a_store_that_can_not_be_written_is_told(server: Server, drawn_dump: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    ended = server.thaw("train", "--dump", drawn_dump, "--store", tmp_path / "file" / "store", *SMALL)
    assert ended.code == 2
    assert "can't be written" in ended.err
