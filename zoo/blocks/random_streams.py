"""The states of a model's random layers (dropout, augmentation)."""

import numpy as np


def random_streams(model):
    """The state variables, shape (2,), of a model's random layers (dropout, augmentation), in a fixed order."""
    return [variable for variable in model.variables if "seed_generator" in variable.path]


def set_random_streams(model, *, seed):
    """Seed every random stream of a model by `seed` and the stream's index, instead of Keras' global seed.

    The streams then repeat from run to run on one backend; backends draw different numbers from equal states.
    """
    for index, state in enumerate(random_streams(model)):
        start = np.random.SeedSequence([seed, index]).generate_state(1)[0] % 2**31
        state.assign(np.array([start, 0]))
