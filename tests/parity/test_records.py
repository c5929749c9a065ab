"""The record of a run: every layer call in order, samples that miss no change, inputs that are always the same."""

import keras
import numpy as np
import pytest
from keras import layers

from zoo.compat.keras import functional_graph
from zoo.errors import UserError
from zoo.io import files, model_files
from zoo.parity import records


def run(model, *inputs):
    outputs, calls = records.record_layer_outputs(model, list(inputs))
    return outputs, [path for path, _, _ in calls], [kind for _, kind, _ in calls], [output for _, _, output in calls]


def test_calls_of_nested_and_shared_models_in_order():
    """The numbers of every call are those of a model that ends there."""
    x = keras.Input((4,), name="x")
    hidden = keras.Input((4,))
    inner = keras.Model(hidden, layers.Dense(4, activation="tanh", name="twist")(hidden), name="inner")
    stack = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="narrow"), inner_of_three()], name="stack")
    first = inner(x)
    second = inner(first)
    joined = keras.ops.add(first, second)
    model = keras.Model(x, stack(joined), name="outer")

    value = np.random.default_rng(0).standard_normal((5, 4)).astype("float32")
    outputs, paths, kinds, values = run(model, value)
    assert paths == [
        "inner/twist",
        "inner/twist",
        "add",
        "stack/narrow",
        "stack/three/leaf",
    ]
    assert kinds == ["Dense", "Dense", "Add", "Dense", "Dense"]
    np.testing.assert_allclose(outputs[0], model.predict(value, verbose=0), atol=1e-6)
    kernel, bias = inner.get_weights()
    once = np.tanh(value @ kernel + bias)
    np.testing.assert_allclose(values[0][0], once, atol=1e-6)
    np.testing.assert_allclose(values[1][0], np.tanh(once @ kernel + bias), atol=1e-6)
    np.testing.assert_allclose(values[2][0], values[0][0] + values[1][0], atol=1e-6)


def inner_of_three():
    x = keras.Input((3,))
    return keras.Model(x, layers.Dense(2, name="leaf")(x), name="three")


def without_mask(paths):
    """Sorted paths without the operation that makes an embedding's mask, a call of its own in Keras 3.15 only."""
    return sorted(set(paths) - {"not_equal"})


@pytest.mark.filterwarnings("ignore:.* does not support masking:UserWarning")  # of Keras 3.16, of what uses up a mask
@pytest.mark.filterwarnings("ignore:Layer 'reader'|Layer 'flat':UserWarning")  # neither hands the mask on
def test_masks_and_layers_around_models_are_left_as_they_are():
    """A mask reaches the LSTM inside a nested model, and what a layer does with a model inside it is one call."""
    words = keras.Input((6,), dtype="int32", name="words")
    vectors = keras.Input((None, 4))
    reader = keras.Model(vectors, layers.LSTM(3, name="lstm")(vectors), name="reader")
    step = keras.Sequential([keras.Input((4,)), layers.Dense(2, name="inside")], name="step")
    embedded = layers.Embedding(9, 4, mask_zero=True, name="table")(words)
    each = layers.TimeDistributed(step, name="each")(embedded)
    model = keras.Model(words, [reader(embedded), layers.Flatten(name="flat")(each)])

    tokens = np.array([[1, 2, 3, 0, 0, 0], [4, 5, 6, 7, 8, 1]], "int32")
    outputs, paths, _, _ = run(model, tokens)
    assert without_mask(paths) == ["each", "flat", "reader/lstm", "table"]
    for a, b in zip(outputs, model.predict(tokens, verbose=0)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # The mask arrived: the LSTM read the first three words and no more.
    short = reader.predict(model.get_layer("table")(tokens[:1, :3]), verbose=0)
    np.testing.assert_allclose(outputs[0][0], short[0], atol=1e-6)


def test_a_model_that_is_not_functional():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = keras.Sequential([keras.Input((3,)), layers.Dense(2)])

        def call(self, x):
            return self.inner(x) + 1

    model = Subclassed()
    x = np.ones((4, 3), "float32")
    expected = keras.ops.convert_to_numpy(model(x))
    outputs, paths, _, _ = run(model, x)
    assert paths == [] and functional_graph(model) is None
    np.testing.assert_allclose(outputs[0], expected, atol=1e-6)
    assert [made.shape for made in records.synthetic_inputs(model)] == [(4, 3)]


def test_a_model_works_as_before_after_an_error():
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(2, name="dense")(x))
    with pytest.raises(Exception):  # noqa: B017 - each backend raises its own kind
        run(model, np.ones((1, 5), "float32"))
    outputs, paths, _, values = run(model, np.ones((1, 3), "float32"))
    assert paths == ["dense"]
    np.testing.assert_array_equal(outputs[0], values[0][0])
    np.testing.assert_allclose(model.predict(np.ones((1, 3), "float32"), verbose=0), outputs[0], atol=1e-6)


