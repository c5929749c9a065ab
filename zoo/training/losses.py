"""Losses that Keras does not have in this form."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("zoo")
class SmoothedCrossEntropy(keras.losses.Loss):
    """Cross-entropy of token ids with label smoothing, in nats, each token times its weight, averaged over all.

    The mean over the tokens of a text without its padding is that of weights that are 0 at padding and, elsewhere, the
    share of tokens in all positions turned upside down, as `zoo.data.PairBatches` gives them. (Dividing by the sum of
    the weights here would give another mean where several devices each have a part of the batch.)

    With logits z (..., V), wanted token y and smoothing e, what is wanted is 1 - e at y, plus e / V everywhere:

        loss = logsumexp(z) - (1 - e)·z_y - e·mean(z)        Szegedy et al. 2016, section 7

    the loss of `torch.nn.functional.cross_entropy(label_smoothing=e)`. Nothing of the size of z is made but its own
    softmax: `keras.losses.CategoricalCrossentropy` would want the targets one-hot.

    Args:
        smoothing: e, in [0, 1).

    Raises:
        ValueError: if `smoothing` is out of range.
    """

    def __init__(self, smoothing=0.0, name="smoothed_cross_entropy", reduction="sum_over_batch_size", **kwargs):
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {smoothing}.")
        super().__init__(name=name, reduction=reduction, **kwargs)
        self.smoothing = smoothing

    def call(self, y_true, y_pred):
        wanted = ops.expand_dims(ops.cast(y_true, "int32"), -1)

        def at_wanted(x):
            return ops.squeeze(ops.take_along_axis(x, wanted, axis=-1), -1)

        # With logsumexp(z) = z_y - log p_y, since every backend has a kernel for log_softmax and its gradient.
        loss = -at_wanted(ops.log_softmax(y_pred, axis=-1))
        if not self.smoothing:
            return loss
        return loss + self.smoothing * (at_wanted(y_pred) - ops.mean(y_pred, axis=-1))

    def get_config(self):
        return super().get_config() | {"smoothing": self.smoothing}
