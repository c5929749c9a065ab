"""BLEU under two conventions, beside what others published under them."""

import math

import pytest

from zoo.evaluation.translation import bleu, bleu_confidence, moses_bleu, moses_tokens

pytestmark = pytest.mark.once

# Lines of data/multi30k-en-de/test.2016.de of github.com/LividWo/Revisit-MMT, their byte pairs joined again, and the
# sentences of Multi30k that they come from.
PUBLISHED = {
    "Ein Boston Terrier läuft über saftig-grünes Gras vor einem weißen Zaun.": (
        "ein boston terrier läuft über saftig-grünes gras vor einem weißen zaun ."
    ),
    'Eine Frau hält einen großen Scheck für "Kids\' Food Basket".': (
        "eine frau hält einen großen scheck für &quot; kids &apos; food basket &quot; ."
    ),
    "Zwei Jungen essen ihr McDonald's-Menü im Außenbereich, umgeben von vielen anderen Leuten.": (
        "zwei jungen essen ihr mcdonald &apos; s-menü im außenbereich , umgeben von vielen anderen leuten ."
    ),
}


def test_tokens_are_those_of_the_published_references():
    assert moses_tokens(list(PUBLISHED), "de") == list(PUBLISHED.values())


def test_moses_bleu_is_the_definition_on_lower_cased_tokens():
    """Papineni et al. 2002, by hand: 9 of 10 words, 7 of 8, 5 of 6 and 3 of 4 n-grams of two sentences match."""
    references = ["A dog runs home.", "The cat sat down ."]
    translations = ["a Dog runs home .", "the cat sat up ."]
    precisions = [9 / 10, 6 / 8, 4 / 6, 2 / 4]
    assert moses_bleu(translations, references, "en") == pytest.approx(100 * math.prod(precisions) ** 0.25)
    assert bleu(translations, references)[0] < moses_bleu(translations, references, "en")  # cased


def test_the_confidence_is_the_spread_over_samples_of_sentences():
    references = ["a b c d e"] * 50 + ["v w x y z"] * 50
    assert bleu_confidence(references, references) == pytest.approx(0)
    assert bleu_confidence(["b", "x"], ["a b c d", "y"]) == 0  # no sample has a word right
    half_wrong = ["a b c d e"] * 100
    # Of 100 sentences, the number of right ones has a standard deviation of 5: BLEU, about their share, of 5 points.
    assert 7 < bleu_confidence(half_wrong, references) < 13
    assert bleu_confidence(half_wrong * 4, references * 4) == pytest.approx(
        bleu_confidence(half_wrong, references) / 2, rel=0.2
    )
