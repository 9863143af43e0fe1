"""Templates of work pools: Prefect takes them, and a run gets from them what Thaw needs."""

import asyncio
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from docker.types import HostConfig
from jsonschema import Draft202012Validator
from prefect.client.orchestration import PrefectClient
from prefect.settings import Settings
from prefect.utilities.templating import find_placeholders
from prefect.workers.base import BaseJobConfiguration
from pydantic import ConfigDict

from tests.command import PROJECT, Server

FOLDER = PROJECT / "deployments"
CLUSTERS = FOLDER / "clusters"

# Each template, its pool's type, and the package whose worker reads it.
TEMPLATES = {
    "pools/cpu": ("process", "prefect"),
    "pools/gpu": ("process", "prefect"),
    "clusters/kubernetes-gpu": ("kubernetes", "prefect-kubernetes"),
    "clusters/docker-gpu": ("docker", "prefect-docker"),
}
every_template = pytest.mark.parametrize("name", TEMPLATES)


class Filled(BaseJobConfiguration):
    """What a worker of any type makes of a template, by Prefect's own rules."""

    model_config = ConfigDict(extra="allow")


def read_template(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def official_template(name: str) -> dict[str, Any]:
    """Prefect's own template for this type of pool."""
    kind, package = TEMPLATES[name]
    views = files("prefect.server.api") / "collections_data/views/aggregate-worker-metadata.json"
    return json.loads(views.read_text())[package][kind]["default_base_job_configuration"]


def fill_template(name: str, **job_variables: Any) -> Filled:
    never_asked = PrefectClient(api="http://127.0.0.1:1/api")
    filling = Filled.from_template_and_values(read_template(name), job_variables, client=never_asked)
    return asyncio.run(filling)


@every_template
def test_a_template_fills_what_its_worker_reads(name: str):
    read = set(official_template(name)["job_configuration"])
    if name == "clusters/docker-gpu":
        read |= {"container_create_kwargs"}  # prefect-docker reads it; the list within Prefect is older
    assert set(read_template(name)["job_configuration"]) == read


@every_template
def test_every_placeholder_has_a_variable_and_every_variable_a_place(name: str):
    template = read_template(name)
    placeholders = {found.name for found in find_placeholders(template["job_configuration"])}
    assert placeholders == set(template["variables"]["properties"])


@every_template
def test_no_variable_of_prefects_own_template_is_lost(name: str):
    ours, official = (made["variables"] for made in (read_template(name), official_template(name)))
    assert set(ours["properties"]) >= set(official["properties"])
    for key, variable in official["properties"].items():
        kept = set(variable) - {"description", "default", "example"}
        assert {part: ours["properties"][key][part] for part in kept} == {
            part: variable[part] for part in kept
        }


@every_template
def test_the_variables_are_described_and_their_defaults_are_valid(name: str):
    schema = read_template(name)["variables"]
    Draft202012Validator.check_schema(schema)
    assert all(variable["description"] for variable in schema["properties"].values())
    properties = schema["properties"].items()
    defaults = {key: variable["default"] for key, variable in properties if "default" in variable}
    Draft202012Validator(schema).validate(defaults)


@every_template
def test_no_template_chooses_a_gpu_for_all_workers(name: str):
    assert "CUDA_VISIBLE_DEVICES" not in (FOLDER / f"{name}.json").read_text()


@every_template
def test_a_run_shows_what_the_stages_log_and_tells_that_it_lives(name: str, monkeypatch: pytest.MonkeyPatch):
    for key, value in fill_template(name).env.items():
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.logging.extra_loggers == ["thaw"]
    assert settings.flows.heartbeat_frequency == 30


@every_template
def test_what_a_deployment_adds_to_the_environment_is_merged(name: str):
    added = fill_template(name, env={"EXTRA": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"})
    usual = fill_template(name).env
    assert added.env == {**usual, "EXTRA": "1", "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"}


def test_a_kubernetes_job_gets_a_gpu_and_the_store():
    name = "clusters/kubernetes-gpu"
    job = fill_template(name, image="thaw-gpu:1", store_claim="mine").job_manifest["spec"]
    assert job["backoffLimit"] == 0
    assert job["ttlSecondsAfterFinished"] > 0
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "thaw-gpu:1"
    assert container["resources"] == {
        "limits": {"nvidia.com/gpu": 1},
        "requests": {"cpu": "4", "memory": "4Gi"},
    }
    claims = {volume["name"]: volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]}
    mounts = {claims[mount.pop("name")]: mount for mount in container["volumeMounts"]}
    assert mounts == {
        "mine": {"mountPath": "/store"},
        "thaw-dumps": {"mountPath": "/dumps", "readOnly": True},
    }
    assert container["env"]["THAW_STORE"] == "/store"


def test_a_kubernetes_job_keeps_what_the_official_manifest_says():
    """Prefect's worker refuses a manifest that lacks any of it."""

    def assert_keeps(ours: Any, official: Any) -> None:
        if isinstance(official, dict):
            for key, value in official.items():
                assert_keeps(ours[key], value)
        elif isinstance(official, list):
            for mine, value in zip(ours, official, strict=True):
                assert_keeps(mine, value)
        else:
            assert ours == official

    name = "clusters/kubernetes-gpu"
    ours, official = (made["job_configuration"] for made in (read_template(name), official_template(name)))
    assert_keeps(ours, official)


def test_a_docker_container_gets_a_gpu_and_the_store():
    container = fill_template("clusters/docker-gpu", gpu="1")
    asked = HostConfig(version="1.44", **container.container_create_kwargs)["DeviceRequests"]
    assert [(request["DeviceIDs"], request["Capabilities"]) for request in asked] == [(["1"], [["gpu"]])]
    assert container.volumes == ["/store:/store", "/dumps:/dumps:ro"]
    assert container.env["THAW_STORE"] == "/store"


def test_the_image_and_the_templates_agree_on_user_and_store():
    image = (CLUSTERS / "Containerfile").read_text()
    job = fill_template("clusters/kubernetes-gpu").job_manifest["spec"]["template"]["spec"]
    security = job["securityContext"]
    assert security["runAsNonRoot"]
    assert f"USER {security['fsGroup']}\n" in image
    assert "THAW_STORE=/store\n" in image


@every_template
def test_a_server_makes_a_pool_of_each_template_and_keeps_it_as_it_is(server: Server, name: str):
    kind, _ = TEMPLATES[name]
    pool = f"test-{Path(name).name}"
    path = FOLDER / f"{name}.json"
    server.prefect("work-pool", "create", pool, "--type", kind, "--base-job-template", path, "--overwrite")
    made = server.ask("work_pools/filter", work_pools={"name": {"any_": [pool]}})[0]
    assert (made["type"], made["base_job_template"]) == (kind, read_template(name))
