"""`--tfds NAME` of the recipe on data sets that tensorflow-datasets itself has written here."""

import subprocess
import sys

import numpy as np
import pytest

from recipes import cnn_image_folder
from zoo.data import images
from zoo.data.image_folder import load_tfds_folder
from zoo.errors import UserError

pytestmark = pytest.mark.once
SHAPES = ("circle", "square", "star")

# A program of its own: tensorflow-datasets imports TensorFlow when it writes.
WRITE = """
import sys
import numpy as np
import tensorflow_datasets as tfds

rng, features = np.random.default_rng(0), tfds.features
label = features.ClassLabel(names=["circle", "square", "star"])

def examples(count, start, height=None):
    for i in range(start, start + count):
        pixels = rng.integers(0, 256, (height or 20 + i % 5, 24, 3), dtype=np.uint8)
        yield i, {"image": pixels, "label": i % 3}

def write(name, splits, config=None, **more):
    tfds.dataset_builders.store_as_tfds_dataset(
        name, "1.0.0", features.FeaturesDict(more), splits, config=config, data_dir=sys.argv[1]
    )

of_any_size = {"image": features.Image(shape=(None, None, 3)), "label": label}
write("own_shapes", {"train": examples(30, 0), "test": examples(9, 30)}, **of_any_size)
write("own_sizes", {"train": examples(12, 0, 24)}, "small", image=features.Image(shape=(24, 24, 3)), label=label)
for config in ("one", "two"):
    write("own_several", {"train": examples(3, 0)}, config, **of_any_size)
pixels = {i: {"image": example["image"]} for i, example in examples(3, 0)}
write("own_unlabelled", {"train": pixels.items()}, image=features.Image(shape=(None, None, 3)))
write("own_tests", {"test": examples(3, 0)}, **of_any_size)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("importlib_resources", reason="with which tensorflow-datasets writes")
    folder = tmp_path_factory.mktemp("tfds")
    ended = subprocess.run([sys.executable, "-c", WRITE, str(folder)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(autouse=True)
def own_folder(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "_server_reachable", lambda: False)


def train(*arguments):
    return cnn_image_folder.main(cnn_image_folder.parse_args([*map(str, arguments)]))


def test_the_recipe_trains_on_a_set_of_tensorflow_datasets(tmp_path, capsys):
    metrics = train("--tfds", "own_shapes", "--epochs", "1", "--batch-size", "8", "--output", tmp_path / "run")
    assert metrics["class_names"] == list(SHAPES) and metrics["dataset"] == "own_shapes"
    assert metrics["test_images"] == 9 and "own_shapes: 27 training, 3 validation and 9 test" in capsys.readouterr().out
    again = train("--tfds", "own_shapes", "--evaluate", tmp_path / "run", "--output", tmp_path / "again")
    assert again["test_accuracy"] == metrics["test_accuracy"]


def test_the_pictures_are_those_that_were_written():
    rng = np.random.default_rng(0)
    [rng.integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8) for i in range(39)]  # of own_shapes
    written = {rng.integers(0, 256, (24, 24, 3), dtype=np.uint8).tobytes(): i % 3 for i in range(12)}
    dataset = load_tfds_folder("own_sizes")  # with its one configuration
    assert dataset.x_train.shape[1:] == (24, 24, 3) and dataset.class_names == SHAPES
    read = {}
    for part in ("train", "val", "test"):
        x, y = getattr(dataset, f"x_{part}"), getattr(dataset, f"y_{part}")
        read |= {image.tobytes(): label for image, label in zip(x, y, strict=True)}
    assert read == written
    assert load_tfds_folder("own_sizes/small").fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize(
    "name, words",
    [
        ("own_shape", r"^own_shape is not in .* cannot be reached: put .* Did you mean 'own_shapes'\?$"),
        ("cifar10", r"^cifar10 is not in .* or name another with --data-dir or TFDS_DATA_DIR\.$"),
        ("Own-Shapes", r"is no name of a tensorflow-datasets data set: give one .* Did you mean 'own_shapes'\?$"),
        ("own_shapes/../own_sizes", "is no name of a tensorflow-datasets data set"),
        ("own_sizes/large", r"^own_sizes/large is not in .*"),
        ("own_several", "has several configurations: give own_several/one or own_several/two.$"),
        ("own_unlabelled", "^own_unlabelled has 1 image and no class label an example: image classification needs"),
        ("own_tests", "^own_tests has the splits test: training needs train.$"),
    ],
)
def test_mistakes(name, words):
    with pytest.raises(UserError, match=words):
        train("--tfds", name)


def test_an_unknown_name_where_the_server_answers(monkeypatch, tmp_path):
    monkeypatch.setattr(images, "_server_reachable", lambda: True)
    with pytest.raises(
        UserError, match=r"^cats_and_dogs is no data set of tensorflow-datasets: give .* mean 'cats_vs_dogs'\?$"
    ):
        train("--tfds", "cats_and_dogs")
    assert not list((tmp_path / "cache").rglob("*.npz")), "an answer that changes is not kept"
