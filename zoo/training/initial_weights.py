"""Initial weights and random streams made by NumPy: one seed gives the same start on every backend."""

import math

import numpy as np

INITIALIZERS = ("glorot", "he")


def set_initial_weights(model, *, seed, initializer="glorot"):
    """Set every kernel to uniform random numbers U(-a, a) and every bias to zero.

    Keras' own initialisers draw different numbers on each backend for the same seed; these do not. Tensors are drawn
    in the order of `model.weights` from one NumPy generator.

    Args:
        model: a built model whose weights are kernels (rank 2 or more) and biases (rank 1).
        seed: integer seed.
        initializer: "glorot", a = sqrt(6 / (fan_in + fan_out)), Keras' default (Glorot and Bengio 2010, equation 16);
            or "he", a = sqrt(6 / fan_in) for convolutions, made for ReLU (He et al. 2015, equation 10), with
            a = sqrt(1 / fan_in) for dense kernels as in `torch.nn.Linear`: small first logits, a calm start.
            Fans count the receptive field.

    Raises:
        ValueError: if the initializer is unknown.
    """
    if initializer not in INITIALIZERS:
        raise ValueError(f"Unknown initializer {initializer!r}: choose one of {', '.join(INITIALIZERS)}.")
    rng = np.random.default_rng(seed)
    values = []
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) < 2:
            values.append(np.zeros(shape, "float32"))
            continue
        fan_in, fan_out = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
        if initializer == "glorot":
            bound = math.sqrt(6 / (fan_in + fan_out))
        else:
            bound = math.sqrt((6 if len(shape) > 2 else 1) / fan_in)
        values.append(rng.uniform(-bound, bound, shape).astype("float32"))
    model.set_weights(values)


def random_streams(model):
    """The state variables, shape (2,), of a model's random layers (dropout, augmentation), in a fixed order."""
    return [variable for variable in model.variables if "seed_generator" in variable.path]


def set_random_streams(model, *, seed):
    """Start every random stream of a model from a number made of `seed` and its place, not from the process's chance.

    The streams then repeat from run to run on one backend; backends draw different numbers from equal states.
    """
    for place, state in enumerate(random_streams(model)):
        start = np.random.SeedSequence([seed, place]).generate_state(1)[0] % 2**31
        state.assign(np.array([start, 0]))
