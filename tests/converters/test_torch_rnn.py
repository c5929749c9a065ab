"""Weights of torch.nn.LSTM, GRU and RNN in Keras' layers: equal outputs, states and gradients, and strict names.

Tolerances, float32: outputs and final states 1e-5 over 100 steps; gradients 1e-4, the largest of each test being
between 1 and 100.
"""

import re
import sys

import keras
import numpy as np
import pytest
import torch

import zoo
from zoo import cli
from zoo.converters.torch_rnn import (
    build_layers,
    build_model,
    language_model_state_dict,
    load_language_model_state_dict,
    load_state_dict,
    read_state_dict,
    state_dict,
)
from zoo.errors import UserError
from zoo.models.rnn_language_model import recurrent_layers, rnn_language_model

KERAS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "simple": keras.layers.SimpleRNN}
TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "simple": torch.nn.RNN}
# Gates in the order of each library's documentation, in Keras' letters; written again here, apart from the converter.
KERAS_GATES = {"lstm": "ifco", "gru": "zrh", "simple": "h"}
TORCH_GATES = {"lstm": "ifco", "gru": "rzh", "simple": "h"}
B, T, D, H = 2, 100, 3, 4


def torch_rnn(cell, layers=1, both=False, bias=True, seed=0):
    torch.manual_seed(seed)
    return TORCH[cell](D, H, num_layers=layers, bidirectional=both, bias=bias, batch_first=True)


def keras_rnn(cell, layers=1, both=False, use_bias=True, **settings):
    """(model from (B, T, D) to [outputs, states...], its recurrent layers). The states come layer by layer."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input((None, D))
    stack, states = [], []
    for place in range(layers):
        layer = KERAS[cell](
            H, use_bias=use_bias, return_sequences=True, return_state=True, name=f"{cell}_{place}", **settings
        )
        stack.append(keras.layers.Bidirectional(layer, name=f"both_{place}") if both else layer)
        x, *new = stack[-1](x)
        states += new
    return keras.Model(inputs, [x, *states]), stack


def numpy_of(tensor):
    return np.array(keras.ops.convert_to_numpy(tensor))


def close(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    worst = np.abs(ours - theirs).max()
    assert worst < tolerance
    return worst


def loss_and_gradients(model, x, factors):
    """Outputs, and the gradients of sum(output · factor) by the input and by each weight, as NumPy arrays."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        x = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model(x)
            loss = sum(tf.reduce_sum(output * factor) for output, factor in zip(outputs, factors))
        gradients = tape.gradient(loss, [x, *(v.value for v in model.trainable_variables)])
    elif backend == "jax":
        import jax

        fixed = [v.value for v in model.non_trainable_variables]

        def function(x, weights):
            outputs, _ = model.stateless_call(weights, fixed, x)
            return sum((output * factor).sum() for output, factor in zip(outputs, factors)), outputs

        weights = [v.value for v in model.trainable_variables]
        (_, outputs), (by_x, by_weights) = jax.value_and_grad(function, (0, 1), has_aux=True)(x, weights)
        gradients = [by_x, *by_weights]
    else:
        x = keras.ops.convert_to_tensor(x).requires_grad_()
        outputs = model(x)
        loss = sum((output * keras.ops.convert_to_tensor(factor)).sum() for output, factor in zip(outputs, factors))
        gradients = torch.autograd.grad(loss, [x, *(v.value for v in model.trainable_variables)])
        outputs = [output.detach() for output in outputs]
    return [numpy_of(output) for output in outputs], [numpy_of(gradient) for gradient in gradients]


