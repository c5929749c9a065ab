"""Start a recipe in as many processes as its devices need, and say in one sentence when one of them is lost.

PyTorch has a process for each device: the recipe starts itself again so many times, by torchrun's own launcher. JAX
ends a process in which it misses another one from within, without Python having a say: where several hosts work
together, the recipe runs in a process of its own, and the first one only watches it.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys

import keras

from zoo.distribution.devices import parse_devices, resolve_num_accelerators
from zoo.distribution.jax import num_processes
from zoo.distribution.strategy import PEER_FAILURE_MESSAGE
from zoo.errors import TrainingError, run_command

WATCHED = "ZOO_WATCHED"  # set in processes that another one watches


def run_recipe(main, args):
    """Run a recipe's `main(args)` as a command, on the devices that `args.devices` asks for.

    Returns:
        what `main` returns, or None where other processes did the work.
    """
    return run_command(_run, main, args)


def _run(main, args):
    if os.environ.get(WATCHED) or "LOCAL_RANK" in os.environ:
        _end_with_parent()
    elif keras.backend.backend() == "torch" and (count := _processes(args.devices)) > 1:
        return _launch(count)
    elif keras.backend.backend() == "jax" and num_processes() > 1:
        return _watch()
    return main(args)


def _processes(devices):
    """How many processes PyTorch needs on this host.

    Raises:
        UserError: if there are not so many devices.
    """
    import torch

    platform, wanted = parse_devices(devices)
    return wanted if platform == "cpu" else resolve_num_accelerators(wanted, torch.cuda.device_count())


def _launch(count):
    """Run this command in `count` processes."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[WATCHED] = "1"
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
            raise _lost(f"Process {killed[0]} of {count}", codes[killed[0]]) from None
        os._exit(codes.get(0, max(codes.values())))  # it has said itself why


def _watch():
    """Run this command in a process of its own and wait for its end."""
    child = subprocess.Popen([sys.executable, *sys.argv], env=os.environ | {WATCHED: "1"})
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:  # the child has got it too, and says what was kept
            continue
    if code == -signal.SIGABRT:
        raise TrainingError(f"{PEER_FAILURE_MESSAGE}: start all of them again with --resume.")
    if code < 0:
        raise _lost("This process", code)
    if code:
        os._exit(code)


def _lost(which, code):
    name = signal.Signals(-code).name
    return TrainingError(f"{which} was ended by {name}: start the run again with --resume.")


def _end_with_parent():
    """On Linux, let this process be killed when the one that started it is: it must not go on alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
