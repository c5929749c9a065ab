"""The distillation of a tiny latent diffusion: what it leaves, how it generates, resuming, and mistakes."""

import json

import keras
import numpy as np
import pytest

import zoo
from recipes import diffusion_distillation as recipe
from tests.conftest import interrupted_in_second_epoch
from tests.recipes.test_diffusion_recipe import FLAGS, make_small, run_recipe
from zoo.errors import UserError
from zoo.io import cards

pytestmark = [pytest.mark.heavy, pytest.mark.slow("tensorflow", "jax")]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The folder of a latent diffusion of random weights, but for a step or two."""
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        folder = tmp_path_factory.mktemp("teacher") / "run"
        for stage in ("classifier", "autoencoder", "text-encoder", "denoiser"):
            run_recipe(folder, "--stage", stage, "--epochs", "1")
    return folder


def distill(teacher, output, *more):
    flags = [*FLAGS, "--init-from", str(teacher), "--output", str(output), *more]
    return recipe.main(recipe.parse_args(flags))


def test_a_student_generates_in_one_step_and_a_killed_run_resumes(teacher, tmp_path):
    metrics = distill(teacher, tmp_path / "whole")
    assert metrics["validation_consistency_loss"] > 0 and metrics["init_from"] == str(teacher)
    task = zoo.TextToImage.from_preset(tmp_path / "whole")
    assert task.pipeline_config["sampler"] == "lcm"
    config = json.loads((tmp_path / "whole" / "generation_config.json").read_text())
    assert config == {"num_steps": 2, "guidance_scale": 1.0}
    images = [task.generate("a red seven on white", num_steps=steps, seed=0) for steps in (None, 1, 2, 4)]
    assert images[0].shape == (48, 48, 3)
    np.testing.assert_array_equal(images[0], images[2])
    assert not np.array_equal(images[1], images[2])
    card = cards.read_card(tmp_path / "whole")
    assert set(card["files"]) > {"denoiser.keras", "text_encoder.keras", "encoder.keras", "decoder.keras"}

    with interrupted_in_second_epoch():
        distill(teacher, tmp_path / "killed")
    distill(teacher, tmp_path / "killed", "--resume")
    one, other = (keras.saving.load_model(tmp_path / run / "denoiser.keras") for run in ("whole", "killed"))
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_a_teacher(tmp_path):
    with pytest.raises(UserError, match="needs a teacher: name a latent diffusion with --init-from"):
        recipe.main(recipe.parse_args([*FLAGS, "--output", str(tmp_path)]))
    with pytest.raises(UserError, match="cnn_mnist is a model for image-classification"):
        distill("cnn_mnist", tmp_path)
