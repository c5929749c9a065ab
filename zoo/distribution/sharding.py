"""Global batches and the part of each that a process hands to its devices."""

import keras
import numpy as np

from zoo.data.batches import epoch_order
from zoo.errors import UserError


def num_rows(data):
    """The first dimension of arrays in a nested structure."""
    return len(keras.tree.flatten(data)[0])


def _map(function, data):
    """A nested structure with a function of each of its arrays; None stays."""
    return keras.tree.map_structure(function, data, none_is_leaf=False)


def class_weight_to_sample_weights(y, class_weight):
    """Weights (B,) of labels, integers (B,) or (B, 1) or one-hot (B, K); a class that is not named weighs 1.

    Raises:
        UserError: if there are several outputs.
    """
    if keras.tree.is_nested(y):
        raise UserError("class_weight works for models with one output: give sample_weight instead.")
    y = np.asarray(y)
    labels = y.argmax(-1) if y.ndim > 1 and y.shape[-1] > 1 else y.reshape(-1)
    return np.array([class_weight.get(int(label), 1.0) for label in labels], "float32")


class ArrayBatches(keras.utils.PyDataset):
    """Global batches of nested arrays x, y and sample_weight, None where there are none; the last may be smaller."""

    def __init__(self, x, y=None, sample_weight=None, *, batch_size):
        super().__init__()
        self.data = _map(keras.ops.convert_to_numpy, (x, y, sample_weight))
        self.batch_size, self.order = batch_size, np.arange(num_rows(x))

    def shuffle(self, epoch):
        """Move to the order of an epoch, a function of its number alone."""
        self.order = epoch_order(len(self.order), seed=0, epoch=epoch)

    def take(self, indices):
        """The batch of some rows."""
        return _map(lambda array: array[indices], self.data)

    def is_divisible_by(self, num_replicas):
        """Whether every batch falls into so many equal parts."""
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

    def __init__(self, batches, devices, class_weight=None, training=True):
        one_process = devices.num_processes == 1
        super().__init__(
            workers=batches.workers if one_process else 1,  # several workers may change the order
            use_multiprocessing=batches.use_multiprocessing and one_process,
            max_queue_size=batches.max_queue_size,
        )
        self.batches, self.devices, self.class_weight, self.order = batches, devices, class_weight, None
        self.weighted, self.scale = True, None
        if hasattr(batches, "batch_size") and batches.num_batches:
            sizes = [num_rows(batches[0])] * (batches.num_batches - 1) + [num_rows(batches[batches.num_batches - 1])]
            added = sum(-size % devices.num_replicas for size in sizes)
            self.weighted = added > 0
            if added and not training:
                self.scale = 1 + added / sum(sizes)

    @property
    def num_batches(self):
        return self.batches.num_batches

    def shuffle(self, epoch):
        """Move to the order of an epoch: of the rows of arrays, else of whole batches."""
        if isinstance(self.batches, ArrayBatches):
            self.batches.shuffle(epoch)
        else:
            self.order = epoch_order(self.num_batches, seed=0, epoch=epoch)

    def on_epoch_begin(self):
        self.batches.on_epoch_begin()

    def on_epoch_end(self):
        self.batches.on_epoch_end()

    def __getitem__(self, index):
        return self.shard(self.batches[index if self.order is None else self.order[index]])

    def shard(self, batch):
        """The part of a global batch that this process works on."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
        if self.class_weight:
            if weights is not None:
                raise UserError("Give sample_weight or class_weight, not both.")
            weights = class_weight_to_sample_weights(y, self.class_weight)
        rows = num_rows(x)
        added = -rows % self.devices.num_replicas
        if weights is None and (self.weighted or added):
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
