"""Learning-rate schedules."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("zoo")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to `peak` over `warmup_steps` steps, then decay with the inverse square root of the step.

        lr(t) = peak · min(t / w, sqrt(w / t))        Vaswani et al. 2017, equation 3, with peak = 1 / sqrt(d·w)

    Args:
        peak: the highest learning rate.
        warmup_steps: w, steps until it is reached, at least 1.
    """

    def __init__(self, peak: float, warmup_steps: int) -> None:
        self.peak, self.warmup_steps = peak, warmup_steps

    def __call__(self, step):
        t = ops.cast(step, "float32") + 1.0
        return self.peak * ops.minimum(t / self.warmup_steps, ops.sqrt(self.warmup_steps / t))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "warmup_steps": self.warmup_steps}


def warmup_cosine(peak: float, *, steps: int, warmup_steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up to a peak, then cosine decay to 0 (Loshchilov and Hutter 2017, equation 5, without restarts).

    Args:
        peak: the highest learning rate.
        steps: steps of the whole run.
        warmup_steps: steps until the peak is reached.

    Returns:
        `keras.optimizers.schedules.CosineDecay`.
    """
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=steps - warmup_steps, warmup_target=peak, warmup_steps=warmup_steps
    )
