"""Whole drawings against the pipelines of diffusers with the same noise: no pixel differs by more than 2 of 255."""

import copy
import dataclasses
import functools
import importlib
import json
import pathlib
import tempfile

import keras
import numpy as np
import pytest
from PIL import Image

from tests.tiny_diffusion import SCHEDULER, SCHEDULERS, WORDS, feed, tiny
from zoo.converters import stable_diffusion
from zoo.errors import UserError
from zoo.fast_paths.compile import compiled
from zoo.generation.diffusion.latent_diffusion import Pipeline
from zoo.generation.diffusion.noise_sampler import random_noise
from zoo.io import images as pictures
from zoo.tasks.text_to_image import load_painter, read_settings

pytest.importorskip("diffusers"), pytest.importorskip("transformers"), pytest.importorskip("torch")

WIDTH, HEIGHT = 24, 16  # of the pictures; diffusers takes multiples of 8 only
LATENTS = (HEIGHT // 2, WIDTH // 2, 4)
PROMPT, NEGATIVE, SEED = "a red fox in the snow", "blurry photograph", 5
RNG = np.random.default_rng(0)
PICTURE = np.kron(RNG.integers(0, 256, (4, 6, 3)), np.ones((4, 4, 1))).astype("uint8")
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[3:12, 6:17] = True
CLOSE = 2


@functools.cache
def saved(channels):
    """A folder in the layout of diffusers."""
    folder = pathlib.Path(tempfile.mkdtemp())
    tiny(channels).save_pretrained(folder)
    return folder


@functools.cache
def folder():
    """A converted folder."""
    out = pathlib.Path(tempfile.mkdtemp())
    stable_diffusion.convert(saved(4), out, say=lambda line: None)
    return out


@functools.cache
def painter(channels):
    """A painter; `calls` counts how often Python calls its denoiser. All else is the same for 4 channels and 9."""
    if channels == 4:
        made = load_painter(folder())
    else:
        made = copy.copy(painter(4))
        denoiser = stable_diffusion._Source(saved(channels)).build("denoiser")
        made.pipeline = Pipeline(None, None, None, denoiser, made.settings, compiled=compiled)
        made.pipeline._parts = painter(4).pipeline._parts
    denoiser, made.calls = made.pipeline._denoiser, []
    made.pipeline._denoiser = lambda *args, **options: made.calls.append(1) or denoiser(*args, **options)
    return made


def ours(channels=4, prompt=PROMPT, **options):
    options = {"negative": NEGATIVE, "seed": SEED, "steps": 6, "size": (WIDTH, HEIGHT)} | options
    *_, last = painter(channels).draw(prompt, **options)
    return painter(channels).pictures(last.latents)


def theirs(monkeypatch, kind, sampler, noise, channels=4, config=None, **options):
    """Pictures of a pipeline of diffusers, (B, H, W, 3) uint8, with noise from an iterator."""
    import diffusers

    made = tiny(channels)
    scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(SCHEDULER | (config or {}))
    pipeline = getattr(diffusers, kind)(**made.components | {"scheduler": scheduler}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    feed(monkeypatch, noise)
    size = {} if "Img2Img" in kind else {"width": WIDTH, "height": HEIGHT}
    options = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 6} | size | options
    return np.stack([np.asarray(picture) for picture in pipeline(**options).images])


def draws(seed=SEED, skip=()):
    """The noise that ours takes of a seed, one after the other; zeros at the places where only diffusers draws."""
    draw, place = random_noise([seed]), 0
    while True:
        yield np.zeros((1, *LATENTS), "float32") if place in skip else draw(LATENTS)
        place += 1


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= CLOSE
    assert theirs.std() > 20  # anything but grey


# ---------------------------------------------------------------------------------------------------------- diffusers


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_text_to_image(sampler, monkeypatch):
    assert_same(ours(sampler=sampler), theirs(monkeypatch, "StableDiffusionPipeline", sampler, draws()))


def test_other_guidance(monkeypatch):
    expected = theirs(monkeypatch, "StableDiffusionPipeline", "plms", draws(), guidance_scale=3.0)
    assert_same(ours(guidance=3.0), expected)
    assert np.abs(expected.astype(int) - ours()).max() > 20


def test_two_pictures_without_guidance(monkeypatch):
    """Each is the one that diffusers draws alone."""
    drawn, run = ours(guidance=1.0, count=2), functools.partial(theirs, monkeypatch, "StableDiffusionPipeline", "plms")
    for place in range(2):
        assert_same(drawn[place : place + 1], run(draws(SEED + place), guidance_scale=1.0))
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() > 20


def test_prompts_and_negative_prompts_make_a_difference():
    drawn = [ours(), ours(prompt="the fox"), ours(negative="")]
    assert all(np.abs(drawn[0].astype(int) - other).max() > 20 for other in drawn[1:])


@pytest.mark.parametrize("prediction, sampler, spacing", [("v", "ddim", "trailing"), ("x0", "euler", "linspace")])
def test_predictions_and_spacings(prediction, sampler, spacing, monkeypatch):
    for key, value in (("prediction", prediction), ("spacing", spacing)):
        monkeypatch.setitem(painter(4).settings, key, value)
    config = {"prediction_type": {"v": "v_prediction", "x0": "sample"}[prediction], "timestep_spacing": spacing}
    expected = theirs(monkeypatch, "StableDiffusionPipeline", sampler, draws(), config=config)
    assert_same(ours(sampler=sampler), expected)


def test_ddim_with_noise(monkeypatch):
    expected = theirs(monkeypatch, "StableDiffusionPipeline", "ddim", draws(), eta=0.8)
    assert_same(ours(sampler="ddim", eta=0.8), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_image_to_image(sampler, strength, monkeypatch):
    expected = theirs(
        monkeypatch,
        "StableDiffusionImg2ImgPipeline",
        sampler,
        draws(),
        image=Image.fromarray(PICTURE),
        strength=strength,
    )
    assert_same(ours(sampler=sampler, image=PICTURE, strength=strength), expected)


INPAINTING = [("plms", 1.0), ("plms", 0.7), ("euler", 0.7), ("heun", 1.0)]


@pytest.mark.parametrize("sampler, strength", INPAINTING)
@pytest.mark.parametrize("channels, count", [(4, 2), (9, 1)])
def test_inpainting(sampler, strength, channels, count, monkeypatch):
    """Two pictures with 4 channels, each of which is the one that diffusers draws alone."""
    options = {"sampler": sampler, "strength": strength}
    drawn = ours(channels, image=PICTURE, mask=MASK, count=count, **options)
    for place in range(count):
        expected = theirs(
            monkeypatch,
            "StableDiffusionInpaintPipeline",
            noise=draws(SEED + place, skip=(2,) if channels == 4 else ()),  # the masked picture, not used with 4
            channels=channels,
            image=Image.fromarray(PICTURE),
            mask_image=Image.fromarray(MASK),
            **options,
        )
        assert_same(drawn[place : place + 1], expected)


# -------------------------------------------------------------------------------------------------------------- steps


def test_every_step_is_shown():
    steps = list(painter(4).draw(PROMPT, steps=5, sampler="euler", size=(WIDTH, HEIGHT)))
    assert [(step.number, step.total) for step in steps] == [(k, 5) for k in range(1, 6)]
    assert [step.timestep for step in steps] == [999, 749.25, 499.5, 249.75, 0]
    for step in steps:
        assert step.latents.shape == step.expected.shape == (1, *LATENTS)
        assert isinstance(step.latents, np.ndarray) and step.latents.dtype == np.float32
    scale = [painter(4).pipeline.plan(5, sampler="euler").scales[place] for place in (1, 2, 3, 4)] + [1]
    states = [np.asarray(keras.ops.convert_to_numpy(step._state[0])) for step in steps]
    for step, factor, state in zip(steps, scale, states):  # the decoder knows no latents with a σ of 80
        np.testing.assert_allclose(step.latents, factor * state, rtol=1e-6)
    np.testing.assert_allclose(steps[-1].latents, steps[-1].expected, atol=1e-5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        steps[0].number = 3


def test_latents_of_the_caller():
    latents = random_noise([SEED])(LATENTS)
    np.testing.assert_array_equal(ours(latents=latents), ours())
    with pytest.raises(UserError, match=r"must have shape \(1, 8, 12, 4\), got \(8, 12, 4\)"):
        ours(latents=latents[0])


def test_a_step_is_compiled_once_for_all_samplers_and_numbers():
    ours()
    before = len(painter(4).calls)
    for sampler, steps, guidance in (("plms", 3, 7.5), ("heun", 2, 2.0), ("dpm++", 5, 4.0)):
        assert ours(sampler=sampler, steps=steps, guidance=guidance).std() > 20
    assert len(painter(4).calls) == before


# ------------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    "prompt",
    ["", PROMPT, "A  Red\tFOX!", "unknown words", "the snow in " * 3 + "the end", "red,fox" * 9],
)
def test_tokens_are_those_of_clip(prompt):
    ids, cut = painter(4).tokens(prompt)
    theirs = tiny(4).tokenizer(prompt, padding="max_length", max_length=12, truncation=True)["input_ids"]
    assert ids == theirs and len(ids) == 12
    whole = tiny(4).tokenizer(prompt)["input_ids"]
    assert bool(cut) == (len(whole) > 12)
    if cut:
        assert prompt.endswith(cut)
        assert tiny(4).tokenizer(cut)["input_ids"][1:-1] == whole[11:-1]


def test_what_a_prompt_is_too_long_by_is_named():
    long = " ".join(WORDS) + " in the snow"
    with pytest.warns(UserWarning, match="^The prompt is longer than 10 tokens: 'the snow' was left out.$"):
        painter(4).draw(long)
    with pytest.warns(UserWarning, match="^The negative prompt is longer than 10 tokens: 'the snow' was left out.$"):
        painter(4).draw("", negative=long)


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sampler": "dpm+"}, "There is no sampler 'dpm.': choose one of ddpm, .* Did you mean 'dpm..'"),
        ({"steps": 0}, "The number of steps must be from 1 to 1,000, got 0"),
        ({"count": 0}, "at least one picture with a seed from 0 up, got 0 and seed 5"),
        ({"seed": -1}, "got 1 and seed -1"),
        ({"guidance": float("nan")}, "The guidance must be a number from 0 up, got nan"),
        ({"eta": 1.5}, "eta must be from 0 to 1, got 1.5"),
        ({"size": (24, 15)}, "Width and height must be divisible by 2, got 24x15"),
        ({"size": (0, 16)}, "Width and height must be divisible by 2, got 0x16"),
        ({"strength": 0.5}, "A strength of 0.5 is for drawing from an image: give one, too"),
        ({"image": PICTURE, "strength": 0.0}, "The strength must be above 0 and at most 1, got 0.0"),
        ({"image": PICTURE, "strength": 1.2}, "The strength must be above 0 and at most 1, got 1.2"),
        ({"image": PICTURE, "strength": 0.1}, "A strength of 0.1 leaves none of 6 steps: take 0.167 or more"),
        ({"image": PICTURE[..., 0]}, r"The image must have shape \(16, 24, 3\), got \(16, 24\)"),
        ({"mask": MASK}, "A mask says where an image is drawn anew: give the image, too"),
        ({"image": PICTURE, "mask": MASK[1:]}, "The mask is 24x15 and the image 24x16: make them alike"),
    ],
    ids=str,
)
def test_mistakes_are_told_before_anything_is_drawn(options, words):
    with pytest.raises(UserError, match=words):
        painter(4).draw(PROMPT, **{"seed": SEED, "steps": 6, "size": (WIDTH, HEIGHT)} | options)


