"""The denoiser of Stable Diffusion 1.5 at its full size: 860 million weights in a file of their own."""

import json
import subprocess
import sys

import pytest

CODE = """
import gc, json, pathlib, resource, sys
import keras, numpy as np
from zoo.io.weight_memory import zero_weight_init
from zoo.exporters.onnx_model import write_onnx
from zoo.exporters.runtimes import RuntimeModel
from zoo.models.stable_diffusion.denoiser import denoiser
from zoo.models.variants import DENOISER
from zoo.parity.verify import max_scaled_error

path, rng = pathlib.Path(sys.argv[1]), np.random.default_rng(0)
with zero_weight_init():
    model = denoiser(**DENOISER["sd15"])
for weight in model.weights:
    if weight.name == "kernel":
        fan_in = np.prod(weight.shape[:-1])
        weight.assign(rng.standard_normal(weight.shape, dtype="float32") / np.float32(fan_in**0.5))
shapes = [(1, 64, 64, 4), (1,), (1, 77, 768)]
inputs = [rng.standard_normal(shape, dtype="float32") for shape in shapes[:1]]
inputs += [np.array([500], "float32"), rng.standard_normal(shapes[2], dtype="float32")]
feeds = {x.name: array.astype(x.dtype) for x, array in zip(model.inputs, inputs)}
expected = keras.ops.convert_to_numpy(model.predict_on_batch([feeds[x.name] for x in model.inputs]))
files, parameters = write_onnx(model, path / "model.onnx"), model.count_params()
del model
gc.collect()
(output,) = RuntimeModel("onnxruntime", path / "model.onnx")(feeds)
print(json.dumps({
    "parameters": parameters, "files": {file.name: file.stat().st_size for file in files},
    "error": float(max_scaled_error(output, expected)), "spread": float(expected.std()),
    "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
}))
"""


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.heavy
def test_the_denoiser_of_stable_diffusion_1_5(tmp_path):
    """In onnxruntime as in Keras, with the weights in a file beside the graph, in less than 12 GB; 52 s on 2 cores."""
    child = subprocess.run([sys.executable, "-c", CODE, tmp_path], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])
    assert found["parameters"] == 859_520_964
    assert list(found["files"]) == ["model.onnx", "model.onnx.data"] and found["files"]["model.onnx"] < 10e6
    assert found["files"]["model.onnx.data"] >= 4 * 859_000_000
    assert found["error"] < 1e-4 and found["spread"] > 0.01  # of outputs that mean something
    assert found["peak"] < 12e9
