"""Run every task, command and recipe where one backend is installed and no other, and print what each did.

    pip install -e '.[torch]' && python tests/one_backend.py torch

Works in the environment it is started in. First with the backend alone: each case runs, or ends with one sentence that
has the `pip install` line of the extra it needs. Then that line is run, and what ended with a sentence has to run.
Exits with 1 if a case did something else, or if something was imported that it does without.
"""

import argparse
import gzip
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
BACKENDS = ("tensorflow", "jax", "torch")
EXTRAS = ("data", "train", "convert", "lessons")

IMPORTS = """
import sys
before = set(sys.modules)
import zoo
import zoo.cli
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert loaded <= {"zoo"}, f"import zoo imports {loaded}"
from zoo.backends import import_keras
import_keras()
import keras
assert keras.backend.backend() == sys.argv[1], keras.backend.backend()
"""
TASKS = """
import sys
import zoo
print(zoo.ImageClassifier.from_preset("cnn_mnist").classify("docs/images/digit.png", top_k=1)[0]["label"])
print(zoo.CausalLM.from_preset("lstm_shakespeare").generate("ROMEO:", max_new_tokens=5, seed=1))
print(zoo.Translator.from_preset("transformer_multi30k_de_en").translate("Ein Hund läuft."))
print(zoo.TextToImage.from_preset("diffusion_captions").generate("a green three on white", num_steps=2).shape)
others = {"tensorflow", "jax", "torch", "matplotlib", "sklearn", "tensorflow_datasets"} - {sys.argv[1]}
loaded = sorted(name for name in others if sys.modules.get(name))
assert not loaded, f"the tasks import {loaded}"
"""
TFDS = "import zoo.data; zoo.data.load_images('mnist', 'prepared')"
MARIAN = """
import json, pathlib
import numpy as np
from zoo import backends
backends.import_keras()
from zoo.converters.marian import marian_config, marian_state_dict
from zoo.models.transformer import transformer
folder = pathlib.Path("marian")
folder.mkdir(exist_ok=True)
vocabulary = {piece: place for place, piece in enumerate(["</s>", "<unk>", "▁a", "▁b", "a", "b", "<pad>"])}
model = transformer(
    vocabulary_size=len(vocabulary), pad_id=len(vocabulary) - 1, num_layers=1, hidden_dim=16, intermediate_dim=16,
    num_heads=2, activation="relu",
)
(folder / "config.json").write_text(json.dumps(marian_config(model)))
(folder / "vocab.json").write_text(json.dumps(vocabulary))
(folder / "tokenizer_config.json").write_text(json.dumps({"source_lang": "aa", "target_lang": "bb"}))
for side in ("source", "target"):
    (folder / f"{side}.spm").write_bytes(b"")
try:
    import safetensors.numpy, sentencepiece, io
except ModuleNotFoundError:
    raise SystemExit
safetensors.numpy.save_file(marian_state_dict(model), folder / "model.safetensors")
for side in ("source", "target"):
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b ab ba"] * 20), model_writer=content, vocab_size=7, minloglevel=2
    )
    (folder / f"{side}.spm").write_bytes(content.getvalue())
"""

DIGIT = ROOT / "docs" / "images" / "digit.png"
SMALL = ("--limit", "32", "--epochs", "1", "--batch-size", "8")
SMALL_RNN = ("--units", "8", "--embedding-dim", "8", "--sequence-length", "16", "--batch-size", "8")
SMALL_WIDTH = ("--num-layers", "1", "--hidden-dim", "16", "--intermediate-dim", "16", "--num-heads", "2")
DIFFUSION = (*SMALL, "--data-dir", "idx", "--output", "diffusion")


def zoo(*arguments):
    return ["-m", "zoo", *map(str, arguments)]


def recipe(name, *arguments):
    return [str(ROOT / "recipes" / f"{name}.py"), *arguments]


def cases(backend):
    """{what: (arguments of Python, the extra that it needs or None)}"""
    return {
        "import zoo": (["-c", IMPORTS, backend], None),
        "the four tasks": (["-c", TASKS, backend], None),
        "a data set of tensorflow-datasets": (["-c", TFDS], "data"),
        "zoo list": (zoo("list"), None),
        "zoo summary": (zoo("summary", "cnn_mnist", "--html", "page.html"), None),
        "zoo quiz": (zoo("quiz", "lstm_shakespeare", "--answers"), None),
        "zoo lessons": (zoo("lessons"), None),
        "zoo lessons --execute": (zoo("lessons", 3, "--execute"), "lessons"),
        "zoo classify": (zoo("classify", DIGIT), None),
        "zoo generate, text": (zoo("generate", "gru_shakespeare", "ROMEO:", "--max-new-tokens", 5), None),
        "zoo generate, image": (zoo("generate", "diffusion_captions", "a red one on black", "--num-steps", 2), None),
        "zoo translate": (zoo("translate", "transformer_multi30k_de_en", "Ein Hund läuft."), None),
        "zoo translate --save-attention": (
            zoo("translate", "transformer_multi30k_de_en", "Ein Hund.", "--save-attention", "attention.png"),
            "train",
        ),
        "zoo verify": (zoo("verify", "cnn_mnist"), None),
        "zoo convert": (zoo("convert", "marian", "marian", "converted"), "convert"),
        "zoo export": (zoo("export", "cnn_mnist", "--to", "onnx", "--output", "exported"), "export"),
        "recipes/cnn_mnist.py": (recipe("cnn_mnist", *SMALL, "--data-dir", "idx", "--output", "cnn"), "train"),
        "recipes/cnn_gtsrb.py": (recipe("cnn_gtsrb", *SMALL, "--data-dir", "gtsrb.npz", "--output", "gtsrb"), "train"),
        "recipes/cnn_image_folder.py": (
            recipe("cnn_image_folder", *SMALL, "--train-dir", "pictures", "--output", "folder"),
            "train",
        ),
        "recipes/rnn_shakespeare.py": (
            recipe("rnn_shakespeare", "--text", "text.txt", "--epochs", "1", "--output", "rnn", *SMALL_RNN),
            "train",
        ),
        "recipes/transformer_multi30k.py": (
            recipe("transformer_multi30k", "--pairs", "pairs.tsv", "--epochs", "1", "--output", "pairs", *SMALL_WIDTH),
            "train",
        ),
        "recipes/diffusion_captions.py": (
            recipe("diffusion_captions", *DIFFUSION, "--num-steps", "2", "--num-eval-prompts", "4"),
            "train",
        ),
        "zoo publish": (
            zoo(
                "publish",
                "cnn",
                "--output",
                "published",
                "--input",
                "images",
                "--license",
                "mit",
                "--data-license",
                "none",
            ),
            "train",
        ),
    }


