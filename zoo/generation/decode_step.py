"""One decoding step of a batch with one hypothesis a sentence, greedy or sampled, and the state that all steps share.

Functions on tensors, the same on every backend and inside a compiled loop. The state is a dict:

    position             ()                position of `token`; 0 is the start
    token                (B, K)            the last token of each hypothesis, input of the next step
    self_attention_mask  (B, K, P, K)      [b, k, p, j]: hypothesis k attends to the cached position p of hypothesis j
    caches               [(B, N, P, K, H)] keys and values of each decoder layer at positions below `position`
    sequences            (B, K, P)         tokens generated at each step
    scores               (B, K)            their log-probabilities
    unfinished           (B,)              the sentence is not finished
    finished_sequences, finished_scores, finished    (B, K, P), (B, K), (B, K): beam search only, see
                                           `zoo.generation.beam_search`

Letters: B sentences, K hypotheses of each (beams), P positions that the buffers hold, N heads, H width of a head,
V vocabulary, C candidates of each hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from zoo.typing import Tensor

if TYPE_CHECKING:
    import numpy.typing as npt

NEG_INF = -1e9  # the score of what must not be chosen


def init_state(
    cache: Tensor, num_layers: int, *, num_beams: int, num_positions: int, start_id: int, num_sentences: int
) -> dict[str, Any]:
    """The state before the first step.

    Args:
        cache: keys of a cross-attention (B, N, S, H), for their shape and dtype.
        num_layers: L, of the decoder.
        num_beams: K.
        num_positions: P.
        start_id: the first token.
        num_sentences: how many of the B rows are real; the others count as finished.

    Returns:
        dict of tensors; see above.
    """
    batch, heads, _, width = cache.shape

    def tensor(value, shape, dtype):  # from NumPy: JAX would compile a program for each shape and dtype
        return ops.convert_to_tensor(np.broadcast_to(np.array(value, dtype), shape).copy())

    # All beams start equal: only the first may be continued.
    scores = tensor([0.0] + [NEG_INF] * (num_beams - 1), (batch, num_beams), "float32")
    cache_shape = (batch, heads, num_positions, num_beams, width)
    state = {
        "position": tensor(0, (), "int32"),
        "token": tensor(start_id, (batch, num_beams), "int32"),
        "self_attention_mask": tensor(False, (batch, num_beams, num_positions, num_beams), "bool"),
        "caches": [ops.cast(tensor(0, cache_shape, "float32"), cache.dtype) for _ in range(2 * num_layers)],
        "sequences": tensor(0, (batch, num_beams, num_positions), "int32"),
        "scores": scores,
        "unfinished": ops.convert_to_tensor(np.arange(batch) < num_sentences),
    }
    if num_beams > 1:
        state |= {
            "finished_sequences": tensor(0, (batch, num_beams, num_positions), "int32"),
            "finished_scores": tensor(NEG_INF, (batch, num_beams), "float32"),
            "finished": tensor(False, (batch, num_beams), "bool"),
        }
    return state


def sample_step(
    state: dict[str, Any],
    logits_blocks: Iterable[Tensor],
    params: Mapping[str, Tensor],
    *,
    end_id: int,
    suppress_tokens: Sequence[int] = (),
    renormalize_logits: bool = False,
    force_end: bool = True,
    sampling: tuple[int | None, bool] | None = None,
    with_scores: bool = False,
) -> dict[str, Any]:
    """Append the most likely token, or a sampled one, to each hypothesis (K = 1).

    Args:
        state: see above, with the caches of this step.
        logits_blocks: logits of the next token, a sequence of (B, 1, some) that make up V.
        params: {"last_position": (B,) int32, the position whose step generates the last token of a sentence}; to
            sample also "uniforms" (B, P) in [0, 1), "temperature" and "top_p", scalars.
        end_id: the token that ends a hypothesis.
        suppress_tokens: tokens that are never generated.
        renormalize_logits: the other tokens' probabilities sum to 1; else the suppressed ones keep their share.
        force_end: generate `end_id` at the last position whatever the logits.
        sampling: (top_k or None, whether top_p is used) to sample; None for the most likely token.
        with_scores: keep the scores too, which costs a pass over all logits.

    Returns:
        The state of the next step.
    """
    position, unfinished = state["position"], ops.expand_dims(state["unfinished"], 1)  # (), (B, 1)
    is_last = position >= ops.expand_dims(params["last_position"], 1)  # (B, 1)
    normalize_over = ("allowed" if renormalize_logits else "all") if with_scores else None
    if sampling:
        logits = ops.cast(ops.concatenate(list(logits_blocks), axis=-1), "float32")  # (B, 1, V)
        uniforms = ops.take(params["uniforms"], position, axis=1)  # (B,)
        token = sample_on_device(logits[:, 0], uniforms, params, *sampling, suppress_tokens=suppress_tokens)  # (B, 1)
        score = ops.take_along_axis(logits[:, 0], token, axis=1)
        if with_scores:
            score = score - top_candidates([logits], 1, suppress_tokens, normalize_over)[2][:, 0]
    else:
        scores, tokens, _ = top_candidates(logits_blocks, 1, suppress_tokens, normalize_over)  # (B, 1, C) twice
        score, best = ops.top_k(scores[:, 0], 1)
        token = ops.take_along_axis(tokens[:, 0], best, axis=1)
    if force_end:
        token, score = ops.where(is_last, end_id, token), ops.where(is_last, 0.0, score)
    token = ops.cast(ops.where(unfinished, token, end_id), "int32")
    goes_on = ops.logical_and(token != end_id, ops.logical_not(is_last))[:, 0]  # (B,)
    return state | {
        "position": position + 1,
        "token": token,
        "self_attention_mask": unmask_position(state["self_attention_mask"], position),
        "sequences": write_tokens(state["sequences"], token, position),
        "scores": ops.where(unfinished, state["scores"] + score, state["scores"]),
        "unfinished": ops.logical_and(state["unfinished"], goes_on),
    }


def best_hypothesis(state: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The best hypothesis of each sentence.

    Args:
        state: of the last step.

    Returns:
        (tokens (B, P), scores (B,)).
    """
    prefix = "finished_" if "finished" in state else ""
    sequences, scores = (ops.convert_to_numpy(state[f"{prefix}{name}"]) for name in ("sequences", "scores"))
    return sequences[:, 0], scores[:, 0]


