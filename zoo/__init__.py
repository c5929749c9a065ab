"""A Keras 3 model zoo: one definition of each model, the same numbers on TensorFlow, JAX and PyTorch.

    zoo.models    functions that build the models
    zoo.data      data sets as NumPy arrays, deterministic batches
    zoo.training  what lies between data and a trained model
    zoo.reports   results as text and pictures
    zoo.files     atomic writes, cards, checked loading

Importing `zoo` loads no framework; each part is imported when it is first used.
"""

import importlib

__version__ = "0.1.0"

_PARTS = ("blocks", "data", "files", "models", "reports", "training")


def __getattr__(name):
    if name in _PARTS:
        return importlib.import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_PARTS])
