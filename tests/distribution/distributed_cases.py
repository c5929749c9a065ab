"""Short trainings of the four kinds of models on one device or several; a program that the tests start.

python tests/distribution/distributed_cases.py FOLDER --devices cpu:4 --runs cnn@cpu:4 rnn+dropout@cpu:2 plain_fit@cpu:2

A process begins with as many devices as `--devices` says, and does the runs one after the other. Each writes
FOLDER/<run>.npz: the first losses, and the weights after the last step. Words behind a case: `dropout`; `model`,
weights divided among the devices; `endless`, go on until a process is lost; `short`, fewer calls of plain fit. Any
other is a part of the name alone.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from zoo import backends

backends.import_keras_or_exit()

import keras
import numpy as np

from zoo import data, lora
from zoo.blocks.random_streams import set_random_streams
from zoo.distribution import strategy as distribution
from zoo.distribution.launch import run_recipe
from zoo.errors import TrainingError, UserError
from zoo.fast_paths.layers import set_compiler_flags, use_fast_paths
from zoo.io import files
from zoo.models import transformer as transformers
from zoo.models.cnn import cnn
from zoo.models.rnn_language_model import rnn_language_model
from zoo.models.stable_diffusion import denoiser as denoisers
from zoo.training import callbacks
from zoo.training.diffusion import IndexedBatches
from zoo.training.initial_weights import set_initial_weights
from zoo.training.losses import LabelSmoothingCrossEntropy
from zoo.training.optimizers import TorchAdam

set_compiler_flags()
ROWS = 8  # of a global batch
# Of Adam: where a gradient is zero but for rounding (biases of keys), the usual 1e-8 makes whole steps of it.
EPSILON = 1e-4
SIZES = {"num_layers": 1, "hidden_dim": 16, "intermediate_dim": 32, "num_heads": 4}
UNET = {
    "block_out_channels": (16,),
    "layers_per_block": 1,
    "has_attention": (True,),
    "num_heads": 4,
    "cross_attention_dim": 8,
    "norm_num_groups": 4,
}


def cnn_case(dropout):
    """The 48x48 CNN; its last batch has three rows."""
    rng = np.random.default_rng(0)
    model = cnn(num_classes=4, units=8, dropout=dropout)
    set_initial_weights(model, seed=0, initializer="he")
    images, labels = rng.normal(size=(163, 48, 48, 3)).astype("float32"), rng.integers(0, 4, 163)
    batches, validation = (
        data.Batches(images[:n], labels[:n], batch_size=ROWS, seed=seed) for n, seed in ((163, 1), (11, None))
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, batches, validation, {"loss": loss, "weighted_metrics": ["accuracy"]}, {"weight_decay": 1e-3}


def rnn_case(dropout):
    """An LSTM that carries its states from batch to batch, with gradients clipped by their norm."""
    ids = np.random.default_rng(0).integers(0, 11, 20 * ROWS * 5 + 40)
    rows = distribution.current_devices().per_replica_batch_size(ROWS)
    model = rnn_language_model(
        cell="lstm",
        vocabulary_size=11,
        embedding_dim=6,
        units=8,
        num_layers=2,
        dropout=dropout,
        stateful_batch_size=rows,
    )
    set_initial_weights(model, seed=0, initializer="recurrent")
    batches, validation = (
        data.BPTTBatches(part, batch_size=ROWS, sequence_length=5, seed=s) for part, s in ((ids, 0), (ids[:90], None))
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return (
        model,
        batches,
        validation,
        {"loss": loss},
        {"global_clipnorm": 0.05, "weight_decay": 1e-3, "decoupled_weight_decay": True},
    )


def transformer_case(dropout):
    """The encoder-decoder on pairs of several lengths: no two parts of a batch have as many tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 17, (20 * ROWS, 2))
    lengths[:, 0] = 16  # every batch has one shape, for which JAX compiles once
    pairs = [(list(rng.integers(3, 30, n)), list(rng.integers(3, 30, m))) for n, m in lengths]
    model = transformers.transformer(vocabulary_size=30, dropout=dropout, **SIZES)
    set_initial_weights(model, seed=0, initializer="transformer")
    batches, validation = (
        data.BucketedBatches(part, batch_tokens=128, pad_id=0, start_id=1, seed=s)
        for part, s in ((pairs, 0), (pairs[:40], None))
    )
    return model, batches, validation, {"loss": LabelSmoothingCrossEntropy(0.1)}, {"beta_2": 0.98}


