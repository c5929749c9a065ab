"""Memory that a training step frees stays in the process for the next one."""

import ctypes
import os

# Numbers of malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX")


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory, for the rest of the process; call it before the backend runs.

    A training step on a CPU allocates and frees the same hundreds of megabytes each time. glibc gives large blocks back
    to the system when they are freed, and the system hands out zeroed pages of 4 KB for them again, one at a time:
    30,000 in a step of an LSTM of 512 units, up to a quarter of its time on PyTorch and an eighth on JAX. (TensorFlow
    has an allocator of its own.) Here all of malloc's memory comes from one heap, and stays there. The process's memory
    stays at its peak, and with several shapes that peak may be higher.

    Returns:
        whether it was done: not where the C library is another one, or where a `MALLOC_…` variable or `GLIBC_TUNABLES`
        says what the user wants.
    """
    if any(name in os.environ for name in (*_VARIABLES, "GLIBC_TUNABLES")):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, libc.mallopt  # noqa: B018, names that glibc alone has both of
    except (AttributeError, OSError, TypeError):  # of another C library, of Windows
        return False
    # In this order: a limit of the blocks outside the heap first, then of its shrinking, then of further heaps.
    return all([libc.mallopt(_M_MMAP_MAX, 0), libc.mallopt(_M_TRIM_THRESHOLD, -1), libc.mallopt(_M_ARENA_MAX, 1)])
