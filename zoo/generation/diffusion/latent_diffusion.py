"""From a prompt to a picture: text encoder, sampler with the denoiser, decoder; from another picture, too.

text to image   noise ─────────────────────────────────┐
image to image  picture ─ encoder ─ noise at a strength ┴─ x ─ E x [denoiser, sampler] ─ x_0 ─ decoder ─ picture
inpainting      the same, and after every step the original comes back where the mask is 0, as noisy as x is; a denoiser
                of 9 channels is shown mask and masked picture instead

With guidance g > 1 the denoiser works on both the negative prompt and the prompt, and what is believed is
ε_negative + g (ε_prompt − ε_negative): Ho & Salimans 2022, equation 6, with g = 1 + w.

The semantics are those of diffusers' StableDiffusionPipeline, …Img2ImgPipeline and …InpaintPipeline.

Letters: B pictures, H x W pixels, F pixels to a latent, h = H/F, w = W/F, C channels of latents, S tokens, d width of
the context, E evaluations of the denoiser.
"""

import dataclasses

import numpy as np
from keras import ops

from zoo.generation.diffusion.noise_sampler import SAMPLERS, Course, advance, begin, random_noise, scheduled, skipped

# What diffusers takes where a scheduler's file says nothing; the other samplers take "linspace".
LEADING = ("ddpm", "ddim", "plms")
TOGETHER = 512 * 512  # pixels that are decoded at once


@dataclasses.dataclass(frozen=True)
class Step:
    """Where a drawing is after an evaluation of the denoiser.

    Attributes:
        number: of the evaluation, from 1 to `total`.
        total: E.
        timestep: what the denoiser was told.
    """

    number: int
    total: int
    timestep: float
    _state: object
    _scale: float

    @property
    def latents(self):
        """Latents (B, h, w, C) float32, of the spread that the decoder knows; noisy but for the last."""
        return self._scale * ops.convert_to_numpy(self._state[0])

    @property
    def expected(self):
        """The latents without noise that the denoiser expected at this step, (B, h, w, C) float32."""
        return ops.convert_to_numpy(self._state[1])


