"""What a user's keras.json says does not reach the zoo's own programs; one that Keras cannot read is named."""

import json

import numpy as np
import pytest

pytestmark = pytest.mark.once


@pytest.fixture
def zoo_command(run, tmp_path):
    def command(config, *arguments):
        (tmp_path / "keras.json").write_text(config if isinstance(config, str) else json.dumps(config))
        return run(["-m", "zoo", *arguments], KERAS_HOME=str(tmp_path))

    return command


def test_another_format_and_precision(zoo_command):
    config = {"floatx": "float16", "image_data_format": "channels_first", "epsilon": 0.5}
    ended = zoo_command(config, "classify", "docs/images/digit.png", "--top-k", "1")
    assert ended.returncode == 0 and "3  100.0%" in ended.stdout, ended.stdout + ended.stderr


@pytest.mark.parametrize("config", [{"floatx": "int3"}, [1]], ids=str)
def test_a_file_that_keras_cannot_use(zoo_command, config, tmp_path):
    ended = zoo_command(config, "classify", "docs/images/digit.png")
    assert ended.returncode == 2 and ended.stdout == "", ended.stdout
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error: Keras cannot start with {tmp_path / 'keras.json'} (") and "delete it" in last
    assert "Traceback" not in ended.stderr


def test_models_are_channels_last_in_programs_of_a_user_with_another_format():
    import keras

    from zoo.models.cnn import cnn
    from zoo.models.stable_diffusion import autoencoder, denoiser

    def build():
        yield cnn(num_classes=3, units=4)
        sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
        yield autoencoder.encoder(latent_channels=4, **sizes)
        yield autoencoder.decoder(latent_channels=4, **sizes)
        yield denoiser.denoiser(**sizes, has_attention=(False, True), num_heads=2, cross_attention_dim=8)

    usual = [[output.shape for output in model.outputs] for model in build()]
    keras.config.set_image_data_format("channels_first")
    try:
        models = list(build())
        for model, expected in zip(models, usual, strict=True):
            assert [output.shape for output in model.outputs] == expected
        images = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype("float32")
        assert models[0](images).shape == (2, 3)
        assert models[1](images[:, :16, :16])[0].shape == (2, 8, 8, 4)
    finally:
        keras.config.set_image_data_format("channels_last")
