"""The decoding step as plain PyTorch calls, against the same step as a Keras model of the layers themselves."""

import keras
import numpy as np
import pytest

from zoo.generation import torch_rnn
from zoo.generation.recurrent import RecurrentGenerator
from zoo.generation.torch_rnn import torch_step
from zoo.models.rnn_language_model import decode_step_model, rnn_language_model

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="calls of PyTorch")


def small_model(**options):
    options = {"vocabulary_size": 11, "embedding_dim": 6, "units": 6, "num_layers": 2, "dropout": 0.3} | options
    model = rnn_language_model(**options)
    rng = np.random.default_rng(3)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


@pytest.mark.parametrize(
    "cell, tied, layers, max_table",
    [("lstm", False, 2, 0), ("lstm", True, 1, 1000), ("gru", False, 3, 1000), ("gru", True, 2, 0)],
)
def test_step_equals_that_of_the_layers(cell, tied, layers, max_table, monkeypatch):
    monkeypatch.setattr(torch_rnn, "_MAX_TABLE", max_table)
    model = small_model(cell=cell, tie_embeddings=tied, num_layers=layers)
    expected, read_weights = decode_step_model(model), torch_step(model)
    states = peer_states = [keras.ops.zeros((3, 6)) for _ in expected.inputs[1:]]
    rng = np.random.default_rng(0)
    for position in range(5):
        if position == 3:  # weights that change are noticed
            model.trainable_variables[1].assign(rng.normal(0, 0.5, model.trainable_variables[1].shape))
        tokens = keras.ops.convert_to_tensor(rng.integers(0, 11, 3), dtype="int32")
        logits, *states = read_weights()(tokens, *states)
        peer_logits, *peer_states = expected([tokens, *peer_states], training=False)
        for ours, theirs in zip([logits, *states], [peer_logits, *peer_states], strict=True):
            ours, theirs = keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_layers_with_other_equations_keep_those_of_keras():
    model = small_model(cell="gru")
    config = model.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "GRU":
            layer["config"]["recurrent_activation"] = "hard_sigmoid"
    other = keras.Model.from_config(config)
    assert torch_step(other) is None
    assert len(list(RecurrentGenerator(other).generate([[1, 2]], max_new_tokens=4))) == 4
    half = keras.Model.from_config({**model.get_config(), "name": "half"})
    for layer in half.layers:
        layer.dtype_policy = "bfloat16"
    assert torch_step(half) is None
