"""Captioned pictures: a function of their seed, truthful captions, and combinations that stay out of training."""

import numpy as np
import pytest

from zoo import data
from zoo.data import captions
from zoo.data.captions import COLOURS, DIGITS, PALETTE, TEMPLATES

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def real(mnist, tfds_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captions, "load", lambda name, folder: mnist if name == "mnist" else data.load(name, folder))
        dataset, remark = captions.load_captioned(tfds_dir)
    assert remark is None
    return dataset


@pytest.fixture(scope="module")
def digits():
    return captions._captioned("digits", DIGITS, [captions.load("digits")])


def test_all_of_both_data_sets(real):
    assert len(real.class_names) == 20
    assert {part: len(labels) for part, labels in real.labels.items()} == {
        "train": 114_000,
        "validation": 6_000,
        "test": 20_000,
    }
    for part in real.scans:
        assert len(real.scans[part]) == len(real.labels[part]) and set(real.labels[part]) == set(range(20))


def test_without_data_digits_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.images._reachable", lambda: False)
    dataset, remark = captions.load_captioned(tmp_path)
    assert dataset.class_names == DIGITS and "\n" not in remark and "1,797 digits" in remark


def test_the_same_seed_gives_the_same_pictures(digits):
    rows = np.arange(20)
    one, again, other = (digits.draw("train", rows, seed=[seed, 2]) for seed in (1, 1, 3))
    assert (one.images == again.images).all() and one.captions == again.captions
    assert (one.images != other.images).any() and one.captions != other.captions
    assert one.images.shape == (20, 48, 48, 3) and one.images.dtype == np.uint8


def test_an_epoch_shows_each_scan_once(digits):
    labels = [batch.labels for batch in digits.batches("train", 100, seed=0, epoch=4)]
    assert np.bincount(np.concatenate(labels)).tolist() == np.bincount(digits.labels["train"]).tolist()
    first, second = (next(iter(digits.batches("train", 9, seed=0, epoch=epoch))) for epoch in (0, 1))
    assert (first.images != second.images).any()


def test_pixels_are_the_mixture(digits):
    """Against the definition: where the scan is 0 the background, where it is full the ink; a linear ramp between."""
    scan = np.zeros((1, 48, 48), np.uint8)
    scan[0, 10:20], scan[0, 30] = 255, 51
    image = captions.paint(scan, np.array([0]), np.array([6]))[0]
    red, white = np.array(COLOURS["red"]), np.array(COLOURS["white"])
    assert (image[0] == white).all() and (image[15] == red).all()
    assert np.abs(image[30] - (white + 0.2 * (red - white))).max() <= 0.5


def test_resizing_keeps_a_ramp():
    """Linear interpolation gives a linear function back, between the centres of the outer pixels."""
    matrix = captions._interpolation(28)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    place = np.clip((np.arange(48) + 0.5) * 28 / 48 - 0.5, 0, 27)
    np.testing.assert_allclose(matrix @ np.arange(28.0), place, atol=1e-5)


def test_captions_name_the_three_things(digits):
    batch = digits.draw("train", np.arange(300), seed=0)
    names = list(COLOURS)
    for caption, label, ink, background in zip(batch.captions, batch.labels, batch.inks, batch.backgrounds):
        words = caption.replace(",", "").split()
        assert {DIGITS[label], names[ink], names[background]} <= set(words) and ink != background
    assert (
        len({tuple(word for word in caption.split() if word in "on a in background") for caption in batch.captions}) > 3
    )


def test_every_template_is_a_sentence():
    """Each keeps ink and background apart, and articles fit."""
    assert captions.say(TEMPLATES[0], "seven", 0, 4) == "a red seven on a blue background"
    assert captions.say(TEMPLATES[0], "ankle boot", 1, 1) == "an orange ankle boot on an orange background"
    assert captions.say(TEMPLATES[1], "ankle boot", 2, 7) == "an ankle boot in yellow on black"
    for template in TEMPLATES:
        assert captions.say(template, "bag", 0, 4) != captions.say(template, "bag", 4, 0)


def test_a_tenth_is_never_trained_on(digits):
    held_out = captions.held_out_combinations(20)
    assert held_out.sum() == 112 and not held_out[:, np.eye(8, dtype=bool)].any()
    trained = captions.possible() & ~held_out
    assert trained.any(2).all() and trained.any(1).all()  # each class in each ink, and on each background
    own = captions.held_out_combinations(10)
    for side in (False, True):
        batches = digits.batches("train", 200, seed=0, held_out=side)
        seen = np.concatenate([np.stack([b.labels, b.inks, b.backgrounds], 1) for b in batches])
        assert (own[tuple(seen.T)] == side).all()
        texts, labels, inks, backgrounds = digits.prompts(120, held_out=side)
        assert (own[labels, inks, backgrounds] == side).all() and len(texts) == 120
    assert len({*zip(labels, inks, backgrounds)}) == own.sum() == 56


def test_colours_are_judged_right(real):
    """On real pictures of all classes and colours, and with the noise that a generated picture has."""
    batch = real.draw("test", np.arange(0, 20_000, 10), seed=0)
    inks, backgrounds = captions.judge_colours(batch.images)
    assert (backgrounds == batch.backgrounds).mean() > 0.985  # a garment may fill the border
    assert (inks == batch.inks)[backgrounds == batch.backgrounds].mean() > 0.995
    noisy = batch.images + np.random.default_rng(0).normal(0, 12, batch.images.shape)
    assert (captions.judge_colours(noisy)[0] == inks).mean() > 0.98


def test_colours_lie_apart():
    """No ink lies near the line from a background through another ink, where the judge could not tell them."""
    for background in range(8):
        directions = np.delete(PALETTE, background, 0) - PALETTE[background]
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        assert (directions @ directions.T - 2 * np.eye(7)).max() < 0.985
