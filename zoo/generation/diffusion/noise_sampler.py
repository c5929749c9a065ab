"""Noise schedules, the forward process that adds noise, and the samplers of the reverse process.

    q(x_t | x_{t-1}) = N(√(1 − β_t) x_{t-1}, β_t)       one step of noise             Ho et al. 2020, equation 2
    q(x_t | x_0)     = N(√ᾱ_t x_0, 1 − ᾱ_t)             all steps up to t at once     equation 4, ᾱ_t = Π (1 − β_s)

All samplers are linear in their inputs: the latents x, the model's output, fresh noise, and the outputs they keep of
earlier evaluations. So each is precomputed in NumPy (float64) as a `SamplingPlan`: a small matrix per evaluation of the
model, whose rows are written below as the papers write their equations, with unit vectors for x, output and noise.

    config = SamplerConfig(alphas_cumprod(betas("scaled_linear")), num_steps=30)
    plan = ddim(config)
    state = init_state(plan.init_noise_sigma * noise)
    for timestep, scale, matrix in zip(plan.timesteps, plan.input_scales, plan.step_matrices):
        state = sampler_step(matrix, state, model(scale * state[0], timestep), noise)
    state[0]                                    # x_0; state[1] was the predicted x_0 at each evaluation

`sampler_step` takes arrays of NumPy and tensors of any backend, in a Python loop or inside a compiled step: the same
compiled step serves every sampler.

Letters: T training timesteps, E evaluations of the model, t a timestep, x latents, ε noise, ᾱ cumulative product of
the alphas (share of signal), σ standard deviation of the noise for a signal of 1, √(1 − ᾱ) / √ᾱ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from zoo.io import schemas
from zoo.typing import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

# The names that pipeline.json may have.
BETA_SCHEDULES = get_args(schemas.BETA_SCHEDULES)
PREDICTION_TYPES = get_args(schemas.PREDICTION_TYPES)
TIMESTEP_SPACINGS = get_args(schemas.TIMESTEP_SPACINGS)

# ---------------------------------------------------------------------------------------------------- noise schedules


def betas(
    beta_schedule: str, *, num_train_timesteps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012
) -> np.ndarray:
    """β_t of every timestep.

    Args:
        beta_schedule: "linear" (Ho et al. 2020, section 4: 0.0001 to 0.02); "scaled_linear", linear in √β (Rombach et
            al. 2022, used by Stable Diffusion: 0.00085 to 0.012); "squaredcos_cap_v2", the cosine schedule (Nichol &
            Dhariwal 2021, equation 17).
        num_train_timesteps: T.
        beta_start: the first β; not used by the cosine schedule.
        beta_end: the last β; not used by the cosine schedule.

    Returns:
        float64 (T,).

    Raises:
        ValueError: if there is no such schedule.
    """
    if beta_schedule not in BETA_SCHEDULES:
        raise ValueError(f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {beta_schedule!r}.")
    if beta_schedule == "squaredcos_cap_v2":
        f = np.cos((np.arange(num_train_timesteps + 1) / num_train_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, num_train_timesteps)
    return np.linspace(beta_start**0.5, beta_end**0.5, num_train_timesteps) ** 2


def alphas_cumprod(betas: npt.ArrayLike) -> np.ndarray:
    """ᾱ_t = Π (1 − β_s) for s up to t.

    Args:
        betas: β (T,).

    Returns:
        float64 (T,).
    """
    return np.cumprod(1 - np.asarray(betas, np.float64))


def alphas_cumprod_from_config(noise_schedule: Mapping[str, Any]) -> np.ndarray:
    """ᾱ of every timestep, of a pipeline's configuration.

    Args:
        noise_schedule: that of a pipeline.json: the arguments of `betas`.

    Returns:
        float64 (T,).
    """
    return alphas_cumprod(betas(**noise_schedule))


# ---------------------------------------------------------------------------------------------------- forward process


def add_noise(x_0: Tensor, noise: Tensor, alpha_cumprod: Tensor) -> Tensor:
    """Sample from q(x_t | x_0): √ᾱ_t x_0 + √(1 − ᾱ_t) noise. Ho et al. 2020, equation 4.

    Args:
        x_0: an array.
        noise: standard normal, of its shape.
        alpha_cumprod: ᾱ_t, a number or an array that broadcasts.

    Returns:
        x_t.
    """
    return alpha_cumprod**0.5 * x_0 + (1 - alpha_cumprod) ** 0.5 * noise


def add_noise_step(x: Tensor, noise: Tensor, beta: Tensor) -> Tensor:
    """Sample from q(x_t | x_{t-1}): √(1 − β_t) x_{t-1} + √β_t noise. Ho et al. 2020, equation 2.

    Args:
        x: x_{t-1}, an array.
        noise: standard normal, of its shape.
        beta: β_t, a number or an array that broadcasts.

    Returns:
        x_t.
    """
    return (1 - beta) ** 0.5 * x + beta**0.5 * noise


def predict_x0_and_epsilon(
    prediction_type: str, output: Tensor, x: Tensor, alpha_cumprod: Tensor
) -> tuple[Tensor, Tensor]:
    """x_0 and ε of a model's output for x = √ᾱ x_0 + √(1 − ᾱ) ε.

    Args:
        prediction_type: "epsilon", "v_prediction" (Salimans & Ho 2022, appendix D) or "sample".
        output: of the model.
        x: its input, of the same shape.
        alpha_cumprod: ᾱ, a number or an array that broadcasts.

    Returns:
        (x_0, ε).
    """
    a, s = alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
    if prediction_type == "epsilon":
        return (x - s * output) / a, output
    if prediction_type == "v_prediction":
        return a * x - s * output, a * output + s * x
    return output, (x - a * output) / s


def seeded_noise(seeds: Sequence[int]) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Noise of one random stream per seed.

    Args:
        seeds: B of them.

    Returns:
        a function from a shape (h, w, C) to standard normal noise (B, h, w, C) float32, fresh at each call.
    """
    streams = [np.random.default_rng(seed) for seed in seeds]
    return lambda shape: np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])


