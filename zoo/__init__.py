"""A Keras 3 model zoo: one definition of each model, the same numbers on TensorFlow, JAX and PyTorch.

    zoo.list_models(), zoo.create_model(name), zoo.load_model(name or path)
    zoo.ledger(model)    where every parameter of a model comes from
    zoo.strategy(devices)    a scope to build and train in on several devices

    zoo.presets  the models by name
    zoo.models    functions that build the models
    zoo.data      data sets as NumPy arrays, deterministic batches
    zoo.text      tokenizers, decoding, writing
    zoo.drawing   pictures of prompts
    zoo.convert   weights from and to other frameworks
    zoo.training  what lies between data and a trained model
    zoo.reports   results as text and pictures
    zoo.io.files     atomic writes, cards, checked loading

Importing `zoo` loads no framework; each part is imported when it is first used.
"""

import importlib

__version__ = "0.1.0"

_PARTS = (
    *("blocks", "converters", "data", "distribution", "evaluation", "fast_paths", "generation", "io", "models"),
    *("parameter_ledger", "parity", "presets", "tasks", "tokenizers", "training"),
)
_FUNCTIONS = {
    "CausalLM": "zoo.tasks.causal_lm",
    "ImageClassifier": "zoo.tasks.image_classifier",
    "TextToImage": "zoo.tasks.text_to_image",
    "Translator": "zoo.tasks.translator",
    "convert": "zoo.tasks.convert",
    "create_model": "zoo.presets",
    "ledger": "zoo.parameter_ledger.ledger",
    "list_models": "zoo.presets",
    "load_model": "zoo.presets",
    "load_task": "zoo.tasks",
    "strategy": "zoo.distribution.strategy",
    "verify": "zoo.parity.verify",
}


def __getattr__(name):
    if name in _PARTS:
        return importlib.import_module(f"zoo.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_PARTS, *_FUNCTIONS])
