"""The states of a model's random layers (dropout, augmentation)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras


def random_streams(model: keras.Model) -> list[keras.Variable]:
    """The state variables of a model's random layers (dropout, augmentation).

    Args:
        model: a built model.

    Returns:
        variables of shape (2,), in a fixed order.
    """
    return [variable for variable in model.variables if "seed_generator" in variable.path]


def set_random_streams(model: keras.Model, *, seed: int) -> None:
    """Seed every random stream of a model by `seed` and the stream's index, instead of Keras' global seed.

    The streams then repeat from run to run on one backend; backends draw different numbers from equal states.

    Args:
        model: a built model.
        seed: integer from 0 up.
    """
    for index, state in enumerate(random_streams(model)):
        start = np.random.SeedSequence([seed, index]).generate_state(1)[0] % 2**31
        state.assign(np.array([start, 0]))
