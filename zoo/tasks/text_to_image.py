"""Text to image with a latent diffusion, and image-to-image and inpainting.

task = TextToImage.from_preset("diffusion_captions")
image = task.generate("a green three on white", seed=1)                  # (H, W, 3) uint8
images = task.generate(["a red seven", "a blue shoe"], num_steps=30)     # (2, H, W, 3)
for step in task.stream("a green three on white", seed=1):
    print(step.step, "of", step.num_evaluations)
step.decode()                                                            # (1, H, W, 3), what `generate` gives

A preset's files are those that `zoo convert stable-diffusion` writes; `zoo.converters.stable_diffusion` describes them.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import os
import pathlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np

from zoo.errors import UserError, did_you_mean
from zoo.generation.diffusion.latent_diffusion import LatentDiffusion
from zoo.generation.diffusion.noise_sampler import (
    SAMPLERS,
    start_step,
)
from zoo.io import cards, files, images, model_files, schemas
from zoo.tasks.base import Task
from zoo.tokenizers import read_tokenizer
from zoo.typing import ImageLike, Log, StrPath

if TYPE_CHECKING:
    import keras
    import numpy.typing as npt
    import tokenizers

    from zoo.generation.diffusion.latent_diffusion import Step

COMPONENTS = ("text_encoder", "encoder", "decoder", "denoiser")  # files of a preset, each with ".keras"
_SMALL_IMAGE_SIZE = 128  # pixels: up to this size, `save_images` writes a strip of the steps as well
_KIND = "stable_diffusion"


# The entries of pipeline.json: a type, or the possible values.
class ImageOptions(TypedDict, total=False):
    """Keyword arguments of `TextToImage.generate`."""

    negative_prompt: str | Iterable[str] | None
    guidance_scale: float | None
    num_steps: int | None
    sampler: str | None
    eta: float | None
    seed: int | None
    num_images_per_prompt: int
    height: int | None
    width: int | None
    image: ImageLike | None
    mask_image: ImageLike | None
    strength: float | None
    latents: npt.ArrayLike | None


class TextToImage(Task):
    """Generates images from prompts.

    Args:
        components: dict of `keras.Model`s: "text_encoder", "decoder", "denoiser" and, for image-to-image, "encoder";
            see `zoo.generation.diffusion.latent_diffusion.LatentDiffusion`.
        tokenizer: `tokenizers.Tokenizer` of the text encoder.
        pipeline_config: dict, the content of a pipeline.json; see `zoo.converters.stable_diffusion`.
        card: dict, what is known about the models.
        generation_config: dict of settings that take the place of `DEFAULTS`.

    Raises:
        UserError: if the components do not fit each other and the config.

    Example:
        >>> image = zoo.TextToImage.from_preset("diffusion_captions").generate("a green three on white", seed=1)
    """

    task = "text-to-image"
    # As in diffusers. A sampler of None is that of pipeline.json.
    DEFAULTS = {"num_steps": 50, "guidance_scale": 7.5, "negative_prompt": "", "eta": 0.0, "sampler": None}

    def __init__(
        self,
        components: Mapping[str, keras.Model | None],
        tokenizer: tokenizers.Tokenizer,
        pipeline_config: Mapping[str, Any],
        *,
        card: Mapping[str, Any] | None = None,
        generation_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(None, tokenizer, card=card, generation_config=generation_config)
        del self.model  # there are several
        self.components = {name: model for name, model in components.items() if model is not None}
        self.pipeline_config = dict(pipeline_config)
        _check_components(self.components, self.pipeline_config)
        models = {name: self.components.get(name) for name in COMPONENTS}
        self._pipeline = LatentDiffusion(**models, pipeline_config=self.pipeline_config)

    def generate(
        self,
        prompt: str | Iterable[str],
        *,
        negative_prompt: str | Iterable[str] | None = None,
        guidance_scale: float | None = None,
        num_steps: int | None = None,
        sampler: str | None = None,
        eta: float | None = None,
        seed: int | None = 0,
        num_images_per_prompt: int = 1,
        height: int | None = None,
        width: int | None = None,
        image: ImageLike | None = None,
        mask_image: ImageLike | None = None,
        strength: float | None = None,
        latents: npt.ArrayLike | None = None,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Generate images. A warning names the words of a prompt that the text encoder does not take.

        Settings that are None are those of the preset's generation_config.json, or else of `DEFAULTS`.

        Args:
            prompt: one text, or several.
            negative_prompt: what images should not show, one text or one for each prompt; not used without guidance.
            guidance_scale: scale w of the classifier-free guidance, e_neg + w (e_text - e_neg) (Ho and Salimans 2022);
                1 or less for no guidance.
            num_steps: number of sampling steps.
            sampler: "ddpm", "ddim", "plms", "euler", "euler_ancestral", "heun", "dpmpp_2m", or "lcm" for a
                denoiser distilled to few steps.
            eta: amount of noise that DDIM adds in every step, in [0, 1].
            seed: integer from 0 up; image i of the result has the noise of `seed` + i, and comes out again alone with
                that seed. None for a fresh one.
            num_images_per_prompt: number of images for each prompt.
            height: of the images, in pixels; that of `image`, or the one that the pipeline was trained for, if None.
            width: as `height`.
            image: initial image of image-to-image: a path, `PIL.Image.Image` or array (H, W, 3) uint8.
            mask_image: as `image`, of the same size, white where `image` is repainted (inpainting).
            strength: image-to-image strength, in (0, 1]; if None 0.8, or with a mask 1: repainted parts are new.
            latents: initial noise (B, h, w, C) instead of that of the seeds.
            batch_size: images that are generated at once; all if None.

        Returns:
            (H, W, 3) uint8 for one prompt and one image per prompt, else (B, H, W, 3), images of a prompt in a row.

        Raises:
            UserError: if an argument is out of range or sizes do not fit, before anything is generated.
        """
        if batch_size is not None:
            _check_integer("batch_size", batch_size, 1)
        denoise, count = self._prepare(
            prompt,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            num_steps=num_steps,
            sampler=sampler,
            eta=eta,
            seed=seed,
            num_images_per_prompt=num_images_per_prompt,
            height=height,
            width=width,
            image=image,
            mask_image=mask_image,
            strength=strength,
            latents=latents,
        )
        batches, batch_size = [], batch_size or max(1, count)
        for start in range(0, count, batch_size):
            (last,) = collections.deque(denoise(slice(start, start + batch_size)), maxlen=1)
            batches.append(last.decode())
        if not batches:
            size = self.pipeline_config["image_size"]
            return np.zeros((0, height or size, width or size, 3), np.uint8)
        result = np.concatenate(batches)
        return result[0] if isinstance(prompt, str) and num_images_per_prompt == 1 else result

    def stream(self, prompt: str, **arguments: Unpack[ImageOptions]) -> Iterator[Step]:
        """Generate the images of one prompt step by step.

        Args:
            prompt: one text.
            **arguments: as in `generate`, without `batch_size`.

        Returns:
            iterator of `zoo.generation.diffusion.latent_diffusion.Step`, one for each evaluation of the denoiser, with
            `latents` (B, h, w, C) and the denoised latents `pred_x0`; `step.decode()` gives images (B, H, W, 3), those
            of the last step are what `generate` gives.

        Raises:
            UserError: as in `generate`.
        """
        if not isinstance(prompt, str):
            raise UserError(f"stream takes one prompt, got {prompt!r}: use generate for a list.")
        denoise, _ = self._prepare(prompt, **arguments)
        return denoise(slice(None))

    def save_images(
        self,
        path: StrPath,
        prompt: str,
        *,
        save_strip: StrPath | Literal[False] | None = None,
        save_gif: StrPath | None = None,
        on_step: Callable[[Step], object] | None = None,
        log: Log | None = None,
        seed: int | None = 0,
        **arguments: Any,
    ) -> list[pathlib.Path]:
        """Generate the images of one prompt and write them to PNG files that contain their settings as text.

        Args:
            path: PNG file; if there are several images, the seed of each is added to its name.
            prompt: one text.
            save_strip: image file with a row of intermediate images for each image; if None, images of at most 128x128
                pixels come with a strip, `<path>-steps.png`. False for none.
            save_gif: GIF file with an animation of the steps, or None.
            on_step: function that is called with each `Step`, e.g. for a progress bar.
            log: function that is called with a line for each file written.
            seed: as in `generate`.
            **arguments: as in `generate`, without `batch_size`.

        Returns:
            paths of the PNG files.

        Raises:
            UserError: as in `generate`; if a file cannot be written.
        """
        path, log = pathlib.Path(path), log or (lambda line: None)
        if save_strip is None and self.pipeline_config["image_size"] <= _SMALL_IMAGE_SIZE:
            save_strip = path.with_stem(f"{path.stem}-steps")
        outputs = ((path, [".png"]), (save_gif, [".gif"]), (save_strip, [".png", ".jpg", ".jpeg", ".webp"]))
        for output, suffixes in outputs:
            if output:
                images.check_image_path(output, suffixes)
        seed = self._seed(seed)
        steps = self.stream(prompt, seed=seed, **arguments)
        start, strip, gif, max_frames = time.perf_counter(), [], [], (images.MAX_STRIP_FRAMES, images.MAX_GIF_FRAMES)
        for step in steps:
            if on_step:
                on_step(step)
            in_strip, in_gif = (step.step in images.frame_steps(step.num_evaluations, most) for most in max_frames)
            if (save_strip and in_strip) or (save_gif and in_gif) or step.step == step.num_evaluations:
                frame = step.decode()
                strip += [frame] if in_strip else []
                gif += [frame] if in_gif else []
        seconds = time.perf_counter() - start

        metadata, paths = self._metadata(prompt, frame.shape, **arguments), []
        for index, image in enumerate(frame):
            paths.append(path if len(frame) == 1 else path.with_stem(f"{path.stem}-{seed + index}"))
            texts = metadata | {"seed": seed + index}
            images.write_png(paths[-1], image, {key: str(value) for key, value in texts.items()})
            log(f"{paths[-1]}: {metadata['size']}, seed {seed + index}")
        if save_strip:
            images.write_strip(save_strip, strip)
            shown = sorted(images.frame_steps(step.num_evaluations, images.MAX_STRIP_FRAMES))
            log(f"{save_strip}: the image after steps {', '.join(map(str, shown))}")
        if save_gif:
            images.write_gif(save_gif, gif)
            log(f"{save_gif}: {len(gif)} of {step.num_evaluations} steps")
        num_steps, skipped = metadata["num_steps"], start_step(metadata["num_steps"], metadata.get("strength", 1.0))
        steps_taken = f"{num_steps - skipped} of {num_steps}" if skipped else num_steps
        log(f"{steps_taken} steps of {metadata['sampler']} in {seconds:.1f} s on {_backend()}")
        return paths

    def preprocess(self, prompt: str | Iterable[str]) -> np.ndarray:
        """What the text encoder takes.

        Args:
            prompt: one text, or several.

        Returns:
            token ids (B, S) int32, each row with start, end and padding; B is 1 for one prompt.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        return np.array([self.tokenize(one)[0] for one in prompts], np.int32).reshape(-1, self._max_length)

    def postprocess(self, latents: np.ndarray) -> np.ndarray:
        """Decode latents.

        Args:
            latents: (B, h, w, C).

        Returns:
            images (B, H, W, 3) uint8.
        """
        return self._pipeline.decode(latents)

    decode = postprocess

    def tokenize(self, prompt: str) -> tuple[list[int], str]:
        """The tokens of a prompt, and what does not fit.

        Args:
            prompt: one text.

        Returns:
            (token ids with start, end and padding, as many as the text encoder takes; the end of the prompt that was
            truncated, "" if none).
        """
        config, encoding = self.pipeline_config, self.tokenizer.encode(prompt, add_special_tokens=False)
        token_ids, truncated = encoding.ids[: self._max_length - 2], ""
        if len(encoding.ids) > len(token_ids):
            truncated = prompt[encoding.offsets[len(token_ids)][0] :].strip()
        token_ids = [config["start_id"], *token_ids, config["end_id"]]
        return token_ids + [config["pad_id"]] * (self._max_length - len(token_ids)), truncated

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that are not in the vocabulary, all of which are one and the same token.

        Args:
            prompt: one text.

        Returns:
            the words, in order, each once.
        """
        unknown_id = self.tokenizer.token_to_id(getattr(self.tokenizer.model, "unk_token", None) or "")
        if unknown_id is None or unknown_id == self.pipeline_config["end_id"]:  # CLIP's vocabulary has every byte
            return []
        encoding = self.tokenizer.encode(prompt, add_special_tokens=False)
        tokens = zip(encoding.ids, encoding.offsets)
        return list(dict.fromkeys(prompt[slice(*offsets)] for token_id, offsets in tokens if token_id == unknown_id))

    @property
    def _max_length(self):
        return self.pipeline_config["max_length"]

    def _prepare(
        self,
        prompt,
        *,
        seed=0,
        num_images_per_prompt=1,
        height=None,
        width=None,
        image=None,
        mask_image=None,
        strength=None,
        latents=None,
        **arguments,
    ):
        """(function from a slice of the images to an iterator of their `Step`s, number of images)."""
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        _check_integer("num_images_per_prompt", num_images_per_prompt, 1)
        seed, count = self._seed(seed), len(prompts) * num_images_per_prompt
        settings = self._sampling_settings(**arguments)
        negative = settings.pop("negative_prompt")
        negative = [negative] if isinstance(negative, str) else list(negative)
        if len(negative) not in (1, len(prompts)):
            raise UserError(
                f"Give one negative prompt, or one for each of {len(prompts)} prompts, got {len(negative)}."
            )
        token_ids, negative_token_ids = (
            self._token_ids(texts, kind, num_images_per_prompt)
            for texts, kind in ((prompts, "prompt"), (negative, "negative prompt"))
        )
        if image is not None:
            strength = _default_strength(mask_image) if strength is None else strength
            image, mask_image = self._load_init_image(image, mask_image, height, width)

        def denoise(part):
            ids, negative_ids = (rows if len(rows) == 1 else rows[part] for rows in (token_ids, negative_token_ids))
            try:
                return self._pipeline.denoise(
                    ids,
                    negative_token_ids=negative_ids,
                    seeds=range(seed, seed + count)[part],
                    height=height,
                    width=width,
                    image=image,
                    mask_image=mask_image,
                    strength=1.0 if strength is None else strength,
                    latents=latents if latents is None else latents[part],
                    **settings,
                )
            except ValueError as error:
                raise UserError(str(error)) from error

        return denoise, count

    def _sampling_settings(self, *, negative_prompt=None, guidance_scale=None, num_steps=None, sampler=None, eta=None):
        """Settings of one call, checked."""
        settings = self._settings(
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            num_steps=num_steps,
            sampler=sampler,
            eta=eta,
        )
        settings["sampler"] = sampler = settings["sampler"] or self.pipeline_config["sampler"]
        if sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise UserError(f"There is no sampler {sampler!r}: choose one of {known}.{did_you_mean(sampler, SAMPLERS)}")
        _check_integer("num_steps", settings["num_steps"], 1)
        for name in ("guidance_scale", "eta"):
            value = settings[name]
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not (math.isfinite(value) and value >= 0)
            ):
                raise UserError(f"{name} must be a number from 0 up, got {value!r}.")
        return settings

    def _token_ids(self, texts, kind, repeats):
        """Token ids (B, S) of texts, each repeated; a warning names what the text encoder does not take."""
        for text in texts:
            if not isinstance(text, str):
                raise UserError(f"A {kind} must be a str, got {text!r}.")
            if truncated := self.tokenize(text)[1]:
                limit = self._max_length - 2
                warnings.warn(f"The {kind} is longer than {limit} tokens: {truncated!r} was left out.", stacklevel=5)
            if words := self.unknown_words(text):
                listed = ", ".join(map(repr, words))
                warnings.warn(f"The {kind} has words that this model does not know: {listed}.", stacklevel=5)
        token_ids = self.preprocess(texts)
        return token_ids if len(texts) == 1 else np.repeat(token_ids, repeats, axis=0)

    def _load_init_image(self, image, mask_image, height, width):
        factor, max_side = self.pipeline_config["vae_scale_factor"], 2 * self.pipeline_config["image_size"]
        for side in (height, width):
            if side is not None and (side < factor or side % factor):
                raise UserError(f"height and width must be divisible by {factor}, got {side}.")
        size = None
        if height is not None or width is not None:
            own_height, own_width = images.load_image(image).shape[:2]
            size = (
                own_width // factor * factor if width is None else width,
                own_height // factor * factor if height is None else height,
            )
        return images.load_init_image(image, mask_image, size=size, multiple=factor, max_side=max_side)

    def _metadata(self, prompt, shape, *, image=None, mask_image=None, strength=None, **arguments):
        """What the PNG files of a prompt's images say of their settings; `shape` is (B, H, W, 3)."""
        from zoo import __version__

        names = ("negative_prompt", "guidance_scale", "num_steps", "sampler", "eta")
        settings = self._sampling_settings(**{name: arguments.get(name) for name in names})
        if settings["sampler"] != "ddim":
            del settings["eta"]
        metadata = {"model": self.card.get("name", ""), "prompt": prompt} | settings
        metadata["size"] = f"{shape[2]}x{shape[1]}"
        if image is not None:
            metadata["strength"] = _default_strength(mask_image) if strength is None else strength
        for name, value in (("image", image), ("mask_image", mask_image)):
            if value is not None:
                metadata[name] = value if isinstance(value, (str, os.PathLike)) else type(value).__name__
        if adapters := self.card.get("lora"):
            metadata["lora"] = ", ".join(adapters)
        return metadata | {"Software": f"zoo {__version__}"}

    @classmethod
    def _from_preset(cls, preset, *, dtype, load_weights, **arguments):
        config = load_pipeline_config(preset.folder)
        tokenizer = load_tokenizer(preset.file(cards.TOKENIZER_FILE), config)
        found = [name for name in COMPONENTS if (preset.folder / f"{name}.keras").is_file()]
        for name in COMPONENTS:  # before the first is loaded, which takes time
            if name not in found and (name != "encoder" or "encoder.keras" in preset.card.get("files", {})):
                raise UserError(
                    f"{preset.folder} has no {name}.keras: convert it again with `zoo convert stable-diffusion`."
                )
        components = {
            name: preset.load_model(f"{name}.keras", dtype=dtype, load_weights=load_weights) for name in found
        }
        try:
            card = {"name": preset.name} | preset.card
            read = {"card": card, "generation_config": preset.generation_config}
            return cls(components, tokenizer, config, **read | arguments)
        except UserError as error:
            raise UserError(f"{preset.folder}: {error}") from error

    def _adapted_models(self):
        return [self.components["text_encoder"], self.components["denoiser"]]

    def _save_files(self, folder):
        for name, model in self.components.items():
            model_files.save_model(model, folder / f"{name}.keras")
        self._save_tokenizer(folder / cards.TOKENIZER_FILE)
        files.write_json(folder / cards.PIPELINE_FILE, self.pipeline_config)
        return [*(f"{name}.keras" for name in self.components), cards.TOKENIZER_FILE, cards.PIPELINE_FILE]

    def _save_tokenizer(self, path):
        files.write_text(path, self.tokenizer.to_str(pretty=True))

    def _export_plan(self):
        from zoo.exporters.export_folder import ExportedPart, ExportPlan

        outputs = {"text_encoder": ["context"], "denoiser": ["prediction"], "decoder": ["image"]}
        outputs["encoder"] = ["mean", "log_variance"]
        settings = self._sampling_settings()
        plan = self._pipeline.plan(settings["num_steps"], sampler=settings["sampler"], eta=settings["eta"])
        arrays = dataclasses.asdict(plan)
        sampling_plan = {
            name: value if name == "init_noise_sigma" else value.tolist() for name, value in arrays.items()
        }
        return ExportPlan(
            parts={name: ExportedPart(model, outputs[name]) for name, model in self.components.items()},
            recorded=self.components,
            replays=[("call", [name], name) for name in self.components],
            config=self._export_config(
                generation_config=settings, pipeline_config=self.pipeline_config, sampling_plan=sampling_plan
            ),
            save_tokenizer=self._save_tokenizer,
        )

    def _count_params(self):
        return sum(model.count_params() for model in self.components.values())


