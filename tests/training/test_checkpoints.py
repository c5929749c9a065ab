"""Checkpoints: everything that training changes comes back, whatever the layers are called."""

import keras
import numpy as np

from zoo.training.checkpoints import load_checkpoint, save_checkpoint
from zoo.training.optimizers import TorchAdam


def two_parts(seed, names=("dense", "dense")):
    """A model of two models, each with one layer, by default of the same name."""

    def part(name):
        x = keras.Input((3,))
        return keras.Model(x, keras.layers.Dense(3, name=name)(x))

    x = keras.Input((3,))
    model = keras.Model(x, part(names[1])(part(names[0])(x)))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=weight.shape) for weight in model.weights])
    model.compile(TorchAdam(0.1, use_ema=True, ema_momentum=0.9), "mse")
    if keras.backend.backend() == "torch":
        from zoo.distribution.torch import fix_zero_grad  # as `fit` in `zoo.strategy` does

        fix_zero_grad(model)
    return model


def test_layers_of_the_same_name(tmp_path):
    model, other = two_parts(0), two_parts(1)
    x = np.random.default_rng(2).normal(size=(4, 3)).astype("float32")
    model.train_on_batch(x, x)
    save_checkpoint(tmp_path / "c.npz", model, settings={}, history=[{"epoch": 1}])
    assert load_checkpoint(tmp_path / "c.npz", other, settings={}) == [{"epoch": 1}]
    for one in (model, other):
        one.train_on_batch(x, x)
    states = [[*one.get_weights(), *(np.asarray(v.numpy()) for v in one.optimizer.variables)] for one in (model, other)]
    for one, again in zip(*states, strict=True):
        np.testing.assert_array_equal(one, again)


def test_equal_names_are_trained_like_others():
    model, other = two_parts(0), two_parts(0, ("one", "two"))
    x = np.random.default_rng(2).normal(size=(4, 3)).astype("float32")
    for _ in range(3):
        for one in (model, other):
            one.train_on_batch(x, x)
    for one, again in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, again)
