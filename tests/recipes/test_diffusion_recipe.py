"""The recipes of the latent diffusion at a tiny size: what each part leaves, resuming, and mistakes.

The networks are made smaller than the recipes' by changing the variants, in this process and in those it starts.
"""

import importlib
import json
import os
import shutil
import signal
import time

import numpy as np
import pytest

import zoo
from zoo import cli
from zoo.data import captions
from zoo.errors import UserError
from zoo.evaluation import diffusion as evaluation
from zoo.io import cards, files, model_files
from zoo.models import variants
from zoo.training import diffusion

recipe = importlib.import_module("recipes.diffusion_captions")
PARTS = [stage for stage in recipe.RECIPES if stage != "evaluation"]

SMALL = """
from zoo.models import variants
variants.AUTOENCODER["tiny"].update(block_out_channels=(8, 8, 8), norm_num_groups=4)
variants.DENOISER["tiny"].update(
    block_out_channels=(8,), has_attention=(False,), norm_num_groups=4, num_heads=2, cross_attention_dim=8
)
variants.TEXT_ENCODER["tiny"].update(num_layers=1, hidden_dim=8, intermediate_dim=8, num_heads=2)
"""
PROGRAM = (
    "from zoo import backends; backends.import_keras()\n"
    + SMALL
    + """
import sys
from recipes import diffusion_captions as recipe
recipe.RECIPES.pop("evaluation")
recipe.main(recipe.parse_args(sys.argv[1:]))
"""
)
FLAGS = ["--limit", "32", "--epochs", "2", "--batch-size", "8", "--data-dir", "/nowhere"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    make_small(monkeypatch)


def make_small(monkeypatch):
    """Small networks for the rest of a test, and no look for the data server."""
    monkeypatch.setattr("zoo.data.images._server_reachable", lambda: False)
    for name in ("AUTOENCODER", "DENOISER", "TEXT_ENCODER"):
        sizes = getattr(variants, name)
        monkeypatch.setattr(variants, name, {key: dict(value) for key, value in sizes.items()})
    exec(SMALL)


def run_recipe(output, *more):
    return recipe.main(recipe.parse_args([*FLAGS, "--output", str(output), *more]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run: a function that makes it at its first call."""
    folder, metrics = tmp_path_factory.mktemp("diffusion") / "run", {}

    def make():
        for stage in PARTS if not metrics else ():
            metrics.update(run_recipe(folder, "--stage", stage))
        return folder, metrics

    return make


def part_folder(stage):
    return stage.replace("-", "_")


def part_files(stage):
    return diffusion.PARTS[part_folder(stage)]["files"]


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_a_run_leaves_everything_behind(finished):
    folder, metrics = finished()
    assert list(metrics) == PARTS
    made = {path.name for path in folder.iterdir() if path.is_file()}
    assert made == {name for stage in PARTS for name in part_files(stage)} | {"card.json", "generation_config.json"}
    card = cards.read_card(folder)
    for stage, images in (
        ("classifier", set()),
        ("autoencoder", {"restored.png"}),
        ("text-encoder", set()),
        ("denoiser", {"samples.png", "samples.npz", "loss_by_timestep.png"}),
    ):
        found = {path.name for path in (folder / part_folder(stage)).iterdir()}
        assert found == {"history.csv", "metrics.json", "training_curves.png"} | images
        stored = json.loads((folder / part_folder(stage) / "metrics.json").read_text())
        assert stored["epochs"] == 2 and len(stored["first_losses"]) > 3 and stored["dataset"] == "digits"
        assert max(stored["first_losses"]) <= 1.2 * stored["first_losses"][0], "its warm-up is too fast"
        assert set(stored["sha256"]) - {"generation_config.json"} == set(part_files(stage))
        for name, digest in stored["sha256"].items():
            assert files.sha256(folder / name) == digest
            assert card["files"].get(name, {}).get("sha256", digest) == digest
        component = card["components"][part_folder(stage)]
        assert component["epochs"] == 2 and component["parameters"] == metrics[stage]["parameters"]
    assert card["task"] == "text-to-image" and set(card["files"]) == made - {"card.json", "generation_config.json"}
    task = zoo.TextToImage.from_preset(folder)
    images = task.generate(["a red seven on white"] * 2, num_steps=3, guidance_scale=2.0)
    assert images.shape == (2, 48, 48, 3)
    assert task.pipeline_config["scaling_factor"] == metrics["denoiser"]["scaling_factor"]
    # Generation tokenizes a prompt as training did.
    prompts = ["a red seven on white", ""]
    token_ids = diffusion.tokenize_captions(task.tokenizer, prompts, task.pipeline_config["max_length"])
    assert [task.tokenize(prompt)[0] for prompt in prompts] == token_ids.tolist()
    # Words of no caption are named, and an image is generated all the same.
    with pytest.warns(UserWarning, match="^The prompt has words that this model does not know: 'dragon', 'Castle'.$"):
        image = task.generate("a red dragon on white Castle dragon", num_steps=2, guidance_scale=2.0)
    assert image.shape == (48, 48, 3)


def test_no_more_guidance_than_real_images_ask_for():
    accuracies = {1.0: 0.8, 2.0: 0.93, 3.0: 0.96, 4.0: 0.99, 6.0: 0.98}
    assert evaluation.smallest_sufficient_guidance(accuracies, 0.94) == 3.0
    assert evaluation.smallest_sufficient_guidance(accuracies, 0.995) == 4.0  # none reaches it: the best


@pytest.mark.heavy
@pytest.mark.slow
def test_scores(finished, tmp_path, monkeypatch):
    """They are written, and each image of a list of prompts is the one that its prompt and seed alone give."""
    folder, _ = finished()
    monkeypatch.setattr(evaluation, "STEP_COUNTS", (2,))
    monkeypatch.setattr(evaluation, "GUIDANCE_SCALES", (1.0, 2.0))
    monkeypatch.setattr(evaluation, "DDPM_STEPS", 4)
    flags = ["--num-steps", "3", "--num-eval-prompts", "12"]
    scores = run_recipe(tmp_path, *flags, "--evaluate", str(folder))["evaluation"]
    made = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert made == {
        *("report.txt", "metrics.json", "steps.png", "samples.png", "images.npz"),
        *("reverse.png", "reverse.gif", "forward.png"),
    }
    assert set(scores["by_num_steps"]) == {"ddpm", "ddim", "plms", "euler", "euler_ancestral", "heun", "dpmpp_2m"}
    assert scores["frechet"] > scores["frechet_floor"] > 0 and set(scores["ablation"]) >= {"guidance 1", "no captions"}
    flags += ["--evaluate", str(folder), "--guidance-scale", str(scores["guidance_scale"])]
    again = run_recipe(tmp_path / "short", *flags)["evaluation"]
    assert all(again[key] == scores[key] for key in ("seen", "held_out", "frechet")) and "ablation" not in again
    task = zoo.TextToImage.from_preset(folder)
    prompts = ["a red one on white", "a blue two on black", "three, white on red"]
    together = task.generate(prompts, num_steps=2, guidance_scale=2.0, seed=5, batch_size=2)
    for index, prompt in enumerate(prompts):
        alone = task.generate(prompt, num_steps=2, guidance_scale=2.0, seed=5 + index)
        assert np.abs(alone.astype(int) - together[index]).max() <= 1


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_the_evaluation_writes_what_it_chose(finished, tmp_path, monkeypatch):
    """Into the settings and the card of the run that it scores; a preset that was named stays as it is."""
    folder = tmp_path / "run"
    shutil.copytree(finished()[0], folder)
    scores = dict.fromkeys(("seen", "held_out", "by_num_steps"), {"all": 0.5}) | {"num_steps": 3, "guidance_scale": 1.5}
    monkeypatch.setattr("recipes.diffusion_evaluation.evaluate", lambda *args, **options: scores)
    run_recipe(folder, "--evaluate", str(folder))
    assert zoo.TextToImage.from_preset(folder).generation_config == {"num_steps": 20, "guidance_scale": 2.0}
    run_recipe(folder, "--stage", "evaluation")
    task = zoo.TextToImage.from_preset(folder)
    assert task.generation_config == {"num_steps": 3, "guidance_scale": 1.5}
    assert task.card["scores"] == {
        "num_steps": 3,
        "guidance_scale": 1.5,
        "seen": {"all": 0.5},
        "held_out": {"all": 0.5},
    }


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_published(finished, tmp_path):
    """A preset whose files are checked, with the number of steps and the guidance that the scores chose."""
    run, target = tmp_path / "run", tmp_path / "published"
    shutil.copytree(finished()[0], run)

    def publish():
        cli.run(["publish", str(run), "--output", str(target), "--license", "MIT", "--data-license", "none"])

    with pytest.raises(UserError, match="lacks scores: finish and score the run"):
        publish()
    card = cards.read_card(run)
    cards.write_card(run, card | {"scores": {"all": 0.5}}, sorted(card["files"]))
    files.write_json(run / "generation_config.json", {"num_steps": 3, "guidance_scale": 1.5})
    target.mkdir()
    files.write_json(target / "card.json", {"files": {"classifier.keras": {"sha256": "0" * 64}}})  # of an earlier one
    publish()
    assert zoo.TextToImage.from_preset(target).generation_config == {"num_steps": 3, "guidance_scale": 1.5}
    card = cards.read_card(target)
    assert set(card["components"]) == {part_folder(stage) for stage in PARTS} and card["scores"] == {"all": 0.5}
    for entry in (card, *card["components"].values()):
        assert "--resume" not in entry["command"] and "--output" not in entry["command"]
    for name in sorted(card["files"]):
        path = target / name
        assert card["files"][name]["bytes"] == path.stat().st_size
        if path.suffix == ".keras":
            path.write_bytes(path.read_bytes() + b" ")
            with pytest.raises(UserError, match="was altered or cut short"):
                model_files.load_model(path)
    (run / "decoder.keras").write_bytes(b"")
    with pytest.raises(UserError, match="decoder.keras is missing or not the file that its card describes"):
        publish()


@pytest.mark.slow
@pytest.mark.heavy
def test_killed_in_every_part_and_resumed_is_the_run_that_was_not(finished, tmp_path, run):
    """SIGKILL after the first epoch of each of the four parts, against a run in one piece."""
    whole, _ = finished()
    arguments = ["-c", PROGRAM, *FLAGS, "--output", tmp_path, "--resume"]
    for stage in PARTS:
        process = run(arguments, wait=False)
        while process.poll() is None and not (tmp_path / part_folder(stage) / "checkpoint.npz").exists():
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        output = process.communicate()
        assert process.returncode == -signal.SIGKILL, output
        assert not (tmp_path / part_files(stage)[-1]).exists(), "it was done before it was killed"
    resumed = run(arguments)
    assert resumed.returncode == 0 and "Resuming after epoch 1 of 2" in resumed.stdout, resumed.stdout + resumed.stderr
    for name in (name for stage in PARTS for name in part_files(stage) if name.endswith(".keras")):
        weights = [model_files.load_model(folder / name).get_weights() for folder in (whole, tmp_path)]
        for one, other in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.skipif(os.environ["KERAS_BACKEND"] == "torch", reason="a program given as a string starts no processes")
def test_the_denoiser_alone_on_two_devices(finished, tmp_path, run):
    """It encodes its data before it trains: the devices must be known by then."""
    folder, metrics = finished()
    shutil.copytree(folder, tmp_path / "run")
    flags = [*FLAGS, "--stage", "denoiser", "--overwrite", "--devices", "cpu:2", "--output", tmp_path / "run"]
    ended = run(["-c", PROGRAM, *flags])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    stored = json.loads((tmp_path / "run" / "denoiser" / "metrics.json").read_text())
    np.testing.assert_allclose(stored["first_losses"], metrics["denoiser"]["first_losses"], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (
            ["--conditioning-dropout-prob", "1"],
            r"--conditioning-dropout-prob must be in \[0, 1\), got 1",
        ),
        (["--ema-decay", "-0.1"], "--ema-decay must be in"),
        (["--kl-weight", "-1"], "--kl-weight must not be negative"),
        (["--stage", "denoiser"], "There is no .*encoder.keras.*: run recipes/diffusion_autoencoder.py first"),
        (["--stage", "text-encoder"], "There is no .*classifier.keras.*: run recipes/diffusion_classifier.py first"),
        (["--stage", "autoencoder", "--perceptual-weight", "1"], "There is no .*classifier.keras"),
        (["--stage", "evaluation"], "There is no .*classifier.keras.*: run recipes/diffusion_classifier.py first"),
        (["--evaluate", "cnn_mnist"], "has no classifier.keras, which scores the images: run recipes/diffusion_cla"),
    ],
)
def test_mistakes(tmp_path, flags, words):
    with pytest.raises(UserError, match=words) as caught:
        run_recipe(tmp_path, *flags)
    assert "\n" not in str(caught.value)


def test_a_finished_part_is_not_replaced_unasked(tmp_path):
    """Not in the middle of a run either: the later parts are looked at before the first one begins."""
    (tmp_path / "denoiser").mkdir()
    files.write_json(tmp_path / "denoiser" / "metrics.json", {})
    for stage in ("denoiser", "all"):
        with pytest.raises(UserError, match="denoiser holds a finished run: replace it with --overwrite"):
            run_recipe(tmp_path, "--stage", stage)
    assert [path.name for path in tmp_path.iterdir()] == ["denoiser"]


def test_each_recipe_has_its_own_defaults_and_what_the_command_says():
    args = recipe.parse_args(["--epochs", "3"])
    assert args.devices == "auto"  # what starts the processes reads it
    arguments = recipe.own_arguments(recipe.RECIPES["denoiser"], args, resume=False)
    assert arguments.epochs == 3 and arguments.ema_decay == 0.999 and arguments.batch_size == 64
    assert arguments.fallback == {"ema_decay": 0.99}  # where the data are small


def test_real_images_score_one():
    """Real images with a classifier that knows: all correct; with other colors asked for, those are wrong."""
    dataset = captions._captioned("digits", captions.DIGITS, [captions.load_images("digits")])
    batch = dataset.render("test", np.arange(200), seed=0)

    class Knows:
        def predict(self, images, **options):
            return np.eye(10)[batch.labels]

    accuracy = evaluation.prompt_accuracy(Knows(), batch.images, batch.labels, batch.foregrounds, batch.backgrounds)
    assert accuracy["class"] == 1 and accuracy["foreground"] > 0.97 and accuracy["background"] > 0.97
    accuracy = evaluation.prompt_accuracy(
        Knows(), batch.images, batch.labels, (batch.foregrounds + 1) % 8, batch.backgrounds
    )
    assert accuracy["foreground"] < 0.03 and accuracy["all"] < 0.03
