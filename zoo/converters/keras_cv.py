"""The models of KerasCV's StableDiffusion and StableDiffusionV2 into ours, and weights of ours into them.

KerasCV 0.9 was its last release, and its `.keras` files do not load; the models it builds hold the published weights.
They differ from those, and so from ours, in three places: the epsilon of the autoencoder's normalisations and of those
before a transformer (1e-5, published 1e-6), and GELU by its tanh approximation. Answers then differ in the third or
fourth digit; weights are carried over bit for bit.

theirs                           ours
TextEncoder, TextEncoderV2       zoo.models.stable_diffusion.text_encoder, without their input of positions
ImageEncoder                     encoder: theirs gives the mean only, times 0.18215
Decoder                          decoder: theirs divides its input by 0.18215 first
DiffusionModel, DiffusionModelV2 denoiser: theirs takes the sines and cosines of the timestep

Layers are found by their class and place: those of one class lie on one path, from input to output.

Source: keras-cv 0.9.0, src/models/stable_diffusion.
"""

import itertools

import numpy as np

from zoo.compat.weights import fill, unset
from zoo.errors import UserError

# Where the layers of one of theirs are, by what ours are called after the place's name.
_PROJECTIONS = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("output", "out_proj"))
BLOCKS = {
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

_V2 = {"num_heads": (5, 10, 20, 20), "context_width": 1024}
_TEXT_V2 = {"num_layers": 23, "width": 1024, "inner": 4096, "num_heads": 16, "activation": "gelu"}
# Class of theirs: our builder, and how its numbers differ from the variant "sd15".
MODELS = {
    "TextEncoder": ("text_encoder", {}),
    "TextEncoderV2": ("text_encoder", _TEXT_V2),
    "ImageEncoder": ("encoder", {}),
    "Decoder": ("decoder", {}),
    "DiffusionModel": ("denoiser", {}),
    "DiffusionModelV2": ("denoiser", _V2),
}


def from_keras_cv(model):
    """Build our model of one of KerasCV's, with its weights.

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
    from zoo.models.stable_diffusion import autoencoder, denoiser, text_encoder

    kind, changes = _kind(model)
    module = {"text_encoder": text_encoder, "denoiser": denoiser}.get(kind, autoencoder)
    numbers = module.VARIANTS["sd15"] | changes
    if kind == "text_encoder":
        table = next(layer for layer in model.layers if type(layer).__name__ == "CLIPEmbedding")
        numbers |= {
            "vocabulary_size": table.token_embedding.input_dim,
            "max_length": table.position_embedding.input_dim,
        }
    with unset():
        ours = getattr(module, kind)(**numbers)
    for mine, other in _pairs(ours, model):
        _copy(other, mine)
    return ours


def to_keras_cv(model, theirs):
    """Copy the weights of one of our models into KerasCV's.

    Args:
        model: a text encoder, encoder, decoder or denoiser of ours, of the same size.
        theirs: a model of KerasCV as in `from_keras_cv`.

    Raises:
        UserError: if `theirs` is none of KerasCV's, or the two differ in a layer or a shape; nothing is copied then.
    """
    pairs = list(_pairs(model, theirs))
    for mine, other in pairs:
        _copy(mine, other)


def _kind(model):
    """(our builder, its numbers) for a model of theirs."""
    name = type(model).__name__
    if name not in MODELS:
        raise UserError(f"A {name} is none of KerasCV's models of Stable Diffusion: give one of {', '.join(MODELS)}.")
    return MODELS[name]


def _places(kind, levels=4):
    """Our names of the places of each class of their layers, in order."""
    down, up = range(levels), range(levels)
    if kind == "text_encoder":
        return {
            "CLIPEmbedding": [""],
            "CLIPEncoderLayer": (f"layer_{i}" for i in itertools.count()),
            "LayerNormalization": ["final_norm"],
        }
    middle = ["mid_resnet_0", "mid_resnet_1"]
    halves = [f"down_{level}_downsample" for level in down[:-1]]
    doubles = [f"up_{level}_upsample" for level in up[:-1]]
    downward = [f"down_{level}_resnet_{block}" for level in down for block in range(2)]
    upward = [f"up_{level}_resnet_{block}" for level in up for block in range(3)]
    last = {"GroupNormalization": ["norm_out"]}
    if kind == "encoder":
        convolutions = ["conv_in", *halves, "conv_out", "quant_conv"]
        return last | {
            "PaddedConv2D": convolutions,
            "ResnetBlock": downward + middle,
            "AttentionBlock": ["mid_attention"],
        }
    if kind == "decoder":
        convolutions = ["post_quant_conv", "conv_in", *doubles, "conv_out"]
        return last | {
            "PaddedConv2D": convolutions,
            "ResnetBlock": middle + upward,
            "AttentionBlock": ["mid_attention"],
        }
    transformers = [name.replace("resnet", "attention") for name in downward if "down_3" not in name]
    transformers += ["mid_attention_0"] + [name.replace("resnet", "attention") for name in upward if "up_0" not in name]
    return last | {
        "Dense": ["time_inner", "time_outer"],
        "PaddedConv2D": ["conv_in", *halves, "conv_out"],
        "ResBlock": downward + middle + upward,
        "SpatialTransformer": transformers,
        "Upsample": doubles,
    }


def _pairs(ours, theirs):
    """(variable of ours, variable of theirs) for every weight, after checking that all match."""
    places = {kind: iter(names) for kind, names in _places(_kind(theirs)[0]).items()}
    made = {layer.name: layer for layer in ours.layers if layer.weights}
    pairs, found = [], set()
    for layer in theirs.layers:
        if not layer.weights:
            continue
        place = next(places.get(type(layer).__name__, iter(())), None)
        if place is None:
            raise UserError(f"The model {theirs.name} has a layer {layer.name}, for which ours have no place.")
        for ending, path in BLOCKS[type(layer).__name__].items():
            inner = _inner(layer, path)
            if not getattr(inner, "weights", ()):
                continue  # the identity in the place of a shortcut
            name = place + ending
            mine = made.get(name)
            sizes = [[_size(weight) for weight in one.weights] for one in (mine, inner) if one is not None]
            if len(sizes) < 2 or sizes[0] != sizes[1]:
                raise UserError(f"The models {ours.name} and {theirs.name} differ in {name}: they have other numbers.")
            pairs += zip(mine.weights, inner.weights)
            found.add(name)
    if missing := sorted(made.keys() - found):
        raise UserError(f"The model {theirs.name} lacks {', '.join(missing)} of {ours.name}: they have other numbers.")
    return pairs


def _inner(layer, path):
    """The layer at the end of a path of attributes and places in lists; a PaddedConv2D's convolution."""
    for step in path.split(".") if path else ():
        layer = layer[int(step)] if step.isdigit() else getattr(layer, step, None)
    return getattr(layer, "conv2d", layer)


def _size(weight):
    """A shape without the window of a 1x1 convolution, which is a dense layer in ours; the kind of weight."""
    shape = tuple(weight.shape)
    return weight.name, shape[2:] if len(shape) == 4 and shape[:2] == (1, 1) else shape


def _copy(source, target):
    from keras import ops

    fill(target, np.array(ops.convert_to_numpy(source), "float32").reshape(target.shape))