def denoiser_case(dropout):
    """The U-Net, with the moving average of its weights."""
    model = denoisers.denoiser(**UNET)
    set_initial_weights(model, seed=0, initializer="transformer")

    def make(rows, rng, key):
        latents, noise = rng.standard_normal((2, len(rows), 4, 4, 4), dtype="float32")
        inputs = latents, rng.integers(0, 1000, len(rows)).astype("float32")
        return (*inputs, rng.standard_normal((len(rows), 3, 8), dtype="float32")), noise

    batches, validation = (
        IndexedBatches(count, ROWS, seed=0, make_batch=make, same_every_epoch=count < 20) for count in (20 * ROWS, ROWS)
    )
    return model, batches, validation, {"loss": keras.losses.MeanSquaredError()}, {"use_ema": True, "ema_momentum": 0.9}


def lora_case(dropout):
    """The transformer, of which LoRA alone is trained."""
    model, *rest = transformer_case(dropout)
    lora.add_lora(model, rank=2, alpha=6)
    return model, *rest


CASES = {"cnn": cnn_case, "rnn": rnn_case, "transformer": transformer_case, "denoiser": denoiser_case}
CASES["lora"] = lora_case
LAYOUTS = {"transformer": transformers.TENSOR_PARALLEL_LAYOUT_MAP, "denoiser": denoisers.TENSOR_PARALLEL_LAYOUT_MAP}


def run(case, folder, *, devices, parallel="data", dropout=0.0, precision="float32", endless=False):
    """Train a case for an epoch; the first process writes its losses, metrics and weights."""
    with distribution.strategy(devices, parallel=parallel, layout_map=LAYOUTS.get(case), precision=precision) as on:
        model, batches, validation, compiling, numbers = CASES[case](dropout)
        set_random_streams(model, seed=0)
        model.compile(optimizer=TorchAdam(2e-3, **{"epsilon": EPSILON} | numbers), **compiling)
        use_fast_paths(model)
        log = callbacks.TrainingLog(
            files.prepare_folder(folder), "checkpoint.npz", history=[], settings={"epochs": 1}, examples=1
        )
        first = callbacks.LossRecorder(batches)
        more = [callbacks.ResetStates()] if case == "rnn" else []
        model.fit(batches, shuffle=False, callbacks=[*more, first, log], validation_data=validation, verbose=2)
        shards = (
            {v.path: v.value.addressable_shards[0].data.shape for v in model.weights} if parallel == "model" else {}
        )
        weights = [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]
        plain = distribution.to_single_device(model)
        assert {layer.compute_dtype for layer in plain.layers} == {"float32"}
        trained, stateless = {id(v) for v in model.trainable_variables}, lambda v: v.name != "rnn_state"
        pairs = zip(filter(stateless, plain.weights), filter(stateless, model.weights), strict=True)
        same = [np.asarray(keras.ops.convert_to_numpy(new)) for new, old in pairs if id(old) in trained]
        if case == "lora":
            assert {layer.lora_alpha for layer in plain.layers if getattr(layer, "lora_enabled", False)} == {6}
        assert all(np.array_equal(a, b) for a, b in zip(weights, same, strict=True))
        save_results(folder, on, model, weights, first.losses, log.history[0], shards)
        if endless:
            train_until_a_process_is_lost(model, batches, folder)


def save_results(folder, devices, model, weights, losses, row, shards):
    """Write what the tests compare, in the first process."""
    if files.discarding():
        return
    metrics = [value for key, value in row.items() if "loss" in key or "accuracy" in key]
    with files.atomic_write(f"{folder}.npz") as temporary:
        np.savez(
            temporary,
            *weights,
            losses=losses,
            count=devices.num_devices,
            metrics=metrics,
            optimizer=type(model.optimizer).__name__,
            shards=[f"{path} {shape}" for path, shape in shards.items()],
        )


