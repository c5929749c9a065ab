"""KerasCV's models of Stable Diffusion to the zoo's and back: equal weights, close outputs. Needs the extra `cv`.

Its classes have the published sizes only: the denoiser and its copy take 7 GB.
"""

import hashlib

import keras
import numpy as np
import pytest

from tests.stable_diffusion_peers import images, predict, randomize
from zoo.converters.keras_cv import from_keras_cv, to_keras_cv
from zoo.errors import UserError
from zoo.models.stable_diffusion.denoiser import timestep_embedding

keras_cv = pytest.importorskip("keras_cv")
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.heavy]


@pytest.fixture(scope="module")
def parts():
    """KerasCV's classes, which its package does not all export."""
    from keras_cv.src.models.stable_diffusion import decoder, diffusion_model, image_encoder, text_encoder

    return {
        "text_encoder": lambda: text_encoder.TextEncoder(77, download_weights=False),
        "encoder": lambda: image_encoder.ImageEncoder(download_weights=False),
        "decoder": lambda: decoder.Decoder(64, 32, download_weights=False),
        "denoiser": lambda: diffusion_model.DiffusionModel(64, 128, 77, download_weights=False),
    }


def digests(model):
    """Of every weight; copies would take as much memory again."""
    arrays = (np.ascontiguousarray(keras.ops.convert_to_numpy(weight)) for weight in model.weights)
    return [hashlib.sha256(array).hexdigest() for array in arrays]


@pytest.mark.parametrize(
    "part, parameters",
    [
        ("text_encoder", 123_060_480),
        ("encoder", 34_163_664),
        ("decoder", 49_490_199),
        ("denoiser", 859_520_964),
    ],
)
def test_there_and_back(part, parameters, parts):
    theirs = randomize(parts[part]())
    ours = from_keras_cv(theirs)
    assert ours.count_params() == theirs.count_params() == parameters
    ids = np.random.default_rng(0).integers(0, 49408, (1, 77)).astype("int32")
    latents, timestep, context = images(0, 1, 8, 16, 4), np.array([500], "float32"), images(1, 1, 77, 768)
    if part == "text_encoder":
        pair = predict(ours, ids), predict(theirs, ids, np.arange(77, dtype="int32")[None])
    elif part == "encoder":
        pair = predict(ours, images(0, 1, 32, 64, 3))[0] * 0.18215, predict(theirs, images(0, 1, 32, 64, 3))
    elif part == "decoder":
        pair = predict(ours, images(0, 1, 8, 4, 4) / 0.18215), predict(theirs, images(0, 1, 8, 4, 4))
    else:
        features = np.array(keras.ops.convert_to_numpy(timestep_embedding(keras.ops.convert_to_tensor(timestep), 320)))
        pair = predict(ours, latents, timestep, context), predict(theirs, latents, features, context)
    assert pair[0].shape == pair[1].shape
    difference = np.abs(pair[0] - pair[1]).max() / np.abs(pair[1]).max()
    print(f"\n{part}: largest difference {difference:.1e} of the largest value")
    assert difference < (1e-5 if part == "text_encoder" else 1e-2)

    before = digests(theirs)
    for weight in theirs.weights:
        weight.assign(np.zeros(weight.shape, "float32"))
    to_keras_cv(ours, theirs)
    assert digests(theirs) == before


def test_what_is_refused(parts):
    x = keras.Input((3,))
    model = keras.Model(x, keras.layers.Dense(2)(x))
    with pytest.raises(UserError, match="A Functional is none of KerasCV's models of Stable Diffusion"):
        from_keras_cv(model)
    theirs = parts["decoder"]()
    with pytest.raises(UserError, match="The models .* and .* differ in post_quant_conv: give models of one size"):
        to_keras_cv(model, theirs)
