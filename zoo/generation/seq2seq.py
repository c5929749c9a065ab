"""Batched generation with an encoder-decoder: greedy, beam search or sampling.

    generator = Seq2SeqGenerator(model, start_id=58_100, end_id=0, suppress_tokens=(58_100,))
    generator.generate([[34, 812, 0], [97, 0]], num_beams=5)        # the token ids of two translations

The source is encoded once. Then a loop generates one token a step for all sentences at once, until all are finished: on
JAX and TensorFlow one compiled loop for each shape of its buffers, with no Python between two tokens; on PyTorch the
same loop run eagerly, with the layers as plain PyTorch calls (`zoo.generation.torch_transformer`). Keys, values and
tokens are kept in buffers of P positions, the hypotheses of a sentence side by side; a beam that changes its parent
moves no cache, only a row of the self-attention mask. Whenever the buffers are full they grow, and finished sentences
leave the batch.

Letters: B sentences, S source positions, K beams, P positions of the buffers, N heads, H width of a head, V vocabulary.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import numpy as np
from keras import ops

from zoo.errors import UserError
from zoo.fast_paths.compile import compile_function
from zoo.generation.beam_search import beam_search_step
from zoo.generation.decode_step import best_hypothesis, init_state, pad_positions, sample_step, select_sentences
from zoo.generation.sampling import check_sampling
from zoo.generation.torch_transformer import TorchTransformer, supports
from zoo.models.transformer import cross_attention_cache_model, decode_step_model, infer_config

if TYPE_CHECKING:
    import keras

_INITIAL_POSITIONS = 16  # P of the first loop


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of `Seq2SeqGenerator.generate`, but for `with_scores`."""

    num_beams: int
    length_penalty: float
    max_length: int | Sequence[int]
    force_end: bool
    do_sample: bool
    seed: int | list[int] | None
    temperature: float
    top_k: int | None
    top_p: float | None
    batch_size: int | None


