"""Decoding against brute force: which tokens stay, with which probabilities, and how often they are drawn."""

import itertools

import numpy as np
import pytest

from zoo.errors import UserError
from zoo.generation.sampling import filtered_softmax, sample_token

pytestmark = pytest.mark.once
LOGITS = np.log([0.5, 0.25, 0.15, 0.07, 0.03])


def test_temperature_is_the_softmax():
    np.testing.assert_allclose(filtered_softmax(LOGITS), [0.5, 0.25, 0.15, 0.07, 0.03])
    sharp = np.array([0.5, 0.25, 0.15, 0.07, 0.03]) ** 2
    np.testing.assert_allclose(filtered_softmax(LOGITS, temperature=0.5), sharp / sharp.sum())
    assert filtered_softmax(np.array([1e4, 0.0])).tolist() == [1.0, 0.0]


def test_top_k():
    np.testing.assert_allclose(filtered_softmax(LOGITS, top_k=2), [2 / 3, 1 / 3, 0, 0, 0])
    np.testing.assert_allclose(filtered_softmax(LOGITS, top_k=99), filtered_softmax(LOGITS))
    assert filtered_softmax(np.zeros(4), top_k=2).tolist() == [0.5, 0.5, 0, 0]  # the smaller ids of equals


@pytest.mark.parametrize("p", [0.1, 0.5, 0.51, 0.75, 0.8, 0.97, 1.0])
def test_top_p_is_the_smallest_set(p):
    """Among all sets of tokens whose probabilities reach p, the one with the fewest and likeliest tokens."""
    all_p = np.exp(LOGITS)
    sets = [s for n in range(1, 6) for s in itertools.combinations(range(5), n) if sum(all_p[list(s)]) >= p - 1e-9]
    best = min(sets, key=lambda s: (len(s), -sum(all_p[list(s)])))
    assert np.flatnonzero(filtered_softmax(LOGITS, top_p=p)).tolist() == sorted(best)


def test_draws_follow_the_probabilities():
    rng = np.random.default_rng(0)
    counts = np.bincount([sample_token(LOGITS, rng, top_k=3) for _ in range(20_000)], minlength=5) / 20_000
    np.testing.assert_allclose(counts, np.array([0.5, 0.25, 0.15, 0, 0]) / 0.9, atol=0.01)


def test_seed_gives_the_same_draws_and_greedy_the_likeliest():
    one, two = ([sample_token(LOGITS, np.random.default_rng(5)) for _ in range(3)] for _ in range(2))
    assert one == two
    assert sample_token(np.array([0.0, 3.0, 3.0])) == 1


@pytest.mark.parametrize(
    "options, message", [({"temperature": 0}, "got 0"), ({"top_k": 0}, "got 0"), ({"top_p": 1.5}, "got 1.5")]
)
def test_wrong_numbers(options, message):
    with pytest.raises(UserError, match=message):
        filtered_softmax(LOGITS, **options)
