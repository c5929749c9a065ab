"""Recipes with --lora-rank: the adapter beside its base is the model of the run; resuming, devices, mistakes."""

import importlib
import json
import re

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

import zoo
from recipes import cnn_mnist, diffusion_denoiser, transformer_multi30k
from tests.conftest import interrupted_in_second_epoch
from tests.recipes.test_diffusion_recipe import FLAGS as DIFFUSION
from tests.recipes.test_diffusion_recipe import make_small
from tests.recipes.test_fine_tuned_runs import weights, write_translator
from tests.recipes.test_translation_recipe import write_pairs
from zoo import lora
from zoo.errors import UserError
from zoo.io import model_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    write_pairs(folder / "toy.tsv")
    write_translator(folder / "base")
    return folder


def arguments(folder, output, *more):
    flags = ["--pairs", folder / "toy.tsv", "--limit", 16, "--epochs", 2, "--init-from", folder / "base"]
    flags += ["--lora-rank", 2, "--lora-alpha", 6, "--output", output]
    return [*map(str, [*flags, *more])]


def train(folder, output, *more):
    return transformer_multi30k.main(transformer_multi30k.parse_args(arguments(folder, output, *more)))


@pytest.fixture(scope="module")
def finished(folder):
    return train(folder, folder / "run", "--parity")


@pytest.mark.heavy
@pytest.mark.slow("jax")  # which compiles for half a minute
def test_the_adapter_beside_its_base_is_the_model_of_the_run(folder, finished):
    assert finished["trained_parameters"] == 12 * 2 * (32 + 32)  # three attentions of four projections
    assert (finished["lora_rank"], finished["lora_alpha"]) == (2, 6)
    assert finished["trained_parameters"] + finished["frozen_parameters"] > finished["parameters"]
    before, after = weights(folder / "base"), weights(folder / "run")
    assert before.keys() == after.keys()
    for path in after:
        adapted = "attention" in path and path.endswith("/kernel")
        assert np.array_equal(before[path], after[path]) != adapted, path
    task = zoo.Translator.from_preset(folder / "base", lora=folder / "run" / "lora.safetensors")
    for weight in task.model.weights:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), after[weight.path], atol=1e-6)
    assert (folder / "run" / "lora.safetensors").stat().st_size < 20_000
    with pytest.raises(
        UserError, match="a LoRA of another model: it was trained on transformer_de_en with the weights"
    ):
        zoo.Translator.from_preset(folder / "run", lora=folder / "run" / "lora.safetensors")


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_interrupted_and_resumed_is_bit_for_bit_the_uninterrupted_run(folder, finished, tmp_path):
    with interrupted_in_second_epoch():
        train(folder, tmp_path, "--parity")
    with pytest.raises(UserError, match="was written by a run with lora_rank=2, this one has lora_rank=3"):
        train(folder, tmp_path, "--parity", "--resume", "--lora-rank", 3)
    train(folder, tmp_path, "--parity", "--resume")
    one, other = (load_file(path / "lora.safetensors") for path in (folder / "run", tmp_path))
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")  # tests/distribution has the training there
def test_two_devices_take_the_steps_of_one(folder, finished, tmp_path, run):
    command = arguments(folder, tmp_path / "two", "--parity", "--devices", "cpu:2")
    ended = run(["recipes/transformer_multi30k.py", *command])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    two = json.loads((tmp_path / "two" / "metrics.json").read_text())
    np.testing.assert_allclose(two["first_losses"], finished["first_losses"], atol=1e-4, rtol=0)
    model = model_files.load_model(folder / "base" / "model.keras")
    lora.load_lora(model, tmp_path / "two" / "lora.safetensors")
    after = weights(tmp_path / "two")
    for weight in model.weights:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), after[weight.path], atol=1e-6)


@pytest.mark.heavy
@pytest.mark.slow("tensorflow", "jax")
def test_the_denoiser(tmp_path, monkeypatch):
    """The moving average of A and B, with the samples after each epoch."""
    make_small(monkeypatch)
    recipe = importlib.import_module("recipes.diffusion_captions")
    for stage in ("classifier", "autoencoder", "text-encoder", "denoiser"):
        flags = [*DIFFUSION, "--output", str(tmp_path), "--stage", stage, "--epochs", "1"]
        recipe.main(recipe.parse_args(flags))
    base = zoo.TextToImage.from_preset(tmp_path)
    before = weights(tmp_path, "denoiser.keras")
    model_files.save_model(base.components["denoiser"], tmp_path / "base.keras")
    flags = [*DIFFUSION, "--output", str(tmp_path), "--epochs", "1", "--overwrite", "--lora-rank", "2"]
    metrics = diffusion_denoiser.main(
        diffusion_denoiser.parse_args([*flags, "--init-from", str(tmp_path / "base.keras")])
    )
    after = weights(tmp_path, "denoiser.keras")
    changed = {path for path in after if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in after if re.fullmatch(f"{lora.ATTENTION_PROJECTIONS}/kernel", path)}
    assert metrics["trained_parameters"] == sum(2 * sum(after[path].shape) for path in changed)
    lora.load_lora(base.components["denoiser"], tmp_path / "denoiser" / "lora.safetensors")
    for weight in base.components["denoiser"].weights:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(weight), after[weight.path], atol=1e-6)


@pytest.mark.once
def test_mistakes(folder, tmp_path):
    def refused(recipe, flags, words):
        with pytest.raises(UserError, match=words) as caught:
            recipe.main(recipe.parse_args([*map(str, flags), "--output", str(tmp_path / "out")]))
        assert "\n" not in str(caught.value)

    flags = ["--pairs", folder / "toy.tsv", "--limit", 40]
    start = [*flags, "--init-from", folder / "base"]
    refused(
        transformer_multi30k, [*flags, "--lora-rank", 2], "--lora-rank adapts a trained model: name it with --init-"
    )
    refused(transformer_multi30k, [*start, "--lora-rank", 0], "--lora-rank must be at least 1, got 0")
    refused(transformer_multi30k, [*start, "--lora-alpha", 2], "--lora-alpha belongs to --lora-rank: give the rank")
    refused(
        transformer_multi30k, [*start, "--lora-rank", 2, "--lora-alpha", 0], "alpha of a LoRA must be a number above"
    )
    for more in (["--new-head"], ["--freeze", "a"], ["--train-only", "a"], ["--init-encoder-only"]):
        refused(transformer_multi30k, [*start, "--lora-rank", 2, *more], f"leave {more[0]} out")
    with pytest.raises(SystemExit):
        cnn_mnist.parse_args(["--lora-rank", "2"])