class Seq2SeqGenerator:
    """Generates with a model. Holds what is compiled; weights that change meanwhile are noticed.

    Args:
        model: a transformer encoder-decoder.
        start_id: the first token of the decoder.
        end_id: the token that ends a hypothesis.
        suppress_tokens: tokens that are never generated (Marian: the padding).
        renormalize_logits: with suppressed tokens, let the others' probabilities sum to 1 (as the argument of that
            name in transformers); else the suppressed ones keep their share.

    Raises:
        ValueError: if the model is no transformer encoder-decoder.
        UserError: if an id is not in the vocabulary, or `end_id` is suppressed.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        start_id: int,
        end_id: int,
        suppress_tokens: Iterable[int] = (),
        renormalize_logits: bool = False,
    ) -> None:
        self.config = infer_config(model)
        size = self.config["vocabulary_size"]
        for id_ in (start_id, end_id, *suppress_tokens):
            if not 0 <= id_ < size:
                raise UserError(f"Token {id_} is not in the vocabulary of {size:,} entries.")
        if end_id in suppress_tokens:
            raise UserError(f"Token {end_id} ends a hypothesis: it must not be suppressed.")
        self.start_id, self.end_id = start_id, end_id
        self._token_rules: dict[str, Any] = {
            "end_id": end_id,
            "suppress_tokens": tuple(suppress_tokens),
            "renormalize_logits": renormalize_logits,
        }
        self.num_steps = 0  # of the last call of `generate`
        self._eager = supports(model)  # nothing is compiled, so any shape is as good as another
        self._network = TorchTransformer(model) if self._eager else _KerasTransformer(model)
        self._variables, self._loops = lambda: model.variables, {}
        self._encode = compile_function(self._network.encode, self._variables, jit_compile=True, trace=False)

    @overload
    def generate(
        self,
        sources: Sequence[Sequence[int]] | np.ndarray,
        *,
        with_scores: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> list[list[int]]: ...
    @overload
    def generate(
        self,
        sources: Sequence[Sequence[int]] | np.ndarray,
        *,
        with_scores: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> tuple[list[list[int]], np.ndarray]: ...
    def generate(
        self,
        sources: Sequence[Sequence[int]] | np.ndarray,
        *,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        max_length: int | Sequence[int] = 512,
        force_end: bool = True,
        do_sample: bool = False,
        seed: int | list[int] | None = 0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        batch_size: int | None = None,
        with_scores: bool = False,
    ) -> list[list[int]] | tuple[list[list[int]], np.ndarray]:
        """Generate a target for each source.

        Args:
            sources: lists of token ids, or an int array (B, S); the model's `pad_id` is no part of a source.
            num_beams: 1 for the most likely token at each step (greedy), or sampling; more for beam search.
            length_penalty: beam search compares hypotheses by log-probability / tokens^length_penalty; above 0 favours
                longer ones. (Wu et al. 2016, section 7, has ((5 + tokens) / 6)^length_penalty.)
            max_length: most tokens of a target, its start and its end included; an int, or one for each source.
            force_end: generate the end as the last of `max_length` tokens.
            do_sample: sample the tokens instead of taking the most likely.
            seed: of the sampling; source i uses seed + i, so that equal logits give equal targets on every backend and
                in any batch. A list gives each source its own; None is fresh randomness.
            temperature: of the sampling, as in `zoo.generation.sampling.filtered_softmax`.
            top_k: likewise.
            top_p: likewise.
            batch_size: sentences decoded at once, similar lengths together; None for all.
            with_scores: return scores too.

        Returns:
            list of lists of ids, without start and end. With scores: that and a float32 array (B,) of log-probability /
            tokens^length_penalty, the end counted, a forced one with log-probability 0.

        Raises:
            UserError: if a source is empty, has ids out of range or is longer than the learned positions, or if an
                option is out of range or does not fit the others.
        """
        sources = self._check_sources(sources)
        lengths = np.broadcast_to(np.asarray(max_length, np.int32), len(sources))  # (B,)
        sampling_options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        self._check_options(num_beams, lengths, batch_size, do_sample, sampling_options)
        options: dict[str, Any] = {"force_end": force_end}
        if num_beams == 1:
            options |= {"sampling": (top_k, top_p is not None) if do_sample else None, "with_scores": with_scores}
        loop = self._loop(beam_search_step if num_beams > 1 else sample_step, **options)
        params = {
            "length_penalty": ops.convert_to_tensor(length_penalty, "float32"),
            "temperature": ops.convert_to_tensor(temperature, "float32"),
            "top_p": ops.convert_to_tensor(top_p or 1.0, "float32"),
        }
        rows, size, self.num_steps = list(range(len(sources))), batch_size or max(1, len(sources)), 0
        if batch_size:
            rows.sort(key=lambda row: len(sources[row]))
        seed, results = secrets.randbits(32) if seed is None else seed, {}
        seeds = seed if isinstance(seed, list) else range(seed, seed + len(sources))
        for batch in (rows[first : first + size] for first in range(0, len(rows), size)):
            uniforms = np.zeros((len(batch), lengths[batch].max() - 1), np.float32)
            if do_sample:
                uniforms[:] = [np.random.default_rng(seeds[row]).random(uniforms.shape[1]) for row in batch]
            uniforms = np.minimum(uniforms, np.float32(1 - 2**-22))  # rounding must not give 1
            inputs = [sources[row] for row in batch]
            results |= zip(batch, self._generate_batch(inputs, num_beams, loop, params, lengths[batch], uniforms))
        targets = [results[row][0] for row in range(len(sources))]
        if not with_scores:
            return targets
        scores = np.array([results[row][1] for row in range(len(sources))], np.float32)
        num_tokens = np.minimum([len(target) + 1 for target in targets], lengths - 1)
        return targets, scores if num_beams > 1 else scores / num_tokens**length_penalty

    def _generate_batch(self, sources, num_beams, loop, params, lengths, uniforms):
        """Decode sources together: (ids, score) of each."""
        last_positions, num_positions, position = lengths - 2, _INITIAL_POSITIONS, 0
        context, batch = self._context(sources), len(sources)  # context: padding mask, cross-attention keys and values
        state = init_state(
            context[1],
            (len(context) - 1) // 2,
            num_beams=num_beams,
            num_positions=num_positions,
            start_id=self.start_id,
            num_sentences=batch,
        )
        # `rows`: which sentence each row of the state is; from `batch` on, none.
        results, rows = [None] * batch, np.arange(context[0].shape[0])
        while True:
            sentence = np.minimum(rows, batch - 1)
            some = uniforms[sentence][:, :num_positions]
            some = np.pad(some, [(0, 0), (0, num_positions - some.shape[1])])
            tensors = {"last_position": last_positions[sentence].astype("int32"), "uniforms": some}
            params |= {name: ops.convert_to_tensor(array) for name, array in tensors.items()}
            state = loop(state, context, params)
            self.num_steps, position = self.num_steps + int(state["position"]) - position, int(state["position"])
            sequences, scores = best_hypothesis(state)
            for row, sequence, score in zip(rows, sequences, scores):
                if row < batch:
                    results[row] = self._until_end(sequence[: last_positions[row] + 1]), score
            unfinished = ops.convert_to_numpy(state["unfinished"])
            if not unfinished.any():
                return results
            kept = self._kept(unfinished)
            if len(kept) < len(rows):
                rows, context = rows[kept], [ops.take(x, kept, axis=0) for x in context]
                state = select_sentences(state, kept)
            num_positions = num_positions + _INITIAL_POSITIONS if self._eager else 2 * num_positions
            state = pad_positions(state, num_positions)

    def _context(self, sources):
        """Encode sources, padded to a shape of which there are few where shapes are compiled."""
        batch, length = len(sources), max(map(len, sources))
        if not self._eager:
            batch = 2 ** (batch - 1).bit_length()
            length += -length % 16
            if self.config["positions"] == "learned":
                length = min(length, self.config["max_length"])
        ids = np.full((batch, length), self.config["pad_id"], np.int32)
        ids[len(sources) :, 0] = sources[0][0]  # a row must not be all padding
        for row, source in enumerate(sources):
            ids[row, : len(source)] = source
        return self._encode(ops.convert_to_tensor(ids))

    def _kept(self, unfinished):
        """Rows that stay when some sentences are finished: fewer only where that saves more than it costs."""
        going, size = np.flatnonzero(unfinished), len(unfinished)
        if self._eager:
            return going if len(going) <= 0.75 * size else np.arange(size)
        small = size // 4
        return np.concatenate([going, np.flatnonzero(~unfinished)])[: small if len(going) <= small else size]

    def _until_end(self, sequence):
        """A list of the ids before the end."""
        ends = np.flatnonzero(sequence == self.end_id)
        return sequence[: ends[0] if len(ends) else len(sequence)].tolist()

    def _loop(self, step, **options):
        """The compiled loop: (state, context, params) -> state, when the buffers are full or all is finished."""
        key = (step, *options.values())
        if key not in self._loops:
            choose = functools.partial(step, **self._token_rules, **options)

            def loop(state, context, params):
                def condition(state):
                    return ops.logical_and(
                        state["position"] < state["sequences"].shape[2], ops.any(state["unfinished"])
                    )

                def body(state):
                    logits_blocks, caches = self._network.step(state, context)
                    return (choose(state | {"caches": caches}, logits_blocks, params),)

                return ops.while_loop(condition, body, (state,))[0]

            self._loops[key] = compile_function(loop, self._variables, jit_compile=True, trace=False)
        return self._loops[key]

    def _check_sources(self, sources):
        """Lists of ids without padding."""
        pad, size = self.config["pad_id"], self.config["source_vocabulary_size"] or self.config["vocabulary_size"]
        sources = [[int(id_) for id_ in source if id_ != pad] for source in sources]
        longest = self.config["max_length"] if self.config["positions"] == "learned" else np.inf
        for number, source in enumerate(sources):
            if not source:
                raise UserError(f"Source {number} is empty: give at least one token.")
            if len(source) > longest:
                raise UserError(f"Source {number} has {len(source)} tokens, and the model has {longest} positions.")
            if not 0 <= min(source) <= max(source) < size:
                raise UserError(f"Source {number} has ids outside the vocabulary of {size:,} entries.")
        return sources

    def _check_options(self, num_beams, lengths, batch_size, do_sample, sampling_options):
        allowed = self.config["vocabulary_size"] - len(self._token_rules["suppress_tokens"])
        if not 1 <= num_beams <= allowed:
            raise UserError(f"num_beams must be from 1 to {allowed:,}, the tokens there are, got {num_beams}.")
        if min(lengths, default=2) < 2:
            raise UserError(f"max_length must be at least 2, the start and the end, got {min(lengths)}.")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}.")
        if self.config["positions"] == "learned" and max(lengths, default=2) - 1 > self.config["max_length"]:
            raise UserError(
                f"max_length must be at most {self.config['max_length'] + 1}, because the model has "
                f"{self.config['max_length']} positions, got {max(lengths)}."
            )
        if not do_sample and sampling_options != {"temperature": 1.0, "top_k": None, "top_p": None}:
            raise UserError("temperature, top_k and top_p are for sampling: give do_sample=True too.")
        if do_sample and num_beams > 1:
            raise UserError(f"Beam search does not sample: ask for sampling or {num_beams} beams, not both.")
        check_sampling(**sampling_options)


class _KerasTransformer:
    """A model's encoder and decoding step as the loop calls them; `TorchTransformer` has the same methods."""

    def __init__(self, model):
        self._cache_model, self._step_model = cross_attention_cache_model(model), decode_step_model(model)

    def encode(self, source):
        return self._cache_model(source, training=False)

    def step(self, state, context):
        padding_mask, *cross_caches = context
        position, mask, caches = state["position"], state["self_attention_mask"], state["caches"]
        batch, beams = mask.shape[:2]
        positions = ops.broadcast_to(position, (batch,))
        mask = ops.reshape(mask, (batch, beams, -1))  # (B, K, P·K)
        flat = [ops.reshape(cache, (*cache.shape[:2], -1, cache.shape[4])) for cache in caches]  # (B, N, P·K, H)
        inputs = [state["token"], positions, padding_mask, mask, *cross_caches, *flat]
        logits, *new = self._step_model(inputs, training=False)
        caches = [
            ops.slice_update(cache, (0, 0, position, 0, 0), ops.expand_dims(part, 2))
            for cache, part in zip(caches, new)
        ]
        return [logits], caches
