"""Strategy scopes: several devices give what one gives, processes that are lost end the run, and mistakes are told."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tests.conftest import ROOT, write_verses
from tests.distribution import distributed_cases
from zoo.data import Batches
from zoo.distribution import strategy as distribution
from zoo.distribution.devices import Devices
from zoo.distribution.sharding import ShardedBatches
from zoo.errors import UserError
from zoo.io import model_files
from zoo.training.checkpoints import load_checkpoint
from zoo.training.optimizers import TorchAdam

PROGRAM = "tests/distribution/distributed_cases.py"
CASES = ("cnn", "rnn", "transformer", "denoiser", "lora")
BACKEND = keras.backend.backend()
# JAX compiles the U-Net for 45 s, TensorFlow traces it for 40; JAX has the transformer with divided weights.
QUICK = CASES[: {"jax": 2, "tensorflow": 2, "torch": 5}[BACKEND]]
PLAIN_FIT = "plain_fit@cpu:2" if BACKEND == "torch" else "plain_fit+short@cpu:2"
COUNT = 4 if BACKEND == "jax" else 2  # TensorFlow traces, and PyTorch starts, what JAX compiles once for all devices
RECIPE = "recipes/rnn_shakespeare.py --units 16 --embedding-dim 8 --sequence-length 16 --batch-size 8".split()


def results(folder, name):
    with np.load(folder / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def assert_same(one, other, tolerance=1e-4):
    """First losses and final weights."""
    assert len(one["losses"]) == 20
    np.testing.assert_allclose(other["losses"], one["losses"], atol=tolerance, rtol=0)
    weights = [key for key in one if key.startswith("arr_")]
    assert len(weights) > 4
    for key in weights:
        np.testing.assert_allclose(other[key], one[key], atol=tolerance, rtol=0)


# -------------------------------------------------------------------------------------------- one device and several


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function: results of a case on one device, in this process. Every case is trained once."""
    folder = tmp_path_factory.mktemp("trained")

    @functools.cache
    def train(case):
        distributed_cases.run(case, folder / case, devices="cpu")
        return results(folder, case)

    return train


