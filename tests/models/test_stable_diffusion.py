"""The parts of Stable Diffusion against diffusers and transformers, with the same random weights; published sizes."""

import zipfile

import keras
import numpy as np
import pytest
import torch

from tests.stable_diffusion_peers import (
    assert_same,
    autoencoder_kl,
    channels_first,
    channels_last,
    clip_text_encoder,
    conditional_unet,
    images,
    predict,
    random_model,
    with_weights_of,
)
from zoo.blocks.residual import flatten_spatial, pixel_indices, unflatten_spatial, upsample_nearest
from zoo.compat.keras import skip_weight_init
from zoo.io import model_files
from zoo.models import variants
from zoo.models.stable_diffusion import autoencoder as autoencoders
from zoo.models.stable_diffusion import denoiser as denoisers
from zoo.models.stable_diffusion.autoencoder import autoencoder, decoder, encoder
from zoo.models.stable_diffusion.denoiser import denoiser
from zoo.models.stable_diffusion.text_encoder import text_encoder
from zoo.parameter_ledger.ledger import ledger

TEXT = {
    "vocabulary_size": 30,
    "num_layers": 3,
    "hidden_dim": 24,
    "intermediate_dim": 40,
    "num_heads": 3,
    "max_length": 11,
}
VAE = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
UNET = {
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "has_attention": (True, False),
    "num_heads": 2,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
}

# ------------------------------------------------------------------------------------------------------------- sizes


def one_of_all(names):
    """The first on every backend; the others on JAX, which compiles each operation for each size, with --full only."""
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow("jax")) for name in others)]


def count(build, **numbers):
    with skip_weight_init():
        return build(**numbers).count_params()


def test_published_sizes():
    """Those that KerasCV's and diffusers' models of Stable Diffusion 1.5 have."""
    assert count(text_encoder, **variants.TEXT_ENCODER["sd15"]) == 123_060_480
    numbers = variants.AUTOENCODER["sd15"]
    assert [count(build, **numbers) for build in (encoder, decoder, autoencoder)] == [
        34_163_664,
        49_490_199,
        83_653_863,
    ]
    assert count(denoiser, **variants.DENOISER["sd15"]) == 859_520_964


def test_text_encoder_in_closed_form():
    v, p, layers, d, f = 30, 11, 3, 24, 40
    assert count(text_encoder, **TEXT) == v * d + p * d + layers * (4 * (d * d + d) + 2 * d * f + f + d + 4 * d) + 2 * d


def test_inpainting_adds_the_channels_of_its_input_only():
    assert count(denoiser, **UNET, in_channels=9) - count(denoiser, **UNET) == 3 * 3 * (9 - 4) * 16


def test_tiny_variants_are_small():
    sizes = [
        count(text_encoder, vocabulary_size=1000, **variants.TEXT_ENCODER["tiny"]),
        count(autoencoder, **variants.AUTOENCODER["tiny"]),
        count(denoiser, **variants.DENOISER["tiny"]),
    ]
    assert max(sizes) < 6e6
    assert variants.DENOISER["tiny"]["cross_attention_dim"] == variants.TEXT_ENCODER["tiny"]["hidden_dim"]


# ------------------------------------------------------------------------------------------------------------ blocks


def test_tokens_and_back():
    x = images(0, 2, 3, 5, 4)
    image = keras.Input((None, None, 4))
    model = keras.Model(
        image,
        [flatten_spatial(image, "tokens"), unflatten_spatial(flatten_spatial(image, "again"), pixel_indices(image))],
    )
    flat, same = predict(model, x)
    np.testing.assert_array_equal(flat, x.reshape(2, 15, 4))
    np.testing.assert_array_equal(same, x)


