"""Functions that build `keras.Model`s: no reading or writing, no training.

zoo.models.cnn                         the 48x48 image classifier
zoo.models.captioned_image_classifier  a small classifier of captioned images
zoo.models.preprocessing               from a raw image to what a classifier takes
zoo.models.rnn_language_model          stacked LSTM, GRU or simple recurrent layers that predict the next token
zoo.models.stable_diffusion            latent diffusion: text encoder, autoencoder, denoiser
zoo.models.transformer                 the encoder-decoder of "Attention Is All You Need"
zoo.models.variants                    published sizes; this alone imports no Keras
"""

import importlib
from typing import Any

__all__ = [
    *("captioned_image_classifier", "cnn", "preprocessing", "rnn_language_model", "stable_diffusion", "transformer"),
    "variants",
]


def __getattr__(name: str) -> Any:  # on first use, because `variants` is read without Keras
    if name in __all__:
        return importlib.import_module(f"zoo.models.{name}")
    raise AttributeError(f"module 'zoo.models' has no attribute {name!r}")
