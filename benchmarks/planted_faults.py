"""Plant faults in one backend's process and count how many `zoo.parity.certificate.certify` finds and names.

    python benchmarks/planted_faults.py --output docs/results/planted_faults.json    and then docs/receipts.py
    python benchmarks/planted_faults.py --plants 3 --clean 0 --seed 1

Each plant is drawn of a seed: one of three small models, a backend, a kind of fault and a layer. It is a patch of
Keras' public classes, made in the process of that backend by a file that `Worker("setup")` runs, as `zoo verify
--setup` would; the verifier knows nothing of it. Found means: this layer (or the optimizer), this kind, on this
backend, and nothing else. Clean runs have other random weights and inputs each.
"""

import argparse
import datetime
import json
import pathlib
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

BACKENDS = ("tensorflow", "jax", "torch")
KINDS = ("forward", "gradient", "optimizer", "dropout", "state")


# ----------------------------------------------------------------------------------------------------------- the models


def image_classifier():
    """Convolutions with batch normalization, a skip connection, pooling and dropout; logits."""
    import keras
    from keras import layers

    x = keras.Input((12, 12, 3), name="image")
    y = layers.Conv2D(6, 3, padding="same", use_bias=False, name="conv1")(x)
    y = layers.BatchNormalization(name="norm1")(y)
    y = layers.Activation("relu", name="relu1")(y)
    z = layers.Conv2D(6, 3, padding="same", name="conv2")(y)
    z = layers.BatchNormalization(name="norm2")(z)
    y = layers.Add(name="add")([y, z])
    y = layers.MaxPooling2D(2, name="pool")(y)
    y = layers.Dropout(0.3, name="drop1")(y)
    y = layers.Flatten(name="flat")(y)
    y = layers.Dense(10, activation="tanh", name="dense")(y)
    y = layers.Dropout(0.5, name="drop2")(y)
    return keras.Model(x, layers.Dense(5, name="logits")(y), name="image_classifier")


def text_classifier():
    """Padded tokens through a recurrent layer, attention and layer normalization; probabilities."""
    import keras
    from keras import layers

    x = keras.Input((10,), dtype="int32", name="tokens")
    y = layers.Embedding(40, 8, mask_zero=True, name="table")(x)
    y = layers.Dropout(0.2, name="drop1")(y)
    y = layers.LSTM(8, return_sequences=True, name="lstm")(y)
    z = layers.MultiHeadAttention(2, 4, name="attention")(y, y)
    y = layers.Add(name="add")([y, z])
    y = layers.LayerNormalization(name="norm")(y)
    y = layers.GRU(6, name="gru")(y)
    y = layers.Dense(8, activation="gelu", name="dense")(y)
    y = layers.Dropout(0.4, name="drop2")(y)
    return keras.Model(x, layers.Dense(3, activation="softmax", name="classes")(y), name="text_classifier")


def two_inputs():
    """A depthwise separable network of a picture beside a dense one of numbers, in nested models."""
    import keras
    from keras import layers

    x = keras.Input((14, 14, 2), name="pixels")
    y = layers.SeparableConv2D(6, 3, name="separable")(x)
    y = layers.BatchNormalization(momentum=0.95, name="norm1")(y)
    y = layers.PReLU(shared_axes=[1, 2], name="prelu")(y)
    y = layers.DepthwiseConv2D(3, strides=2, name="depthwise")(y)
    y = layers.GroupNormalization(2, name="groups")(y)
    trunk = keras.Model(x, layers.GlobalAveragePooling2D(name="mean")(y), name="trunk")
    pixels, numbers = keras.Input((14, 14, 2), name="picture"), keras.Input((7,), name="numbers")
    z = layers.Dense(6, activation="silu", name="dense")(numbers)
    z = layers.BatchNormalization(name="norm2")(z)
    z = layers.Dropout(0.25, name="drop1")(z)
    y = layers.Concatenate(name="join")([trunk(pixels), z])
    y = layers.Dropout(0.1, name="drop2")(y)
    outputs = [layers.Dense(1, activation="sigmoid", name="score")(y), layers.Dense(3, name="values")(y)]
    return keras.Model([pixels, numbers], outputs, name="two_inputs")


MODELS = (image_classifier, text_classifier, two_inputs)


def write_model(build, seed, path):
    """Write a model with random weights, on the backend of this process."""
    import keras

    rng, model = np.random.default_rng(seed), build()
    values = []
    for variable, value in zip(model.weights, model.get_weights()):
        if "seed" in variable.path:
            values.append(value)
        elif "variance" in variable.path or "gamma" in variable.path:
            values.append(rng.uniform(0.5, 1.5, value.shape).astype("float32"))
        else:
            fan_in = max(1, int(np.prod(value.shape[:-1])))
            values.append((rng.standard_normal(value.shape) / fan_in**0.5).astype("float32"))
    model.set_weights(values)
    keras.saving.save_model(model, path)
    layers = [layer for part in model.layers for layer in (part.layers if isinstance(part, keras.Model) else [part])]
    return [(type(layer).__name__, layer.name) for layer in layers if type(layer).__name__ != "InputLayer"]


# ----------------------------------------------------------------------------------------------------------- the plants

_undo = []


def plant(kind, layer):
    """Patch Keras in this process: a fault of a kind in the layer of a name."""
    import keras

    if kind == "optimizer":
        return _plant_epsilon(keras.optimizers.Adam)
    changes = {
        "forward": lambda original, self, args, kwargs: _map(original(self, *args, **kwargs), lambda y: y * (1 + 1e-3)),
        "gradient": lambda original, self, args, kwargs: _map(
            original(self, *args, **kwargs), lambda y: y * 1.01 - keras.ops.stop_gradient(y * 0.01)
        ),
        "dropout": lambda original, self, args, kwargs: original(self, args[0], training=True),
        "state": _with_momentum,
    }
    for layer_class in {value for value in vars(keras.layers).values() if isinstance(value, type)}:
        if hasattr(layer_class, "call"):
            _patch_call(layer_class, layer, changes[kind])