# What these need is not there before the extras, or, for the first, not here: its sentence is what counts.
SENTENCE_ONLY, EXTRAS_ONLY = ("a data set of tensorflow-datasets",), ("zoo publish",)


def write_data(folder):
    """What the cases read: idx files of random images, a tensorflow-datasets folder, a text, sentence pairs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("mnist", "fashion_mnist"):
        (folder / "idx" / name).mkdir(parents=True)
        for prefix, count in (("train", 240), ("t10k", 40)):
            images, labels = rng.integers(0, 256, (count, 28, 28), "uint8"), np.arange(count, dtype="uint8") % 10
            for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
                header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
                (folder / "idx" / name / f"{prefix}-{kind}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    names = np.array([f"sign {k}" for k in range(4)])
    images = {f"x_{split}": rng.integers(0, 256, (48, 48, 48, 3), "uint8") for split in ("train", "test")}
    labels = {f"y_{split}": np.arange(48) % 4 for split in ("train", "test")}
    for k in range(48):
        place = folder / "pictures" / "ab"[k % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype="uint8")).save(place / f"{k}.png")
    np.savez(folder / "gtsrb.npz", **images, **labels, track_train=np.arange(48), class_names=names)
    (folder / "prepared" / "mnist" / "3.0.1").mkdir(parents=True)
    (folder / "prepared" / "mnist" / "3.0.1" / "dataset_info.json").write_text("{}")
    (folder / "text.txt").write_text("To be, or not to be: that is the question.\n" * 60)
    words = [("Hund", "dog"), ("Mann", "man"), ("Ball", "ball"), ("Strand", "beach")]
    pairs = [(f"Ein {a} und ein {b}.", f"A {c} and a {d}.") for a, c in words for b, d in words]
    (folder / "pairs.tsv").write_text("\n".join("\t".join(pair) for pair in pairs * 20) + "\n")


def run(arguments, folder):
    """(exit code, the last line of stdout, stderr) of a case."""
    environment = {name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", "ZOO_MODELS_DIR")}
    environment |= {"ZOO_CACHE_DIR": str(folder / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    (folder / "docs").exists() or (folder / "docs").symlink_to(ROOT / "docs")
    ended = subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    return ended.returncode, (ended.stdout.strip().splitlines() or [""])[-1], ended.stderr.strip()


def outcome(code, last_line, stderr, extra):
    """(verdict, words) of a case that may end with a sentence for want of an extra, None if it may not."""
    if code == 0:
        return "runs", last_line[:90]
    sentence = stderr.splitlines()[-1] if stderr else ""
    if extra and f"pip install 'keras-model-zoo[{extra}]'" in sentence:
        return f"needs {extra}", sentence
    return "FAILS", stderr[-2000:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=BACKENDS)
    backend = parser.parse_args().backend
    import importlib.util

    if others := [name for name in BACKENDS if name != backend and importlib.util.find_spec(name)]:
        sys.exit(f"This environment has {' and '.join(others)} too: make one with {backend} alone.")
    failures, waiting = 0, cases(backend)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_data(folder)
        for installed in ((), EXTRAS):
            if installed:
                command = ["-m", "pip", "install", "-q", "-e", f"{ROOT}[{','.join(installed)}]"]
                subprocess.run([sys.executable, *command], check=True)
            print(f"{backend}{''.join(f' + {extra}' for extra in installed)}", flush=True)
            if run(["-c", MARIAN], folder)[0]:
                sys.exit("The model to convert cannot be written.")
            again = {}
            for what, (arguments, extra) in waiting.items():
                if what in EXTRAS_ONLY and not installed:
                    again[what] = arguments, extra
                    continue
                began = time.perf_counter()
                code, last_line, stderr = run(arguments, folder)
                verdict, words = outcome(code, last_line, stderr, None if installed else extra)
                if verdict.startswith("needs") and what not in SENTENCE_ONLY:
                    again[what] = arguments, extra
                failures += verdict == "FAILS"
                print(f"  {what:34}{verdict:15}{time.perf_counter() - began:6.1f} s  {words}", flush=True)
            waiting = again
    print(f"{failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
