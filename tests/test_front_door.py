"""`import zoo` in a program of one's own: every public name is there, and Keras keeps all that it can do."""

import pytest

import zoo

ALL_OF_KERAS = """
import zoo, sys
assert not {"keras", "tensorflow", "jax", "torch"} & set(sys.modules)
zoo.create_model("cnn_mnist")
import keras
keras.wrappers.SKLearnClassifier(lambda X, y: None)
keras.visualization.plot_image_gallery(__import__("numpy").zeros((1, 8, 8, 3)), rows=1, cols=1, value_range=(0, 1))
import jax.numpy, matplotlib.pyplot, sklearn, torch._dynamo
assert hasattr(torch._dynamo, "optimize"), "PyTorch's compiler is another one"
print(keras.backend.backend())
"""


def test_every_public_name_is_there():
    for name in dir(zoo):
        assert getattr(zoo, name) is not None
    assert {"ImageClassifier", "CausalLM", "Translator", "TextToImage", "load_task", "convert", "verify"} <= {*dir(zoo)}
    assert all(getattr(zoo, name).__doc__ for name in dir(zoo) if not name.startswith("_") and name != "importlib")
    with pytest.raises(AttributeError, match="has no attribute 'Painter'"):
        zoo.Painter  # noqa: B018


@pytest.mark.once
@pytest.mark.parametrize(
    "backend", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensorflow", "jax"))]
)
def test_importing_zoo_hides_nothing_from_the_process(run, backend):
    ended = run(["-c", ALL_OF_KERAS], backend=backend)
    assert ended.stdout == f"{backend}\n", ended.stderr
