"""One step of decoding a batch: from the logits of the next tokens to the texts that go on. Greedy, drawn or beams.

Functions on tensors, the same on every backend and inside a compiled loop. What is known of the texts is a dict, the
state of the search:

    place        ()                position of `token`; 0 is the start
    token        (B, K)            the last token of each text, which the next step reads
    seen         (B, K, P, K)      text k of a sentence has position p of what was text j then in its past
    caches       [(B, N, P, K, H)] keys and values of each decoder layer at positions below `place`
    texts        (B, K, P)         tokens written at each step
    scores       (B, K)            their log-probabilities
    open         (B,)              the sentence is not finished
    ended_texts, ended_scores, ended    (B, K, P), (B, K), (B, K): with beams, the best texts that ended; which are any

Letters: B sentences, K texts of each (beams), P positions that the buffers hold, N heads, H width of a head,
V vocabulary, C candidates of each text.
"""

import numpy as np
from keras import ops

OUT = -1e9  # the score of what cannot be chosen


def begin(cache, layers, *, beams, positions, start_id, sentences):
    """The state before the first step.

    Args:
        cache: keys of a cross-attention (B, N, S, H), for their shape and dtype.
        layers: L, of the decoder.
        beams: K.
        positions: P.
        start_id: the first token.
        sentences: how many of the B are real; the others count as finished.
    """
    batch, heads, _, width = cache.shape
    # All beams begin equal: only the first may be continued.
    scores = ops.convert_to_tensor(np.tile([0.0] + [OUT] * (beams - 1), (batch, 1)), "float32")
    state = {
        "place": ops.convert_to_tensor(0, "int32"),
        "token": ops.full((batch, beams), start_id, "int32"),
        "seen": ops.zeros((batch, beams, positions, beams), "bool"),
        "caches": [ops.zeros((batch, heads, positions, beams, width), cache.dtype) for _ in range(2 * layers)],
        "texts": ops.zeros((batch, beams, positions), "int32"),
        "scores": scores,
        "open": ops.convert_to_tensor(np.arange(batch) < sentences),
    }
    if beams > 1:
        state |= {
            "ended_texts": ops.zeros((batch, beams, positions), "int32"),
            "ended_scores": ops.full((batch, beams), OUT, "float32"),
            "ended": ops.zeros((batch, beams), "bool"),
        }
    return state


def beam_step(state, blocks, numbers, *, end_id, suppressed=(), renormalize=False, force_end=True):
    """Beam search as in `generate` of transformers 5 with `early_stopping=False`.

    Of all continuations of a sentence's K texts the 2K likeliest are looked at. Those among the first K that ended are
    compared by log-probability / tokens^length_penalty with the K best that ended before; the K likeliest that did not
    end go on. A sentence is finished once K texts ended and the likeliest open one, as long as it is now, would not
    beat the worst of them.

    Args:
        state: see above, with the caches of this step.
        blocks: logits for the next token, a sequence of (B, K, some) that make up V.
        numbers: {"last": the position whose step writes the last token, "length_penalty": …}, scalars.
        end_id: the token that ends a text.
        suppressed: tokens that are never written.
        renormalize: the others' probabilities sum to 1; else the suppressed ones keep their share.
        force_end: write `end_id` at the last position.

    Returns:
        The state of the next step.
    """
    place, beams = state["place"], state["token"].shape[1]
    length = ops.power(ops.cast(place + 1, "float32"), numbers["length_penalty"])
    scores, tokens, _ = _candidates(blocks, 2 * beams, suppressed, "allowed" if renormalize else "all")  # (B, K, C)
    if force_end:
        scores, tokens = _forced(scores, tokens, place >= numbers["last"], end_id)
    scores = scores + ops.expand_dims(state["scores"], 2)
    count = scores.shape[2]
    scores, index = ops.top_k(ops.reshape(scores, (-1, beams * count)), 2 * beams)  # (B, 2K)
    parents = index // count
    tokens = ops.take_along_axis(ops.reshape(tokens, (-1, beams * count)), index, axis=1)
    ended = ops.logical_or(tokens == end_id, place >= numbers["last"])

    # Those that ended, among the first K: they join the K best that ended before.
    allowed = ops.logical_and(ended, ops.expand_dims(state["open"], 1))[:, :beams]
    texts = _written(_picked(state["texts"], parents[:, :beams]), tokens[:, :beams], place)
    joined = [state["ended_scores"], ops.where(allowed, scores[:, :beams] / length, OUT)]
    ended_scores, best = ops.top_k(ops.concatenate(joined, axis=1), beams)
    ended_texts = _picked(ops.concatenate([state["ended_texts"], texts], axis=1), best)
    all_ended = _picked(ops.concatenate([state["ended"], allowed], axis=1), best)

    # The K likeliest that go on.
    scores, going = ops.top_k(ops.where(ended, OUT, scores), beams)
    parents, tokens = _picked(parents, going), _picked(tokens, going)
    worst = ops.where(all_ended, ops.min(ended_scores, axis=1, keepdims=True), OUT)
    hopeful = ops.any(scores[:, :1] / length > worst, axis=1)
    return state | {
        "place": place + 1,
        "token": tokens,
        "seen": _picked(_marked(state["seen"], place), parents),
        "texts": _written(_picked(state["texts"], parents), tokens, place),
        "scores": scores,
        "open": ops.logical_and(state["open"], hopeful),
        "ended_texts": ended_texts,
        "ended_scores": ended_scores,
        "ended": all_ended,
    }


