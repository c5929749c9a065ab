"""Latent consistency distillation: a denoiser that jumps to x_0 in one step (Luo et al. 2023, algorithm 1).

A trained denoiser, the teacher, makes one step of DDIM with guidance from x_t to x_s, s < t. The student f maps every
point of such a trajectory to its x_0, so it learns that f(x_t, t) is what f(x_s, s) is:

    f(x, t) = c_skip(t) x + c_out(t) (x - √(1 - ᾱ_t) ε(x, t)) / √ᾱ_t          `noise_sampler.consistency_scalings`
    loss    = pseudo-Huber(f(x_t, t) - stop_gradient(f(x_s, s)))                Song & Dhariwal 2023, section 3.3

The guidance scale is part of what the student learns: it generates without guidance, by the sampler `lcm`. As in Song &
Dhariwal 2023, section 3.2, the target has the student's own weights, not a moving average of them.

Letters: B images, h x w latents, C channels, S tokens, d width of a context, T training timesteps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from zoo.generation.diffusion.noise_sampler import LCM_STEPS, consistency_scalings
from zoo.training.diffusion import IndexedBatches
from zoo.typing import Tensor

if TYPE_CHECKING:
    from zoo.training.diffusion import LatentCache


def consistency_model(
    teacher: keras.Model, student: keras.Model, empty_context: np.ndarray, *, guidance_scale: float
) -> keras.Model:
    """The training model: differences between f at the two ends of a step of the teacher.

    Args:
        teacher: [latents (B, h, w, C), timesteps (B,), contexts (B, S, d)] -> noise (B, h, w, C); it is not trained.
        student: as the teacher, with weights of its own.
        empty_context: (S, d), of the empty caption.
        guidance_scale: w of the teacher's guidance, e_empty + w (e_caption - e_empty) (Ho and Salimans 2022).

    Returns:
        `keras.Model` from [latents (B, h, w, C), (t, s) (B, 2), coefficients (B, 2, 4), contexts (B, S, d)], as
        `consistency_batches` gives them, to differences (B, h, w, C).
    """
    teacher.trainable = False
    shapes = [tuple(one.shape[1:]) for one in teacher.inputs]
    latents, context = keras.Input(shapes[0], name="latents"), keras.Input(shapes[2], name="context")
    times, coefficients = keras.Input((2,), name="times"), keras.Input((2, 4), name="coefficients")
    t, s = times[:, 0], times[:, 1]
    empty = 0 * context + np.asarray(empty_context, "float32")
    noise, unguided = teacher([latents, t, context]), teacher([latents, t, empty])
    noise = unguided + guidance_scale * (noise - unguided)
    signal_t, sigma_t, *_ = _columns(coefficients[:, 0])
    signal_s, sigma_s, *_ = _columns(coefficients[:, 1])
    earlier = signal_s * (latents - sigma_t * noise) / signal_t + sigma_s * noise  # x_s, by DDIM
    predicted = _consistency_function(student, latents, t, context, coefficients[:, 0])
    target = _consistency_function(student, earlier, s, context, coefficients[:, 1])
    return keras.Model(
        [latents, times, coefficients, context], predicted - ops.stop_gradient(target), name="consistency"
    )


def _columns(coefficients):
    """√ᾱ, √(1 - ᾱ), c_skip and c_out, (B, 1, 1, 1) each."""
    return [ops.reshape(coefficients[:, index], (-1, 1, 1, 1)) for index in range(4)]


def _consistency_function(denoiser, x, t, context, coefficients):
    signal, sigma, c_skip, c_out = _columns(coefficients)
    return c_skip * x + c_out * (x - sigma * denoiser([x, t, context])) / signal


@keras.saving.register_keras_serializable("zoo")
class PseudoHuberLoss(keras.losses.Loss):
    """√(y² + c²) - c of an output y that should be 0, averaged: Charbonnier et al. 1997; c of Luo et al. 2023.

    Args:
        c: below it the loss is square, above it absolute.
        name: of the loss.
        **kwargs: those of `keras.losses.Loss`.
    """

    def __init__(self, c: float = 0.001, name: str = "pseudo_huber", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.c = c

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return ops.mean(ops.sqrt(ops.square(y_pred - y_true) + self.c**2) - self.c, axis=(1, 2, 3))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"c": self.c}


def consistency_batches(
    latents: LatentCache,
    contexts: np.ndarray,
    alphas_cumprod: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    same_every_epoch: bool = False,
    min_steps: int = 1,
) -> keras.utils.PyDataset:
    """Batches to train `consistency_model`.

    Args:
        latents: `zoo.training.diffusion.LatentCache`.
        contexts: (captions, S, d), of `all_captions` of the data set.
        alphas_cumprod: ᾱ (T,).
        batch_size: B.
        seed: of the order and of the random numbers.
        same_every_epoch: whether every epoch is epoch 0 (validation).
        min_steps: of an epoch, see `zoo.training.diffusion.IndexedBatches`.

    Returns:
        `PyDataset` of ([latents (B, h, w, C), (t, s) (B, 2), coefficients (B, 2, 4): √ᾱ, √(1 - ᾱ), c_skip and c_out at
        t and at s, contexts (B, S, d)], zeros (B, h, w, C)); t is one of `LCM_STEPS` timesteps and s the one before it,
        or no noise before the first.
    """
    stride = len(alphas_cumprod) // LCM_STEPS

    def coefficients(timestep):
        alpha_cumprod = np.where(timestep < 0, 1.0, alphas_cumprod[np.maximum(timestep, 0)])
        scalings = consistency_scalings(np.maximum(timestep, 0))
        return np.stack([alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5, *scalings], axis=1).astype("float32")

    def make_batch(indices, rng, key):
        clean = latents.sample(indices, rng)
        t = stride * rng.integers(1, LCM_STEPS + 1, len(indices)) - 1
        both = coefficients(t), coefficients(t - stride)
        noise = rng.standard_normal(clean.shape, dtype="float32")
        signal, sigma = (both[0][:, column, None, None, None] for column in (0, 1))
        caption = latents.content_ids[indices] * latents.num_paraphrases
        caption += rng.integers(0, latents.num_paraphrases, len(indices))
        times = np.stack([t, np.maximum(t - stride, 0)], axis=1).astype("float32")
        return (signal * clean + sigma * noise, times, np.stack(both, axis=1), contexts[caption]), np.zeros_like(clean)

    return IndexedBatches(
        len(latents.content_ids),
        batch_size,
        seed=seed,
        make_batch=make_batch,
        same_every_epoch=same_every_epoch,
        min_steps=min_steps,
    )