def select_sentences(state: dict[str, Any], rows: npt.ArrayLike) -> dict[str, Any]:
    """The state of some of the sentences.

    Args:
        state: of the last step.
        rows: indices of the sentences, (b,).

    Returns:
        the state of b sentences.
    """
    return _map_state(lambda x: ops.take(x, rows, axis=0) if len(x.shape) else x, state)


def pad_positions(state: dict[str, Any], num_positions: int) -> dict[str, Any]:
    """The state with buffers of more positions: axis 2 wherever there is one.

    Args:
        state: of the last step.
        num_positions: the new P.

    Returns:
        the state.
    """

    def pad(x):
        if len(x.shape) < 3:
            return x
        more = num_positions - x.shape[2]
        return ops.pad(x, [(0, more if axis == 2 else 0) for axis in range(len(x.shape))])

    return _map_state(pad, state)


def _map_state(function, state):
    return {key: [function(part) for part in x] if key == "caches" else function(x) for key, x in state.items()}


def top_candidates(
    logits_blocks: Iterable[Tensor], count: int, suppress_tokens: Sequence[int], normalize_over: str | None
) -> tuple[Tensor, Tensor, Tensor]:
    """At least the `count` most likely tokens of each hypothesis, and their scores.

    The vocabulary may come in blocks, so that each is used while it is in the processor's cache; no tensor as large as
    all logits is made.

    Args:
        logits_blocks: logits of the next token, a sequence of (B, K, some) that make up V.
        count: how many.
        suppress_tokens: as in `sample_step`.
        normalize_over: scores are log-probabilities over "all" tokens or the "allowed" ones; None for the logits.

    Returns:
        (scores (B, K, C), that of a suppressed token -inf; tokens (B, K, C); log of the normalizer (B, K, 1) or 0).
    """
    count, first, scores, tokens, normalizers, suppressed = count + len(suppress_tokens), 0, [], [], [], []
    for logits in logits_blocks:
        logits, size = ops.cast(logits, "float32"), logits.shape[-1]
        score, token = ops.top_k(logits, min(count, size))
        scores.append(score)
        tokens.append(ops.cast(token, "int32") + first)
        if normalize_over:
            normalizers.append(ops.logsumexp(logits, axis=-1, keepdims=True))
        if normalize_over == "allowed":
            inside = [id_ - first for id_ in suppress_tokens if first <= id_ < first + size]
            suppressed += [logits[..., index : index + 1] for index in inside]
        first += size
    scores, tokens, normalizer = ops.concatenate(scores, axis=-1), ops.concatenate(tokens, axis=-1), 0.0
    if normalize_over:
        normalizer = ops.logsumexp(ops.concatenate(normalizers, axis=-1), axis=-1, keepdims=True)
    if suppressed:
        share = ops.sum(ops.exp(ops.concatenate(suppressed, axis=-1) - normalizer), axis=-1, keepdims=True)
        normalizer = normalizer + ops.log1p(-share)
    scores = scores - normalizer
    for id_ in suppress_tokens:
        scores = ops.where(tokens == id_, -np.inf, scores)
    return scores, tokens, normalizer


