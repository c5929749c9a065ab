"""Workers of certificates in this process, which all compute on its backend: tests start no others for it."""

import contextlib
import json
import os

from zoo.errors import UserError
from zoo.parity import worker
from zoo.parity.workers import WorkerError

NAMES = ("tensorflow", "jax", "torch")


class LocalWorker:
    """What `zoo.parity.workers.Worker` is, in this process; a fault is planted while it computes.

    Args:
        backend: what it is called.
        fault: context manager that is entered around each command; None for none.
    """

    def __init__(self, backend, fault=None):
        self.backend, self.fault, self.worker = backend, fault or contextlib.nullcontext, worker._Worker()
        self.about = {"backend": backend, "version": "0", "keras": "3"}

    def __call__(self, method, **arguments):
        json.dumps(arguments)  # as it would travel
        os.environ["LOCAL_WORKER"] = self.backend
        try:
            with self.fault():
                return getattr(self.worker, method)(**arguments)
        except UserError as error:
            raise WorkerError(str(error)) from error

    def close(self):
        pass


def local_workers(**faults):
    """{name: worker}, with the faults of those that are named."""
    return {name: LocalWorker(name, faults.get(name)) for name in NAMES}
