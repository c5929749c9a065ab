"""What quantization costs: the size and the score of each preset in ONNX, as float32 and quantized, in each runtime.

    python benchmarks/export_scores.py --data-dir ../shared/data            all presets
    python benchmarks/export_scores.py cnn_mnist --limit 1000 --data-dir …  one, on a part of the test data

The scores, on test data that no model was trained on:

    image classification  accuracy in per cent on the test images of MNIST or GTSRB
    text generation       nats a character on the last tenth of Shakespeare, in 64 rows side by side from zero states
    translation           BLEU of the first 200 test sentences of Multi30k, 5 beams
    text to image         per cent of 50 prompts whose image has the digit and both colors, by the preset's classifier

Each text and image is made by the programs in docs/examples. Size is that of the model files, beside the whole-sequence
`model` that these programs do not need where there are steps.
"""

import argparse
import pathlib
import sys
import tempfile
import types

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "examples")]

import zoo
from zoo.exporters.certificates import read_export_config
from zoo.exporters.quantization import QUANTIZATIONS
from zoo.exporters.runtimes import RuntimeModel

NUM_ROWS = 64


def session(runtime):
    """What stands in for the module `onnxruntime` in an example; loads each file once."""
    loaded = {}

    def inference_session(path):
        if path not in loaded:
            model = RuntimeModel(runtime, path)
            loaded[path] = types.SimpleNamespace(run=lambda names, feeds: model(feeds))
        return loaded[path]

    return types.SimpleNamespace(InferenceSession=inference_session)


def accuracy(folder, runtime, name, data_dir, limit):
    from zoo.data import load_images

    dataset = load_images(name.removeprefix("cnn_"), data_dir / name.removeprefix("cnn_"))
    images, labels = dataset.x_test[:limit], dataset.y_test[:limit]
    model = RuntimeModel(runtime, folder / "model.onnx")
    batches = (images[first : first + 100].astype(np.float32) for first in range(0, len(images), 100))
    predicted = np.concatenate([model({"image": batch})[0].argmax(-1) for batch in batches])
    return 100 * float((predicted == labels).mean())


def nats(folder, runtime, name, data_dir, limit):
    import tokenizers

    text = (data_dir / "shakespeare" / "input.txt").read_text(encoding="utf-8")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text[int(len(text) * 0.9) :][:limit]).ids
    tokens = np.array(ids[: len(ids) // NUM_ROWS * NUM_ROWS], np.int32).reshape(NUM_ROWS, -1)
    step = RuntimeModel(runtime, folder / "decode_step.onnx")
    described = read_export_config(folder).models["decode_step.onnx"].inputs[1:]
    states, total = [np.zeros((NUM_ROWS, x.shape[1]), np.float32) for x in described], 0.0
    for token, following in zip(tokens.T, tokens.T[1:]):
        logits, *states = step({"token": token, **{x.name: state for x, state in zip(described, states)}})
        logits = logits.astype(np.float64)
        highest = logits.max(axis=1)
        log_sum = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
        total += (log_sum - logits[np.arange(NUM_ROWS), following]).sum()
    return float(total / tokens[:, 1:].size)


def bleu(folder, runtime, name, data_dir, limit):
    import onnx_translate

    from zoo.data import load_pairs
    from zoo.evaluation.translation import bleu as score

    pairs, _ = load_pairs(*name.split("_")[-2:], data_dir=data_dir / "multi30k")
    sources, references = zip(*pairs.test[: min(limit or 200, 200)])
    onnx_translate.onnxruntime = session(runtime)
    translator = onnx_translate.Translator(folder)
    return score([translator.translate(one) for one in sources], references)[0]


def prompt_accuracy(folder, runtime, name, data_dir, limit):
    import keras
    import onnx_draw

    from zoo.data.captions import load_captioned_images
    from zoo.evaluation.diffusion import prompt_accuracy as score
    from zoo.presets import find_preset

    onnx_draw.onnxruntime = session(runtime)
    dataset, _ = load_captioned_images(data_dir / "mnist")
    captions, *attributes = dataset.prompts(min(limit or 50, 50))
    images = np.stack([onnx_draw.draw(folder, caption, seed=seed) for seed, caption in enumerate(captions)])
    classifier = keras.saving.load_model(find_preset(name).folder / "classifier.keras")
    return 100 * score(classifier, images, *attributes)["all"]


SCORES = {
    "image-classification": (accuracy, "accuracy, %", 2),
    "text-generation": (nats, "nats/character", 4),
    "translation": (bleu, "BLEU", 2),
    "text-to-image": (prompt_accuracy, "prompts met, %", 1),
}


def rows_of(name, folder, args):
    """A row of the table for each quantization and runtime of a preset."""
    for quantize in (None, *(args.quantize or QUANTIZATIONS)):
        path = zoo.export(name, folder / f"{name}_{quantize}", quantize=quantize)
        files = [
            file for file in path.glob("*.onnx*") if file.stem != "model" or not (path / "decode_step.onnx").exists()
        ]
        size = sum(file.stat().st_size for file in files) / 1e6
        function, unit, digits = SCORES[read_export_config(path).task]
        for runtime in args.runtimes:
            error = max(row.max_error for row in zoo.verify(path, runtimes=[runtime]).rows)
            score = function(path, runtime, name, args.data_dir, args.limit)
            yield name, quantize or "float32", f"{size:.2f}", runtime, f"{error:.1e}", f"{score:.{digits}f}", unit


def main(args):
    print("| preset | type | MB | runtime | largest difference | score | unit |")
    print("| --- | --- | ---: | --- | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.presets or zoo.list_models(pretrained=True):
            for row in rows_of(name, pathlib.Path(folder), args):
                print(f"| `{row[0]}` | {' | '.join(row[1:])} |", flush=True)


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("presets", nargs="*", help="names of presets; default all that are here")
    parser.add_argument(
        "--data-dir", type=pathlib.Path, required=True, help="folder with mnist, gtsrb, shakespeare, multi30k"
    )
    parser.add_argument("--quantize", **names, help="some of int8,int4,float16; default all")
    parser.add_argument("--runtimes", **names, default=["onnxruntime", "openvino"], help="default onnxruntime,openvino")
    parser.add_argument("--limit", type=int, help="most images, characters, sentences or prompts; default all")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse_args())
