"""Ports of this machine for programs that must be told one."""

from __future__ import annotations

import secrets
import socket

FIRST, LAST = 20_000, 32_000
"""Linux gives ports from 32,768 on to programs that ask for any: a port below is still free when it is used."""


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nothing listens on."""
    found: set[int] = set()
    while len(found) < count:
        port = FIRST + secrets.randbelow(LAST - FIRST)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.add(port)
    return sorted(found)
