"""The mirror of all stages in MLflow.

Files under ``results/`` are the truth.  MLflow holds a view of them.  No trouble with MLflow, from a missing package
to a dead server, costs a result or delays a job: it ends as one line of warning at the end of the workflow.

A job appends records to its journal (``journal.py``), a small file under ``results/.tracking``.  It never imports
MLflow.  One process beside the workflow (``follow.py``) brings the journals into MLflow while jobs run and once more
at the end (``sync.py``).  What could not be mirrored then is mirrored by the next workflow, or by
``python -m planer.workflow.tracking sync results``.

The store is ``results/mlflow.db`` (SQLite) with files under ``results/mlartifacts``, unless the environment variable
``MLFLOW_TRACKING_URI`` names another.  ``MLFLOW_TRACKING_URI=none`` switches the mirror off.
"""

from planer.workflow.tracking.follow import finish, start
from planer.workflow.tracking.journal import StageRun, track

__all__ = ["StageRun", "finish", "start", "track"]
