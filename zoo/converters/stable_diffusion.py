"""Stable Diffusion 1 and 2 as diffusers keeps them, into our models; and their weights back.

A folder holds                                          which becomes, in the folder OUT
text_encoder/config.json, model.safetensors             text_encoder.keras  tokens (B, T) -> context (B, T, d)
vae/config.json, diffusion_pytorch_model.safetensors    encoder.keras       image -> [mean, log-variance] of latents
                                                        decoder.keras       latents -> image
unet/config.json, diffusion_pytorch_model.safetensors   denoiser.keras      [latents, timestep, context] -> latents
tokenizer/vocab.json, merges.txt (or tokenizer.json)    tokenizer.json      of the package `tokenizers`
scheduler/scheduler_config.json, model_index.json       pipeline.json       the settings below

Weights may be float32, float16 or bfloat16 (ours are float32), in one file or in shards with an index, of the variant
"fp16" too. A safety checker, a feature extractor and an image encoder are not read.

Shapes, channels last: image (B, H, W, 3) in [-1, 1]; mean, log-variance and latents (B, H/8, W/8, 4), as the
autoencoder has them: the denoiser's are (z - latent_shift) * latent_scale. H and W are divisible by `downsampling`.
timestep (B,) float32. The image that the decoder gives is not clipped.

pipeline.json is one object:

kind              "stable_diffusion"
latent_channels   4
latent_scale      0.18215, vae/config.json's scaling_factor
latent_shift      0.0, vae/config.json's shift_factor
downsampling      8, pixels of an image to one latent, in height and in width
image_size        512, what the denoiser was trained for, in height and in width
max_length        77, tokens of a prompt, with start, end and padding
start_id, end_id  49406 and 49407, before and after a prompt; tokenizer.json writes both around what it encodes
pad_id            49407 in Stable Diffusion 1, 0 in 2; up to max_length, what tokenizer.json leaves to the caller
schedule          {"kind": "linear", "scaled_linear" or "squared_cosine",
                   "beta_start": 0.00085, "beta_end": 0.012, "steps": 1000}
prediction        "epsilon", "v" or "x0"
sampler           "plms", "ddim", "ddpm", "euler", "euler_ancestral", "heun" or "dpm++", after the scheduler's class
spacing           "leading", "trailing" or "linspace": which timesteps a sampler visits
offset            1: added to the timesteps of "leading"; diffusers' pipelines set steps_offset so
final_alpha_one   false: the alpha after the last step is that of timestep 0 (set_alpha_to_one)
karras            false: whether sigmas are respaced as Karras et al. 2022 do

The denoiser's inputs tell the rest: `denoiser.inputs[0].shape[-1]` is 9 for inpainting (latents, mask, masked latents).

The tensors are, with NAMES below naming those inside a block. Theirs hold (outputs, inputs[, height, width]), ours the
reverse; a 1x1 convolution is a dense layer in ours. Everything is checked before a model is built.

text_encoder      text_model.embeddings.*, text_model.encoder.layers.{i}.*, text_model.final_layer_norm.*; transformers
                  5 leaves out "text_model."; older files also hold position_ids, which are counted in ours
vae               encoder.*, decoder.*, quant_conv.*, post_quant_conv.*; older files call the projections of the
                  attention query, key, value and proj_attn
unet              conv_in.*, time_embedding.*, down_blocks.{i}.*, mid_block.*, up_blocks.{i}.*, conv_norm_out.*,
                  conv_out.*; the projections around a transformer are 1x1 convolutions in Stable Diffusion 1, and
                  linear in 2

Source: diffusers 0.42, models/ and pipelines/stable_diffusion; transformers 5.23, models/clip.
"""

import gc
import math
import pathlib
import re
import shlex
from typing import NamedTuple

import numpy as np

from zoo import backends
from zoo.compat.weights import fill, unset
from zoo.errors import UserError
from zoo.io import files
from zoo.io.tensor_files import Checkpoint, checked, read_floats, read_json, refuse_differences
from zoo.tokenizers.clip import read_tokenizer

