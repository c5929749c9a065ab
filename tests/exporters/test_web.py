"""The example for browsers in onnxruntime-web under node, and every float32 graph there on its parity record.

Needs node, and onnxruntime-web in the folder that ZOO_NODE_MODULES names: npm install onnxruntime-web.
"""

import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

import zoo
from zoo.exporters.certificates import read_export_config
from zoo.exporters.runtimes import RuntimeModel
from zoo.parity.records import ParityRecord
from zoo.parity.verify import max_scaled_error
from zoo.presets import CHECKOUT_MODELS

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "examples" / "onnx_web"
MODULES = os.environ.get("ZOO_NODE_MODULES", "")
pytestmark = [
    pytest.mark.once,
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("node") or not (pathlib.Path(MODULES) / "onnxruntime-web").is_dir(),
        reason="needs node, and onnxruntime-web in the folder ZOO_NODE_MODULES",
    ),
]
REPLAY = """
import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";
import { loadFolder, run } from "./onnx_web.mjs";
ort.env.wasm.numThreads = 1;
const { path, calls } = JSON.parse(await readFile("calls.json", "utf8"));
const kinds = { float32: Float32Array, int32: Int32Array, bool: Uint8Array };
for (const { name, inputs } of calls) {
  const folder = await loadFolder(ort, async (file) => new Uint8Array(await readFile(`${path}/${file}`)), [name]);
  const arrays = {}, shapes = {};
  for (const [input, { dtype, shape, values }] of Object.entries(inputs)) {
    arrays[input] = kinds[dtype].from(values);
    shapes[input] = shape;
  }
  const outputs = await run(folder, name, arrays, shapes);
  console.log(JSON.stringify(folder.config.models[name].outputs.map((x) => Array.from(outputs[x.name].data, Number))));
}
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with the example's programs and onnxruntime-web."""
    for file in EXAMPLE.glob("*.mjs"):
        shutil.copy(file, tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES, target_is_directory=True)
    return tmp_path


def node(folder, *arguments):
    child = subprocess.run(["node", *map(str, arguments)], capture_output=True, text=True, cwd=folder)
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.parametrize(
    "name",
    [
        "cnn_mnist",
        "cnn_gtsrb",
        "lstm_shakespeare",
        "gru_shakespeare",
        "transformer_multi30k_de_en",
        "diffusion_captions",
    ],
)
def test_parity_records(name, folder):
    """Each call, and the first step of what is replayed step by step."""
    path = zoo.export(name, folder / name)
    models = read_export_config(path).models
    certificate = json.loads((path / "certificate.json").read_text())
    calls, expected = [], []

    def add(model, inputs, outputs):
        described = zip(models[model].inputs, inputs, strict=True)
        feeds = {
            x.name: {"dtype": x.dtype, "shape": array.shape, "values": array.astype(x.dtype).ravel().tolist()}
            for x, array in described
        }
        calls.append({"name": model, "inputs": feeds})
        expected.append(outputs)

    for replay in certificate["replays"]:
        record = ParityRecord.load(path / replay["record"])
        if replay["kind"] == "call":
            add(replay["models"][0], record.inputs, record.outputs)
        elif replay["kind"] == "token_by_token":
            states = [np.zeros((len(record.inputs[0]), x.shape[1])) for x in models["decode_step.onnx"].inputs[1:]]
            add("decode_step.onnx", [record.inputs[0][:, 0], *states], [record.outputs[0][:, 0]])
        else:
            (source, target), (encoder, step) = record.inputs, replay["models"]
            described = models[encoder]
            names = [x.name for x in described.outputs]
            cross = RuntimeModel("onnxruntime", path / encoder, names)({"source": source.astype("int32")})
            add(encoder, [source], cross)
            batch, heads, size = len(source), cross[1].shape[1], cross[1].shape[3]
            caches = [np.zeros((batch, heads, 1, size))] * (len(cross) - 1)
            mask, position = np.zeros((batch, 1, 1), bool), np.zeros(batch)
            add(step, [target[:, :1], position, cross[0], mask, *cross[1:], *caches], [record.outputs[0][:, :1]])
    (folder / "calls.json").write_text(json.dumps({"path": str(path), "calls": calls}))
    (folder / "replay.mjs").write_text(REPLAY)
    lines = node(folder, "replay.mjs").splitlines()
    assert len(lines) == len(calls) >= 1
    for line, outputs in zip(lines, expected):
        for values, output in zip(json.loads(line), outputs):
            assert max_scaled_error(np.array(values, "float32").reshape(output.shape), output) < 1e-4


def test_classify(folder):
    path = zoo.export("cnn_mnist", folder / "cnn_mnist_onnx")
    images = ParityRecord.load(CHECKOUT_MODELS / "cnn_mnist" / "parity.npz").inputs[0]
    pixels = {"height": images.shape[1], "width": images.shape[2], "pixels": images[0].ravel().tolist()}
    (folder / "pixels.json").write_text(json.dumps(pixels))
    label, probability = node(folder, "node.mjs", "classify", path, "pixels.json").split()[:2]
    best = zoo.ImageClassifier.from_preset("cnn_mnist").classify(images[0])[0]
    assert label == best["label"] and abs(float(probability) - best["score"]) < 1e-3


def test_generate(folder):
    path = zoo.export("lstm_shakespeare", folder / "lstm_shakespeare_onnx")
    task = zoo.CausalLM.from_preset("lstm_shakespeare")
    text = node(folder, "node.mjs", "generate", path, "ROMEO:", 0)
    assert text == task.generate("ROMEO:", greedy=True, max_new_tokens=200) + "\n"
    sampled = node(folder, "node.mjs", "generate", path, "ROMEO:", 0.8)
    assert len(sampled) == 207 and set(sampled) <= set(task.tokenizer.get_vocab())
