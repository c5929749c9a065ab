"""What JAX compiles, kept in the cache folder for the processes that come after.

The folder lies in `zoo.io.files.cache_dir()`. It is its user's alone, since what is in it is executed, and belongs to
one kind of processor, since homes are shared between machines and compiled code holds a processor's instructions.
"""

import os
import pathlib
import platform
import stat
import sys
import zlib

from zoo.io.files import cache_dir

# JAX's own variables: the folder, and what is kept. A task compiles dozens of small functions, which take 20 ms each.
_SETTINGS = {
    "JAX_COMPILATION_CACHE_MAX_SIZE": 2**28,  # bytes
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0,
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}


def use_compilation_cache() -> None:
    """Let JAX keep what it compiles in the user's cache folder, at most 256 MiB of it, and read what is there.

    `zoo.load_task` and the `zoo` command call this. What the user has set stays, as variables of the environment
    (`JAX_COMPILATION_CACHE_DIR`, empty for no cache) or in `jax.config`. Where the folder cannot be made, or is
    another user's or open to others, there is no cache. Nothing is done where Keras runs on another backend; neither
    Keras nor JAX need be imported yet.
    """
    keras, jax = sys.modules.get("keras"), sys.modules.get("jax")
    if keras and keras.backend.backend() != "jax":
        return
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or (jax and jax.config.jax_compilation_cache_dir is not None):
        return
    folder = cache_dir() / "jax" / f"{zlib.crc32(_processor().encode()):08x}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # raises where it is another user's
        is_private = os.name != "posix" or not stat.S_IMODE(folder.stat().st_mode) & 0o077
    except OSError:
        return
    if not is_private or not os.access(folder, os.W_OK):
        return
    for name, value in {"JAX_COMPILATION_CACHE_DIR": str(folder), **_SETTINGS}.items():
        if name not in os.environ:
            os.environ[name] = str(value)
            if jax:
                jax.config.update(name.lower(), value)


def _processor():
    """A text that names the instructions of this machine's processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):  # not Linux
        return platform.platform() + platform.processor()
