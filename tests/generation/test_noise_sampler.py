"""Samplers against diffusers over whole trajectories, and the forward process against its closed form.

diffusers computes in float32. With σ up to 20,000 (squared cosine, spacing "linspace") its rounding is magnified by the
samplers beyond any tolerance, so the schedulers are compared twice: as they are, where σ stays below 200, within 1e-4;
and with float64 put in the index of float32, everywhere, within 1e-8 (LCM: 1e-5, since its scalings stay in float32).
"""

import functools
import importlib
import types

import keras
import numpy as np
import pytest

from zoo.generation.diffusion.noise_sampler import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    SAMPLERS,
    SamplerConfig,
    add_noise,
    add_noise_step,
    alphas_cumprod,
    betas,
    init_state,
    predict_x0_and_epsilon,
    sampler_step,
    seeded_noise,
    space_timesteps,
    start_step,
)

CLASSES = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "plms": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
# scheduler/scheduler_config.json of Stable Diffusion 1.5
CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
TOLERANCE = dict.fromkeys(CLASSES, 1e-8) | {"lcm": 1e-5}
RNG = np.random.default_rng(0)
LATENTS = RNG.standard_normal((2, 4, 5, 3))
NOISE = RNG.standard_normal((100, *LATENTS.shape))


def model(x, t):
    """Any smooth function of latents and timestep."""
    return 0.9 * np.sin(1.3 * x + t / 300) + 0.2 * np.roll(x, 1, axis=1)


@functools.cache
def alphas_of(schedule):
    return alphas_cumprod(betas(schedule))


def ours(sampler, schedule, steps, **options):
    """(plan, states) of a trajectory in float64."""
    plan = SAMPLERS[sampler](SamplerConfig(alphas_of(schedule), steps, **options))
    signal, noise = plan.signal_and_noise_scales[0]
    x = signal * LATENTS[::-1] + noise * LATENTS if "start_step" in options else plan.init_noise_sigma * LATENTS
    states = [init_state(x)]
    for t, scale, matrix, z in zip(plan.timesteps, plan.input_scales, plan.step_matrices, NOISE):
        states.append(sampler_step(matrix, states[-1], model(scale * states[-1][0], t), z))
    return plan, states


def scheduler(sampler, schedule, **options):
    diffusers = pytest.importorskip("diffusers")
    return getattr(diffusers, CLASSES[sampler]).from_config(CONFIG | {"beta_schedule": schedule} | options)


def theirs(monkeypatch, sampler, schedule, steps, prediction_type="epsilon", start_step=None, eta=0.0, **options):
    """(scheduler, latents after each evaluation, the x_0 it expected or None) of diffusers."""
    import torch

    lacking = prediction_type == "sample" and sampler in ("plms", "euler_ancestral")
    solver = scheduler(sampler, schedule, prediction_type="epsilon" if lacking else prediction_type, **options)
    dtype, x = solver.alphas_cumprod.dtype, torch.tensor(LATENTS)
    solver.set_timesteps(steps)
    draws = iter(torch.tensor(NOISE, dtype=dtype))
    timesteps = solver.timesteps
    if start_step is None:
        x = x * solver.init_noise_sigma
    else:  # get_timesteps and prepare_latents of StableDiffusionImg2ImgPipeline
        timesteps = timesteps[start_step * solver.order :]
        if hasattr(solver, "set_begin_index"):
            solver.set_begin_index(start_step * solver.order)
        x = solver.add_noise(torch.tensor(LATENTS[::-1].copy()), x, timesteps[:1])
    x, found = x.to(dtype), []
    if lacking and sampler == "plms":
        solver._get_prev_sample = functools.partial(_from_x0, solver, solver._get_prev_sample)
    module = importlib.import_module(type(solver).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **b: next(draws), raising=False)
    for t in timesteps:
        output = torch.tensor(model(solver.scale_model_input(x, t).double().numpy(), float(t)), dtype=dtype)
        if lacking and sampler == "euler_ancestral":
            output = (x - output) / solver.sigmas[solver.step_index]
        step = solver.step(output, t, x, **({"eta": eta} if sampler == "ddim" else {}))
        x = step.prev_sample
        expected = getattr(step, "denoised" if sampler == "lcm" else "pred_original_sample", None)
        found.append((x.numpy(), None if expected is None else expected.numpy()))
    return solver, timesteps, found


