import keras
import numpy as np
import pytest

from zoo.data import Batches, epoch_order
from zoo.training.callbacks import SetEpoch


def test_order_is_a_permutation_of_seed_and_epoch_alone():
    first = epoch_order(100, seed=1, epoch=2)
    assert sorted(first) == list(range(100))
    np.testing.assert_array_equal(first, epoch_order(100, seed=1, epoch=2))
    assert not np.array_equal(first, epoch_order(100, seed=1, epoch=3))
    assert not np.array_equal(first, epoch_order(100, seed=2, epoch=2))


def test_the_order_is_the_same_everywhere():
    """Written down once; NumPy promises that PCG64 streams do not change between versions."""
    assert epoch_order(8, seed=0, epoch=0).tolist() == np.random.default_rng([0, 0]).permutation(8).tolist()


def test_fit_sees_exactly_these_batches():
    """A model that only remembers what it saw: its one weight sums 2^position · label over the steps of an epoch."""
    seen = []

    class Remember(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(round(float(logs["mean_label"]) * (batch + 1), 3))

    class MeanLabel(keras.metrics.Metric):
        """Mean over steps of the sum of 1.1^row · label, which tells rows of a batch apart by place and by value."""

        def __init__(self):
            super().__init__(name="mean_label")
            self.total = self.add_weight(shape=(), initializer="zeros")
            self.steps = self.add_weight(shape=(), initializer="zeros")

        def update_state(self, y_true, y_pred, sample_weight=None):
            labels = keras.ops.reshape(keras.ops.cast(y_true, "float32"), (-1,))
            places = keras.ops.power(1.1, keras.ops.arange(keras.ops.shape(labels)[0], dtype="float32"))
            self.total.assign_add(keras.ops.sum(places * labels))
            self.steps.assign_add(1.0)

        def result(self):
            return self.total / keras.ops.maximum(self.steps, 1.0)

    x, y = np.zeros((10, 2), "float32"), np.arange(10, dtype="float32")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer="sgd", loss="mse", metrics=[MeanLabel()])
    batches = Batches(x, y, batch_size=4, seed=5)
    model.fit(batches, epochs=3, initial_epoch=1, shuffle=False, verbose=0, callbacks=[SetEpoch(batches), Remember()])
    expected = []
    for epoch in (1, 2):
        order, total = epoch_order(10, seed=5, epoch=epoch), 0.0
        for start in (0, 4, 8):
            labels = order[start : start + 4]
            total += float((1.1 ** np.arange(len(labels)) * labels).sum())
            expected.append(total)
    np.testing.assert_allclose(seen, expected, atol=0.01)


@pytest.mark.parametrize(
    "arguments, word",
    [(((3, 1), 4, 2), "same length"), (((0, 1), 0, 2), "no examples"), (((3, 1), 3, 0), "batch_size")],
)
def test_wrong_arguments_are_named(arguments, word):
    shape, labels, batch_size = arguments
    with pytest.raises(ValueError, match=word):
        Batches(np.zeros(shape), np.zeros(labels), batch_size=batch_size)
