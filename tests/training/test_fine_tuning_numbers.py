"""A fine-tuned model begins as the one that it starts from, and what is frozen stays, bit for bit, in each family."""

import keras
import numpy as np
import pytest

import zoo
from zoo.models.cnn import cnn
from zoo.models.rnn_language_model import rnn_language_model
from zoo.models.stable_diffusion.denoiser import denoiser
from zoo.models.transformer import transformer
from zoo.training.callbacks import CheckpointAveraging
from zoo.training.fine_tuning import Pretrained, init_weights, set_trainable
from zoo.training.optimizers import TorchAdam

RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 9, (4, 6)).astype("int32")
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
IMAGES = RNG.normal(size=(4, 8, 8, 3)).astype("float32")
LATENTS, CONTEXT = RNG.normal(size=(4, 4, 4, 4)).astype("float32"), RNG.normal(size=(4, 5, 12)).astype("float32")
UNET = {"block_out_channels": (8, 16), "layers_per_block": 1, "has_attention": (True, False), "num_heads": 2}
UNET |= {"cross_attention_dim": 12, "norm_num_groups": 4}
FAMILIES = {
    # (model, input, target, loss, a pattern of what is frozen)
    "lstm": (
        lambda: rnn_language_model(vocabulary_size=9, cell="lstm", embedding_dim=4, units=4, num_layers=2),
        (IDS, IDS, SPARSE, "^lstm_0|embedding"),
    ),
    "transformer": (
        lambda: transformer(vocabulary_size=9, num_layers=1, hidden_dim=8, intermediate_dim=12, num_heads=2),
        ([IDS, IDS], IDS, SPARSE, "^encoder_"),
    ),
    "cnn": (
        lambda: cnn(num_classes=3, image_size=8, units=4, channels=3),
        (IMAGES, IDS[:, 0] % 3, SPARSE, "conv"),
    ),
    "denoiser": (
        lambda: denoiser(**UNET),
        ([LATENTS, np.array([3.0, 9.0, 70.0, 500.0], "float32"), CONTEXT], LATENTS, "mse", "^down_|^mid_"),
    ),
}
# The denoiser compiles for half a minute on JAX.
ONE_OF_ALL = [
    pytest.param(family, marks=pytest.mark.slow("jax")) if family == "denoiser" else family for family in FAMILIES
]


def random_model(family, seed):
    model = FAMILIES[family][0]()
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=weight.shape).astype("float32") * 0.3 for weight in model.weights])
    return model


def values(model):
    return {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights}


def outputs(model, x):
    return keras.ops.convert_to_numpy(model(x, training=False))


@pytest.mark.parametrize("family", ONE_OF_ALL)
def test_almost_no_learning_rate_leaves_the_outputs_of_the_file(family):
    x, y, loss, _ = FAMILIES[family][1]
    old, model = random_model(family, 0), random_model(family, 1)
    expected = outputs(old, x)
    assert np.abs(outputs(model, x) - expected).max() > 1e-2
    init_weights(model, Pretrained("a_file", {"model.keras": old}, {}, {}))
    np.testing.assert_array_equal(outputs(model, x), expected)
    model.compile(TorchAdam(1e-12), loss)
    with zoo.strategy("cpu"):
        model.fit(x, y, batch_size=2, epochs=1, verbose=0)
    np.testing.assert_allclose(outputs(model, x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True], ids=["adam", "adamw"])
@pytest.mark.parametrize("family", ONE_OF_ALL)
def test_frozen_weights_stay_with_decay_clipping_and_averages(family, decoupled, tmp_path):
    x, y, loss, pattern = FAMILIES[family][1]
    model = random_model(family, 0)
    before = values(model)
    set_trainable(model, freeze=[pattern])
    trained = {variable.path for variable in model.trainable_variables}
    assert 0 < len(trained) < len(before)
    optimizer = {"decoupled_weight_decay": decoupled, "global_clipnorm": 1.0, "use_ema": True, "ema_momentum": 0.5}
    model.compile(TorchAdam(0.1, weight_decay=0.1, **optimizer), loss)
    averaging = CheckpointAveraging(tmp_path, num_checkpoints=3)
    with zoo.strategy("cpu"):
        model.fit(x, y, batch_size=2, epochs=3, callbacks=[averaging], verbose=0)
    averaging.restore(model, epochs=3)
    model.optimizer.finalize_variable_values(model.trainable_variables)  # the moving averages
    after = values(model)
    assert {path for path in after if not np.array_equal(after[path], before[path])} == trained
