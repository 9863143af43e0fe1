"""Deployments: what the files say is what Prefect takes, and what a real server then has."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.templating import apply_values

from deployments import server as servers
from deployments.apply import PREFIX, QUEUES, apply_files, find_automations, name_deployments, pool_names
from deployments.setup import deploy_defaults
from tests.command import PROJECT, Server
from tests.conftest import small_config
from thaw.errors import NotApplied

DEPLOYMENTS = yaml.safe_load((PROJECT / "prefect.yaml").read_text())
AUTOMATIONS = yaml.safe_load((PROJECT / "deployments" / "automations.yaml").read_text())["automations"]

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
KNOWN_OF_SCHEDULES = {"slug", "cron", "timezone", "day_or", "active", "parameters"}


def defaults(dump: Path = Path("/data/train.zip")) -> dict[str, str]:
    return deploy_defaults(small_config(dump))


each_deployment = pytest.mark.parametrize(
    "deployment", DEPLOYMENTS["deployments"], ids=lambda plan: f"{plan['entrypoint']}, {plan['name']}"
)


def test_prefect_yaml_has_no_key_that_prefect_would_ignore():
    assert set(DEPLOYMENTS) <= KNOWN_TOP
    for deployment in DEPLOYMENTS["deployments"]:
        assert set(deployment) <= KNOWN, deployment["name"]
        assert set(deployment["work_pool"]) <= {"name", "work_queue_name", "job_variables"}
        for schedule in deployment.get("schedules", []):
            assert set(schedule) <= KNOWN_OF_SCHEDULES, deployment["name"]


@each_deployment
def test_an_entrypoint_is_a_flow_that_takes_the_parameters(deployment: dict, monkeypatch: pytest.MonkeyPatch):
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert isinstance(flow, Flow)
    for name, value in defaults().items():
        monkeypatch.setenv(name, value)
    parameters = apply_values(deployment.get("parameters", {}), os.environ)
    assert "{{" not in json.dumps(parameters)
    # What has no default of the deployment is asked for by the form.
    asked = {"images": ["one.jpg"], "call": "none"}
    needed = {name: asked[name] for name in flow.parameters.required if name not in parameters}
    flow.validate_parameters({**needed, **parameters})


@each_deployment
def test_a_deployment_goes_to_a_pool_and_a_queue_that_there_are(deployment: dict):
    assert deployment["work_pool"]["name"] in pool_names(PROJECT)
    assert deployment["work_pool"]["work_queue_name"] in QUEUES
    assert "thaw" in deployment["tags"]


def test_every_schedule_has_a_name_a_time_zone_and_starts_switched_off():
    schedules = [entry for plan in DEPLOYMENTS["deployments"] for entry in plan.get("schedules", [])]
    assert schedules
    for schedule in schedules:
        assert schedule["slug"] and schedule["timezone"]
        assert schedule["active"] is False


def test_automations_are_ours_by_name():
    assert all(automation["name"].startswith(PREFIX) for automation in AUTOMATIONS)


@pytest.fixture(scope="module")
def prefect(server: Server) -> servers.Server:
    return servers.Server(url=server.url)


@pytest.fixture(scope="module")
def deployed(prefect: servers.Server, home: Path) -> str:
    """The id of `train/cpu`, deployed as the head of prefect.yaml says."""
    apply_files(PROJECT, prefect, defaults())
    return name_deployments(prefect)["train/cpu"]["id"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory):
    """A Prefect home of the commands that deploying runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("home")))
        yield Path(os.environ["PREFECT_HOME"])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_wrong_parameter_is_refused_before_a_run_exists(server: Server, deployed: str):
    config = {"dump": {"path": "x.zip"}, "head": {"dropout": 2}}
    command = ["deployment", "run", "train/cpu", "--param", f"config={json.dumps(config)}"]
    with pytest.raises(AssertionError, match="dropout|less than"):
        server.prefect(*command)


@pytest.mark.slow
def test_what_left_the_files_is_gone_and_what_a_person_switched_stays(
    prefect: servers.Server, deployed: str, tmp_path: Path
):
    weekly = name_deployments(prefect)["retrain/weekly"]
    path = f"deployments/{weekly['id']}/schedules/{weekly['schedules'][0]['id']}"
    prefect.patch(path, active=True)
    nothing = apply_files(PROJECT, prefect, defaults())
    assert (nothing.created, nothing.updated, nothing.deleted) == ((), (), ())
    again = name_deployments(prefect)["retrain/weekly"]
    assert again["id"] == weekly["id"]
    assert [schedule["active"] for schedule in again["schedules"]] == [True]

    (tmp_path / "deployments").mkdir()
    shutil.copytree(PROJECT / "deployments" / "pools", tmp_path / "deployments" / "pools")
    plan, automations = json.loads(json.dumps(DEPLOYMENTS)), json.loads(json.dumps(AUTOMATIONS))
    plan["deployments"] = [entry for entry in plan["deployments"] if entry["name"] != "batch"]
    (changed,) = [entry for entry in plan["deployments"] if entry["name"] == "weekly"]
    changed["schedules"][0]["slug"] = "every-monday"
    automations[0]["name"] = f"{PREFIX}otherwise"
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(plan))
    (tmp_path / "deployments" / "automations.yaml").write_text(yaml.safe_dump({"automations": automations}))
    changes = apply_files(tmp_path, prefect, defaults())
    old, new = "schedule retrain/weekly weekly", "schedule retrain/weekly every-monday"
    assert set(changes.deleted) == {old, f"automation {AUTOMATIONS[0]['name']}", "deployment predict/batch"}
    assert set(changes.created) == {new, f"automation {PREFIX}otherwise"}
    schedules = name_deployments(prefect)["retrain/weekly"]["schedules"]
    assert [schedule["active"] for schedule in schedules] == [False]
    assert len(find_automations(prefect)) == len(AUTOMATIONS)

    automations[1]["actions"][0]["deployment_id"] = "retrain/daily"
    (tmp_path / "deployments" / "automations.yaml").write_text(yaml.safe_dump({"automations": automations}))
    with pytest.raises(NotApplied, match="retrain/daily"):
        apply_files(tmp_path, prefect, defaults())