@pytest.mark.once
def test_small_outputs_are_kept_whole():
    array = np.arange(30.0).reshape(5, 6)
    np.testing.assert_array_equal(records.sample_values([array], 30), array.ravel())
    np.testing.assert_array_equal(records.sample_values([array[0], array[1]], 30), array[:2].ravel())
    assert records.sample_values([np.array([True, False])], 30).tolist() == [1, 0]
    assert records.sample_values([], 30).shape == (0,)


@pytest.mark.once
@pytest.mark.parametrize("shape", [(4, 48, 48, 32), (4, 18432), (2, 7, 512), (3, 5000)])
@pytest.mark.parametrize("values", [16, 64, 320])
def test_no_channel_can_change_without_the_sample(shape, values):
    rng = np.random.default_rng(0)
    array = rng.standard_normal(shape)
    before = records.sample_values([array], values)
    assert before.size <= values and before.dtype == np.float32
    for channel in rng.integers(0, shape[-1], 20):
        changed = array.copy()
        changed[..., channel] += 1
        assert np.abs(records.sample_values([changed], values) - before).max() > 1e-4


@pytest.mark.once
def test_a_normalisation_hides_no_change():
    """Every channel of a normalised picture has mean 0 whatever the picture."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 30, 30, 3))
    a, b = (x - x.mean(axis=(0, 1, 2)) for x in (a, b))
    means = slice(records._NUM_VALUES, None)
    assert np.abs(records.sample_values([a], 320)[means] - records.sample_values([b], 320)[means]).max() > 1e-3


def test_synthetic_inputs():
    picture, words = keras.Input((None, None, 3), name="picture"), keras.Input((None,), dtype="int32", name="words")
    floats, flags = keras.Input((7,), name="floats"), keras.Input((7,), dtype="bool", name="flags")
    table = layers.Embedding(5, 3)(words)
    outputs = [keras.ops.mean(picture), table, floats, flags]
    model = keras.Model([picture, words, floats, flags], outputs)
    made = records.synthetic_inputs(model)
    assert [x.dtype for x in made] == ["uint8", "int32", "float32", "bool"]
    assert made[0].shape[0] == 4 and made[0].shape[-1] == 3 and (made[0].min(), made[0].max()) == (0, 255)
    assert np.abs(np.diff(made[0].astype(int), axis=1)).mean() < 40  # smooth: noise would have 85
    assert made[1].min() >= 1 and made[1].max() < 5
    assert made[2].shape == (4, 7) and 0.2 < made[2].std() < 3
    large = keras.Input((96, 96, 3))
    assert [x.shape for x in records.synthetic_inputs(keras.Model(large, large))] == [(1, 96, 96, 3)]
    for a, b in zip(made, records.synthetic_inputs(model)):
        np.testing.assert_array_equal(a, b)


def test_a_record_is_written_beside_the_file_and_read_back(tmp_path):
    x = keras.Input((8, 8, 1), name="x")
    y = layers.Dense(3, name="out")(layers.Flatten(name="flat")(layers.Conv2D(2, 3, name="conv")(x)))
    model_files.save_model(keras.Model(x, y, name="small"), tmp_path / "small.keras")
    path = records.write_parity_record(tmp_path / "small.keras")
    assert path == tmp_path / "small.parity.npz" and path.stat().st_size < 20_000
    record = records.ParityRecord.load(path)
    assert list(record.layers) == ["conv", "flat", "out"]
    assert [kind for kind, _ in record.layers.values()] == ["Conv2D", "Flatten", "Dense"]
    assert record.metadata["backend"] == keras.backend.backend() and record.metadata["keras"] == keras.__version__
    assert record.metadata["sha256"] == files.sha256(tmp_path / "small.keras") and record.metadata["functional"]
    assert set(record.metadata["weights"]) == {"conv", "out"}
    model = model_files.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(record.outputs[0], model.predict(record.inputs[0], verbose=0), rtol=1e-5, atol=1e-4)
    content = path.read_bytes()
    records.write_parity_record(tmp_path / "small.keras")
    assert path.read_bytes() == content  # the same numbers make the same file


@pytest.mark.filterwarnings("ignore:.* does not support masking:UserWarning")  # of Keras 3.16, of what uses up a mask
def test_paths_do_not_depend_on_what_the_process_did_before(tmp_path):
    """Keras makes the operation that masks anew, under another number, whenever a sequential model is loaded."""
    words = [keras.Input((6,), dtype="int32"), layers.Embedding(9, 4, mask_zero=True, name="table")]
    keras.Sequential([*words, layers.LSTM(3, name="lstm")]).save(tmp_path / "reader.keras")
    paths = [list(records.compute_parity_record(tmp_path / "reader.keras").layers) for _ in range(2)]
    assert paths[0] == paths[1] and without_mask(paths[0]) == ["lstm", "table"]


@pytest.mark.once
def test_damaged_records(tmp_path):
    path = tmp_path / "small.parity.npz"
    for content in (b"nothing", b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match="small.parity.npz is not a parity record .*write_parity_record"):
            records.ParityRecord.load(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(UserError, match="is not a parity record"):
        records.ParityRecord.load(path)
