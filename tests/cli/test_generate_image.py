"""`zoo draw` as people type it: the same pictures on every backend, what the files carry, what mistakes are told."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from tests.conftest import BACKENDS
from tests.tasks.test_text_to_image import MASK, PICTURE, folder
from zoo import __main__ as command
from zoo.errors import UserError
from zoo.generation.diffusion.noise_sampler import SAMPLERS

pytestmark = pytest.mark.once


def test_samplers_are_named_as_in_the_models():
    assert command.SAMPLERS == tuple(SAMPLERS)


@pytest.mark.heavy
def test_same_pictures_on_every_backend(run, tmp_path):
    """Two pictures by a sampler that draws noise in every step, with a negative prompt; their strips and animations."""
    drawn = {}
    for backend in BACKENDS:
        out = tmp_path / backend
        out.mkdir()
        arguments = ["a red fox in the snow, a photograph of the fox", "--negative", "blurry", "--steps", 10]
        arguments += ["--sampler", "euler_ancestral", "--seed", 3, "--count", 2, "--size", "48x32"]
        arguments += ["--output", out / "fox.png", "--strip", out / "strip.png", "--gif", out / "fox.gif"]
        ended = run(["-m", "zoo", "draw", folder(), *arguments], backend=backend)
        assert ended.returncode == 0, ended.stderr
        assert "note: The prompt is longer than 10 tokens: 'the fox' was left out.\n" in ended.stderr
        told = ended.stdout.splitlines()
        assert told[:2] == [f"{out / f'fox-{seed}.png'}: 48x32, seed {seed}" for seed in (3, 4)]
        assert told[2].endswith("the picture after steps 1, 2, 4, 5, 6, 7, 9, 10")
        assert told[3].endswith("10 of 10 steps")
        assert re.fullmatch(rf"10 steps of euler_ancestral in .* s on {backend}", told[4])
        files = [Image.open(out / name) for name in ("fox-3.png", "fox-4.png", "strip.png")]
        assert [file.size for file in files] == [(48, 32), (48, 32), (8 * 48, 2 * 32)]
        assert files[1].text.pop("Software").startswith("zoo ")
        assert files[1].text == {
            "model": folder().name,
            "prompt": "a red fox in the snow, a photograph of the fox",
            "negative": "blurry",
            "steps": "10",
            "guidance": "7.5",
            "sampler": "euler_ancestral",
            "size": "48x32",
            "seed": "4",
        }
        with Image.open(out / "fox.gif") as animation:
            assert animation.n_frames == 10 and animation.size == (96, 32)
        drawn[backend] = [np.asarray(file).astype(int) for file in files]
        np.testing.assert_array_equal(
            drawn[backend][2][32:, -48:], drawn[backend][1]
        )  # the strip ends with the picture
    for pictures in drawn.values():
        for ours, theirs in zip(pictures, drawn["torch"]):
            assert np.abs(ours - theirs).max() <= 2 and ours.std() > 20


def test_a_part_of_a_picture_drawn_anew(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PICTURE).save("start.png")
    Image.fromarray(MASK).save("mask.png")
    arguments = ["--from", "start.png", "--mask", "mask.png", "--strength", "0.9", "--sampler", "ddim", "--eta", "0.2"]
    command._main(["draw", str(folder()), "The Fox: 2!", "--steps", "4", *arguments])
    told = capsys.readouterr().out.splitlines()
    assert told[:2] == [
        "the-fox-2.png: 24x16, seed 0",
        "the-fox-2-steps.png: the picture after steps 1, 2, 3",  # pictures so small come with a strip
    ]
    assert told[2].startswith("3 of 4 steps of ddim in ")
    with Image.open("the-fox-2-steps.png") as image:
        assert image.size == (3 * 24, 16)
    with Image.open("the-fox-2.png") as image:
        facts = {"from": "start.png", "mask": "mask.png", "strength": "0.9", "eta": "0.2", "sampler": "ddim"}
        assert facts.items() <= image.text.items()


def test_a_folder_by_its_name(tmp_path, capsys, monkeypatch):
    (tmp_path / "fox").symlink_to(folder())
    monkeypatch.setenv("ZOO_MODELS_DIR", str(tmp_path))
    command._main(["draw", "fox", "a fox", "--steps", "1", "--size", "16x16", "--output", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").is_file()
    with pytest.raises(UserError, match="There is no folder foxx, .* Did you mean 'fox'"):
        command._main(["draw", "foxx", "a fox"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([".", "--sampler", "dpm+"], "There is no sampler 'dpm.': choose one of ddpm, .* Did you mean 'dpm..'"),
        ([".", "--steps", "0"], "--steps must be at least 1, got 0"),
        ([".", "--count", "0"], "--count must be at least 1, got 0"),
        ([".", "--seed", "-1"], "--seed must be at least 0, got -1"),
        ([".", "--size", "512"], "'512' is not a size such as 768x512"),
        ([".", "--mask", "mask.png"], "--mask is for drawing from a picture: give one with --from"),
        ([".", "--strength", "0.5"], "--strength is for drawing from a picture: give one with --from"),
        (["nowhere"], "There is no folder nowhere, and none of that name with a pipeline in .*saved_models"),
    ],
    ids=" ".join,
)
def test_mistakes_are_told_at_once(run, arguments, words):
    began = time.perf_counter()
    ended = run(["-m", "zoo", "draw", arguments[0], "a fox", *arguments[1:]])
    assert ended.returncode == 2 and ended.stdout == "" and ended.stderr.count("\n") == 1
    assert re.search(words, ended.stderr), ended.stderr
    assert time.perf_counter() - began < 3  # before any framework is loaded


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--output", "fox.jpg"], "fox.jpg does not end in .png: give another name"),
        (["--gif", "fox.png"], "fox.png does not end in .gif: give another name"),
        (["--strip", "nowhere/fox.png"], "There is no folder nowhere to write fox.png to: make it, or name another"),
        (["--from", "nowhere.png"], "There is no picture at nowhere.png"),
        (["--size", "17x16"], "Width and height must be divisible by 2, got 17x16"),
    ],
    ids=" ".join,
)
def test_mistakes_are_told_before_anything_is_drawn(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        command._main(["draw", str(folder()), "a fox", *arguments])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_no_pipeline(tmp_path):
    with pytest.raises(UserError, match="There is no pipeline.json in"):
        command._main(["draw", str(tmp_path), "a fox"])


def test_a_model_says_how_many_steps_and_how_much_guidance_it_takes(tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(folder(), own)
    settings = json.loads((own / "pipeline.json").read_text()) | {"steps": 3, "guidance": 2.5}
    (own / "pipeline.json").write_text(json.dumps(settings))
    drawn = tmp_path / "fox.png"
    command._main(["draw", str(own), "a fox", "--size", "16x16", "--output", str(drawn)])
    assert capsys.readouterr().out.splitlines()[-1].startswith("3 steps of")
    assert Image.open(drawn).text["guidance"] == "2.5"
    (own / "pipeline.json").write_text(json.dumps(settings | {"steps": "many"}))
    with pytest.raises(UserError, match="says steps is 'many', where a value of type int was expected"):
        command._main(["draw", str(own), "a fox", "--output", str(drawn)])
