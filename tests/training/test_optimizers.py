"""`zoo`'s Adam against `torch.optim`, step by step from the same gradients."""

import keras
import numpy as np
import pytest
import torch
from keras import ops

from zoo.training.optimizers import TorchAdam

RNG = np.random.default_rng(0)
START = [RNG.standard_normal((7, 5)).astype("float32"), RNG.standard_normal(5).astype("float32")]
# Gradients over many orders of magnitude, so that the place of epsilon shows.
GRADIENTS = [
    [(RNG.standard_normal(w.shape) * 10.0 ** RNG.integers(-9, 1, w.shape)).astype("float32") for w in START]
    for _ in range(30)
]


def ours(optimizer):
    variables = [keras.Variable(w) for w in START]
    optimizer.build(variables)
    for gradients in GRADIENTS:
        optimizer.apply([ops.convert_to_tensor(g) for g in gradients], variables)
    return [ops.convert_to_numpy(v.value) for v in variables]


def pytorch(kind, **options):
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in START]
    optimizer = kind(parameters, lr=1e-2, **options)
    for gradients in GRADIENTS:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return [p.detach().numpy() for p in parameters]


@pytest.mark.parametrize(
    "weight_decay, decoupled, kind",
    [(0.0, False, torch.optim.Adam), (0.1, False, torch.optim.Adam), (0.1, True, torch.optim.AdamW)],
)
def test_thirty_steps_equal_pytorch(weight_decay, decoupled, kind):
    result = ours(TorchAdam(1e-2, weight_decay=weight_decay, decoupled_weight_decay=decoupled))
    for a, b in zip(result, pytorch(kind, weight_decay=weight_decay)):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_the_two_decays_differ():
    l2, decoupled = (ours(TorchAdam(1e-2, weight_decay=0.1, decoupled_weight_decay=kind)) for kind in (False, True))
    assert np.abs(l2[0] - decoupled[0]).max() > 1e-3


def test_a_schedule_sets_the_rate():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([15], [1e-2, 0.0])  # nothing moves after step 16
    stopped = ours(TorchAdam(schedule))
    parameters = [torch.nn.Parameter(torch.tensor(w)) for w in START]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for gradients in GRADIENTS[:16]:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = torch.tensor(gradient)
        optimizer.step()
    for a, b in zip(stopped, parameters):
        np.testing.assert_allclose(a, b.detach().numpy(), atol=2e-6)


@pytest.mark.parametrize("decoupled", [False, True])
def test_config_round_trip(decoupled):
    optimizer = TorchAdam(1e-3, weight_decay=1e-4, decoupled_weight_decay=decoupled)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(again, TorchAdam)
    assert again.decoupled_weight_decay is decoupled
    assert (again.l2_penalty, again.weight_decay) == ((0.0, 1e-4) if decoupled else (1e-4, None))


def test_a_negative_weight_decay_is_an_error():
    with pytest.raises(ValueError, match="must not be negative, got -1.0"):
        TorchAdam(weight_decay=-1.0)
