"""Each function of `zoo.compat` works on the installed releases; of a name that is gone one sentence tells."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

from zoo.compat import CompatError, private
from zoo.compat import keras as compat

BACKEND = keras.backend.backend()


def nested_model():
    """Two inputs, a nested model that is called twice, an operation of `keras.ops`."""
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="shared")], name="inner")
    first, second = keras.Input((4,), name="first"), keras.Input((4,), name="second")
    return keras.Model([first, second], {"sum": inner(first) + inner(second)}, name="outer")


def assert_one_sentence(error, name):
    text = str(error.value)
    assert name in text and text.count(". ") == 0 and text.endswith(".") and "install" in text


@pytest.mark.parametrize("path", ["src.backend.common.gone", "src.gone.module"])
def test_a_name_that_is_gone_is_named(path):
    with pytest.raises(CompatError) as error:
        private("keras", path)
    assert_one_sentence(error, f"keras.{path}")
    assert keras.__version__ in str(error.value)


@pytest.mark.parametrize(
    "name, call",
    [
        ("_flatten_layers", lambda model: compat.flatten_layers(model)),
        ("_nodes_by_depth", lambda model: compat.graph_calls(model)),
        ("_tracker", lambda model: compat.track_variables(model, [])),
        ("_symbolic_build", lambda model: compat.build_compiled(model, ())),
    ],
)
def test_functions_say_what_is_gone(name, call):
    model = nested_model()

    class Without:
        """The model without one of its names."""

        def __getattr__(self, asked):
            if asked == name:
                raise AttributeError(asked)
            return getattr(model, asked)

    with pytest.raises(CompatError) as error:
        call(Without())
    assert_one_sentence(error, name)


@pytest.mark.parametrize(
    "module, name, call",
    [
        ("saving.saving_lib", "is_memory_sufficient", lambda: compat.save_through_disk(1).__enter__()),
        ("saving.saving_lib", "_load_state", lambda: compat.load_weights(None, None, None)),
        ("saving.serialization_lib", "ObjectSharingScope", lambda: compat.deserialize_model({})),
        ("backend.common.dtypes", "BIT64_TO_BIT32_DTYPE", lambda: compat.float64_results().__enter__()),
        ("trainers.data_adapters", "get_data_adapter", lambda: list(compat.fit_batches(np.ones(2)))),
        ("utils.module_utils", "tensorflow", lambda: compat.without_tensorflow().__enter__()),
    ],
)
def test_functions_of_modules_say_what_is_gone(module, name, call, monkeypatch):
    monkeypatch.delattr(private("keras", f"src.{module}"), name)
    with pytest.raises(CompatError) as error:
        call()
    assert_one_sentence(error, name)


# ------------------------------------------------------------------------------------------------------ initial weights


def test_weights_without_values_are_given_them():
    with compat.skip_weight_init():
        model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert [tuple(weight.shape) for weight in model.weights] == [(3, 2), (2,)]
    for weight in model.weights:
        compat.set_initial_value(weight, np.full(weight.shape, 2, "float32"))
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(np.ones((1, 3), "float32"))), [[8, 8]])
    compat.set_initial_value(model.weights[0], np.zeros((3, 2), "float32"))  # one that has a value
    np.testing.assert_array_equal(model.get_weights()[0], 0)
    with keras.StatelessScope():  # at whose end Keras initializes what is pending
        pass
    np.testing.assert_array_equal(model.get_weights()[1], 2)


# --------------------------------------------------------------------------------------------------- layers and graphs


def test_every_layer_is_listed_once():
    names = [layer.name for layer in compat.flatten_layers(nested_model())]
    assert names[0] == "outer" and names.count("shared") == 1 and {"first", "second", "inner"} < set(names)
    assert "outer" not in [layer.name for layer in compat.flatten_layers(nested_model(), include_self=False)]


def test_the_graph_runs_as_keras_runs_it():
    model = nested_model()
    calls = compat.graph_calls(model)
    assert [call.operation.name.split("_")[0] for call in calls] == ["inner", "inner", "add"]
    inputs = [np.full((2, 4), value, "float32") for value in (1, 2)]
    outputs = compat.run_graph(model, list(map(keras.ops.convert_to_tensor, inputs)), lambda op, *a, **k: op(*a, **k))
    expected = keras.ops.convert_to_numpy(model(inputs)["sum"])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(outputs["sum"]), expected)


def test_which_models_have_a_graph():
    class Python(keras.Model):
        def call(self, x):
            return x

    model = nested_model()
    assert compat.functional_graph(model) is model
    inner = model.get_layer("inner")
    assert [layer.name for layer in compat.functional_graph(inner).layers][1:] == ["shared"]
    assert compat.functional_graph(Python()) is None
    assert compat.functional_graph(keras.Sequential([layers.Dense(2)])) is None


def test_a_layers_own_states_are_tracked():
    layer = layers.Dense(2)
    layer.build((None, 3))
    state = keras.Variable(np.zeros(2, "float32"), trainable=False)
    compat.track_variables(layer, [state])
    assert layer.non_trainable_variables == [state]
    with pytest.raises(ValueError):  # locked again
        layer.more = keras.Variable(np.zeros(2, "float32"))


# ---------------------------------------------------------------------------------------------- files and optimizers


def test_a_model_is_read_from_a_part_of_a_file(tmp_path):
    model = nested_model()
    with compat.save_through_disk(0), compat.without_tensorflow():
        model.save(tmp_path / "m.keras")
    with zipfile.ZipFile(tmp_path / "m.keras") as archive:
        copy = compat.deserialize_model(json.loads(archive.read("config.json")))
        compat.load_weights(copy, io.BytesIO(archive.read("model.weights.h5")), lambda dataset: None)
    for a, b in zip(copy.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_moments_of_adam():
    optimizer, variable = keras.optimizers.Adam(), keras.Variable(np.ones(3, "float32"))
    optimizer.apply([keras.ops.ones(3)], [variable])
    first, second = (keras.ops.convert_to_numpy(slot) for slot in compat.adam_slots(optimizer, variable))
    np.testing.assert_allclose(first, 0.1, rtol=1e-5)
    np.testing.assert_allclose(second, 0.001, rtol=1e-5)


# --------------------------------------------------------------------------------------------------- several processes


def fitted():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
    return model


def test_metrics_and_optimizer_are_built_without_a_step():
    model = keras.Sequential([keras.Input(batch_shape=(8, 3, 2)), layers.LSTM(2, stateful=True)])
    model.compile("adam", "mse", metrics=["mae"])
    before, batch = model.get_weights(), (np.zeros((8, 3, 2), "float32"), np.zeros((8, 2), "float32"))
    with pytest.raises(ValueError):  # what this process has of a batch
        compat.build_compiled(model, keras.tree.map_structure(lambda array: array[:4], batch))
    compat.build_compiled(model, batch)
    assert model.optimizer.built and int(model.optimizer.iterations) == 0
    assert "mae" in model.get_metrics_result()
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_keras_does_not_distribute_by_itself():
    from torch import distributed

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with compat.without_ddp():
            assert getattr(fitted(), "ddp_model", None) is None
        if compat.version() >= (3, 16):  # which does so again afterwards
            assert type(fitted().ddp_model).__name__ == "DistributedDataParallel"
    finally:
        distributed.destroy_process_group()


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_a_keras_that_distributes_under_another_name_is_told(monkeypatch):
    nothing = type("Trainer", (), {})
    monkeypatch.setattr(private("keras", "src.backend.torch.trainer"), "Trainer", nothing, raising=False)
    monkeypatch.setattr(compat, "version", lambda: (3, 16))
    with pytest.raises(CompatError) as error:
        compat.without_ddp().__enter__()
    assert_one_sentence(error, "_initialize_ddp")


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_orders_of_rows_are_those_of_fit():
    import torch

    orders = []

    class Recorder(keras.Model):
        def call(self, x):
            return x

        def train_step(self, data):
            orders.append(keras.utils.unpack_x_y_sample_weight(data)[0].flatten().tolist())
            return {}

    rows, model = np.arange(11.0)[:, None], Recorder()
    model.compile(run_eagerly=True)
    seed = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: keras.utils.set_random_seed(epoch))
    model.fit(rows, batch_size=4, epochs=2, callbacks=[seed], verbose=0)
    assert [len(batch) for batch in orders] == [4, 4, 3, 4, 4, 3] and orders[:3] != orders[3:]
    assert sorted(sum(orders[:3], [])) == list(range(11))

    sampler, next_order = compat.shuffled_batch_sampler(11, 4)
    loader, found = torch.utils.data.DataLoader(list(range(11)), batch_sampler=sampler), []
    for epoch in range(2):
        keras.utils.set_random_seed(epoch)
        next_order()
        found += [batch.tolist() for batch in loader]
    assert found == orders


# --------------------------------------------------------------------------------------------------------- frameworks


def test_batches_are_those_that_fit_takes():
    """Every example once, in batches of the size asked for; in another order where they are shuffled."""
    x = np.arange(12.0, dtype="float32").reshape(12, 1)
    keras.utils.set_random_seed(3)
    batches = [np.array(keras.ops.convert_to_numpy(batch[0])) for batch in compat.fit_batches(x, x, batch_size=5)]
    np.testing.assert_array_equal(np.concatenate(batches), x)
    keras.utils.set_random_seed(3)
    shuffled = [np.array(b[0]).ravel() for b in compat.fit_batches(x, x, batch_size=5, shuffle=True)]
    assert sorted(np.concatenate(shuffled)) == list(range(12)) and [len(b) for b in shuffled] == [5, 5, 2]


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_pytorchs_private_kernels():
    import torch

    from zoo.compat import torch as compat_torch

    weight, bias, x = torch.randn(5, 7), torch.randn(5), torch.randn(2, 3, 7)
    for b in (bias, None):
        expected = torch.nn.functional.linear(x, weight, b)
        torch.testing.assert_close(compat_torch.packed_linear(weight, b)(x), expected, atol=1e-5, rtol=1e-5)
    before = compat_torch.tensor_version(x)
    x.add_(1)
    assert compat_torch.tensor_version(x) > before
    theirs = torch.nn.Parameter(torch.ones(3))
    theirs.grad = torch.arange(3.0)
    torch.optim.Adam([theirs], lr=0.1).step()
    ours, moments = torch.ones(3), [torch.zeros(3), torch.zeros(3)]
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0, "eps": 1e-8}
    compat_torch.fused_adam(
        [ours],
        [theirs.grad],
        [moments[0]],
        [moments[1]],
        [],
        [torch.tensor(1.0)],
        **options,
        amsgrad=False,
        maximize=False,
    )
    torch.testing.assert_close(ours, theirs.data)


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_pytorchs_names_that_are_gone(monkeypatch):
    import torch

    from zoo.compat import torch as compat_torch

    monkeypatch.delattr(torch, "_fused_adam_")
    with pytest.raises(CompatError) as error:
        compat_torch.fused_adam([])
    assert_one_sentence(error, "torch._fused_adam_")


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
def test_jaxs_barrier_asks_the_client(monkeypatch):
    from zoo.compat.jax import wait_at_barrier

    state, calls = private("jax", "_src.distributed.global_state"), []
    monkeypatch.setattr(
        state, "client", type("Client", (), {"wait_at_barrier": lambda self, *arguments: calls.append(arguments)})()
    )
    wait_at_barrier("here", 1.5)
    assert calls == [("here", 1500)]


@pytest.mark.once
@pytest.mark.parametrize("module", ["keras", "jax", "torch"])
def test_importing_compat_loads_no_framework(module, run):
    ended = run(
        [
            "-c",
            f"import sys, zoo.compat.{module}; assert not {{'keras', 'tensorflow', 'jax', 'torch'}} & set(sys.modules)",
        ]
    )
    assert ended.returncode == 0, ended.stderr
