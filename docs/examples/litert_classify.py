"""Classify an image with an exported CNN: LiteRT, NumPy and Pillow alone.

zoo export cnn_mnist --to litert
python docs/examples/litert_classify.py cnn_mnist_litert docs/images/digit.png
"""

import json
import pathlib
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image


def classify(folder, path, top_k=3):
    """The most probable classes of an image file: [(label, probability)]."""
    folder = pathlib.Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Interpreter(str(folder / "model.tflite")).get_signature_runner()
    _, height, width, channels = config["models"]["model.tflite"]["inputs"][0]["shape"]
    image = Image.open(path).convert("L" if channels == 1 else "RGB")
    image = image.resize((width, height), Image.Resampling.BILINEAR)  # LiteRT's shapes are fixed
    pixels = np.asarray(image, np.float32).reshape(1, image.height, image.width, channels)
    if config["invert_light_backgrounds"]:  # the model was trained on light ink on dark ground
        border = np.concatenate([pixels[0, 0], pixels[0, -1], pixels[0, :, 0], pixels[0, :, -1]])
        pixels = 255 - pixels if border.mean() > 127.5 else pixels
    assert config["preprocess_input"] in ("none", "unit"), "this example does no other preprocessing"
    pixels = pixels / 255 if config["preprocess_input"] == "unit" else pixels
    logits = model(image=pixels)["logits"]
    p = np.exp(logits[0] - logits[0].max())
    p /= p.sum()
    return [(config["class_names"][k], float(p[k])) for k in np.argsort(-p)[:top_k]]


if __name__ == "__main__":
    for label, probability in classify(*sys.argv[1:]):
        print(f"{label:<20} {probability:.4f}")
