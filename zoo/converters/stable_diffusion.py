"""Stable Diffusion 1 and 2 in the layout of diffusers to a preset of the zoo, and the weights back.

A folder of diffusers                                   and the file of the preset
text_encoder/config.json, model.safetensors             text_encoder.keras  tokens (B, T) -> context (B, T, d)
vae/config.json, diffusion_pytorch_model.safetensors    encoder.keras       image -> [mean, log-variance] of latents
                                                        decoder.keras       latents -> image
unet/config.json, diffusion_pytorch_model.safetensors   denoiser.keras      [latents, timestep, context] -> latents
tokenizer/vocab.json, merges.txt (or tokenizer.json)    tokenizer.json      of the package `tokenizers`
scheduler/scheduler_config.json, model_index.json       pipeline.json       see below

Weights may be float32, float16 or bfloat16 (a preset's are float32), in one file or in shards with an index, and of
the variant "fp16". A safety checker, a feature extractor and an image encoder are not read.

Shapes, channels last: image (B, H, W, 3) in [-1, 1]; mean, log-variance and latents (B, H/8, W/8, 4), unscaled: the
denoiser's are (z - shift_factor) * scaling_factor. H and W are divisible by `vae_scale_factor`. timestep (B,) float32.
The decoder's image is not clipped.

pipeline.json is one object; names and values are those of diffusers:

kind              "stable_diffusion"
latent_channels   4
scaling_factor    0.18215, of vae/config.json
shift_factor      0.0, of vae/config.json
vae_scale_factor  8, pixels of an image per latent, in height and in width
image_size        512, height and width that the denoiser was trained for
max_length        77, tokens of a prompt, with start, end and padding
start_id, end_id  49406 and 49407, before and after a prompt; tokenizer.json adds both
pad_id            49407 in Stable Diffusion 1, 0 in 2; the caller pads to max_length, tokenizer.json does not
noise_schedule    {"beta_schedule": "linear", "scaled_linear" or "squaredcos_cap_v2",
                   "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
prediction_type   "epsilon", "v_prediction" or "sample"
sampler           "plms", "ddim", "ddpm", "euler", "euler_ancestral", "heun", "dpmpp_2m" or "lcm", by its class
timestep_spacing  "leading", "trailing" or "linspace"
steps_offset      1: added to the timesteps of "leading"; diffusers' pipelines set it so
set_alpha_to_one  false: the cumulative alpha after the last step is that of timestep 0
use_karras_sigmas false: whether sigmas are spaced as Karras et al. 2022

The denoiser's inputs say the rest: `denoiser.inputs[0].shape[-1]` is 9 for inpainting (latents, mask, masked latents).

Names of tensors are mapped by BLOCK_MAP and KEY_MAP below. Tensors of diffusers are (outputs, inputs[, height, width]),
Keras' the reverse; a 1x1 convolution is a dense layer in Keras. Everything is checked before a model is built.

text_encoder      text_model.embeddings.*, text_model.encoder.layers.{i}.*, text_model.final_layer_norm.*; transformers
                  5 omits "text_model."; older files also hold position_ids
vae               encoder.*, decoder.*, quant_conv.*, post_quant_conv.*; older files call the projections of the
                  attention query, key, value and proj_attn
unet              conv_in.*, time_embedding.*, down_blocks.{i}.*, mid_block.*, up_blocks.{i}.*, conv_norm_out.*,
                  conv_out.*; the projections around a transformer are 1x1 convolutions in Stable Diffusion 1, and
                  linear in 2

Source: diffusers 0.42, models/ and pipelines/stable_diffusion; transformers 5.23, models/clip.
"""

from __future__ import annotations

import gc
import math
import pathlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo import backends
from zoo.compat.keras import set_initial_value, skip_weight_init
from zoo.errors import UserError
from zoo.io import cards, files, model_files, schemas
from zoo.io.tensor_files import CheckpointReader, check_folder, check_state_dict, read_float_tensor
from zoo.tokenizers.clip import load_clip_tokenizer
from zoo.typing import Log, StrPath

if TYPE_CHECKING:
    import keras
    import tokenizers

