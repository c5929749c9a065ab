"""Noise schedules, the forward process that adds noise, and the samplers that take it away again.

    q(x_t | x_{t-1}) = N(√(1 − β_t) x_{t-1}, β_t)       one step of noise             Ho et al. 2020, equation 2
    q(x_t | x_0)     = N(√ᾱ_t x_0, 1 − ᾱ_t)             all steps up to t at once     equation 4, ᾱ_t = Π (1 − β_s)

A model is asked at a timestep what a noisy x is made of, and a sampler takes x nearer to the data. All samplers are
linear in what they see: the latents x, the model's output, fresh noise, and what they remember of earlier evaluations.
So each is a plan made beforehand in NumPy (float64): a small table for every evaluation of the model, whose rows are
written below as the papers write their equations, with unit vectors in the place of x, output and noise.

    plan = ddim(Course(alpha_bars(betas("scaled_linear")), steps=30))
    state = begin(plan.start * noise)
    for timestep, scale, table in zip(plan.timesteps, plan.scales, plan.tables):
        state = advance(table, state, model(scale * state[0], timestep), noise)
    state[0]                                    # x_0; state[1] was the x_0 expected at each evaluation

`advance` takes arrays of NumPy and tensors of any backend, in a Python loop or inside a compiled step: the same step
serves every sampler.

Letters: T timesteps of training, E evaluations of the model, t a timestep, x latents, z fresh Gaussian noise,
ᾱ (alpha_bar) share of signal, σ (sigma) noise for a signal of 1, √(1 − ᾱ) / √ᾱ.
"""

import dataclasses

import numpy as np

SCHEDULES = ("linear", "scaled_linear", "squared_cosine")
PREDICTIONS = ("epsilon", "v", "x0")
SPACINGS = ("leading", "trailing", "linspace")

# ---------------------------------------------------------------------------------------------------- noise schedules


def betas(kind, *, steps=1000, start=0.00085, end=0.012):
    """β_t of every timestep, float64 (T,).

    Args:
        kind: "linear" (Ho et al. 2020, section 4: 0.0001 to 0.02); "scaled_linear", linear in √β (Rombach et al. 2022,
            which Stable Diffusion uses: 0.00085 to 0.012); "squared_cosine" (Nichol & Dhariwal 2021, equation 17).
        steps: T.
        start, end: the first and the last β; the cosine has none.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"The noise schedule must be one of {', '.join(SCHEDULES)}, got {kind!r}.")
    if kind == "squared_cosine":
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], 0.999)
    if kind == "linear":
        return np.linspace(start, end, steps)
    return np.linspace(start**0.5, end**0.5, steps) ** 2


def alpha_bars(betas):
    """ᾱ_t = Π (1 − β_s) for s up to t, float64 (T,)."""
    return np.cumprod(1 - np.asarray(betas, np.float64))


def scheduled(schedule):
    """ᾱ of every timestep, float64 (T,), of a schedule as pipeline.json tells it: kind, steps, beta_start, beta_end."""
    numbers = {"steps": schedule["steps"], "start": schedule["beta_start"], "end": schedule["beta_end"]}
    return alpha_bars(betas(schedule["kind"], **numbers))


# ---------------------------------------------------------------------------------------------------- forward process


def noised(x_0, noise, alpha_bar):
    """Draw from q(x_t | x_0): √ᾱ_t x_0 + √(1 − ᾱ_t) noise. Ho et al. 2020, equation 4."""
    return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise


def noised_once(x, noise, beta):
    """Draw from q(x_t | x_{t-1}): √(1 − β_t) x_{t-1} + √β_t noise. Ho et al. 2020, equation 2."""
    return (1 - beta) ** 0.5 * x + beta**0.5 * noise


def understood(prediction, output, x, alpha_bar):
    """(x_0, ε) that a model's output means for x = √ᾱ x_0 + √(1 − ᾱ) ε; v is of Salimans & Ho 2022, appendix D."""
    a, s = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
    if prediction == "epsilon":
        return (x - s * output) / a, output
    if prediction == "v":
        return a * x - s * output, a * output + s * x
    return output, (x - a * output) / s