@pytest.mark.parametrize(
    "both",
    [pytest.param(False, marks=pytest.mark.slow("tensorflow", "jax")), True],
    ids=["one direction", "both directions"],
)
@pytest.mark.parametrize(
    "layers", [pytest.param(1, marks=pytest.mark.once), 2, pytest.param(3, marks=pytest.mark.once)]
)
@pytest.mark.parametrize("cell", KERAS)
def test_equals_torch(cell, layers, both):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((B, T, D)).astype("float32")
    peer = torch_rnn(cell, layers, both)
    model, stack = keras_rnn(cell, layers, both)
    load_state_dict(peer.state_dict(), stack)

    # PyTorch; its states are (layers · directions, B, H), ours [h, c] or [h] for each layer and direction.
    peer_x = torch.tensor(x, requires_grad=True)
    peer_output, peer_states = peer(peer_x)
    peer_states = zip(*peer_states) if cell == "lstm" else zip(peer_states)
    peer_outputs = [peer_output, *(state for pair in peer_states for state in pair)]
    factors = [rng.standard_normal(output.shape).astype("float32") for output in peer_outputs]
    peer_loss = sum((output * torch.tensor(factor)).sum() for output, factor in zip(peer_outputs, factors))
    peer_loss.backward()

    outputs, (by_x, *by_weights) = loss_and_gradients(model, x, factors)
    assert len(outputs) == len(peer_outputs)
    forward = [close(ours, theirs.detach().numpy(), 1e-5) for ours, theirs in zip(outputs, peer_outputs)]
    backward = [close(by_x, peer_x.grad.numpy(), 1e-4)]

    # Every gate's rows of torch's gradients against the same gate's columns of ours.
    peer_gradients = {name: parameter.grad.numpy() for name, parameter in peer.named_parameters()}
    ours = iter(by_weights)
    for place in range(layers):
        for ending in ("", "_reverse")[: 1 + both]:
            theirs = {kind: peer_gradients[f"{kind}_l{place}{ending}"] for kind in PARTS}
            kernel, recurrent, bias = next(ours), next(ours), np.atleast_2d(next(ours))
            pairs = [("weight_ih", kernel.T), ("weight_hh", recurrent.T), ("bias_ih", bias[0]), ("bias_hh", bias[-1])]
            for kind, array in pairs:
                for gate in KERAS_GATES[cell]:
                    mine, peers = rows(array, KERAS_GATES[cell], gate), rows(theirs[kind], TORCH_GATES[cell], gate)
                    backward.append(close(mine, peers, 1e-4))
    assert next(ours, None) is None
    assert 1 < max(np.abs(gradient).max() for gradient in [by_x, *by_weights]) < 100
    print(f"worst differences: outputs {max(forward):.1e}, gradients {max(backward):.1e}")


PARTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def rows(array, gates, gate):
    """The rows of one gate, of an array (g·H, …)."""
    place = gates.index(gate)
    return array[place * H : (place + 1) * H]


def loop(cell, x, w, u, b, c):
    """One recurrent layer as its equations say, gate by gate, in float64; returns (outputs (B, T, H), states).

    w, u, b, c: by the letter of the gate, input matrix (H, D), recurrent matrix (H, H) and their biases (H,).
    """
    x, w, u, b, c = (
        np.float64(part) if part is x else {gate: np.float64(a) for gate, a in part.items()} for part in (x, w, u, b, c)
    )

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    h = memory = np.zeros((len(x), H))
    outputs = []
    for t in range(x.shape[1]):
        from_x = {gate: x[:, t] @ w[gate].T + b[gate] for gate in w}
        from_h = {gate: h @ u[gate].T + c[gate] for gate in w}
        if cell == "lstm":  # Hochreiter and Schmidhuber 1997, forget gate of Gers et al. 2000
            i, f, o = (sigmoid(from_x[gate] + from_h[gate]) for gate in "ifo")
            memory = f * memory + i * np.tanh(from_x["c"] + from_h["c"])
            h = o * np.tanh(memory)
        elif cell == "gru":  # Cho et al. 2014, the reset gate after the product as in cuDNN and PyTorch
            z, r = (sigmoid(from_x[gate] + from_h[gate]) for gate in "zr")
            h = z * h + (1 - z) * np.tanh(from_x["h"] + r * from_h["h"])
        else:  # Elman 1990
            h = np.tanh(from_x["h"] + from_h["h"])
        outputs.append(h)
    return np.stack(outputs, axis=1), [h, memory] if cell == "lstm" else [h]


@pytest.mark.parametrize("cell", KERAS)
def test_equals_the_equations(cell):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((B, T, D)).astype("float32")
    w, u, b, c = (
        {gate: rng.uniform(-0.7, 0.7, shape).astype("float32") for gate in KERAS_GATES[cell]}
        for shape in [(H, D), (H, H), (H,), (H,)]
    )
    state_dict = {
        f"{kind}_l0": np.concatenate([part[gate] for gate in TORCH_GATES[cell]])
        for kind, part in zip(PARTS, (w, u, b, c))
    }
    model, stack = keras_rnn(cell)
    load_state_dict(state_dict, stack)
    output, states = loop(cell, x, w, u, b, c)
    worst = [close(numpy_of(a), e, 1e-5) for a, e in zip(model(keras.ops.convert_to_tensor(x)), [output, *states])]
    assert len(worst) == (3 if cell == "lstm" else 2) and np.abs(output).max() > 0.5
    print(f"worst differences: outputs {max(worst):.1e}")


