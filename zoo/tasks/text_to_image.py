"""The models and the tokenizer of a folder together: prompts in, pictures out.

    painter = load_painter("stable-diffusion-v1-5-zoo")
    for step in painter.draw("a red fox in the snow", steps=30, sampler="dpm++", seed=1):
        print(step.number, "of", step.total)
    pictures = painter.pictures(step.latents)               # (B, H, W, 3) uint8

The folder is what `zoo convert stable-diffusion` writes; `zoo.converters.stable_diffusion` says what is in it.
"""

import json
import math
import pathlib
import warnings

from zoo.errors import UserError, nearest, reason
from zoo.fast_paths.compile import compiled
from zoo.fast_paths.layers import use_fast_paths
from zoo.generation.diffusion.latent_diffusion import Pipeline
from zoo.generation.diffusion.noise_sampler import PREDICTIONS, SAMPLERS, SCHEDULES, SPACINGS
from zoo.io import files

KIND = "stable_diffusion"
# What pipeline.json holds, by the kind of its values.
SETTINGS = {
    "latent_channels": int,
    "latent_scale": float,
    "latent_shift": float,
    "downsampling": int,
    "image_size": int,
    "max_length": int,
    "start_id": int,
    "end_id": int,
    "pad_id": int,
    "schedule": dict,
    "prediction": PREDICTIONS,
    "sampler": tuple(SAMPLERS),
    "spacing": SPACINGS,
    "offset": int,
    "final_alpha_one": bool,
}
OPTIONAL = {"steps": int, "guidance": float}  # what `zoo draw` takes where the command says nothing
SCHEDULE = {"kind": SCHEDULES, "beta_start": float, "beta_end": float, "steps": int}


class Painter:
    """Draws prompts.

    Args:
        pipeline: `Pipeline`.
        tokenizer: `tokenizers.Tokenizer` of its text encoder.
    """

    def __init__(self, pipeline, tokenizer):
        self.pipeline, self.tokenizer, self.settings = pipeline, tokenizer, pipeline.settings

    def tokens(self, prompt):
        """(ids of a prompt with start, end and padding, a list of `max_length`; what of it was too long, a str)."""
        length, encoding = self.settings["max_length"], self.tokenizer.encode(prompt, add_special_tokens=False)
        ids, cut = encoding.ids[: length - 2], ""
        if len(encoding.ids) > len(ids):
            cut = prompt[encoding.offsets[len(ids)][0] :].strip()
        ids = [self.settings["start_id"], *ids, self.settings["end_id"]]
        return ids + [self.settings["pad_id"]] * (length - len(ids)), cut

    def unknown(self, prompt):
        """The words of a prompt that the tokenizer does not know and takes for one and the same, a list."""
        mark = self.tokenizer.token_to_id(getattr(self.tokenizer.model, "unk_token", None) or "")
        if mark is None or mark == self.settings["end_id"]:  # CLIP's knows every byte
            return []
        encoding = self.tokenizer.encode(prompt, add_special_tokens=False)
        found = (prompt[slice(*place)] for id_, place in zip(encoding.ids, encoding.offsets) if id_ == mark)
        return list(dict.fromkeys(found))

    def draw(self, prompt, *, negative="", count=1, seed=0, sampler=None, guidance=7.5, size=None, **options):
        """Draw pictures of a prompt. A warning names what does not fit into the text encoder, and unknown words.

        Args:
            prompt: str.
            negative: what the picture should not be; not used without guidance.
            count: how many pictures. The first has the random numbers of `seed`, the next those of `seed` + 1, and so
                on: each comes out again alone with its own seed.
            seed: from 0 up.
            sampler: ddpm, ddim, plms, euler, euler_ancestral, heun or dpm++; None for the pipeline's own.
            guidance: how much more the prompt counts than the negative one; 1 or less for no guidance.
            size: (width, height); None for that of the image, or what the pipeline was trained for.
            **options: `steps`, `eta`, `image`, `strength`, `mask` and `latents` of `Pipeline.draw`.

        Returns:
            iterator of `Step`, each with its `latents` and the latents without noise that are `expected`.

        Raises:
            UserError: if a number is out of range or sizes do not fit; before anything is drawn.
        """
        if sampler is not None and sampler not in SAMPLERS:
            known = ", ".join(SAMPLERS)
            raise UserError(f"There is no sampler {sampler!r}: choose one of {known}.{nearest(sampler, SAMPLERS)}")
        if count < 1 or seed < 0:
            raise UserError(f"Draw at least one picture with a seed from 0 up, got {count} and seed {seed}.")
        if not (math.isfinite(guidance) and guidance >= 0):
            raise UserError(f"The guidance must be a number from 0 up, got {guidance}.")
        width, height = size or (None, None)
        found = []
        for text, kind in ((prompt, "prompt"), (negative, "negative prompt")):
            ids, cut = self.tokens(text)
            found.append(ids)
            if cut:
                most = self.settings["max_length"] - 2
                warnings.warn(f"The {kind} is longer than {most} tokens: {cut!r} was left out.", stacklevel=2)
            if words := self.unknown(text):
                told = ", ".join(map(repr, words))
                warnings.warn(f"The {kind} has words that mean nothing to this model: {told}.", stacklevel=2)
        try:
            return self.pipeline.draw(
                found[0],
                negative_ids=found[1],
                guidance=guidance,
                seeds=range(seed, seed + count),
                sampler=sampler,
                height=height,
                width=width,
                **options,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def pictures(self, latents):
        """Pictures (B, H, W, 3) uint8 of latents (B, h, w, C)."""
        return self.pipeline.decode(latents)


def load_painter(folder, *, encoder=True):
    """Load the models and the tokenizer of a folder.

    Args:
        folder: what `zoo convert stable-diffusion` wrote.
        encoder: whether to load the encoder too, which takes part where a picture is begun with.

    Raises:
        UserError: if a file is missing, damaged or unusable, or the parts do not belong together.
    """
    folder = pathlib.Path(folder)
    settings = read_settings(folder)
    tokenizer = load_tokenizer(folder / "tokenizer.json", settings)
    names = ("text_encoder", "encoder", "decoder", "denoiser")
    for name in names:  # all are looked for before the first takes its time
        if not (folder / f"{name}.keras").is_file():
            raise UserError(f"{folder} has no {name}.keras: convert it again with `zoo convert stable-diffusion`.")
    parts = [files.load_model(folder / f"{name}.keras") if encoder or name != "encoder" else None for name in names]
    _check_parts(folder, settings, *parts)
    return Painter(fast_pipeline(*parts, settings), tokenizer)


def fast_pipeline(text_encoder, encoder, decoder, denoiser, settings):
    """A `Pipeline` of models that will not be trained, compiled and with the fast paths of the backend."""
    for part in (text_encoder, encoder, decoder, denoiser):
        if part is not None:
            use_fast_paths(part, training=False)
    return Pipeline(text_encoder, encoder, decoder, denoiser, settings, compiled=compiled)


def read_settings(folder):
    """What the pipeline.json of a folder holds, a dict, checked.

    Raises:
        UserError: if there is none, or a value is missing or of the wrong kind.
    """
    path = pathlib.Path(folder) / "pipeline.json"
    if not path.is_file():
        raise UserError(
            f"There is no pipeline.json in {folder}: give a folder that `zoo convert stable-diffusion` wrote."
        )
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}): convert the folder again.") from error
    if not isinstance(settings, dict) or settings.get("kind") != KIND:
        raise UserError(f"{path} does not describe a pipeline of kind {KIND!r}: give another folder.")
    _check_values(path, settings, SETTINGS)
    _check_values(path, settings["schedule"], SCHEDULE)
    _check_values(path, settings, {key: kind for key, kind in OPTIONAL.items() if key in settings})
    return settings


