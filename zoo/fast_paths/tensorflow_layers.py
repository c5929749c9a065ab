"""The fast path of batch normalization on TensorFlow: its fused operation in place of a dozen passes."""

from typing import Any

import keras

from zoo.typing import Tensor


def batch_normalization(
    layer: keras.layers.BatchNormalization, inputs: Tensor, training: bool | None = None, mask: Any = None
) -> Tensor:
    """`tf.raw_ops.FusedBatchNormV3`; the moving averages are Keras', of the biased variance.

    Args:
        layer: stock layer to which it applies.
        inputs: (B, H, W, C).
        training: whether the statistics are the batch's.
        mask: None.

    Returns:
        tensor, (B, H, W, C), or `NotImplemented`.
    """
    import tensorflow as tf

    if mask is not None or inputs.shape.rank != 4 or inputs.dtype != layer.variable_dtype:
        return NotImplemented
    learns = bool(training) and layer.trainable
    like = layer.moving_mean.value
    outputs = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=layer.gamma.value if layer.scale else tf.ones_like(like),
        offset=layer.beta.value if layer.center else tf.zeros_like(like),
        mean=tf.zeros((0,)) if learns else like,
        variance=tf.zeros((0,)) if learns else layer.moving_variance.value,
        epsilon=layer.epsilon,
        is_training=learns,
    )
    if learns:
        count = tf.cast(tf.size(inputs), "float32") / inputs.shape[-1]
        variance = outputs.batch_variance * ((count - 1) / count)  # that of the operation is unbiased
        for moving, new in ((layer.moving_mean, outputs.batch_mean), (layer.moving_variance, variance)):
            moving.assign(moving.value * layer.momentum + new * (1.0 - layer.momentum))
    return outputs.y
