"""Learning-rate schedules."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("zoo")
class InverseSquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """Rise linearly to `peak` over `warm_up` steps, then fall with the root of the step.

        rate(t) = peak · min(t / w, sqrt(w / t))        Vaswani et al. 2017, equation 3, with peak = 1 / sqrt(d·w)

    Args:
        peak: highest rate.
        warm_up: w, steps until then, at least 1.
    """

    def __init__(self, peak, warm_up):
        self.peak, self.warm_up = peak, warm_up

    def __call__(self, step):
        t = ops.cast(step, "float32") + 1.0
        return self.peak * ops.minimum(t / self.warm_up, ops.sqrt(self.warm_up / t))

    def get_config(self):
        return {"peak": self.peak, "warm_up": self.warm_up}


def risen_cosine(peak, *, steps, warm_up):
    """Rise linearly to `peak` over `warm_up` steps, then fall along a cosine to 0 at step `steps`."""
    return keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=steps - warm_up, warmup_target=peak, warmup_steps=warm_up
    )
