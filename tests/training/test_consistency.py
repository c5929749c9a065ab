"""Latent consistency distillation: its arithmetic, a perfect teacher, and that the student learns."""

import keras
import numpy as np
import pytest
from keras import ops

from zoo.generation.diffusion.noise_sampler import (
    LCM_STEPS,
    SAMPLERS,
    SamplerConfig,
    alphas_cumprod,
    betas,
    consistency_scalings,
    init_state,
    sampler_step,
)
from zoo.training.consistency import PseudoHuberLoss, consistency_batches, consistency_model

ALPHAS = alphas_cumprod(betas("scaled_linear"))
SHAPE, CONTEXT = (4, 4, 2), (3, 5)


class Latents:
    """As `LatentCache`: of four images with two captions each."""

    content_ids, num_paraphrases = np.arange(4), 2
    mean = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype("float32")

    def sample(self, indices, rng):
        return self.mean[indices]


CONTEXTS = np.random.default_rng(1).normal(size=(8, *CONTEXT)).astype("float32")


def denoiser_of_one_image(x_0=None):
    """The noise in latents of the one image that there is; None for an image to be learnt, zeros at first."""
    latents, timestep, context = keras.Input(SHAPE), keras.Input(()), keras.Input(CONTEXT)
    alpha = ops.take(np.asarray(ALPHAS, "float32"), ops.cast(timestep, "int32"))
    alpha = ops.reshape(alpha, (-1, 1, 1, 1))
    if x_0 is None:
        image = keras.layers.Embedding(1, int(np.prod(SHAPE)), embeddings_initializer="zeros", name="image")
        x_0 = ops.reshape(image(ops.cast(0 * timestep, "int32")), (-1, *SHAPE))
    return keras.Model([latents, timestep, context], (latents - ops.sqrt(alpha) * x_0) / ops.sqrt(1 - alpha))


def small_denoiser(seed):
    keras.utils.set_random_seed(seed)
    latents, timestep, context = keras.Input(SHAPE), keras.Input(()), keras.Input(CONTEXT)
    condition = keras.layers.Dense(2, name="condition")(keras.layers.Flatten()(context))
    condition += keras.layers.Dense(2, name="time")(ops.expand_dims(timestep / 1000, 1))
    x = keras.layers.Conv2D(2, 3, padding="same", data_format="channels_last", name="conv")(latents)
    return keras.Model([latents, timestep, context], x + ops.reshape(condition, (-1, 1, 1, 2)))


def test_the_training_model_is_the_algorithm():
    """Beside NumPy, image by image, as Luo et al. 2023 write algorithm 1."""
    teacher, student = small_denoiser(0), small_denoiser(1)
    empty, scale = np.random.default_rng(2).normal(size=CONTEXT).astype("float32"), 2.5
    inputs, zeros = consistency_batches(Latents(), CONTEXTS, ALPHAS, 4, seed=3)[0]
    found = consistency_model(teacher, student, empty, guidance_scale=scale).predict_on_batch(list(inputs))
    assert zeros.shape == found.shape == (4, *SHAPE) and not zeros.any()

    def call(model, x, t, context):
        output = model.predict_on_batch([x[None], np.array([t], "float32"), context[None]])
        return np.asarray(output, "float64")[0]

    def jump(model, x, t, context):
        alpha = ALPHAS[t]
        c_skip, c_out = consistency_scalings(t)
        return c_skip * x + c_out * (x - (1 - alpha) ** 0.5 * call(model, x, t, context)) / alpha**0.5

    latents, times, _, contexts = inputs
    for index, (x, (t, s), context) in enumerate(zip(latents, times.astype(int), contexts)):
        noise, unguided = call(teacher, x, t, context), call(teacher, x, t, empty)
        noise = unguided + scale * (noise - unguided)
        x_0 = (x - (1 - ALPHAS[t]) ** 0.5 * noise) / ALPHAS[t] ** 0.5
        is_first = t == len(ALPHAS) // LCM_STEPS - 1
        earlier = x_0 if is_first else ALPHAS[s] ** 0.5 * x_0 + (1 - ALPHAS[s]) ** 0.5 * noise
        target = earlier if is_first else jump(student, earlier, s, context)
        np.testing.assert_allclose(found[index], jump(student, x, t, context) - target, rtol=1e-3, atol=1e-3)