def test_models_that_cannot_do_what_is_asked(monkeypatch):
    with pytest.raises(UserError, match="This model draws parts of an image anew: give an image and a mask"):
        painter(9).draw(PROMPT)
    monkeypatch.delitem(painter(4).pipeline._parts, "encode")
    with pytest.raises(UserError, match="takes the encoder, which was not loaded"):
        painter(4).draw(PROMPT, image=PICTURE)


@pytest.mark.once
def test_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="There is no pipeline.json in .*: give a folder that `zoo convert"):
        load_painter(tmp_path)
    settings = read_settings(folder())
    for change, words in (
        ({"kind": "other"}, "does not describe a pipeline of kind 'stable_diffusion'"),
        ({"sampler": "lcm"}, "says sampler is 'lcm', where a value one of ddpm"),
        ({"downsampling": None}, "says downsampling is None, where a value of type int"),
        ({"offset": True}, "says offset is True, where a value of type int"),
        ({"schedule": {"kind": "linear"}}, "says beta_start is None"),
    ):
        (tmp_path / "pipeline.json").write_text(json.dumps(settings | change))
        with pytest.raises(UserError, match=words):
            load_painter(tmp_path)
    (tmp_path / "pipeline.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="There is no tokenizer.json in"):
        load_painter(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json is not a tokenizer"):
        load_painter(tmp_path)
    (tmp_path / "tokenizer.json").write_text((folder() / "tokenizer.json").read_text())
    for name in ("text_encoder", "encoder", "denoiser"):
        (tmp_path / f"{name}.keras").symlink_to(folder() / f"{name}.keras")
    with pytest.raises(UserError, match="has no decoder.keras: convert it again"):
        load_painter(tmp_path)
    (tmp_path / "decoder.keras").symlink_to(folder() / "encoder.keras")
    with pytest.raises(UserError, match="decoder.keras takes 3 channels of latents, not 4: its files do not belong"):
        load_painter(tmp_path)


# ------------------------------------------------------------------------------------------------------ picture files


@pytest.mark.once
@pytest.mark.parametrize("size", [(24, 16), (37, 29)])
def test_pictures_are_read_as_diffusers_reads_them(size, tmp_path):
    processor = importlib.import_module("diffusers.image_processor").VaeImageProcessor
    noise = RNG.integers(0, 256, (*size[::-1], 3)).astype("uint8")
    Image.fromarray(noise).save(tmp_path / "picture.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "mask.png")
    pixels, mask = pictures.read_start(tmp_path / "picture.png", tmp_path / "mask.png", multiple=8)
    expected = processor(vae_scale_factor=8).preprocess(Image.open(tmp_path / "picture.png"))
    np.testing.assert_allclose(pixels / 127.5 - 1, expected[0].permute(1, 2, 0), atol=1e-6)
    grey = processor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected = grey.preprocess(Image.open(tmp_path / "mask.png"))
    np.testing.assert_array_equal(mask, expected[0, 0].numpy() == 1)


@pytest.mark.once
def test_picture_files(tmp_path):
    frames = [np.stack([PICTURE, 255 - PICTURE]) // (k + 1) for k in range(3)]  # two drawings at three moments
    pictures.write_png(tmp_path / "a.png", PICTURE, {"prompt": "füchse im Schnee", "seed": "1"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"prompt": "füchse im Schnee", "seed": "1"}
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
    pictures.write_strip(tmp_path / "strip.png", frames)
    with Image.open(tmp_path / "strip.png") as image:
        assert image.size == (3 * WIDTH, 2 * HEIGHT)
        np.testing.assert_array_equal(np.asarray(image)[HEIGHT:, WIDTH : 2 * WIDTH], frames[1][1])
    pictures.write_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3 and image.size == (2 * WIDTH, HEIGHT) and image.info["loop"] == 0
    with pytest.raises(UserError, match="Cannot write .*: name another file"):
        pictures.write_strip(tmp_path / "strip.txt", frames)
    with pytest.raises(UserError, match="Cannot write /nowhere/a.png .No such file or directory.: name another file"):
        pictures.write_png("/nowhere/a.png", PICTURE, {})
    assert pictures.moments(30, 4) == {1, 11, 20, 30} and pictures.moments(3, 8) == {1, 2, 3}
    assert pictures.moments(5, 1) == {5}


@pytest.mark.once
def test_pictures_to_begin_with(tmp_path):
    Image.fromarray(PICTURE).resize((100, 50)).save(tmp_path / "large.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    assert pictures.read_start(tmp_path / "large.png", multiple=8, largest=60)[0].shape == (24, 56, 3)
    assert pictures.read_start(tmp_path / "large.png", size=(32, 40))[0].shape == (40, 32, 3)
    with pytest.raises(UserError, match="The mask .*mask.png is 24x16 and the picture .*large.png 100x50: make them"):
        pictures.read_start(tmp_path / "large.png", tmp_path / "mask.png")