def _map(outputs, change):
    import keras

    return keras.tree.map_structure(change, outputs)


def _with_momentum(original, self, args, kwargs):
    """The moving averages with 0.9 of the old value."""
    momentum, self.momentum = self.momentum, 0.9
    try:
        return original(self, *args, **kwargs)
    finally:
        self.momentum = momentum


def _patch_call(layer_class, name, change):
    import functools

    original, is_own = layer_class.call, "call" in vars(layer_class)

    @functools.wraps(original)
    def call(self, *args, **kwargs):
        if self.name == name and type(self) is layer_class:
            return change(original, self, args, kwargs)
        return original(self, *args, **kwargs)

    layer_class.call = call
    _undo.append(lambda: setattr(layer_class, "call", original) if is_own else delattr(layer_class, "call"))


def _plant_epsilon(optimizer_class):
    """Epsilon after the bias correction, where Keras adds it before: eps * sqrt(1 - b2^t) in Keras' place."""
    original = optimizer_class.apply

    def apply(self, *args, **kwargs):
        epsilon, step = self.epsilon, float(np.array(self.iterations)) + 1
        self.epsilon = epsilon * float(np.sqrt(1 - self.beta_2**step))
        try:
            return original(self, *args, **kwargs)
        finally:
            self.epsilon = epsilon

    optimizer_class.apply = apply
    _undo.append(lambda: setattr(optimizer_class, "apply", original))


def clear():
    """Take all patches back."""
    while _undo:
        _undo.pop()()


# -------------------------------------------------------------------------------------------------------------- the run


def draw_plants(count, seed, layers_of):
    """[(model index, backend, kind, layer)]: every kind and backend about equally often, places at random."""
    rng, plants = np.random.default_rng(seed), []
    for i in range(count):
        kind, backend = KINDS[i % len(KINDS)], BACKENDS[int(rng.permutation(3)[0]) if i % 3 else i // 3 % 3]
        fits = {
            "forward": lambda name: True,
            "gradient": lambda name: True,
            "optimizer": lambda name: True,
            "dropout": lambda name: name == "Dropout",
            "state": lambda name: name == "BatchNormalization",
        }[kind]
        places = [(m, layer) for m, layers in enumerate(layers_of) for name, layer in layers if fits(name)]
        model, layer = places[rng.integers(len(places))]
        plants.append((model, backend, kind, "" if kind == "optimizer" else layer))
    return plants


def is_found(certificate, backend, kind, layer):
    """Whether a certificate names a plant and nothing else."""
    if len(certificate.findings) != 1:
        return False
    (finding,) = certificate.findings
    names = finding.layer.rpartition("/")[2] == layer or kind == "optimizer"
    return finding.backend == backend and finding.kind == kind and names


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plants", type=int, default=20, help="how many faults; default 20")
    parser.add_argument("--clean", type=int, default=20, help="how many runs without one; default 20")
    parser.add_argument("--seed", type=int, default=0, help="of places and weights; default 0")
    parser.add_argument("--output", help="JSON file to write")
    args = parser.parse_args()

    from zoo import backends

    backends.import_keras("torch")
    from zoo.parity.certificate import certify
    from zoo.parity.workers import start_workers

    workers, _ = start_workers(BACKENDS)
    versions = {"keras": workers["torch"].about["keras"]} | {b: w.about["version"] for b, w in workers.items()}
    rows, began = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)

        def setup(backend, line):
            (folder / "setup.py").write_text(f"from benchmarks import planted_faults\nplanted_faults.{line}\n")
            workers[backend]("setup", path=str(folder / "setup.py"))

        layers_of = [write_model(build, args.seed, folder / "probe.keras") for build in MODELS]
        runs = [("clean", None)] * args.clean + [
            ("plant", one) for one in draw_plants(args.plants, args.seed, layers_of)
        ]
        for index, (what, planted) in enumerate(runs):
            model = index % len(MODELS) if planted is None else planted[0]
            path = folder / f"{index}.keras"
            write_model(MODELS[model], 1000 * args.seed + index, path)
            if planted:
                setup(planted[1], f"plant({planted[2]!r}, {planted[3]!r})")
            certificate = certify(path, workers=workers, seed=index, name=MODELS[model].__name__)
            if planted:
                setup(planted[1], "clear()")
            largest = max(max(row.units.values()) for row in certificate.rows)
            row = {"run": what, "model": MODELS[model].__name__, "passed": certificate.passed, "largest_units": largest}
            if planted:
                row |= dict(zip(("backend", "kind", "layer"), planted[1:]))
                row["found"] = is_found(certificate, *planted[1:])
            row["findings"] = [str(finding) for finding in certificate.findings]
            rows.append(row)
            print(index, row, flush=True)
    for worker in workers.values():
        worker.close()
    found = sum(row.get("found", False) for row in rows)
    alarms = sum(not row["passed"] for row in rows if row["run"] == "clean")
    largest = max((row["largest_units"] for row in rows if row["run"] == "clean"), default=0)
    print(
        f"{found} of {args.plants} plants found, {alarms} alarms in {args.clean} clean runs (largest difference "
        f"{largest:.1f} units), {time.perf_counter() - began:.0f} s."
    )
    if args.output:
        about = {"date": datetime.date.today().isoformat(), "seed": args.seed, "versions": versions}
        pathlib.Path(args.output).write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0 if found == args.plants and not alarms else 1


if __name__ == "__main__":
    raise SystemExit(main())
