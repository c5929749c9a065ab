"""Learning-rate schedules."""

from typing import Any

import keras
from keras import ops

_MIN_WARMUP_STEPS = 100  # until the whole learning rate


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
        0.0, decay_steps=max(1, steps - warmup_steps), warmup_target=peak, warmup_steps=warmup_steps
    )


def limit_warmup(peak: float, *, steps: int, warmup_steps: int) -> tuple[float, int]:
    """Warm-up of a run that may be too short for it: at most a quarter of the steps, rising no faster for that.

    While Adam knows few gradients, each step moves every weight by about the learning rate, whatever its gradient: a
    rate that rises too fast makes the loss jump. A warm-up of fewer than 100 steps therefore ends at a lower peak,

        peak · min(1, w / 100)        with w = min(warmup_steps, steps / 4), at least 1

    Args:
        peak: learning rate at the end of a whole warm-up.
        steps: steps of the whole run.
        warmup_steps: steps of a whole warm-up.

    Returns:
        (peak, w).
    """
    warmup_steps = max(1, min(warmup_steps, steps // 4))
    return peak * min(1.0, warmup_steps / _MIN_WARMUP_STEPS), warmup_steps
