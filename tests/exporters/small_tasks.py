"""Small tasks with random weights, one of each kind whose shapes differ, for the tests of exports."""

import keras
import numpy as np
from keras import layers

import zoo
from zoo.models.rnn_language_model import rnn_language_model
from zoo.models.transformer import transformer
from zoo.tokenizers.shared_bpe import SharedBPETokenizer
from zoo.tokenizers.text import train_tokenizer


def randomize(model):
    rng = np.random.default_rng(0)
    for weight in model.weights:
        if "seed_generator" not in weight.path:
            weight.assign(rng.uniform(-0.3, 0.3, weight.shape))
    return model


def classifier():
    """Of images of any size, which are resized with antialias; half of its weights are convolutions."""
    x = keras.Input((None, None, 3), name="image")
    y = layers.Resizing(8, 8, antialias=True, data_format="channels_last")(x)
    y = layers.Rescaling(1 / 255)(y)
    y = layers.Conv2D(8, 3, padding="same", activation="relu", data_format="channels_last", name="conv")(y)
    y = layers.MaxPooling2D(4, data_format="channels_last")(y)
    y = layers.Dense(4, name="logits")(layers.Flatten(data_format="channels_last")(y))
    return zoo.ImageClassifier(randomize(keras.Model(x, y, name="shapes")), card={"name": "shapes"})


def language_model(cell="lstm", units=32, tie_embeddings=True):
    model = rnn_language_model(
        cell=cell, vocabulary_size=5, embedding_dim=32, units=units, dropout=0.2, tie_embeddings=tie_embeddings
    )
    return zoo.CausalLM(randomize(model), train_tokenizer("abcde", "char"), card={"name": "letters"})


def translator():
    tokenizer = SharedBPETokenizer.train(["ein Hund", "a dog", "eine Katze"], vocabulary_size=280)
    sizes = {"num_layers": 1, "hidden_dim": 32, "intermediate_dim": 32, "num_heads": 2, "pre_norm": True}
    model = transformer(vocabulary_size=tokenizer.vocabulary_size, pad_id=tokenizer.pad_id, name="small", **sizes)
    return zoo.Translator(randomize(model), tokenizer, card={"name": "small"})
