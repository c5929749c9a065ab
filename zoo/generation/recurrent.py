"""Text generation with a recurrent language model, one token at a time, at a cost that does not grow with the text.

A step of one text takes a tenth of a millisecond or two, less than a call of a compiled function and a look at its
result. On TensorFlow and JAX one call therefore makes `_NUM_STEPS` steps, and samples between them in float32, of
random numbers that NumPy has drawn. Its logits come back too, and NumPy samples from them again, in float64: should a
token differ, as a random number may fall between two roundings, the call is made once more with NumPy's. So the text is
what sampling step by step gives, on each backend. That is what is done on PyTorch, where nothing is compiled, and with
models that are quantised or do not compute in float32, in which a compiler may leave out roundings between two steps.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from zoo.errors import UserError
from zoo.fast_paths.compile import compile_function
from zoo.generation.decode_step import sample_on_device
from zoo.generation.sampling import check_sampling, filtered_softmax, sample_tokens
from zoo.generation.torch_rnn import torch_step
from zoo.generation.torch_transformer import computes_in_float32
from zoo.models.rnn_language_model import decode_step_model, infer_config, recurrent_layers
from zoo.tokenizers.text import encode
from zoo.typing import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt
    import tokenizers


_NUM_STEPS = 32
_MAX_LOGITS = 2**17  # of one step, where several make one call


class RecurrentGenerator:
    """Generates with a model. Holds its compiled decoding step; weights that change meanwhile are noticed.

    Args:
        model: a recurrent language model.

    Raises:
        ValueError: if the model is no recurrent language model.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model, self._vocabulary_size = model, infer_config(model)["vocabulary_size"]
        sizes = [layer.cell.state_size for layer in recurrent_layers(model)]
        self._state_sizes = keras.tree.flatten(sizes)
        self._read_step: Any = torch_step(model)
        self._decode = (lambda *inputs: self._read_step()(*inputs)) if self._read_step else _keras_step(model)
        self._variables = lambda: model.variables
        self._step = compile_function(self._decode, self._variables, trace=False)
        self._loops: dict[Any, Any] = {}

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
        rngs = [] if seeds is None else [np.random.default_rng(seeds[row]) for row in range(len(prompts))]
        left, position, states = [max_new_tokens] * len(prompts), 0, self.init_states(len(prompts))
        num_steps = _NUM_STEPS if len(prompts) * self._vocabulary_size <= _MAX_LOGITS else 1
        if self._read_step:
            generate = self._generate_on_torch
        elif num_steps > 1 and keras.backend.backend() != "torch" and computes_in_float32(self._model):
            generate = self._generate_compiled
        else:
            generate, num_steps = self._generate_stepwise, 1
        tokens = np.zeros((0, len(prompts)), "int32")
        while any(left):
            inputs = np.full((num_steps, len(prompts)), -1, "int32")  # -1: the token sampled at the step before
            if position:
                inputs[0] = tokens[-1]
            for row, prompt in enumerate(prompts):
                given = prompt[position : position + num_steps]
                inputs[: len(given), row] = given
            # The first step of each row whose logits give a new token.
            first = [max(0, len(prompt) - 1 - position) for prompt in prompts]
            uniforms: Any = None if seeds is None else np.zeros(inputs.shape)
            for row, rng in enumerate(rngs):
                uniforms[first[row] :, row] = rng.random(max(0, num_steps - first[row]))
            count = min(num_steps, max(start + number for start, number in zip(first, left) if number))
            tokens, states = generate(inputs, uniforms, count, states, options)
            for step, row_tokens in enumerate(tokens.tolist()):
                for row, token in enumerate(row_tokens):
                    if step >= first[row] and left[row]:
                        left[row] = 0 if token in stop_token_ids else left[row] - 1
                        if token not in stop_token_ids:
                            yield row, token
            position += count

    def _generate_stepwise(self, inputs, uniforms, count, states, options, step=None):
        """Make some steps one by one: (the token that each of them samples (count, B), the new states)."""
        tokens, step = np.zeros((count, inputs.shape[1]), "int32"), step or self.step
        for index in range(count):
            token = np.where(inputs[index] < 0, tokens[index - 1], inputs[index])
            logits, states = step(token, states)
            tokens[index] = sample_tokens(logits, None if uniforms is None else uniforms[index], **options)
        return tokens, states

    def _generate_on_torch(self, inputs, uniforms, count, states, options):
        """The same; the weights are read once."""
        import torch

        decode = self._read_step()

        def step(token, states):
            logits, *states = decode(torch.from_numpy(token).to(states[0].device), *states)
            return logits.cpu().numpy(), states

        with torch.inference_mode():
            return self._generate_stepwise(inputs, uniforms, count, states, options, step)

    def _generate_compiled(self, inputs, uniforms, count, states, options):
        """The same in one call."""
        uses_top_p = options["top_p"] is not None
        loop = self._loop(uniforms is not None, options["top_k"], uses_top_p)
        params = {"temperature": options["temperature"], "top_p": options["top_p"] or 1.0}
        params = {name: ops.convert_to_tensor(value, "float32") for name, value in params.items()}
        params["uniforms"] = ops.convert_to_tensor(np.zeros(inputs.shape) if uniforms is None else uniforms, "float32")
        while True:
            device_inputs = [ops.convert_to_tensor(array, "int32") for array in (inputs, count)]
            device_tokens, logits, *new_states = loop(*device_inputs, params, *states)
            logits = ops.convert_to_numpy(logits)[:count]
            tokens = sample_tokens(logits, None if uniforms is None else uniforms[:count], **options)
            differs = tokens != ops.convert_to_numpy(device_tokens)[:count]
            steps = np.flatnonzero((differs[:-1] & (inputs[1:count] < 0)).any(axis=1))
            if not len(steps):
                return tokens, new_states
            known = inputs[1 : steps[0] + 2]  # up to there the logits are right
            known[:] = np.where(known < 0, tokens[: len(known)], known)

    def _loop(self, *sampling):
        """The compiled steps: (inputs (N, B), how many of them, params, states...) -> [tokens, logits, states...]."""
        if sampling not in self._loops:
            self._loops[sampling] = compile_function(
                functools.partial(_decode_loop, self._decode, self._vocabulary_size, sampling),
                self._variables,
                jit_compile=True,
            )
        return self._loops[sampling]


