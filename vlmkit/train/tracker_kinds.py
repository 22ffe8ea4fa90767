"""How each tracker is started, afresh or where it knows the run already; accelerate's classes do the rest."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from vlmkit.recipe import TrackerName

# The project of W&B and trackio, and the experiment of MLflow, in which runs are compared.
PROJECT = "vlmkit"
Identity = dict[str, str]


@dataclass(frozen=True)
class Opening:
    """What a tracker is started with.

    Attributes:
        run_dir: The run's directory, whose name names the run.
        known: What the tracker returned when it was first started for this run; None the first time.
        first: Number of the step that comes next, from 1.
        closing: What is to be done in the end.
    """

    run_dir: Path
    known: Mapping[str, str] | None
    first: int
    closing: ExitStack


def _tensorboard(opening: Opening) -> tuple[Any, Identity]:
    """Events in `RUN/tensorboard`; those of steps that are done again are struck out."""
    again = {} if opening.known is None else {"purge_step": opening.first}
    return TensorBoardTracker("tensorboard", opening.run_dir, **again), {"folder": "tensorboard"}


def _wandb(opening: Opening) -> tuple[Any, Identity]:
    """A run with an id of our own; its files are in `RUN/wandb`."""
    own = dict(opening.known or {"id": uuid.uuid4().hex[:12]})
    name = opening.run_dir.name
    return WandBTracker(PROJECT, name=name, dir=str(opening.run_dir), resume="allow", **own), own


def _mlflow(opening: Opening) -> tuple[Any, Identity]:
    """A run where MLFLOW_TRACKING_URI says, else in a database in the run's directory."""
    # Importing mlflow asks a server of its makers whether to report to it.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    if not mlflow.is_tracking_uri_set():
        # It is a setting of the whole process, in which another run may follow.
        opening.closing.callback(mlflow.set_tracking_uri, None)
        folder = opening.run_dir.resolve()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    run_id = opening.known["run_id"] if opening.known else None
    artifacts = (opening.run_dir.resolve() / "mlartifacts").as_uri()
    tracker = MLflowTracker(PROJECT, artifacts, run_id=run_id, run_name=opening.run_dir.name)
    return tracker, {}


def _trackio(opening: Opening) -> tuple[Any, Identity]:
    """A run in trackio's own folder on this machine, under a name that no other has."""
    own = dict(opening.known or {"name": f"{opening.run_dir.name}-{uuid.uuid4().hex[:8]}"})
    return TrackioTracker(PROJECT, resume="allow", **own), own


KINDS: dict[TrackerName, Callable[[Opening], tuple[Any, Identity]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}


def start(name: TrackerName, opening: Opening) -> tuple[Any, Identity]:
    """Start a tracker; returns it, and what it must be told to go on with this run."""
    tracker, identity = KINDS[name](opening)
    tracker.start()
    opening.closing.callback(tracker.finish)
    if isinstance(tracker, MLflowTracker):
        identity = {"run_id": tracker.active_run.info.run_id}
    return tracker, identity
