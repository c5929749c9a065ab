"""The image encoder that a text encoder is trained by contrast with."""

import keras
import numpy as np
import pytest
import torch

from zoo.models.image_encoder import image_encoder
from zoo.training.initial_weights import set_initial_weights


@pytest.mark.parametrize("image_size", [48, 64])
def test_it_equals_pytorch(image_size):
    """The same network of torch.nn.functional; strided convolutions pad below and to the right."""
    model = image_encoder(image_size=image_size, block_out_channels=(8, 16, 24), norm_num_groups=4, units=5)
    set_initial_weights(model, seed=1, initializer="transformer")
    weights = {w.path: torch.tensor(np.array(keras.ops.convert_to_numpy(w))) for w in model.weights}
    images = np.random.default_rng(0).integers(0, 256, (3, image_size, image_size, 3)).astype("float32")

    def conv(x, name, **options):
        return torch.nn.functional.conv2d(
            x, weights[f"{name}/kernel"].permute(3, 2, 0, 1), weights[f"{name}/bias"], **options
        )

    def norm(x, name):
        gamma, beta = weights[f"{name}/gamma"], weights[f"{name}/beta"]
        return torch.nn.functional.silu(torch.nn.functional.group_norm(x, 4, gamma, beta, eps=1e-5))

    x = torch.tensor(images / 127.5 - 1).permute(0, 3, 1, 2)
    for level in range(3):
        x = conv(torch.nn.functional.pad(x, (0, 1, 0, 1)), f"down_{level}", stride=2)
        x = conv(norm(x, f"norm_{level}"), f"conv_{level}", padding=1)
    x = norm(x, "norm_out").permute(0, 2, 3, 1).flatten(1)
    expected = torch.nn.functional.silu(x @ weights["features/kernel"] + weights["features/bias"]).numpy()
    assert x.shape[1] == (image_size // 8) ** 2 * 24
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-4)


@pytest.mark.once
def test_sizes():
    assert image_encoder().count_params() == 877_664
    for wrong in ({"image_size": 50}, {"block_out_channels": (12,)}, {"units": 0}):
        with pytest.raises(ValueError, match=f"^{next(iter(wrong))} must be"):
            image_encoder(**wrong)
