import keras
import numpy as np
import pytest
import torch

from zoo.models.cnn import cnn
from zoo.training.initial_weights import set_initial_weights


@pytest.mark.parametrize("num_classes, total", [(10, 9_536_074), (43, 9_553_003), (32, 9_547_360)])
def test_parameters_layer_by_layer(num_classes, total):
    model = cnn(num_classes=num_classes)
    counts = {layer.name: layer.count_params() for layer in model.layers if layer.weights}
    assert counts == {
        "conv1": (3 * 3 * 3 + 1) * 32,
        "conv2": (3 * 3 * 32 + 1) * 64,
        "conv3": (3 * 3 * 64 + 1) * 128,
        "dense1": (12 * 12 * 128 + 1) * 512,
        "logits": (512 + 1) * num_classes,
    }
    assert list(counts.values())[:4] == [896, 18_496, 73_856, 9_437_696]
    assert model.count_params() == total


def torch_cnn(weights, *, pixels):
    """The same network in plain PyTorch, holding copies of Keras' weights in PyTorch's layouts."""
    nn = torch.nn
    conv1, conv2, conv3 = (
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.Conv2d(64, 128, 3, padding=1),
    )
    side = pixels // 4
    dense1, logits = nn.Linear(side * side * 128, 512), nn.Linear(512, weights[-1].shape[0])
    with torch.no_grad():
        for layer, kernel, bias in zip((conv1, conv2, conv3), weights[0:6:2], weights[1:6:2]):
            layer.weight.copy_(torch.tensor(kernel.transpose(3, 2, 0, 1)))  # HWIO -> OIHW
            layer.bias.copy_(torch.tensor(bias))
        # Keras flattens (H, W, C), PyTorch (C, H, W)
        kernel = weights[6].reshape(side, side, 128, 512).transpose(3, 2, 0, 1).reshape(512, -1)
        dense1.weight.copy_(torch.tensor(kernel))
        dense1.bias.copy_(torch.tensor(weights[7]))
        logits.weight.copy_(torch.tensor(weights[8].T))
        logits.bias.copy_(torch.tensor(weights[9]))
    return nn.Sequential(
        *(conv1, nn.ReLU(), conv2, nn.ReLU(), nn.MaxPool2d(2), conv3, nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), dense1, nn.ReLU(), logits),
    )


def test_forward_equals_pytorch():
    model = cnn(num_classes=10)
    set_initial_weights(model, seed=1)
    images = np.random.default_rng(0).standard_normal((4, 48, 48, 3)).astype("float32")
    with torch.no_grad():
        expected = torch_cnn(model.get_weights(), pixels=48)(torch.tensor(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(model.predict(images, verbose=0), expected, atol=1e-5)


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"num_classes": 1}, "num_classes"),
        ({"num_classes": 10, "image_size": 50}, "multiple of 4"),
        ({"num_classes": 10, "channels": 0}, "channels"),
        ({"num_classes": 10, "dropout": 1.0}, "dropout"),
    ],
)
def test_numbers_out_of_range_are_named(wrong, word):
    with pytest.raises(ValueError, match=word):
        cnn(**wrong)


def test_file_loads_with_keras_alone(tmp_path):
    model = cnn(num_classes=5, image_size=12)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    images = np.random.default_rng(0).standard_normal((2, 12, 12, 3)).astype("float32")
    np.testing.assert_array_equal(again.predict(images, verbose=0), model.predict(images, verbose=0))


def test_initial_weights_have_their_bounds_and_depend_on_the_seed_alone():
    model = cnn(num_classes=10, image_size=12)
    set_initial_weights(model, seed=3)
    first = model.get_weights()
    kernel = first[2]  # conv2: fan_in 3·3·32, fan_out 3·3·64
    bound = np.sqrt(6 / (9 * 32 + 9 * 64))
    assert kernel.min() >= -bound and kernel.max() <= bound
    assert abs(kernel.std() - bound / np.sqrt(3)) < 0.02 * bound
    assert not first[1].any()
    set_initial_weights(model, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(first, model.get_weights()))
    set_initial_weights(model, seed=3, initializer="he")
    bounds = [np.abs(w).max() for w in model.get_weights() if w.ndim > 1]
    expected = [(6 / 27) ** 0.5, (6 / 288) ** 0.5, (6 / 576) ** 0.5, (1 / 1152) ** 0.5, (1 / 512) ** 0.5]
    np.testing.assert_allclose(bounds, expected, rtol=0.02)
    set_initial_weights(model, seed=4)
    assert not np.array_equal(kernel, model.get_weights()[2])
