"""Losses and schedules against PyTorch and closed forms."""

import keras
import numpy as np
import pytest
from keras import ops

from zoo.training.losses import LabelSmoothingCrossEntropy
from zoo.training.schedules import InverseSquareRoot


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_is_that_of_torch(smoothing):
    import torch

    rng = np.random.default_rng(0)
    logits, wanted = rng.normal(size=(3, 5, 7)).astype("float32") * 3, rng.integers(1, 7, (3, 5))
    wanted[1, 3:] = 0  # padding
    tokens = (wanted > 0).astype("float32")
    loss = LabelSmoothingCrossEntropy(smoothing)(wanted, logits, sample_weight=tokens / tokens.mean())
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).flatten(0, 1), torch.tensor(wanted).flatten(), ignore_index=0, label_smoothing=smoothing
    )
    np.testing.assert_allclose(ops.convert_to_numpy(loss), expected.numpy(), rtol=1e-5)


def test_smoothing_out_of_range():
    with pytest.raises(ValueError, match=r"\[0, 1\), got 1"):
        LabelSmoothingCrossEntropy(1)


def test_loss_and_schedule_survive_their_configuration():
    loss = keras.losses.deserialize(keras.losses.serialize(LabelSmoothingCrossEntropy(0.2)))
    assert loss.label_smoothing == 0.2
    schedule = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(InverseSquareRoot(0.5, 10)))
    assert schedule.get_config() == {"peak": 0.5, "warmup_steps": 10}


def test_inverse_square_root():
    """Vaswani et al. 2017, equation 3: d^-0.5 · min(t^-0.5, t · w^-1.5)."""
    d, w = 64, 100
    schedule = InverseSquareRoot((d * w) ** -0.5, w)
    for t in (1, 50, 100, 101, 10_000):
        expected = d**-0.5 * min(t**-0.5, t * w**-1.5)
        np.testing.assert_allclose(float(schedule(t - 1)), expected, rtol=1e-6)
