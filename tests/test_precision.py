"""The precision of the frozen prefix: measured once on each kind of machine, then read from the store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from thaw import precision
from thaw.device import prepare_keras
from thaw.precision import choose_precision
from thaw.store import Store

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch):
    """Have this machine multiply at these rates, in 10^9 operations a second, and list what is measured."""

    def measure(float32: float, bfloat16: float) -> list[str]:
        rates, asked = {"float32": float32, "bfloat16": bfloat16}, []
        monkeypatch.setattr(precision, "_measure_rate", lambda name: asked.append(name) or rates[name])
        return asked

    return measure


def forbid(*_):
    raise AssertionError("the machine was calibrated")


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"),
    [(100, 200, "bfloat16"), (100, 110, "float32"), (100, 129, "float32"), (100, 20, "float32")],
)
def test_bfloat16_is_taken_where_it_multiplies_clearly_faster(
    measures, store: Store, float32: float, bfloat16: float, chosen: str
):
    measures(float32, bfloat16)
    made = choose_precision("auto", store)
    assert made.name == chosen
    assert f"{bfloat16} against {float32}" in made.reason


@pytest.mark.parametrize(
    ("bfloat16", "on_cpu", "training"),
    [(200, True, "float32"), (200, False, "mixed_bfloat16"), (110, False, "float32")],
)
def test_training_takes_bfloat16_on_a_gpu_only(
    measures, store: Store, monkeypatch, bfloat16: float, on_cpu: bool, training: str
):
    measures(100, bfloat16)
    monkeypatch.setattr(precision, "computes_on_cpu", lambda: on_cpu)
    assert choose_precision("auto", store).training == training


def test_a_machine_is_calibrated_once_and_never_again(measures, store: Store, monkeypatch):
    measured = measures(100, 200)
    first = choose_precision("auto", store)
    assert sorted(measured) == ["bfloat16", "float32"]
    monkeypatch.setattr(precision, "_calibrate", forbid)
    # As in another process, which has nothing but the folder in common.
    assert choose_precision("auto", Store(store.address)) == first


def test_another_kind_of_machine_that_shares_the_store_is_calibrated_for_itself(
    measures, store: Store, monkeypatch
):
    measures(100, 200)
    here = choose_precision("auto", store)
    elsewhere = {**precision._describe_machine(), "gpus": "nvidia0"}
    monkeypatch.setattr(precision, "_describe_machine", lambda: elsewhere)
    measures(100, 90)
    assert (here.name, choose_precision("auto", store).name) == ("bfloat16", "float32")


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_precision_that_is_set_needs_no_calibration(store: Store, monkeypatch, name: str):
    monkeypatch.setattr(precision, "_calibrate", forbid)
    assert choose_precision(name, store).name == name
    assert not store.folder("calibrations").exists()


@pytest.mark.parametrize("content", ["", "{", '{"name": "float32"}'], ids=["empty", "cut off", "incomplete"])
def test_a_damaged_calibration_is_set_aside_and_made_again(measures, store: Store, content: str):
    measures(100, 200)
    choose_precision("auto", store)
    (record,) = store.folder("calibrations").iterdir()
    record.write_text(content)
    measured = measures(200, 100)
    again = choose_precision("auto", store)
    assert len(measured) == 2
    assert again.name == json.loads(record.read_text())["name"] == "float32"
    assert len(list(store.folder("damaged").iterdir())) == 1


def test_this_machine_can_be_calibrated_and_layers_stay_in_float32(store: Store):
    made = choose_precision("auto", store)
    assert made.name in ("float32", "bfloat16")
    assert min(int(word) for word in made.reason.split() if word.isdigit()) > 0
    assert prepare_keras().config.dtype_policy().name == "float32"


def test_reading_a_kept_calibration_starts_neither_keras_nor_tensorflow(measures, store: Store):
    measures(100, 200)
    choose_precision("auto", store)
    code = """
import sys
from thaw.precision import choose_precision
from thaw.store import Store
print(choose_precision("auto", Store(sys.argv[1])).name)
print([name for name in ("tensorflow", "keras", "jax") if name in sys.modules])
"""
    command = [sys.executable, "-c", code, store.address]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT)
    assert ended.stdout.splitlines() == ["bfloat16", "[]"]