# ------------------------------------------------------------------------------------------------------ sampling plans

# A state is five arrays, (5, *x.shape): x, the predicted x_0, and a history of three arrays. A step matrix (5, 7) maps
# state, output and noise to the next state; its rows are linear combinations of these unit vectors.
X, PRED_X0, HISTORY, HISTORY_2, HISTORY_3, OUTPUT, NOISE = np.eye(7)
ZERO = np.zeros(7)
LCM_STEPS = 50  # of the distillation of latent consistency models


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Configuration of a sampler.

    Attributes:
        alphas_cumprod: ᾱ (T,).
        num_steps: number of steps. Heun's method evaluates the model nearly twice as often, PLMS once more.
        prediction_type: what the model predicts: "epsilon" (the noise), "v_prediction" or "sample" (x_0).
        timestep_spacing: see `space_timesteps`; None for the default of diffusers: "leading" for DDPM, DDIM and PLMS,
            "linspace" for the others.
        steps_offset: added to the timesteps of "leading".
        set_alpha_to_one: whether ᾱ after the last step is 1 instead of ᾱ_0. For DDIM and PLMS.
        eta: η, the amount of noise that DDIM adds in every step: 0 for none, 1 for as much as DDPM.
        use_karras_sigmas: space σ as Karras et al. 2022, equation 5, with ρ = 7. For Euler, Heun and DPM-Solver++.
        start_step: number of steps that are skipped at the beginning, for image-to-image; see `start_step`.
    """

    alphas_cumprod: np.ndarray
    num_steps: int
    prediction_type: str = "epsilon"
    timestep_spacing: str | None = None
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    eta: float = 0.0
    use_karras_sigmas: bool = False
    start_step: int = 0

    def __post_init__(self):
        num_train_timesteps = len(self.alphas_cumprod)
        if not 1 <= self.num_steps <= num_train_timesteps:
            raise ValueError(f"num_steps must be from 1 to {num_train_timesteps:,}, got {self.num_steps}.")
        if self.prediction_type not in PREDICTION_TYPES:
            raise ValueError(
                f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {self.prediction_type!r}."
            )
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, got {self.eta}.")

    def spaced_timesteps(self, default_spacing: str) -> np.ndarray:
        """The timesteps as `timestep_spacing` spaces them.

        Args:
            default_spacing: used where `timestep_spacing` is None.

        Returns:
            (num_steps,).
        """
        return space_timesteps(
            self.timestep_spacing or default_spacing, self.num_steps, len(self.alphas_cumprod), self.steps_offset
        )

    def leading_timesteps(self) -> np.ndarray:
        """The timesteps of samplers whose default spacing is "leading", as indices into `alphas_cumprod`."""
        return np.round(self.spaced_timesteps("leading")).astype(int)

    def alpha_cumprod_at(self, t: int) -> float:
        """ᾱ at a timestep.

        Args:
            t: the timestep, which may be negative after the last step.

        Returns:
            ᾱ_t.
        """
        return self.alphas_cumprod[t] if t >= 0 else 1.0 if self.set_alpha_to_one else self.alphas_cumprod[0]

    def timesteps_and_sigmas(self) -> tuple[np.ndarray, np.ndarray]:
        """(timesteps, σ at each and 0 after the last) for samplers that work with x = x_0 + σ ε."""
        train_sigmas = ((1 - self.alphas_cumprod) / self.alphas_cumprod) ** 0.5
        timesteps = self.spaced_timesteps("linspace")
        sigmas = np.interp(timesteps, np.arange(len(train_sigmas)), train_sigmas)
        if self.use_karras_sigmas:
            timesteps, sigmas = _karras_spacing(train_sigmas, sigmas[0], sigmas[-1], self.num_steps)
        return timesteps, np.append(sigmas, 0)


def _karras_spacing(train_sigmas, sigma_max, sigma_min, num_steps):
    """(timesteps, σ) from sigma_max to sigma_min, spaced as Karras et al. 2022, equation 5."""
    sigmas = np.linspace(sigma_max ** (1 / 7), sigma_min ** (1 / 7), num_steps) ** 7
    return np.interp(np.log(sigmas), np.log(train_sigmas), np.arange(len(train_sigmas))), sigmas


@dataclasses.dataclass(frozen=True)
class SamplingPlan:
    """A sampler's arithmetic, evaluation by evaluation.

    Attributes:
        timesteps: (E,) timesteps given to the model.
        input_scales: (E,) factors of x in the model's input.
        step_matrices: (E, 5, 7) from (state, output, noise) to the next state.
        signal_and_noise_scales: (E + 1, 2) factors of x_0 and of noise in x before each evaluation; at the end 1 and 0.
        init_noise_sigma: standard deviation of the initial noise of text-to-image sampling.
    """

    timesteps: np.ndarray
    input_scales: np.ndarray
    step_matrices: np.ndarray
    signal_and_noise_scales: np.ndarray
    init_noise_sigma: float

    def __len__(self):
        return len(self.timesteps)

    @property
    def adds_noise(self) -> np.ndarray:
        """Which evaluations add fresh noise, bool (E,)."""
        return self.step_matrices[:, 0, -1] != 0


def init_state(x: np.ndarray) -> np.ndarray:
    """The initial state.

    Args:
        x: latents, a NumPy array.

    Returns:
        (5, *x.shape).
    """
    return np.stack([x, *[np.zeros_like(x)] * 4])


def sampler_step(matrix: Tensor, state: Tensor, output: Tensor, noise: Tensor) -> Tensor:
    """The next state: the product of `matrix` and (state, output, noise).

    Args:
        matrix: (5, 7), of `SamplingPlan.step_matrices`.
        state: (5, ...), of `init_state` or of the previous step.
        output: output of the model, (...).
        noise: standard normal, (...); ignored where the plan does not say `adds_noise`.

    Returns:
        (5, ...).
    """
    column = (slice(None),) + (None,) * len(output.shape)
    inputs = [*(state[index] for index in range(5)), output, noise]
    return sum(matrix[:, index][column] * x for index, x in enumerate(inputs))


def space_timesteps(
    timestep_spacing: str, num_steps: int, num_train_timesteps: int = 1000, steps_offset: int = 1
) -> np.ndarray:
    """The timesteps at which a sampler evaluates the model. Lin et al. 2024, table 2.

    Args:
        timestep_spacing: "leading", "trailing" or "linspace", which is not rounded.
        num_steps: number of timesteps.
        num_train_timesteps: T.
        steps_offset: added to those of "leading"; 1 in Stable Diffusion 1.

    Returns:
        float64 (num_steps,), descending.

    Raises:
        ValueError: if an argument is out of range.
    """
    if timestep_spacing not in TIMESTEP_SPACINGS:
        raise ValueError(f"timestep_spacing must be one of {', '.join(TIMESTEP_SPACINGS)}, got {timestep_spacing!r}.")
    if not 1 <= num_steps <= num_train_timesteps:
        raise ValueError(f"num_steps must be from 1 to {num_train_timesteps:,}, got {num_steps}.")
    timesteps: np.ndarray
    if timestep_spacing == "leading":
        timesteps = np.arange(num_steps)[::-1] * (num_train_timesteps // num_steps) + steps_offset
    elif timestep_spacing == "trailing":
        timesteps = np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)[:num_steps]) - 1
    else:
        timesteps = np.linspace(0, num_train_timesteps - 1, num_steps)[::-1]
    if timesteps[0] > num_train_timesteps - 1:
        raise ValueError(
            f"{num_steps} steps with steps_offset={steps_offset} exceed timestep {num_train_timesteps - 1}: take fewer "
            "steps."
        )
    return timesteps.astype(np.float64)


def start_step(num_steps: int, strength: float) -> int:
    """Number of steps that image-to-image skips.

    Args:
        num_steps: number of steps from pure noise.
        strength: 1 skips none, 0 skips all.

    Returns:
        the number.
    """
    return num_steps - min(int(num_steps * strength), num_steps)


# ----------------------------------------------------------------------------------------------------------- samplers
#
# Each maps a `SamplerConfig` to a `SamplingPlan`, with the timesteps of diffusers' scheduler, its oddities included.


def ddpm(config: SamplerConfig) -> SamplingPlan:
    """Ancestral sampling: Ho et al. 2020, algorithm 2, with the posterior mean and variance of equation 7.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.
    """
    timesteps, matrices = config.leading_timesteps(), []
    for t, t_prev in list(zip(timesteps, [*timesteps[1:], -1]))[config.start_step :]:
        alpha_cumprod = config.alphas_cumprod[t]
        alpha_cumprod_prev = config.alphas_cumprod[t_prev] if t_prev >= 0 else 1.0
        alpha = alpha_cumprod / alpha_cumprod_prev
        x_0, _ = predict_x0_and_epsilon(config.prediction_type, OUTPUT, X, alpha_cumprod)
        mean = (
            alpha_cumprod_prev**0.5 * (1 - alpha) / (1 - alpha_cumprod) * x_0
            + alpha**0.5 * (1 - alpha_cumprod_prev) / (1 - alpha_cumprod) * X
        )
        sigma = ((1 - alpha_cumprod_prev) / (1 - alpha_cumprod) * (1 - alpha)) ** 0.5
        matrices.append((mean + sigma * NOISE, x_0, ZERO, ZERO, ZERO))
    return _variance_preserving_plan(config, timesteps[config.start_step :], matrices)


def ddim(config: SamplerConfig) -> SamplingPlan:
    """Song et al. 2021, equations 12 and 16.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.
    """
    timesteps, stride, matrices = config.leading_timesteps(), len(config.alphas_cumprod) // config.num_steps, []
    for t in timesteps[config.start_step :]:
        alpha_cumprod, alpha_cumprod_prev = config.alphas_cumprod[t], config.alpha_cumprod_at(t - stride)
        x_0, epsilon = predict_x0_and_epsilon(config.prediction_type, OUTPUT, X, alpha_cumprod)
        variance = (1 - alpha_cumprod_prev) / (1 - alpha_cumprod) * (1 - alpha_cumprod / alpha_cumprod_prev)
        sigma = config.eta * variance**0.5
        x = alpha_cumprod_prev**0.5 * x_0 + (1 - alpha_cumprod_prev - sigma**2) ** 0.5 * epsilon + sigma * NOISE
        matrices.append((x, x_0, ZERO, ZERO, ZERO))
    return _variance_preserving_plan(config, timesteps[config.start_step :], matrices)


def plms(config: SamplerConfig) -> SamplingPlan:
    """Pseudo linear multistep, Liu et al. 2022, equations 9 and 12, started by one step of Heun's method.

    The model's outputs are combined first, whatever their prediction type, and converted to x_0 and ε after that. The
    second evaluation repeats the first step, so that there is one more evaluation than steps; with `start_step`,
    diffusers still repeats the second of the remaining timesteps, and this follows it.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.
    """
    timesteps, stride, matrices = config.leading_timesteps(), len(config.alphas_cumprod) // config.num_steps, []
    timesteps = np.concatenate([timesteps[:2], timesteps[1:]])[config.start_step :]
    for index, t in enumerate(timesteps):
        x, t_start = X, t
        history = (OUTPUT, HISTORY, HISTORY_2)  # the last three outputs, of which one is that of the repeated step
        if index == 0:
            output, history = OUTPUT, (OUTPUT, X, ZERO)
        elif index == 1:
            output, history = (OUTPUT + HISTORY) / 2, (HISTORY, ZERO, ZERO)
            x, t_start = HISTORY_2, t + stride
        elif index == 2:
            output = (3 * OUTPUT - HISTORY) / 2
        elif index == 3:
            output = (23 * OUTPUT - 16 * HISTORY + 5 * HISTORY_2) / 12
        else:
            output = (55 * OUTPUT - 59 * HISTORY + 37 * HISTORY_2 - 9 * HISTORY_3) / 24
        alpha_cumprod_prev = config.alpha_cumprod_at(t_start - stride)
        x_0, epsilon = predict_x0_and_epsilon(config.prediction_type, output, x, config.alphas_cumprod[t_start])
        matrices.append((alpha_cumprod_prev**0.5 * x_0 + (1 - alpha_cumprod_prev) ** 0.5 * epsilon, x_0, *history))
    return _variance_preserving_plan(config, timesteps, matrices)


def _variance_preserving_plan(config, timesteps, matrices):
    """The plan of a sampler with x = √ᾱ_t x_0 + √(1 − ᾱ_t) ε at each of its timesteps t."""
    alpha_cumprod = np.append(config.alphas_cumprod[timesteps], 1)
    return SamplingPlan(
        timesteps=timesteps.astype(np.float64),
        input_scales=np.ones(len(timesteps)),
        step_matrices=np.array(matrices),
        signal_and_noise_scales=np.stack([alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5], axis=1),
        init_noise_sigma=1.0,
    )


def euler(config: SamplerConfig) -> SamplingPlan:
    """Euler's method for dx/dσ = (x − x_0) / σ: Karras et al. 2022, algorithm 1 without its correction.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.
    """
    (timesteps, sigmas), matrices = config.timesteps_and_sigmas(), []
    for sigma, sigma_next in list(zip(sigmas, sigmas[1:]))[config.start_step :]:
        x_0, d = _x0_and_derivative(config, sigma)
        matrices.append((X + (sigma_next - sigma) * d, x_0, ZERO, ZERO, ZERO))
    return _sigma_plan(config, timesteps[config.start_step :], sigmas, sigmas[config.start_step :], matrices)


def euler_ancestral(config: SamplerConfig) -> SamplingPlan:
    """Euler's method down to σ_down, then fresh noise up to the next σ: k-diffusion, after Ho et al. 2020.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.
    """
    (timesteps, sigmas), matrices = dataclasses.replace(config, use_karras_sigmas=False).timesteps_and_sigmas(), []
    for sigma, sigma_next in list(zip(sigmas, sigmas[1:]))[config.start_step :]:
        x_0, d = _x0_and_derivative(config, sigma)
        sigma_up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        matrices.append((X + (sigma_down - sigma) * d + sigma_up * NOISE, x_0, ZERO, ZERO, ZERO))
    return _sigma_plan(config, timesteps[config.start_step :], sigmas, sigmas[config.start_step :], matrices)


def heun(config: SamplerConfig) -> SamplingPlan:
    """Heun's method: Karras et al. 2022, algorithm 1. Two evaluations per step, one for the last.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.
    """
    (timesteps, sigmas), matrices = config.timesteps_and_sigmas(), []
    for sigma, sigma_next in list(zip(sigmas, sigmas[1:]))[config.start_step :]:
        x_0, d = _x0_and_derivative(config, sigma)
        matrices.append((X + (sigma_next - sigma) * d, x_0, d, X, ZERO))
        if sigma_next:
            x_0, d = _x0_and_derivative(config, sigma_next)
            matrices.append((HISTORY_2 + (sigma_next - sigma) * (HISTORY + d) / 2, x_0, ZERO, ZERO, ZERO))
    order = np.repeat(np.arange(config.start_step, config.num_steps), 2)[1:]  # 0 1 1 2 2 ...
    return _sigma_plan(config, timesteps[order], sigmas, np.append(sigmas[order], 0), matrices)


def _x0_and_derivative(config, sigma):
    """(x_0, dx/dσ) for x = x_0 + σ ε, where the model's input is x / √(σ² + 1)."""
    scale = 1 / (sigma**2 + 1) ** 0.5
    return predict_x0_and_epsilon(config.prediction_type, OUTPUT, scale * X, scale**2)  # the derivative is ε


