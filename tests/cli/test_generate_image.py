"""`zoo generate` with a text-to-image preset: equal images on every backend, metadata, error messages."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from tests.tasks.test_text_to_image import MASK, PICTURE, folder
from zoo import cli
from zoo.cli import generate
from zoo.errors import UserError
from zoo.generation.diffusion.noise_sampler import SAMPLERS
from zoo.tasks.text_to_image import TextToImage

pytestmark = pytest.mark.once


def test_samplers_are_those_of_the_zoo():
    assert generate.SAMPLERS == tuple(SAMPLERS)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "backend", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tensorflow", "jax"))]
)
def test_the_command_gives_the_images_of_the_class(run, tmp_path, backend, capsys):
    """Two images by a sampler that adds noise in every step, with a negative prompt; their strips and animations.

    The class computes on PyTorch, and there the command runs in this process.
    """
    prompt = "a red fox in the snow, a photograph of the fox"
    arguments = [prompt, "--negative-prompt", "blurry", "--num-steps", 10]
    arguments += ["--sampler", "euler_ancestral", "--seed", 3, "--num-images", 2, "--size", "48x32"]
    arguments += ["--output", tmp_path / "fox.png", "--save-strip", tmp_path / "strip.png"]
    command = ["generate", folder(), *arguments, "--save-gif", tmp_path / "fox.gif"]
    if backend == "torch":
        assert cli.run([*map(str, command)]) == 0
        stdout, stderr = capsys.readouterr()
    else:
        ended = run(["-m", "zoo", *command], backend=backend)
        assert ended.returncode == 0, ended.stderr
        stdout, stderr = ended.stdout, ended.stderr
    assert "note: The prompt is longer than 10 tokens: 'the fox' was left out.\n" in stderr
    lines = stdout.splitlines()
    assert lines[:2] == [f"{tmp_path / f'fox-{seed}.png'}: 48x32, seed {seed}" for seed in (3, 4)]
    assert lines[2].endswith("the image after steps 1, 2, 4, 5, 6, 7, 9, 10")
    assert lines[3].endswith("10 of 10 steps")
    assert re.fullmatch(rf"10 steps of euler_ancestral in .* s on {backend}", lines[4])
    files = [Image.open(tmp_path / name) for name in ("fox-3.png", "fox-4.png", "strip.png")]
    assert [file.size for file in files] == [(48, 32), (48, 32), (8 * 48, 2 * 32)]
    assert files[1].text.pop("Software").startswith("zoo ")
    assert files[1].text == {
        "model": folder().name,
        "prompt": prompt,
        "negative_prompt": "blurry",
        "num_steps": "10",
        "guidance_scale": "7.5",
        "sampler": "euler_ancestral",
        "size": "48x32",
        "seed": "4",
    }
    with Image.open(tmp_path / "fox.gif") as animation:
        assert animation.n_frames == 10 and animation.size == (96, 32)
    *found, strip = (np.asarray(file).astype(int) for file in files)
    np.testing.assert_array_equal(strip[32:, -48:], found[1])  # the strip ends with the image
    with pytest.warns(UserWarning, match="'the fox' was left out"):
        options = {"num_steps": 10, "sampler": "euler_ancestral", "width": 48, "height": 32}
        expected = TextToImage.from_preset(folder()).generate(
            prompt, negative_prompt="blurry", seed=3, num_images_per_prompt=2, **options
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs).max() <= 2 and ours.std() > 20


def test_inpainting(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PICTURE).save("start.png")
    Image.fromarray(MASK).save("mask.png")
    arguments = [
        "--image",
        "start.png",
        "--mask-image",
        "mask.png",
        "--strength",
        "0.9",
        "--sampler",
        "ddim",
        "--eta",
        "0.2",
    ]
    cli.run(["generate", str(folder()), "The Fox: 2!", "--num-steps", "4", *arguments])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "the-fox-2.png: 24x16, seed 0",
        "the-fox-2-steps.png: the image after steps 1, 2, 3",  # images so small come with a strip
    ]
    assert lines[2].startswith("3 of 4 steps of ddim in ")
    with Image.open("the-fox-2-steps.png") as image:
        assert image.size == (3 * 24, 16)
    with Image.open("the-fox-2.png") as image:
        settings = {"image": "start.png", "mask_image": "mask.png", "strength": "0.9", "eta": "0.2", "sampler": "ddim"}
        assert settings.items() <= image.text.items()


def test_a_folder_by_its_name(tmp_path, capsys, monkeypatch):
    (tmp_path / "fox").symlink_to(folder())
    monkeypatch.setenv("ZOO_MODELS_DIR", str(tmp_path))
    cli.run(["generate", "fox", "a fox", "--num-steps", "1", "--size", "16x16", "--output", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").is_file()
    with pytest.raises(UserError, match="There is no model 'foxx' in .* Did you mean 'fox'"):
        cli.run(["generate", "foxx", "a fox"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([".", "--sampler", "dpmpp"], "There is no sampler 'dpmpp': choose one of ddpm, .* Did you mean 'dpmpp_2m'"),
        ([".", "--num-steps", "0"], "--num-steps: must be at least 1, got 0"),
        ([".", "--num-images", "0"], "--num-images: must be at least 1, got 0"),
        ([".", "--seed", "-1"], "--seed: must be at least 0, got -1"),
        ([".", "--size", "512"], "'512' is not a size such as 768x512"),
        (
            [".", "--mask-image", "mask.png"],
            "--mask-image is for image-to-image generation: give the initial image with",
        ),
        (
            [".", "--strength", "0.5"],
            "--strength is for image-to-image generation: give the initial image with --image",
        ),
        (["nowhere"], "There is no model 'nowhere' in .*saved_models"),
    ],
    ids=" ".join,
)
def test_mistakes_are_reported_at_once(run, arguments, words):
    start = time.perf_counter()
    ended = run(["-m", "zoo", "generate", arguments[0], "a fox", *arguments[1:]])
    assert ended.returncode == 2 and ended.stdout == "" and ended.stderr.count("\n") == 1
    assert re.search(words, ended.stderr), ended.stderr
    assert time.perf_counter() - start < 3  # before any framework is loaded


@pytest.fixture(scope="module")
def task():
    return TextToImage.from_preset(folder())


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--output", "fox.jpg"], "fox.jpg does not end in .png: give another name"),
        (["--save-gif", "fox.png"], "fox.png does not end in .gif: give another name"),
        (
            ["--save-strip", "nowhere/fox.png"],
            "There is no folder nowhere to write fox.png to: make it, or name another",
        ),
        (["--image", "nowhere.png"], "There is no image at nowhere.png"),
        (["--size", "17x16"], "Width and height must be divisible by 2, got 17x16"),
    ],
    ids=" ".join,
)
def test_mistakes_are_reported_before_anything_is_generated(arguments, words, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TextToImage, "from_preset", lambda *arguments, **options: task)
    with pytest.raises(UserError, match=words):
        cli.run(["generate", str(folder()), "a fox", *arguments])
    assert not list(tmp_path.iterdir())


def test_a_preset_says_how_many_steps_and_how_much_guidance_it_takes(tmp_path, capsys):
    own, output = shutil.copytree(folder(), tmp_path / "own"), tmp_path / "fox.png"
    (own / "generation_config.json").write_text(json.dumps({"num_steps": 3, "guidance_scale": 2.5}))
    arguments = ["generate", str(own), "a fox", "--size", "16x16", "--output", str(output)]
    cli.run(arguments)
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 steps of")
    assert Image.open(output).text["guidance_scale"] == "2.5"
    task = TextToImage.from_preset(own)
    np.testing.assert_array_equal(np.asarray(Image.open(output)), task.generate("a fox", width=16, height=16))
    (own / "generation_config.json").write_text(json.dumps({"num_steps": "many"}))
    with pytest.raises(UserError, match="says num_steps is 'many', where a whole number or null was expected"):
        cli.run(arguments)
