"""MLflow's store, opened safely: a new store is created atomically, and one process opens it at a time."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlparse
from urllib.request import url2pathname

from planer.errors import UserError
from planer.workflow.tracking.address import database_of, default_database, is_server, store_uri
from planer.workflow.tracking.secrets import redacted
from planer.workflow.tracking.view import KIND_TAG, VIEW_TAG, view

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REQUEST_SECONDS = 5
"""Timeout of an answer.  A sync stops at the first missing answer."""
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),  # MLflow's defaults, 120 s and 7 retries, are too long
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the next sync repeats it
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool",  # no old connection to a deleted database
}
"""Set where the user's environment does not say otherwise."""


class Busy(UserError):
    """Another process uses the store."""


class Store:
    """An open store.  It is used by one process at a time: see ``opened``."""

    def __init__(self, client: MlflowClient, uri: str, artifacts: Path | None):
        self.client = client
        self._database = database_of(uri)
        self.name = redacted(uri)
        """Its address without passwords."""
        self.remote = is_server(uri)
        self._artifacts = artifacts
        self._experiments: dict[str, tuple[str, str]] = {}

    def experiment(self, name: str) -> tuple[str, str]:
        """The id of an experiment, which is created if need be, and a key that no experiment of another store has."""
        from mlflow.exceptions import MlflowException

        if name not in self._experiments:
            found = self.client.get_experiment_by_name(name)
            if found is None:
                location = (self._artifacts / name).as_uri() if self._artifacts else None
                with suppress(MlflowException):  # another checkout was faster
                    self.client.create_experiment(name, artifact_location=location)
                found = self.client.get_experiment_by_name(name)
            if found.lifecycle_stage != "active":
                raise UserError(f"experiment {name} was deleted in MLflow; restore it there to see its runs")
            for tag, value in {VIEW_TAG: view("bpc"), **KIND_TAG}.items():
                if tag not in found.tags:
                    self.client.set_experiment_tag(found.experiment_id, tag, value)
            self._experiments[name] = found.experiment_id, f"{found.experiment_id}@{found.creation_time}"
        return self._experiments[name]

    def belongs_to(self, results: Path) -> bool:
        """Whether it is the database of this results folder, which is copied and moved with it."""
        return self._database == default_database(results)

    def lost(self, error: Exception) -> bool:
        """Whether an exception says that the server does not answer, so that nothing else will succeed either."""
        from mlflow.exceptions import MlflowException, RestException

        return self.remote and isinstance(error, MlflowException) and not isinstance(error, RestException)


@contextmanager
def opened(results: Path, seconds: float) -> Iterator[Store]:
    """Yield the Store.  An SQLite database is locked meanwhile, by a file beside it, for all checkouts that share it.

    Raises Busy when the lock is not free within seconds, and UserError when the database is no good.
    """
    from filelock import FileLock, Timeout

    os.environ.update({name: value for name, value in DEFAULTS.items() if name not in os.environ})
    uri = store_uri(results)
    database = database_of(uri)
    folder = results / ".tracking"
    folder.mkdir(parents=True, exist_ok=True)
    locks = [folder / "lock", *([database.with_name(f"{database.name}.lock")] if database else [])]
    try:
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(FileLock(lock, timeout=seconds))
            yield _open(uri, database, results)
    except Timeout as error:
        raise Busy(f"another process has used {error.lock_file} for {seconds:g} s; try again later") from None


def _open(uri: str, database: Path | None, results: Path) -> Store:
    if not database:
        from mlflow.tracking import MlflowClient

        return Store(MlflowClient(uri), uri, None if is_server(uri) else results.resolve() / "mlartifacts")
    artifacts = database.parent / "mlartifacts"
    if database.exists() and (database.is_dir() or database.stat().st_size):
        _check(database)
        _move_artifacts(database, artifacts)
    else:
        _create(database, artifacts)
    from mlflow.tracking import MlflowClient

    return Store(MlflowClient(uri), uri, artifacts)


def _create(database: Path, artifacts: Path) -> None:
    """Make the database under another name, so that a kill at any moment leaves none or a whole one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    temporary = database.with_name(f".{database.name}.{os.getpid()}.tmp")
    for leftover in database.parent.glob(f".{database.name}.*.tmp*"):  # of killed processes: this one has the lock
        leftover.unlink()
    SqlAlchemyStore(f"sqlite:///{temporary}", artifacts.as_uri()).engine.dispose()
    os.replace(temporary, database)


def _check(database: Path) -> None:
    """Raise UserError for a file that is no database, or one whose tables are not those of this MLflow.

    Only files with tables of MLflow's and the checkout's own file are called ours to delete.

    MLflow itself would try for 100 s to open the first, and ruin the second by creating tables a second time.
    """
    advice = "delete it, then `python -m planer.workflow.tracking sync` makes its runs anew from their journals"
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=20)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            query = "SELECT version_num FROM alembic_version"
            found = next((row[0] for row in connection.execute(query)), None) if "alembic_version" in tables else None
    except sqlite3.Error as error:
        raise UserError(f"{database} is no MLflow database ({error}); {advice}") from error
    if tables and not tables & {"experiments", "alembic_version"}:
        raise UserError(f"{database} is a database of something else; name another file in MLFLOW_TRACKING_URI")
    if found != _schema():
        raise UserError(
            f"{database} is half made or of another version of MLflow (schema {found}, here {_schema()}); {advice}"
        )


@cache
def _schema() -> str:
    """The version of the tables that this MLflow wants."""
    import mlflow.store
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.store.__file__).with_name("db_migrations"))).get_current_head()


def _move_artifacts(database: Path, artifacts: Path) -> None:
    """Correct the absolute locations in a database that was copied or moved together with its artifacts.

    Without that, a copied checkout would write its artifacts into the folder of the first.
    """
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        rows = connection.execute("SELECT experiment_id, artifact_location FROM experiments").fetchall()
        for identifier, location in rows:
            parsed = urlparse(location or "")
            path = Path(url2pathname(parsed.path))
            if parsed.scheme != "file" or path.parent.name != artifacts.name or path.parent == artifacts:
                continue
            new = (artifacts / path.name).as_uri()
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, identifier)
            )
            connection.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE experiment_id = ? AND "
                "substr(artifact_uri, 1, ?) = ?",
                (new, len(location) + 1, identifier, len(location), location),
            )
