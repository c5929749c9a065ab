"""The examples of docs/examples beside the tasks that they repeat, in a process without Keras and frameworks."""

import gzip
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from PIL import Image

import zoo
from zoo.parity.records import ParityRecord
from zoo.presets import CHECKOUT_MODELS

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "docs" / "examples"
SENTENCES = [  # of different lengths, some with words that are rare or not there
    "Ein Hund läuft durch den Schnee.",
    "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    "Mehrere Männer mit Schutzhelmen bedienen ein Antriebsradsystem.",
    "Ja.",
]
pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function from a preset's name to its exported folder."""
    root, done = tmp_path_factory.mktemp("exports"), {}

    def export(name):
        if name not in done:
            done[name] = zoo.export(name, root / name)
        return done[name]

    return export


def run_example(code, *arguments):
    """What a program prints that imports an example; it must not import Keras, a framework or the zoo."""
    code = (
        f"import json, sys\nsys.path.insert(0, {str(EXAMPLES)!r})\n{code}\n"
        "found = {'keras', 'tensorflow', 'jax', 'torch', 'zoo'} & set(sys.modules)\nassert not found, found"
    )
    child = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    return child.stdout


def run_file(name, *arguments):
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    "name",
    [
        "cnn_mnist",
        "lstm_shakespeare",
        *(
            pytest.param(name, marks=pytest.mark.slow)  # `exported` has checked them in onnxruntime, for the examples
            for name in ("cnn_gtsrb", "gru_shakespeare", "transformer_multi30k_de_en", "diffusion_captions")
        ),
    ],
)
def test_a_published_preset_in_both_runtimes(name, exported):
    path = exported(name)
    report = zoo.verify(path, runtimes=["onnxruntime", "openvino"])
    assert report.passed and max(row.max_error for row in report.rows) < 1e-5
    certificate = json.loads((path / "certificate.json").read_text())
    assert set(certificate["files"]) == {file.name for file in path.iterdir()} - {"certificate.json"}
    for record, about in certificate["references"].items():  # what was published, not a run of today
        if record in ("large_images.parity.npz", "padded_batch.parity.npz"):
            continue
        assert about["backend"] == ParityRecord.load(CHECKOUT_MODELS / name / record).metadata["backend"]
    models = json.loads((path / "config.json").read_text())["models"]
    assert all(x["shape"][0] == "batch" for model in models.values() for x in model["inputs"])
    if name == "lstm_shakespeare":
        kinds = [node.op_type for node in onnx.load(path / "model.onnx").graph.node]
        assert kinds.count("LSTM") == 2 and "MatMul" in kinds


@pytest.mark.parametrize("name", ["cnn_mnist", "cnn_gtsrb"])
def test_classify(name, exported):
    path = EXAMPLES.parent / "images" / "digit.png"
    code = "import onnx_classify\nprint(json.dumps(onnx_classify.classify(*sys.argv[1:])))"
    found = json.loads(run_example(code, exported(name), path))
    expected = zoo.ImageClassifier.from_preset(name).classify(path)
    assert [label for label, _ in found] == [one["label"] for one in expected]
    np.testing.assert_allclose([p for _, p in found], [one["score"] for one in expected], atol=1e-5)
    assert run_file("onnx_classify.py", exported(name), path).startswith(expected[0]["label"])


@pytest.mark.parametrize("name", ["lstm_shakespeare", "gru_shakespeare"])
def test_generate(name, exported):
    """Equal texts of 400 characters for equal seeds."""
    task = zoo.CausalLM.from_preset(name)
    code = (
        "from onnx_generate import generate\n"
        "for seed in (0, 1): print(json.dumps(generate(sys.argv[1], 'ROMEO:', seed=seed)))"
    )
    texts = [json.loads(line) for line in run_example(code, exported(name)).splitlines()]
    assert texts == [task.generate("ROMEO:", seed=seed) for seed in (0, 1)] and len(texts[0]) == 406
    text = run_file("onnx_generate.py", exported(name), "A", "--max-new-tokens", "9", "--temperature", "0.5")
    assert text == task.generate("A", max_new_tokens=9, temperature=0.5) + "\n"


@pytest.mark.slow  # TensorFlow writes the files
def test_litert(tmp_path):
    """Equal texts for equal seeds; a photo of a digit is resized by the program, not by the model."""
    path, name = EXAMPLES.parent / "images" / "digit.png", "lstm_shakespeare"
    folder = zoo.export(name, tmp_path / name, format="litert")
    text = run_file("litert_generate.py", folder, "ROMEO:", "--seed", 1)
    assert text == zoo.CausalLM.from_preset(name).generate("ROMEO:", seed=1) + "\n"
    folder = zoo.export("cnn_mnist", tmp_path / "cnn_mnist", format="litert")
    code = "import litert_classify\nprint(json.dumps(litert_classify.classify(*sys.argv[1:])))"
    found = json.loads(run_example(code, folder, path))
    best = zoo.ImageClassifier.from_preset("cnn_mnist").classify(path)[0]
    assert found[0][0] == best["label"] and abs(found[0][1] - best["score"]) < 1e-2


def translations(folder, sentences, num_beams):
    code = (
        "import onnx_translate\ntranslator = onnx_translate.Translator(sys.argv[1])\n"
        "print(json.dumps([translator.translate(one, int(sys.argv[2])) for one in json.loads(sys.argv[3])]))"
    )
    return json.loads(run_example(code, folder, num_beams, json.dumps(sentences)))


@pytest.mark.parametrize("num_beams", [1, 5])
def test_translate(num_beams, exported):
    name = "transformer_multi30k_de_en"
    expected = zoo.Translator.from_preset(name).translate(SENTENCES, num_beams=num_beams)
    assert translations(exported(name), SENTENCES, num_beams) == expected
    assert run_file("onnx_translate.py", exported(name), SENTENCES[0], "--num-beams", num_beams) == f"{expected[0]}\n"


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("num_beams", [1, 5])
def test_translate_200_sentences(num_beams, exported, multi30k):
    """All equal on 2026-11-28, so that no tie of scores has to be told from a difference."""
    with gzip.open(pathlib.Path(multi30k) / "test_2016_flickr.de.gz", "rt", encoding="utf-8") as file:
        sentences = [next(file).strip() for _ in range(200)]
    name = "transformer_multi30k_de_en"
    expected = zoo.Translator.from_preset(name).translate(sentences, num_beams=num_beams)
    assert translations(exported(name), sentences, num_beams) == expected


def test_draw(exported, tmp_path):
    folder, path = exported("diffusion_captions"), tmp_path / "three.png"
    run_example(
        "from onnx_draw import draw\nfrom PIL import Image\n"
        "image = draw(sys.argv[1], 'a green three on white', seed=1)\n"
        "Image.fromarray(image).save(sys.argv[2])",
        folder,
        path,
    )
    expected = zoo.TextToImage.from_preset("diffusion_captions").generate("a green three on white", seed=1)
    assert np.abs(np.asarray(Image.open(path)).astype(int) - expected).max() <= 2
    run_file("onnx_draw.py", folder, "a green three on white", tmp_path / "again.png", "--seed", 1)
    assert (tmp_path / "again.png").read_bytes() == path.read_bytes()
