"""The shape of the code itself: imports point one way, and TensorFlow is paid for only where it is needed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
# Each layer imports those before it only.
LAYERS = ["thaw", "tasks", "flows", "deployments", "commands"]


def imported_packages(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for file in (PROJECT / layer).rglob("*.py"):
        # `python -m flows` is an entry, which lies above everything.
        if file != PROJECT / "flows" / "__main__.py":
            assert imported_packages(file).isdisjoint(above), file


def test_the_method_knows_nothing_of_prefect():
    for file in (PROJECT / "thaw").rglob("*.py"):
        assert "prefect" not in imported_packages(file), file


@pytest.mark.parametrize("file", sorted((PROJECT / "flows").rglob("*.py")), ids=lambda file: file.name)
def test_no_flow_file_hides_a_package(file: Path):
    # Prefect puts a flow's folder first on sys.path.
    assert file.stem not in {
        "tasks",
        "thaw",
        "flows",
        "deployments",
        "commands",
        "keras",
        "tensorflow",
        "prefect",
        "numpy",
        "PIL",
        "yaml",
    }


def test_tensorflow_speaks_through_one_module_and_where_its_own_formats_are_written_and_run():
    speakers = {
        file.name for file in (PROJECT / "thaw").rglob("*.py") if "tensorflow" in imported_packages(file)
    }
    assert speakers == {"device.py", "formats.py", "replay.py"}


def test_what_proves_an_export_imports_nothing_of_thaw():
    assert "thaw" not in imported_packages(PROJECT / "thaw" / "replay.py")


def run_python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT
    ).stdout


def test_importing_everything_imports_no_tensorflow():
    code = """
import importlib, pkgutil, sys
import commands, deployments, flows, tasks, thaw
for package in (thaw, tasks, flows, deployments, commands):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
import commands.__main__
print([name for name in ("tensorflow", "keras", "matplotlib", "sklearn") if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_help_comes_without_prefect():
    code = """
import sys
from typer.testing import CliRunner
from commands.__main__ import app
assert "train" in CliRunner().invoke(app, ["--help"]).output
print([name for name in ("tensorflow", "keras", "prefect") if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


def test_help_costs_less_than_one_and_a_half_seconds():
    def time_help() -> float:
        """Seconds of processor time, which don't grow while others keep the machine busy."""
        before = os.times()
        subprocess.run(
            [sys.executable, "-m", "flows", "--help"], check=True, capture_output=True, cwd=PROJECT
        )
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    # 0.4 s on an idle machine.
    assert min(time_help() for _ in range(3)) < 1.5
