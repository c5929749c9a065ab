"""Functions that build `keras.Model`s: no reading or writing, no training.

zoo.models.cnn                 the 48x48 image classifier
zoo.models.preprocessing       from a raw image to what a classifier takes
zoo.models.rnn_language_model  stacked LSTM, GRU or simple recurrent layers that predict the next token
zoo.models.stable_diffusion    latent diffusion: text encoder, autoencoder, denoiser
zoo.models.transformer         the encoder-decoder of "Attention Is All You Need"
"""

from zoo.models import cnn, preprocessing, rnn_language_model, stable_diffusion, transformer

__all__ = ["cnn", "preprocessing", "rnn_language_model", "stable_diffusion", "transformer"]