@pytest.mark.parametrize("size", [(6, 4), (5, 4), (6, 3), (5, 3), (1, 1)])
def test_upsampling_is_nearest_neighbour_to_the_size_asked_for(size):
    x = images(0, 2, (size[0] + 1) // 2, (size[1] + 1) // 2, 3)
    small, like = keras.Input((None, None, 3)), keras.Input((None, None, 3))
    ours = predict(keras.Model([small, like], upsample_nearest(small, like)), x, images(1, 2, *size, 3))
    theirs = torch.nn.functional.interpolate(channels_first(x), size=size, mode="nearest")
    np.testing.assert_array_equal(ours, channels_last(theirs))


def test_timestep_embedding_is_that_of_diffusers():
    from diffusers.models.embeddings import get_timestep_embedding

    steps = np.array([0, 1, 7.5, 250, 999], "float32")
    ours = keras.ops.convert_to_numpy(denoisers.timestep_embedding(keras.ops.convert_to_tensor(steps), 64))
    theirs = get_timestep_embedding(torch.tensor(steps), 64, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert np.abs(ours - theirs.numpy()).max() < 1e-4  # float32 keeps angles up to 999 to 6e-5


# ------------------------------------------------------------------------------------------------------ text encoder


def prompts(rows=3, length=11, vocabulary=30, end=29):
    """Tokens (rows, length) that end at different places, padded with the end token."""
    ids = np.random.default_rng(0).integers(0, vocabulary, (rows, length))
    for row in range(rows):
        ids[row, length - 2 * row :] = end
    return ids.astype("int32")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_text_encoder_equals_transformers(activation):
    ids = prompts()
    ours = random_model(text_encoder, **TEXT, activation=activation)
    peer = with_weights_of(clip_text_encoder(**TEXT, activation=activation), text_encoder=ours)
    with torch.no_grad():
        theirs = peer(torch.tensor(ids).long(), output_hidden_states=True)
        assert_same(predict(ours, ids), theirs.last_hidden_state.numpy())

        # The one before the last, normalised: what diffusers does with clip_skip=1
        shorter = random_model(text_encoder, **TEXT, activation=activation, output_layer="penultimate")
        weights = {weight.path: weight for weight in ours.weights}
        for weight in shorter.weights:
            weight.assign(weights[weight.path])
        assert_same(predict(shorter, ids), peer.final_layer_norm(theirs.hidden_states[-2]).numpy())


def test_a_token_sees_only_those_before_it():
    model = random_model(text_encoder, **TEXT)
    ids = prompts(1)
    changed = ids.copy()
    changed[0, 6] = (ids[0, 6] + 1) % 29
    before, after = predict(model, ids), predict(model, changed)
    np.testing.assert_allclose(before[0, :6], after[0, :6], atol=1e-6)
    assert (np.abs(before - after)[0, 6:].max(axis=-1) > 1e-3).all()


# ------------------------------------------------------------------------------------------------------- autoencoder


AUTOENCODERS = {
    "two levels": (VAE, 8, 12),
    "four levels": (
        {"block_out_channels": (8, 8, 12, 16), "layers_per_block": 2, "norm_num_groups": 4},
        *(24, 8),
    ),
    "one level": (
        {"block_out_channels": (6,), "layers_per_block": 1, "norm_num_groups": 3, "latent_channels": 2},
        *(5, 3),
    ),
}


@pytest.mark.parametrize("name", one_of_all(AUTOENCODERS))
def test_autoencoder_equals_diffusers(name):
    numbers, height, width = AUTOENCODERS[name]
    parts = {"encoder": random_model(encoder, **numbers), "decoder": random_model(decoder, seed=1, **numbers)}
    peer = with_weights_of(autoencoder_kl(**numbers), **parts)
    image = images(0, 2, height, width, 3)
    mean, log_variance = predict(parts["encoder"], image)
    scale = 2 ** (len(numbers["block_out_channels"]) - 1)
    latents = images(1, 2, height // scale, width // scale, numbers.get("latent_channels", 4))
    with torch.no_grad():
        theirs = peer.encode(channels_first(image)).latent_dist
        assert_same(mean, channels_last(theirs.mean))
        assert_same(log_variance, channels_last(theirs.logvar))
        assert_same(predict(parts["decoder"], latents), channels_last(peer.decode(channels_first(latents)).sample))


def test_the_log_variance_is_clipped():
    model = random_model(encoder, **VAE)
    layer = model.get_layer("quant_conv")
    layer.kernel.assign(200 * np.array(keras.ops.convert_to_numpy(layer.kernel)))
    log_variance = predict(model, images(0, 1, 8, 8, 3))[1]
    assert (log_variance.min(), log_variance.max()) == (-30, 20)


def test_the_whole_autoencoder_is_its_parts():
    whole = random_model(autoencoder, **VAE)
    image, noise = images(0, 2, 4, 6, 3), images(1, 2, 2, 3, 4)
    restored, mean, log_variance = predict(whole, image, noise)
    parts = [whole.get_layer(name) for name in ("encoder", "decoder")]
    np.testing.assert_allclose(predict(parts[0], image), [mean, log_variance], atol=1e-5)
    np.testing.assert_allclose(predict(parts[1], mean + np.exp(log_variance / 2) * noise), restored, atol=1e-4)
    assert autoencoders.autoencoder_from_parts(*parts).count_params() == whole.count_params()


# ---------------------------------------------------------------------------------------------------------- denoiser

CONFIGS = {
    "stable diffusion 1": (UNET, (6, 4)),
    "odd sizes, a number for each level": (
        {
            "block_out_channels": (8, 16, 24),
            "layers_per_block": (2, 1, 1),
            "has_attention": (False, True, True),
            "num_heads": (1, 4, 3),
            "transformer_layers_per_block": (1, 2, 1),
            "cross_attention_dim": 10,
            "norm_num_groups": 8,
        },
        (9, 7),
    ),
    "inpainting, linear projections as in stable diffusion 2": (
        UNET | {"num_heads": (1, 3), "in_channels": 9, "has_attention": (True, True), "use_linear_projection": True},
        (4, 10),
    ),
    "attention in the mid only": (
        UNET | {"layers_per_block": 2, "has_attention": False, "block_out_channels": (12, 8)},
        (3, 5),
    ),
}


@pytest.mark.parametrize("config", one_of_all(CONFIGS))
def test_denoiser_equals_diffusers(config):
    numbers, size = CONFIGS[config]
    levels = len(numbers["block_out_channels"])
    attention = numbers["has_attention"] or (False,) * levels
    ours = random_model(denoiser, **{key: value for key, value in numbers.items() if key != "use_linear_projection"})
    linear = numbers.get("use_linear_projection", False)
    peer = with_weights_of(
        conditional_unet(**numbers | {"has_attention": attention}), denoiser=ours, use_linear_projection=linear
    )
    latents = images(0, 3, *size, numbers.get("in_channels", 4))
    timestep, context = np.array([0, 333.5, 999], "float32"), images(1, 3, 5, numbers["cross_attention_dim"])
    with torch.no_grad():
        theirs = peer(channels_first(latents), torch.tensor(timestep), torch.tensor(context)).sample
    assert_same(predict(ours, latents, timestep, context), channels_last(theirs))


def test_every_weight_of_the_denoiser_learns():
    model = random_model(denoiser, **UNET | {"has_attention": False})
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights]
    model.compile(keras.optimizers.SGD(1.0), "mse")
    inputs = [images(0, 2, 4, 4, 4), np.array([10, 500], "float32"), images(1, 2, 3, 12)]
    model.train_on_batch(inputs, images(2, 2, 4, 4, 4))
    for weight, old in zip(model.weights, before):
        assert np.abs(keras.ops.convert_to_numpy(weight) - old).max() > 0, weight.path


# ------------------------------------------------------------------------------------------------- all of the parts


@pytest.mark.parametrize(
    "part, numbers, shapes",
    [
        ("text_encoder", variants.TEXT_ENCODER, [(77,)]),
        ("autoencoder", variants.AUTOENCODER, [(512, 512, 3), (64, 64, 4)]),
        ("denoiser", variants.DENOISER, [(64, 64, 4), (), (77, 768)]),
    ],
)
def test_the_ledger_explains_every_parameter(part, numbers, shapes):
    build = {"text_encoder": text_encoder, "autoencoder": autoencoder, "denoiser": denoiser}[part]
    with skip_weight_init():
        model = build(**numbers["sd15"])
        book = ledger(model, input_shape=shapes)
    assert book.parameters == model.count_params() == sum(row.counted_parameters for row in book.leaf_rows)
    assert not book.unknown_layers
    for row in book.leaf_rows:
        if row.parameters:
            assert sum(formula.value for formula in row.formulas) == row.parameters
            assert all(formula.symbols for formula in row.formulas), row.path  # not only the shape of a tensor


def test_the_ledger_counts_the_work_that_pytorch_counts():
    """Multiply-accumulates of small models beside the operations of the peers, which are two each."""
    from torch.utils.flop_counter import FlopCounterMode

    latents, context = torch.zeros(1, 4, 8, 6), torch.zeros(1, 5, 12)
    with skip_weight_init():
        books = (
            ledger(denoiser(**UNET), input_shape=[(8, 6, 4), (), (5, 12)]),
            ledger(decoder(**VAE), input_shape=(8, 6, 4)),
            ledger(text_encoder(**TEXT), input_shape=(7,)),
        )
    for book, peer, call in (
        (books[0], conditional_unet(**UNET), (latents, 1, context)),
        (books[1], autoencoder_kl(**VAE).decode, (latents,)),
        (books[2], clip_text_encoder(**TEXT), (torch.zeros(1, 7).long(),)),
    ):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            peer(*call)
        assert 2 * book.macs == counter.get_total_flops()


def parts():
    with skip_weight_init():
        yield from (text_encoder(**TEXT), encoder(**VAE), decoder(**VAE), denoiser(**UNET))


def test_every_weighted_layer_has_a_telling_name():
    for model in parts():
        lines = []
        model.summary(expand_nested=True, print_fn=lines.append, line_length=250)
        for layer in model.layers:
            if layer.weights:
                automatic = keras.src.utils.naming.to_snake_case(type(layer).__name__)
                assert layer.name.rstrip("_0123456789") != automatic and layer.name in "\n".join(lines)


def test_files_hold_stock_layers_only(tmp_path):
    """They are loaded in a process without `zoo` by tests/converters/test_stable_diffusion.py."""
    model_files.save_model(random_model(denoiser, **UNET), tmp_path / "denoiser.keras")
    with zipfile.ZipFile(tmp_path / "denoiser.keras") as archive:
        description = archive.read("config.json").decode()
    assert '"registered_name": "zoo' not in description and "Lambda" not in description


@pytest.mark.parametrize(
    "build, numbers, words",
    [
        (text_encoder, TEXT | {"hidden_dim": 25}, "hidden_dim must be divisible by num_heads, got 25 and 3 heads"),
        (text_encoder, TEXT | {"num_layers": 0}, "num_layers must be at least 1, got 0"),
        (text_encoder, TEXT | {"num_layers": 1, "output_layer": "penultimate"}, "num_layers must be at least 2, got 1"),
        (text_encoder, TEXT | {"activation": "relu"}, "activation must be one of quick_gelu, gelu, got 'relu'"),
        (text_encoder, TEXT | {"output_layer": "first"}, "output_layer must be one of last, penultimate, got 'first'"),
        (
            encoder,
            VAE | {"block_out_channels": (8, 15)},
            r"block_out_channels must be multiples of norm_num_groups = 4, got \(8, 15\)",
        ),
        (
            decoder,
            VAE | {"block_out_channels": ()},
            r"block_out_channels must be multiples of norm_num_groups = 4, got \(\)",
        ),
        (decoder, VAE | {"layers_per_block": 0}, "layers_per_block must be at least 1, got 0"),
        (denoiser, UNET | {"num_heads": (2, 2, 2)}, "num_heads must be one value or one for each of the 2 levels"),
        (denoiser, UNET | {"num_heads": 5}, "block_out_channels must be divisible by num_heads, got 16 and 5 heads"),
        (
            denoiser,
            UNET | {"block_out_channels": (16, 22)},
            "block_out_channels must be multiples of norm_num_groups = 4 and the first even",
        ),
        (denoiser, UNET | {"block_out_channels": (), "has_attention": True}, "block_out_channels must be multiples"),
        (denoiser, UNET | {"cross_attention_dim": 0}, "cross_attention_dim must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_built(build, numbers, words):
    with pytest.raises(ValueError, match=words):
        build(**numbers)
