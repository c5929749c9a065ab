"""Latent diffusion: text encoder, denoiser with a noise sampler, and autoencoder as one pipeline.

text-to-image   noise ────────────────────────────────┐
image-to-image  image ─ encoder ─ noise at a strength ┴─ x ─ E x [denoiser, sampler] ─ x_0 ─ decoder ─ image
inpainting      the same, and after every step the original, with as much noise as x, is put back where the mask is 0;
                a denoiser of 9 input channels takes the mask and the masked image instead

Classifier-free guidance at a scale g > 1 evaluates the denoiser on both the negative prompt and the prompt and combines
the two to ε_negative + g (ε_prompt − ε_negative): Ho & Salimans 2022, equation 6, with g = 1 + w.

The semantics are those of diffusers' StableDiffusionPipeline, …Img2ImgPipeline and …InpaintPipeline.

Letters: B batch, H x W pixels, F = vae_scale_factor, h = H/F, w = W/F, C latent channels, S tokens, d size of the
context, E evaluations of the denoiser.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from zoo.fast_paths import compile_function, inference_call, inference_function
from zoo.generation.diffusion.noise_sampler import (
    SAMPLERS,
    SamplerConfig,
    SamplingPlan,
    alphas_cumprod_from_config,
    init_state,
    sampler_step,
    seeded_noise,
    start_step,
)
from zoo.typing import Tensor

if TYPE_CHECKING:
    import keras
    import numpy.typing as npt

# Samplers whose default timestep_spacing in diffusers is "leading"; that of the others is "linspace".
_LEADING_SAMPLERS = ("ddpm", "ddim", "plms")
_MAX_DECODED_PIXELS = 512 * 512  # of the images that are decoded in one call


@dataclasses.dataclass(frozen=True)
class Step:
    """The latents after an evaluation of the denoiser.

    Attributes:
        step: number of the evaluation, from 1 to `num_evaluations`.
        num_evaluations: E.
        timestep: the timestep given to the denoiser.
    """

    step: int
    num_evaluations: int
    timestep: float
    _state: Any
    _scale: float
    _decode: Callable[[np.ndarray], np.ndarray]

    @property
    def latents(self) -> np.ndarray:
        """Latents (B, h, w, C) float32, scaled to the variance that the decoder expects; all but the last are noisy."""
        return self._scale * ops.convert_to_numpy(self._state[0])

    @property
    def pred_x0(self) -> np.ndarray:
        """The denoised latents predicted at this evaluation, (B, h, w, C) float32."""
        return ops.convert_to_numpy(self._state[1])

    def decode(self) -> np.ndarray:
        """Images (B, H, W, 3) uint8 of the latents."""
        return self._decode(self.latents)


class LatentDiffusion:
    """The four models of a latent diffusion as a pipeline from token ids to images, compiled for inference.

    The models stay as they are and may be trained; their weights are read at each call. Several threads may use it.

    Args:
        text_encoder: token ids (B, S) int32 -> context (B, S, d).
        encoder: images (B, H, W, 3) in [-1, 1] -> [mean, log-variance] of latents; None where it is not needed.
        decoder: latents (B, h, w, C) -> images (B, H, W, 3), about in [-1, 1].
        denoiser: [latents (B, h, w, C), timestep (B,), context (B, S, d)] -> (B, h, w, C); or with C + 1 + C input
            channels for latents, mask and latents of the masked image.
        pipeline_config: dict, the content of a pipeline.json: see `zoo.converters.stable_diffusion`.
    """

    def __init__(
        self,
        text_encoder: keras.Model,
        encoder: keras.Model | None,
        decoder: keras.Model,
        denoiser: keras.Model,
        pipeline_config: Mapping[str, Any],
    ) -> None:
        self.pipeline_config, self.vae_scale_factor = pipeline_config, pipeline_config["vae_scale_factor"]
        self.is_inpainting_model = denoiser.inputs[0].shape[-1] == 2 * pipeline_config["latent_channels"] + 1
        self._denoiser = inference_call(denoiser)
        self._text_encoder, self._decoder = inference_function(text_encoder), inference_function(decoder)
        self._encoder = None if encoder is None else inference_function(encoder)
        self._denoising_step = compile_function(self._step, lambda: denoiser.variables)

    def plan(
        self, num_steps: int, *, sampler: str | None = None, strength: float = 1.0, eta: float = 0.0
    ) -> SamplingPlan:
        """The plan of a sampler.

        Args:
            num_steps: number of steps from pure noise, of which a strength below 1 skips the first.
            sampler: a key of `SAMPLERS`; None for the pipeline's own.
            strength: image-to-image strength, in (0, 1].
            eta: η of DDIM, in [0, 1].

        Returns:
            `SamplingPlan`.

        Raises:
            ValueError: if an argument is out of range.
        """
        config = self.pipeline_config
        sampler = sampler or config["sampler"]
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}.")
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {strength}.")
        # A spacing that is the default of the pipeline's own sampler was not chosen, and other samplers have their own.
        spacing = config["timestep_spacing"]
        if spacing == ("leading" if config["sampler"] in _LEADING_SAMPLERS else "linspace"):
            spacing = None
        sampler_config = SamplerConfig(
            alphas_cumprod_from_config(config["noise_schedule"]),
            num_steps,
            prediction_type=config["prediction_type"],
            timestep_spacing=spacing,
            steps_offset=config["steps_offset"],
            set_alpha_to_one=config["set_alpha_to_one"],
            eta=eta,
            use_karras_sigmas=config["use_karras_sigmas"],
            start_step=start_step(num_steps, strength),
        )
        if sampler_config.start_step == num_steps:
            raise ValueError(
                f"A strength of {strength} leaves none of {num_steps} steps: take {1 / num_steps:.3g} or more."
            )
        return SAMPLERS[sampler](sampler_config)

    def encode_prompt(self, token_ids: npt.ArrayLike) -> Tensor:
        """The context of prompts.

        Args:
            token_ids: (B, S).

        Returns:
            (B, S, d).
        """
        return self._text_encoder(ops.convert_to_tensor(np.asarray(token_ids, np.int32)))

    def denoise(
        self,
        token_ids: npt.ArrayLike,
        *,
        negative_token_ids: npt.ArrayLike | None = None,
        guidance_scale: float = 7.5,
        num_steps: int = 50,
        sampler: str | None = None,
        eta: float = 0.0,
        seeds: Sequence[int] = (0,),
        height: int | None = None,
        width: int | None = None,
        image: np.ndarray | None = None,
        mask_image: np.ndarray | None = None,
        strength: float = 1.0,
        latents: npt.ArrayLike | None = None,
    ) -> Iterator[Step]:
        """Sample latents, one for each seed, given one prompt or a prompt each.

        Args:
            token_ids: of the prompt, (S,), or of a prompt for each seed, (B, S).
            negative_token_ids: of the negative prompt, (S,) or (B, S); not used without guidance.
            guidance_scale: g; 1 or less for no guidance.
            num_steps: as in `plan`.
            sampler: as in `plan`.
            eta: as in `plan`.
            seeds: each image has the noise of its seed alone, whatever else is in the batch.
            height: H in pixels; None for that of `image`, or else the one that the pipeline was trained for.
            width: W, likewise.
            image: initial image (H, W, 3) uint8.
            mask_image: (H, W) bool, True where `image` is repainted.
            strength: image-to-image strength, in (0, 1]; with a mask and 1, repainted parts start from pure noise.
            latents: the initial noise, (B, h, w, C), instead of that of the seeds.

        Returns:
            an iterator of `Step`, one for each evaluation of the denoiser; `decode` maps their latents to images.

        Raises:
            ValueError: if sizes do not fit, an argument is out of range, or the denoiser needs a mask and has none.
        """
        plan = self.plan(num_steps, sampler=sampler, strength=strength, eta=eta)
        default_size = (self.pipeline_config["image_size"],) * 2 if image is None else np.shape(image)[:2]
        height, width = default_size[0] if height is None else height, default_size[1] if width is None else width
        self._check(height, width, image, mask_image, strength, seeds)
        factor, batch_size = self.vae_scale_factor, len(seeds)
        shape = (height // factor, width // factor, self.pipeline_config["latent_channels"])  # (h, w, C)
        if latents is not None and np.shape(latents) != (batch_size, *shape):
            raise ValueError(f"latents must have shape {(batch_size, *shape)}, got {np.shape(latents)}.")
        context = self._guidance_context(token_ids, negative_token_ids, guidance_scale, batch_size)
        sample_noise = seeded_noise(seeds)
        denoiser_extras: tuple[np.ndarray, ...] = ()
        inpainting: tuple[np.ndarray, ...] = ()

        # Random numbers are drawn in the order of diffusers.
        from_noise = image is None or (mask_image is not None and strength == 1)
        if image is not None:
            image = np.asarray(image, np.float32) / 127.5 - 1
            original: Any = None if from_noise and self.is_inpainting_model else self._encode_image(image, sample_noise)
        noise = sample_noise(shape) if latents is None else np.asarray(latents, np.float32)
        if from_noise:
            x = plan.init_noise_sigma * noise
        else:
            signal_scale, noise_scale = plan.signal_and_noise_scales[0]
            x = signal_scale * original + noise_scale * noise
        if mask_image is not None:
            mask = np.asarray(mask_image, np.float32)[..., None]  # (H, W, 1)
            latent_mask = np.broadcast_to(mask[::factor, ::factor], (batch_size, *shape[:2], 1))
            if image is not None and self.is_inpainting_model:
                masked_image = self._encode_image(image * (mask < 0.5), sample_noise)
                denoiser_extras = (np.concatenate([latent_mask, masked_image], axis=-1),)
            else:
                inpainting = (latent_mask, original, noise)
        return self._run(plan, x.astype(np.float32), context, guidance_scale, sample_noise, denoiser_extras, inpainting)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decode latents.

        Args:
            latents: (B, h, w, C).

        Returns:
            images (B, H, W, 3) uint8.
        """
        config = self.pipeline_config
        latents = (latents / config["scaling_factor"] + config["shift_factor"]).astype(np.float32)
        # Large images one by one, for memory; small ones together, for time.
        count = max(1, _MAX_DECODED_PIXELS // (latents[0, ..., 0].size * self.vae_scale_factor**2))
        batches = [latents[start : start + count] for start in range(0, len(latents), count)]
        images = [ops.convert_to_numpy(self._decoder(ops.convert_to_tensor(batch))) for batch in batches]
        return to_uint8(np.concatenate(images).astype(np.float32))

    def _encode_image(self, image, sample_noise):
        """Latents (B, h, w, C), a sample for each seed, of an image (H, W, 3) in [-1, 1]."""
        assert self._encoder is not None  # `_check` has made sure
        outputs = self._encoder(ops.convert_to_tensor(image[None]))
        mean, log_variance = (ops.convert_to_numpy(output) for output in outputs)
        latents = mean + np.exp(log_variance / 2) * sample_noise(mean.shape[1:])
        return (latents - self.pipeline_config["shift_factor"]) * self.pipeline_config["scaling_factor"]

    def _guidance_context(self, token_ids, negative_token_ids, guidance_scale, batch_size):
        """Context of the denoiser: (B, S, d), or with guidance (2B, S, d), that of the negative prompts first."""

        def encode(token_ids):
            token_ids = np.atleast_2d(token_ids)
            if len(token_ids) not in (1, batch_size):
                raise ValueError(f"Give one prompt, or one for each of the {batch_size} seeds, got {len(token_ids)}.")
            context = self.encode_prompt(token_ids)
            return context if len(token_ids) == batch_size else ops.repeat(context, batch_size, axis=0)

        if guidance_scale <= 1:
            return encode(token_ids)
        if negative_token_ids is None:
            raise ValueError("Guidance needs the token ids of a negative prompt, which may be empty.")
        return ops.concatenate([encode(negative_token_ids), encode(token_ids)], axis=0)

    def _run(self, plan, x, context, guidance_scale, sample_noise, denoiser_extras, inpainting):
        """Yield a `Step` after each evaluation."""

        def tensors(arrays):
            return tuple(ops.convert_to_tensor(np.asarray(array, np.float32)) for array in arrays)

        denoiser_extras, inpainting = tensors(denoiser_extras), tensors(inpainting)
        guidance_scale, no_noise, state = tensors((guidance_scale, np.zeros_like(x), init_state(x)))
        for i, matrix in enumerate(plan.step_matrices):
            noise = ops.convert_to_tensor(sample_noise(x.shape[1:])) if plan.adds_noise[i] else no_noise
            scales = plan.signal_and_noise_scales[i + 1]
            arrays = tensors((matrix, plan.input_scales[i], plan.timesteps[i], scales))
            state = self._denoising_step(state, noise, context, guidance_scale, denoiser_extras, inpainting, *arrays)
            decoder_scale = 1 / np.hypot(*scales) if i + 1 < len(plan) else 1.0
            yield Step(i + 1, len(plan), float(plan.timesteps[i]), state, float(decoder_scale), self.decode)

    def _step(
        self, state, noise, context, guidance_scale, denoiser_extras, inpainting, matrix, input_scale, timestep, scales
    ):
        """The next state (5, B, h, w, C), with one call of the denoiser; this is what is compiled."""
        latents = ops.concatenate([input_scale * state[0], *denoiser_extras], axis=-1)
        batch_size, guided = latents.shape[0], context.shape[0] > latents.shape[0]
        if guided:
            latents = ops.concatenate([latents, latents], axis=0)
        timestep_batch = ops.broadcast_to(timestep, (latents.shape[0],))
        output = self._denoiser([latents, timestep_batch, context])
        if guided:
            output_negative, output_prompt = output[:batch_size], output[batch_size:]
            output = output_negative + guidance_scale * (output_prompt - output_negative)
        state = sampler_step(matrix, state, output, noise)
        if inpainting:
            mask, original, initial_noise = inpainting
            x = (1 - mask) * (scales[0] * original + scales[1] * initial_noise) + mask * state[0]
            state = ops.concatenate([x[None], state[1:]], axis=0)
        return state

    def _check(self, height, width, image, mask_image, strength, seeds):
        factor = self.vae_scale_factor
        if height < factor or width < factor or height % factor or width % factor:
            raise ValueError(f"Width and height must be divisible by {factor}, got {width}x{height}.")
        if not seeds or min(seeds) < 0:
            raise ValueError(f"Give one seed or more, none of them negative, got {list(seeds)}.")
        if image is not None and np.shape(image) != (height, width, 3):
            raise ValueError(f"The image must have shape {(height, width, 3)}, got {np.shape(image)}.")
        if image is not None and self._encoder is None:
            raise ValueError("Image-to-image generation needs the encoder, which was not loaded.")
        if image is None and strength != 1:
            raise ValueError(f"A strength of {strength} is for image-to-image generation: give an image as well.")
        if mask_image is not None and image is None:
            raise ValueError("A mask says which part of an image is repainted: give the image as well.")
        if mask_image is not None and np.shape(mask_image) != (height, width):
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (np.shape(mask_image), (height, width))]
            raise ValueError(f"The mask is {sizes[0]} and the image {sizes[1]}: give a mask of the image's size.")
        if self.is_inpainting_model and mask_image is None:
            raise ValueError("This is an inpainting model: give an image and a mask.")


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Images as bytes.

    Args:
        images: about in [-1, 1].

    Returns:
        uint8 of the same shape.
    """
    return np.round(255 * np.clip(images / 2 + 0.5, 0, 1)).astype(np.uint8)
