"""Put on a server what the files say: work pools, queues, deployments with their schedules, automations.

What a person switched in the UI, a schedule or an automation, stays as it is. What is ours on the server,
by its tag or the start of its name, and in no file any more, is deleted.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from deployments.server import Server
from thaw.errors import NotApplied

QUEUES = {"interactive": 1, "scheduled": 2}
TAG = "thaw"
PREFIX = "thaw: "

_OURS = {"tags": {"all_": [TAG]}}
_DEPLOY_SECONDS = 180
_LOG_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is on the server now and was not before, is otherwise than before, or is gone."""

    created: tuple[str, ...]
    updated: tuple[str, ...]
    deleted: tuple[str, ...]


def pool_names(folder: Path) -> list[str]:
    """The work pools that `deployments/pools/*.json` of a project's folder stand for."""
    return [f"thaw-{file.stem}" for file in sorted((folder / "deployments" / "pools").glob("*.json"))]


def apply_files(folder: Path, server: Server, defaults: Mapping[str, str]) -> Changes:
    """Make the server's pools, deployments and automations those of a project's folder.

    `defaults` are the environment variables that prefect.yaml fills parameters from.

    Raises:
        NotApplied: a file is not what Prefect takes; what was applied before stays.
        NoServer, BadPassword: the server can't be reached.
    """
    before = _look(server)
    for name in pool_names(folder):
        _apply_pool(folder, name, server)
    _apply_deployments(folder, server, defaults)
    _apply_automations(folder, server)
    after = _look(server)
    return Changes(
        created=tuple(sorted(after.keys() - before.keys())),
        updated=tuple(sorted(name for name in after.keys() & before.keys() if after[name] != before[name])),
        deleted=tuple(sorted(before.keys() - after.keys())),
    )


def name_deployments(server: Server) -> dict[str, dict[str, Any]]:
    """The server's deployments of Thaw, by flow and name such as train/gpu."""
    flows = {flow["id"]: flow["name"] for flow in server.find("flows")}
    deployments = server.find("deployments", deployments=_OURS)
    return {f"{flows[deployment['flow_id']]}/{deployment['name']}": deployment for deployment in deployments}


def find_automations(server: Server) -> list[dict[str, Any]]:
    """The server's automations of Thaw, oldest first."""
    ours = [found for found in server.find("automations") if found["name"].startswith(PREFIX)]
    return sorted(ours, key=lambda automation: automation["created"])


def _look(server: Server) -> dict[str, Any]:
    """All of ours on the server by kind and name, without what changes by itself."""
    seen: dict[str, Any] = {}
    for pool in server.find("work_pools"):
        if pool["name"].startswith(f"{TAG}-"):
            seen[f"pool {pool['name']}"] = pool["base_job_template"]
            for queue in server.post(f"work_pools/{pool['name']}/queues/filter"):
                seen[f"queue {pool['name']}/{queue['name']}"] = queue["priority"]
    for name, deployment in name_deployments(server).items():
        kept = (
            "entrypoint",
            "parameters",
            "description",
            "work_pool_name",
            "work_queue_name",
            "job_variables",
        )
        limit = (deployment.get("global_concurrency_limit") or {}).get("limit")
        schema = deployment["parameter_openapi_schema"]
        seen[f"deployment {name}"] = [*(deployment[key] for key in kept), limit, schema]
        for schedule in deployment["schedules"]:
            seen[f"schedule {name} {schedule['slug']}"] = schedule["schedule"]
    for automation in find_automations(server):
        seen[f"automation {automation['name']}"] = _content_of(automation)
    return seen


