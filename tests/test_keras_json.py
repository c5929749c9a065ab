"""What a user's keras.json says does not reach the zoo's own programs; one that Keras cannot read is named."""

import json

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
