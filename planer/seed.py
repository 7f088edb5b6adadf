"""Seeds of all random streams, derived from the one in the configuration."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: object) -> int:
    """A separate seed for each named random stream, the same on every machine (31 bits)."""
    text = "/".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