@pytest.mark.once
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("both", [False, True], ids=["one direction", "both directions"])
@pytest.mark.parametrize("cell", KERAS)
def test_there_and_back(cell, both, bias):
    peer = torch_rnn(cell, 2, both, bias)
    _, stack = keras_rnn(cell, 2, both, bias)
    first = {f"net.{name}": tensor for name, tensor in peer.state_dict().items()} | {"other.weight": torch.zeros(7)}
    load_state_dict(first, stack, prefix="net.")
    back = state_dict(stack)

    assert list(back) == list(peer.state_dict())
    for name, tensor in peer.state_dict().items():
        expected = tensor.numpy()
        if cell != "gru" and name.startswith("bias_ih"):
            expected = expected + peer.state_dict()[name.replace("_ih", "_hh")].numpy()
        elif cell != "gru" and name.startswith("bias_hh"):
            expected = np.zeros_like(expected)
        np.testing.assert_array_equal(back[name], expected, strict=True)

    # torch takes it, and Keras -> torch -> Keras changes nothing.
    again = torch_rnn(cell, 2, both, bias, seed=1)
    again.load_state_dict({name: torch.from_numpy(array) for name, array in back.items()})
    x = torch.randn(B, 9, D)
    close(again(x)[0].detach().numpy(), peer(x)[0].detach().numpy(), 1e-6)
    weights = [[np.array(w) for w in layer.get_weights()] for layer in stack]
    load_state_dict(again.state_dict(), stack)
    for layer, before in zip(stack, weights):
        for now, old in zip(layer.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, old)


@pytest.mark.once
def test_kinds_of_numbers():
    """bfloat16 and float16 tensors are read; a bfloat16 layer is written as float32; float64 arrays are rounded."""
    _, stack = keras_rnn("lstm")
    peer = torch_rnn("lstm")
    exact = {name: tensor.numpy() for name, tensor in peer.state_dict().items()}
    for kind in (torch.float16, torch.bfloat16):
        narrow = {name: tensor.to(kind) for name, tensor in peer.state_dict().items()}
        load_state_dict(narrow, stack)
        back = state_dict(stack)
        np.testing.assert_array_equal(back["weight_hh_l0"], narrow["weight_hh_l0"].float().numpy())
        assert 0 < np.abs(back["weight_hh_l0"] - exact["weight_hh_l0"]).max() < 4e-3
    load_state_dict({name: np.float64(array) for name, array in exact.items()}, stack)
    np.testing.assert_array_equal(state_dict(stack)["weight_ih_l0"], exact["weight_ih_l0"])
    _, narrow = keras_rnn("lstm", dtype="bfloat16", recurrent_initializer="zeros")
    load_state_dict(exact, narrow)
    back = state_dict(narrow)
    assert all(array.dtype == "float32" for array in back.values())
    np.testing.assert_array_equal(back["weight_hh_l0"], torch.tensor(exact["weight_hh_l0"]).bfloat16().float().numpy())


# Strictness. Each case: what is done to a good state dict of 2 LSTM layers, and what the message must name.


def without(*names):
    return lambda state: [state.pop(name) for name in names]


def plus(**tensors):
    return lambda state: state.update(tensors)


