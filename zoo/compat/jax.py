"""Private names of JAX, as of 0.10.2."""

from zoo.compat import private


def wait_at_barrier(name: str, timeout: float) -> None:
    """Wait until every process of a `jax.distributed` run calls this with the same name.

    Since JAX 0.4. Public way: `jax.experimental.multihost_utils.sync_global_devices`, a collective of the devices,
    which gives up after less than the hours that another process may need for its files.

    Args:
        name: of this barrier, used once in a run.
        timeout: seconds.
    """
    private("jax", "_src.distributed.global_state.client").wait_at_barrier(name, int(1000 * timeout))
