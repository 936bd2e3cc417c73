"""The runs of one experiment, one after the other or several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fedfair.config import Config
from fedfair.data.schema import Schema
from fedfair.errors import RunError
from fedfair.record import MODEL
from simulations.engines import Engine
from simulations.progress import RoundProgress


class Job(NamedTuple):
    """One run: its folder with a ``config.yaml``, what to call it, its configuration."""

    folder: Path
    name: str
    config: Config

    @property
    def done(self) -> bool:
        """Whether it has ended: its model is the last file that a run writes."""
        return (self.folder / MODEL).is_file()


def run_jobs(jobs: Sequence[Job], engine: Engine, schema: Schema, at_once: int) -> bool:
    """Run what is not done; return whether Ctrl-C ended it.

    Parameters
    ----------
    jobs : Sequence[Job]
        All runs.
    engine : Engine
        Runs one.
    schema : Schema
        Of all.
    at_once : int
        Runs in process at a time, in processes of their own; below two the engine runs one after the other.

    Raises
    ------
    FedfairError
        If a run fails; those that are under way stop at their next exchange.
    """
    left = [job for job in jobs if not job.done]
    with RoundProgress(sum(job.config.rounds + 1 for job in left)) as progress:
        try:
            if at_once > 1 and left:
                return _at_once(left, len(schema.sites), at_once, progress)
            for job in left:
                progress.start(job.name)
                values = {
                    "config": str(job.folder / "config.yaml"),
                    "overrides": "",
                    "output": str(job.folder),
                }
                engine(values, job.config, schema)
        except KeyboardInterrupt:
            return True
    return False


def _at_once(left: Sequence[Job], sites: int, workers: int, progress: RoundProgress) -> bool:
    # Imported late: Flower takes half a second that a refusal does not need.
    from simulations.pool import run_in_pool

    def told(_: Path, error: str | None) -> None:
        if error is not None:
            raise RunError(error)

    return run_in_pool({job.folder: job.name for job in left}, sites, workers, told, progress)
