"""Batched decoding of an encoder-decoder: greedy, beam search or sampling.

    decoder = Decoder(model, start_id=58_100, end_id=0, suppressed=(58_100,))
    decoder.decode([[34, 812, 0], [97, 0]], beams=5)        # the ids of two translations

The source is read once. Then a loop writes one token a step for all sentences at once, until all have ended: on JAX and
TensorFlow one compiled loop for each shape of its buffers, with no Python between two tokens; on PyTorch the same loop
run as it is, with the layers as plain PyTorch calls (`zoo.generation.torch_transformer`). What was written is remembered in
buffers of P positions, the texts of a sentence side by side; a beam that changes its parent moves no memory, only a row
of the table that says which text sees what. Whenever the buffers are full they grow, and sentences that ended leave.

Letters: B sentences, S source positions, K beams, P positions of the buffers, N heads, H width of a head, V vocabulary.
"""

import functools

import numpy as np
from keras import ops

from zoo.errors import UserError
from zoo.fast_paths.compile import compiled
from zoo.generation import decode_step as search
from zoo.generation import sampling as decoding
from zoo.generation.torch_transformer import TorchTransformer, suits
from zoo.models.transformer import memory_model, numbers_of, step_model

FIRST_POSITIONS = 16  # P of the first loop


class Decoder:
    """Decodes with a model. Holds what is compiled; weights that change meanwhile are noticed.

    Args:
        model: a transformer encoder-decoder.
        start_id: the token that the decoder begins with.
        end_id: the token that ends a text.
        suppressed: tokens that are never written (Marian: the padding).
        renormalize: with suppressed tokens, let the others' probabilities sum to 1 (`renormalize_logits` of
            transformers); else the suppressed ones keep their share.

    Raises:
        ValueError: if the model is no transformer encoder-decoder.
        UserError: if an id is not in the vocabulary, or `end_id` is suppressed.
    """

    def __init__(self, model, *, start_id, end_id, suppressed=(), renormalize=False):
        self.numbers = numbers_of(model)
        size = self.numbers["vocabulary_size"]
        for id_ in (start_id, end_id, *suppressed):
            if not 0 <= id_ < size:
                raise UserError(f"Token {id_} is not in the vocabulary of {size:,} entries.")
        if end_id in suppressed:
            raise UserError(f"Token {end_id} ends a text: it must not be suppressed.")
        self.start_id, self.end_id = start_id, end_id
        self.choice = {"end_id": end_id, "suppressed": tuple(suppressed), "renormalize": renormalize}
        self.steps = 0  # how many steps the last call of `decode` took
        self.plain = suits(model)  # nothing is compiled, so any shape is as good as another
        self._network = TorchTransformer(model) if self.plain else _KerasTransformer(model)
        self._variables = model.variables
        self._read, self._loops = compiled(self._network.read, self._variables, xla=True, traced=False), {}

    def decode(
        self,
        sources,
        *,
        beams=1,
        length_penalty=1.0,
        max_length=512,
        force_end=True,
        seed=None,
        temperature=1.0,
        top_k=None,
        top_p=None,
        batch_size=None,
        with_scores=False,
    ):
        """Write a text for each source.

        Args:
            sources: lists of ids, or an int array (B, S); the model's `pad_id` is no part of a source.
            beams: 1 for the likeliest token each time (greedy), or sampling; more for beam search.
            length_penalty: beam search compares texts by log-probability / tokens^length_penalty; above 0 favours
                longer ones. (Wu et al. 2016, section 7, has ((5 + tokens) / 6)^length_penalty.)
            max_length: most tokens of a text, its start and its end included.
            force_end: write the end as the last of `max_length` tokens.
            seed: draw the tokens instead of taking the likeliest. The random numbers belong to seed, sentence and
                position, so that equal logits give equal texts on every backend and beside any other sentences.
            temperature, top_k, top_p: what is drawn from, as in `zoo.generation.sampling.probabilities`.
            batch_size: sentences decoded at once, similar lengths together; None for all.
            with_scores: return scores too.

        Returns:
            list of lists of ids, without start and end. With scores: that and a float32 array (B,) of log-probability /
            tokens^length_penalty, the end counted, a forced one with log-probability 0.

        Raises:
            UserError: if a source is empty, has ids out of range or is longer than the learned positions, or if an
                option is out of range or does not fit the others.
        """
        self._check_options(beams, max_length, batch_size, seed, temperature=temperature, top_k=top_k, top_p=top_p)
        sources = self._checked(sources)
        options = {"force_end": force_end}
        if beams == 1:
            options |= {"draw": None if seed is None else (top_k, top_p is not None), "scored": with_scores}
        loop = self._loop(search.beam_step if beams > 1 else search.single_step, **options)
        numbers = {
            "last": ops.convert_to_tensor(max_length - 2, "int32"),  # the position whose step writes the last token
            "length_penalty": ops.convert_to_tensor(length_penalty, "float32"),
            "temperature": ops.convert_to_tensor(temperature, "float32"),
            "top_p": ops.convert_to_tensor(top_p or 1.0, "float32"),
        }
        rows, size, self.steps = list(range(len(sources))), batch_size or max(1, len(sources)), 0
        if batch_size:
            rows.sort(key=lambda row: len(sources[row]))
        found = {}
        for batch in (rows[first : first + size] for first in range(0, len(rows), size)):
            draws = np.zeros((len(batch), max_length - 1), np.float32)
            if seed is not None:
                draws[:] = [np.random.default_rng([seed, row]).random(max_length - 1) for row in batch]
            draws = np.minimum(draws, np.float32(1 - 2**-22))  # rounding must not make a 1 of them
            found |= zip(batch, self._batch([sources[row] for row in batch], beams, loop, numbers, draws))
        texts = [found[row][0] for row in range(len(sources))]
        lengths = np.array([min(len(text) + 1, max_length - 1) for text in texts])
        if not with_scores:
            return texts
        scores = np.array([found[row][1] for row in range(len(sources))], np.float32)
        return texts, scores if beams > 1 else scores / lengths**length_penalty

    def _batch(self, sources, beams, loop, numbers, draws):
        """Decode sources together: (ids, score) of each."""
        last, positions, place = int(numbers["last"]), FIRST_POSITIONS, 0
        memory, batch = self._memory(sources), len(sources)
        state = search.begin(
            memory[1],
            (len(memory) - 1) // 2,
            beams=beams,
            positions=positions,
            start_id=self.start_id,
            sentences=batch,
        )
        found, rows = [None] * batch, np.arange(memory[0].shape[0])  # which sentence each row is; from `batch` on, none
        while True:
            drawn = draws[np.minimum(rows, batch - 1)][:, :positions]
            drawn = np.pad(drawn, [(0, 0), (0, positions - drawn.shape[1])])
            state = loop(state, memory, numbers | {"draws": ops.convert_to_tensor(drawn)})
            self.steps, place = self.steps + int(state["place"]) - place, int(state["place"])
            texts, scores = (ops.convert_to_numpy(x) for x in search.best(state))
            for row, text, score in zip(rows, texts, scores):
                if row < batch:
                    found[row] = self._cut(text[: last + 1]), score
            open_ = ops.convert_to_numpy(state["open"])
            if place > last or not open_.any():
                return found
            kept = self._kept(open_)
            if len(kept) < len(rows):
                rows, memory = rows[kept], [ops.take(x, kept, axis=0) for x in memory]
                state = search.select(state, kept)
            positions = positions + FIRST_POSITIONS if self.plain else 2 * positions
            state = search.grow(state, positions)

    def _memory(self, sources):
        """Read sources, filled up to a shape of which there are few where shapes are compiled."""
        batch, length = len(sources), max(map(len, sources))
        if not self.plain:
            batch = 2 ** (batch - 1).bit_length()
            length += -length % 16
            if self.numbers["positions"] == "learned":
                length = min(length, self.numbers["max_length"])
        ids = np.full((batch, length), self.numbers["pad_id"], np.int32)
        ids[len(sources) :, 0] = sources[0][0]  # something to look at
        for row, source in enumerate(sources):
            ids[row, : len(source)] = source
        return self._read(ops.convert_to_tensor(ids))

    def _kept(self, open_):
        """Which rows stay, if some sentences ended: fewer only where that saves more than moving and compiling cost."""
        going, size = np.flatnonzero(open_), len(open_)
        if self.plain:
            return going if len(going) <= 0.75 * size else np.arange(size)
        small = size // 4
        return np.concatenate([going, np.flatnonzero(~open_)])[: small if len(going) <= small else size]

    def _cut(self, text):
        """A list of the ids before the end."""
        ends = np.flatnonzero(text == self.end_id)
        return text[: ends[0] if len(ends) else len(text)].tolist()

    def _loop(self, step, **options):
        """The compiled loop: (state, memory, numbers) -> state, when the buffers are full or all is done."""
        key = (step, *options.values())
        if key not in self._loops:
            advance = functools.partial(step, **self.choice, **options)

            def loop(state, memory, numbers):
                limit = ops.minimum(state["texts"].shape[2], numbers["last"] + 1)

                def going(state):
                    return ops.logical_and(state["place"] < limit, ops.any(state["open"]))

                def body(state):
                    blocks, caches = self._network.step(state, memory)
                    return (advance(state | {"caches": caches}, blocks, numbers),)

                return ops.while_loop(going, body, (state,))[0]

            self._loops[key] = compiled(loop, self._variables, xla=True, traced=False)
        return self._loops[key]

    def _checked(self, sources):
        """Lists of ids without padding."""
        pad, size = self.numbers["pad_id"], self.numbers["source_vocabulary_size"] or self.numbers["vocabulary_size"]
        sources = [[int(id_) for id_ in source if id_ != pad] for source in sources]
        longest = self.numbers["max_length"] if self.numbers["positions"] == "learned" else np.inf
        for number, source in enumerate(sources):
            if not source:
                raise UserError(f"Source {number} is empty: give at least one token.")
            if len(source) > longest:
                raise UserError(f"Source {number} has {len(source)} tokens, and the model has {longest} positions.")
            if not 0 <= min(source) <= max(source) < size:
                raise UserError(f"Source {number} has ids outside the vocabulary of {size:,} entries.")
        return sources

    def _check_options(self, beams, max_length, batch_size, seed, **drawing):
        allowed = self.numbers["vocabulary_size"] - len(self.choice["suppressed"])
        if not 1 <= beams <= allowed:
            raise UserError(f"beams must be from 1 to {allowed:,}, the tokens there are, got {beams}.")
        if max_length < 2:
            raise UserError(f"max_length must be at least 2, the start and the end, got {max_length}.")
        if batch_size is not None and batch_size < 1:
            raise UserError(f"batch_size must be at least 1, got {batch_size}.")
        if self.numbers["positions"] == "learned" and max_length - 1 > self.numbers["max_length"]:
            raise UserError(
                f"max_length must be at most {self.numbers['max_length'] + 1}, because the model has "
                f"{self.numbers['max_length']} positions, got {max_length}."
            )
        if seed is None and drawing != {"temperature": 1.0, "top_k": None, "top_p": None}:
            raise UserError("temperature, top_k and top_p are for drawing at random: give a seed too.")
        if seed is not None and beams > 1:
            raise UserError(f"Beam search does not draw at random: give a seed or {beams} beams, not both.")
        decoding.probabilities(np.zeros(2), **drawing)  # tells what is out of range


class _KerasTransformer:
    """A model's memory and step as what the loop calls; `TorchTransformer` has the same methods."""

    def __init__(self, model):
        self._memory_model, self._step_model = memory_model(model), step_model(model)

    def read(self, source):
        return self._memory_model(source, training=False)

    def step(self, state, memory):
        visible, *memory = memory
        place, seen, caches = state["place"], state["seen"], state["caches"]
        batch, beams = seen.shape[:2]
        places = ops.broadcast_to(place, (batch,))
        seen = ops.reshape(seen, (batch, beams, -1))  # (B, K, P·K)
        past = [ops.reshape(cache, (*cache.shape[:2], -1, cache.shape[4])) for cache in caches]  # (B, N, P·K, H)
        logits, *new = self._step_model([state["token"], places, visible, seen, *memory, *past], training=False)
        caches = [
            ops.slice_update(cache, (0, 0, place, 0, 0), ops.expand_dims(part, 2)) for cache, part in zip(caches, new)
        ]
        return [logits], caches