def single_step(
    state, blocks, numbers, *, end_id, suppressed=(), renormalize=False, force_end=True, draw=None, scored=False
):
    """The likeliest token of each text, or one that is drawn.

    Args:
        state, blocks, end_id, suppressed, renormalize, force_end: as in `beam_step`, with K = 1.
        numbers: {"last": …}; to draw also "draws" (B, P), numbers in [0, 1), "temperature" and "top_p".
        draw: (top_k or None, whether top_p is used) to draw; None for the likeliest token.
        scored: keep the scores too, which costs a pass over all logits.

    Returns:
        The state of the next step.
    """
    place, open_ = state["place"], ops.expand_dims(state["open"], 1)  # (), (B, 1)
    among = ("allowed" if renormalize else "all") if scored else None
    if draw:
        logits = ops.cast(ops.concatenate(list(blocks), axis=-1), "float32")  # (B, 1, V)
        token = _drawn(logits[:, 0], ops.take(numbers["draws"], place, axis=1), numbers, suppressed, *draw)  # (B, 1)
        score = ops.take_along_axis(logits[:, 0], token, axis=1)
        if scored:
            score = score - _candidates([logits], 1, suppressed, among)[2][:, 0]
    else:
        scores, tokens, _ = _candidates(blocks, 1, suppressed, among)  # (B, 1, C) twice
        score, best = ops.top_k(scores[:, 0], 1)
        token = ops.take_along_axis(tokens[:, 0], best, axis=1)
    if force_end:
        last = place >= numbers["last"]
        token, score = ops.where(last, end_id, token), ops.where(last, 0.0, score)
    token = ops.cast(ops.where(open_, token, end_id), "int32")
    return state | {
        "place": place + 1,
        "token": token,
        "seen": _marked(state["seen"], place),
        "texts": _written(state["texts"], token, place),
        "scores": ops.where(open_, state["scores"] + score, state["scores"]),
        "open": ops.logical_and(state["open"], token[:, 0] != end_id),
    }


def best(state):
    """The best text of each sentence and its score: (B, P), (B,)."""
    kind = "ended_" if "ended" in state else ""
    return state[f"{kind}texts"][:, 0], state[f"{kind}scores"][:, 0]


def select(state, rows):
    """The state of some of the sentences."""
    return _mapped(lambda x: ops.take(x, rows, axis=0) if len(x.shape) else x, state)


def grow(state, positions):
    """The state with buffers of more positions: axis 2 wherever there is one."""

    def grown(x):
        if len(x.shape) < 3:
            return x
        more = positions - x.shape[2]
        return ops.pad(x, [(0, more if axis == 2 else 0) for axis in range(len(x.shape))])

    return _mapped(grown, state)


def _mapped(function, state):
    return {key: [function(part) for part in x] if key == "caches" else function(x) for key, x in state.items()}


