"""From the logits of a language model to the next token, in NumPy: equal logits give equal texts on every backend."""

import numpy as np

from zoo.errors import UserError


def probabilities(logits, *, temperature=1.0, top_k=None, top_p=None):
    """Probabilities of the next token.

    Args:
        logits: float array (V,).
        temperature: logits are divided by it, > 0; below 1 sharper, above 1 flatter.
        top_k: keep the k likeliest tokens; None for all.
        top_p: keep the fewest likeliest tokens whose probabilities sum to at least this, in (0, 1] (nucleus sampling,
            Holtzman et al. 2020); None for all.

    Returns:
        float64 array (V,) that sums to 1. Of equally likely tokens at a cut those with the smaller id stay.

    Raises:
        UserError: if a number is out of range.
    """
    if not temperature > 0:
        raise UserError(f"The temperature must be above 0, got {temperature}: use greedy decoding for the likeliest.")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k must be at least 1, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, got {top_p}.")
    scaled = np.asarray(logits, np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = len(p) if top_k is None else min(top_k, len(p))
    if top_p is not None:
        # The first place where the sum reaches top_p, that token included.
        keep = min(keep, int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-12)) + 1)
    p[order[keep:]] = 0.0
    return p / p.sum()


def next_token(logits, rng=None, **options):
    """Id of the next token, an int.

    Args:
        logits: float array (V,).
        rng: `numpy.random.Generator` to draw with; None takes the likeliest token (greedy).
        **options: `temperature`, `top_k`, `top_p`: see `probabilities`.
    """
    if rng is None:
        return int(np.argmax(logits))
    cumulative = np.cumsum(probabilities(logits, **options))
    # One draw a token, by inversion; the last entry is 1 but for rounding.
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
