"""Small parts of Stable Diffusion: models of diffusers and transformers with the random weights of the zoo's."""

import keras
import numpy as np
import pytest
import torch

from benchmarks.diffusers_models import autoencoder_kl, clip_text_encoder, conditional_unet  # noqa: F401  (for the tests)
from zoo.compat.keras import set_initial_value, skip_weight_init
from zoo.converters.stable_diffusion import to_diffusers

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()

TOLERANCE = 1e-4  # float32, the largest output of each test being above 1/2


def randomize(model, seed=0):
    """Give every weight of a Keras model random values that keep its outputs about 1; returns the model."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) > 1:
            fan_in = shape[-1] if weight.name == "embeddings" else np.prod(shape[:-1])
            set_initial_value(weight, (rng.normal(size=shape) / fan_in**0.5).astype("float32"))
        else:
            set_initial_value(weight, (0.2 * rng.normal(size=shape) + (weight.name == "gamma")).astype("float32"))
    return model


def random_model(build, *, seed=0, **config):
    """A Keras model with random weights."""
    with skip_weight_init():
        model = build(**config)
    return randomize(model, seed)


def predict(model, *inputs):
    """Outputs of a Keras model for NumPy arrays; compiled where that is faster."""
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, list(inputs) if len(inputs) > 1 else inputs[0])
    if keras.backend.backend() == "jax":
        outputs = _compiled(model, inputs)
    else:
        outputs = model(inputs, training=False)
    return keras.tree.map_structure(lambda x: np.array(keras.ops.convert_to_numpy(x)), outputs)


def _compiled(model, inputs):
    """On JAX, where one operation after the other is compiled too: all at once, with little effort."""
    import jax

    def call(weights, inputs):
        return model.stateless_call(weights, [], inputs)[0]

    weights = [weight.value for weight in model.trainable_weights]
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(call).lower(weights, inputs).compile(compiler_options=quick)(weights, inputs)


def images(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def channels_first(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def channels_last(x):
    return x.permute(0, 2, 3, 1).numpy()


def assert_same(ours, theirs, at_least=0.5):
    assert ours.shape == theirs.shape and np.abs(theirs).max() > at_least
    assert np.abs(ours - theirs).max() < TOLERANCE


def tensors(state_dict):
    return {name: torch.from_numpy(array) for name, array in state_dict.items()}


def with_weights_of(peer, **ours):
    """A peer with the weights of a Keras model; strict."""
    (state_dict,) = to_diffusers(**ours).values()
    state_dict = {name.removeprefix("text_model."): array for name, array in state_dict.items()}
    peer.load_state_dict(tensors(state_dict), strict=True)
    return peer
