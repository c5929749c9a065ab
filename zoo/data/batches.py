"""Deterministic batches: the order is a function of (seed, epoch) alone, the same on every backend."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from typing import TYPE_CHECKING

import keras
import numpy as np

from zoo.errors import UserError

if TYPE_CHECKING:
    from zoo.data.image_folder import ImageFiles


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
        x: inputs, array (N, …), or `zoo.data.ImageFiles`, which are decoded batch by batch.
        y: targets, array (N, …).
        batch_size: examples in a batch.
        seed: seed of the order; None keeps the order of the arrays (validation).

    Attributes:
        error: the last `UserError` of making a batch, which TensorFlow hides in an error of its own; or None.

    Raises:
        ValueError: if the arrays differ in length, are empty, or `batch_size` is below 1.
    """

    error: UserError | None = None

    def __init__(self, x: np.ndarray | ImageFiles, y: np.ndarray, *, batch_size: int, seed: int | None = 0) -> None:
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
        try:
            return self._batch(index)
        except UserError as error:
            self.error = error
            raise

    def _batch(self, index):
        return self._take(self._rows(index))

    def _rows(self, index):
        return self.order[index * self.batch_size : (index + 1) * self.batch_size]

    def _take(self, rows):
        return self.x[rows], self.y[rows]


class PrefetchedBatches(Batches):
    """`Batches` that threads make ahead of their use, for images that are decoded from files while a step runs.

    The threads are this object's own: the workers of a `keras.utils.PyDataset` begin an epoch before its callbacks have
    set the order, and on JAX and PyTorch several of them change it. A batch has its rows from the moment it is asked
    for, so that its content depends on (seed, epoch) and its index alone, whichever thread makes it.

    Args:
        x: inputs, `zoo.data.ImageFiles` or array (N, …).
        y: targets, array (N, …).
        batch_size: examples in a batch.
        seed: seed of the order; None keeps the order of the arrays (validation).
        workers: number of threads; one for each processor, at most 8, if None.
        prefetch: number of batches ahead, at most; twice the threads if None.

    Raises:
        ValueError: as `Batches`.
    """

    _KEPT = 2  # batches behind the last that was asked for: a callback may look at the one that a step has just used

    def __init__(
        self,
        x: np.ndarray | ImageFiles,
        y: np.ndarray,
        *,
        batch_size: int,
        seed: int | None = 0,
        workers: int | None = None,
        prefetch: int | None = None,
    ) -> None:
        self.num_threads = workers or min(8, os.cpu_count() or 1)
        self.prefetch = prefetch or 2 * self.num_threads
        self._lock = threading.Lock()
        self._pool = concurrent.futures.ThreadPoolExecutor(self.num_threads, thread_name_prefix="zoo-prefetch")
        self._made: dict[int, concurrent.futures.Future] = {}
        self._position = 0  # the furthest index of this pass that was asked for
        super().__init__(x, y, batch_size=batch_size, seed=seed)

    def set_epoch(self, epoch: int) -> None:
        """Set the order of an epoch, and drop what was made in another.

        Args:
            epoch: its number, from 0.
        """
        with self._lock:
            for future in self._made.values():
                future.cancel()
            self._made, self._position = {}, 0
            super().set_epoch(epoch)

    def _batch(self, index):
        with self._lock:
            if index == 0 or index >= self._position:  # else a look back, which moves nothing
                self._position = index
                for i in range(index, min(index + 1 + self.prefetch, len(self))):
                    if i not in self._made:
                        self._made[i] = self._pool.submit(self._take, self._rows(i))
                for i in [i for i in self._made if i < index - self._KEPT]:
                    del self._made[i]
            future, rows = self._made.get(index), self._rows(index)
        if future is None:
            return self._take(rows)
        try:
            return future.result()
        except UserError:
            with self._lock:
                self._made.pop(index, None)  # to be tried again, of a file that was repaired
            raise