def train_until_a_process_is_lost(model, batches, folder):
    """Train without an end; writes a file after the first step."""

    def started(batch, logs):
        if not files.discarding():
            (folder / "endless").touch()

    try:
        callback = keras.callbacks.LambdaCallback(on_train_batch_end=started)
        model.fit(batches, shuffle=False, epochs=10**6, callbacks=[callback], verbose=0)
    except Exception as error:
        if not distribution.is_peer_failure(error):
            raise
        raise TrainingError(f"{distribution.PEER_FAILURE_MESSAGE}.") from error


class RowBatches(keras.utils.PyDataset):
    """Batches of 8 rows as a user writes them."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return -(-len(self.x) // ROWS)

    def __getitem__(self, index):
        rows = slice(index * ROWS, (index + 1) * ROWS)
        return self.x[rows], self.y[rows]


def run_plain_fit(folder, *, devices, short=False):
    """Keras' own optimizer and `fit` as any user calls them; writes every number that `fit` and `evaluate` give."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 6)).astype("float32"), rng.integers(0, 3, 64)
    importance = rng.uniform(0.5, 2, 64).astype("float32")
    left = {"batch_size": ROWS, "shuffle": False, "class_weight": {1: 3.0}, "validation_data": (x[:13], y[:13])}
    calls = {
        "arrays": ((x, y), {"batch_size": ROWS, "validation_split": 0.25}),
        "class weights": ((x, y), {"batch_size": ROWS, "class_weight": {0: 2.0, 2: 0.5}}),
        "sample weights": (
            (x, y),
            {"batch_size": ROWS, "sample_weight": importance, "validation_data": (x[:16], y[:16])},
        ),
        "batches": ((RowBatches(x, y),), {"shuffle": False, "validation_data": RowBatches(x[:24], y[:24])}),
        "layers of one name": ((x, y), {"batch_size": ROWS}),
        "rows left over": ((x[:59], y[:59]), left),
    }
    if short:
        calls = {name: calls[name] for name in ("arrays", "rows left over")}
    results = {}
    with distribution.strategy(devices) as on:
        for name, (data, options) in calls.items():
            keras.utils.set_random_seed(0)  # of the order of the rows
            layers = [keras.Input((6,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(3)]
            if name == "layers of one name":
                parts = [([keras.Input((6,)), keras.layers.Dense(6, name="dense")]) for _ in range(2)]
                layers[1:1] = [keras.Sequential(part, name=f"part_{index}") for index, part in enumerate(parts)]
            model = keras.Sequential(layers)
            set_initial_weights(model, seed=0, initializer="he")
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss, metrics=["accuracy"])
            history = model.fit(*data, epochs=2, verbose=0, **options).history
            if name == "rows left over":  # in training, means over an epoch count the rows that are added
                history = {"val_loss": history["val_loss"]}
            results |= {f"{name} {key}": values for key, values in history.items()}
            results[f"{name} evaluate"] = model.evaluate(x, y, batch_size=ROWS, verbose=0)
            results[f"{name} weights"] = np.concatenate([np.ravel(w) for w in model.get_weights()])
        for method, options in ((model.fit, {"batch_size": 9}), (model.evaluate, {"batch_size": 9})):
            try:
                method(x, y, verbose=0, **options)
            except UserError as error:
                assert "A batch of 9 rows cannot be divided by" in str(error) and on.num_devices > 1
            else:
                assert on.num_devices == 1
        if on.num_devices > 1:  # nothing was computed
            np.testing.assert_array_equal(
                np.concatenate([np.ravel(w) for w in model.get_weights()]), results["rows left over weights"]
            )
    assert not hasattr(keras.Model.fit, "outside_scope")
    if not files.discarding():
        with files.atomic_write(f"{folder}.npz") as temporary:
            np.savez(temporary, **results)


def main(args):
    for name in args.runs:
        folder = pathlib.Path(args.folder) / name
        case, devices = name.split("@")
        case, *words = case.split("+")
        if case == "plain_fit":
            run_plain_fit(folder, devices=devices, short="short" in words)
        else:
            parallel, dropout = "model" if "model" in words else "data", 0.4 if "dropout" in words else 0.0
            run(case, folder, devices=devices, parallel=parallel, dropout=dropout, endless="endless" in words)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--runs", nargs="+")
    parser.add_argument("--devices")
    run_recipe(main, parser.parse_args())
