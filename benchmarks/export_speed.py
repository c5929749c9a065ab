"""Speed of exported models in onnxruntime and OpenVINO beside the zoo on each backend.

    python benchmarks/export_speed.py --rounds 2

    images a second      cnn_mnist, batches of 64
    characters a second  lstm_shakespeare, one text of 400 characters
    sentences a second   transformer_multi30k_de_en, 8 sentences one after the other, 5 beams
    ms a denoising step  diffusion_captions, one image with classifier-free guidance

Exported models are run by the programs in docs/examples, whose search and sampling are NumPy, the zoo by its tasks.
Every contender is a process of its own, contenders take turns, and a first run (compilation) is not counted.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "examples")]

from benchmarks.export_scores import session
from benchmarks.side_by_side import run_interleaved

CONTENDERS = ("onnxruntime", "onnxruntime int8", "openvino", "zoo tensorflow", "zoo jax", "zoo torch")
PRESETS = ("cnn_mnist", "lstm_shakespeare", "transformer_multi30k_de_en", "diffusion_captions")
SENTENCES = [
    "Ein Hund läuft durch den Schnee.",
    "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    "Mehrere Männer mit Schutzhelmen bedienen ein Antriebsradsystem.",
    "Ein kleines Mädchen klettert in ein Spielhaus aus Holz.",
] * 2
PROMPT = "a green three on white"
BATCH = np.random.default_rng(0).uniform(0, 255, (64, 28, 28, 1)).astype(np.float32)


def exported_programs(runtime, folder):
    """{what is measured: (function, how many of it a call does)} of exported models."""
    import onnx_draw
    import onnx_generate
    import onnx_translate

    from zoo.exporters.runtimes import RuntimeModel

    modules = session(runtime)
    for example in (onnx_draw, onnx_generate, onnx_translate):
        example.onnxruntime = modules
    cnn = RuntimeModel(runtime, folder / "cnn_mnist" / "model.onnx")
    translator = onnx_translate.Translator(folder / "transformer_multi30k_de_en")
    return {
        "images/s": (lambda: cnn({"image": BATCH}), len(BATCH)),
        "characters/s": (lambda: onnx_generate.generate(folder / "lstm_shakespeare", "ROMEO:"), 400),
        "sentences/s": (lambda: [translator.translate(one) for one in SENTENCES], len(SENTENCES)),
        "steps/s": (lambda: onnx_draw.draw(folder / "diffusion_captions", PROMPT), 20),
    }


def zoo_programs():
    """The same of the zoo's tasks on this process's backend."""
    import zoo
    from zoo.backends import import_keras

    import_keras()
    cnn, letters, translator, painter = (zoo.load_task(name) for name in PRESETS)
    return {
        "images/s": (lambda: cnn.predict(BATCH, batch_size=64), len(BATCH)),
        "characters/s": (lambda: letters.generate("ROMEO:", max_new_tokens=400), 400),
        "sentences/s": (lambda: translator.translate(SENTENCES, num_beams=5, batch_size=1), len(SENTENCES)),
        "steps/s": (lambda: painter.generate(PROMPT, num_steps=20), 20),
    }


def measure(contender, folder, repeats):
    """{what is measured: a second, or ms}, the median of some repeats after a first run."""
    name, _, quantize = contender.partition(" ")
    programs = zoo_programs() if name == "zoo" else exported_programs(name, folder / (quantize or "float32"))
    results = {}
    for what, (function, count) in programs.items():
        function()
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - began)
        rate = count / statistics.median(seconds)
        results["ms/step" if what == "steps/s" else what] = 1000 / rate if what == "steps/s" else rate
    return results


def main(args):
    if args.only:
        print(json.dumps(measure(args.only, args.exports, args.repeats)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.exports or pathlib.Path(scratch)
        import zoo

        for quantize in (None, "int8"):
            for name in PRESETS:
                path = folder / (quantize or "float32") / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.is_dir():
                    zoo.export(name, path, quantize=quantize)
        arguments = ("--exports", folder, "--repeats", args.repeats)
        times = run_interleaved(__file__, args.contenders or CONTENDERS, rounds=args.rounds, arguments=arguments)
    columns = list(next(iter(times.values()))[0])
    print(f"\n{os.cpu_count()} cores, median of {args.rounds} rounds\n\n| | {' | '.join(columns)} |")
    print("| --- |" + " ---: |" * len(columns))
    for name, rounds in times.items():
        cells = (f"{statistics.median(one[column] for one in rounds):,.1f}" for column in columns)
        print(f"| {name} | {' | '.join(cells)} |")


def parse_args(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="runs of each contender; default 2")
    parser.add_argument("--repeats", type=int, default=3, help="calls in each run; default 3")
    parser.add_argument(
        "--exports", type=pathlib.Path, help="folder in which the exports stay; default a temporary one"
    )
    parser.add_argument("--contenders", type=lambda text: text.split(","), help="some of them; default all")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main(parse_args())
