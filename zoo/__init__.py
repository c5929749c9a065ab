"""A Keras 3 model zoo: one definition of each model, the same numbers on TensorFlow, JAX and PyTorch.

Use what is trained:

    zoo.ImageClassifier.from_preset("cnn_mnist").classify("digit.png")
    zoo.CausalLM.from_preset("lstm_shakespeare").generate("ROMEO:")
    zoo.Translator.from_preset("transformer_multi30k_de_en").translate("Ein Hund läuft.")
    zoo.TextToImage.from_preset("diffusion_captions").generate("a green three on white")
    zoo.load_task(preset)                 the class that fits a preset
    zoo.list_models(), zoo.load_model(name), zoo.create_model(name)    plain Keras models

Work with models:

    zoo.ledger(model)                     where every parameter of a model comes from
    zoo.verify(preset or file)            whether it computes the same numbers on every backend
    zoo.convert(kind, source, folder)     published weights in other formats to a preset
    with zoo.strategy(devices):           build and train on several devices
    zoo.lora.add_lora(model, rank=8)      train few weights beside frozen ones
    zoo.use_fast_paths(model)             the same numbers sooner, for any Keras model

The rooms, from the top: `zoo.tasks` what users call; `zoo.training` and `zoo.evaluation` what recipes share;
`zoo.lora` low-rank adapters; `zoo.lessons` notebooks for a class; `zoo.generation` from a model's outputs to text or
images; `zoo.converters` other formats; `zoo.distribution` several devices; `zoo.fast_paths` speed; `zoo.parity` the
same numbers everywhere; `zoo.presets` models by name; `zoo.models` functions that build them; `zoo.data` data sets;
`zoo.tokenizers`; `zoo.parameter_ledger`; `zoo.blocks` and `zoo.io` parts of all these; `zoo.backends`; `zoo.compat`;
`zoo.errors`; `zoo.typing`.

`import zoo` loads no framework: each part is imported when it is first used, with Keras on the backend that
`KERAS_BACKEND` names.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` gives, for type checkers and editors
    from zoo import (
        backends,
        blocks,
        compat,
        converters,
        data,
        distribution,
        errors,
        evaluation,
        exporters,
        fast_paths,
        generation,
        io,
        lessons,
        lora,
        models,
        parameter_ledger,
        parity,
        presets,
        tasks,
        tokenizers,
        training,
        typing,
    )
    from zoo.distribution.strategy import strategy
    from zoo.fast_paths.layers import use_fast_paths
    from zoo.parameter_ledger.ledger import ledger
    from zoo.presets import create_model, list_models, load_model
    from zoo.tasks import load_task
    from zoo.tasks.causal_lm import CausalLM
    from zoo.tasks.convert import convert
    from zoo.tasks.export import export
    from zoo.tasks.image_classifier import ImageClassifier
    from zoo.tasks.text_to_image import TextToImage
    from zoo.tasks.translator import Translator
    from zoo.tasks.verify import verify

from zoo.backends import BACKENDS, check_backend, set_default_backend

set_default_backend()

__version__ = "0.1.0"
__all__ = [
    "CausalLM",
    "ImageClassifier",
    "TextToImage",
    "Translator",
    "backends",
    "blocks",
    "compat",
    "convert",
    "converters",
    "create_model",
    "data",
    "distribution",
    "errors",
    "evaluation",
    "export",
    "exporters",
    "fast_paths",
    "generation",
    "io",
    "ledger",
    "lessons",
    "list_models",
    "load_model",
    "load_task",
    "lora",
    "models",
    "parameter_ledger",
    "parity",
    "presets",
    "strategy",
    "tasks",
    "tokenizers",
    "training",
    "typing",
    "use_fast_paths",
    "verify",
]

_MODULES = {
    "CausalLM": "zoo.tasks.causal_lm",
    "ImageClassifier": "zoo.tasks.image_classifier",
    "TextToImage": "zoo.tasks.text_to_image",
    "Translator": "zoo.tasks.translator",
    "convert": "zoo.tasks.convert",
    "create_model": "zoo.presets",
    "export": "zoo.tasks.export",
    "ledger": "zoo.parameter_ledger.ledger",
    "list_models": "zoo.presets",
    "load_model": "zoo.presets",
    "load_task": "zoo.tasks",
    "strategy": "zoo.distribution.strategy",
    "use_fast_paths": "zoo.fast_paths.layers",
    "verify": "zoo.tasks.verify",
}
_ROOMS = [name for name in __all__ if name not in _MODULES]


if not TYPE_CHECKING:  # else any name would pass

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module 'zoo' has no attribute {name!r}")
        try:
            module = importlib.import_module(_MODULES.get(name, f"zoo.{name}"))
        except ModuleNotFoundError as error:
            if (backend := (error.name or "").partition(".")[0]) in BACKENDS:
                check_backend(backend)  # raises the sentence that has the command to install it
            raise
        return getattr(module, name) if name in _MODULES else module


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
