"""Deployments: every key is one that Prefect knows, and a worker runs them on a real server."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.command import PROJECT, SMALL, Server

DEPLOYMENTS = yaml.safe_load((PROJECT / "prefect.yaml").read_text())

# What `prefect deploy` reads, by Prefect's documentation; it ignores other keys without a word.
KNOWN_TOP = {"name", "prefect-version", "definitions", "build", "push", "pull", "deployments"}
KNOWN = {
    *(
        "name",
        "version",
        "version_type",
        "tags",
        "description",
        "schedule",
        "schedules",
        "triggers",
        "paused",
    ),
    *("concurrency_limit", "flow_name", "entrypoint", "parameters", "enforce_parameter_schema", "work_pool"),
    *("build", "push", "pull", "sla"),
}


def settings_of(arguments: list[str]) -> dict:
    """The command line's `--set` options as nested settings."""
    settings: dict = {}
    for argument in arguments:
        if argument.startswith("--set="):
            key, _, value = argument.removeprefix("--set=").partition("=")
            section, name = key.split(".")
            settings.setdefault(section, {})[name] = yaml.safe_load(value)
    return settings


def test_prefect_yaml_has_no_key_that_prefect_would_ignore():
    assert set(DEPLOYMENTS) <= KNOWN_TOP
    for deployment in DEPLOYMENTS["deployments"]:
        assert set(deployment) <= KNOWN, deployment["name"]
        assert set(deployment["work_pool"]) <= {"name", "work_queue_name", "job_variables"}


@pytest.fixture(scope="module")
def deployed(server: Server) -> str:
    """The id of `train/local`, deployed as the head of prefect.yaml says."""
    server.prefect("work-pool", "create", "thaw-local", "--type", "process", "--overwrite")
    server.prefect("deploy", "--all")
    found = server.ask("deployments/filter", deployments={"name": {"any_": ["local"]}})
    return found[0]["id"]


def test_the_form_has_descriptions_and_bounds_and_asks_for_the_dump_alone(server: Server, deployed: str):
    schema = server.ask("deployments/filter", deployments={"id": {"any_": [deployed]}})[0][
        "parameter_openapi_schema"
    ]
    definitions = schema["definitions"]
    assert definitions["TrainConfig"]["required"] == ["dump"]
    assert definitions["HeadConfig"]["properties"]["dropout"]["exclusiveMaximum"] == 1
    for name, definition in definitions.items():
        for key, field in definition["properties"].items():
            described = "description" in field or "$ref" in json.dumps(field)
            assert described, f"{name}.{key} has no description"


def test_a_wrong_parameter_is_refused_before_a_run_exists(server: Server, deployed: str):
    config = {"dump": {"path": "x.zip"}, "head": {"dropout": 2}}
    command = ["deployment", "run", "train/local", "--param", f"config={json.dumps(config)}"]
    with pytest.raises(AssertionError, match="dropout|less than"):
        server.prefect(*command)


@pytest.mark.slow
def test_a_worker_runs_the_deployment_to_a_tested_model(
    server: Server, deployed: str, drawn_dump: Path, tmp_path: Path
):
    config = {"dump": {"path": str(drawn_dump)}, "recipe": "demo", **settings_of(SMALL)}
    parameters = {"config": config, "store": str(tmp_path / "store")}
    given = [f"--param={name}={json.dumps(value)}" for name, value in parameters.items()]
    server.prefect("deployment", "run", "train/local", *given)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "thaw-local", "--run-once"]
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(command, env=server.environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 300
        while (run := server.newest_run())["deployment_id"] != deployed or run["state"]["type"] not in (
            "COMPLETED",
            "FAILED",
            "CRASHED",
        ):
            assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()
            time.sleep(2)
    finally:
        worker.terminate()
        worker.wait(30)
    assert run["state"]["name"] == "Completed", (tmp_path / "worker.log").read_text()
    assert run["name"] == f"demo on {drawn_dump.name}"
    assert "test accuracy" in run["state"]["message"]
    assert list((tmp_path / "store" / "runs").glob("*/model.keras"))
    logs = server.ask("logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, limit=200)
    assert any("epoch 2 of" in line["message"] for line in logs)