def _default_strength(mask_image):
    """As in diffusers' pipelines for image-to-image and inpainting."""
    return 0.8 if mask_image is None else 1.0


def load_pipeline_config(folder: StrPath) -> dict[str, Any]:
    """Read and check the pipeline.json of a folder.

    Args:
        folder: one that `zoo convert stable-diffusion` or `save_to_preset` wrote.

    Returns:
        its content; see `zoo.converters.stable_diffusion`.

    Raises:
        UserError: if there is none, or a value is missing or of the wrong type.
    """
    path = pathlib.Path(folder) / cards.PIPELINE_FILE
    if not path.is_file():
        raise UserError(
            f"There is no {path.name} in {folder}: give a folder that `zoo convert stable-diffusion` wrote."
        )
    config = schemas.read_object(path, "the description of the pipeline")
    if config.get("kind") != _KIND:
        raise UserError(f"{path} does not describe a pipeline of kind {_KIND!r}: give another folder.")
    schemas.check(config, schemas.PipelineConfig, path)
    return config


def load_tokenizer(path: StrPath, pipeline_config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Load the tokenizer of a pipeline.

    Args:
        path: its tokenizer.json.
        pipeline_config: content of its pipeline.json, which says the ids of special tokens.

    Returns:
        the tokenizer, without truncation and padding.

    Raises:
        UserError: if it is missing, damaged or another one.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"There is no {path.name} in {path.parent}: convert the folder again.")
    tokenizer = read_tokenizer(path)
    for key in ("start_id", "end_id", "pad_id"):
        if tokenizer.id_to_token(pipeline_config[key]) is None:
            raise UserError(
                f"{path} has no token {pipeline_config[key]}, the {key} of pipeline.json: convert the folder again."
            )
    return tokenizer


