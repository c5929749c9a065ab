"""The recipe of the latent diffusion at a tiny size: its stages, what they leave, resuming, and mistakes.

The networks are made smaller than the recipe's by changing the variants, in this process and in those it starts.
"""

import importlib
import json
import os
import shutil
import signal
import time

import keras
import numpy as np
import pytest

from recipes import publish_diffusion
from tests.conftest import not_on
from zoo.data import captions
from zoo.errors import UserError
from zoo.evaluation import diffusion as diffusion_scores
from zoo.io import cards, files, model_files
from zoo.models import variants
from zoo.tasks.text_to_image import load_painter
from zoo.training import diffusion as stages
from zoo.training import diffusion_recipe

recipe = importlib.import_module("recipes.diffusion_captions")

SMALL = """
from zoo.models import variants
variants.AUTOENCODER["tiny"].update(block_out_channels=(8, 8, 8), norm_num_groups=4)
variants.DENOISER["tiny"].update(
    block_out_channels=(8, 8), has_attention=(False, True), norm_num_groups=4, num_heads=2, cross_attention_dim=8
)
variants.TEXT_ENCODER["tiny"].update(num_layers=1, hidden_dim=8, intermediate_dim=8, num_heads=2)
"""
PROGRAM = (
    "from zoo import backends; backends.import_keras()\n"
    + SMALL
    + """
import sys
from recipes import diffusion_captions as recipe
recipe.main(recipe.parse_args(sys.argv[1:]))
"""
)
FLAGS = ["--limit", "96", "--epochs", "2", "--batch-size", "24", "--data-dir", "/nowhere"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
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
    folder, made = tmp_path_factory.mktemp("diffusion") / "run", []

    def make():
        if not made:
            made.append(run_recipe(folder))
        return folder, made[0]

    return make


@pytest.mark.heavy
def test_a_run_leaves_everything_behind(finished):
    folder, metrics = finished()
    assert set(metrics) == set(diffusion_recipe.STAGES)
    made = {path.name for path in folder.iterdir() if path.is_file()}
    assert made == {name for names in diffusion_recipe.MAKES.values() for name in names}
    for stage, pictures in (
        ("judge", set()),
        ("autoencoder", {"restored.png"}),
        ("text_encoder", set()),
        ("denoiser", {"as_it_learns.png", "as_it_learns.npz", "loss_by_timestep.png"}),
    ):
        found = {path.name for path in (folder / stage).iterdir()}
        assert found == {"history.csv", "metrics.json", "training_curves.png"} | pictures
        told = json.loads((folder / stage / "metrics.json").read_text())
        assert told["epochs"] == 2 and len(told["first_losses"]) > 3 and told["data"] == "digits"
        for name, digest in told["sha256"].items():
            assert files.sha256(folder / name) == digest
    painter = load_painter(folder)
    *_, last = painter.draw("a red seven on white", steps=3, guidance=2.0, count=2)
    pictures = painter.pictures(last.latents)
    assert pictures.shape == (2, 48, 48, 3)
    assert painter.settings["latent_scale"] == metrics["denoiser"]["latent_scale"]
    # What is drawn reads a prompt as what was trained read it.
    texts = ["a red seven on white", ""]
    ids = stages.encode_captions(painter.tokenizer, texts, painter.settings["max_length"])
    assert [painter.tokens(text)[0] for text in texts] == ids.tolist()
    # Words of no caption are named, and what they stand in is drawn.
    with pytest.warns(UserWarning, match="^The prompt has words that mean nothing to this model: 'dragon', 'Castle'.$"):
        *_, last = painter.draw("a red dragon on white Castle dragon", steps=2, guidance=2.0)
    assert painter.pictures(last.latents).shape == (1, 48, 48, 3)


def test_no_more_guidance_than_real_pictures_ask_for():
    shares = {1.0: 0.8, 2.0: 0.93, 3.0: 0.96, 4.0: 0.99, 6.0: 0.98}
    assert diffusion_scores.least_as_good(shares, 0.94) == 3.0
    assert diffusion_scores.least_as_good(shares, 0.995) == 4.0  # none reaches it: the best


@pytest.mark.heavy
@not_on("tensorflow", "jax")
def test_scores(finished, tmp_path, monkeypatch):
    """They are written, and each picture of a list of prompts is the one that its prompt and seed alone give."""
    folder, _ = finished()
    monkeypatch.setattr(diffusion_scores, "COUNTS", (2,))
    monkeypatch.setattr(diffusion_scores, "STEPS", 3)
    monkeypatch.setattr(diffusion_scores, "GUIDANCES", (1.0, 2.0))
    monkeypatch.setattr(diffusion_scores, "LONG", 4)
    scores = recipe.main(
        recipe.parse_args([*FLAGS, "--evaluate", str(folder), "--prompts", "12", "--output", str(tmp_path)])
    )["scores"]
    made = {path.name for path in (tmp_path / "scores").iterdir()}
    assert made == {
        *("report.txt", "metrics.json", "steps.png", "samples.png", "pictures.npz"),
        *("reverse.png", "reverse.gif", "forward.png"),
    }
    assert set(scores["by_steps"]) == {"ddpm", "ddim", "plms", "euler", "euler_ancestral", "heun", "dpm++"}
    assert scores["frechet"] > scores["frechet_floor"] > 0 and set(scores["ablation"]) >= {"guidance 1", "no captions"}
    short = [*FLAGS, "--evaluate", str(folder), "--prompts", "12", "--guidance", str(scores["guidance"])]
    again = recipe.main(recipe.parse_args([*short, "--output", str(tmp_path / "short")]))["scores"]
    assert all(again[key] == scores[key] for key in ("seen", "never_seen", "frechet")) and "ablation" not in again
    painter = load_painter(folder)
    texts = ["a red one on white", "a blue two on black", "three, white on red"]
    together = diffusion_scores.draw_prompts(painter, texts, steps=2, seed=5, batch_size=2)
    for place, text in enumerate(texts):
        *_, last = painter.draw(text, steps=2, guidance=2.0, seed=5 + place)
        alone = painter.pictures(last.latents)[0]
        assert np.abs(alone.astype(int) - together[place]).max() <= 1


@pytest.mark.heavy
def test_published(finished, tmp_path, monkeypatch):
    """A folder that `zoo draw` takes, with cards that are checked, and the steps and guidance that the scores chose."""
    folder, run = finished()[0], tmp_path / "run"
    shutil.copytree(folder, run)
    arguments = [str(run), str(tmp_path / "published"), "--data-licence", "none"]
    with pytest.raises(UserError, match=r"There is no .*scores.metrics.json: finish and score the run"):
        publish_diffusion.main(publish_diffusion.parse_args(arguments))
    scores = dict.fromkeys(publish_diffusion.SCORES, 0.5) | {"steps": 3, "guidance": 1.5}
    (run / "scores").mkdir()
    (run / "scores" / "metrics.json").write_text(json.dumps(scores))
    (tmp_path / "published").mkdir(exist_ok=True)
    (tmp_path / "published" / "judge.json").write_text(json.dumps({"sha256": "0" * 64}))  # of an earlier judge
    publish_diffusion.main(publish_diffusion.parse_args(arguments))
    painter = load_painter(tmp_path / "published")
    assert painter.settings["steps"] == 3 and painter.settings["guidance"] == 1.5
    for part in publish_diffusion.PARTS:
        path = tmp_path / "published" / f"{part}.keras"
        card = cards.read_card(path)
        assert "--resume" not in card["command"] and "--output" not in card["command"]
        assert card["parameters"] == model_files.load_model(path).count_params() and card["bytes"] == path.stat().st_size
        path.write_bytes(path.read_bytes() + b" ")
        with pytest.raises(UserError, match="was altered or cut short"):
            model_files.load_model(path)
    (run / "decoder.keras").write_bytes(b"")
    with pytest.raises(UserError, match="decoder.keras is not what the stage autoencoder made"):
        publish_diffusion.main(publish_diffusion.parse_args(arguments))


@pytest.mark.heavy
@not_on("tensorflow")
def test_killed_in_every_stage_and_resumed_is_the_run_that_was_not(finished, tmp_path, run):
    """SIGKILL after the first epoch of each of the four stages, against a run in one piece.

    Where each process compiles for a minute, of the last stage; the others have nothing of their own.
    """
    whole, _ = finished()
    killed = list(diffusion_recipe.STAGES)[0 if keras.backend.backend() == "torch" else 3 :]
    for name in (name for stage, made in diffusion_recipe.MAKES.items() if stage not in killed for name in made):
        shutil.copy(whole / name, tmp_path)
    arguments = ["-c", PROGRAM, *FLAGS, "--output", tmp_path, "--resume"]
    for stage in killed:
        made = diffusion_recipe.MAKES[stage]
        process = run(arguments, wait=False)
        while process.poll() is None and not (tmp_path / stage.replace("-", "_") / "checkpoint.npz").exists():
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        told = process.communicate()
        assert process.returncode == -signal.SIGKILL, told
        assert not (tmp_path / made[-1]).exists(), "it was done before it was killed"
    resumed = run(arguments)
    assert resumed.returncode == 0 and "Resuming after epoch 1 of 2" in resumed.stdout, resumed.stdout + resumed.stderr
    for name in (name for made in diffusion_recipe.MAKES.values() for name in made if name.endswith(".keras")):
        weights = [model_files.load_model(folder / name).get_weights() for folder in (whole, tmp_path)]
        for one, other in zip(*weights, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--drop", "1"], r"--drop must be in \[0, 1\), got 1"),
        (["--ema", "-0.1"], "--ema must be in"),
        (["--kl", "-1"], "--kl must not be negative"),
        (["--stage", "denoiser"], "The stage denoiser needs .*encoder.keras: run --stage autoencoder first"),
        (["--stage", "text-encoder"], "The stage text-encoder needs .*judge.keras: run --stage judge first"),
        (["--stage", "autoencoder", "--looks", "1"], "The stage autoencoder needs .*judge.keras"),
        (["--evaluate"], "has no judge.keras, which says what a picture shows: run --stage judge first"),
    ],
)
def test_mistakes(tmp_path, flags, words):
    with pytest.raises(UserError, match=words) as caught:
        run_recipe(tmp_path, *flags)
    assert "\n" not in str(caught.value)


def test_perfect_pictures_score_one(monkeypatch):
    """Real pictures with a judge that knows: all right; with other colours asked for, those are wrong."""
    dataset = captions._captioned("digits", captions.DIGITS, [captions.load("digits")])
    batch = dataset.render("test", np.arange(200), seed=0)

    class Knows:
        def predict(self, pictures, **options):
            return np.eye(10)[batch.labels]

    shares = diffusion_scores.prompt_scores(Knows(), batch.images, batch.labels, batch.foregrounds, batch.backgrounds)
    assert shares["class"] == 1 and shares["foreground"] > 0.97 and shares["background"] > 0.97
    shares = diffusion_scores.prompt_scores(
        Knows(), batch.images, batch.labels, (batch.foregrounds + 1) % 8, batch.backgrounds
    )
    assert shares["foreground"] < 0.03 and shares["all"] < 0.03