def start(arguments, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(path, process):
    """Wait until there is the file that a process writes."""
    began = time.monotonic()
    while process.poll() is None and not path.exists():
        assert time.monotonic() - began < 600
        time.sleep(0.02)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """(folder, exit code, output) of all that one command does on simulated devices, its last run a mistake or a loss.

    JAX is asked for a number that does not divide the weights; PyTorch, which starts a process a device, loses one.
    """
    folder = tmp_path_factory.mktemp("several")
    runs = [f"{case}@cpu:{COUNT}" for case in (*QUICK, "rnn+dropout", "rnn+dropout+again")] + [PLAIN_FIT]
    if BACKEND == "jax":
        runs += ["transformer+model@cpu:4", "transformer+model@cpu:3"]
    if BACKEND == "torch":
        runs += ["rnn+endless@cpu:2"]
    process = start([PROGRAM, folder, "--devices", f"cpu:{COUNT}", "--runs", *runs])
    if BACKEND == "torch":
        wait_for(folder / "rnn+endless@cpu:2" / "endless", process)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert len(children) >= 2
        os.kill(int(children[-1]), signal.SIGKILL)
    told = process.communicate(timeout=900)[0]
    assert process.returncode == {"tensorflow": 0, "jax": 2, "torch": 1}[BACKEND], told
    return folder, told


@pytest.mark.heavy
@pytest.mark.parametrize("case", QUICK)
def test_several_devices_give_the_run_of_one(trained, several, case):
    """The CNN with a last batch that nothing divides, an RNN with states, the transformer, the denoiser, LoRA."""
    found = results(several[0], f"{case}@cpu:{COUNT}")
    assert found["count"] == COUNT
    assert_same(trained(case), found)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("count", [2 if BACKEND == "jax" else 4])
def test_other_numbers_of_devices_give_the_run_of_one(trained, tmp_path, count):
    process = start([PROGRAM, tmp_path, "--devices", f"cpu:{count}", "--runs", *(f"{c}@cpu:{count}" for c in CASES)])
    told = process.communicate(timeout=900)[0]
    assert process.returncode == 0, told
    for case in CASES:
        assert_same(trained(case), results(tmp_path, f"{case}@cpu:{count}"))


@pytest.mark.heavy
def test_dropout_repeats_from_run_to_run(trained, several):
    first, second = (results(several[0], f"rnn+{name}@cpu:{COUNT}") for name in ("dropout", "dropout+again"))
    for key in (key for key in first if key.startswith("arr_") or key == "losses"):
        np.testing.assert_array_equal(first[key], second[key])
    assert np.abs(first["losses"] - trained("rnn")["losses"]).max() > 1e-4


def shards_of(stored):
    """{path of a weight: shape of the part that the first device has}."""
    return dict(line.split(" ", 1) for line in stored["shards"])


@pytest.mark.heavy
@pytest.mark.skipif(BACKEND != "jax", reason="weights are divided on JAX only")
def test_divided_weights(trained, several):
    found = results(several[0], "transformer+model@cpu:4")
    assert_same(trained("transformer"), found)
    shards = shards_of(found)
    # d = 16, f = 32 on four devices
    assert shards["encoder_0_self_attention_query/kernel"] == "(16, 4)"
    assert shards["encoder_0_self_attention_output/kernel"] == "(4, 16)"
    assert shards["decoder_0_inner/kernel"] == "(16, 8)" and shards["decoder_0_inner/bias"] == "(8,)"
    assert shards["decoder_0_outer/kernel"] == "(8, 16)" and shards["decoder_0_outer/bias"] == "(16,)"


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.skipif(BACKEND != "jax", reason="weights are divided on JAX only")
def test_divided_weights_of_the_denoiser(trained, tmp_path):
    process = start([PROGRAM, tmp_path, "--devices", "cpu:4", "--runs", "denoiser+model@cpu:4"])
    told = process.communicate(timeout=900)[0]
    assert process.returncode == 0, told
    found = results(tmp_path, "denoiser+model@cpu:4")
    assert_same(trained("denoiser"), found)
    shards = shards_of(found)
    assert shards["down_0_resnet_0_conv1/kernel"] == "(3, 3, 16, 4)"
    assert shards["down_0_resnet_0_conv2/kernel"] == "(3, 3, 4, 16)"


@pytest.mark.heavy
def test_plain_fit_on_two_replicas_gives_the_numbers_of_one_device(several, tmp_path):
    """Arrays with the order of Keras' own shuffling, weights of classes and rows, a PyDataset, validation, evaluate."""
    distributed_cases.run_plain_fit(tmp_path / "one", devices="cpu", short="short" in PLAIN_FIT)
    same_plain_fit(results(tmp_path, "one"), results(several[0], PLAIN_FIT), 9 if "short" in PLAIN_FIT else 29)


@pytest.mark.slow("tensorflow", "jax")
@pytest.mark.heavy
@pytest.mark.skipif(BACKEND == "torch", reason="all of it is in the quick run")
def test_more_of_plain_fit(tmp_path):
    process = start([PROGRAM, tmp_path, "--devices", "cpu:2", "--runs", "plain_fit@cpu:2", "plain_fit@cpu:1"])
    told = process.communicate(timeout=900)[0]
    assert process.returncode == 0, told
    same_plain_fit(results(tmp_path, "plain_fit@cpu:1"), results(tmp_path, "plain_fit@cpu:2"), 29)


def same_plain_fit(one, two, count):
    assert len(one) == len(two) == count
    for key, values in one.items():
        np.testing.assert_allclose(two[key], values, atol=1e-5, rtol=1e-5, err_msg=key)


@pytest.mark.heavy
def test_a_checkpoint_of_several_devices_is_one_of_one(several):
    """With the weights of the last step and the state of the optimizer."""
    model, _, _, compiling, numbers = distributed_cases.cnn_case(dropout=0.0)
    model.compile(optimizer=TorchAdam(2e-3, **numbers), **compiling)
    run = f"cnn@cpu:{COUNT}"
    (row,) = load_checkpoint(several[0] / run / "checkpoint.npz", model, settings={"epochs": 1})
    found = results(several[0], run)
    assert row["loss"] in found["metrics"]
    for place, variable in enumerate(model.trainable_variables):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), found[f"arr_{place}"])
    assert int(model.optimizer.iterations) == 21


