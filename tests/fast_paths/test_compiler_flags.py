"""What XLA computes under the flags of `set_compiler_flags`, which conftest.py has called, beside NumPy in float64."""

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(keras.backend.backend() != "jax", reason="XLA's flags")


@pytest.mark.parametrize("rows", [4_097, 32_768, 32_769, 33_000, 65_537])
def test_products_of_rows_then_a_sum(rows):
    """The program of github.com/jax-ml/jax/issues/39103: jaxlib 0.10.2 is wrong by 0.8 % at 32,769 rows, silently."""
    import jax

    x = np.random.default_rng(0).normal(size=(rows, 3)).astype("float32")
    x[-1] = (rows, 0, 0)
    for matrix in (np.eye(3, dtype="float32"), np.random.default_rng(1).normal(size=(3, 3)).astype("float32")):
        computed = jax.jit(jax.vmap(lambda row, matrix=matrix: ((matrix @ row) ** 2).sum()))(x)
        expected = ((x.astype("float64") @ matrix.T) ** 2).sum(axis=1)
        np.testing.assert_allclose(computed, expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 31, 1_000, 32_769])
@pytest.mark.parametrize("inner, columns", [(3, 3), (27, 32), (64, 10)])
def test_products_with_a_bias_an_activation_or_a_sum(rows, inner, columns):
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(2)
    x, kernel, bias = (rng.normal(size=s).astype("float32") for s in ((rows, inner), (inner, columns), (columns,)))
    product = x.astype("float64") @ kernel

    def compute(x):
        y = x @ kernel
        return y.sum(axis=1), jnp.mean(y, axis=0), jax.nn.relu(y + bias), (y * y).sum(axis=1)

    expected = product.sum(axis=1), product.mean(axis=0), np.maximum(product + bias, 0), (product**2).sum(axis=1)
    for one, other in zip(jax.jit(compute)(x), expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