@pytest.mark.once
@pytest.mark.parametrize(
    "change, named",
    [
        (
            without("weight_hh_l1", "bias_ih_l0"),
            "missing bias_ih_l0 (16,), weight_hh_l1 (16, 4): give the state dict of",
        ),
        (plus(extra=torch.zeros(2), bias_l0=torch.zeros(2)), "unexpected extra, bias_l0: give"),
        (plus(weight_ih_l1=torch.zeros(4, 16)), "weight_ih_l1 has shape (4, 16), expected (16, 4): give"),
        (plus(bias_hh_l0=np.zeros(())), "bias_hh_l0 has shape (), expected (16,)"),
        (plus(bias_hh_l0=None), "bias_hh_l0 in the state dict is a NoneType and no array of numbers"),
        (plus(bias_hh_l0=np.array(["a"])), "bias_hh_l0 in the state dict is a ndarray and no array of numbers"),
        (plus(weight_hr_l0=torch.zeros(2, 4)), "weight_hr_l0, the projections of an LSTM with proj_size"),
        (
            lambda state: state.update(x=torch.zeros(1)) or state.pop("bias_hh_l1"),
            "the layers lstm_0, lstm_1: missing bias_hh_l1 (16,); unexpected x: give the state dict of "
            "torch.nn.LSTM(3, 4, num_layers=2, bias=True, bidirectional=False).",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(change, named):
    state_dict = dict(torch_rnn("lstm", 2).state_dict())
    change(state_dict)
    _, stack = keras_rnn("lstm", 2)
    refused(state_dict, stack, named)


@pytest.mark.once
@pytest.mark.parametrize(
    "theirs, ours, named",
    [
        (("gru", 2), ("lstm", 2), "weight_hh_l0 has shape (12, 4), as in a torch.nn.GRU of 4 units"),
        (("lstm", 1), ("gru", 1), "weight_hh_l0 has shape (16, 4), as in a torch.nn.LSTM of 4 units"),
        (("simple", 1), ("lstm", 1), "weight_hh_l0 has shape (4, 4), as in a torch.nn.RNN of 4 units"),
        (("lstm", 3), ("lstm", 2), "unexpected weight_ih_l2, weight_hh_l2, bias_ih_l2, bias_hh_l2:"),
        (
            ("gru", 1),
            ("gru", 2),
            "missing weight_ih_l1 (12, 4), weight_hh_l1 (12, 4), bias_ih_l1 (12,), bias_hh_l1 (12,):",
        ),
        (("gru", 1, True), ("gru", 1), "unexpected weight_ih_l0_reverse, weight_hh_l0_reverse, bias_ih_l0_reverse,"),
        (("gru", 1), ("gru", 1, True), "missing weight_ih_l0_reverse (12, 3), weight_hh_l0_reverse (12, 4), bias_ih"),
        (("lstm", 1, False, False), ("lstm", 1), "missing bias_ih_l0 (16,), bias_hh_l0 (16,):"),
        (("lstm", 1), ("lstm", 1, False, False), "unexpected bias_ih_l0, bias_hh_l0:"),
    ],
)
def test_another_module_changes_nothing(theirs, ours, named):
    _, stack = keras_rnn(*ours)
    refused(torch_rnn(*theirs).state_dict(), stack, named)


def refused(state_dict, stack, named):
    before = [np.array(w) for layer in stack for w in layer.get_weights()]
    with pytest.raises(UserError, match=re.escape(named)) as caught:
        load_state_dict(state_dict, stack)
    assert len(re.findall(r"[.!?]( |$)", str(caught.value))) == 1  # one sentence
    for old, new in zip(before, [w for layer in stack for w in layer.get_weights()], strict=True):
        np.testing.assert_array_equal(old, new)


def built(layer, inputs=D):
    layer.build((None, None, inputs))
    return layer


@pytest.mark.once
@pytest.mark.parametrize(
    "layers, named",
    [
        (lambda k: [built(k.GRU(H, reset_after=False, name="old"))], "old is a GRU with reset_after=False"),
        (lambda k: [built(k.Dense(H, name="dense"))], "'dense' is a Dense"),
        (lambda k: [], "The layers are []"),
        (lambda k: built(k.LSTM(H)), "<LSTM name="),
        (lambda k: [k.LSTM(H, name="new")], "new has no weights yet"),
        (lambda k: [k.Bidirectional(k.LSTM(H, name="new"))], "forward_new has no weights yet"),
        (lambda k: [built(k.LSTM(H, activation="relu", name="a"))], "a has the activations relu and sigmoid"),
        (
            lambda k: [built(k.GRU(H, recurrent_activation="hard_sigmoid", name="a"))],
            "a has the activations tanh and hard_sigmoid",
        ),
        (lambda k: [built(k.LSTM(H, go_backwards=True, name="a"))], "a has go_backwards=True"),
        (
            lambda k: [built(k.LSTM(H, name="a")), built(k.GRU(H, name="b"), H)],
            "a: LSTM (tanh) of 4 units, use_bias=True, directions=1; b: GRU (tanh) of 4 units",
        ),
        (lambda k: [built(k.LSTM(H, name="a")), built(k.LSTM(5, name="b"), H)], "b: LSTM (tanh) of 5 units"),
        (
            lambda k: [built(k.LSTM(H, name="a")), built(k.Bidirectional(k.LSTM(H), name="b"), H)],
            "b: LSTM (tanh) of 4 units, use_bias=True, directions=2",
        ),
        (
            lambda k: [
                built(k.Bidirectional(k.LSTM(H), merge_mode="sum", name="a")),
                built(k.Bidirectional(k.LSTM(H), name="b"), H),
            ],
            "b takes 4 inputs, where the 8 outputs of a were expected",
        ),
    ],
)
def test_layers_that_are_no_torch_module(layers, named):
    layers = layers(keras.layers)
    for call in (lambda: load_state_dict({}, layers), lambda: state_dict(layers)):
        with pytest.raises(UserError, match=re.escape(named)):
            call()


@pytest.mark.once
def test_not_a_mapping():
    _, stack = keras_rnn("lstm")
    with pytest.raises(UserError, match=r"is a LSTM, where a mapping .* pass module.state_dict\(\)"):
        load_state_dict(torch_rnn("lstm"), stack)


def test_relu_of_torch_rnn():
    torch.manual_seed(0)
    peer = torch.nn.RNN(D, H, nonlinearity="relu", batch_first=True)
    model, stack = keras_rnn("simple", activation="relu")
    load_state_dict(peer.state_dict(), stack)
    x = torch.randn(B, T, D)
    close(numpy_of(model(keras.ops.convert_to_tensor(x.numpy()))[0]), peer(x)[0].detach().numpy(), 1e-5)


# Language models


class WordLanguageModel(torch.nn.Module):
    """What holds weights in https://github.com/pytorch/examples/blob/main/word_language_model/model.py."""

    def __init__(self, cell, v, d, h, layers, tied):
        super().__init__()
        self.encoder = torch.nn.Embedding(v, d)
        self.rnn = TORCH[cell](d, h, layers)
        self.decoder = torch.nn.Linear(h, v)
        if tied:
            self.decoder.weight = self.encoder.weight
            torch.nn.init.zeros_(self.decoder.bias)

    def forward(self, token):  # (T, B)
        return self.decoder(self.rnn(self.encoder(token))[0])


def language_models(cell="lstm", tied=False, peer_tied=None):
    torch.manual_seed(0)
    d = H if tied else D
    peer = WordLanguageModel(cell, 11, d, H, 2, tied if peer_tied is None else peer_tied)
    model = rnn_language_model(
        cell=cell, vocabulary_size=11, embedding_dim=d, units=H, num_layers=2, dropout=0.1, tie_embeddings=tied
    )
    return peer, model


@pytest.mark.parametrize("tied", [pytest.param(False, marks=pytest.mark.once), True], ids=["not tied", "tied"])
@pytest.mark.parametrize("cell", KERAS)
def test_language_model(cell, tied):
    peer, model = language_models(cell, tied)
    load_language_model_state_dict(peer.state_dict(), model)
    token = np.random.default_rng(0).integers(0, 11, (B, T)).astype("int32")
    theirs = peer(torch.tensor(token.T)).detach().numpy().swapaxes(0, 1)
    worst = close(numpy_of(model(keras.ops.convert_to_tensor(token))), theirs, 1e-5)
    print(f"worst differences: outputs {worst:.1e}")

    back = {name: torch.from_numpy(array) for name, array in language_model_state_dict(model).items()}
    assert list(back) == list(peer.state_dict())
    again = WordLanguageModel(cell, 11, H if tied else D, H, 2, tied)
    again.load_state_dict(back)
    close(again(torch.tensor(token.T)).detach().numpy().swapaxes(0, 1), theirs, 1e-6)


@pytest.mark.once
def test_language_model_with_other_names():
    peer, model = language_models("gru")
    renamed = {
        name.replace("encoder", "embed").replace("rnn", "gru"): tensor for name, tensor in peer.state_dict().items()
    }
    names = {"embedding": "embed.weight", "recurrent": "gru."}
    load_language_model_state_dict(renamed, model, names)
    assert set(language_model_state_dict(model, names)) == set(renamed)
    with pytest.raises(UserError, match="no part 'embeding' .* Did you mean 'embedding'"):
        load_language_model_state_dict(renamed, model, {"embeding": "embed.weight"})
    with pytest.raises(UserError, match="missing encoder.weight .*; unexpected embed.weight, gru.weight_ih_l0"):
        load_language_model_state_dict(renamed, model)


@pytest.mark.once
@pytest.mark.parametrize(
    "tied, change, named",
    [
        (False, without("decoder.bias"), "missing decoder.bias (11,)"),
        (False, without("rnn.weight_ih_l1"), "missing rnn.weight_ih_l1 (16, 4)"),
        (False, plus(**{"encoder.scale": torch.zeros(1)}), "unexpected encoder.scale"),
        (False, plus(**{"encoder.weight": torch.zeros(D, 11)}), "encoder.weight has shape (3, 11), expected (11, 3)"),
        (False, plus(**{"decoder.weight": torch.zeros(H, 11)}), "decoder.weight has shape (4, 11), expected (11, 4)"),
        (
            False,
            plus(**{"rnn.weight_hh_l0": torch.zeros(12, 4)}),
            "rnn.weight_hh_l0 has shape (12, 4), as in a torch.n",
        ),
        (True, plus(**{"decoder.bias": torch.ones(11)}), "decoder.bias is not zero"),
        (True, plus(**{"decoder.weight": torch.ones(11, 4)}), "decoder.weight differs from encoder.weight"),
        (True, plus(**{"decoder.weight": torch.ones(4, 11)}), "decoder.weight has shape (4, 11), expected (11, 4)"),
    ],
)
def test_language_model_that_does_not_fit_changes_nothing(tied, change, named):
    peer, model = language_models(tied=tied)
    state_dict = dict(peer.state_dict())
    change(state_dict)
    before = [np.array(w) for w in model.get_weights()]
    with pytest.raises(UserError, match=re.escape(named)):
        load_language_model_state_dict(state_dict, model)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.once
def test_tied_state_dict_without_decoder():
    """A file that keeps shared tensors once (safetensors) has no decoder.weight."""
    peer, model = language_models(tied=True)
    state_dict = {name: tensor for name, tensor in peer.state_dict().items() if not name.startswith("decoder")}
    load_language_model_state_dict(state_dict, model)
    np.testing.assert_array_equal(language_model_state_dict(model)["decoder.weight"], peer.decoder.weight.detach())


@pytest.mark.once
def test_models_that_are_no_language_model():
    plain, _ = keras_rnn("lstm")
    with pytest.raises(UserError, match="is not a recurrent language model"):
        language_model_state_dict(plain)
    peer, model = language_models()
    more = keras.Model(model.input, keras.layers.Dense(2, name="more")(model.output), name="longer")
    with pytest.raises(UserError, match="longer also has more/kernel, more/bias"):
        load_language_model_state_dict({}, more)
    assert len(recurrent_layers(model)) == 2
    model.get_layer("embedding").quantize("int8")  # integers and scales, which would round the numbers to nothing
    with pytest.raises(UserError, match="also has embedding/embeddings_scale"):
        load_language_model_state_dict(peer.state_dict(), model)
    token = keras.Input((None,))
    x = keras.layers.LSTM(H, return_sequences=True)(keras.layers.Embedding(11, D, name="embedding")(token))
    unbiased = keras.Model(token, keras.layers.Dense(11, use_bias=False, name="logits")(x), name="unbiased")
    with pytest.raises(UserError, match="'unbiased' is not a recurrent language model .* 'logits' with biases"):
        language_model_state_dict(unbiased)


# Files


@pytest.mark.once
def test_file_of_torch(tmp_path):
    peer = torch_rnn("gru", 2, True)
    torch.save(peer.state_dict(), tmp_path / "gru.pt")
    loaded = read_state_dict(tmp_path / "gru.pt")
    assert all(type(array) is np.ndarray for array in loaded.values())
    _, stack = keras_rnn("gru", 2, True)
    load_state_dict(loaded, stack)
    for name, array in state_dict(stack).items():
        np.testing.assert_array_equal(array, peer.state_dict()[name])


class Code:
    def __reduce__(self):
        return exec, ("import sys; sys.zoo_code_was_run = True",)


@pytest.mark.once
def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"weight_ih_l0": torch.zeros(2), "code": Code()}, tmp_path / "code.pt")
    torch.save(torch_rnn("lstm"), tmp_path / "module.pt")
    for name in ("code.pt", "module.pt"):
        with pytest.raises(UserError, match=f"{name} holds more than tensors by name.*code in a file is never run"):
            read_state_dict(tmp_path / name)
    assert not hasattr(sys, "zoo_code_was_run")
    # The file does what it says where it is let: the test above would notice.
    torch.load(tmp_path / "code.pt", weights_only=False)
    assert sys.zoo_code_was_run
    del sys.zoo_code_was_run


@pytest.mark.once
def test_files_that_hold_something_else(tmp_path):
    with pytest.raises(UserError, match="There is no file at .*lstm.pt"):
        read_state_dict(tmp_path / "lstm.pt")
    torch.save({"model": torch_rnn("lstm").state_dict(), "epoch": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"holds model \(a OrderedDict\), epoch \(a int\), .* keys, key='model'\."):
        read_state_dict(tmp_path / "checkpoint.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(UserError, match="holds a Tensor, not only tensors by name"):
        read_state_dict(tmp_path / "tensor.pt")
    torch.save(torch_rnn("lstm").state_dict(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:900])
    with pytest.raises(UserError, match="cut.pt is damaged or no torch file"):
        read_state_dict(tmp_path / "cut.pt")


@pytest.mark.once
def test_checkpoint_of_a_training(tmp_path):
    peer = torch_rnn("gru")
    optimizer = torch.optim.Adam(peer.parameters())
    peer(torch.zeros(B, T, D))[0].sum().backward()
    optimizer.step()
    content = {
        "model_state": peer.state_dict(),
        "ema": peer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 1,
    }
    torch.save(content, tmp_path / "last.pt")
    for name, array in read_state_dict(tmp_path / "last.pt", key="model_state").items():
        np.testing.assert_array_equal(array, peer.state_dict()[name])
    with pytest.raises(UserError, match="read those under one of its keys, key='model_state' or key='ema'"):
        read_state_dict(tmp_path / "last.pt")
    with pytest.raises(UserError, match="under 'model': choose one of model_state, ema. Did you mean 'model_state'"):
        read_state_dict(tmp_path / "last.pt", key="model")
    with pytest.raises(UserError, match="no tensors by name under 'step': choose one of model_state, ema"):
        read_state_dict(tmp_path / "last.pt", key="step")


CELLS = {"lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell, "simple": torch.nn.RNNCell}


@pytest.mark.once
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", KERAS)
def test_cell_of_torch(cell, bias):
    """A loop over time steps with torch's cell, and the Keras layer with its weights."""
    torch.manual_seed(0)
    peer, x = CELLS[cell](D, H, bias=bias), np.random.default_rng(0).standard_normal((B, T, D)).astype("float32")
    state = None
    with torch.no_grad():
        for step in range(T):
            state = peer(torch.tensor(x[:, step]), state)
    (layer,) = build_layers(peer.state_dict(), return_sequences=False)
    close(numpy_of(layer(x)), (state[0] if cell == "lstm" else state).numpy(), 1e-5)
    named = {f"decoder.cell.{name}": tensor for name, tensor in peer.state_dict().items()}
    other = KERAS[cell](H, use_bias=bias)
    other.build((None, None, D))
    load_state_dict(named, [other], prefix="decoder.cell.")
    np.testing.assert_array_equal(numpy_of(other(x)), numpy_of(layer(x)))


@pytest.mark.once
def test_one_hint_for_a_wrong_prefix():
    named = {f"rnn.{name}": tensor for name, tensor in torch_rnn("lstm", 3, True).state_dict().items()}
    _, stack = keras_rnn("lstm", 3, True)
    with pytest.raises(UserError) as caught:
        load_state_dict(named, stack)
    assert str(caught.value) == (
        "The state dict has no weight_hh_l0: its recurrent weights begin with 'rnn.', pass prefix='rnn.'."
    )
    with pytest.raises(UserError, match="has no lstm.weight_hh_l0: .*pass prefix='rnn.'"):
        load_state_dict(named, stack, prefix="lstm.")
    with pytest.raises(UserError, match="has no weight_hh_l0, .* pass prefix='rnn.'"):
        build_layers(named)
    with pytest.raises(UserError, match="give that of such a module"):
        build_layers({"fc.weight": np.zeros((3, 4))})


@pytest.mark.once
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", KERAS)
def test_layers_are_built_from_the_state_dict(cell, bias, both):
    peer = torch_rnn(cell, 2, both, bias)
    x = np.random.default_rng(0).standard_normal((B, T, D)).astype("float32")
    outputs = x
    for layer in build_layers({f"a.{name}": tensor for name, tensor in peer.state_dict().items()} | {"b": 1.0}, "a."):
        outputs = layer(outputs)
    close(numpy_of(outputs), peer(torch.tensor(x))[0].detach().numpy(), 1e-5)
    model, left_out = build_model({f"a.{k}": v for k, v in peer.state_dict().items()} | {"a.x": np.ones(2)}, "a.")
    assert left_out == ["a.x"]
    np.testing.assert_array_equal(numpy_of(model(x)), numpy_of(outputs))


@pytest.mark.once
def test_relu_is_said():
    torch.manual_seed(0)
    peer = torch.nn.RNN(D, H, nonlinearity="relu", batch_first=True)
    x = np.random.default_rng(0).standard_normal((B, T, D)).astype("float32")
    (layer,) = build_layers(peer.state_dict(), activation="relu")
    close(numpy_of(layer(x)), peer(torch.tensor(x))[0].detach().numpy(), 1e-5)


@pytest.mark.once
@pytest.mark.parametrize("tied", [False, True])
def test_command_converts_a_language_model(tied, tmp_path, capsys):
    """The modules of PyTorch's word language model, in a checkpoint of a training."""
    torch.manual_seed(0)
    peer = torch.nn.Module()
    peer.encoder, peer.rnn, peer.decoder = torch.nn.Embedding(11, H), torch.nn.LSTM(H, H, 2), torch.nn.Linear(H, 11)
    if tied:
        peer.decoder.weight = peer.encoder.weight
        torch.nn.init.zeros_(peer.decoder.bias)
    torch.save({"model": peer.state_dict(), "epoch": 3}, tmp_path / "last.pt")
    assert cli.run(["convert", "torch-rnn", str(tmp_path / "last.pt"), str(tmp_path / "lm"), "--key", "model"]) == 0
    printed = capsys.readouterr().out
    assert "torch.nn.LSTM(4, 4, num_layers=2, bias=True, bidirectional=False)" in printed
    assert f"Use it: zoo summary {tmp_path / 'lm'}" in printed
    ids = np.random.default_rng(0).integers(0, 11, (2, 7))
    with torch.no_grad():
        expected = peer.decoder(peer.rnn(peer.encoder(torch.tensor(ids)).swapaxes(0, 1))[0]).swapaxes(0, 1).numpy()
    model = zoo.load_model(tmp_path / "lm")
    assert ("ReversibleEmbedding" == type(model.get_layer("embedding")).__name__) == tied
    close(numpy_of(model(ids)), expected, 1e-5)


@pytest.mark.once
def test_command_converts_the_recurrent_part_of_a_model(tmp_path, capsys):
    peer = torch.nn.ModuleDict({"tagger": torch.nn.GRU(D, H, bidirectional=True), "out": torch.nn.Linear(2 * H, 3)})
    torch.save(peer.state_dict(), tmp_path / "tagger.pt")
    zoo.convert("torch-rnn", tmp_path / "tagger.pt", tmp_path / "part", log=print)
    assert "Not converted: out.weight, out.bias" in capsys.readouterr().out
    x = np.random.default_rng(0).standard_normal((B, T, D)).astype("float32")
    expected = peer["tagger"](torch.tensor(x).swapaxes(0, 1))[0].swapaxes(0, 1).detach().numpy()
    close(numpy_of(zoo.load_model(tmp_path / "part")(x)), expected, 1e-5)
    two = {f"{side}.{name}": tensor for side in "ab" for name, tensor in peer["tagger"].state_dict().items()}
    torch.save(two, tmp_path / "two.pt")
    with pytest.raises(UserError, match="several recurrent modules, under 'a.' and 'b.': choose one with prefix"):
        zoo.convert("torch-rnn", tmp_path / "two.pt", tmp_path / "part")
    zoo.convert("torch-rnn", tmp_path / "two.pt", tmp_path / "b", prefix="b.")
    torch.save({"out.weight": torch.zeros(3)}, tmp_path / "none.pt")
    with pytest.raises(UserError, match="none.pt holds no weights of a torch.nn.LSTM, GRU or RNN"):
        zoo.convert("torch-rnn", tmp_path / "none.pt", tmp_path / "part")
    with pytest.raises(UserError, match="key and prefix are for torch-rnn, and the kind is 'marian'"):
        zoo.convert("marian", tmp_path, tmp_path / "part", key="model")


@pytest.mark.once
def test_file_of_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    peer = torch_rnn("lstm")
    safetensors.save_file(peer.state_dict(), tmp_path / "lstm.safetensors")
    for name, array in read_state_dict(tmp_path / "lstm.safetensors").items():
        np.testing.assert_array_equal(array, peer.state_dict()[name])
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "lstm.safetensors").read_bytes()[:40])
    with pytest.raises(UserError, match="cut.safetensors is damaged or no safetensors file"):
        read_state_dict(tmp_path / "cut.safetensors")


@pytest.mark.once
@pytest.mark.parametrize(
    "package, extra, name", [("torch", "torch", "lstm.pt"), ("safetensors", "convert", "lstm.safetensors")]
)
def test_package_that_is_not_installed(package, extra, name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"some file of weights")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.numpy", None)
    with pytest.raises(UserError, match=rf"{name} needs {package}, .* pip install 'keras-model-zoo\[{extra}\]'\."):
        read_state_dict(tmp_path / name)