def _check_values(path, values, expected):
    for key, kind in expected.items():
        value = values.get(key)
        if isinstance(kind, tuple):
            good = value in kind
        else:
            good = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (
                kind is bool
            )
        if not good:
            wanted = f"one of {', '.join(kind)}" if isinstance(kind, tuple) else f"of type {kind.__name__}"
            raise UserError(f"{path} says {key} is {value!r}, where a value {wanted} was expected: convert it again.")


def load_tokenizer(path, settings):
    """The tokenizer of a folder, which has the tokens that its settings name.

    Raises:
        UserError: if it is missing, damaged or another one.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError(f"There is no {path.name} in {path.parent}: convert the folder again.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exceptions
        raise UserError(f"{path} is not a tokenizer ({reason(error)}): convert the folder again.") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for key in ("start_id", "end_id", "pad_id"):
        if tokenizer.id_to_token(settings[key]) is None:
            raise UserError(
                f"{path} has no token {settings[key]}, the {key} of pipeline.json: convert the folder again."
            )
    return tokenizer


def _check_parts(folder, settings, text_encoder, encoder, decoder, denoiser):
    """Raise UserError unless the models fit each other and the settings."""
    channels, width = settings["latent_channels"], text_encoder.outputs[0].shape[-1]
    facts = (
        (decoder.inputs[0].shape[-1], (channels,), "decoder.keras", "channels of latents"),
        (denoiser.inputs[0].shape[-1], (channels, 2 * channels + 1), "denoiser.keras", "channels of latents"),
        (denoiser.inputs[2].shape[-1], (width,), "denoiser.keras", "numbers for a token"),
    )
    for found, wanted, name, what in facts:
        if found not in wanted:
            wanted = " or ".join(map(str, wanted))
            raise UserError(f"{folder / name} takes {found} {what}, not {wanted}: its files do not belong together.")
