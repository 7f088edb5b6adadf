"""Passwords in the address of a tracking server: removed from every text that leaves this package."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from planer.errors import UserError

SHORTEST = 3
"""Length of the shortest password that is replaced everywhere: a single letter would ruin any text."""


def redacted(text: str) -> str:
    """The text with ``***`` for users and passwords in addresses, and for the values of MLflow's own variables."""
    for secret in _secrets():
        text = text.replace(secret, "***")
    return re.sub(r"://[^/\s]*@", "://***@", text)


def one_line(error: BaseException) -> str:
    """An exception as one line of at most 300 characters, without passwords."""
    return redacted(" ".join(f"{type(error).__name__}: {error}".split()))[:300]


def plain(error: BaseException) -> str:
    """An exception for the user: the text of a UserError, or one line."""
    return redacted(" ".join(str(error).split())) if isinstance(error, UserError) else one_line(error)


def _secrets() -> list[str]:
    """Texts that must not be shown, the longest first."""
    _, _, rest = os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")
    login = rest.rpartition("@")[0]
    password = login.partition(":")[2]
    variables = [os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")]
    found = {login, password, unquote(password), *variables}
    return sorted((text for text in found if len(text) >= SHORTEST), key=len, reverse=True)
