"""`thaw up`, `thaw status` and `thaw down`: real processes, in a state folder and at a port of the test's own."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments import local
from deployments.local import bring_up
from deployments.processes import find_processes
from deployments.setup import Setup, read_setup
from deployments.supervise import plan_workers
from tests.conftest import small_config
from tests.machine import Machine, wait_until
from thaw.errors import BadDump, NotStarted

MINUTE = 60


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, drawn_dump: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("machine"))
    try:
        machine.up("--dump", drawn_dump, "--recipe", "demo")
        yield machine
    finally:
        machine.thaw("down")
        assert not find_processes(machine.home)


@pytest.mark.slow
def test_after_up_all_is_well_and_commands_in_its_folder_find_the_server(machine: Machine):
    seen = machine.thaw("status", "--json")
    assert seen.code == 0, seen.out
    status = seen.json
    assert status["problems"] == []
    assert [child["name"] for child in status["children"]] == ["server", "worker-cpu", "worker-gpu"]
    assert {pool["name"]: pool["workers"] for pool in status["pools"]} == {
        "thaw-cpu": ["cpu"],
        "thaw-gpu": ["gpu"],
    }
    assert all(pool["queues"][:2] == ["interactive", "scheduled"] for pool in status["pools"])
    (weekly,) = [plan for plan in status["deployments"] if plan["name"] == "retrain/weekly"]
    assert weekly["schedules"] == [{"slug": "weekly", "active": False, "next_run": None}]
    assert f'url = "{machine.server.url}"' in (machine.home / "prefect.toml").read_text()


@pytest.mark.slow
def test_a_deployment_runs_to_a_tested_model(machine: Machine, drawn_dump: Path):
    config = small_config(drawn_dump).model_dump(mode="json", exclude={"augmentation"})
    machine.server.prefect("deployment", "run", "train/cpu", f"--param=config={json.dumps(config)}")
    wait_until(
        lambda: machine.server.newest_run()["state"]["type"] not in ("SCHEDULED", "PENDING", "RUNNING"), 240
    )
    run = machine.server.newest_run()
    log = (machine.home / "logs" / "worker-cpu.log").read_text()
    assert run["state"]["name"] == "Completed", log
    assert run["name"].startswith(f"demo on {drawn_dump.name}")
    assert "test accuracy" in run["state"]["message"]
    assert list((machine.store / "runs").glob("*/model.keras"))
    # Logs come in batches.
    asked = {"logs": {"flow_run_id": {"any_": [run["id"]]}}, "limit": 200}
    wait_until(
        lambda: any("epoch 2 of" in line["message"] for line in machine.server.ask("logs/filter", **asked))
    )


@pytest.mark.slow
def test_up_again_changes_nothing_and_remembers_what_was_given(machine: Machine, drawn_dump: Path):
    def look() -> list[tuple[str, str]]:
        kinds = ("deployments", "automations", "work_pools")
        return sorted((kind, found["id"]) for kind in kinds for found in machine.server.ask(f"{kind}/filter"))

    before, children = look(), machine.status()["children"]
    ended = machine.thaw("up")
    assert ended.code == 0, ended.err
    assert "nothing on the server had to change" in ended.out
    assert look() == before
    assert machine.status()["children"] == children
    assert read_setup(machine.home).dump == str(drawn_dump)


@pytest.mark.slow
def test_a_killed_worker_is_noticed_and_started_again(machine: Machine):
    before = machine.child("worker-gpu")
    os.kill(before["process"], signal.SIGKILL)
    wait_until(lambda: machine.child("worker-gpu")["restarts"] == before["restarts"] + 1)
    after = machine.child("worker-gpu")
    assert after["process"] not in (None, before["process"])


@pytest.mark.slow
def test_a_server_that_hangs_is_said_within_ten_seconds(machine: Machine):
    server = machine.child("server")["process"]
    os.kill(server, signal.SIGSTOP)
    try:
        began = time.monotonic()
        silent = machine.thaw("status")
        assert time.monotonic() - began < 10
    finally:
        os.kill(server, signal.SIGCONT)
    assert silent.code == 1
    assert "does not answer" in silent.err


@pytest.mark.slow
def test_runs_that_no_worker_takes_are_a_problem_and_down_after_a_kill_leaves_nothing(
    tmp_path: Path, drawn_dump: Path
):
    machine = Machine(tmp_path)
    secret = {"PREFECT_SERVER_API_AUTH_STRING": "somebody:open sesame"}
    try:
        machine.up("--dump", drawn_dump, "--recipe", "demo", **secret)
        refused = machine.thaw("status", PREFECT_API_AUTH_STRING="somebody:else")
        assert refused.code == 1
        assert "refuses the password" in refused.err
        strange = {"PREFECT_API_URL": machine.server.url, "PREFECT_API_AUTH_STRING": "somebody:else"}
        stopped = machine.thaw("train", "--dump", drawn_dump, "--recipe", "demo", **strange)
        assert stopped.code == 2
        assert "refuses the password" in stopped.err
        assert "Traceback" not in stopped.err
        unasked = machine.thaw("up")
        assert unasked.code == 2
        assert "asks for a password" in unasked.err
        for process in find_processes(machine.home):
            if process.child in ("supervisor", "worker-gpu"):
                os.kill(process.id, signal.SIGKILL)
        user, _, password = secret["PREFECT_SERVER_API_AUTH_STRING"].partition(":")
        with httpx.Client(base_url=machine.server.url, auth=(user, password), timeout=30) as client:
            stage = client.get("/deployments/name/stage/gpu").json()
            created = client.post(
                f"/deployments/{stage['id']}/create_flow_run", json={"parameters": {"call": "x"}}
            )
            assert created.is_success, created.text
        seen = machine.thaw("status", **secret)
        assert seen.code == 1
        assert "the supervisor was killed" in seen.err
        assert "pool thaw-gpu has no live worker; runs waiting there: 1" in seen.err
        told = [file.read_bytes() for file in machine.home.rglob("*") if file.is_file()]
        assert not any(password.encode() in content for content in told)
    finally:
        ended = machine.thaw("down")
    assert ended.code == 0
    assert not find_processes(machine.home)
    assert machine.is_port_free()
    assert not (machine.home / "prefect.toml").exists()
    assert machine.thaw("down").code == 0
    assert machine.thaw("status").code == 1


def test_each_gpu_gets_a_worker_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\necho 'GPU 0: H100'\necho 'GPU 1: H100'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    workers = [(worker.name, worker.pool, worker.runs, worker.devices) for worker in plan_workers()]
    cpu = ("cpu", "thaw-cpu", 4, "-1")
    assert workers == [cpu, ("gpu0", "thaw-gpu", 1, "0"), ("gpu1", "thaw-gpu", 1, "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [worker.devices for worker in plan_workers()] == ["-1", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [(worker.name, worker.devices) for worker in plan_workers()] == [("cpu", "-1"), ("gpu", "-1")]


def test_nothing_is_started_for_a_dump_that_is_not_there(tmp_path: Path):
    setup = Setup(dump=str(tmp_path / "none.zip"), store=str(tmp_path))
    with pytest.raises(BadDump, match=r"none\.zip"):
        bring_up(setup, setup, tmp_path, tell=print)
    assert not find_processes(tmp_path)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "somewhere"])
def test_an_open_server_needs_a_password(host: str, tmp_path: Path, drawn_dump: Path, monkeypatch):
    monkeypatch.delenv("PREFECT_SERVER_API_AUTH_STRING", raising=False)
    setup = Setup(dump=str(drawn_dump), recipe="demo", host=host)
    with pytest.raises(NotStarted, match="PREFECT_SERVER_API_AUTH_STRING=user:password"):
        bring_up(setup, setup, tmp_path, tell=print)


def test_a_port_in_use_is_named(tmp_path: Path, drawn_dump: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        setup = Setup(dump=str(drawn_dump), recipe="demo", port=taken.getsockname()[1])
        with pytest.raises(NotStarted, match=rf"port {setup.port}.*--port"):
            bring_up(setup, setup, tmp_path, tell=print)


def test_a_prefect_toml_of_somebody_else_stays(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("THAW_HOME", str(tmp_path))
    theirs = "[api]\nurl = 'http://elsewhere/api'\n"
    (tmp_path / "prefect.toml").write_text(theirs)
    local.bring_down(tmp_path, tell=print)
    assert (tmp_path / "prefect.toml").read_text() == theirs
