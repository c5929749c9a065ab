"""The parts of Stable Diffusion in small: those of diffusers and transformers with the random weights of ours."""

import keras
import numpy as np
import pytest
import torch

from zoo.compat.weights import fill, unset
from zoo.converters.stable_diffusion import to_diffusers

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()

TOLERANCE = 1e-4  # float32, the largest output of each test being above 1/2


def randomise(model, seed=0):
    """Give every weight of a model of ours numbers that keep its outputs about 1; returns the model."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        if len(shape) > 1:
            fan_in = shape[-1] if weight.name == "embeddings" else np.prod(shape[:-1])
            fill(weight, (rng.normal(size=shape) / fan_in**0.5).astype("float32"))
        else:
            fill(weight, (0.2 * rng.normal(size=shape) + (weight.name == "gamma")).astype("float32"))
    return model


def random_model(build, *, seed=0, **numbers):
    """A model of ours with random weights."""
    with unset():
        model = build(**numbers)
    return randomise(model, seed)


def answer(model, *inputs):
    """What a model of ours gives for NumPy arrays; compiled where that is faster."""
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, list(inputs) if len(inputs) > 1 else inputs[0])
    if keras.backend.backend() == "jax":
        outputs = _compiled(model, inputs)
    else:
        outputs = model(inputs, training=False)
    return keras.tree.map_structure(lambda x: np.array(keras.ops.convert_to_numpy(x)), outputs)


def _compiled(model, inputs):
    """On JAX, where one operation after the other is compiled too: all at once, with little effort."""
    import jax

    def call(weights, inputs):
        return model.stateless_call(weights, [], inputs)[0]

    weights = [weight.value for weight in model.trainable_weights]
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(call).lower(weights, inputs).compile(compiler_options=quick)(weights, inputs)


def images(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def channels_first(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def channels_last(x):
    return x.permute(0, 2, 3, 1).numpy()


def assert_same(ours, theirs, at_least=0.5):
    assert ours.shape == theirs.shape and np.abs(theirs).max() > at_least
    assert np.abs(ours - theirs).max() < TOLERANCE


def tensors(state_dict):
    return {name: torch.from_numpy(array) for name, array in state_dict.items()}


# ---------------------------------------------------------------------------------------------------------- the peers


def their_text_encoder(*, vocabulary_size, num_layers, width, inner, num_heads, max_length, activation="quick_gelu"):
    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary_size,
        num_hidden_layers=num_layers,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=num_heads,
        max_position_embeddings=max_length,
        hidden_act=activation,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return transformers.CLIPTextModel(config).eval()


def their_vae(*, widths, blocks, groups, image_channels=3, latent_channels=4, **config):
    return diffusers.AutoencoderKL(
        in_channels=image_channels,
        out_channels=image_channels,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=blocks,
        latent_channels=latent_channels,
        norm_num_groups=groups,
        **config,
    ).eval()


def their_unet(
    *,
    widths,
    blocks,
    attention,
    num_heads,
    context_width,
    groups,
    transformer_layers=1,
    in_channels=4,
    linear_projection=False,
    **config,
):
    down = tuple("CrossAttnDownBlock2D" if one else "DownBlock2D" for one in attention)
    return diffusers.UNet2DConditionModel(
        in_channels=in_channels,
        block_out_channels=widths,
        layers_per_block=blocks,
        down_block_types=down,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(down)),
        attention_head_dim=num_heads,
        transformer_layers_per_block=transformer_layers,
        cross_attention_dim=context_width,
        norm_num_groups=groups,
        use_linear_projection=linear_projection,
        **config,
    ).eval()


def filled(peer, **ours):
    """A peer with the weights of ours; strict."""
    (state_dict,) = to_diffusers(**ours).values()
    state_dict = {name.removeprefix("text_model."): array for name, array in state_dict.items()}
    peer.load_state_dict(tensors(state_dict), strict=True)
    return peer
