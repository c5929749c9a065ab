"""A Keras 3 model zoo: one definition of each model, the same numbers on TensorFlow, JAX and PyTorch."""

__version__ = "0.1.0"
