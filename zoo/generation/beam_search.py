"""One step of beam search for a batch of sentences, as in `generate` of transformers 5 with `early_stopping=False`.

The state is that of `zoo.generation.decode_step`, whose letters are used here, with the K best finished hypotheses of
each sentence: finished_sequences (B, K, P), finished_scores (B, K), and finished (B, K): which of them there are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from zoo.generation.decode_step import NEG_INF, top_candidates, unmask_position, write_tokens
from zoo.typing import Tensor


def beam_search_step(
    state: dict[str, Any],
    logits_blocks: Iterable[Tensor],
    params: Mapping[str, Tensor],
    *,
    end_id: int,
    suppress_tokens: Sequence[int] = (),
    renormalize_logits: bool = False,
    force_end: bool = True,
) -> dict[str, Any]:
    """Continue the K hypotheses of each sentence.

    The 2K most likely of all continuations are candidates. Those among the first K that ended are compared by
    log-probability / tokens^length_penalty with the K best that finished before; the K most likely that did not end go
    on. A sentence is finished once K hypotheses finished and the most likely unfinished one, as long as it is now,
    would not beat the worst of them, or when its last position is reached.

    Args:
        state: as in `decode_step.sample_step`.
        logits_blocks: logits of the next token, a sequence of (B, K, some) that make up V.
        params: {"last_position": (B,) int32, "length_penalty": scalar}.
        end_id: as in `decode_step.sample_step`.
        suppress_tokens: as in `decode_step.sample_step`.
        renormalize_logits: as in `decode_step.sample_step`.
        force_end: as in `decode_step.sample_step`.

    Returns:
        the state of the next step.
    """
    position, beams = state["position"], state["token"].shape[1]
    length = ops.power(ops.cast(position + 1, "float32"), params["length_penalty"])
    is_last = position >= ops.expand_dims(params["last_position"], 1)  # (B, 1)
    normalize_over = "allowed" if renormalize_logits else "all"
    scores, tokens, _ = top_candidates(logits_blocks, 2 * beams, suppress_tokens, normalize_over)  # (B, K, C)
    if force_end:
        # At the last position the only candidate of each hypothesis is the end, with log-probability 0.
        only = np.where(np.arange(scores.shape[2]) == 0, 0.0, -np.inf).astype("float32")
        scores = ops.where(ops.expand_dims(is_last, 2), only, scores)
        tokens = ops.where(ops.expand_dims(is_last, 2), end_id, tokens)
    scores = scores + ops.expand_dims(state["scores"], 2)
    count = scores.shape[2]
    scores, index = ops.top_k(ops.reshape(scores, (-1, beams * count)), 2 * beams)  # (B, 2K)
    parents = index // count
    tokens = ops.take_along_axis(ops.reshape(tokens, (-1, beams * count)), index, axis=1)
    ended = ops.logical_or(tokens == end_id, is_last)

    # Those that ended, among the first K, join the K best that finished before.
    joins = ops.logical_and(ended, ops.expand_dims(state["unfinished"], 1))[:, :beams]
    sequences = write_tokens(_gather_beams(state["sequences"], parents[:, :beams]), tokens[:, :beams], position)
    joined = [state["finished_scores"], ops.where(joins, scores[:, :beams] / length, NEG_INF)]
    finished_scores, best = ops.top_k(ops.concatenate(joined, axis=1), beams)
    finished_sequences = _gather_beams(ops.concatenate([state["finished_sequences"], sequences], axis=1), best)
    finished = _gather_beams(ops.concatenate([state["finished"], joins], axis=1), best)

    # The K most likely that go on.
    scores, kept = ops.top_k(ops.where(ended, NEG_INF, scores), beams)
    parents, tokens = _gather_beams(parents, kept), _gather_beams(tokens, kept)
    worst = ops.where(finished, ops.min(finished_scores, axis=1, keepdims=True), NEG_INF)
    can_improve = ops.any(scores[:, :1] / length > worst, axis=1)
    goes_on = ops.logical_and(can_improve, ops.logical_not(is_last[:, 0]))
    return state | {
        "position": position + 1,
        "token": tokens,
        "self_attention_mask": _gather_beams(unmask_position(state["self_attention_mask"], position), parents),
        "sequences": write_tokens(_gather_beams(state["sequences"], parents), tokens, position),
        "scores": scores,
        "unfinished": ops.logical_and(state["unfinished"], goes_on),
        "finished_sequences": finished_sequences,
        "finished_scores": finished_scores,
        "finished": finished,
    }


def _gather_beams(x, index):
    """x[b, index[b, j]]: x (B, K, …), index (B, J) -> (B, J, …)."""
    return ops.take_along_axis(x, ops.reshape(index, (*index.shape, *[1] * (len(x.shape) - 2))), axis=1)
