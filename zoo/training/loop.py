"""The call of `fit` that the recipes share: deterministic order, one progress bar, Ctrl-C that says what was kept."""

import sys

import keras

from zoo.training import callbacks as own


def train(model, batches, *, log, epochs, callbacks, **options):
    """Train a compiled model from the epoch after the last row of `log`.

    Args:
        model: compiled.
        batches: has `set_epoch`; its order is its own.
        log: the `zoo.training.callbacks.History` among the callbacks, which writes the checkpoint.
        epochs: how many in all.
        callbacks: those of the recipe, in the order in which they act.
        **options: of `model.fit`.

    Raises:
        KeyboardInterrupt: on Ctrl-C, with what was kept. TrainingError: if the loss is not a number.
    """
    clear_every_gradient(model)
    try:
        with own.StopOnInterrupt() as stop:
            model.fit(
                batches,
                shuffle=False,
                initial_epoch=len(log.rows),
                epochs=epochs,
                callbacks=[stop, own.EpochOrder(batches), own.StopOnNaN(), *callbacks],
                verbose=1 if sys.stdout.isatty() else 2,
                **options,
            )
    except KeyboardInterrupt:
        done = len(log.rows)
        kept = f"epoch 1 to {done} kept in {log.folder}, go on with --resume" if done else "no epoch was finished yet"
        raise KeyboardInterrupt(kept) from None


def clear_every_gradient(model):
    """On PyTorch, let a model's `zero_grad` reach every weight, also where two layers in it have the same name.

    Keras 3.15 collects them by path (`TorchLayer._track_variables`), so that of two models within a model, each with a
    layer "conv", one would keep the gradients of all steps before.
    """
    if keras.backend.backend() != "torch":
        return

    def zero_grad(set_to_none=True):
        for variable in model.trainable_variables:
            variable.value.grad = None

    model.zero_grad = zero_grad