def test_a_perfect_teacher_is_consistent_and_one_step_gives_its_image():
    x_0 = Latents.mean[0]
    model = consistency_model(
        denoiser_of_one_image(x_0), denoiser_of_one_image(x_0), np.zeros(CONTEXT), guidance_scale=2.0
    )
    latents = Latents()
    latents.mean = np.repeat(x_0[None], 4, axis=0)
    batches = consistency_batches(latents, CONTEXTS, ALPHAS, 4, seed=0, min_steps=20)
    assert len(batches) == 20
    for index in range(20):
        inputs, _ = batches[index]
        assert np.abs(model.predict_on_batch(list(inputs))).max() < 5e-3  # float32, divided by a signal of 0.07
    for steps in (1, 2, 4):
        plan = SAMPLERS["lcm"](SamplerConfig(ALPHAS, steps))
        denoiser = denoiser_of_one_image(x_0)
        state = init_state(np.random.default_rng(0).normal(size=(1, *SHAPE)).astype("float32"))
        for t, matrix in zip(plan.timesteps, plan.step_matrices):
            noise = denoiser.predict_on_batch([state[0], np.array([t], "float32"), CONTEXTS[:1]])
            state = sampler_step(matrix, state, np.asarray(noise), np.random.default_rng(1).normal(size=state[0].shape))
        np.testing.assert_allclose(state[0][0], x_0, atol=5e-3)


def test_the_student_learns_where_the_teacher_leads():
    """From the first timestep, whose target is the teacher's x_0, to the last, from which one step is enough."""
    x_0 = Latents.mean[0]
    teacher, student = denoiser_of_one_image(), denoiser_of_one_image()
    teacher.get_layer("image").embeddings.assign(x_0.reshape(1, -1))
    model = consistency_model(teacher, student, np.zeros(CONTEXT), guidance_scale=2.0)
    latents = Latents()
    latents.mean = np.repeat(x_0[None], 4, axis=0)
    batches = consistency_batches(latents, CONTEXTS, ALPHAS, 4, seed=0, min_steps=400)
    rate = keras.optimizers.schedules.CosineDecay(60.0, 400)
    model.compile(optimizer=keras.optimizers.SGD(rate), loss=PseudoHuberLoss(c=1.0))
    model.fit(batches, epochs=1, verbose=0)
    learnt = keras.ops.convert_to_numpy(student.get_layer("image").embeddings)
    np.testing.assert_allclose(learnt.reshape(SHAPE), x_0, atol=0.1)
    np.testing.assert_array_equal(teacher.get_layer("image").embeddings, x_0.reshape(1, -1))


@pytest.mark.once
def test_timesteps_are_those_of_the_sampler():
    batches = consistency_batches(Latents(), CONTEXTS, ALPHAS, 4, seed=0, min_steps=200)
    drawn = np.concatenate([batches[index][0][1] for index in range(200)])
    plan = SAMPLERS["lcm"](SamplerConfig(ALPHAS, LCM_STEPS))
    assert set(drawn[:, 0]) == set(plan.timesteps)
    assert set(drawn[:, 0] - drawn[:, 1]) == {20, 19}  # 19: to timestep 0, which stands for no noise


@pytest.mark.once
def test_pseudo_huber():
    y = np.array([0.0, 1e-4, 3.0]).reshape(3, 1, 1, 1)
    found = keras.ops.convert_to_numpy(PseudoHuberLoss(c=0.001, reduction=None)(np.zeros_like(y), y))
    np.testing.assert_allclose(found, [0, 0.001 * (1.01**0.5 - 1), 3 - 0.001], rtol=1e-3, atol=1e-9)
