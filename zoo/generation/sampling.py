"""Token sampling in NumPy: equal logits give equal tokens on every backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt


def filtered_softmax(
    logits: npt.ArrayLike, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """Probabilities of the next token after temperature, top-k and top-p filtering.

    Args:
        logits: float array (V,), or (..., V) for several.
        temperature: logits are divided by it, > 0; below 1 sharper, above 1 flatter.
        top_k: keep the k most likely tokens; None for all.
        top_p: nucleus sampling (Holtzman et al. 2020): keep the fewest most likely tokens whose probabilities sum to
            at least this, in (0, 1]; None for all.

    Returns:
        float64 array of the same shape; the last axis sums to 1. Of equally likely tokens at a cut those with the
        smaller id are kept.

    Raises:
        UserError: if an argument is out of range.
    """
    check_sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    scaled = np.asarray(logits, np.float64) / temperature
    p = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    if top_k is None and top_p is None:
        return p
    order = np.argsort(-p, axis=-1, kind="stable")
    likeliest_first = np.take_along_axis(p, order, axis=-1)
    keep = np.full((*p.shape[:-1], 1), p.shape[-1] if top_k is None else top_k)
    if top_p is not None:
        # The first token at which the sum reaches top_p is kept too.
        below = np.cumsum(likeliest_first, axis=-1) < top_p - 1e-12
        keep = np.minimum(keep, below.sum(axis=-1, keepdims=True) + 1)
    np.put_along_axis(p, order, np.where(np.arange(p.shape[-1]) < keep, likeliest_first, 0.0), axis=-1)
    return p / p.sum(axis=-1, keepdims=True)


def check_sampling(*, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
    """Check the arguments of `filtered_softmax`.

    Args:
        temperature: > 0.
        top_k: at least 1, or None.
        top_p: in (0, 1], or None.

    Raises:
        UserError: if one is out of range.
    """
    if not temperature > 0:
        raise UserError(f"The temperature must be above 0, got {temperature}: use greedy decoding for the likeliest.")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}.")


def sample_tokens(logits: npt.ArrayLike, uniforms: npt.ArrayLike | None = None, **options: Any) -> np.ndarray:
    """Choose the next token of each row by inversion sampling.

    Args:
        logits: float array (..., V).
        uniforms: float64 array (...) of random numbers in [0, 1). None for the most likely tokens (greedy).
        **options: `temperature`, `top_k`, `top_p`: see `filtered_softmax`.

    Returns:
        their ids, int array (...).

    Raises:
        UserError: if an argument is out of range.
    """
    if uniforms is None:
        return np.argmax(logits, axis=-1)
    cumulative = np.cumsum(filtered_softmax(logits, **options), axis=-1)
    # The last entry is 1 but for rounding.
    return (cumulative <= np.asarray(uniforms)[..., None] * cumulative[..., -1:]).sum(axis=-1)


def sample_token(logits: npt.ArrayLike, rng: np.random.Generator | None = None, **options: Any) -> int:
    """Choose the next token of one text, see `sample_tokens`.

    Args:
        logits: float array (V,).
        rng: `numpy.random.Generator`; one uniform number is drawn from it. None for the most likely token (greedy).
        **options: `temperature`, `top_k`, `top_p`: see `filtered_softmax`.

    Returns:
        its id.

    Raises:
        UserError: if an argument is out of range.
    """
    return int(sample_tokens(logits, None if rng is None else rng.random(), **options))