def _decode_loop(decode, vocabulary_size, sampling, inputs, count, params, *states):
    """Several steps of `decode` as tensors, each of which takes the token that the one before has sampled."""
    do_sample, top_k, use_top_p = sampling

    def body(step, token, tokens, all_logits, *states):
        given = ops.take(inputs, step, axis=0)  # (B,)
        logits, *new_states = decode(ops.where(given < 0, token, given), *states)
        logits = ops.cast(logits, "float32")  # (B, V)
        if do_sample:
            token = sample_on_device(logits, ops.take(params["uniforms"], step, axis=0), params, top_k, use_top_p)[:, 0]
        else:
            token = ops.argmax(logits, axis=1)
        token = ops.cast(token, "int32")
        tokens = ops.slice_update(tokens, (step, 0), token[None])
        all_logits = ops.slice_update(all_logits, (step, 0, 0), logits[None])
        new_states = [ops.cast(new, old.dtype) for new, old in zip(new_states, states)]
        return (step + 1, token, tokens, all_logits, *new_states)

    zeros = ops.zeros_like(inputs)
    logits = ops.zeros((*inputs.shape, vocabulary_size), "float32")
    step = ops.convert_to_tensor(0, "int32")
    results = ops.while_loop(lambda step, *_: step < count, body, (step, zeros[0], zeros, logits, *states))
    return list(results[2:])


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
