"""Text generation with a recurrent language model, one token at a time, at a cost that does not grow with the text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from zoo.errors import UserError
from zoo.fast_paths.compile import compile_function
from zoo.generation.sampling import check_sampling, filtered_softmax, sample_token
from zoo.generation.torch_rnn import torch_step
from zoo.models.rnn_language_model import decode_step_model, infer_config, recurrent_layers
from zoo.tokenizers.text import encode
from zoo.typing import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt
    import tokenizers


class RecurrentGenerator:
    """Generates with a model. Holds its compiled decoding step; weights that change meanwhile are noticed.

    Args:
        model: a recurrent language model.

    Raises:
        ValueError: if the model is no recurrent language model.
    """

    def __init__(self, model: keras.Model) -> None:
        infer_config(model)
        sizes = [layer.cell.state_size for layer in recurrent_layers(model)]
        self._state_sizes = keras.tree.flatten(sizes)
        self._step = compile_function(torch_step(model) or _keras_step(model), lambda: model.variables, trace=False)

    def init_states(self, batch_size: int = 1) -> list[Tensor]:
        """States before the first token.

        Args:
            batch_size: B, how many texts.

        Returns:
            zeros, a list of tensors (B, h).
        """
        return [keras.ops.zeros((batch_size, size)) for size in self._state_sizes]

    def step(self, tokens: npt.ArrayLike, states: Sequence[Tensor]) -> tuple[np.ndarray, list[Tensor]]:
        """Take the next token of each text.

        Args:
            tokens: ids (B,) int32.
            states: of `init_states` or the last step.

        Returns:
            (logits (B, V) as NumPy float32, the new states).
        """
        logits, *new_states = self._step(keras.ops.convert_to_tensor(tokens, dtype="int32"), *states)
        return keras.ops.convert_to_numpy(logits), new_states

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        seeds: Sequence[int] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        stop_token_ids: Collection[int] = (),
    ) -> Iterator[tuple[int, int]]:
        """Continue prompts side by side; yields each step's tokens as they come.

        Args:
            prompts: lists of token ids, each of at least one.
            max_new_tokens: how many tokens to generate for each.
            seeds: a seed for each prompt, of NumPy's generator, which draws one uniform number a token: with equal
                logits the tokens are the same on every backend and in any batch. None for the most likely token at each
                step (greedy).
            temperature: of the sampling, as in `zoo.generation.sampling.filtered_softmax`.
            top_k: likewise.
            top_p: likewise.
            stop_token_ids: ids that end a continuation; they are not part of it.

        Yields:
            (index of the prompt, id), the ids of one prompt in order.

        Raises:
            UserError: if an argument of the sampling is out of range.
        """
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        check_sampling(**options)
        rngs = [None if seeds is None else np.random.default_rng(seeds[row]) for row in range(len(prompts))]
        states, tokens = self.init_states(len(prompts)), np.array([prompt[0] for prompt in prompts], "int32")
        left = [max_new_tokens] * len(prompts)
        position = 0
        while True:
            logits, states = self.step(tokens, states)
            position += 1
            for row, prompt in enumerate(prompts):
                if position < len(prompt):
                    tokens[row] = prompt[position]
                elif left[row]:
                    tokens[row] = token = sample_token(logits[row], rngs[row], **options)
                    left[row] = 0 if token in stop_token_ids else left[row] - 1
                    if token not in stop_token_ids:
                        yield row, token
            if not any(left):
                return


def _keras_step(model):
    step = decode_step_model(model)
    return lambda *inputs: step(list(inputs), training=False)


def stream_text(tokenizer: tokenizers.Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Decode token ids one after the other.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        ids: iterable of ids.

    Yields:
        each new piece of text as soon as it is complete.
    """
    window, shown = [], ""
    for token in ids:
        window.append(token)
        text = tokenizer.decode(window)
        # A character of several bytes may be spread over several tokens: wait until it is complete.
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
            # What was yielded cannot change any more: keep the last tokens only, so that decoding stays cheap.
            if len(window) > 64:
                window, shown = window[-8:], tokenizer.decode(window[-8:])


def encode_prompt(tokenizer: tokenizers.Tokenizer, prompt: str) -> list[int]:
    """Token ids of a prompt.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        prompt: one text.

    Returns:
        the ids.

    Raises:
        UserError: if the prompt is empty or has characters that are not in the vocabulary.
    """
    if not prompt:
        raise UserError("The prompt is empty: give at least one character to begin with.")
    return encode(tokenizer, prompt)


def top_next_tokens(
    generator: RecurrentGenerator, tokenizer: tokenizers.Tokenizer, prompt: str, *, count: int = 5
) -> list[tuple[str, float]]:
    """The most likely next tokens after a prompt.

    Args:
        generator: a `RecurrentGenerator`.
        tokenizer: a `tokenizers.Tokenizer`.
        prompt: one text.
        count: how many tokens.

    Returns:
        list of (text, probability), the most likely first.

    Raises:
        UserError: if the prompt is empty or has characters that are not in the vocabulary.
    """
    states = generator.init_states()
    for token in encode_prompt(tokenizer, prompt):
        logits, states = generator.step(np.array([token]), states)
    p = filtered_softmax(logits[0])
    order = np.argsort(-p, kind="stable")[:count]
    return [(tokenizer.id_to_token(int(token)) or "", float(p[token])) for token in order]
