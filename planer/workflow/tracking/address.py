"""The address of MLflow's store in ``MLFLOW_TRACKING_URI``, checked before anything is read or written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlparse

from planer.errors import UserError
from planer.workflow.tracking.secrets import redacted

SERVERS = ("http", "https")
DATABASES = ("postgresql", "mysql", "mssql")
ALLOWED = "http(s)://host:port, sqlite:////path/name.db, postgresql://..., mysql://..., mssql://..., databricks, none"

SQLITE_HEADER = b"SQLite format 3\0"


def default_database(results: Path) -> Path:
    """The store of a checkout where MLFLOW_TRACKING_URI names no other."""
    return results.resolve() / "mlflow.db"


def store_uri(results: Path) -> str:
    """The address of the store, which may hold a password.

    Raises UserError, which shows no password, when the mirror is switched off, for an address of no store, and for an
    SQLite file that cannot be one.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{default_database(results)}"
    if uri == "none":
        raise UserError("MLFLOW_TRACKING_URI=none switches MLflow off; unset it or name a store")
    if uri != "databricks":
        _check(uri)
    return uri


def is_server(uri: str) -> bool:
    """Whether a server stores the artifacts too."""
    return uri == "databricks" or urlparse(uri).scheme in SERVERS


def database_of(uri: str) -> Path | None:
    """The file of an SQLite store; None for any other store."""
    if not uri.startswith("sqlite:"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()


def _check(uri: str) -> None:
    try:
        parsed = urlparse(uri)
        scheme, host = parsed.scheme.partition("+")[0], parsed.hostname
    except ValueError:
        scheme, host = "", None
    named = (scheme in SERVERS and host) or scheme in DATABASES or re.match("sqlite:///[^:?]", uri)
    if not named or not uri.isprintable():
        shown = " ".join(redacted(uri).split())
        raise UserError(f"MLFLOW_TRACKING_URI is {shown!r}; allowed: {ALLOWED}")
    if database := database_of(uri):
        _check_database(database)


def _check_database(database: Path) -> None:
    """Refuse a user's file that is no MLflow database, before a lock is created beside it."""
    advice = "name another file in MLFLOW_TRACKING_URI"
    try:
        if not database.parent.is_dir():
            raise UserError(f"MLFLOW_TRACKING_URI: there is no folder {database.parent}; make it, or {advice}")
        if not os.access(database.parent, os.W_OK):
            raise UserError(f"MLFLOW_TRACKING_URI: {database.parent} cannot be written; {advice}")
        if database.is_dir():
            raise UserError(f"MLFLOW_TRACKING_URI: {database} is a folder; {advice}")
        if database.exists():
            with database.open("rb") as file:
                if file.read(len(SQLITE_HEADER)) not in (b"", SQLITE_HEADER):
                    raise UserError(f"MLFLOW_TRACKING_URI: {database} is no SQLite database; {advice}")
    except OSError as error:
        raise UserError(f"MLFLOW_TRACKING_URI: {database}: {error.strerror}; {advice}") from error
