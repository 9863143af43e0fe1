"""Training on several devices: as on one but for the order of sums, and going on exactly. Two virtual devices do."""

import importlib.util
import json
import shutil
import subprocess
import sys
import textwrap
from os import environ
from pathlib import Path

import numpy as np
import pytest

from tests.prepared import Prepared
from thaw.device import choose_sharing
from thaw.store import Store
from thaw.trainer import find_checkpoint, load_network

PROJECT = Path(__file__).resolve().parent.parent
NO_JAX = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None,
    reason="JAX is not installed: pip install jax brings Keras's other backend",
)
BACKENDS = [pytest.param("jax", marks=NO_JAX), "tensorflow"]

# What each process begins with: so many devices, and `held`, the images that each of them had of a training batch.
DEVICES = """
    import json, os, sys
    sys.path.insert(0, {project!r})
    import numpy as np
    held = set()
    if os.environ["KERAS_BACKEND"] == "jax":
        import jax
        divide = jax.make_array_from_process_local_data
        def divide_and_note(*arguments):
            array = divide(*arguments)
            # Keras passes sample weights through here as well, which are none.
            for shard in getattr(array, "addressable_shards", ()):
                held.add((str(shard.device), shard.data.shape[0]))
            return array
        jax.make_array_from_process_local_data = divide_and_note
    else:
        from thaw.device import prepare_keras
        prepare_keras()
        import tensorflow
        cpu = tensorflow.config.list_physical_devices("CPU")[0]
        one = tensorflow.config.LogicalDeviceConfiguration()
        tensorflow.config.set_logical_device_configuration(cpu, [one] * {devices})
        from thaw.steps import TensorFlowSteps
        measure = TensorFlowSteps._measure
        def measure_and_note(self, rows, batch, training):
            figures = measure(self, rows, batch, training)
            held.add((figures.device, rows.shape[0]))
            return figures
        TensorFlowSteps._measure = measure_and_note
"""

# Two epochs of each network, whose last batches are smaller and odd; then everything that was learned.
EPOCHS = """
    from tests.test_steps import SHAPE, build_convolutional, build_dense, draw_epoch
    from thaw.config import OptimizerConfig
    from thaw.device import list_layers, prepare_keras, share_batches
    from thaw.steps import compile_network, compile_steps
    keras = prepare_keras()
    def build_normalised(classes, optimizer):
        keras.utils.set_random_seed(0)
        layers = [keras.Input(SHAPE), keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(momentum=0.5)]
        layers += [keras.layers.Flatten(), keras.layers.Dense(classes, "softmax")]
        network = keras.Sequential(layers)
        compile_network(network, OptimizerConfig(name=optimizer, learning_rate=0.01, momentum=0.9), classes)
        return network
    networks = {{
        "dense": lambda: build_dense(2, "rmsprop", l2=0.1),
        "convolutional": lambda: build_convolutional(3, "sgd", l2=0.1),
        "normalised": lambda: build_normalised(3, "sgd"),
    }}
    if os.environ["KERAS_BACKEND"] == "jax":
        networks["dropout"] = lambda: build_dense(2, "sgd", dropout=0.5)
    learned = {{}}
    for name, build in networks.items():
        with share_batches(8):
            network = build()
            steps = compile_steps(network)
            figures = []
            for epoch in range(2):
                for layer in list_layers(network):
                    if isinstance(layer, keras.layers.Dropout):
                        layer.seed_generator.state.assign(np.array([7, epoch], "uint32"))
                network.optimizer.learning_rate = 0.01 / (epoch + 1)
                for rows, labels in draw_epoch(2 if network.output_shape[-1] == 1 else 3):
                    figures.append(steps.train(rows[None], labels[None]))
                    figures.append(steps.score(rows, labels))
            network.save({folder!r} + f"/{{name}}.keras")
        # Two devices leave no mark on what is saved.
        assert not any(getattr(layer, "synchronized", False) for layer in network.layers)
        saved = keras.models.load_model({folder!r} + f"/{{name}}.keras").get_weights()
        assert all(np.array_equal(one, two) for one, two in zip(saved, network.get_weights(), strict=True))
        for place, array in enumerate([np.array(figures), *network.get_weights()]):
            learned[f"{{name}} {{place}}"] = array
    np.savez({folder!r} + "/learned.npz", **learned)
    print(json.dumps(sorted(held)))
"""

# A head and a fine-tune, killed when so many epochs are done.
TRAINING = """
    import signal
    from pathlib import Path
    from tests.prepared import head_of, prepare, tune
    from thaw import journal, trainer
    journal._JOURNAL_SECONDS = 0.0
    prepared = prepare(Path({dump!r}), Path({store!r}))
    run_epoch, left = trainer._run_epoch, {epochs}
    def run_and_die(*arguments):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return run_epoch(*arguments)
    trainer._run_epoch = run_and_die
    head = head_of(prepared, stop="at_budget", epochs=3).value
    tuned = tune(prepared, head, epochs=3, patience_epochs=None, depth_factor=0.5).value
    print(json.dumps([sorted(held), head.address, tuned.address]))
"""