def sample_on_device(
    logits: Tensor,
    uniforms: Tensor,
    params: Mapping[str, Tensor],
    top_k: int | None = None,
    use_top_p: bool = False,
    *,
    suppress_tokens: Sequence[int] = (),
) -> Tensor:
    """`zoo.generation.sampling.sample_tokens` in tensors, for compiled loops, in float32.

    Args:
        logits: (B, V).
        uniforms: (B,) in [0, 1).
        params: {"temperature": scalar, "top_p": scalar}.
        top_k: as there; of equally likely tokens at the cut all are kept.
        use_top_p: whether `params["top_p"]` is applied.
        suppress_tokens: tokens that are never chosen.

    Returns:
        tokens (B, 1) int32.
    """
    scaled = logits / params["temperature"]
    if suppress_tokens:
        scaled = ops.where(np.isin(np.arange(scaled.shape[1]), suppress_tokens), -np.inf, scaled)
    kept = scaled > -np.inf
    if top_k or use_top_p:
        ordered, _ = ops.top_k(scaled, min(top_k or scaled.shape[1], scaled.shape[1]))  # (B, k), most likely first
        lowest = ordered[:, -1:]
        if use_top_p:
            p = ops.exp(ordered - ops.logsumexp(scaled, axis=1, keepdims=True))
            before = ops.cumsum(p, axis=1) - p  # the last kept is the first at which the sum reaches top_p
            lowest = ops.min(ops.where(before < params["top_p"], ordered, np.inf), axis=1, keepdims=True)
        kept = ops.logical_and(kept, scaled >= lowest)
    p = ops.where(kept, ops.exp(scaled - ops.max(scaled, axis=1, keepdims=True)), 0.0)
    cumulative = ops.cumsum(p, axis=1)
    reached = cumulative > ops.expand_dims(uniforms, 1) * cumulative[:, -1:]
    # The first such token; among the kept ones, because sums over many zeros may differ in their last bit.
    return ops.argmax(ops.cast(ops.logical_and(reached, kept), "int32"), axis=1, keepdims=True)


def write_tokens(sequences: Tensor, tokens: Tensor, position: Tensor) -> Tensor:
    """Write the tokens of one position.

    Args:
        sequences: (B, K, P).
        tokens: (B, K).
        position: scalar.

    Returns:
        (B, K, P).
    """
    return ops.slice_update(sequences, (0, 0, position), ops.expand_dims(tokens, 2))


def unmask_position(mask: Tensor, position: Tensor) -> Tensor:
    """Let each hypothesis attend to its own token at a position.

    Args:
        mask: self-attention mask (B, K, P, K).
        position: scalar.

    Returns:
        the mask.
    """
    batch, beams = mask.shape[:2]
    own = ops.broadcast_to(ops.reshape(ops.eye(beams, dtype="bool"), (1, beams, 1, beams)), (batch, beams, 1, beams))
    return ops.slice_update(mask, (0, 0, position, 0), own)