def _check_components(components, pipeline_config):
    """Raise UserError unless the models fit each other and the config."""
    if missing := [name for name in COMPONENTS if name != "encoder" and components.get(name) is None]:
        raise UserError(
            f"components must have {', '.join(COMPONENTS)} (encoder may be left out), not found: {missing}."
        )
    for name, count in (("text_encoder", 1), ("decoder", 1), ("denoiser", 3)):
        if len(components[name].inputs) != count:
            raise UserError(
                f"the {name} takes {len(components[name].inputs)} inputs, not {count}: its components do not belong "
                "together."
            )
    channels, context_dim = pipeline_config["latent_channels"], components["text_encoder"].outputs[0].shape[-1]
    decoder, denoiser = components["decoder"], components["denoiser"]
    for name, found, expected, what in (
        ("decoder", decoder.inputs[0].shape[-1], (channels,), "latent channels"),
        ("denoiser", denoiser.inputs[0].shape[-1], (channels, 2 * channels + 1), "latent channels"),
        ("denoiser", denoiser.inputs[2].shape[-1], (context_dim,), "context channels"),
    ):
        if found not in expected:
            wanted = " or ".join(map(str, expected))
            raise UserError(f"the {name} takes {found} {what}, not {wanted}: its components do not belong together.")


def _check_integer(name, value, minimum):
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < minimum:
        raise UserError(f"{name} must be an integer from {minimum} up, got {value!r}.")


def _backend():
    import keras

    return keras.backend.backend()
