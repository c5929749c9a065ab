"""The models of KerasCV's StableDiffusion and StableDiffusionV2 to the zoo's models, and the weights back.

KerasCV 0.9 was its last release, and its `.keras` files do not load; the models it builds hold the published weights.
They differ from the published models, and so from the zoo's, in the epsilon of the autoencoder's normalizations and of
those before a transformer (1e-5, published 1e-6), and in GELU by its tanh approximation. Outputs then differ in the
third or fourth digit; weights are copied bit for bit.

KerasCV                          the zoo
TextEncoder, TextEncoderV2       zoo.models.stable_diffusion.text_encoder, without the input of positions
ImageEncoder                     encoder: KerasCV's outputs the mean only, times 0.18215
Decoder                          decoder: KerasCV's divides its input by 0.18215 first
DiffusionModel, DiffusionModelV2 denoiser: KerasCV's takes the sinusoidal embedding of the timestep

Layers are found by class and order: those of one class lie on one path, from input to output.

Source: keras-cv 0.9.0, src/models/stable_diffusion.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from zoo.compat.keras import set_initial_value, skip_weight_init
from zoo.errors import UserError

if TYPE_CHECKING:
    import keras

_PROJECTIONS = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("output", "out_proj"))
# Class of a KerasCV layer -> {suffix of the zoo's layer name: path of attributes to the layer}.
BLOCK_MAP = {
    "CLIPEmbedding": {"token_embedding": "token_embedding", "position_embedding": "position_embedding"},
    "CLIPEncoderLayer": {
        "_self_attention_norm": "layer_norm1",
        "_self_attention_query": "clip_attn.q_proj",
        "_self_attention_key": "clip_attn.k_proj",
        "_self_attention_value": "clip_attn.v_proj",
        "_self_attention_output": "clip_attn.out_proj",
        "_feed_forward_norm": "layer_norm2",
        "_inner": "fc1",
        "_outer": "fc2",
    },
    "ResnetBlock": {
        "_norm1": "norm1",
        "_conv1": "conv1.conv2d",
        "_norm2": "norm2",
        "_conv2": "conv2.conv2d",
        "_shortcut": "residual_projection.conv2d",
    },
    "AttentionBlock": {
        "_norm": "norm",
        "_query": "q.conv2d",
        "_key": "k.conv2d",
        "_value": "v.conv2d",
        "_output": "proj_out.conv2d",
    },
    "ResBlock": {
        "_norm1": "entry_flow.0",
        "_conv1": "entry_flow.2.conv2d",
        "_time": "embedding_flow.1",
        "_norm2": "exit_flow.0",
        "_conv2": "exit_flow.2.conv2d",
        "_shortcut": "residual_projection.conv2d",
    },
    "SpatialTransformer": {
        "_norm": "norm",
        "_in": "proj1",
        "_block_0_self_attention_norm": "transformer_block.norm1",
        **{f"_block_0_self_attention_{ours}": f"transformer_block.attn1.{part}" for ours, part in _PROJECTIONS},
        "_block_0_cross_attention_norm": "transformer_block.norm2",
        **{f"_block_0_cross_attention_{ours}": f"transformer_block.attn2.{part}" for ours, part in _PROJECTIONS},
        "_block_0_feed_forward_norm": "transformer_block.norm3",
        "_block_0_inner": "transformer_block.geglu.dense",
        "_block_0_outer": "transformer_block.dense",
        "_out": "proj2",
    },
    "Upsample": {"": "conv.conv2d"},
    "PaddedConv2D": {"": "conv2d"},
    "Dense": {"": ""},
    "GroupNormalization": {"": ""},
    "LayerNormalization": {"": ""},
}

_DENOISER_V2 = {"num_heads": (5, 10, 20, 20), "cross_attention_dim": 1024}
_TEXT_ENCODER_V2 = {
    "num_layers": 23,
    "hidden_dim": 1024,
    "intermediate_dim": 4096,
    "num_heads": 16,
    "activation": "gelu",
}
# Class of a KerasCV model: the zoo's builder, and how its arguments differ from the variant "sd15".
_MODELS = {
    "TextEncoder": ("text_encoder", {}),
    "TextEncoderV2": ("text_encoder", _TEXT_ENCODER_V2),
    "ImageEncoder": ("encoder", {}),
    "Decoder": ("decoder", {}),
    "DiffusionModel": ("denoiser", {}),
    "DiffusionModelV2": ("denoiser", _DENOISER_V2),
}


def from_keras_cv(model: keras.Model) -> keras.Model:
    """Build the zoo's model of one of KerasCV's, with its weights.

    Args:
        model: a TextEncoder, ImageEncoder, Decoder or DiffusionModel of `keras_cv.models.stable_diffusion`, or the
            second version of one: `keras_cv.models.StableDiffusion` has them as text_encoder, image_encoder, decoder
            and diffusion_model.

    Returns:
        `keras.Model`, float32: a text encoder, encoder, decoder or denoiser.

    Raises:
        UserError: if it is none of these.

    Example:
        >>> theirs = keras_cv.models.StableDiffusion(512, 512)
        >>> denoiser = from_keras_cv(theirs.diffusion_model)
    """
    from zoo.models import variants
    from zoo.models.stable_diffusion import autoencoder, denoiser, text_encoder

    kind, changes = _builder(model)
    module, sizes = {
        "text_encoder": (text_encoder, variants.TEXT_ENCODER),
        "denoiser": (denoiser, variants.DENOISER),
    }.get(kind, (autoencoder, variants.AUTOENCODER))
    config = sizes["sd15"] | changes
    if kind == "text_encoder":
        table = next(layer for layer in model.layers if type(layer).__name__ == "CLIPEmbedding")
        config |= {
            "vocabulary_size": table.token_embedding.input_dim,
            "max_length": table.position_embedding.input_dim,
        }
    with skip_weight_init():
        ours = getattr(module, kind)(**config)
    for variable, theirs in _paired_variables(ours, model):
        _copy(theirs, variable)
    return ours


def to_keras_cv(model: keras.Model, keras_cv_model: keras.Model) -> None:
    """Copy the weights of one of the zoo's models into one of KerasCV's.

    Args:
        model: a text encoder, encoder, decoder or denoiser of the zoo, of the same size.
        keras_cv_model: a model of KerasCV as in `from_keras_cv`.

    Raises:
        UserError: if `keras_cv_model` is none of KerasCV's, or the two differ in a layer or a shape; nothing is copied
            then.
    """
    for variable, target in _paired_variables(model, keras_cv_model):
        _copy(variable, target)


def _builder(model):
    """(name of the zoo's builder, changes of its arguments) for a KerasCV model."""
    name = type(model).__name__
    if name not in _MODELS:
        raise UserError(f"A {name} is none of KerasCV's models of Stable Diffusion: give one of {', '.join(_MODELS)}.")
    return _MODELS[name]


def _layer_names(kind, levels=4):
    """Class of a KerasCV layer -> prefixes of the zoo's layer names, in order."""
    down, up = range(levels), range(levels)
    if kind == "text_encoder":
        return {
            "CLIPEmbedding": [""],
            "CLIPEncoderLayer": (f"layer_{i}" for i in itertools.count()),
            "LayerNormalization": ["final_norm"],
        }
    mid = ["mid_resnet_0", "mid_resnet_1"]
    downsamples = [f"down_{level}_downsample" for level in down[:-1]]
    upsamples = [f"up_{level}_upsample" for level in up[:-1]]
    downward = [f"down_{level}_resnet_{block}" for level in down for block in range(2)]
    upward = [f"up_{level}_resnet_{block}" for level in up for block in range(3)]
    last = {"GroupNormalization": ["norm_out"]}
    if kind == "encoder":
        convolutions = ["conv_in", *downsamples, "conv_out", "quant_conv"]
        return last | {
            "PaddedConv2D": convolutions,
            "ResnetBlock": downward + mid,
            "AttentionBlock": ["mid_attention"],
        }
    if kind == "decoder":
        convolutions = ["post_quant_conv", "conv_in", *upsamples, "conv_out"]
        return last | {
            "PaddedConv2D": convolutions,
            "ResnetBlock": mid + upward,
            "AttentionBlock": ["mid_attention"],
        }
    transformers = [name.replace("resnet", "attention") for name in downward if "down_3" not in name]
    transformers += ["mid_attention_0"] + [name.replace("resnet", "attention") for name in upward if "up_0" not in name]
    return last | {
        "Dense": ["time_inner", "time_outer"],
        "PaddedConv2D": ["conv_in", *downsamples, "conv_out"],
        "ResBlock": downward + mid + upward,
        "SpatialTransformer": transformers,
        "Upsample": upsamples,
    }


def _paired_variables(ours, theirs):
    """List of (variable of `ours`, variable of `theirs`) for every weight, after checking that all match."""
    prefixes = {kind: iter(names) for kind, names in _layer_names(_builder(theirs)[0]).items()}
    by_name = {layer.name: layer for layer in ours.layers if layer.weights}
    pairs, found = [], set()
    for layer in theirs.layers:
        if not layer.weights:
            continue
        prefix = next(prefixes.get(type(layer).__name__, iter(())), None)
        if prefix is None:
            raise UserError(f"The model {theirs.name} has a layer {layer.name}, which {ours.name} does not have.")
        for suffix, path in BLOCK_MAP[type(layer).__name__].items():
            inner = _inner_layer(layer, path)
            if not getattr(inner, "weights", ()):
                continue  # the identity instead of a shortcut
            name = prefix + suffix
            mine = by_name.get(name)
            shapes = [[_dense_shape(weight) for weight in one.weights] for one in (mine, inner) if one is not None]
            if mine is None or shapes[0] != shapes[1]:
                raise UserError(f"The models {ours.name} and {theirs.name} differ in {name}: give models of one size.")
            pairs += zip(mine.weights, inner.weights)
            found.add(name)
    if missing := sorted(by_name.keys() - found):
        raise UserError(f"The model {theirs.name} lacks {', '.join(missing)} of {ours.name}: give models of one size.")
    return pairs


def _inner_layer(layer, path):
    """The layer at the end of a path of attributes and indices of lists; a PaddedConv2D's convolution."""
    for step in path.split(".") if path else ():
        layer = layer[int(step)] if step.isdigit() else getattr(layer, step, None)
    return getattr(layer, "conv2d", layer)


def _dense_shape(weight):
    """(name, shape) of a weight; that of a 1x1 convolution, which is a dense layer in the zoo, without its window."""
    shape = tuple(weight.shape)
    return weight.name, shape[2:] if len(shape) == 4 and shape[:2] == (1, 1) else shape


def _copy(source, target):
    from keras import ops

    set_initial_value(target, np.array(ops.convert_to_numpy(source), "float32").reshape(target.shape))