def _sigma_plan(config, timesteps, sigmas, evaluated_sigmas, matrices):
    """The plan of a sampler with x = x_0 + σ ε; `evaluated_sigmas` are σ at its evaluations, and 0."""
    return SamplingPlan(
        timesteps=timesteps,
        input_scales=1 / (evaluated_sigmas[:-1] ** 2 + 1) ** 0.5,
        step_matrices=np.array(matrices),
        signal_and_noise_scales=np.stack([np.ones_like(evaluated_sigmas), evaluated_sigmas], axis=1),
        init_noise_sigma=float((sigmas[0] ** 2 + 1) ** 0.5 if config.timestep_spacing == "leading" else sigmas[0]),
    )


def dpmpp_2m(config: SamplerConfig) -> SamplingPlan:
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2; the first and the last step are of order 1.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.
    """
    num_train_timesteps, num_steps, start = len(config.alphas_cumprod), config.num_steps, config.start_step
    train_sigmas = ((1 - config.alphas_cumprod) / config.alphas_cumprod) ** 0.5
    if config.timestep_spacing == "trailing":
        timesteps = space_timesteps("trailing", num_steps, num_train_timesteps)
    else:  # those of one step more, without the last
        timestep_spacing = config.timestep_spacing or "linspace"
        timesteps = space_timesteps(timestep_spacing, num_steps + 1, num_train_timesteps, config.steps_offset)[:-1]
    timesteps = np.round(timesteps)
    sigmas = np.interp(timesteps, np.arange(num_train_timesteps), train_sigmas)
    if config.use_karras_sigmas:
        timesteps, sigmas = _karras_spacing(train_sigmas, train_sigmas[-1], train_sigmas[0], num_steps)
    sigmas, matrices, ratio = np.append(sigmas, 0), [], 1.0
    alphas = 1 / (sigmas**2 + 1) ** 0.5  # of x = α x_0 + √(1 − α²) ε
    for i in range(start, num_steps):
        x_0, _ = predict_x0_and_epsilon(config.prediction_type, OUTPUT, X, alphas[i] ** 2)
        d, ratio_prev, ratio = x_0, ratio, sigmas[i + 1] / sigmas[i]  # e^-h, h = λ_{i+1} − λ_i, λ = −log σ
        if start < i < num_steps - 1:
            d = x_0 + np.log(ratio) / np.log(ratio_prev) / 2 * (x_0 - PRED_X0)  # 1 / r_i = h_{i+1} / h_i
        x = alphas[i + 1] * (ratio / alphas[i] * X + (1 - ratio) * d)
        matrices.append((x, x_0, ZERO, ZERO, ZERO))
    return SamplingPlan(
        timesteps=np.round(timesteps[start:]),
        input_scales=np.ones(num_steps - start),
        step_matrices=np.array(matrices),
        signal_and_noise_scales=np.stack([alphas, alphas * sigmas], axis=1)[start:],
        init_noise_sigma=1.0,
    )


def lcm(config: SamplerConfig) -> SamplingPlan:
    """Multistep consistency sampling: Luo et al. 2023, "Latent Consistency Models", algorithm 3; 1 to 50 steps.

    For a denoiser that was distilled, or has the LoRA of one that was. Each evaluation predicts x_0, and fresh noise
    leads to the next timestep. Timesteps are spread over the 50 of the distillation, whatever `timestep_spacing` says.

    Args:
        config: of the sampler.

    Returns:
        `SamplingPlan`.

    Raises:
        ValueError: if there are more than 50 steps, or fewer than 50 training timesteps.
    """
    num_train_timesteps = len(config.alphas_cumprod)
    if config.num_steps > LCM_STEPS or num_train_timesteps < LCM_STEPS:
        raise ValueError(
            f"num_steps must be from 1 to {LCM_STEPS} for lcm, which needs {LCM_STEPS} training timesteps or more, got "
            f"{config.num_steps} and {num_train_timesteps}."
        )
    distilled = np.arange(LCM_STEPS, 0, -1) * (num_train_timesteps // LCM_STEPS) - 1
    timesteps = distilled[np.floor(np.linspace(0, LCM_STEPS, config.num_steps, endpoint=False)).astype(int)]
    timesteps, matrices = timesteps[config.start_step :], []
    for index, t in enumerate(timesteps):
        x_0, _ = predict_x0_and_epsilon(config.prediction_type, OUTPUT, X, config.alphas_cumprod[t])
        c_skip, c_out = consistency_scalings(t)
        x_0 = c_skip * X + c_out * x_0
        is_last = index == len(timesteps) - 1
        x = x_0 if is_last else add_noise(x_0, NOISE, config.alphas_cumprod[timesteps[index + 1]])
        matrices.append((x, x_0, ZERO, ZERO, ZERO))
    return _variance_preserving_plan(config, timesteps, matrices)


def consistency_scalings(timestep: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of a consistency function f(x, t) = c_skip x + c_out x_0, which is x at t = 0.

    Song et al. 2023, appendix C, with σ_data = 0.5 and timesteps times 10, as Luo et al. 2023 have them.

    Args:
        timestep: t, a number or an array.

    Returns:
        (c_skip, c_out).
    """
    t = 10 * timestep
    return 0.25 / (t**2 + 0.25), t / (t**2 + 0.25) ** 0.5


SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "plms": plms,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "lcm": lcm,
}