@pytest.mark.parametrize("data", [iter([1]), {"x": 1.0}, [[1.0], [2.0]]])
def test_data_that_cannot_be_divided_are_one_sentence(data):
    with pytest.raises(UserError, match="take arrays or a keras.utils.PyDataset of global batches, got"):
        distribution._batches((data, None, None), 8)


# ------------------------------------------------------------------------------------------------------ two processes


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_two(arguments):
    """The same command as two hosts start it, on loopback: two processes."""
    ports, started = free_ports(2), []
    addresses = [f"127.0.0.1:{port}" for port in ports]
    for place in range(2):
        command, more = [], {"OMP_NUM_THREADS": "1"}
        if BACKEND == "tensorflow":
            task = {"type": "worker", "index": place}
            more["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})
        elif BACKEND == "jax":
            more |= {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": ",".join(addresses),
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(place),
            }
        else:
            command += f"-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank {place}".split()
            command += f"--master-addr 127.0.0.1 --master-port {ports[0]}".split()
        started.append(start([*command, *arguments], **more))
    return started


def lose_the_second(first, second):
    """Kill the second of two processes: what both have printed."""
    os.kill(second.pid, signal.SIGKILL)
    began = time.monotonic()
    told = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert time.monotonic() - began < 60
    assert first.returncode == 1, told[0]
    said = [line for line in told[0].splitlines() if line.startswith("error: ")]  # torchrun's own report follows
    assert len(said) == 1 and "Another process of this run has gone" in said[0], told[0]
    return told


@pytest.mark.heavy
@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(("rnn",), marks=pytest.mark.slow("tensorflow")),
        pytest.param(("cnn", "transformer"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_give_the_run_of_one_and_the_loss_of_one_ends_it(trained, tmp_path, cases):
    devices = "auto" if BACKEND == "torch" else "cpu"
    runs = [*(f"{case}@{devices}" for case in cases[:-1]), f"{cases[-1]}+endless@{devices}"]
    first, second = start_two([PROGRAM, tmp_path, "--devices", devices, "--runs", *runs])
    wait_for(tmp_path / runs[-1] / "endless", first)
    told = lose_the_second(first, second)
    assert "Epoch" not in told[1] and "step" not in told[1]  # the second says nothing
    for case, run in zip(cases, runs):
        found = results(tmp_path, run)
        assert found["count"] == 2
        assert_same(trained(case), found)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_verses(tmp_path_factory.mktemp("text") / "verses.txt", words=4000, characters=18000)


@pytest.mark.slow
@pytest.mark.heavy
def test_resuming_after_a_lost_process_gives_the_run_that_was_not_cut(text, tmp_path):
    arguments = [*RECIPE, "--text", text, "--epochs", "2", "--patience", "2", "--output"]
    whole = start_two([*arguments, tmp_path / "whole"])
    told = [process.communicate(timeout=600)[0] for process in whole]
    assert [process.returncode for process in whole] == [0, 0], told

    first, second = start_two([*arguments, tmp_path / "cut"])
    wait_for(tmp_path / "cut" / "checkpoint.npz", first)
    assert "--resume" in lose_the_second(first, second)[0]
    assert not (tmp_path / "cut" / "model.keras").exists()

    resumed = start_two([*arguments, tmp_path / "cut", "--resume"])
    told = [process.communicate(timeout=600)[0] for process in resumed]
    assert [process.returncode for process in resumed] == [0, 0], told
    assert "Resuming after epoch" in told[0]
    one, other = (model_files.load_model(tmp_path / name / "model.keras").get_weights() for name in ("whole", "cut"))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.heavy
@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has a process for each device")
def test_a_lost_process_on_one_host(several):
    """The command has started its processes itself, and says which one is gone."""
    last = several[1].strip().splitlines()[-1]
    assert re.match(r"error: Process \d of 2 was ended by SIGKILL: .*--resume", last), last


# ---------------------------------------------------------------------------------------------------- between backends


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
def test_a_checkpoint_of_two_devices_goes_on_anywhere(text, tmp_path, run):
    """Written by TensorFlow on two devices; continued there, and on one device by JAX and PyTorch."""
    arguments = [*RECIPE, "--text", str(text), "--epochs", "2", "--parity"]
    process = run([*arguments, "--output", tmp_path / "cut", "--devices", "cpu:2"], backend="tensorflow", wait=False)
    wait_for(tmp_path / "cut" / "checkpoint.npz", process)
    process.kill()
    told = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, told
    losses = {}
    for backend, devices in (("tensorflow", "cpu:2"), ("jax", "cpu"), ("torch", "cpu")):
        shutil.copytree(tmp_path / "cut", tmp_path / backend)
        more = ["--devices", devices, "--output", tmp_path / backend, "--resume"]
        ended = run([*arguments, *more], backend=backend)
        assert ended.returncode == 0 and "Resuming after epoch 1 of 2" in ended.stdout, ended.stderr
        losses[backend] = json.loads((tmp_path / backend / "metrics.json").read_text())["first_losses"]
        assert len(losses[backend]) == 20
    for backend in ("jax", "torch"):
        np.testing.assert_allclose(losses[backend], losses["tensorflow"], atol=1e-3, rtol=0)


# ------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("text", ["2x", "cpu:0", "0", "gpu", "-1", "cpu:", ""])
def test_devices_that_mean_nothing(text):
    with pytest.raises(UserError, match="give auto, a number of accelerators, or cpu:4"):
        distribution.parse_devices(text)


def test_more_devices_than_there_are():
    with pytest.raises(UserError, match=f"asks for 99 accelerators, {BACKEND} finds .*cpu:99 to simulate"):
        with distribution.strategy(99):
            pass


@pytest.mark.skipif(BACKEND == "jax", reason="JAX divides weights")
def test_divided_weights_need_jax():
    with pytest.raises(UserError, match=f"needs the JAX backend, this is {BACKEND}"):
        with distribution.strategy("cpu", parallel="model", layout_map={"x": ("model",)}):
            pass


@pytest.mark.skipif(BACKEND != "jax", reason="said to JAX alone")
def test_what_jax_cannot_do():
    with pytest.raises(UserError, match="has no layout for --parallel model"):
        with distribution.strategy("cpu", parallel="model"):
            pass
    with pytest.raises(UserError, match="float16 does not run on a CPU with JAX"):
        with distribution.strategy("cpu", precision="mixed_float16"):
            pass


@pytest.mark.heavy
@pytest.mark.skipif(BACKEND != "jax", reason="weights are divided on JAX only")
def test_weights_that_devices_do_not_divide(several):
    last = several[1].strip().splitlines()[-1]
    assert re.match(r"error: --parallel model cannot divide \d+ of \S+ \(.*\) among 3 devices: use", last), last


@pytest.mark.once
def test_torch_in_one_process_does_not_pretend():
    with pytest.raises(UserError, match="a process for each device: .*torchrun --nproc-per-node 2"):
        with distribution.strategy("cpu:2"):
            pass


@pytest.mark.once
@pytest.mark.heavy
@pytest.mark.parametrize(
    "backend, devices, words",
    [
        ("jax", "cpu:3", "A batch of 8 rows cannot be divided by 3 devices"),
        pytest.param("torch", "cpu:3", "A batch of 8 rows cannot be divided by 3 devices", marks=pytest.mark.slow),
        pytest.param("tensorflow", "7", "asks for 7", marks=pytest.mark.slow),
        ("torch", "7", "asks for 7"),
    ],
)
def test_mistakes_of_a_recipe_are_one_sentence(text, tmp_path, run, backend, devices, words):
    ended = run([*RECIPE, "--text", text, "--devices", devices, "--output", tmp_path], backend=backend)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.strip().splitlines()[-1].startswith("error: ") and words in ended.stderr
    assert "Traceback" not in ended.stderr and ended.stderr.count("error:") == 1


# ---------------------------------------------------------------------------------------------------------------- parts


def test_parts_of_a_batch_weigh_what_the_whole_weighs():
    """Of 11 rows in batches of 4 on 4 devices in 2 processes: means over both parts are those over the rows."""
    x, y = np.arange(11.0), np.arange(11)
    batches = Batches(x, y, batch_size=4, seed=None)
    halves = [ShardedBatches(batches, Devices(4, num_processes=2, process_id=index)) for index in (0, 1)]
    tensorflow = BACKEND == "tensorflow"  # tf.distribute divides batches itself
    for index in range(3):
        got = [half[index] for half in halves][: 1 if tensorflow else 2]
        means = [(part[2] * part[0]).mean() for part in got]
        np.testing.assert_allclose(np.mean(means), x[4 * index : 4 * index + 4].mean(), rtol=1e-6)
        assert {len(part[0]) for part in got} == {4 if tensorflow else 2}
    parts = [ShardedBatches(batches, Devices(4), training=False)[index] for index in range(3)]
    assert {len(part[0]) for part in parts} == {4}
    sums = np.sum([[(part[2] * part[0]).sum(), len(part[0]), part[2].sum()] for part in parts], axis=0)
    np.testing.assert_allclose(sums[0] / sums[1:], x.mean(), rtol=1e-6)  # Keras' loss of an epoch, a weighted metric
    whole = ShardedBatches(Batches(x[:8], y[:8], batch_size=4), Devices(4))
    assert len(whole[0]) == 2  # no weights where none are needed


@pytest.mark.once
def test_images_as_targets_take_no_weights_of_rows():
    """Keras has no way to weigh a row of (B, H, W) losses by one number."""
    images = np.zeros((6, 4, 4, 3), "float32")
    x, y, weights = keras.utils.unpack_x_y_sample_weight(
        ShardedBatches(Batches(images, images, batch_size=6), Devices(2)).shard((images, images))
    )
    assert weights is None and x.shape == y.shape == images.shape
    odd = ShardedBatches(Batches(images[:3], images[:3], batch_size=3), Devices(2))
    with pytest.raises(
        UserError, match="A batch of 3 rows cannot be divided among 2 devices: choose a batch size that"
    ):
        odd[0]


def test_one_device_changes_nothing():
    with distribution.strategy("cpu") as devices:
        assert devices.num_devices == devices.num_replicas == 1
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
        assert distribution.to_single_device(model) is model
        model.compile(loss="mse")
        assert len(model.fit(np.zeros((3, 2)), np.zeros((3, 2)), batch_size=2, verbose=0).epoch) == 1
    assert not {"fit", "evaluate"} & set(vars(keras.Model))


@pytest.mark.heavy
@pytest.mark.parametrize(
    "precision", [pytest.param("mixed_bfloat16", marks=pytest.mark.slow("tensorflow", "jax")), "mixed_float16"]
)
def test_half_precision_learns_what_float32_learns(trained, tmp_path, precision):
    """To the digits it has; in float16 the loss is scaled, without which small gradients are zero."""
    if BACKEND == "jax" and precision == "mixed_float16":
        pytest.skip("float16 does not run on a CPU with JAX")
    distributed_cases.run("transformer", tmp_path / precision, devices="cpu", precision=precision)
    full, half = trained("transformer"), results(tmp_path, precision)
    assert str(full["optimizer"]) == "TorchAdam"
    assert str(half["optimizer"]) == ("LossScaleOptimizer" if precision == "mixed_float16" else "TorchAdam")
    np.testing.assert_allclose(half["losses"], full["losses"], rtol=0.02)
    assert half["losses"][-1] < half["losses"][0]
    assert np.abs(half["losses"] - full["losses"]).max() > 1e-6  # it was in use


def test_precision_comes_back_as_float32():
    with distribution.strategy("cpu", precision="mixed_bfloat16"):
        inputs = keras.Input((2,))
        model = keras.Model(inputs, keras.layers.Dense(3, name="dense")(inputs))
        assert model.get_layer("dense").compute_dtype == "bfloat16" and model.weights[0].dtype == "float32"
        with distribution.outside_scope():
            assert keras.config.dtype_policy().name == "float32"
    assert keras.config.dtype_policy().name == "float32"
    plain = distribution.to_single_device(model)
    assert plain.get_layer("dense").compute_dtype == "float32"
    for one, other in zip(plain.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