def _candidates(blocks, count, suppressed, among):
    """At least the `count` likeliest tokens of each text, and their scores.

    The vocabulary may come in blocks, so that each is used while it is in the processor's cache; nothing is made that
    is as large as all logits.

    Args:
        blocks, suppressed: as in `beam_step`.
        count: how many.
        among: scores are log-probabilities among "all" tokens or the "allowed" ones; None for the logits themselves.

    Returns:
        (scores (B, K, C), that of a suppressed token -inf; tokens (B, K, C); what was subtracted (B, K, 1) or 0).
    """
    count, first, scores, tokens, totals, hidden = count + len(suppressed), 0, [], [], [], []
    for logits in blocks:
        logits, size = ops.cast(logits, "float32"), logits.shape[-1]
        score, token = ops.top_k(logits, min(count, size))
        scores.append(score)
        tokens.append(ops.cast(token, "int32") + first)
        if among:
            totals.append(ops.logsumexp(logits, axis=-1, keepdims=True))
        if among == "allowed":
            hidden += [logits[..., id_ - first : id_ - first + 1] for id_ in suppressed if first <= id_ < first + size]
        first += size
    scores, tokens, total = ops.concatenate(scores, axis=-1), ops.concatenate(tokens, axis=-1), 0.0
    if among:
        total = ops.logsumexp(ops.concatenate(totals, axis=-1), axis=-1, keepdims=True)
    if hidden:
        share = ops.sum(ops.exp(ops.concatenate(hidden, axis=-1) - total), axis=-1, keepdims=True)
        total = total + ops.log1p(-share)
    scores = scores - total
    for id_ in suppressed:
        scores = ops.where(tokens == id_, -np.inf, scores)
    return scores, tokens, total


def _forced(scores, tokens, last, end_id):
    """At the last position the only candidate of each text is the end, with log-probability 0."""
    only = np.where(np.arange(scores.shape[2]) == 0, 0.0, -np.inf).astype("float32")
    return ops.where(last, only, scores), ops.where(last, end_id, tokens)


def _drawn(logits, draws, numbers, suppressed, top_k, top_p):
    """Tokens (B, 1) of logits (B, V) and draws (B,): inversion of `zoo.generation.sampling.probabilities`."""
    scaled = logits / numbers["temperature"]
    if suppressed:
        scaled = ops.where(np.isin(np.arange(scaled.shape[1]), suppressed), -np.inf, scaled)
    kept = scaled > -np.inf
    if top_k or top_p:
        ordered, _ = ops.top_k(scaled, min(top_k or scaled.shape[1], scaled.shape[1]))  # (B, k), the likeliest first
        lowest = ordered[:, -1:]
        if top_p:
            p = ops.exp(ordered - ops.logsumexp(scaled, axis=1, keepdims=True))
            before = ops.cumsum(p, axis=1) - p  # the last kept is the first at which the sum reaches top_p
            lowest = ops.min(ops.where(before < numbers["top_p"], ordered, np.inf), axis=1, keepdims=True)
        kept = ops.logical_and(kept, scaled >= lowest)
    p = ops.where(kept, ops.exp(scaled - ops.max(scaled, axis=1, keepdims=True)), 0.0)
    cumulative = ops.cumsum(p, axis=1)
    beyond = cumulative > ops.expand_dims(draws, 1) * cumulative[:, -1:]
    # The first such token; among the kept ones, because sums over many zeros may differ in their last bit.
    return ops.argmax(ops.cast(ops.logical_and(beyond, kept), "int32"), axis=1, keepdims=True)


def _picked(x, index):
    """x[b, index[b, j]]: x (B, K, …), index (B, J) -> (B, J, …)."""
    return ops.take_along_axis(x, ops.reshape(index, (*index.shape, *[1] * (len(x.shape) - 2))), axis=1)


def _written(texts, tokens, place):
    """The texts (B, K, P) with the tokens (B, K) at `place`."""
    return ops.slice_update(texts, (0, 0, place), ops.expand_dims(tokens, 2))


def _marked(seen, place):
    """The table `seen` (B, K, P, K) where each text sees its own token at `place`."""
    batch, beams = seen.shape[:2]
    own = ops.broadcast_to(ops.reshape(ops.eye(beams, dtype="bool"), (1, beams, 1, beams)), (batch, beams, 1, beams))
    return ops.slice_update(seen, (0, 0, place, 0), own)