def _apply_pool(folder: Path, name: str, server: Server) -> None:
    file = folder / "deployments" / "pools" / f"{name.removeprefix('thaw-')}.json"
    template = json.loads(file.read_text(encoding="utf-8"))
    content = {"base_job_template": template, "description": template["variables"].get("description")}
    present = next((pool["type"] for pool in server.find("work_pools") if pool["name"] == name), None)
    if present not in (None, "process"):
        raise NotApplied(
            f"the work pool {name} on the server is of type {present}, and {file} is for processes. Delete it "
            f"(`prefect work-pool delete {name}`), or deploy to it as deployments/clusters/README.md says."
        )
    if present:
        server.patch(f"work_pools/{name}", **content)
    else:
        server.post("work_pools/", name=name, type="process", **content)
    known = {queue["name"] for queue in server.post(f"work_pools/{name}/queues/filter")}
    for queue, priority in QUEUES.items():
        if queue not in known:
            server.post(f"work_pools/{name}/queues", name=queue, priority=priority)
    # Making one queue may have moved another down.
    for queue, priority in QUEUES.items():
        server.patch(f"work_pools/{name}/queues/{queue}", priority=priority)


def _apply_deployments(folder: Path, server: Server, defaults: Mapping[str, str]) -> None:
    switches = {
        (name, schedule["slug"]): schedule["active"]
        for name, deployment in name_deployments(server).items()
        for schedule in deployment["schedules"]
    }
    _deploy(folder, server, defaults)
    # The file does not name a deployment's flow, but its entrypoint stands for it.
    planned = {
        (plan["entrypoint"], plan["name"]): {schedule["slug"] for schedule in plan.get("schedules", [])}
        for plan in yaml.safe_load((folder / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    }
    for name, deployment in name_deployments(server).items():
        slugs = planned.get((deployment["entrypoint"], deployment["name"]))
        if slugs is None:
            server.delete(f"deployments/{deployment['id']}")
            continue
        for schedule in deployment["schedules"]:
            path = f"deployments/{deployment['id']}/schedules/{schedule['id']}"
            active = switches.get((name, schedule["slug"]), schedule["active"])
            if schedule["slug"] not in slugs:
                server.delete(path)
            elif active != schedule["active"]:
                server.patch(path, active=active)


def _deploy(folder: Path, server: Server, defaults: Mapping[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_DEPLOY_SECONDS,
        cwd=folder,
        env={**os.environ, **server.environment, **defaults},
    )
    if ended.returncode:
        lines = "\n".join(ended.stdout.strip().splitlines()[-_LOG_LINES:])
        raise NotApplied(f"`prefect deploy --all` in {folder} failed. Mend prefect.yaml. It said:\n{lines}")


def _apply_automations(folder: Path, server: Server) -> None:
    file = folder / "deployments" / "automations.yaml"
    planned = yaml.safe_load(file.read_text(encoding="utf-8"))["automations"]
    deployments, present = name_deployments(server), find_automations(server)
    for plan in planned:
        content = {**plan, "actions": [_resolve(action, deployments, file) for action in plan["actions"]]}
        try:
            wanted = _content_of(content)
        except ValidationError as error:
            raise NotApplied(
                f"{file}: {plan['name']!r} is no automation that Prefect takes. {error}"
            ) from None
        same = next((found for found in present if found["name"] == plan["name"]), None)
        if same is None:
            server.post("automations/", **content)
            continue
        present.remove(same)
        # An update, even to the same, forgets the runs whose next heartbeat is awaited.
        if _content_of(same) != wanted:
            server.put(f"automations/{same['id']}", **{**content, "enabled": same["enabled"]})
    for automation in present:
        server.delete(f"automations/{automation['id']}")


def _content_of(automation: dict[str, Any]) -> dict[str, Any]:
    """An automation in Prefect's own words, without its id and its switch."""
    from prefect.automations import AutomationCore

    return AutomationCore.model_validate(automation).model_dump(exclude={"enabled"})


def _resolve(action: dict[str, Any], deployments: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """An action with the id of the deployment that it names."""
    name = action.get("deployment_id")
    if name is None:
        return action
    if name not in deployments:
        known = ", ".join(deployments)
        raise NotApplied(f"{file} runs the deployment {name!r}, which prefect.yaml lacks. It has: {known}.")
    return {**action, "deployment_id": deployments[name]["id"]}