def random_noise(seeds):
    """A function of a shape (h, w, C) that draws standard normal noise (B, h, w, C) float32, a stream for each seed."""
    streams = [np.random.default_rng(seed) for seed in seeds]
    return lambda shape: np.stack([stream.standard_normal(shape, dtype=np.float32) for stream in streams])


# -------------------------------------------------------------------------------------------------------------- plans

# A state is five arrays, (5, *x.shape): x, the expected x_0, and three memories. A table (5, 7) gives the next state
# from state, output and noise; its rows are combinations of these unit vectors.
X, EXPECTED, MEMORY, MEMORY_2, MEMORY_3, OUTPUT, NOISE = np.eye(7)
NOTHING = np.zeros(7)


@dataclasses.dataclass(frozen=True)
class Course:
    """What is asked of a sampler.

    Attributes:
        alpha_bars: ᾱ (T,).
        steps: how many to take; Heun's method evaluates the model nearly twice and PLMS once more than that.
        prediction: what the model gives: "epsilon" (the noise), "v" or "x0" (the data).
        spacing: which timesteps, see `timesteps`; None for what diffusers takes when nothing is said: "leading" for
            DDPM, DDIM and PLMS, "linspace" for the others.
        offset: added to the timesteps of "leading".
        final_alpha_one: let ᾱ after the last step be 1, else ᾱ_0. For DDIM and PLMS.
        eta: η, how much noise DDIM adds in every step: none with 0, as much as DDPM with 1.
        karras: space σ as Karras et al. 2022, equation 5, do with ρ = 7. For Euler, Heun and DPM-Solver++.
        skip: leave out that many steps at the beginning, where x begins with a picture; see `skipped`.
    """

    alpha_bars: np.ndarray
    steps: int
    prediction: str = "epsilon"
    spacing: str | None = None
    offset: int = 1
    final_alpha_one: bool = False
    eta: float = 0.0
    karras: bool = False
    skip: int = 0

    def __post_init__(self):
        if not 1 <= self.steps <= len(self.alpha_bars):
            raise ValueError(f"The number of steps must be from 1 to {len(self.alpha_bars):,}, got {self.steps}.")
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"The prediction must be one of {', '.join(PREDICTIONS)}, got {self.prediction!r}.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be from 0 to 1, got {self.eta}.")

    def visited(self, spacing):
        """Timesteps as indices into ᾱ, where none is asked for with that spacing."""
        return np.round(timesteps(self.spacing or spacing, self.steps, len(self.alpha_bars), self.offset)).astype(int)

    def before(self, t):
        """ᾱ of the timestep that a step leads to, which may lie before the first."""
        return self.alpha_bars[t] if t >= 0 else 1.0 if self.final_alpha_one else self.alpha_bars[0]

    def sigmas(self):
        """(timesteps, σ at each and 0 after the last) for samplers that work with x = x_0 + σ ε."""
        every = ((1 - self.alpha_bars) / self.alpha_bars) ** 0.5
        visited = timesteps(self.spacing or "linspace", self.steps, len(every), self.offset)
        sigmas = np.interp(visited, np.arange(len(every)), every)
        if self.karras:
            visited, sigmas = _karras(every, sigmas[0], sigmas[-1], self.steps)
        return visited, np.append(sigmas, 0)


