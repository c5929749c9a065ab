"""Adam as PyTorch defines it, with each backend's own fused kernel.

Why not `keras.optimizers.Adam`? Two reasons, both measured on the CNN of this project (9.5 million parameters):

- Numbers. PyTorch adds epsilon to the bias-corrected root, `sqrt(v / (1 - b2^t)) + eps`; Keras adds it before the
  correction ("epsilon hat" of the paper), so the first steps differ wherever gradients are small. And PyTorch's
  `Adam(weight_decay=...)` adds `weight_decay * w` to the gradient (L2), while Keras' `weight_decay` shrinks the weights
  directly (decoupled, AdamW). `decoupled_weight_decay` chooses between them, as in `torch.optim.Adam`.
- Speed. Keras' update is a dozen passes over memory; TensorFlow's and PyTorch's fused kernels are one. See
  `benchmarks/cnn_training.py`.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from zoo.compat.keras import adam_slots, clip_summed_gradients, update_variables_at_once
from zoo.fast_paths.optimizers import apply_adam_tensorflow, apply_adam_torch
from zoo.typing import Tensor


@update_variables_at_once
@clip_summed_gradients
@keras.saving.register_keras_serializable("zoo")
class TorchAdam(keras.optimizers.Adam):
    """Adam (Kingma and Ba 2015, algorithm 1) with L2 or decoupled weight decay; the numbers of `torch.optim.Adam`.

    With g the gradient at step t:

        g <- g + λ · w                                      (L2 penalty; Goodfellow et al., "Deep Learning", 7.1.1)
        m <- b1·m + (1 - b1)·g,    v <- b2·v + (1 - b2)·g²
        w <- w - lr · [m / (1 - b1^t)] / [sqrt(v / (1 - b2^t)) + eps]

    Args:
        learning_rate: a number or a `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: λ, strength of the weight decay; 0 for none.
        decoupled_weight_decay: False adds `λ * w` to the gradient, as `torch.optim.Adam`; True multiplies the weights
            by `1 - lr * λ`, as `torch.optim.AdamW` (Loshchilov and Hutter 2019).
        beta_1: b1; PyTorch's default.
        beta_2: b2; PyTorch's default.
        epsilon: eps; PyTorch's default.
        **kwargs: others of `keras.optimizers.Adam`.

    Raises:
        ValueError: if `weight_decay` is negative.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 1e-3,
        *,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        if weight_decay < 0:
            raise ValueError(f"weight_decay must not be negative, got {weight_decay}.")
        kwargs.pop("amsgrad", None)
        # Keras applies its own `weight_decay` to the weights directly.
        kwargs["weight_decay"] = weight_decay if weight_decay and decoupled_weight_decay else None
        super().__init__(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=epsilon, **kwargs)
        self.decoupled_weight_decay = decoupled_weight_decay
        self.l2_penalty = 0.0 if decoupled_weight_decay else weight_decay

    def update_step(self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor) -> None:
        momentum, velocity = adam_slots(self, variable)
        update = self._update_tensorflow if keras.backend.backend() == "tensorflow" else self._update_ops
        update(gradient, variable, momentum, velocity, learning_rate)

    def _update_ops(self, gradient, variable, momentum, velocity, learning_rate):
        """The equations above in `keras.ops`; XLA fuses them into one pass on JAX."""
        dtype = variable.dtype
        step = ops.cast(self.iterations + 1, dtype)
        # 1 - b^t, without the cancellation that costs float32 five digits at the first steps
        correction_1 = -ops.expm1(step * math.log(self.beta_1))
        correction_2 = -ops.expm1(step * math.log(self.beta_2))
        gradient = ops.cast(gradient, dtype)
        if self.l2_penalty:
            gradient = gradient + self.l2_penalty * variable
        m = momentum + (1 - self.beta_1) * (gradient - momentum)
        v = velocity + (1 - self.beta_2) * (gradient * gradient - velocity)
        self.assign(momentum, m)
        self.assign(velocity, v)
        rate = ops.cast(learning_rate, dtype) / correction_1
        self.assign_sub(variable, rate * m / (ops.sqrt(v / correction_2) + self.epsilon))

    def _update_tensorflow(self, gradient, variable, momentum, velocity, learning_rate):
        """`ResourceApplyAdam` uses epsilon hat; handing it eps·sqrt(1 - b2^t) gives the equations above."""
        import tensorflow as tf

        gradient = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
        if self.l2_penalty:
            value = variable.value if isinstance(variable, keras.Variable) else variable
            gradient = gradient + self.l2_penalty * value
        apply_adam_tensorflow(self, gradient, variable, learning_rate, correct_epsilon=True)

    def update_variables(
        self, gradients: Sequence[Tensor], variables: Sequence[keras.Variable], learning_rate: Tensor
    ) -> None:
        """On PyTorch, update all variables at once by its fused kernel, the one of `torch.optim.Adam(fused=True)`.

        Args:
            gradients: of the variables.
            variables: the model's.
            learning_rate: scalar.
        """
        apply_adam_torch(self, gradients, variables, learning_rate, epsilon=self.epsilon, l2_penalty=self.l2_penalty)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["amsgrad"]
        return config | {
            "weight_decay": self.weight_decay or self.l2_penalty,
            "decoupled_weight_decay": self.decoupled_weight_decay,
        }