def _from_x0(solver, previous, sample, timestep, prev_timestep, model_output):
    """What `PNDMScheduler._get_prev_sample` does for v, for outputs that are x_0."""
    alpha_cumprod = solver.alphas_cumprod[timestep]
    epsilon = (sample - alpha_cumprod**0.5 * model_output) / (1 - alpha_cumprod) ** 0.5
    return previous(sample, timestep, prev_timestep, epsilon)


@pytest.fixture
def double(monkeypatch):
    """diffusers' schedulers in float64."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    for name in CLASSES.values():
        module = importlib.import_module(getattr(diffusers, name).__module__)
        monkeypatch.setattr(module, "torch", types.SimpleNamespace(**vars(torch) | {"float32": torch.float64}))
        monkeypatch.setattr(module, "np", types.SimpleNamespace(**vars(np) | {"float32": np.float64}))


def differ(monkeypatch, sampler, schedule, steps, **options):
    """The largest difference of any state on the way, relative to the largest latents of that state."""
    plan, states = ours(sampler, schedule, steps, **options)
    _, timesteps, found = theirs(monkeypatch, sampler, schedule, steps, **options)
    np.testing.assert_allclose(plan.timesteps, timesteps, atol=2e-4)
    worst = 0.0
    for state, (x, expected) in zip(states[1:], found, strict=True):
        pairs = [(state[0], x)] + ([] if expected is None else [(state[1], expected)])
        worst = max([worst, *(np.abs(a - b).max() / np.abs(b).max() for a, b in pairs)])
    return worst


COMBINED = [(steps, prediction_type) for steps in (10, 20, 50) for prediction_type in PREDICTION_TYPES]

# ---------------------------------------------------------------------------------------------------------- diffusers


@pytest.mark.once
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectories_are_those_of_diffusers(sampler, schedule, double, monkeypatch):
    for steps, prediction_type in COMBINED:
        assert differ(monkeypatch, sampler, schedule, steps, prediction_type=prediction_type) < TOLERANCE[sampler]


@pytest.mark.once
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_trajectories_are_those_of_diffusers_in_float32(sampler, schedule, monkeypatch):
    if (sampler, schedule) == ("lcm", "squaredcos_cap_v2"):
        pytest.skip("whatever the spacing, it begins at the last timestep, where sigma is 20,000")
    spacing = {"timestep_spacing": "leading"} if schedule == "squaredcos_cap_v2" else {}
    for steps, prediction_type in COMBINED:
        assert differ(monkeypatch, sampler, schedule, steps, prediction_type=prediction_type, **spacing) < 1e-4


@pytest.mark.once
@pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_other_spacings(sampler, timestep_spacing, double, monkeypatch):
    for steps, prediction_type in ((1, "epsilon"), (2, "v_prediction"), (7, "sample"), (30, "v_prediction")):
        assert (
            differ(
                monkeypatch,
                sampler,
                "scaled_linear",
                steps,
                prediction_type=prediction_type,
                timestep_spacing=timestep_spacing,
            )
            < TOLERANCE[sampler]
        )


@pytest.mark.once
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise(eta, double, monkeypatch):
    for steps, prediction_type in COMBINED:
        assert differ(monkeypatch, "ddim", "scaled_linear", steps, prediction_type=prediction_type, eta=eta) < 1e-8


@pytest.mark.once
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_karras_spacing(sampler, schedule, double, monkeypatch):
    assert differ(monkeypatch, sampler, schedule, 12, use_karras_sigmas=True) < 1e-8


@pytest.mark.once
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "plms"])
def test_alpha_after_the_last_step(sampler, set_alpha_to_one, double, monkeypatch):
    _, states = ours(sampler, "linear", 10, set_alpha_to_one=set_alpha_to_one)
    *_, found = theirs(monkeypatch, sampler, "linear", 10, set_alpha_to_one=set_alpha_to_one)
    np.testing.assert_allclose(states[-1][0], found[-1][0], rtol=1e-8)


@pytest.mark.once
@pytest.mark.parametrize("strength", [1.0, 0.75, 0.3, 0.1])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_begun_with_a_picture(sampler, strength, double, monkeypatch):
    """Noise added at a strength, the steps that are left, and the levels at which inpainting puts back the original."""
    import torch

    first = start_step(10, strength)
    plan, states = ours(sampler, "scaled_linear", 10, start_step=first)
    solver, timesteps, found = theirs(monkeypatch, sampler, "scaled_linear", 10, start_step=first)
    for state, (x, _) in zip(states[1:], found, strict=True):
        np.testing.assert_allclose(state[0], x, rtol=TOLERANCE[sampler], atol=TOLERANCE[sampler])
    one = torch.ones(1, dtype=torch.float64)
    for index, (signal, noise) in enumerate(plan.signal_and_noise_scales[:-1]):
        if hasattr(solver, "_step_index"):
            solver._step_index = first * solver.order + index
        at = timesteps[index : index + 1]
        expected = [solver.add_noise(a * one, b * one, at).item() for a, b in ((1, 0), (0, 1))]
        np.testing.assert_allclose((signal, noise), expected, rtol=1e-9)
    assert plan.signal_and_noise_scales[-1].tolist() == [1, 0]


@pytest.mark.once
def test_share_of_steps_that_a_strength_leaves():
    assert [start_step(10, strength) for strength in (1.0, 0.99, 0.3, 0.05)] == [0, 1, 7, 10]
    assert start_step(50, 0.58) == 50 - int(50 * 0.58) == 22  # 28.999999999999996 is cut, as in diffusers


# ------------------------------------------------------------------------------------------------------------ tensors


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_tensors_follow_the_same_trajectory(sampler):
    plan, states = ours(sampler, "scaled_linear", 10, eta=0.5)
    state, tensor = init_state((plan.init_noise_sigma * LATENTS).astype("float32")), keras.ops.convert_to_tensor
    for index, (t, scale) in enumerate(zip(plan.timesteps, plan.input_scales)):
        output = model(scale * states[index][0], t)
        arrays = (plan.step_matrices[index], state, output, NOISE[index])
        state = sampler_step(*(tensor(np.asarray(x, "float32")) for x in arrays))
        state = keras.ops.convert_to_numpy(state)
    np.testing.assert_allclose(state[0], states[-1][0], atol=1e-4)


@pytest.mark.once
def test_only_samplers_that_say_so_need_noise():
    noisy = {name: SAMPLERS[name](SamplerConfig(alphas_of("linear"), 5)).adds_noise.tolist() for name in SAMPLERS}
    assert noisy.pop("ddpm") == [True] * 4 + [False]
    assert noisy.pop("euler_ancestral") == [True] * 4 + [False]
    assert noisy.pop("lcm") == [True] * 4 + [False]
    assert not any(sum(noisy.values(), []))
    assert SAMPLERS["ddim"](SamplerConfig(alphas_of("linear"), 5, eta=0.1)).adds_noise.all()


@pytest.mark.once
def test_noise_belongs_to_its_seed():
    draw, alone = seeded_noise([4, 5, 6]), seeded_noise([5])
    for shape in ((3, 4, 2), (5, 1, 2)):
        three = draw(shape)
        assert three.shape == (3, *shape) and three.dtype == np.float32
        np.testing.assert_array_equal(three[1:2], alone(shape))
    expected = np.random.default_rng(4).standard_normal((3, 4, 2), dtype=np.float32)
    np.testing.assert_array_equal(seeded_noise([4])((3, 4, 2))[0], expected)


# ---------------------------------------------------------------------------------------------------- forward process


@pytest.mark.once
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_schedules(schedule):
    found = betas(schedule)
    np.testing.assert_allclose(found, scheduler("ddim", schedule).betas, rtol=2e-4, atol=1e-7)
    assert found.shape == (1000,) and found.dtype == np.float64 and (np.diff(found) >= 0).all()
    np.testing.assert_allclose(alphas_of(schedule)[[0, 6]], [1 - found[0], np.prod(1 - found[:7])])


@pytest.mark.once
@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_one_step_of_noise_composed_is_the_closed_form(schedule):
    """Mean and variance of 40,000 draws from one x_0, within five standard errors; steps and closed form alike."""
    rng, count, x_0, steps = np.random.default_rng(1), 40_000, 1.7, 60
    beta, t = betas(schedule, num_train_timesteps=steps), 37
    alpha_cumprod = alphas_cumprod(beta)
    x = np.full(count, x_0)
    for each in beta[: t + 1]:
        x = add_noise_step(x, rng.standard_normal(count), each)
    variance = 1 - alpha_cumprod[t]
    for draws in (x, add_noise(x_0, rng.standard_normal(count), alpha_cumprod[t])):
        assert abs(draws.mean() - alpha_cumprod[t] ** 0.5 * x_0) < 5 * (variance / count) ** 0.5
        assert abs(draws.var() - variance) < 5 * variance * (2 / count) ** 0.5


@pytest.mark.once
def test_what_an_output_means():
    """x_0 and ε come back from the three things that a model may predict of them."""
    x_0, noise, alpha_cumprod = LATENTS, NOISE[0], 0.3
    x = add_noise(x_0, noise, alpha_cumprod)
    v = alpha_cumprod**0.5 * noise - (1 - alpha_cumprod) ** 0.5 * x_0  # Salimans & Ho 2022, appendix D
    for prediction_type, output in (("epsilon", noise), ("v_prediction", v), ("sample", x_0)):
        np.testing.assert_allclose(
            predict_x0_and_epsilon(prediction_type, output, x, alpha_cumprod), (x_0, noise), atol=1e-12
        )


@pytest.mark.once
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_model_gives_back_the_picture(sampler):
    x_0, alphas = LATENTS, alphas_of("scaled_linear")
    plan = SAMPLERS[sampler](SamplerConfig(alphas, 15, prediction_type="sample", set_alpha_to_one=True))
    state = init_state(plan.init_noise_sigma * NOISE[0])
    for matrix, z in zip(plan.step_matrices, NOISE):
        state = sampler_step(matrix, state, x_0, z)
    # A consistency function is x itself at t = 0, so that near it a share of x stays.
    np.testing.assert_allclose(state[0], x_0, atol=1e-4 if sampler == "lcm" else 1e-9)


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.once
@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: betas("cosine"), "must be one of linear, scaled_linear, squaredcos_cap_v2, got 'cosine'"),
        (lambda: space_timesteps("even", 10), "must be one of leading, trailing, linspace, got 'even'"),
        (lambda: space_timesteps("leading", 0), "must be from 1 to 1,000, got 0"),
        (lambda: space_timesteps("leading", 1001), "must be from 1 to 1,000, got 1001"),
        (
            lambda: space_timesteps("leading", 1000),
            "1000 steps with steps_offset=1 exceed timestep 999",
        ),
        (lambda: SamplerConfig(alphas_of("linear"), 0), "must be from 1 to 1,000, got 0"),
        (
            lambda: SamplerConfig(alphas_of("linear"), 5, "noise"),
            "must be one of epsilon, v_.*, sample, got 'noise'",
        ),
        (lambda: SamplerConfig(alphas_of("linear"), 5, eta=1.1), "eta must be from 0 to 1, got 1.1"),
    ],
)
def test_mistakes(call, words):
    with pytest.raises(ValueError, match=words):
        call()
