"""A simulated full disk."""

from __future__ import annotations

import contextlib
import resource
import signal


@contextlib.contextmanager
def small_disk(limit: int):
    """In the block, writing more than ``limit`` bytes to a file fails.

    Put only the write in the block: the limit holds for the whole process, also for files that pytest writes.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