def _karras(every, high, low, steps):
    """(timesteps, σ) from high to low as Karras et al. 2022, equation 5, space them; `every` is σ of all timesteps."""
    sigmas = np.linspace(high ** (1 / 7), low ** (1 / 7), steps) ** 7
    return np.interp(np.log(sigmas), np.log(every), np.arange(len(every))), sigmas


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sampler does, evaluation by evaluation.

    Attributes:
        timesteps: (E,) what the model is told.
        scales: (E,) what x is multiplied with before the model sees it.
        tables: (E, 5, 7) from (state, output, noise) to the next state.
        levels: (E + 1, 2) factors of x_0 and of noise in x before each evaluation; at the end 1 and 0.
        start: what noise is multiplied with where nothing but noise is begun with.
    """

    timesteps: np.ndarray
    scales: np.ndarray
    tables: np.ndarray
    levels: np.ndarray
    start: float

    def __len__(self):
        return len(self.timesteps)

    @property
    def noisy(self):
        """Which evaluations add fresh noise, bool (E,)."""
        return self.tables[:, 0, -1] != 0


def begin(x):
    """The first state for latents x, a NumPy array: (5, *x.shape)."""
    return np.stack([x, *[np.zeros_like(x)] * 4])


def advance(table, state, output, noise):
    """The next state: `table` times (state, output, noise).

    Args:
        table: (5, 7), of `Plan.tables`.
        state: (5, ...), of `begin` or of the evaluation before.
        output: of the model, (...).
        noise: standard normal, (...); without any effect where the plan is not `noisy`.
    """
    column = (slice(None),) + (None,) * len(output.shape)
    parts = [*(state[place] for place in range(5)), output, noise]
    return sum(table[:, place][column] * part for place, part in enumerate(parts))


def timesteps(spacing, steps, train_steps=1000, offset=1):
    """The timesteps that samplers visit, falling, float64 (steps,). Lin et al. 2024, table 2.

    Args:
        spacing: "leading", "trailing" or "linspace", which is not rounded.
        steps: how many.
        train_steps: T.
        offset: added to those of "leading"; Stable Diffusion 1 has 1.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"The spacing must be one of {', '.join(SPACINGS)}, got {spacing!r}.")
    if not 1 <= steps <= train_steps:
        raise ValueError(f"The number of steps must be from 1 to {train_steps:,}, got {steps}.")
    if spacing == "leading":
        visited = np.arange(steps)[::-1] * (train_steps // steps) + offset
    elif spacing == "trailing":
        visited = np.round(np.arange(train_steps, 0, -train_steps / steps)[:steps]) - 1
    else:
        visited = np.linspace(0, train_steps - 1, steps)[::-1]
    if visited[0] > train_steps - 1:
        raise ValueError(
            f"{steps} steps with offset {offset} begin after timestep {train_steps - 1}: take fewer steps."
        )
    return visited.astype(np.float64)


def skipped(steps, strength):
    """How many steps are left out to begin with a picture: with strength 1 none, with 0 all."""
    return steps - min(int(steps * strength), steps)


# ----------------------------------------------------------------------------------------------------------- samplers
#
# Each takes a `Course` and returns a `Plan`. They visit the timesteps that diffusers visits, odd ones too.


def ddpm(course):
    """Ancestral sampling: Ho et al. 2020, algorithm 2, with the posterior mean and variance of equation 7."""
    visited, rows = course.visited("leading"), []
    for t, previous in list(zip(visited, [*visited[1:], -1]))[course.skip :]:
        alpha_bar, before = course.alpha_bars[t], course.alpha_bars[previous] if previous >= 0 else 1.0
        alpha = alpha_bar / before
        x_0, _ = understood(course.prediction, OUTPUT, X, alpha_bar)
        mean = before**0.5 * (1 - alpha) / (1 - alpha_bar) * x_0 + alpha**0.5 * (1 - before) / (1 - alpha_bar) * X
        sigma = ((1 - before) / (1 - alpha_bar) * (1 - alpha)) ** 0.5
        rows.append((mean + sigma * NOISE, x_0, NOTHING, NOTHING, NOTHING))
    return _plan(course, visited[course.skip :], rows)


def ddim(course):
    """Song et al. 2021, equations 12 and 16."""
    visited, stride, rows = course.visited("leading"), len(course.alpha_bars) // course.steps, []
    for t in visited[course.skip :]:
        alpha_bar, before = course.alpha_bars[t], course.before(t - stride)
        x_0, epsilon = understood(course.prediction, OUTPUT, X, alpha_bar)
        sigma = course.eta * ((1 - before) / (1 - alpha_bar) * (1 - alpha_bar / before)) ** 0.5
        x = before**0.5 * x_0 + (1 - before - sigma**2) ** 0.5 * epsilon + sigma * NOISE
        rows.append((x, x_0, NOTHING, NOTHING, NOTHING))
    return _plan(course, visited[course.skip :], rows)


def plms(course):
    """Pseudo linear multistep, Liu et al. 2022, equations 9 and 12, begun with one step of Heun's method.

    The outputs are mixed as they come, whatever they predict, and read after that. The second evaluation takes the
    first step again, which makes one more than there are steps; where the first are skipped, diffusers still does
    this to the second of those left and so passes by one, and this follows it.
    """
    visited, stride, rows = course.visited("leading"), len(course.alpha_bars) // course.steps, []
    visited = np.concatenate([visited[:2], visited[1:]])[course.skip :]
    for place, t in enumerate(visited):
        x, start = X, t
        memory = (OUTPUT, MEMORY, MEMORY_2)  # the last three outputs, of which one is that of the step taken again
        if place == 0:
            output, memory = OUTPUT, (OUTPUT, X, NOTHING)
        elif place == 1:
            output, memory = (OUTPUT + MEMORY) / 2, (MEMORY, NOTHING, NOTHING)
            x, start = MEMORY_2, t + stride
        elif place == 2:
            output = (3 * OUTPUT - MEMORY) / 2
        elif place == 3:
            output = (23 * OUTPUT - 16 * MEMORY + 5 * MEMORY_2) / 12
        else:
            output = (55 * OUTPUT - 59 * MEMORY + 37 * MEMORY_2 - 9 * MEMORY_3) / 24
        before = course.before(start - stride)
        x_0, epsilon = understood(course.prediction, output, x, course.alpha_bars[start])
        rows.append((before**0.5 * x_0 + (1 - before) ** 0.5 * epsilon, x_0, *memory))
    return _plan(course, visited, rows)


def _plan(course, visited, rows):
    """The plan of a sampler for which x = √ᾱ_t x_0 + √(1 − ᾱ_t) ε at every timestep t that it visits."""
    alpha_bar = np.append(course.alpha_bars[visited], 1)
    return Plan(
        timesteps=visited.astype(np.float64),
        scales=np.ones(len(visited)),
        tables=np.array(rows),
        levels=np.stack([alpha_bar**0.5, (1 - alpha_bar) ** 0.5], axis=1),
        start=1.0,
    )


def euler(course):
    """Euler's method for dx/dσ = (x − x_0) / σ: Karras et al. 2022, algorithm 1 without its correction."""
    (visited, sigmas), rows = course.sigmas(), []
    for sigma, after in list(zip(sigmas, sigmas[1:]))[course.skip :]:
        x_0, slope = _slope(course, sigma)
        rows.append((X + (after - sigma) * slope, x_0, NOTHING, NOTHING, NOTHING))
    return _sigma_plan(course, visited[course.skip :], sigmas, sigmas[course.skip :], rows)


def euler_ancestral(course):
    """Euler's method down to σ_down, then fresh noise up to the next σ: k-diffusion, after Ho et al. 2020."""
    (visited, sigmas), rows = dataclasses.replace(course, karras=False).sigmas(), []
    for sigma, after in list(zip(sigmas, sigmas[1:]))[course.skip :]:
        x_0, slope = _slope(course, sigma)
        up = (after**2 * (sigma**2 - after**2) / sigma**2) ** 0.5
        down = (after**2 - up**2) ** 0.5
        rows.append((X + (down - sigma) * slope + up * NOISE, x_0, NOTHING, NOTHING, NOTHING))
    return _sigma_plan(course, visited[course.skip :], sigmas, sigmas[course.skip :], rows)


def heun(course):
    """Heun's method: Karras et al. 2022, algorithm 1. Two evaluations a step, one for the last."""
    (visited, sigmas), rows = course.sigmas(), []
    for sigma, after in list(zip(sigmas, sigmas[1:]))[course.skip :]:
        x_0, slope = _slope(course, sigma)
        rows.append((X + (after - sigma) * slope, x_0, slope, X, NOTHING))
        if after:
            x_0, slope = _slope(course, after)
            rows.append((MEMORY_2 + (after - sigma) * (MEMORY + slope) / 2, x_0, NOTHING, NOTHING, NOTHING))
    order = np.repeat(np.arange(course.skip, course.steps), 2)[1:]  # 0 1 1 2 2 ...
    return _sigma_plan(course, visited[order], sigmas, np.append(sigmas[order], 0), rows)


def _slope(course, sigma):
    """(x_0, dx/dσ) for x = x_0 + σ ε, of which the model was shown x / √(σ² + 1)."""
    scale = 1 / (sigma**2 + 1) ** 0.5
    return understood(course.prediction, OUTPUT, scale * X, scale**2)  # the slope is ε


def _sigma_plan(course, visited, sigmas, passed, rows):
    """The plan of a sampler that works with x = x_0 + σ ε; `passed` are σ at its evaluations, and 0."""
    return Plan(
        timesteps=visited,
        scales=1 / (passed[:-1] ** 2 + 1) ** 0.5,
        tables=np.array(rows),
        levels=np.stack([np.ones_like(passed), passed], axis=1),
        start=float((sigmas[0] ** 2 + 1) ** 0.5 if course.spacing == "leading" else sigmas[0]),
    )


def dpm_solver(course):
    """DPM-Solver++(2M): Lu et al. 2022, algorithm 2; the first and the last step are of order 1."""
    count, steps, skip = len(course.alpha_bars), course.steps, course.skip
    every = ((1 - course.alpha_bars) / course.alpha_bars) ** 0.5
    if course.spacing == "trailing":
        visited = timesteps("trailing", steps, count)
    else:  # as with one step more, of which the last is left out
        visited = timesteps(course.spacing or "linspace", steps + 1, count, course.offset)[:-1]
    visited = np.round(visited)
    sigmas = np.interp(visited, np.arange(count), every)
    if course.karras:
        visited, sigmas = _karras(every, every[-1], every[0], steps)
    sigmas, rows, ratio = np.append(sigmas, 0), [], 1.0
    alphas = 1 / (sigmas**2 + 1) ** 0.5  # of x = α x_0 + √(1 − α²) ε
    for place in range(skip, steps):
        x_0, _ = understood(course.prediction, OUTPUT, X, alphas[place] ** 2)
        data, before, ratio = x_0, ratio, sigmas[place + 1] / sigmas[place]  # e^-h, h = λ_{i+1} − λ_i, λ = −log σ
        if skip < place < steps - 1:
            data = x_0 + np.log(ratio) / np.log(before) / 2 * (x_0 - EXPECTED)  # 1 / r_i = h_{i+1} / h_i
        x = alphas[place + 1] * (ratio / alphas[place] * X + (1 - ratio) * data)
        rows.append((x, x_0, NOTHING, NOTHING, NOTHING))
    levels = np.stack([alphas, alphas * sigmas], axis=1)
    return Plan(np.round(visited[skip:]), np.ones(steps - skip), np.array(rows), levels[skip:], 1.0)


SAMPLERS = {
    "ddpm": ddpm,
    "ddim": ddim,
    "plms": plms,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm++": dpm_solver,
}
