"""Write journals and evaluations to MLflow.  Repeating it changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from planer.workflow.tracking.journal import FOLDER, Journal, delete_journal, journals
from planer.workflow.tracking.runs import StageMirror
from planer.workflow.tracking.secrets import plain
from planer.workflow.tracking.store import Store
from planer.workflow.tracking.variants import SHARED, VariantMirror, owner_of


@dataclass
class Outcome:
    """Result of a sync."""

    updated: list[str] = field(default_factory=list)
    """Runs that it created or changed, as experiment/variant/stage or experiment/variant."""
    current: int = 0
    """Runs of stages in which nothing had changed."""
    troubles: list[str] = field(default_factory=list)
    """Records that MLflow refused, one line each."""


def sync(results: Path, store: Store, say: Callable[[str], None] = lambda line: None) -> Outcome:
    """Write all journals and evaluations below results to the open store.  A failure does not stop the rest, unless
    the server does not answer.  say is told of every run that changes."""
    outcome = Outcome()
    stages = _stages(results)
    for experiment, owner in sorted(
        {(experiment, owner) for experiment, owner, _ in stages} | set(_evaluated(results))
    ):
        own = [paths for *of, paths in stages if of == [experiment, owner]]
        try:
            _sync_owner(results, store, experiment, owner, own, outcome, say)
        except Exception as error:
            outcome.troubles.append(f"{experiment}/{owner}: {plain(error)}")
            if store.lost(error):
                break
    return outcome


def _sync_owner(
    results: Path,
    store: Store,
    experiment: str,
    owner: str,
    stages: list[list[Path]],
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    """The stages of one variant, then the variant itself.  stages: the journals of each, the oldest first."""
    variant = VariantMirror(store, results, experiment, owner)
    start = min((int(paths[0].stem.partition("-")[0]) // 1_000_000 for paths in stages), default=None)
    memories = []
    for paths in stages:
        for path in paths:
            name = "/".join(path.relative_to(results / FOLDER).parts[:-1])
            try:
                mirror = StageMirror(store, Journal(path), experiment)
                if mirror.pending:
                    mirror.catch_up(variant.run(start).run_id, results.parent)
                    outcome.updated.append(name)
                    say(name)
                else:
                    outcome.current += 1
            except Exception as error:
                if store.lost(error):
                    raise
                outcome.troubles.append(f"{name}: {plain(error)}")
                continue
            if path == paths[-1]:
                memories.append(mirror.memory)
            elif not mirror.pending:
                delete_journal(path)  # a newer run of the stage took its place, and MLflow has it
    if variant.update(memories, start):
        outcome.updated.append(f"{experiment}/{owner}")
        say(f"{experiment}/{owner}")


def _stages(results: Path) -> list[tuple[str, str, list[Path]]]:
    """Experiment, owner and journals, the oldest first, of every stage that has run."""
    found = sorted(journals(results / FOLDER))
    return [
        (folder.parts[-3], owner_of(*folder.parts[-3:-1]), list(paths))
        for folder, paths in groupby(found, key=lambda path: path.parent)
    ]


def _evaluated(results: Path) -> Iterator[tuple[str, str]]:
    """Experiment and owner of evaluations and reports, of jobs without a journal too."""
    for path in results.glob("*/*/eval.json"):
        yield path.parts[-3], path.parts[-2]
    for path in results.glob("*/report.html"):
        yield path.parts[-2], SHARED
