"""Start a recipe in as many processes as its devices need; exit with a one-line error when one of them is killed.

PyTorch has a process for each device: the recipe starts itself again so many times, by torchrun's launcher. JAX aborts
a process that misses another one, from C++, where Python cannot catch it: with several hosts the recipe runs in a child
process, which the first process watches.
"""

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import TypeVar

import keras

from zoo.distribution.devices import parse_devices, resolve_num_accelerators
from zoo.distribution.jax import num_processes
from zoo.distribution.strategy import PEER_FAILURE_MESSAGE
from zoo.errors import TrainingError, run_command

_WATCHED = "ZOO_WATCHED"  # set in child processes
_T = TypeVar("_T")


def run_recipe(main: Callable[[argparse.Namespace], _T], args: argparse.Namespace) -> _T | None:
    """Run a recipe's `main(args)` as a command, on the devices that `args.devices` asks for.

    Args:
        main: function of the recipe.
        args: its parsed flags.

    Returns:
        what `main` returns, or None where other processes did the work.
    """
    return run_command(_run, main, args)


def _run(main, args):
    if os.environ.get(_WATCHED) or "LOCAL_RANK" in os.environ:
        _end_with_parent()
    elif keras.backend.backend() == "torch" and (count := _num_local_processes(args.devices)) > 1:
        return _launch(count)
    elif keras.backend.backend() == "jax" and num_processes() > 1:
        return _watch()
    return main(args)


def _num_local_processes(devices):
    """How many processes PyTorch needs on this host.

    Raises:
        UserError: if there are not so many devices.
    """
    import torch

    platform, requested = parse_devices(devices)
    return requested if platform == "cpu" else resolve_num_accelerators(requested, torch.cuda.device_count())


def _launch(count):
    """Run this command in `count` processes."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[_WATCHED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    logging.disable(logging.ERROR)  # the launcher's own account of a failure, a page long
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"zoo-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)(*sys.argv)
    except SignalException:
        raise KeyboardInterrupt("go on with --resume") from None
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        # The launcher ends the others by SIGTERM.
        killed = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]
        if killed:
            raise _killed_error(f"Process {killed[0]} of {count}", codes[killed[0]]) from None
        os._exit(codes.get(0, max(codes.values())))  # it has printed the reason


def _watch():
    """Run this command in a process of its own and wait for its end."""
    child = subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {_WATCHED: "1"})
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:  # the child got it too, and prints what was kept
            continue
    if code == -signal.SIGABRT:
        raise TrainingError(f"{PEER_FAILURE_MESSAGE}: start all of them again with --resume.")
    if code < 0:
        raise _killed_error("This process", code)
    if code:
        os._exit(code)


def _killed_error(which, code):
    """The error for a process that a signal ended; `code` is its negative exit status."""
    name = signal.Signals(-code).name
    return TrainingError(f"{which} was ended by {name}: start the run again with --resume.")


def _end_with_parent():
    """On Linux, let this process be killed when the one that started it is: it must not go on alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
