"""Deterministic batches: the order is a function of (seed, epoch) alone, the same on every backend."""

import keras
import numpy as np


def epoch_order(count: int, *, seed: int, epoch: int) -> np.ndarray:
    """The order of examples in one epoch, made by NumPy and so the same on every backend.

    Args:
        count: number of examples.
        seed: integer from 0 up.
        epoch: its number, from 0.

    Returns:
        permutation of `range(count)`, (count,) int64.
    """
    return np.random.default_rng([seed, epoch]).permutation(count)


class Batches(keras.utils.PyDataset):
    """Batches of two arrays for `model.fit(batches, shuffle=False)`; the last batch may be smaller.

    `set_epoch` sets the order of an epoch; the callback `zoo.training.callbacks.SetEpoch` calls it.

    Args:
        x: inputs, array (N, …).
        y: targets, array (N, …).
        batch_size: examples in a batch.
        seed: seed of the order; None keeps the order of the arrays (validation).

    Raises:
        ValueError: if the arrays differ in length, are empty, or `batch_size` is below 1.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, *, batch_size: int, seed: int | None = 0) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        if len(x) != len(y):
            raise ValueError(f"x and y must have the same length, got {len(x)} and {len(y)}.")
        if len(x) == 0:
            raise ValueError("There are no examples to make batches of.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.x, self.y, self.batch_size, self.seed = x, y, batch_size, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch.

        Args:
            epoch: its number, from 0.
        """
        count = len(self.x)
        self.order = np.arange(count) if self.seed is None else epoch_order(count, seed=self.seed, epoch=epoch)

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        indices = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.x[indices], self.y[indices]
