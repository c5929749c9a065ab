"""One training step of the CNN equals plain PyTorch's: same weights, same batch, Adam with L2 weight decay.

In mid-training every element of every tensor must agree within 1e-5. Adam's very first step is different: it is
`lr · g / (|g| + 1e-8)` for each weight, so where a gradient is itself no larger than float32 rounding (and the rounding
that decides which of two nearly equal pixels a pooling keeps), no two implementations agree; of 9.5 million elements
a handful then differ by up to 5e-5. There the elements with a gradient above 1e-7, 98 % of them, are compared. The
batch has 8 images: among the 3.5 million windows of 64 there are such pixels on some processors.
"""

import keras
import numpy as np
import pytest
import torch

from tests.models.test_cnn import torch_cnn
from zoo.fast_paths.layers import use_fast_paths
from zoo.models.cnn import cnn
from zoo.training.initial_weights import set_initial_weights
from zoo.training.optimizers import TorchAdam

RATE, DECAY = 1e-3, 1e-4


@pytest.mark.parametrize(
    "fast, step",
    [
        pytest.param(False, 0, id="stock paths, first step"),
        pytest.param(False, 100, id="stock paths, step 101", marks=pytest.mark.slow("tensorflow", "jax")),
        pytest.param(True, 0, id="fast paths, first step", marks=pytest.mark.slow("tensorflow", "jax")),
        pytest.param(True, 100, id="fast paths, step 101"),
    ],
)
def test_one_step(fast, step):
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 48, 48, 3)).astype("float32")
    labels = rng.integers(0, 10, 8)
    model = cnn(num_classes=10, dropout=0.0)
    set_initial_weights(model, seed=0)
    weights = [np.array(w) for w in model.get_weights()]
    momenta = [(rng.standard_normal(w.shape) * 1e-4 * (step > 0)).astype("float32") for w in weights]
    velocities = [(rng.uniform(1e-4, 1e-3, w.shape) ** 2 * (step > 0)).astype("float32") for w in weights]

    # PyTorch
    peer = torch_cnn(weights, pixels=48)
    optimizer = torch.optim.Adam(peer.parameters(), lr=RATE, weight_decay=DECAY)
    state = zip(
        peer.parameters(), torch_cnn(momenta, pixels=48).parameters(), torch_cnn(velocities, pixels=48).parameters()
    )
    for parameter, momentum, velocity in state:
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": momentum.detach(),
            "exp_avg_sq": velocity.detach(),
        }
    peer_loss = torch.nn.functional.cross_entropy(peer(torch.tensor(images).permute(0, 3, 1, 2)), torch.tensor(labels))
    peer_loss.backward()
    gradients = [(p.grad + DECAY * p).abs().detach() for p in peer.parameters()]
    optimizer.step()

    # Ours
    adam = TorchAdam(RATE, weight_decay=DECAY)
    model.compile(optimizer=adam, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    adam.build(model.trainable_variables)
    adam.iterations.assign(step)
    for variable, momentum, velocity in zip(model.trainable_variables, momenta, velocities):
        index = adam._get_variable_index(variable)
        adam._momentums[index].assign(momentum)
        adam._velocities[index].assign(velocity)
    if fast:
        use_fast_paths(model)
    loss = float(model.train_on_batch(images, labels))

    assert abs(loss - float(peer_loss.detach())) < 1e-5
    updated = torch_cnn(model.get_weights(), pixels=48).parameters()
    total = unclear = 0
    for ours, theirs, gradient in zip(updated, peer.parameters(), gradients):
        clear = gradient > 1e-7 if step == 0 else torch.ones_like(gradient, dtype=bool)
        assert float((ours - theirs).detach().abs()[clear].max()) < 1e-5
        total, unclear = total + gradient.numel(), unclear + int((~clear).sum())
    assert unclear < 0.03 * total