KIND = "stable_diffusion"
COMPONENT_BUILDERS = ("text_encoder", "encoder", "decoder", "denoiser")  # files of a preset, each with ".keras"

# Classes in model_index.json that can be converted.
_CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
_PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")

# Classes of blocks of the U-Net, and whether they have attention.
_BLOCK_HAS_ATTENTION = {
    "CrossAttnDownBlock2D": True,
    "DownBlock2D": False,
    "CrossAttnUpBlock2D": True,
    "UpBlock2D": False,
}

# Class of a scheduler -> sampler, and its defaults of timestep_spacing and set_alpha_to_one.
_SCHEDULERS = {
    "PNDMScheduler": ("plms", "leading", False),
    "DDIMScheduler": ("ddim", "leading", True),
    "DDPMScheduler": ("ddpm", "leading", True),
    "EulerDiscreteScheduler": ("euler", "linspace", True),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace", True),
    "HeunDiscreteScheduler": ("heun", "linspace", True),
    "DPMSolverMultistepScheduler": ("dpmpp_2m", "linspace", True),
    "LCMScheduler": ("lcm", "leading", True),
}
# Layer names -> names in a state dict of diffusers: a path of BLOCK_MAP, then one of KEY_MAP.
BLOCK_MAP = {
    "layer_#": "encoder.layers.#",
    "down_#": "down_blocks.#",
    "mid": "mid_block",
    "up_#": "up_blocks.#",
    "resnet_#": "resnets.#",
    "attention_#": "attentions.#",
    "block_#": "transformer_blocks.#",
}
_ATTENTION_KEYS = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
KEY_MAP = {
    "text_encoder": {
        "token_embedding": "embeddings.token_embedding",
        "position_embedding": "embeddings.position_embedding",
        "self_attention_norm": "layer_norm1",
        **{f"self_attention_{ours}": f"self_attn.{letter}_proj" for ours, letter in zip(_ATTENTION_KEYS, "qkv")},
        "self_attention_output": "self_attn.out_proj",
        "feed_forward_norm": "layer_norm2",
        "inner": "mlp.fc1",
        "outer": "mlp.fc2",
        "final_norm": "final_layer_norm",
    },
    "vae": {
        "attention_norm": "attentions.0.group_norm",
        **{f"attention_{ours}": f"attentions.0.{theirs}" for ours, theirs in _ATTENTION_KEYS.items()},
    },
    "unet": {
        "time_inner": "time_embedding.linear_1",
        "time_outer": "time_embedding.linear_2",
        "norm": "norm",
        "in": "proj_in",
        "out": "proj_out",
        "self_attention_norm": "norm1",
        **{f"self_attention_{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION_KEYS.items()},
        "cross_attention_norm": "norm2",
        **{f"cross_attention_{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION_KEYS.items()},
        "feed_forward_norm": "norm3",
        "inner": "ff.net.0.proj",
        "outer": "ff.net.2",
    },
}
for _keys in (KEY_MAP["vae"], KEY_MAP["unet"]):
    _keys |= {
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
        "norm1": "norm1",
        "conv1": "conv1",
        "time": "time_emb_proj",
        "norm2": "norm2",
        "conv2": "conv2",
        "shortcut": "conv_shortcut",
        "downsample": "downsamplers.0.conv",
        "upsample": "upsamplers.0.conv",
    }
# Names of the same tensors in older files.
_OLDER_KEYS = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_TEXT_PREFIX = "text_model."  # omitted by transformers 5


def convert(folder: StrPath, out: StrPath, *, log: Log = print) -> None:
    """Convert a Stable Diffusion of diffusers to a preset, see above; files of an earlier one are replaced.

    The models are built one after the other, so that the memory needed is about that of the largest.

    Args:
        folder: in the layout of diffusers.
        out: the preset's folder, created if need be. card.json is written last: a folder with it is complete.
        log: function that is called with each line of progress.

    Raises:
        UserError: as `from_diffusers`; if the folder cannot be written.
    """
    source, out = _Source(folder), pathlib.Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (cards.CARD_FILE, cards.PIPELINE_FILE, cards.GENERATION_CONFIG_FILE):
            (out / name).unlink(missing_ok=True)
        parameters = 0
        for name in COMPONENT_BUILDERS:
            model = source.build(name)
            model_files.save_model(model, out / f"{name}.keras")
            log(f"{out / name}.keras: {model.count_params():,} parameters")
            parameters += model.count_params()
            del model
            gc.collect()
        files.write_text(out / cards.TOKENIZER_FILE, source.tokenizer.to_str())
        log(f"{out / cards.TOKENIZER_FILE}: {source.tokenizer.get_vocab_size():,} tokens")
        files.write_json(out / cards.PIPELINE_FILE, source.pipeline_config)
        names = [*(f"{name}.keras" for name in COMPONENT_BUILDERS), cards.TOKENIZER_FILE, cards.PIPELINE_FILE]
        cards.write_card(out, {"task": "text-to-image", "parameters": parameters}, names)
    except OSError as error:
        raise UserError(f"Cannot write to {out} ({error.strerror or error}): choose another folder.") from error
    config = source.pipeline_config
    log(
        f"{out / cards.PIPELINE_FILE}: sampler {config['sampler']}, prediction type {config['prediction_type']}, "
        f"{config['noise_schedule']['num_train_timesteps']} timesteps of the schedule "
        f"{config['noise_schedule']['beta_schedule']}"
    )


class Pipeline(NamedTuple):
    """The components of a Stable Diffusion: four `keras.Model`s, a `tokenizers.Tokenizer`, and the pipeline config."""

    text_encoder: keras.Model
    encoder: keras.Model
    decoder: keras.Model
    denoiser: keras.Model
    tokenizer: tokenizers.Tokenizer
    pipeline_config: dict[str, Any]


def from_diffusers(folder: StrPath) -> Pipeline:
    """Build the Keras models, tokenizer and pipeline config of a Stable Diffusion of diffusers.

    Args:
        folder: in the layout of diffusers, see above.

    Returns:
        `Pipeline`.

    Raises:
        UserError: if a file is missing, damaged or of another kind of model; if a tensor is missing, unexpected or of
            another shape; if a class or a value is not supported. Each is named.

    Example:
        >>> pipeline = from_diffusers("stable-diffusion-v1-5")
        >>> pipeline.denoiser.count_params()
        859520964
    """
    source = _Source(folder)
    models = {name: source.build(name) for name in COMPONENT_BUILDERS}
    return Pipeline(**models, tokenizer=source.tokenizer, pipeline_config=source.pipeline_config)


def to_diffusers(
    *,
    text_encoder: keras.Model | None = None,
    encoder: keras.Model | None = None,
    decoder: keras.Model | None = None,
    denoiser: keras.Model | None = None,
    use_linear_projection: bool = False,
) -> dict[str, dict[str, np.ndarray]]:
    """The weights of Keras models as state dicts of diffusers and transformers.

    Args:
        text_encoder: `keras.Model` to convert, or None.
        encoder: `keras.Model` to convert, or None.
        decoder: `keras.Model` to convert, or None.
        denoiser: `keras.Model` to convert, or None.
        use_linear_projection: whether the projections around the denoiser's transformers are linear layers (Stable
            Diffusion 2) or 1x1 convolutions.

    Returns:
        dict of dicts name -> NumPy array: "text_encoder", "vae" and "unet", of the models given.

    Raises:
        UserError: if a model has a layer that diffusers has no name for.

    Example:
        >>> tensors = to_diffusers(denoiser=model)["unet"]
        >>> unet.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    """
    from keras import ops

    models = {"text_encoder": text_encoder, "encoder": encoder, "decoder": decoder, "denoiser": denoiser}
    state_dicts = {}
    for name, model in models.items():
        if model is None:
            continue
        state_dict = state_dicts.setdefault(_SUBFOLDERS[name], {})
        for entry in _state_dict_entries(model, name, use_linear_projection):
            array = np.array(ops.convert_to_numpy(entry.variable), "float32")
            state_dict[entry.keys[0]] = np.ascontiguousarray(array.transpose(entry.axes)).reshape(entry.shape)
    return state_dicts


# ------------------------------------------------------------------------------------------------- the configuration


class _Source:
    """A folder in the layout of diffusers, with all but its tensors checked.

    Attributes:
        model_configs: dict of the builders' arguments for each of COMPONENT_BUILDERS.
        use_linear_projection: as in `to_diffusers`.
        tokenizer, pipeline_config: as in `Pipeline`.
    """

    def __init__(self, folder):
        self.folder = folder = check_folder(
            folder,
            holds="model_index.json, unet and so on",
            single_file=f"if it is a checkpoint with all parts, let diffusers make one, StableDiffusionPipeline."
            f"from_single_file('{folder}').save_pretrained('FOLDER'), and give FOLDER.",
        )
        _check_index(folder)
        paths = {part: folder / part / "config.json" for part in ("text_encoder", "vae", "unet")}
        text = schemas.load(paths["text_encoder"], schemas.TextEncoderConfig, "the description of the text encoder")
        vae = schemas.load(paths["vae"], schemas.AutoencoderConfig, "the description of the autoencoder")
        unet = schemas.load(paths["unet"], schemas.DenoiserConfig, "the description of the denoiser")
        autoencoder = _vae_config(paths["vae"], vae)
        self.model_configs = {
            "text_encoder": _text_encoder_config(text),
            "encoder": autoencoder | {"image_channels": vae.in_channels},
            "decoder": autoencoder | {"image_channels": vae.out_channels},
            "denoiser": _unet_config(paths["unet"], unet),
        }
        self.use_linear_projection = unet.use_linear_projection
        self._check_fit()
        self.tokenizer, ids, length = load_clip_tokenizer(folder / "tokenizer", text.vocab_size)
        vae_scale_factor = 2 ** (len(vae.block_out_channels) - 1)
        config = {
            "kind": KIND,
            "latent_channels": vae.latent_channels,
            "scaling_factor": vae.scaling_factor,
            "shift_factor": vae.shift_factor,
            "vae_scale_factor": vae_scale_factor,
            "image_size": vae_scale_factor * _latent_size(paths["unet"], unet),
            "max_length": min(length or math.inf, text.max_position_embeddings),
            **ids,
            **_scheduler_config(folder / "scheduler" / "scheduler_config.json"),
        }
        schemas.check(config, schemas.PipelineConfig, f"the pipeline of {folder}")
        self.pipeline_config = config
        names = dict.fromkeys(("vae", "unet"), _weight_files("diffusion_pytorch_model", "diffusion_pytorch_model"))
        names["text_encoder"] = _weight_files("model", "pytorch_model")
        self.checkpoints = {part: CheckpointReader(folder / part, names[part]) for part in names}
        for part, sizes, described in (
            ("text_encoder", ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"), text),
            ("vae", ("latent_channels",), vae),
            ("unet", ("in_channels", "out_channels"), unet),
        ):
            self._check_weights(part, sizes, described)

    def _check_weights(self, part, sizes, config):
        """Raise UserError if the weights of a part lack a size or as many layers as its config says."""
        wanted = {name: getattr(config, name) for name in sizes}
        counts = {"num_hidden_layers": getattr(config, "num_hidden_layers", 0)}
        if part != "text_encoder":
            wanted |= {f"block_out_channels[{level}]": width for level, width in enumerate(config.block_out_channels)}
            levels = len(config.block_out_channels)
            each = [_of_levels(getattr(config, name, 1), levels) for name in ("layers_per_block", _DEPTH)]
            counts = {"the number of layers": sum(layers * depth for layers, depth in zip(*each))}
        path = self.folder / part / "config.json"
        schemas.check_sizes(path, wanted, counts, self.checkpoints[part].shapes)

    def _check_fit(self):
        """Raise UserError unless the parts belong together."""
        text, unet, vae = (self.model_configs[name] for name in ("text_encoder", "denoiser", "encoder"))
        latent = vae["latent_channels"]
        for what, found, expected in (
            ("cross_attention_dim of the unet", unet["cross_attention_dim"], (text["hidden_dim"],)),
            ("in_channels of the unet", unet["in_channels"], (latent, 2 * latent + 1)),
            ("out_channels of the unet", unet["out_channels"], (latent,)),
        ):
            if found not in expected:
                raise UserError(
                    f"In {self.folder}, {what} is {found}, where {' or '.join(map(str, expected))} was expected: its "
                    "parts belong to different models."
                )

    def build(self, name):
        """One of COMPONENT_BUILDERS with its weights."""
        backends.import_keras()  # only now: what was wrong so far was said without the wait for a framework
        from zoo.models.stable_diffusion import autoencoder, denoiser, text_encoder

        part = _SUBFOLDERS[name]
        builders: tuple[Callable[..., Any], ...]
        builders = (text_encoder.text_encoder, autoencoder.encoder, autoencoder.decoder, denoiser.denoiser)
        path = self.folder / part / "config.json"
        try:
            with skip_weight_init():
                model = dict(zip(COMPONENT_BUILDERS, builders))[name](**self.model_configs[name])
        except ValueError as error:
            raise UserError(f"{path} describes no model that can be built: {error}") from error
        _load_state_dict(model, self.checkpoints[part], name, self.use_linear_projection)
        return model


def _check_index(folder):
    path = folder / "model_index.json"
    index = schemas.load(path, schemas.ModelIndex, "the list of the parts")
    if index.class_name not in _PIPELINES:
        raise UserError(f"{path} describes a {index.class_name}, and what can be converted is {', '.join(_PIPELINES)}.")
    for part, classes in (_CLASSES | {"scheduler": tuple(_SCHEDULERS)}).items():
        found = (getattr(index, part) or [None])[-1]
        if found is None:
            raise UserError(f"{path} names no {part}: fetch a folder that has all parts.")
        if found not in classes:
            raise UserError(f"{path} says the {part} is a {found}, and what can be converted is {', '.join(classes)}.")
        if not (folder / part).is_dir():
            raise UserError(f"There is no folder {part} in {folder}: fetch all of the model's parts.")


def _text_encoder_config(config):
    """The arguments of `zoo.models.stable_diffusion.text_encoder`."""
    return {
        "vocabulary_size": config.vocab_size,
        "num_layers": config.num_hidden_layers,
        "hidden_dim": config.hidden_size,
        "intermediate_dim": config.intermediate_size,
        "num_heads": config.num_attention_heads,
        "max_length": config.max_position_embeddings,
        "activation": config.hidden_act,
        "epsilon": config.layer_norm_eps,
    }


def _vae_config(path, config):
    """The arguments of `zoo.models.stable_diffusion.autoencoder.encoder` but for the channels of images."""
    levels = len(config.block_out_channels)
    for way, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if (kinds := getattr(config, f"{way}_block_types")) != [kind] * levels:
            raise UserError(
                f"{path} says {way}_block_types is {kinds!r:.100}, where {kind} for each of {levels} levels was "
                "expected."
            )
    return {
        "block_out_channels": tuple(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_num_groups,
        "latent_channels": config.latent_channels,
    }


_DEPTH = "transformer_layers_per_block"
# Values that may differ between levels: diffusers' name -> ours.
_OF_LEVELS = {"layers_per_block": "layers_per_block", "attention_head_dim": "num_heads", _DEPTH: _DEPTH}
_OF_LEVELS |= {"cross_attention_dim": "cross_attention_dim"}


def _of_levels(value, levels):
    """A value for each level."""
    return tuple(value) if isinstance(value, list) else (value,) * levels


def _unet_config(path, config):
    """The arguments of `zoo.models.stable_diffusion.denoiser`."""
    levels = len(config.block_out_channels)
    values = {ours: _of_levels(getattr(config, name), levels) for name, ours in _OF_LEVELS.items()}
    for name, ours in _OF_LEVELS.items():
        if len(values[ours]) != levels:
            raise UserError(
                f"{path} says {name} is {list(values[ours])}, where one for each of {levels} levels was expected."
            )
    if len(context := set(values["cross_attention_dim"])) > 1:
        raise UserError(f"{path} says cross_attention_dim is {sorted(context)}, where one value is supported.")
    return {
        **values,
        "cross_attention_dim": context.pop(),
        "block_out_channels": tuple(config.block_out_channels),
        "has_attention": _has_attention(path, config, levels),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "norm_num_groups": config.norm_num_groups,
        "epsilon": config.norm_eps,
    }


def _has_attention(path, config, levels):
    """Whether each level has attention."""
    down, up = config.down_block_types, config.up_block_types
    down = ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"] if down is None else down  # the defaults of diffusers
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3 if up is None else up
    for name, kinds, end in (("down_block_types", down, "DownBlock2D"), ("up_block_types", up, "UpBlock2D")):
        others = [kind for kind in kinds if kind not in _BLOCK_HAS_ATTENTION or not kind.endswith(end)]
        if others or len(kinds) != levels:
            raise UserError(
                f"{path} says {name} is {kinds!r:.200}, where CrossAttn{end} or {end} for each of {levels} levels was "
                "expected."
            )
    has_attention = tuple(_BLOCK_HAS_ATTENTION[kind] for kind in down)
    if tuple(_BLOCK_HAS_ATTENTION[kind] for kind in reversed(up)) != has_attention:
        raise UserError(
            f"{path} says down_block_types is {down!r} and up_block_types {up!r}, which have to mirror each other."
        )
    return has_attention


def _latent_size(path, config):
    """How many latents high and wide the denoiser was trained for."""
    sizes = set(_of_levels(config.sample_size, 1))
    if len(sizes) != 1:
        raise UserError(f"{path} says sample_size is {config.sample_size!r:.100}, where one whole number was expected.")
    (size,) = sizes
    version = [int(number) for number in re.findall(r"\d{1,9}", config.diffusers_version)[:2]]
    return 64 if size < 64 and version and version < [0, 9] else size  # as diffusers' pipelines correct such files


def _scheduler_config(path):
    """The entries of pipeline.json about noise and sampler."""
    raw = schemas.read_object(path, "the description of the scheduler")
    config = schemas.check(raw, schemas.SchedulerConfig, path)
    if config.class_name not in _SCHEDULERS:
        raise UserError(
            f"{path} describes a {config.class_name}, and what can be converted is {', '.join(_SCHEDULERS)}."
        )
    sampler, default_spacing, default_alpha = _SCHEDULERS[config.class_name]
    if sampler == "plms" and raw.get("skip_prk_steps") is not True:  # not the default of diffusers
        raise UserError(
            f"{path} says skip_prk_steps is {raw.get('skip_prk_steps', False)!r:.100}, where only True is supported."
        )
    start, end = (0.00085, 0.012) if sampler in ("heun", "lcm") else (1e-4, 0.02)
    return {
        "noise_schedule": {
            "beta_schedule": config.beta_schedule,
            "beta_start": config.beta_start or start,
            "beta_end": config.beta_end or end,
            "num_train_timesteps": config.num_train_timesteps,
        },
        "prediction_type": config.prediction_type,
        "timestep_spacing": config.timestep_spacing or default_spacing,
        "sampler": sampler,
        "steps_offset": 1,
        "set_alpha_to_one": default_alpha if config.set_alpha_to_one is None else config.set_alpha_to_one,
        "use_karras_sigmas": config.use_karras_sigmas,
    }


# ------------------------------------------------------------------------------------------------------- the state dict

_SUBFOLDERS = {
    "text_encoder": "text_encoder",
    "encoder": "vae",
    "decoder": "vae",
    "denoiser": "unet",
}  # of COMPONENT_BUILDERS


class _Entry(NamedTuple):
    """A Keras variable and its tensor in a state dict."""

    variable: Any
    keys: tuple  # names that the tensor may have, the current one first
    shape: tuple  # of the tensor
    axes: tuple  # axes of the variable in the order of the tensor, which may have axes of size 1 after them

    def key_in(self, checkpoint):
        """The key that a checkpoint has; the first where it has none."""
        return next((key for key in self.keys if key in checkpoint.shapes), self.keys[0])

    def to_keras_layout(self, array):
        """The tensor in the shape of the variable."""
        array = array.reshape([self.variable.shape[axis] for axis in self.axes])
        return np.ascontiguousarray(array.transpose(np.argsort(self.axes)))


def _load_state_dict(model, checkpoint, name, use_linear_projection):
    """Set the weights of a model, one of COMPONENT_BUILDERS, to those of a checkpoint."""
    entries, found = _state_dict_entries(model, name, use_linear_projection), dict(checkpoint.shapes)
    if name == "text_encoder":
        found = {key: shape for key, shape in found.items() if not key.endswith("embeddings.position_ids")}
    elif name != "denoiser":
        of_encoder = ("encoder.", "quant_conv.")
        found = {key: shape for key, shape in found.items() if key.startswith(of_encoder) == (name == "encoder")}
    check_state_dict(
        found,
        {entry.key_in(checkpoint): entry.shape for entry in entries},
        f"the model that config.json beside {checkpoint.path} describes",
        "fetch both of the same model",
    )
    for entry in entries:
        array = read_float_tensor(checkpoint, entry.key_in(checkpoint))
        set_initial_value(entry.variable, entry.to_keras_layout(array))


def _state_dict_entries(model, name, use_linear_projection):
    """An `_Entry` for each variable of a model, one of COMPONENT_BUILDERS."""
    entries = []
    for layer in model.layers:
        for variable in layer.weights:
            kind = "bias" if variable.name in ("bias", "beta") else "weight"
            key = f"{layer_key(model, layer.name, name)}.{kind}"
            axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(variable.shape)]
            if variable.name == "embeddings":
                axes = (0, 1)
            shape = tuple(variable.shape[axis] for axis in axes)
            if variable.name == "kernel" and len(shape) == 2 and is_conv1x1(layer.name, name, use_linear_projection):
                shape += (1, 1)
            keys: tuple[str, ...] = (key,)
            if name == "text_encoder":
                keys = (_TEXT_PREFIX + key, key)
            elif name != "denoiser" and ".attentions.0." in key:
                for new, old in _OLDER_KEYS.items():
                    keys += (key.replace(f".{new}.", f".{old}."),) if f".{new}." in key else ()
            entries.append(_Entry(variable, keys, shape, axes))
    return entries


def layer_key(model: keras.Model, layer_name: str, name: str) -> str:
    """The name of a layer in a state dict, without ".weight" or ".bias".

    Args:
        model: one of COMPONENT_BUILDERS.
        layer_name: of one of its layers.
        name: which of COMPONENT_BUILDERS it is.

    Returns:
        e.g. "mid_block.attentions.0.proj_in".

    Raises:
        UserError: if diffusers has no such layer.
    """
    path, rest = [], layer_name
    patterns = {block: re.compile(block.replace("#", r"(\d+)") + "_") for block in BLOCK_MAP}
    while found := next(((block, m) for block, pattern in patterns.items() if (m := pattern.match(rest))), None):
        block, match = found
        path.append(BLOCK_MAP[block].replace("#", "".join(match.groups())))
        rest = rest[match.end() :]
    part = _SUBFOLDERS[name]
    if part == "vae" and not path and rest in ("quant_conv", "post_quant_conv"):
        return rest
    if rest not in KEY_MAP[part]:
        raise UserError(f"The model {model.name} has a layer {layer_name}, for which diffusers has no name.")
    return ".".join([*([name] if part == "vae" else []), *path, KEY_MAP[part][rest]])


def is_conv1x1(layer_name: str, name: str, use_linear_projection: bool) -> bool:
    """Whether a dense layer is a 1x1 convolution in diffusers.

    Args:
        layer_name: of the layer.
        name: which of COMPONENT_BUILDERS its model is.
        use_linear_projection: as in `to_diffusers`.

    Returns:
        True if it is.
    """
    if name == "denoiser" and re.search(r"attention_\d+_(in|out)$", layer_name):
        return not use_linear_projection
    return layer_name.endswith(("shortcut", "quant_conv"))


def _weight_files(safetensors_stem, torch_stem):
    """File names of a part's weights, by preference: as safetensors and as torch files, which transformers and
    diffusers name differently."""
    return tuple(
        f"{stem}.{ending}"
        for stem, kind in ((safetensors_stem, "safetensors"), (torch_stem, "bin"))
        for ending in (kind, f"{kind}.index.json", f"fp16.{kind}", f"{kind}.index.fp16.json")
    )