class Pipeline:
    """Draws with the four models of a latent diffusion. Holds what is compiled.

    Args:
        text_encoder: ids (B, S) int32 -> context (B, S, d).
        encoder: images (B, H, W, 3) in [-1, 1] -> [mean, log-variance] of latents; None where none is needed.
        decoder: latents (B, h, w, C) -> images (B, H, W, 3), about in [-1, 1].
        denoiser: [latents (B, h, w, C), timestep (B,), context (B, S, d)] -> (B, h, w, C); or with C + 1 + C channels
            for latents, mask and latents of the masked picture.
        settings: dict, what a pipeline.json holds: see `zoo.converters.stable_diffusion`.
        compiled: function that compiles a function of tensors which calls models with the variables given.
    """

    def __init__(
        self, text_encoder, encoder, decoder, denoiser, settings, *, compiled=lambda function, variables: function
    ):
        self.settings, self.downsampling = settings, settings["downsampling"]
        self.inpaints = denoiser.inputs[0].shape[-1] == 2 * settings["latent_channels"] + 1
        self._denoiser = denoiser
        parts = {"read": text_encoder, "encode": encoder, "decode": decoder}
        self._parts = {
            name: compiled(_applied(part), part.variables) for name, part in parts.items() if part is not None
        }
        self._advance = compiled(self._step, denoiser.variables)

    def plan(self, steps, *, sampler=None, strength=1.0, eta=0.0):
        """The `Plan` of a sampler.

        Args:
            steps: how many to take of the whole way, of which a strength below 1 leaves out the first.
            sampler: a key of `SAMPLERS`; None for the one the pipeline was published with.
            strength: in (0, 1].
            eta: η of DDIM, in [0, 1].

        Raises:
            ValueError: if a number is out of range.
        """
        own = self.settings["sampler"]
        sampler = sampler or own
        if sampler not in SAMPLERS:
            raise ValueError(f"The sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}.")
        if not 0 < strength <= 1:
            raise ValueError(f"The strength must be above 0 and at most 1, got {strength}.")
        # A spacing that is the usual one of the pipeline's own sampler was not chosen, and others have their own.
        spacing = self.settings["spacing"]
        if spacing == ("leading" if own in LEADING else "linspace"):
            spacing = None
        course = Course(
            scheduled(self.settings["schedule"]),
            steps,
            prediction=self.settings["prediction"],
            spacing=spacing,
            offset=self.settings["offset"],
            final_alpha_one=self.settings["final_alpha_one"],
            eta=eta,
            karras=self.settings.get("karras", False),
            skip=skipped(steps, strength),
        )
        if course.skip == steps:
            raise ValueError(f"A strength of {strength} leaves none of {steps} steps: take {1 / steps:.3g} or more.")
        return SAMPLERS[sampler](course)

    def read(self, ids):
        """The context (B, S, d) of prompts, ids (B, S)."""
        return self._parts["read"](ops.convert_to_tensor(np.asarray(ids, np.int32)))

    def draw(
        self,
        ids,
        *,
        negative_ids=None,
        guidance=7.5,
        steps=50,
        sampler=None,
        eta=0.0,
        seeds=(0,),
        height=None,
        width=None,
        image=None,
        strength=1.0,
        mask=None,
        latents=None,
    ):
        """Draw pictures, one for each seed, of one prompt or of a prompt each.

        Args:
            ids: of the prompt, (S,), or of a prompt for each picture, (B, S).
            negative_ids: of what the picture should not be, (S,) or (B, S); not used without guidance.
            guidance: g; 1 or less for none.
            steps, sampler, eta: see `plan`.
            seeds: the random numbers of a picture are those of its seed, whatever is drawn beside it.
            height, width: H and W; None for those of `image`, or else those the pipeline was trained for.
            image: picture (H, W, 3) uint8 to begin with.
            strength: in (0, 1], how much of `image` may go; with a mask and 1, nothing of it shines through there.
            mask: (H, W) bool, True where `image` is to be drawn anew.
            latents: the noise to begin with, (B, h, w, C), instead of that of the seeds.

        Returns:
            an iterator of `Step`, one for each evaluation of the denoiser; `decode` makes pictures of their latents.

        Raises:
            ValueError: if sizes do not fit, a number is out of range, or the denoiser needs a mask and has none.
        """
        plan = self.plan(steps, sampler=sampler, strength=strength, eta=eta)
        height, width = self._size(height, width, image)
        self._check(height, width, image, mask, strength, seeds)
        factor, count = self.downsampling, len(seeds)
        shape = (height // factor, width // factor, self.settings["latent_channels"])  # (h, w, C)
        if latents is not None and np.shape(latents) != (count, *shape):
            raise ValueError(f"The latents must have shape {(count, *shape)}, got {np.shape(latents)}.")
        context = self._context(ids, negative_ids, guidance, count)
        draw, extra, kept = random_noise(seeds), (), ()

        # The random numbers are taken in the order in which diffusers takes them.
        anew = image is None or (mask is not None and strength == 1)  # nothing of an image is begun with
        if image is not None:
            image = np.asarray(image, np.float32) / 127.5 - 1
            original = None if anew and self.inpaints else self._encode(image, draw)
        noise = draw(shape) if latents is None else np.asarray(latents, np.float32)
        if anew:
            x = plan.start * noise
        else:
            signal, spread = plan.levels[0]
            x = signal * original + spread * noise
        if mask is not None:
            mask = np.asarray(mask, np.float32)[..., None]  # (H, W, 1)
            small = np.broadcast_to(mask[::factor, ::factor], (count, *shape[:2], 1))
            if self.inpaints:
                extra = (np.concatenate([small, self._encode(image * (mask < 0.5), draw)], axis=-1),)
            else:
                kept = (small, original, noise)
        return self._walk(plan, x.astype(np.float32), context, guidance, draw, extra, kept)

    def decode(self, latents):
        """Pictures (B, H, W, 3) uint8 of latents (B, h, w, C)."""
        latents = (latents / self.settings["latent_scale"] + self.settings["latent_shift"]).astype(np.float32)
        # Large pictures one by one, for memory; small ones together, for time.
        room = max(1, TOGETHER // (latents[0, ..., 0].size * self.downsampling**2))
        groups = [latents[begin : begin + room] for begin in range(0, len(latents), room)]
        pictures = [self._parts["decode"](ops.convert_to_tensor(group)) for group in groups]
        pictures = np.concatenate([ops.convert_to_numpy(one) for one in pictures]).astype(np.float32)
        return to_bytes(pictures)

    def _encode(self, image, draw):
        """Latents (B, h, w, C), a draw for each seed, of an image (H, W, 3) in [-1, 1]."""
        mean, log_variance = (
            ops.convert_to_numpy(part) for part in self._parts["encode"](ops.convert_to_tensor(image[None]))
        )
        latents = mean + np.exp(log_variance / 2) * draw(mean.shape[1:])
        return (latents - self.settings["latent_shift"]) * self.settings["latent_scale"]

    def _context(self, ids, negative_ids, guidance, count):
        """What the denoiser looks at: (B, S, d), or with guidance (2B, S, d), the negative prompt first."""

        def read(ids):
            ids = np.atleast_2d(ids)
            if len(ids) not in (1, count):
                raise ValueError(f"Give one prompt, or one for each of the {count} seeds, got {len(ids)}.")
            context = self.read(ids)
            return context if len(ids) == count else ops.repeat(context, count, axis=0)

        if guidance <= 1:
            return read(ids)
        if negative_ids is None:
            raise ValueError("Guidance needs the ids of a negative prompt, which may be empty.")
        return ops.concatenate([read(negative_ids), read(ids)], axis=0)

    def _walk(self, plan, x, context, guidance, draw, extra, kept):
        """Yield a `Step` after each evaluation."""
        tensor = ops.convert_to_tensor
        extra, kept = (tuple(tensor(np.asarray(part, np.float32)) for part in parts) for parts in (extra, kept))
        guidance, still, state = tensor(np.float32(guidance)), tensor(np.zeros_like(x)), tensor(begin(x))
        for place in range(len(plan)):
            noise = tensor(draw(x.shape[1:])) if plan.noisy[place] else still
            numbers = (plan.tables[place], plan.scales[place], plan.timesteps[place], plan.levels[place + 1])
            numbers = [tensor(np.asarray(number, np.float32)) for number in numbers]
            state = self._advance(state, noise, context, guidance, extra, kept, *numbers)
            scale = 1 / np.hypot(*plan.levels[place + 1]) if place + 1 < len(plan) else 1.0
            yield Step(place + 1, len(plan), float(plan.timesteps[place]), state, np.float32(scale))

    def _step(self, state, noise, context, guidance, extra, kept, table, scale, timestep, level):
        """The next state (5, B, h, w, C), from one call of the denoiser; this is what is compiled."""
        seen = ops.concatenate([scale * state[0], *extra], axis=-1)
        count, guided = seen.shape[0], context.shape[0] > seen.shape[0]
        if guided:
            seen = ops.concatenate([seen, seen], axis=0)
        told = ops.broadcast_to(timestep, (seen.shape[0],))
        output = self._denoiser([seen, told, context], training=False)
        if guided:
            output = output[:count] + guidance * (output[count:] - output[:count])
        state = advance(table, state, output, noise)
        if kept:
            mask, original, first_noise = kept
            x = (1 - mask) * (level[0] * original + level[1] * first_noise) + mask * state[0]
            state = ops.concatenate([x[None], state[1:]], axis=0)
        return state

    def _size(self, height, width, image):
        usual = (self.settings["image_size"],) * 2 if image is None else np.shape(image)[:2]
        return usual[0] if height is None else height, usual[1] if width is None else width

    def _check(self, height, width, image, mask, strength, seeds):
        factor = self.downsampling
        if height < factor or width < factor or height % factor or width % factor:
            raise ValueError(f"Width and height must be divisible by {factor}, got {width}x{height}.")
        if not seeds or min(seeds) < 0:
            raise ValueError(f"Give one seed or more, none of them negative, got {list(seeds)}.")
        if image is not None and np.shape(image) != (height, width, 3):
            raise ValueError(f"The image must have shape {(height, width, 3)}, got {np.shape(image)}.")
        if image is not None and "encode" not in self._parts:
            raise ValueError("To begin with an image takes the encoder, which was not loaded.")
        if image is None and strength != 1:
            raise ValueError(f"A strength of {strength} is for drawing from an image: give one, too.")
        if mask is not None and image is None:
            raise ValueError("A mask says where an image is drawn anew: give the image, too.")
        if mask is not None and np.shape(mask) != (height, width):
            raise ValueError(
                f"The mask is {np.shape(mask)[1]}x{np.shape(mask)[0]} and the image {width}x{height}: make them alike."
            )
        if self.inpaints and mask is None:
            raise ValueError("This model draws parts of an image anew: give an image and a mask.")


def to_bytes(pictures):
    """Pictures, about in [-1, 1], as uint8."""
    return np.round(255 * np.clip(pictures / 2 + 0.5, 0, 1)).astype(np.uint8)


def _applied(model):
    """A model as a function of its inputs."""
    return lambda x: model(x, training=False)
