"""What a run is on: the devices that `--devices` asks for, in how many processes, and which one this process is."""

import contextlib
import re
from collections.abc import Callable
from typing import Any

import keras

from zoo.errors import UserError

PARALLEL = ("data", "model")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")  # Keras' dtype policies


def parse_devices(text: str) -> tuple[str | None, int | None]:
    """What `--devices` asks for.

    Args:
        text: "auto", a number of accelerators, "cpu", or "cpu:4" for four simulated devices.

    Returns:
        (platform "cpu" or None, number or None).

    Raises:
        UserError: if it is none of these.
    """
    match = re.fullmatch(r"(auto)|(cpu)(?::(\d+))?|(\d+)", str(text).strip().lower())
    if not match or "0" in (match[3], match[4]):
        raise UserError(f"--devices is {str(text)!r}: give auto, a number of accelerators, or cpu:4 to simulate four.")
    if match[2]:
        return "cpu", int(match[3] or 1)
    return None, int(match[4]) if match[4] else None


def resolve_num_accelerators(requested: int | None, available: int) -> int:
    """How many of the available accelerators to use.

    Args:
        requested: how many are asked for; None for all.
        available: how many there are.

    Returns:
        the number; 0 is one CPU.

    Raises:
        UserError: if more are requested than there are.
    """
    if requested is not None and requested > max(1, available):
        found = f"{available} of them" if available else "none"
        raise UserError(
            f"--devices {requested} asks for {requested} accelerators, {keras.backend.backend()} finds {found}: ask "
            f"for fewer, or use cpu:{requested} to simulate them."
        )
    return available if requested is None else min(requested, available)


class Devices:
    """The devices of a run.

    Args:
        num_devices: devices of the whole run.
        parallel: "data" or "model".
        num_processes: how many processes there are.
        process_id: index of this one.
        scope: function that returns a context manager in which variables are made, or None.
        distribution: `tf.distribute.Strategy`, `keras.distribution.Distribution` or None.

    Attributes:
        num_replicas: into how many equal parts the rows of a batch must fall.
        precision: dtype policy of the models that are built.
    """

    precision = "float32"

    def __init__(
        self,
        num_devices: int = 1,
        *,
        parallel: str = "data",
        num_processes: int = 1,
        process_id: int = 0,
        scope: Callable[[], contextlib.AbstractContextManager] | None = None,
        distribution: Any = None,
    ) -> None:
        self.num_devices, self.parallel = num_devices, parallel
        self.num_processes, self.process_id = num_processes, process_id
        self.num_replicas = num_devices if parallel == "data" else 1
        self.scope, self.distribution = scope, distribution

    def per_replica_batch_size(self, batch_size: int) -> int:
        """Rows of a global batch that one copy of a model works on; on JAX there is one copy, cut in parts.

        Args:
            batch_size: rows of the global batch.

        Returns:
            rows.

        Raises:
            UserError: if the replicas cannot divide it.
        """
        if batch_size % self.num_replicas:
            raise UserError(
                f"A batch of {batch_size} rows cannot be divided by {self.num_replicas} devices: use a batch size that "
                f"is a multiple of {self.num_replicas}."
            )
        return batch_size if keras.backend.backend() == "jax" else batch_size // self.num_replicas
