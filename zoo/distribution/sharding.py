"""Global batches and the part of each that a process hands to its devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.data.batches import epoch_order
from zoo.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt

    from zoo.distribution.devices import Devices


def num_rows(data: Any) -> int:
    """The first dimension of arrays.

    Args:
        data: a nested structure of arrays.

    Returns:
        that of the first array.
    """
    return len(keras.tree.flatten(data)[0])


def _map(function, data):
    """A nested structure with a function of each of its arrays; None stays."""
    return keras.tree.map_structure(function, data, none_is_leaf=False)


def class_weight_to_sample_weights(y: npt.ArrayLike, class_weight: Mapping[int, float]) -> np.ndarray:
    """Weights of examples by their classes.

    Args:
        y: labels, integers (B,) or (B, 1) or one-hot (B, K).
        class_weight: {class: weight}; a class that is not named weighs 1.

    Returns:
        (B,) float32.

    Raises:
        UserError: if there are several outputs.
    """
    if keras.tree.is_nested(y):
        raise UserError("class_weight works for models with one output: give sample_weight instead.")
    y = np.asarray(y)
    labels = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    return np.array([class_weight.get(int(label), 1.0) for label in labels], "float32")


class ArrayBatches(keras.utils.PyDataset):
    """Global batches of nested arrays; the last may be smaller.

    Args:
        x: inputs, arrays with the examples along their first axis.
        y: targets, or None.
        sample_weight: weights of the examples, or None.
        batch_size: rows of a batch, on all devices together.
    """

    def __init__(self, x: Any, y: Any = None, sample_weight: Any = None, *, batch_size: int) -> None:
        super().__init__()
        self.data = _map(keras.ops.convert_to_numpy, (x, y, sample_weight))
        self.batch_size, self.order = batch_size, np.arange(num_rows(x))

    def shuffle(self, epoch: int) -> None:
        """Move to the order of an epoch, a function of its number alone.

        Args:
            epoch: its number, from 0.
        """
        self.order = epoch_order(len(self.order), seed=0, epoch=epoch)

    def take(self, indices: slice | np.ndarray) -> tuple[Any, Any, Any]:
        """The batch of some rows.

        Args:
            indices: of the rows, array (B,) or a slice.

        Returns:
            (x, y, sample_weight).
        """
        return _map(lambda array: array[indices], self.data)

    def is_divisible_by(self, num_replicas: int) -> bool:
        """Whether every batch falls into so many equal parts.

        Args:
            num_replicas: how many.

        Returns:
            True if it does.
        """
        count = len(self.order)
        return not any(rows % num_replicas for rows in (min(self.batch_size, count), count % self.batch_size))

    def __len__(self):
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index):
        return self.take(self.order[index * self.batch_size : (index + 1) * self.batch_size])


class ShardedBatches(keras.utils.PyDataset):
    """Batches that devices can divide, of which a process takes its part.

    Rows that are missing for equal parts are added and weigh nothing. In training the others weigh so much more that
    the mean over their batch stays what it was, as gradients need; means over an epoch, which Keras takes by numbers of
    rows, then count the added ones. In evaluation all rows weigh so much more that the mean over the epoch is exact.

    Args:
        batches: global batches, a `PyDataset`.
        devices: `zoo.distribution.devices.Devices`.
        class_weight: {class: weight}, or None.
        training: whether gradients are taken.
    """

    def __init__(
        self,
        batches: keras.utils.PyDataset,
        devices: Devices,
        class_weight: Mapping[int, float] | None = None,
        training: bool = True,
    ) -> None:
        one_process = devices.num_processes == 1
        super().__init__(
            workers=batches.workers if one_process else 1,  # several workers may change the order
            use_multiprocessing=batches.use_multiprocessing and one_process,
            max_queue_size=batches.max_queue_size,
        )
        self.batches, self.devices, self.class_weight = batches, devices, class_weight
        self.order: np.ndarray | None = None
        self.weighted = True
        self.scale: float | None = None
        if hasattr(batches, "batch_size") and batches.num_batches:
            sizes = [num_rows(batches[0])] * (batches.num_batches - 1) + [num_rows(batches[batches.num_batches - 1])]
            added = sum(-size % devices.num_replicas for size in sizes)
            self.weighted = added > 0
            if added and not training:
                self.scale = 1 + added / sum(sizes)

    @property
    def num_batches(self) -> int:
        return self.batches.num_batches

    def shuffle(self, epoch: int) -> None:
        """Move to the order of an epoch: of the rows of arrays, else of whole batches.

        Args:
            epoch: its number, from 0.
        """
        if isinstance(self.batches, ArrayBatches):
            self.batches.shuffle(epoch)
        else:
            self.order = epoch_order(self.num_batches, seed=0, epoch=epoch)

    def on_epoch_begin(self) -> None:
        self.batches.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.batches.on_epoch_end()

    def __getitem__(self, index):
        return self.shard(self.batches[index if self.order is None else self.order[index]])

    def shard(self, batch: Any) -> Any:
        """The part of a global batch that this process works on.

        Args:
            batch: x, (x, y) or (x, y, sample_weight), as Keras takes it.

        Returns:
            the same with fewer rows, and with weights where rows were added.

        Raises:
            UserError: if it has weights and there is `class_weight` too; if rows must be added and the targets are
                images or alike, since Keras takes no weights of rows for losses of more axes.
        """
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        if self.class_weight:
            if weights is not None:
                raise UserError("Give sample_weight or class_weight, not both.")
            weights = class_weight_to_sample_weights(y, self.class_weight)
        rows = num_rows(x)
        added = -rows % self.devices.num_replicas
        takes_weights = max((np.ndim(array) for array in keras.tree.flatten(y)), default=0) < 3
        if weights is None and added and not takes_weights:
            raise UserError(
                f"A batch of {rows} rows cannot be divided among {self.devices.num_replicas} devices: choose a batch "
                "size that they divide."
            )
        if weights is None and (self.weighted or added) and takes_weights:
            weights = np.ones(rows, "float32")
        if added:
            indices = np.concatenate([np.arange(rows), np.zeros(added, int)])
            x, y, weights = _map(lambda array: np.asarray(array)[indices], (x, y, weights))
        if added or self.scale:
            factors = np.full(rows + added, self.scale or 1 + added / rows, "float32")
            factors[rows:] = 0
            weights = _map(lambda array: np.asarray(array) * factors.reshape(-1, *[1] * (np.ndim(array) - 1)), weights)
        batch = keras.utils.pack_x_y_sample_weight(x, y, weights)
        if self.devices.num_processes == 1 or keras.backend.backend() == "tensorflow":  # which divides by itself
            return batch
        size = (rows + added) // self.devices.num_processes
        mine = slice(self.devices.process_id * size, (self.devices.process_id + 1) * size)
        return _map(lambda array: array[mine], batch)
