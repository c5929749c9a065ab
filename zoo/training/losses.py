"""Losses that Keras does not have in this form."""

from typing import Any

import keras
from keras import ops

from zoo.typing import Tensor


@keras.saving.register_keras_serializable("zoo")
class LabelSmoothingCrossEntropy(keras.losses.Loss):
    """Cross-entropy of integer labels with label smoothing, in nats.

    The losses, each times its sample weight, are averaged over all positions. For the mean over the tokens that are not
    padding, the weights must be 0 at padding and elsewhere the number of positions divided by the number of tokens, as
    `zoo.data.BucketedBatches` gives them. (Dividing by the sum of the weights here would give another mean where
    several devices each have a part of the batch.)

    With logits z (..., V), label y and smoothing e, the target distribution is 1 - e at y, plus e / V everywhere:

        loss = logsumexp(z) - (1 - e)·z_y - e·mean(z)        Szegedy et al. 2016, section 7

    the loss of `torch.nn.functional.cross_entropy(label_smoothing=e)`. Besides the softmax, no tensor of the size
    of z is made; `keras.losses.CategoricalCrossentropy` would need one-hot targets.

    Args:
        label_smoothing: e, in [0, 1).
        name: of the loss.
        reduction: as of `keras.losses.Loss`.
        **kwargs: those of `keras.losses.Loss`.

    Raises:
        ValueError: if `label_smoothing` is out of range.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        name: str = "label_smoothing_cross_entropy",
        reduction: str = "sum_over_batch_size",
        **kwargs: Any,
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}.")
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.label_smoothing = label_smoothing

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        labels = ops.expand_dims(ops.cast(y_true, "int32"), -1)

        def at_label(x):
            return ops.squeeze(ops.take_along_axis(x, labels, axis=-1), -1)

        # With logsumexp(z) = z_y - log p_y, since every backend has a kernel for log_softmax and its gradient.
        loss = -at_label(ops.log_softmax(y_pred, axis=-1))
        if not self.label_smoothing:
            return loss
        return loss + self.label_smoothing * (at_label(y_pred) - ops.mean(y_pred, axis=-1))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"label_smoothing": self.label_smoothing}
