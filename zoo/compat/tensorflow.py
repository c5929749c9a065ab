"""Private names of Keras' TensorFlow backend, as of 3.15.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.compat import private

if TYPE_CHECKING:
    import keras


def build_from_batch(model: keras.Model, batch: Any, strategy: Any) -> None:
    """Build a compiled model's metrics, loss and optimizer in a `tf.distribute` scope, and let `fit` do so no more.

    Keras 3.15's `fit` builds them of a batch that it reduces over the replicas, which fails with several workers. Since
    Keras 3.0. Public way: none; `test_on_batch` goes through the step that fails.

    Args:
        batch: the part of a global batch that one replica has, (x, y) or (x, y, sample_weight).
    """
    private(model, "_maybe_symbolic_build")
    with strategy.scope():
        private(model, "_symbolic_build")(data_batch=batch)
    model._maybe_symbolic_build = lambda *args, **kwargs: None
