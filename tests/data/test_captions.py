"""Captioned pictures: a function of their seed, truthful captions, and combinations that stay out of training."""

import numpy as np
import pytest

from zoo import data
from zoo.data import captions
from zoo.data.captions import COLORS, DIGITS, PALETTE, TEMPLATES

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def real(mnist, tfds_dir):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            captions, "load_images", lambda name, folder: mnist if name == "mnist" else data.load_images(name, folder)
        )
        dataset, remark = captions.load_captioned_images(tfds_dir)
    assert remark is None
    return dataset


@pytest.fixture(scope="module")
def digits():
    return captions._captioned("digits", DIGITS, [captions.load_images("digits")])


def test_all_of_both_data_sets(real):
    assert len(real.class_names) == 20
    assert {part: len(labels) for part, labels in real.labels.items()} == {
        "train": 114_000,
        "validation": 6_000,
        "test": 20_000,
    }
    for part in real.glyphs:
        assert len(real.glyphs[part]) == len(real.labels[part]) and set(real.labels[part]) == set(range(20))


def test_without_data_digits_stand_in(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.data.images._server_reachable", lambda: False)
    dataset, remark = captions.load_captioned_images(tmp_path)
    assert dataset.class_names == DIGITS and "\n" not in remark and "1,797 digits" in remark


def test_the_same_seed_gives_the_same_pictures(digits):
    rows = np.arange(20)
    one, again, other = (digits.render("train", rows, seed=[seed, 2]) for seed in (1, 1, 3))
    assert (one.images == again.images).all() and one.captions == again.captions
    assert (one.images != other.images).any() and one.captions != other.captions
    assert one.images.shape == (20, 48, 48, 3) and one.images.dtype == np.uint8


def test_an_epoch_shows_each_glyph_once(digits):
    labels = [batch.labels for batch in digits.batches("train", 100, seed=0, epoch=4)]
    assert np.bincount(np.concatenate(labels)).tolist() == np.bincount(digits.labels["train"]).tolist()
    first, second = (next(iter(digits.batches("train", 9, seed=0, epoch=epoch))) for epoch in (0, 1))
    assert (first.images != second.images).any()


def test_pixels_are_the_mixture(digits):
    """Against the definition: background where the glyph is 0, foreground where it is 255; linear in between."""
    glyph = np.zeros((1, 48, 48), np.uint8)
    glyph[0, 10:20], glyph[0, 30] = 255, 51
    image = captions.colorize(glyph, np.array([0]), np.array([6]))[0]
    red, white = np.array(COLORS["red"]), np.array(COLORS["white"])
    assert (image[0] == white).all() and (image[15] == red).all()
    assert np.abs(image[30] - (white + 0.2 * (red - white))).max() <= 0.5


def test_resizing_keeps_a_ramp():
    """Linear interpolation gives a linear function back, between the centres of the outer pixels."""
    matrix = captions.interpolation_matrix(28)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
    place = np.clip((np.arange(48) + 0.5) * 28 / 48 - 0.5, 0, 27)
    np.testing.assert_allclose(matrix @ np.arange(28.0), place, atol=1e-5)


def test_captions_name_the_three_things(digits):
    batch = digits.render("train", np.arange(300), seed=0)
    names = list(COLORS)
    for caption, label, foreground, background in zip(
        batch.captions, batch.labels, batch.foregrounds, batch.backgrounds
    ):
        words = caption.replace(",", "").split()
        assert {DIGITS[label], names[foreground], names[background]} <= set(words) and foreground != background
    assert (
        len({tuple(word for word in caption.split() if word in "on a in background") for caption in batch.captions}) > 3
    )


def test_every_template_is_a_sentence():
    """Each keeps foreground and background apart, and articles fit."""
    assert captions.fill_template(TEMPLATES[0], "seven", 0, 4) == "a red seven on a blue background"
    assert captions.fill_template(TEMPLATES[0], "ankle boot", 1, 1) == "an orange ankle boot on an orange background"
    assert captions.fill_template(TEMPLATES[1], "ankle boot", 2, 7) == "an ankle boot in yellow on black"
    for template in TEMPLATES:
        assert captions.fill_template(template, "bag", 0, 4) != captions.fill_template(template, "bag", 4, 0)


def test_a_tenth_is_never_trained_on(digits):
    held_out = captions.held_out_combinations(20)
    assert held_out.sum() == 112 and not held_out[:, np.eye(8, dtype=bool)].any()
    trained = captions.distinct_color_pairs() & ~held_out
    assert trained.any(2).all() and trained.any(1).all()  # each class in each foreground, and on each background
    own = captions.held_out_combinations(10)
    for side in (False, True):
        batches = digits.batches("train", 200, seed=0, held_out=side)
        seen = np.concatenate([np.stack([b.labels, b.foregrounds, b.backgrounds], 1) for b in batches])
        assert (own[tuple(seen.T)] == side).all()
        texts, labels, foregrounds, backgrounds = digits.prompts(120, held_out=side)
        assert (own[labels, foregrounds, backgrounds] == side).all() and len(texts) == 120
    assert len({*zip(labels, foregrounds, backgrounds)}) == own.sum() == 56


def test_colors_are_classified_right(real):
    """On real pictures of all classes and colours, and with the noise that a generated picture has."""
    batch = real.render("test", np.arange(0, 20_000, 10), seed=0)
    foregrounds, backgrounds = captions.classify_colors(batch.images)
    assert (backgrounds == batch.backgrounds).mean() > 0.985  # a garment may fill the border
    assert (foregrounds == batch.foregrounds)[backgrounds == batch.backgrounds].mean() > 0.995
    noisy = batch.images + np.random.default_rng(0).normal(0, 12, batch.images.shape)
    assert (captions.classify_colors(noisy)[0] == foregrounds).mean() > 0.98


def test_colours_lie_apart():
    """No color lies near the line from a background through another color, where `classify_colors` would fail."""
    for background in range(8):
        directions = np.delete(PALETTE, background, 0) - PALETTE[background]
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        assert (directions @ directions.T - 2 * np.eye(7)).max() < 0.985


def test_the_judge_reads_a_colored_glyph_as_it_was():
    """`benchmarks/independent_judge.py` inverts `colorize`, but for its rounding."""
    from benchmarks.independent_judge import read_scans, wilson_interval

    rng = np.random.default_rng(0)
    glyphs = rng.integers(0, 256, (6, 28, 28)).astype("uint8")
    pairs = np.argwhere(captions.distinct_color_pairs())[rng.permutation(30)[:6]]
    images = captions.colorize(glyphs, *pairs.T)
    scans = read_scans(images, *pairs.T)
    assert scans.shape == (6, 28, 28, 1) and np.abs(scans[..., 0] - glyphs / 255).max() < 0.03
    # Newcombe 1998, table I, method 3: 81 of 263 and 15 of 148
    np.testing.assert_allclose(wilson_interval(81, 263), (0.2553, 0.3662), atol=5e-5)
    np.testing.assert_allclose(wilson_interval(15, 148), (0.0624, 0.1605), atol=5e-5)
