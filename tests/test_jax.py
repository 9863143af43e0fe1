"""The method on Keras's JAX backend: the same features, a head and a fine-tune that learn, a model for anyone."""

import importlib.util
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from tests.prepared import Prepared, prepare
from thaw.evaluate import evaluate
from thaw.gradcam import heat_up, map_heat
from thaw.records import Checkpoint, Evaluation, FeatureSet
from thaw.rows import Rows
from thaw.store import Store
from thaw.trainer import find_checkpoint, load_network, predict_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax") is None,
        reason="JAX is not installed: pip install jax brings Keras's other backend",
    ),
]

METHOD = """
    import json, sys
    sys.path.insert(0, {project!r})
    from pathlib import Path
    from tests.prepared import head_of, prepare, tune
    from thaw.evaluate import evaluate
    from thaw.gradcam import map_heat
    prepared = prepare(Path({dump!r}), Path({store!r}))
    head = head_of(prepared, stop="at_budget", epochs=6).value
    tuned = tune(prepared, head, epochs=2).value
    scored = evaluate(tuned, prepared.block4.test, prepared.store).value
    map_heat(scored, tuned, prepared.block4.test, prepared.store)
    import keras
    facts = {{"backend": keras.backend.backend(), "tensorflow": "tensorflow" in sys.modules}}
    print(json.dumps({{**facts, "head": head.address, "tuned": tuned.address}}))
"""


@dataclass(frozen=True)
class OnJax:
    """What a process on JAX found, and the store that it filled."""

    found: dict
    store: Store

    def find(self, stage: Literal["head", "tuned"]) -> Checkpoint:
        return find_checkpoint(self.store, self.found[stage])


@pytest.fixture(scope="module")
def on_jax(drawn_dump: Path, tmp_path_factory: pytest.TempPathFactory) -> OnJax:
    root = tmp_path_factory.mktemp("jax") / "store"
    project = str(Path(__file__).resolve().parent.parent)
    script = textwrap.dedent(METHOD).format(project=project, dump=str(drawn_dump), store=str(root))
    # As pyproject.toml has it for the tests.
    allowed = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-W", allowed, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        env={**environ, "KERAS_BACKEND": "jax"},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return OnJax(json.loads(ended.stdout), Store(root))


@pytest.fixture(scope="module")
def on_tensorflow(drawn_dump: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(drawn_dump, tmp_path_factory.mktemp("tensorflow") / "store")


def test_the_method_runs_on_jax(on_jax: OnJax):
    assert on_jax.found["backend"] == "jax"


def test_tensorflow_is_not_imported(on_jax: OnJax):
    assert not on_jax.found["tensorflow"]


@pytest.mark.parametrize(
    "choose", [lambda run: run.bottlenecks.test, lambda run: run.block4.train], ids=["bottlenecks", "views"]
)
def test_features_are_nearly_those_of_tensorflow(
    on_jax: OnJax, on_tensorflow: Prepared, choose: Callable[[Prepared], FeatureSet]
):
    # A space does not name the backend: where two share a store, either takes the other's rows for its own.
    features = choose(on_tensorflow)
    stores = (on_jax.store, on_tensorflow.store)
    ours, others = (Rows(features, store).read(slice(None)).astype(np.float64) for store in stores)
    assert np.linalg.norm(ours - others) < 1e-3 * np.linalg.norm(others)


def test_the_head_learns_and_the_fine_tune_goes_on_from_there(on_jax: OnJax):
    head, tuned = (on_jax.find(stage).history for stage in ("head", "tuned"))
    assert len(head.epochs) == 6
    assert head.epochs[-1].loss < head.epochs[0].loss
    assert tuned.start.val_loss == pytest.approx(head.best.val_loss, rel=0.02)
    assert len(tuned.epochs) == 2
    assert tuned.best.val_loss < tuned.start.val_loss


@pytest.fixture(scope="module")
def evaluation(on_jax: OnJax, on_tensorflow: Prepared) -> Evaluation:
    """What JAX made of the test images, found in its store."""
    made = evaluate(on_jax.find("tuned"), on_tensorflow.block4.test, on_jax.store)
    assert made.reused
    return made.value


def test_test_images_are_told_apart_better_than_by_chance(evaluation: Evaluation):
    assert evaluation.metrics.images == 40
    assert evaluation.metrics.accuracy_interval[0] > 0.5


def test_a_model_trained_on_jax_answers_the_same_on_tensorflow(
    on_jax: OnJax, on_tensorflow: Prepared, evaluation: Evaluation
):
    network = load_network(on_jax.store, on_jax.found["tuned"])
    rows = Rows(on_tensorflow.block4.test, on_jax.store)
    expected = [row.probabilities for row in evaluation.predictions]
    np.testing.assert_allclose(predict_rows(network, rows), expected, atol=1e-4)


def test_heat_is_that_of_tensorflow(on_jax: OnJax, on_tensorflow: Prepared, evaluation: Evaluation):
    tuned, test = on_jax.find("tuned"), on_tensorflow.block4.test
    made = map_heat(evaluation, tuned, test, on_jax.store)
    assert made.reused
    paths = [row.path for row in evaluation.predictions]
    places = np.array([paths.index(one.path) for one in made.value.maps])
    called = [evaluation.classes.index(one.called) for one in made.value.maps]
    network = load_network(on_jax.store, tuned.address)
    again = heat_up(network, Rows(test, on_jax.store).read(places), called)
    np.testing.assert_allclose([one.heat for one in made.value.maps], again, atol=2e-3)
