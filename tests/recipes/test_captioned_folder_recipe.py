"""The latent diffusion on captioned pictures of one's own, at a tiny size: from a folder to `zoo generate`."""

import importlib
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

import zoo
from tests.conftest import interrupted_in_second_epoch
from tests.data.test_captioned_folder import write_csv, write_pictures
from tests.recipes.test_diffusion_recipe import SMALL, make_small
from zoo import cli
from zoo.errors import UserError
from zoo.evaluation import captioned_folder as evaluation
from zoo.evaluation.captioned_folder import caption_precision
from zoo.io import cards, model_files
from zoo.training import diffusion

recipe = importlib.import_module("recipes.diffusion_captions")
FLAGS = ["--epochs", "2", "--batch-size", "8", "--num-steps", "2", "--num-eval-prompts", "4"]
PARTS = ("autoencoder", "text_encoder", "denoiser")
COLORS = ("Red", "green", "blue")
PROGRAM = (
    "from zoo import backends; backends.import_keras()\n"
    + SMALL
    + """
import sys
from zoo.training import diffusion
from recipes import diffusion_captions as recipe
diffusion.MIN_STEPS = 3
recipe.main(recipe.parse_args(sys.argv[1:]))
"""
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    make_small(monkeypatch)
    monkeypatch.setattr(diffusion, "MIN_STEPS", 3)
    monkeypatch.setattr(evaluation, "GUIDANCE_SCALES", (1.0, 3.0))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "pictures"
    rows = write_pictures(folder, 40)
    captions = [
        (name, f"a {COLORS[number % 3]} pattern, number {number // 3}") for number, (name, _) in enumerate(rows)
    ]
    write_csv(folder / "metadata.csv", [*captions[:-1], (captions[-1][0], "a pattern of " + "many " * 20 + "words")])
    return folder


def train(pictures, output, *more):
    flags = ["--train-dir", pictures, "--image-size", 32, "--output", output, *FLAGS, *more]
    return recipe.main(recipe.parse_args([*map(str, flags)]))


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """The folder of a finished run and its metrics: a function that makes it at its first call."""
    folder, metrics = tmp_path_factory.mktemp("diffusion") / "run", {}

    def make():
        if not metrics:
            metrics.update(train(pictures, folder))
        return folder, metrics

    return make


def weights(folder, part):
    return {
        weight.path: np.array(weight.numpy() if hasattr(weight, "numpy") else weight)
        for weight in model_files.load_model(folder / f"{part}.keras").weights
    }


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_a_run_is_a_preset_that_generates(finished, tmp_path, capsys, monkeypatch):
    folder, metrics = finished()
    assert list(metrics) == ["autoencoder", "text-encoder", "denoiser", "evaluation"]
    assert (
        metrics["text-encoder"]["vocabulary_size"] > 4 + len(COLORS)
        and metrics["text-encoder"]["dataset"] == "pictures"
    )
    assert metrics["text-encoder"]["temperature"] != 0.07, "it is learnt"
    task = zoo.TextToImage.from_preset(folder)
    config = {name: task.pipeline_config[name] for name in ("image_size", "max_length")}
    assert config == {"image_size": 32, "max_length": 32}  # 23 words, start and end
    images = task.generate(["a red pattern, number 1", "a blue pattern"])
    assert images.shape == (2, 32, 32, 3)
    scores = metrics["evaluation"]
    assert task.generation_config == {"num_steps": 2, "guidance_scale": scores["guidance_scale"]}
    assert 0 <= scores["generated"] <= 1 and scores["candidates"] == scores["num_prompts"] == 4
    assert 0 < scores["reconstruction_error"] < 255 and metrics["denoiser"]["validation_noise_loss"] > 0
    assert {path.name for path in (folder / "evaluation").iterdir()} == {"report.txt", "metrics.json", "samples.png"}

    card = cards.read_card(folder)
    assert "classifier.keras" not in card["files"] and set(card["components"]) == set(PARTS)
    assert card["input"] == "a caption of at most 30 words" and card["output"] == "images (B, 32, 32, 3) uint8"
    assert card["components"]["denoiser"]["input"].startswith("[latents (B, 8, 8, 4)")
    assert card["scores"]["reconstruction_error"] == scores["reconstruction_error"]
    # By the command, which knows the words of the captions and says which it does not.
    monkeypatch.chdir(tmp_path)
    assert cli.main(["generate", str(folder), "a red pattern", "--output", "one.png"]) == 0
    said = capsys.readouterr()
    assert "class" not in said.out + said.err
    with pytest.warns(UserWarning, match="words that this model does not know: 'dragon'"):
        task.generate("a dragon")


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_published(finished, tmp_path):
    folder, _ = finished()
    cli.run(
        ["publish", str(folder), "--output", str(tmp_path / "mine"), "--license", "MIT", "--data-license", "CC0-1.0"]
    )
    assert zoo.TextToImage.from_preset(tmp_path / "mine").generate("a red pattern").shape == (32, 32, 3)
    readme = (tmp_path / "mine" / "README.md").read_text()
    assert "a caption of at most 30 words" in readme and "class" not in readme.replace("classifier-free", "")


@pytest.mark.heavy
@pytest.mark.slow
def test_killed_in_every_part_and_resumed_is_the_run_that_was_not(finished, pictures, tmp_path, run):
    """SIGKILL after the first epoch of each part, against a run in one piece."""
    whole, _ = finished()
    arguments = ["-c", PROGRAM, "--train-dir", pictures, "--image-size", 32, *FLAGS, "--output", tmp_path, "--resume"]
    for part in PARTS:
        process = run(arguments, wait=False)
        while process.poll() is None and not (tmp_path / part / "checkpoint.npz").exists():
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        output = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
    resumed = run(arguments)
    assert resumed.returncode == 0 and "Resuming after epoch 1 of 2" in resumed.stdout, resumed.stdout + resumed.stderr
    for name in ("encoder", "decoder", "text_encoder", "denoiser"):
        one, other = weights(whole, name), weights(tmp_path, name)
        assert one.keys() == other.keys() and all(np.array_equal(one[path], other[path]) for path in one), name


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_interrupted_and_resumed_is_bit_for_bit_the_uninterrupted_run(finished, pictures, tmp_path):
    whole, _ = finished()
    for part in ("autoencoder", "text_encoder"):
        with interrupted_in_second_epoch():
            train(pictures, tmp_path, "--stage", part.replace("_", "-"))
        train(pictures, tmp_path, "--stage", part.replace("_", "-"), "--resume")
    for name in ("encoder", "text_encoder"):
        one, other = weights(whole, name), weights(tmp_path, name)
        assert all(np.array_equal(one[path], other[path]) for path in one)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_lora_adapts_the_denoiser_alone(finished, pictures, tmp_path, capsys):
    """The other parts are those of the base; base and adapter generate what the run does."""
    base, _ = finished()
    few = tmp_path / "few"
    shutil.copytree(pictures, few)
    rows = [(path.name, "a violet pattern") for path in sorted(few.glob("0*"))]
    write_csv(few / "metadata.csv", rows)
    lora = ["--init-from", base, "--lora-rank", 2]
    metrics = train(few, tmp_path / "run", *lora)
    assert list(metrics) == ["denoiser", "evaluation"]
    said = " ".join(capsys.readouterr().out.split())
    assert "Words of the captions that are not in the vocabulary: violet." in said
    for name in ("encoder.keras", "decoder.keras", "text_encoder.keras", "tokenizer.json"):
        assert (base / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert set(cards.read_card(tmp_path / "run")["components"]) == set(PARTS)
    adapter = tmp_path / "run" / "denoiser" / "lora.safetensors"
    assert load_file(adapter)
    configs = [json.loads((folder / "pipeline.json").read_text()) for folder in (base, tmp_path / "run")]
    assert configs[0] == configs[1], "the latents are scaled as the denoiser knows them"
    options = {"num_steps": 3, "guidance_scale": 2.0}
    merged = zoo.TextToImage.from_preset(tmp_path / "run").generate("a red pattern", **options)
    applied = zoo.TextToImage.from_preset(base, lora=adapter).generate("a red pattern", **options)
    assert np.abs(merged.astype(int) - applied).max() <= 1
    train(few, tmp_path / "run", *lora, "--overwrite")


def test_the_right_caption_first():
    """Against a loop: images that tell their caption by their first pixel, one of which tells another's."""

    class Model:
        def predict_on_batch(self, inputs):
            token_ids, images = inputs
            return np.array([[-abs(image[0, 0, 0] - ids[0]) for ids in token_ids] for image in images])

    images = np.zeros((120, 2, 2, 3), "uint8")
    images[:, 0, 0, 0] = np.arange(120)
    images[3, 0, 0, 0] = 5
    assert caption_precision(Model(), images, np.arange(120)[:, None]) == pytest.approx(119 / 120)


@pytest.mark.once
@pytest.mark.parametrize(
    "flags, words",
    [
        (["--image-size", "50"], "The image size must be a multiple of 16 from 32 to 256 pixels, got 50"),
        (["--caption-column", "caption"], "has no column 'caption' but file_name, text: add it"),
        (["--stage", "classifier"], "Captioned pictures have no classes to learn: leave --stage classifier out"),
        (["--stage", "denoiser"], "There is no .*encoder.keras.*: run recipes/diffusion_autoencoder.py first"),
        (["--stage", "evaluation"], "There is no .*encoder.keras.*: run recipes/diffusion_autoencoder.py first"),
        (["--perceptual-weight", "1"], "--perceptual-weight takes a classifier's features, and --train-dir has none"),
        (["--lora-rank", "2"], "--lora-rank adapts a trained model: name it with --init-from"),
        (
            ["--lora-rank", "2", "--init-from", "diffusion_captions", "--stage", "autoencoder"],
            "--lora-rank adapts the denoiser alone: leave --stage autoencoder out",
        ),
        (["--lora-rank", "2", "--init-from", "cnn_mnist"], "cnn_mnist has no encoder.keras, .*: name the folder"),
    ],
)
def test_mistakes(pictures, tmp_path, flags, words):
    with pytest.raises(UserError, match=words) as caught:
        train(pictures, tmp_path / "run", "--image-size", "32", *flags)
    assert "\n" not in str(caught.value)


@pytest.mark.once
def test_flags_of_own_pictures_need_their_folder(tmp_path):
    args = recipe.parse_args(["--caption-column", "text", "--output", str(tmp_path)])
    with pytest.raises(UserError, match="--caption-column belongs to --train-dir: name the folder of your pictures"):
        diffusion.load_dataset(args)
