"""The product of matrices that dense layers share, beside NumPy and PyTorch, where it is large enough for oneDNN."""

import keras
import numpy as np
import pytest

from zoo import fast_paths
from zoo.fast_paths.products import linear

BACKEND = keras.backend.backend()
ROWS, WIDTH, UNITS = (4, 32), 64, 80  # 655,360 multiplications
RNG = np.random.default_rng(0)
X, W, B = RNG.normal(size=(*ROWS, WIDTH)), RNG.normal(size=(WIDTH, UNITS)), RNG.normal(size=UNITS)

pytestmark = pytest.mark.skipif(BACKEND == "tensorflow", reason="no path of this kind")


def outputs_and_gradients(x, weight, bias, direction):
    """(y, gradients of the sum of y times a direction by each argument) as NumPy arrays."""
    arrays = [np.asarray(part, "float32") for part in (x, weight, bias)]
    if BACKEND == "jax":
        import jax

        y, pull_back = jax.vjp(linear, *arrays)
        return np.array(y), [np.array(part) for part in pull_back(np.asarray(direction, "float32"))]
    import torch

    tensors = [torch.tensor(part, requires_grad=True) for part in arrays]
    y = linear(*tensors)
    (y * torch.tensor(np.asarray(direction, "float32"))).sum().backward()
    return y.detach().numpy(), [part.grad.numpy() for part in tensors]


@pytest.mark.parametrize("direction", ["any", "one number"])
def test_product_and_gradients_are_those_of_numpy(direction):
    direction = RNG.normal(size=(*ROWS, UNITS)) if direction == "any" else np.broadcast_to(1.0, (*ROWS, UNITS))
    y, gradients = outputs_and_gradients(X, W, B, direction)
    np.testing.assert_allclose(y, X @ W + B, rtol=1e-5, atol=1e-4)
    flat = direction.reshape(-1, UNITS)
    expected = (direction @ W.T, X.reshape(-1, WIDTH).T @ flat, flat.sum(0))
    for found, reference in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, reference, rtol=1e-4, atol=2e-4)


def test_a_layer_with_lora_is_as_keras_has_it():
    inputs = keras.Input((ROWS[1], WIDTH))
    layer = keras.layers.Dense(UNITS)
    model = keras.Model(inputs, layer(inputs))
    layer.enable_lora(4)
    layer.lora_kernel_b.assign(RNG.normal(size=layer.lora_kernel_b.shape))
    x = X.astype("float32")
    expected = keras.ops.convert_to_numpy(model(x))
    fast_paths.use_fast_paths(model)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif(BACKEND != "torch", reason="of oneDNN on PyTorch")
class TestOneDNN:
    def tensors(self, requires_grad=True):
        import torch

        return [torch.tensor(part.astype("float32"), requires_grad=requires_grad) for part in (X, W, B)]

    def test_it_is_taken_and_left_where_it_does_not_apply(self, monkeypatch):
        import torch

        from zoo.fast_paths import products

        calls, operation = [], products._onednn()
        monkeypatch.setattr(products, "_onednn", lambda: lambda *args: calls.append(1) or operation(*args))
        x, weight, bias = self.tensors()
        linear(x, weight, bias).sum().backward()
        assert len(calls) == 3
        linear(x.detach(), weight.detach(), bias.detach())
        linear(x.detach().transpose(0, 1), weight.detach().t().contiguous().t(), None)
        assert len(calls) == 5
        for other in (x[:1, :1], x.double(), x[:0], x.bfloat16()):
            outputs = linear(other, weight.to(other.dtype), None)
            torch.testing.assert_close(outputs, other @ weight.to(other.dtype))
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight, bias).dtype == torch.bfloat16
        assert len(calls) == 5

    def test_it_can_be_differentiated_twice(self):
        import torch

        def second(product):
            x, weight, bias = self.tensors()
            (first,) = torch.autograd.grad(product(x, weight, bias).tanh().square().sum(), x, create_graph=True)
            return torch.autograd.grad(first.square().sum(), (x, weight, bias))

        expected = second(lambda x, weight, bias: x @ weight + bias)
        for found, reference in zip(second(linear), expected, strict=True):
            assert (found - reference).abs().max() < 1e-4 * reference.abs().max()

    def test_only_what_is_asked_for_has_a_gradient(self):
        x, weight, bias = self.tensors(requires_grad=False)
        weight.requires_grad_()
        linear(x, weight, None).sum().backward()
        assert weight.grad is not None and x.grad is None

    def test_a_model_can_be_exported(self):
        import torch

        model = keras.Sequential([keras.Input((ROWS[1], WIDTH)), keras.layers.Dense(UNITS)])
        fast_paths.use_fast_paths(model)
        x = self.tensors(requires_grad=False)[0]
        exported = torch.export.export(model, (x,), strict=False)
        assert not any("mkldnn" in str(node.target) for node in exported.graph.nodes)
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-5, atol=1e-4)

    def test_a_recorded_function_computes_the_same(self):
        model = keras.Sequential([keras.Input((ROWS[1], WIDTH)), keras.layers.Dense(UNITS)])
        run, x = fast_paths.inference_function(model), X.astype("float32")
        expected = x @ model.get_weights()[0]
        for _ in range(3):  # as it is, recorded, replayed
            np.testing.assert_allclose(run(x), expected, rtol=1e-5, atol=1e-4)
