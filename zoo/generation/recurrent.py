"""Writing text with a recurrent language model, one token at a time, at a cost that does not grow with the text."""

import functools
import pathlib

import keras
import numpy as np

from zoo.errors import UserError
from zoo.generation import sampling as decoding
from zoo.io import files
from zoo.models.rnn_language_model import numbers_of, step_model
from zoo.tokenizers.text import encode, load_tokenizer


def load_with_tokenizer(path):
    """Load a language model and the tokenizer beside it, `<name>.tokenizer.json`.

    Raises:
        UserError: if a file is missing or unusable, is no recurrent language model, or the two do not belong together.
    """
    path = pathlib.Path(path)
    model = files.load_model(path)
    try:
        size = numbers_of(model)["vocabulary_size"]
    except (ValueError, IndexError, AttributeError, StopIteration) as error:
        raise UserError(
            f"{path} is not a recurrent language model: give one of recipes/rnn_shakespeare.py, e.g. lstm_shakespeare."
        ) from error
    beside = files.tokenizer_path(path)
    card = files.read_card(path) or {}
    if "tokenizer_sha256" in card and beside.is_file() and files.sha256(beside) != card["tokenizer_sha256"]:
        raise UserError(f"{beside} is not the tokenizer that the card of {path.name} describes: fetch it again.")
    return model, load_tokenizer(beside, vocabulary_size=size)


class Writer:
    """Holds a model's compiled step and its states.

    Args:
        model: a recurrent language model.
        batch_size: how many texts are written side by side.
    """

    def __init__(self, model, batch_size=1):
        step = step_model(model)
        self.shapes = [(batch_size, state.shape[1]) for state in step.inputs[1:]]
        self._step = compiled(step)
        self.reset()

    def reset(self):
        """Forget what was read and written."""
        self.states = [keras.ops.zeros(shape) for shape in self.shapes]

    def read(self, tokens):
        """Take the next token of each text, ids (B,) int32; returns the logits (B, V) as NumPy float32."""
        logits, *self.states = self._step(keras.ops.convert_to_tensor(tokens, dtype="int32"), *self.states)
        return keras.ops.convert_to_numpy(logits)


def write(model, tokenizer, prompt, *, length, seed=0, greedy=False, **options):
    """Continue a prompt; yields the text piece by piece as it comes.

    Args:
        model: a recurrent language model.
        tokenizer: the one it was trained with.
        prompt: text to begin with; not yielded.
        length: how many tokens to write.
        seed: seed of the draws: with equal logits the text is the same on every backend.
        greedy: take the likeliest token every time.
        **options: `temperature`, `top_k`, `top_p` of `zoo.generation.sampling.probabilities`.

    Raises:
        UserError: if the prompt is empty or holds characters that the model does not know.
    """
    if length < 1:
        raise UserError(f"The length must be at least 1, got {length}.")
    rng = None if greedy else np.random.default_rng(seed)
    decoding.probabilities(np.zeros(2), **options)  # wrong options are told before any work
    writer = Writer(model)
    logits = _after(writer, tokenizer, prompt)
    written, shown = [], ""
    for _ in range(length):
        token = decoding.next_token(logits[0], rng, **options)
        written.append(token)
        text = tokenizer.decode(written)
        # A character of several bytes may be spread over several pieces: wait until it is whole.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
            # What was yielded cannot change any more: keep the last tokens only, so that decoding stays cheap.
            if len(written) > 64:
                written, shown = written[-8:], tokenizer.decode(written[-8:])
        logits = writer.read(np.array([token]))


def likeliest(model, tokenizer, prompt, *, count=5):
    """The likeliest next tokens after a prompt: list of (text, probability), the likeliest first.

    Raises:
        UserError: if the prompt is empty or holds characters that the model does not know.
    """
    p = decoding.probabilities(_after(Writer(model), tokenizer, prompt)[0])
    order = np.argsort(-p, kind="stable")[:count]
    return [(tokenizer.id_to_token(int(token)), float(p[token])) for token in order]


def _after(writer, tokenizer, prompt):
    """Logits (1, V) after a prompt."""
    if not prompt:
        raise UserError("The prompt is empty: give at least one character to begin with.")
    for token in encode(tokenizer, prompt):
        logits = writer.read(np.array([token]))
    return logits


def compiled(model):
    """A model as a function of tensors, compiled where the backend compiles; gradients are not kept."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        trainable, fixed = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))

        @jax.jit
        def run(trainable, fixed, inputs):
            return model.stateless_call(trainable, fixed, inputs, training=False)[0]

        return lambda *inputs: run(trainable, fixed, list(inputs))
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(lambda *inputs: model(list(inputs), training=False), reduce_retracing=True)
    import torch

    @functools.wraps(model)
    def run(*inputs):
        with torch.no_grad():
            return model(list(inputs), training=False)

    return run
