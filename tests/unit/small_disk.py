"""A disk that is full."""

from __future__ import annotations

import contextlib
import resource
import signal


@contextlib.contextmanager
def small_disk(limit: int):
    """Writing beyond ``limit`` bytes of a file fails in the block, as on a full disk.

    For the write alone, and no fixture: the limit binds the whole process, and so pytest's own report where that goes
    to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
