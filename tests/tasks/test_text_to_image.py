"""Images against the pipelines of diffusers with the same noise, no pixel differing by more than 2 of 255; the task."""

import collections
import dataclasses
import functools
import importlib
import json
import pathlib
import shutil
import tempfile
import threading

import keras
import numpy as np
import pytest
from PIL import Image

import zoo
from tests.tiny_diffusion import SCHEDULER, SCHEDULERS, WORDS, feed_noise, tiny_pipeline
from zoo.converters import stable_diffusion
from zoo.errors import UserError
from zoo.generation.diffusion.noise_sampler import seeded_noise
from zoo.io import cards, images
from zoo.tasks.text_to_image import TextToImage, load_pipeline_config

pytest.importorskip("diffusers"), pytest.importorskip("transformers"), pytest.importorskip("torch")

WIDTH, HEIGHT = 24, 16  # of the images; diffusers takes multiples of 8 only
LATENTS = (HEIGHT // 2, WIDTH // 2, 4)
PROMPT, NEGATIVE, SEED = "a red fox in the snow", "blurry photograph", 5
RNG = np.random.default_rng(0)
PICTURE = np.kron(RNG.integers(0, 256, (4, 6, 3)), np.ones((4, 4, 1))).astype("uint8")
MASK = np.zeros((HEIGHT, WIDTH), bool)
MASK[3:12, 6:17] = True
TOLERANCE = 2


@functools.cache
def saved(channels):
    """A folder in the layout of diffusers."""
    folder = pathlib.Path(tempfile.mkdtemp())
    tiny_pipeline(channels).save_pretrained(folder)
    return folder


@functools.cache
def folder():
    """A converted folder."""
    out = pathlib.Path(tempfile.mkdtemp())
    stable_diffusion.convert(saved(4), out, log=lambda line: None)
    return out


@functools.cache
def task(channels):
    """A task whose `calls` counts how often Python calls its denoiser. All else is the same for 4 channels and 9."""
    if channels == 4:
        made = TextToImage.from_preset(folder())
    else:
        denoiser = stable_diffusion._Source(saved(channels)).build("denoiser")
        made = TextToImage(task(4).components | {"denoiser": denoiser}, task(4).tokenizer, task(4).pipeline_config)
    denoiser, made.calls = made._pipeline._denoiser, []
    made._pipeline._denoiser = lambda *args, **options: made.calls.append(1) or denoiser(*args, **options)
    return made


OPTIONS = {"negative_prompt": NEGATIVE, "seed": SEED, "num_steps": 6, "width": WIDTH, "height": HEIGHT}


def ours(channels=4, prompt=PROMPT, **options):
    """Images (B, H, W, 3)."""
    found = task(channels).generate(prompt, **OPTIONS | options)
    return found if found.ndim == 4 else found[None]


def theirs(monkeypatch, kind, sampler, noise, channels=4, config=None, **options):
    """Images of a pipeline of diffusers, (B, H, W, 3) uint8, with noise from an iterator."""
    import diffusers

    made = tiny_pipeline(channels)
    scheduler = getattr(diffusers, SCHEDULERS[sampler]).from_config(SCHEDULER | (config or {}))
    pipeline = getattr(diffusers, kind)(**made.components | {"scheduler": scheduler}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    feed_noise(monkeypatch, noise)
    size = {} if "Img2Img" in kind else {"width": WIDTH, "height": HEIGHT}
    options = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 6} | size | options
    return np.stack([np.asarray(image) for image in pipeline(**options).images])


def noises(seed=SEED, skip=()):
    """The noise that ours takes of a seed, in order; zeros where only diffusers takes some."""
    sample_noise, index = seeded_noise([seed]), 0
    while True:
        yield np.zeros((1, *LATENTS), "float32") if index in skip else sample_noise(LATENTS)
        index += 1


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= TOLERANCE
    assert theirs.std() > 20  # anything but gray


# ---------------------------------------------------------------------------------------------------------- diffusers


@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_text_to_image(sampler, monkeypatch):
    assert_same(ours(sampler=sampler), theirs(monkeypatch, "StableDiffusionPipeline", sampler, noises()))


def test_other_guidance(monkeypatch):
    expected = theirs(monkeypatch, "StableDiffusionPipeline", "plms", noises(), guidance_scale=3.0)
    assert_same(ours(guidance_scale=3.0), expected)
    assert np.abs(expected.astype(int) - ours()).max() > 20


@pytest.mark.slow("tensorflow", "jax")
def test_two_images_without_guidance(monkeypatch):
    """Each is the one that diffusers generates alone."""
    options = {"guidance_scale": 1.0, "num_images_per_prompt": 2}
    found, run = ours(**options), functools.partial(theirs, monkeypatch, "StableDiffusionPipeline", "plms")
    for index in range(2):
        assert_same(found[index : index + 1], run(noises(SEED + index), guidance_scale=1.0))
    assert np.abs(found[0].astype(int) - found[1]).max() > 20


def test_prompts_and_negative_prompts_make_a_difference():
    found = [ours(), ours(prompt="the fox"), ours(negative_prompt="")]
    assert all(np.abs(found[0].astype(int) - other).max() > 20 for other in found[1:])


@pytest.mark.parametrize(
    "prediction_type, sampler, spacing", [("v_prediction", "ddim", "trailing"), ("sample", "euler", "linspace")]
)
def test_prediction_types_and_spacings(prediction_type, sampler, spacing, monkeypatch):
    config = {"prediction_type": prediction_type, "timestep_spacing": spacing}
    for key, value in config.items():
        monkeypatch.setitem(task(4).pipeline_config, key, value)
    expected = theirs(monkeypatch, "StableDiffusionPipeline", sampler, noises(), config=config)
    assert_same(ours(sampler=sampler), expected)


def test_ddim_with_noise(monkeypatch):
    expected = theirs(monkeypatch, "StableDiffusionPipeline", "ddim", noises(), eta=0.8)
    assert_same(ours(sampler="ddim", eta=0.8), expected)


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_image_to_image(sampler, strength, monkeypatch):
    expected = theirs(
        monkeypatch,
        "StableDiffusionImg2ImgPipeline",
        sampler,
        noises(),
        image=Image.fromarray(PICTURE),
        strength=strength,
    )
    assert_same(ours(sampler=sampler, image=PICTURE, strength=strength), expected)


INPAINTING = [("plms", 1.0), ("plms", 0.7), ("euler", 0.7), ("heun", 1.0)]


@pytest.mark.parametrize("sampler, strength", INPAINTING)
@pytest.mark.parametrize("channels, count", [(4, 2), (9, 1)])
@pytest.mark.slow("tensorflow", "jax")  # the pipeline compiles again for other batches and channels
def test_inpainting(sampler, strength, channels, count, monkeypatch):
    """Two images with 4 channels, each of which is the one that diffusers generates alone."""
    options = {"sampler": sampler, "strength": strength}
    found = ours(channels, image=PICTURE, mask_image=MASK, num_images_per_prompt=count, **options)
    for index in range(count):
        expected = theirs(
            monkeypatch,
            "StableDiffusionInpaintPipeline",
            noise=noises(SEED + index, skip=(2,) if channels == 4 else ()),  # the masked image, not used with 4
            channels=channels,
            image=Image.fromarray(PICTURE),
            mask_image=Image.fromarray(MASK),
            **options,
        )
        assert_same(found[index : index + 1], expected)


# -------------------------------------------------------------------------------------------------------------- steps


def test_every_step_is_shown():
    steps = list(task(4).stream(PROMPT, num_steps=5, sampler="euler", width=WIDTH, height=HEIGHT))
    assert [(step.step, step.num_evaluations) for step in steps] == [(k, 5) for k in range(1, 6)]
    assert [step.timestep for step in steps] == [999, 749.25, 499.5, 249.75, 0]
    for step in steps:
        assert step.latents.shape == step.pred_x0.shape == (1, *LATENTS)
        assert isinstance(step.latents, np.ndarray) and step.latents.dtype == np.float32
    scale = [task(4)._pipeline.plan(5, sampler="euler").input_scales[index] for index in (1, 2, 3, 4)] + [1]
    states = [np.asarray(keras.ops.convert_to_numpy(step._state[0])) for step in steps]
    for step, factor, state in zip(steps, scale, states):  # the decoder knows no latents with a σ of 80
        np.testing.assert_allclose(step.latents, factor * state, rtol=1e-6)
    np.testing.assert_allclose(steps[-1].latents, steps[-1].pred_x0, atol=1e-5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        steps[0].step = 3


def test_latents_of_the_caller():
    latents = seeded_noise([SEED])(LATENTS)
    np.testing.assert_array_equal(ours(latents=latents), ours())
    with pytest.raises(UserError, match=r"must have shape \(1, 8, 12, 4\), got \(1, 12, 4\)"):
        ours(latents=latents[0])


def test_a_step_is_compiled_once_for_all_samplers_and_numbers():
    ours()
    before = len(task(4).calls)
    for sampler, num_steps, guidance_scale in (("plms", 3, 7.5), ("heun", 2, 2.0), ("dpmpp_2m", 5, 4.0)):
        assert ours(sampler=sampler, num_steps=num_steps, guidance_scale=guidance_scale).std() > 20
    assert len(task(4).calls) == before


# ----------------------------------------------------------------------------------------------------- one item or many


@pytest.mark.slow("tensorflow", "jax")
def test_one_prompt_is_one_image_and_a_list_is_a_batch():
    """Image i has the noise of seed + i, whatever else is in the batch and whatever the batch size."""
    options = OPTIONS | {"num_steps": 3}
    one = task(4).generate(PROMPT, **options)
    assert one.shape == (HEIGHT, WIDTH, 3) and one.dtype == np.uint8
    many = task(4).generate([PROMPT, "the fox", PROMPT], **options)
    assert many.shape == (3, HEIGHT, WIDTH, 3) and many.dtype == np.uint8
    alone = [
        task(4).generate(prompt, **options | {"seed": SEED + index}) for index, prompt in enumerate([PROMPT, "the fox"])
    ]
    for found, expected in zip(many, alone):
        assert np.abs(found.astype(int) - expected).max() <= 1
    assert np.abs(many[0].astype(int) - many[2]).max() > 20
    assert np.abs(task(4).generate([PROMPT], **options)[0].astype(int) - one).max() <= 1
    for batch_size in (1, 2):
        batched = task(4).generate([PROMPT, "the fox", PROMPT], batch_size=batch_size, **options)
        assert np.abs(batched.astype(int) - many).max() <= 1


@pytest.mark.slow("tensorflow", "jax")
def test_images_of_one_prompt_stand_in_a_row():
    options = OPTIONS | {"num_steps": 3, "num_images_per_prompt": 2}
    many = task(4).generate(
        [PROMPT, "the fox"],
        negative_prompt=[NEGATIVE, ""],
        **{k: options[k] for k in options if k != "negative_prompt"},
    )
    last = task(4).generate("the fox", **options | {"negative_prompt": "", "seed": SEED + 2})
    assert many.shape == (4, HEIGHT, WIDTH, 3) and last.shape == (2, HEIGHT, WIDTH, 3)
    assert np.abs(many[2:].astype(int) - last).max() <= 1


def test_no_prompt_is_no_image():
    assert task(4).generate([]).shape == (0, 16, 16, 3) and task(4).generate([]).dtype == np.uint8
    assert task(4).preprocess([]).shape == (0, 12)


def test_the_last_step_is_what_generate_gives():
    options = OPTIONS | {"num_steps": 3}
    (last,) = collections.deque(task(4).stream(PROMPT, **options), maxlen=1)
    np.testing.assert_array_equal(last.decode()[0], task(4).generate(PROMPT, **options))
    np.testing.assert_array_equal(task(4).postprocess(last.latents), last.decode())
    with pytest.raises(UserError, match="stream takes one prompt"):
        task(4).stream([PROMPT])


@pytest.mark.slow("tensorflow", "jax")
def test_seeds():
    """0 unless said, None for a fresh one; global seeds are neither used nor changed."""
    options = {key: value for key, value in OPTIONS.items() if key != "seed"} | {"num_steps": 2}
    before = np.random.get_state()[1].tolist()
    first = task(4).generate(PROMPT, **options)
    np.random.seed(1), keras.utils.set_random_seed(1)
    state = np.random.get_state()[1].tolist()
    np.testing.assert_array_equal(task(4).generate(PROMPT, **options), first)
    np.testing.assert_array_equal(task(4).generate(PROMPT, seed=0, **options), first)
    assert np.random.get_state()[1].tolist() == state != before
    fresh = [task(4).generate(PROMPT, seed=None, **options) for _ in range(2)]
    assert np.abs(fresh[0].astype(int) - fresh[1]).max() > 20


def test_several_threads():
    expected, found = [ours(seed=seed, num_steps=3)[0] for seed in range(3)], {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.setdefault(seed, ours(seed=seed, num_steps=3)[0]))
        for seed in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(3):
        np.testing.assert_array_equal(found[seed], expected[seed])


# ------------------------------------------------------------------------------------------------- settings and presets


@pytest.mark.once
def test_settings_taken_when_nothing_is_said(tmp_path, monkeypatch):
    assert TextToImage.DEFAULTS == {
        **{"num_steps": 50, "guidance_scale": 7.5, "negative_prompt": "", "eta": 0.0, "sampler": None}
    }
    assert task(4)._sampling_settings() == TextToImage.DEFAULTS | {"sampler": "plms"}
    made = TextToImage(
        *(task(4).components, task(4).tokenizer, task(4).pipeline_config),
        generation_config={"num_steps": 3, "guidance_scale": 2, "sampler": "euler"},
    )
    made.save_to_preset(tmp_path / "mine")
    loaded = TextToImage.from_preset(tmp_path / "mine")
    size = {"width": WIDTH, "height": HEIGHT}
    expected = task(4).generate(PROMPT, num_steps=3, guidance_scale=2, sampler="euler", **size)
    np.testing.assert_array_equal(loaded.generate(PROMPT, **size), expected)
    np.testing.assert_array_equal(
        loaded.generate(PROMPT, num_steps=2, **size),
        task(4).generate(PROMPT, num_steps=2, guidance_scale=2, sampler="euler", **size),
    )
    assert zoo.load_task(tmp_path / "mine").generation_config == loaded.generation_config
    assert zoo.TextToImage is TextToImage and "diffusion_captions" in TextToImage.presets
    card = cards.read_card(tmp_path / "mine")
    assert card["task"] == "text-to-image" and set(card["files"]) == {
        *(f"{name}.keras" for name in stable_diffusion.COMPONENT_BUILDERS),
        "tokenizer.json",
        "pipeline.json",
    }


@pytest.mark.slow("tensorflow", "jax")
def test_components_can_be_trained():
    made = task(4)
    denoiser = made.components["denoiser"]
    before = made.generate(PROMPT, **OPTIONS | {"num_steps": 2})
    inputs = [np.zeros((2, 4, 4, 4), "float32"), np.array([3.0, 500.0], "float32"), np.ones((2, 12, 24), "float32")]
    expected = [np.array(keras.ops.convert_to_numpy(weight)) for weight in denoiser.weights]
    denoiser.compile(keras.optimizers.SGD(0.05), "mse")
    denoiser.fit(inputs, np.ones((2, 4, 4, 4), "float32"), verbose=0)
    changed = [np.abs(keras.ops.convert_to_numpy(one) - old).max() for one, old in zip(denoiser.weights, expected)]
    assert sum(change > 0 for change in changed) > len(changed) / 2
    after = made.generate(PROMPT, **OPTIONS | {"num_steps": 2})
    denoiser.set_weights(expected)
    assert np.abs(after.astype(int) - before).max() > 0
    np.testing.assert_array_equal(made.generate(PROMPT, **OPTIONS | {"num_steps": 2}), before)
    assert type(denoiser).call is keras.Model.call or "call" not in vars(denoiser.layers[-1])


@pytest.mark.once
def test_wrong_presets(tmp_path):
    with pytest.raises(
        UserError, match="is a preset for image-classification, not for text-to-image: load it with zoo"
    ):
        TextToImage.from_preset("cnn_mnist")
    with pytest.raises(UserError, match="is in the format of diffusers: .*zoo convert stable-diffusion"):
        TextToImage.from_preset(saved(4))
    shutil.copytree(folder(), tmp_path / "altered")
    (tmp_path / "altered" / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json has sha256"):
        TextToImage.from_preset(tmp_path / "altered")


# ------------------------------------------------------------------------------------------------------------ prompts


@pytest.mark.parametrize(
    "prompt",
    ["", PROMPT, "A  Red\tFOX!", "unknown words", "the snow in " * 3 + "the end", "red,fox" * 9],
)
def test_tokens_are_those_of_clip(prompt):
    token_ids, truncated = task(4).tokenize(prompt)
    theirs = tiny_pipeline(4).tokenizer(prompt, padding="max_length", max_length=12, truncation=True)["input_ids"]
    assert token_ids == theirs and len(token_ids) == 12
    whole = tiny_pipeline(4).tokenizer(prompt)["input_ids"]
    assert bool(truncated) == (len(whole) > 12)
    if truncated:
        assert prompt.endswith(truncated)
        assert tiny_pipeline(4).tokenizer(truncated)["input_ids"][1:-1] == whole[11:-1]


def test_what_a_prompt_is_too_long_by_is_named():
    long = " ".join(WORDS) + " in the snow"
    with pytest.warns(UserWarning, match="^The prompt is longer than 10 tokens: 'the snow' was left out.$"):
        task(4).stream(long)
    with pytest.warns(UserWarning, match="^The negative prompt is longer than 10 tokens: 'the snow' was left out.$"):
        task(4).stream("", negative_prompt=long)


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    "options, words",
    [
        ({"sampler": "dpmpp"}, "There is no sampler 'dpmpp': choose one of ddpm, .* Did you mean 'dpmpp_2m'"),
        ({"num_steps": 0}, "num_steps must be an integer from 1 up, got 0"),
        ({"num_steps": 1001}, "num_steps must be from 1 to 1,000, got 1001"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be an integer from 1 up, got 0"),
        ({"batch_size": 0}, "batch_size must be an integer from 1 up, got 0"),
        ({"seed": -1}, "seed must be an integer from 0 up, or None for a fresh one, got -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a number from 0 up, got nan"),
        ({"negative_prompt": ["", ""]}, "Give one negative prompt, or one for each of 1 prompts, got 2"),
        ({"eta": 1.5}, "eta must be from 0 to 1, got 1.5"),
        ({"height": 15}, "Width and height must be divisible by 2, got 24x15"),
        ({"width": 0}, "Width and height must be divisible by 2, got 0x16"),
        ({"strength": 0.5}, "A strength of 0.5 is for image-to-image generation: give an image as well"),
        ({"image": PICTURE, "strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"image": PICTURE, "strength": 1.2}, "strength must be above 0 and at most 1, got 1.2"),
        ({"image": PICTURE, "strength": 0.1}, "A strength of 0.1 leaves none of 6 steps: take 0.167 or more"),
        ({"image": PICTURE / 255}, r"An image is .* integers from 0 to 255, got float64 of shape \(16, 24, 3\)"),
        ({"image": "nowhere.png"}, "There is no image at nowhere.png"),
        ({"mask_image": MASK}, "A mask says which part of an image is repainted: give the image as well"),
        ({"image": PICTURE, "mask_image": MASK[1:]}, "The mask is 24x15 and the image 24x16: give a mask of the"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_anything_is_generated(options, words):
    with pytest.raises(UserError, match=words):
        task(4).generate(PROMPT, **OPTIONS | options)


def test_models_that_cannot_do_what_is_asked():
    with pytest.raises(UserError, match="This is an inpainting model: give an image and a mask"):
        task(9).generate(PROMPT)
    parts = {name: model for name, model in task(4).components.items() if name != "encoder"}
    without = TextToImage(parts, task(4).tokenizer, task(4).pipeline_config)
    with pytest.raises(UserError, match="Image-to-image generation needs the encoder, which was not loaded"):
        without.generate(PROMPT, image=PICTURE)
    with pytest.raises(UserError, match=r"not found: \['decoder'\]"):
        TextToImage(parts | {"decoder": None}, task(4).tokenizer, task(4).pipeline_config)


@pytest.mark.once
def test_folders_that_cannot_be_used(tmp_path):
    config, load = load_pipeline_config(folder()), lambda: TextToImage.from_preset(tmp_path)
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(UserError, match="There is no pipeline.json in .*: give a folder that `zoo convert"):
        load()
    for change, words in (
        ({"kind": "other"}, "does not describe a pipeline of kind 'stable_diffusion'"),
        ({"sampler": "unipc"}, "says sampler is 'unipc', where plms or ddim or ddpm"),
        ({"vae_scale_factor": None}, "does not say vae_scale_factor"),
        ({"steps_offset": True}, "says steps_offset is True, where a whole number"),
        ({"noise_schedule": {"beta_schedule": "linear"}}, "does not say beta_start in noise_schedule"),
    ):
        (tmp_path / "pipeline.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=words):
            load()
    (tmp_path / "pipeline.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="There is no tokenizer.json in"):
        load()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer.json does not say model"):
        load()
    (tmp_path / "tokenizer.json").write_text((folder() / "tokenizer.json").read_text())
    for name in ("text_encoder", "encoder", "denoiser"):
        (tmp_path / f"{name}.keras").symlink_to(folder() / f"{name}.keras")
    with pytest.raises(UserError, match="has no decoder.keras: convert it again"):
        load()
    (tmp_path / "decoder.keras").symlink_to(folder() / "encoder.keras")
    with pytest.raises(UserError, match="the decoder takes 3 latent channels, not 4: its components do not belong"):
        load()


# -------------------------------------------------------------------------------------------------------- image files


@pytest.mark.once
@pytest.mark.parametrize("size", [(24, 16), (37, 29)])
def test_images_are_loaded_as_diffusers_loads_them(size, tmp_path):
    processor = importlib.import_module("diffusers.image_processor").VaeImageProcessor
    noise = RNG.integers(0, 256, (*size[::-1], 3)).astype("uint8")
    Image.fromarray(noise).save(tmp_path / "image.png")
    Image.fromarray(noise[..., 0]).save(tmp_path / "mask.png")
    pixels, mask = images.load_init_image(tmp_path / "image.png", tmp_path / "mask.png", multiple=8)
    expected = processor(vae_scale_factor=8).preprocess(Image.open(tmp_path / "image.png"))
    np.testing.assert_allclose(pixels / 127.5 - 1, expected[0].permute(1, 2, 0), atol=1e-6)
    gray = processor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected = gray.preprocess(Image.open(tmp_path / "mask.png"))
    np.testing.assert_array_equal(mask, expected[0, 0].numpy() == 1)


@pytest.mark.once
def test_image_files(tmp_path):
    frames = [np.stack([PICTURE, 255 - PICTURE]) // (k + 1) for k in range(3)]  # two images at three steps
    images.write_png(tmp_path / "a.png", PICTURE, {"prompt": "füchse im Schnee", "seed": "1"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"prompt": "füchse im Schnee", "seed": "1"}
        np.testing.assert_array_equal(np.asarray(image), PICTURE)
    images.write_strip(tmp_path / "strip.png", frames)
    with Image.open(tmp_path / "strip.png") as image:
        assert image.size == (3 * WIDTH, 2 * HEIGHT)
        np.testing.assert_array_equal(np.asarray(image)[HEIGHT:, WIDTH : 2 * WIDTH], frames[1][1])
    images.write_gif(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames == 3 and image.size == (2 * WIDTH, HEIGHT) and image.info["loop"] == 0
    with pytest.raises(UserError, match="Cannot write .*: name another file"):
        images.write_strip(tmp_path / "strip.txt", frames)
    with pytest.raises(UserError, match="Cannot write /nowhere/a.png .No such file or directory.: name another file"):
        images.write_png("/nowhere/a.png", PICTURE, {})
    assert images.frame_steps(30, 4) == {1, 11, 20, 30} and images.frame_steps(3, 8) == {1, 2, 3}
    assert images.frame_steps(5, 1) == {5}


@pytest.mark.once
def test_initial_images(tmp_path):
    Image.fromarray(PICTURE).resize((100, 50)).save(tmp_path / "large.png")
    Image.fromarray(MASK).save(tmp_path / "mask.png")
    assert images.load_init_image(tmp_path / "large.png", multiple=8, max_side=60)[0].shape == (24, 56, 3)
    assert images.load_init_image(tmp_path / "large.png", size=(32, 40))[0].shape == (40, 32, 3)
    with pytest.raises(UserError, match="The mask .*mask.png is 24x16 and the image .*large.png 100x50: give a"):
        images.load_init_image(tmp_path / "large.png", tmp_path / "mask.png")
