"""The call of `fit` that the recipes share: deterministic order, one progress bar, Ctrl-C that says what was kept."""

import sys

import keras

from zoo.distribution import strategy as distribution
from zoo.errors import TrainingError
from zoo.training import callbacks as own


def train(model, batches, *, log, epochs, callbacks, validation_data=None):
    """Train a compiled model from the epoch after the last row of `log`, on the devices of the open scope.

    Args:
        model: compiled.
        batches: global batches; has `set_epoch`, its order is its own.
        log: the `zoo.training.callbacks.TrainingLog` among the callbacks, which writes the checkpoint.
        epochs: how many in all.
        callbacks: those of the recipe, in the order in which they act.
        validation_data: batches, or None.

    Raises:
        KeyboardInterrupt: on Ctrl-C, with what was kept. TrainingError: if the loss is not a number, or another process
            of the run has gone.
    """
    fix_zero_grad(model)
    if hasattr(batches, "batch_size"):
        distribution.current().per_replica_batch_size(batches.batch_size)  # which devices must be able to divide
    mine, validation = distribution.shard(batches), distribution.shard(validation_data)
    distribution.prepare(model, mine)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)  # TensorFlow takes longer when it is left to the first step
    for callback in callbacks:
        if isinstance(callback, own.LossRecorder):
            callback.batches = mine
    try:
        with own.StopOnInterrupt() as stop:
            model.fit(
                mine,
                shuffle=False,
                initial_epoch=len(log.history),
                epochs=epochs,
                callbacks=[stop, own.SetEpoch(batches), own.TerminateOnNaN(), *callbacks],
                verbose=1 if sys.stdout.isatty() else 2,
                validation_data=validation,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(log)) from None
    except Exception as error:
        if not distribution.is_peer_failure(error):
            raise
        raise TrainingError(f"{distribution.PEER_FAILURE_MESSAGE}: {_kept(log)}.") from error
    distribution.barrier()


def _kept(log):
    """What is left of a run that was cut short."""
    done = len(log.history)
    return f"epoch 1 to {done} kept in {log.folder}, go on with --resume" if done else "no epoch was finished yet"


def fix_zero_grad(model):
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