KIND = "stable_diffusion"
MODELS = ("text_encoder", "encoder", "decoder", "denoiser")  # files of a converted folder, each with ".keras"

# What model_index.json may say of each part, by its class.
CLASSES = {
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
}
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")

# What is read of the configurations, with what diffusers and transformers take where they are silent.
TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": 0.0,
}
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "use_linear_projection": False,
}
# The same with one number, or one for each level; theirs -> ours. attention_head_dim is the number of heads: a name
# given wrongly once, which diffusers keeps for the files that use it (its issue 2011).
UNET_LEVELS = {
    "layers_per_block": ("blocks", 2),
    "attention_head_dim": ("num_heads", 8),
    "transformer_layers_per_block": ("transformer_layers", 1),
    "cross_attention_dim": ("context_width", 1280),
}
# Values that our models have built in; the first is what stands where a file is silent.
TEXT_ENCODER_FIXED = {"model_type": ("clip_text_model", "clip_text"), "use_attention_mask": (False, None)}
VAE_FIXED = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
UNET_FIXED = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Kinds of levels on the way down, and on the way up.
LEVELS = {"CrossAttnDownBlock2D": True, "DownBlock2D": False, "CrossAttnUpBlock2D": True, "UpBlock2D": False}

# Classes of schedulers: ours, and the spacing and final alpha where the file is silent.
SAMPLERS = {
    "PNDMScheduler": ("plms", "leading", False),
    "DDIMScheduler": ("ddim", "leading", True),
    "DDPMScheduler": ("ddpm", "leading", True),
    "EulerDiscreteScheduler": ("euler", "linspace", True),
    "EulerAncestralDiscreteScheduler": ("euler_ancestral", "linspace", True),
    "HeunDiscreteScheduler": ("heun", "linspace", True),
    "DPMSolverMultistepScheduler": ("dpm++", "linspace", True),
}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squared_cosine"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}
SPACINGS = ("leading", "trailing", "linspace")
SCHEDULER_FIXED = {
    "algorithm_type": ("dpmsolver++",),
    "euler_at_final": (False,),
    "final_sigmas_type": ("zero",),
    "lambda_min_clipped": (-math.inf,),
    "interpolation_type": ("linear",),
    "lower_order_final": (True,),
    "rescale_betas_zero_snr": (False,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "solver_order": (2,),
    "solver_type": ("midpoint",),
    "thresholding": (False,),
    "timestep_type": ("discrete",),
    "trained_betas": (None,),
    "use_beta_sigmas": (False,),
    "use_exponential_sigmas": (False,),
    "use_flow_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "variance_type": ("fixed_small", None),
}

# Names of layers, ours -> theirs. A name is a path of PLACES and then one of NAMES.
PLACES = {
    "layer_#": "encoder.layers.#",
    "down_#": "down_blocks.#",
    "mid": "mid_block",
    "up_#": "up_blocks.#",
    "resnet_#": "resnets.#",
    "attention_#": "attentions.#",
    "block_#": "transformer_blocks.#",
}
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0"}
NAMES = {
    "text_encoder": {
        "token_embedding": "embeddings.token_embedding",
        "position_embedding": "embeddings.position_embedding",
        "self_attention_norm": "layer_norm1",
        **{f"self_attention_{ours}": f"self_attn.{letter}_proj" for ours, letter in zip(ATTENTION, "qkv")},
        "self_attention_output": "self_attn.out_proj",
        "feed_forward_norm": "layer_norm2",
        "inner": "mlp.fc1",
        "outer": "mlp.fc2",
        "final_norm": "final_layer_norm",
    },
    "vae": {
        "attention_norm": "attentions.0.group_norm",
        **{f"attention_{ours}": f"attentions.0.{theirs}" for ours, theirs in ATTENTION.items()},
    },
    "unet": {
        "time_inner": "time_embedding.linear_1",
        "time_outer": "time_embedding.linear_2",
        "norm": "norm",
        "in": "proj_in",
        "out": "proj_out",
        "self_attention_norm": "norm1",
        **{f"self_attention_{ours}": f"attn1.{theirs}" for ours, theirs in ATTENTION.items()},
        "cross_attention_norm": "norm2",
        **{f"cross_attention_{ours}": f"attn2.{theirs}" for ours, theirs in ATTENTION.items()},
        "feed_forward_norm": "norm3",
        "inner": "ff.net.0.proj",
        "outer": "ff.net.2",
    },
}
for _names in (NAMES["vae"], NAMES["unet"]):
    _names |= {
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
# Other names of the same tensors, in older files or newer ones.
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
PREFIX = "text_model."


def convert(folder, out, say=print):
    """Write a Stable Diffusion of diffusers as a folder of ours, see above; what it holds is replaced.

    The models are built one after the other, so that the memory taken is about that of the largest.

    Args:
        folder: in the layout of diffusers.
        out: the folder to write, made if need be. pipeline.json comes last: where it is, all is there.
        say: is given each line of what was done.

    Raises:
        UserError: as `from_diffusers`; if the folder cannot be written.
    """
    source, out = _Source(folder), pathlib.Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "pipeline.json").unlink(missing_ok=True)
        for name in MODELS:
            model = source.build(name)
            files.save_model(model, out / f"{name}.keras")
            say(f"{out / name}.keras: {model.count_params():,} parameters")
            del model
            gc.collect()
        files.write_text(out / "tokenizer.json", source.tokenizer.to_str())
        say(f"{out / 'tokenizer.json'}: {source.tokenizer.get_vocab_size():,} tokens")
        files.write_json(out / "pipeline.json", source.settings)
    except OSError as error:
        raise UserError(f"Cannot write to {out} ({error.strerror or error}): choose another folder.") from error
    told = "{schedule[steps]} steps of noise, {schedule[kind]}, {prediction} prediction, sampler {sampler}"
    say(f"{out / 'pipeline.json'}: " + told.format(**source.settings))
    say(f'Draw with it: zoo draw {shlex.quote(str(out))} "…"')


class Pipeline(NamedTuple):
    """What a Stable Diffusion is made of."""

    text_encoder: object  # keras.Models
    encoder: object
    decoder: object
    denoiser: object
    tokenizer: object  # tokenizers.Tokenizer
    settings: dict  # what pipeline.json holds


def from_diffusers(folder):
    """Build our models, tokenizer and settings of a Stable Diffusion of diffusers.

    Args:
        folder: in the layout of diffusers, see above.

    Returns:
        `Pipeline`.

    Raises:
        UserError: if a file is missing, damaged or of another kind of model; if a tensor is missing, left over or of
            another shape; if a class or a value is none that ours can be. Each is named.

    Example:
        >>> text_encoder, encoder, decoder, denoiser, tokenizer, settings = from_diffusers("stable-diffusion-v1-5")
    """
    source = _Source(folder)
    return Pipeline(*(source.build(name) for name in MODELS), source.tokenizer, source.settings)


def to_diffusers(*, text_encoder=None, encoder=None, decoder=None, denoiser=None, linear_projection=False):
    """The weights of our models under the names that diffusers and transformers have for them.

    Args:
        text_encoder, encoder, decoder, denoiser: `keras.Model`s; those to turn.
        linear_projection: whether the projections around the denoiser's transformers are linear layers
            (use_linear_projection, Stable Diffusion 2) or 1x1 convolutions.

    Returns:
        dict of dicts name -> NumPy array: "text_encoder", "vae" and "unet", of the models given.

    Raises:
        UserError: if a model has a weight that theirs have no place for.

    Example:
        >>> tensors = to_diffusers(denoiser=model)["unet"]
        >>> unet.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
    """
    from keras import ops

    given = {"text_encoder": text_encoder, "encoder": encoder, "decoder": decoder, "denoiser": denoiser}
    state_dicts = {}
    for kind, model in given.items():
        if model is None:
            continue
        state_dict = state_dicts.setdefault(PART_OF[kind], {})
        for row in _rows(model, kind, linear_projection):
            array = np.array(ops.convert_to_numpy(row.variable), "float32")
            state_dict[row.names[0]] = np.ascontiguousarray(array.transpose(row.order)).reshape(row.shape)
    return state_dicts


# What a folder says.


class _Source:
    """A folder in the layout of diffusers, with all but its tensors checked.

    Attributes:
        numbers: dict of the builders' arguments for each of MODELS.
        linear: whether the projections around the denoiser's transformers are linear.
        tokenizer, settings: as in `Pipeline`.
    """

    def __init__(self, folder):
        self.folder = folder = pathlib.Path(folder)
        if not folder.is_dir():
            raise UserError(
                f"There is no folder {folder}: give the one that holds model_index.json, unet and so on, fetched with "
                "`hf download NAME --local-dir FOLDER`."
            )
        _check_index(folder)
        configs = {}
        for part, what in (
            ("text_encoder", "the description of the text encoder"),
            ("vae", "the description of the autoencoder"),
            ("unet", "the description of the denoiser"),
        ):
            configs[part] = folder / part / "config.json", read_json(folder / part / "config.json", what)
        text, vae, unet = (
            read(*configs[part]) for part, read in (("text_encoder", _text_encoder), ("vae", _vae), ("unet", _unet))
        )
        path, config = configs["vae"]
        sizes = {name: checked(path, name, config.get(name), VAE[name]) for name in ("scaling_factor", "shift_factor")}
        self.numbers = {"text_encoder": text, "encoder": vae, "decoder": dict(vae), "denoiser": unet}
        for name, channels in (("encoder", "in_channels"), ("decoder", "out_channels")):
            self.numbers[name]["image_channels"] = checked(path, channels, config.get(channels), VAE[channels])
        path, config = configs["unet"]
        self.linear = checked(path, "use_linear_projection", config.get("use_linear_projection"), False)
        self._check_fit()
        self.tokenizer, ids, length = read_tokenizer(folder / "tokenizer", text["vocabulary_size"])
        downsampling = 2 ** (len(vae["widths"]) - 1)
        self.settings = {
            "kind": KIND,
            "latent_channels": vae["latent_channels"],
            "latent_scale": sizes["scaling_factor"],
            "latent_shift": sizes["shift_factor"],
            "downsampling": downsampling,
            "image_size": downsampling * _latent_size(path, config),
            "max_length": min(length or math.inf, text["max_length"]),
            **ids,
            **_scheduler(folder / "scheduler" / "scheduler_config.json"),
        }
        stems = {"text_encoder": "model", "vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model"}
        self.checkpoints = {part: Checkpoint(folder / part, _weight_files(stem)) for part, stem in stems.items()}

    def _check_fit(self):
        """Refuse parts that do not belong together."""
        text, unet, vae = (self.numbers[name] for name in ("text_encoder", "denoiser", "encoder"))
        latent = vae["latent_channels"]
        for what, found, expected in (
            ("cross_attention_dim of the unet", unet["context_width"], (text["width"],)),
            ("in_channels of the unet", unet["in_channels"], (latent, 2 * latent + 1)),
            ("out_channels of the unet", unet["out_channels"], (latent,)),
        ):
            if found not in expected:
                raise UserError(
                    f"In {self.folder}, {what} is {found}, where {' or '.join(map(str, expected))} was expected: its "
                    "parts belong to different models."
                )

    def build(self, name):
        """One of MODELS with its weights."""
        backends.start()  # only now: what was wrong so far was said without the wait for a framework
        from zoo.models.stable_diffusion import autoencoder, denoiser, text_encoder

        part = PART_OF[name]
        builders = (text_encoder.text_encoder, autoencoder.encoder, autoencoder.decoder, denoiser.denoiser)
        path = self.folder / part / "config.json"
        try:
            with unset():
                model = dict(zip(MODELS, builders))[name](**self.numbers[name])
        except ValueError as error:
            raise UserError(f"{path} describes no model that can be built: {error}") from error
        checkpoint, rows = self.checkpoints[part], _rows(model, name, self.linear)
        _check_tensors(checkpoint, name, rows)
        for row in rows:
            array = read_floats(checkpoint, row.present(checkpoint))
            fill(row.variable, row.turned(array))
        return model


def _check_index(folder):
    path = folder / "model_index.json"
    index = read_json(path, "the list of the parts")
    if (found := index.get("_class_name")) not in PIPELINES:
        raise UserError(f"{path} describes a {found}, and what can be converted is {', '.join(PIPELINES)}.")
    for part, classes in (CLASSES | {"scheduler": tuple(SAMPLERS)}).items():
        entry = index.get(part)
        found = entry[-1] if isinstance(entry, list) and entry else None
        if found is None:
            raise UserError(f"{path} names no {part}: fetch a folder that has all parts.")
        if found not in classes:
            raise UserError(f"{path} says the {part} is a {found}, and what can be converted is {', '.join(classes)}.")
        if not (folder / part).is_dir():
            raise UserError(f"There is no folder {part} in {folder}: fetch all of the model's parts.")


def _refuse_others(path, config, fixed):
    """Refuse values that our models do not have."""
    for name, values in fixed.items():
        if (found := config.get(name, values[0])) not in values:
            raise UserError(f"{path} says {name} is {found!r}, where ours have {values[0]!r}.")


def _read(path, config, defaults):
    return {name: checked(path, name, config.get(name), default) for name, default in defaults.items()}


def _text_encoder(path, config):
    """The arguments of `zoo.models.stable_diffusion.text_encoder`."""
    _refuse_others(path, config, TEXT_ENCODER_FIXED)
    found = _read(path, config, TEXT_ENCODER)
    return {
        "vocabulary_size": found["vocab_size"],
        "num_layers": found["num_hidden_layers"],
        "width": found["hidden_size"],
        "inner": found["intermediate_size"],
        "num_heads": found["num_attention_heads"],
        "max_length": found["max_position_embeddings"],
        "activation": found["hidden_act"],
        "epsilon": found["layer_norm_eps"],
    }


def _vae(path, config):
    """The arguments of `zoo.models.stable_diffusion.autoencoder.encoder` but for the channels of images."""
    _refuse_others(path, config, VAE_FIXED)
    found = _read(path, config, VAE)
    widths = _whole_numbers(path, "block_out_channels", found["block_out_channels"])
    for way, kind in (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D")):
        if (kinds := config.get(f"{way}_block_types", [kind])) != [kind] * len(widths):
            raise UserError(
                f"{path} says {way}_block_types is {kinds!r}, where {kind} for each of {len(widths)} levels was "
                "expected."
            )
    return {
        "widths": widths,
        "blocks": found["layers_per_block"],
        "groups": found["norm_num_groups"],
        "latent_channels": found["latent_channels"],
    }


def _unet(path, config):
    """The arguments of `zoo.models.stable_diffusion.denoiser`."""
    _refuse_others(path, config, UNET_FIXED)
    found = _read(path, config, UNET)
    widths = _whole_numbers(path, "block_out_channels", found["block_out_channels"])
    levels = {}
    for name, (ours, default) in UNET_LEVELS.items():
        value = config.get(name, default)
        value = _whole_numbers(path, name, value if isinstance(value, list) else [value] * len(widths))
        if len(value) != len(widths):
            raise UserError(
                f"{path} says {name} is {list(value)}, where one for each of {len(widths)} levels was expected."
            )
        levels[ours] = value
    if len(context := set(levels["context_width"])) > 1:
        raise UserError(f"{path} says cross_attention_dim is {sorted(context)}, where ours have one number.")
    return {
        **levels,
        "context_width": context.pop(),
        "widths": widths,
        "attention": _attention(path, config, len(widths)),
        "in_channels": found["in_channels"],
        "out_channels": found["out_channels"],
        "groups": found["norm_num_groups"],
        "epsilon": found["norm_eps"],
    }


def _attention(path, config, levels):
    """Whether each level has transformers."""
    down, up = (config.get(f"{way}_block_types") or [f"CrossAttn{way.title()}Block2D"] * 3 for way in ("down", "up"))
    if "down_block_types" not in config:
        down, up = [*down, "DownBlock2D"], ["UpBlock2D", *up]
    for name, kinds, end in (("down_block_types", down, "DownBlock2D"), ("up_block_types", up, "UpBlock2D")):
        others = [kind for kind in kinds if kind not in LEVELS or not kind.endswith(end)]
        if others or len(kinds) != levels:
            raise UserError(
                f"{path} says {name} is {kinds!r}, where CrossAttn{end} or {end} for each of {levels} levels was "
                "expected."
            )
    attention = tuple(LEVELS[kind] for kind in down)
    if tuple(LEVELS[kind] for kind in reversed(up)) != attention:
        raise UserError(
            f"{path} says down_block_types is {down!r} and up_block_types {up!r}, which ours have to mirror."
        )
    return attention


def _whole_numbers(path, name, value):
    if not isinstance(value, list) or not value or not all(type(x) is int and x > 0 for x in value):
        raise UserError(f"{path} says {name} is {value!r}, where whole numbers from 1 up were expected.")
    return tuple(value)


def _latent_size(path, config):
    """How many latents high and wide the denoiser was trained for."""
    size = config.get("sample_size")
    size = 64 if size is None else size
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    if type(size) is not int or size < 1:
        raise UserError(f"{path} says sample_size is {size!r}, where one whole number was expected.")
    version = [int(number) for number in re.findall(r"\d+", str(config.get("_diffusers_version", "")))[:2]]
    return 64 if size < 64 and version and version < [0, 9] else size  # as diffusers' pipelines correct such files


def _scheduler(path):
    """The settings of noise and sampler."""
    config = read_json(path, "the description of the scheduler")
    name = config.get("_class_name")
    if name not in SAMPLERS:
        raise UserError(f"{path} describes a {name}, and what can be converted is {', '.join(SAMPLERS)}.")
    sampler, spacing, final_alpha_one = SAMPLERS[name]
    fixed = SCHEDULER_FIXED | ({"skip_prk_steps": (True,)} if sampler == "plms" else {})
    if sampler == "plms":
        config.setdefault("skip_prk_steps", False)  # as diffusers takes it
    _refuse_others(path, config, fixed)
    defaults = (
        {"beta_start": 0.00085, "beta_end": 0.012} if sampler == "heun" else {"beta_start": 1e-4, "beta_end": 0.02}
    )
    schedule = {"steps": checked(path, "num_train_timesteps", config.get("num_train_timesteps"), 1000)}
    schedule |= {name: float(checked(path, name, config.get(name), default)) for name, default in defaults.items()}
    chosen = {}
    for name, names, default in (
        ("beta_schedule", SCHEDULES, "linear"),
        ("prediction_type", PREDICTIONS, "epsilon"),
        ("timestep_spacing", dict(zip(SPACINGS, SPACINGS)), spacing),
    ):
        found = config.get(name, default)
        if found not in names:
            raise UserError(f"{path} says {name} is {found!r}, where {', '.join(names)} can be converted.")
        chosen[name] = names[found]
    return {
        "schedule": {"kind": chosen["beta_schedule"], **schedule},
        "prediction": chosen["prediction_type"],
        "sampler": sampler,
        "spacing": chosen["timestep_spacing"],
        "offset": 1,
        "final_alpha_one": checked(path, "set_alpha_to_one", config.get("set_alpha_to_one"), final_alpha_one),
        "karras": checked(path, "use_karras_sigmas", config.get("use_karras_sigmas"), False),
    }


# The weights.

PART_OF = {"text_encoder": "text_encoder", "encoder": "vae", "decoder": "vae", "denoiser": "unet"}


class Row(NamedTuple):
    """A variable of ours and the tensor that holds its numbers, under one of several names."""

    variable: object
    names: tuple
    shape: tuple  # of the tensor
    order: tuple  # of our axes in it; axes of 1 after them

    def present(self, checkpoint):
        """The name that a checkpoint has; the first where it has none."""
        return next((name for name in self.names if name in checkpoint.shapes), self.names[0])

    def turned(self, array):
        """The tensor as the variable's numbers."""
        array = array.reshape([self.variable.shape[axis] for axis in self.order])
        return np.ascontiguousarray(array.transpose(np.argsort(self.order)))


def _rows(model, kind, linear_projection):
    """A row for each variable of a model of ours; `kind` is one of MODELS."""
    rows = []
    for layer in model.layers:
        for variable in layer.weights:
            theirs = (
                f"{_their_name(model, layer.name, kind)}.{'bias' if variable.name in ('bias', 'beta') else 'weight'}"
            )
            order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(variable.shape)]
            if variable.name == "embeddings":
                order = (0, 1)
            shape = tuple(variable.shape[axis] for axis in order)
            if variable.name == "kernel" and len(shape) == 2 and _is_convolution(layer.name, kind, linear_projection):
                shape += (1, 1)
            names = (theirs,)
            if kind == "text_encoder":
                names = (PREFIX + theirs, theirs)
            elif kind != "denoiser" and ".attentions.0." in theirs:
                for new, old in OLDER.items():
                    names += (theirs.replace(f".{new}.", f".{old}."),) if f".{new}." in theirs else ()
            rows.append(Row(variable, names, shape, order))
    return rows


def _their_name(model, name, kind):
    """The name of a layer of ours in a checkpoint."""
    path, rest = [], name
    while place := next((place for place in PLACES if re.match(place.replace("#", r"\d+") + "_", rest)), None):
        match = re.match(place.replace("#", r"(\d+)") + "_", rest)
        path.append(PLACES[place].replace("#", *match.groups()) if match.groups() else PLACES[place])
        rest = rest[match.end() :]
    names = NAMES[PART_OF[kind]]
    if PART_OF[kind] == "vae" and not path and rest in ("quant_conv", "post_quant_conv"):
        return rest
    if rest not in names:
        raise UserError(f"The model {model.name} also holds {name}, for which diffusers' have no place.")
    return ".".join([*([kind] if PART_OF[kind] == "vae" else []), *path, names[rest]])


def _is_convolution(name, kind, linear_projection):
    """Whether a dense layer of ours is a 1x1 convolution of theirs."""
    if kind == "denoiser" and re.search(r"attention_\d+_(in|out)$", name):
        return not linear_projection
    return name.endswith(("shortcut", "quant_conv"))


def _check_tensors(checkpoint, kind, rows):
    """Refuse a checkpoint whose names or shapes are not those of the model."""
    found = dict(checkpoint.shapes)
    if kind == "text_encoder":
        found = {name: shape for name, shape in found.items() if not name.endswith("embeddings.position_ids")}
    elif kind != "denoiser":
        encoders = ("encoder.", "quant_conv.")
        found = {name: shape for name, shape in found.items() if name.startswith(encoders) == (kind == "encoder")}
    refuse_differences(
        found,
        {row.present(checkpoint): row.shape for row in rows},
        f"the model that config.json beside {checkpoint.path} describes",
        "fetch both of the same model",
    )


def _weight_files(stem):
    """Names that a part's weights may have, the first that is there."""
    return tuple(
        f"{stem}.{ending}"
        for ending in (
            "safetensors",
            "safetensors.index.json",
            "fp16.safetensors",
            "safetensors.index.fp16.json",
            "bin",
            "bin.index.json",
            "fp16.bin",
            "bin.index.fp16.json",
        )
    )
