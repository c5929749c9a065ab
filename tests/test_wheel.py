"""The wheel: what is in it, what it requires, and that it works outside the checkout, with presets and without."""

import email
import os
import pathlib
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest

from zoo.errors import EXTRAS

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGIT = ROOT / "docs" / "images" / "digit.png"
PACKAGES = {  # where a package has another name
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
    "ai_edge_litert": "ai-edge-litert",
    "onnx_ir": "onnx-ir",
}

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "zoo", folder / "zoo", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=folder, check=True)
    return next((folder / "out").glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder of packages that holds the wheel's files and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Start Python in an empty folder, with the wheel's files in place of the checkout's."""

    def start(*arguments, **environment):
        environment = os.environ | {"PYTHONPATH": str(installed), "COLUMNS": "1000"} | environment
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return start


def test_content(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    lessons = {path for pattern in ("*.md", "*.json") for path in (ROOT / "zoo" / "lessons").glob(pattern)}
    files = {*(ROOT / "zoo").rglob("*.py"), *lessons}
    assert names == {str(path.relative_to(ROOT)) for path in files} | {"zoo/py.typed"}


def test_requirements(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
    required = email.message_from_string(archive.read(name).decode()).get_all("Requires-Dist")
    core = {line.split(">")[0].split("<")[0] for line in required if "extra ==" not in line}
    assert core == {"keras", "numpy", "pillow", "tokenizers", "huggingface_hub", "msgspec"}
    assert not [line for line in required if "==" in line.partition(";")[0] and 'extra == "test"' not in line]


def test_each_extra_has_the_packages_that_its_sentences_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        found = {line.split(">")[0].split("<")[0].strip() for line in extras[extra]}
        assert found == {PACKAGES.get(name, name).replace("importlib_", "importlib-") for name in packages}
    assert extras["all"] == [f"{project['name']}[{','.join(EXTRAS)}]"]


def test_without_presets(run, installed):
    where = "set ZOO_MODELS_DIR to the folder saved_models of the keras-model-zoo repository"
    none = {"ZOO_MODELS_DIR": ""}
    listed = run("-m", "zoo", "list", **none)
    assert f"Presets that are not here ({where}): cnn_gtsrb, cnn_mnist," in listed.stdout, listed.stderr
    lines = listed.stdout.splitlines()
    (architectures,) = (line for line in lines if line.startswith("Architectures, built with fresh weights: "))
    assert "cnn_single_pool" in architectures and "cnn_mnist" not in architectures
    for arguments in (["list", "--pretrained"], ["classify", DIGIT]):
        ended = run("-m", "zoo", *arguments, **none)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and where in ended.stderr
    for name in ("cnn_mnist", "diffusion_captions"):
        program = f"import zoo; print(zoo.__file__); zoo.backends.skip_optional_imports(); zoo.load_task({name!r})"
        ended = run("-c", program, **none)
        assert ended.stdout.startswith(str(installed)) and where in ended.stderr.splitlines()[-1]


def test_with_presets(run, installed):
    presets = {"ZOO_MODELS_DIR": str(ROOT / "saved_models")}
    listed = run("-m", "zoo", "list", **presets)
    assert f"Presets in {ROOT / 'saved_models'}: cnn_gtsrb, cnn_mnist, diffusion_captions" in listed.stdout
    program = (
        "import zoo; print(zoo.__file__)\n"
        "zoo.backends.skip_optional_imports(); zoo.backends.import_keras()\n"
        f"print(zoo.ImageClassifier.from_preset('cnn_mnist').classify({str(DIGIT)!r})[0]['label'])\n"
        "print(zoo.CausalLM.from_preset('gru_shakespeare').generate('ROMEO:', max_new_tokens=3, greedy=True))\n"
        "import zoo.cli; print('shown')\n"
        "zoo.cli.main(['generate', 'gru_shakespeare', 'ROMEO:', '--max-new-tokens', '3', '--greedy'])\n"
    )
    ended = run("-c", program, **presets)
    file, label, *text = ended.stdout.splitlines()
    assert file.startswith(str(installed)) and label == "3" and text[0].startswith("ROMEO:"), ended.stderr
    place = text.index("shown")
    assert text[place + 1 :] == text[:place], ended.stderr