# What dropout leaves of two equal images, one for each device: their sum is 2 only where the masks differ.
MASKS = """
    from thaw.config import OptimizerConfig
    from thaw.device import compile_function, prepare_keras, share_batches, share_out
    from thaw.steps import compile_network, compile_steps
    keras = prepare_keras()
    with share_batches(2):
        network = keras.Sequential([keras.Input((64,)), keras.layers.Dropout(0.5)])
        compile_network(network, OptimizerConfig(), 64)
        steps = compile_steps(network)
        def drop(images):
            with steps._draw_own_masks():
                return network(images, training=True)[0]
        drop = compile_function(share_out(drop, axis=0), fuse=False)
        sums = [np.array(drop(np.ones((2, 64), np.float32))) for _ in range(2)]
        (layer,) = network.layers
        seeds = [np.array(copy) for copy in layer.seed_generator.state.value.values]
    assert np.array_equal(*seeds)
    print(json.dumps([sorted(set(array.tolist())) for array in sums] + [bool(np.array_equal(*sums))]))
"""


def run(backend: str, devices: int, script: str, code: int = 0, **values: object) -> object:
    """What a fresh process with so many devices printed, from JSON; None where it was killed."""
    text = textwrap.dedent(DEVICES) + textwrap.dedent(script)
    # As pyproject.toml has it for the tests.
    allowed = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-W", allowed]
        + ["-c", text.format(project=str(PROJECT), devices=devices, **values)],
        check=False,
        capture_output=True,
        text=True,
        env={
            **environ,
            "KERAS_BACKEND": backend,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        },
    )
    assert ended.returncode == code, ended.stderr[-3000:]
    return None if code else json.loads(ended.stdout)


@pytest.mark.parametrize(
    ("visible", "batch_size", "chosen"),
    [(1, 32, 1), (2, 32, 2), (8, 20, 5), (3, 32, 2), (4, 7, 1), (8, 4, 4)],
)
def test_as_many_devices_take_part_as_divide_a_batch(visible: int, batch_size: int, chosen: int):
    devices = [f"gpu:{number}" for number in range(visible)]
    assert choose_sharing(devices, batch_size) == devices[:chosen]


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_devices_learn_what_one_does_from_shares_of_each_batch(backend: str, tmp_path: Path):
    """Weights agree to 1e-5, figures of a batch of 8 to 2e-5: penalties, batch statistics and set rates as well."""
    learned, held = [], []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        held.append(run(backend, devices, EPOCHS, folder=str(folder)))
        with np.load(folder / "learned.npz") as arrays:
            learned.append({name: arrays[name] for name in arrays.files})
    alone, together = learned
    assert list(alone) == list(together)
    for name, expected in alone.items():
        tolerance = 2e-5 if name.endswith(" 0") else 1e-5
        np.testing.assert_allclose(together[name], expected, rtol=0, atol=tolerance, err_msg=name)
    # Batches of 8 were divided, those of 3 went to each whole.
    names = {device for device, _ in held[1]}
    assert len(names) == 2
    assert {(device, images) for device, images in held[1]} == {
        (device, images) for device in names for images in (3, 4)
    }


@pytest.mark.slow
def test_training_on_two_devices_killed_and_continued_ends_bit_for_bit_the_same(
    prepared: Prepared, drawn_dump: Path, tmp_path: Path
):
    def train(store: str, epochs: int, code: int = 0) -> object:
        given = {"dump": str(drawn_dump), "store": str(tmp_path / store), "epochs": epochs}
        return run("tensorflow", 2, TRAINING, code, **given)

    for name in ("undisturbed", "killed"):
        shutil.copytree(prepared.store.folder(), tmp_path / name)
    held, *addresses = train("undisturbed", 99)
    assert len({device for device, _ in held}) == 2
    # Killed after two epochs of the head; then after the last of it and two of the fine-tune; then let go.
    train("killed", 2, -9)
    train("killed", 3, -9)
    assert train("killed", 99)[1:] == addresses
    stores = [Store(tmp_path / name) for name in ("undisturbed", "killed")]
    for address in addresses:
        one, two = (find_checkpoint(store, address) for store in stores)
        assert one == two
        ends = [load_network(store, address).get_weights() for store in stores]
        assert all(np.array_equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.slow
def test_devices_draw_dropout_of_their_own_and_anew_in_each_step():
    first, second, same = run("tensorflow", 2, MASKS)
    assert first == second == [0.0, 2.0, 4.0]
    assert not same
