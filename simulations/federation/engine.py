"""One run on a federation of real sites: submitted, followed, stopped."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fedfair.errors import RunError
from fedfair.record import MODEL
from simulations.federation.app_code import build_code
from simulations.federation.control import Centre, Run, UnknownRun
from simulations.federation.news import RoundNews
from simulations.federation.roster import ROSTER, read_roster
from simulations.programs import RunConfig, stop

RUN_ID, LOG, AUDIT = "flower-run.txt", "serverapp.log", "audit.jsonl"
POLL_SECONDS, PENDING_SECONDS, LOST_SECONDS = 15.0, 120.0, 60.0
FAILED = "ServerApp failed with exception: "
logger = logging.getLogger("fedfair.rounds")


def run_on_federation(run_config: RunConfig, federation: Path, root: Path, min_sites: int) -> None:
    """Run the code of `root` on the sites that are connected, and wait for the end.

    A run that this folder began before and that still goes on is followed instead of begun again.

    Parameters
    ----------
    run_config : RunConfig
        `config`, `overrides` and `output` as `server.app` reads them; absolute paths.
    federation : Path
        The folder whose programs ``fedfair federation start`` runs.
    root : Path
        A checkout.
    min_sites : int
        How many sites the run waits for.

    Raises
    ------
    RunError
        If nothing listens or the run does not complete, with the server's own sentence.
    """
    centre = Centre.open(federation)
    centre.require()
    folder = Path(str(run_config["output"]))
    run_id = _going_on(centre, folder)
    if run_id is None:
        own = {"roster": centre.state / ROSTER, "audit": centre.state / AUDIT, "weights": centre.weights}
        values = {**run_config, **{key: str(place) for key, place in own.items()}}
        with tempfile.TemporaryDirectory(prefix="fedfair-") as scratch:
            run_id = centre.submit(build_code(root, Path(scratch)), values)
        (folder / RUN_ID).write_text(run_id, encoding="utf-8")
    with _logged(centre, run_id, folder / LOG):
        try:
            ended = _Follower(centre, run_id, folder, min_sites).follow()
        except KeyboardInterrupt:
            centre.stop(run_id)
            raise
    _check(ended, folder)


def networks_of(federation: Path) -> Path:
    """Return the folder of the centre's stored networks.

    Raises
    ------
    RunError
        If the federation's folder is none.
    """
    return Centre.open(federation).weights


def _going_on(centre: Centre, folder: Path) -> str | None:
    """Return the run that was begun in this folder if it has not ended."""
    if not (folder / RUN_ID).is_file():
        return None
    run_id = (folder / RUN_ID).read_text(encoding="utf-8").strip()
    with contextlib.suppress(RunError):  # a SuperLink that was started again has forgotten it
        if not centre.run(run_id).finished:
            return run_id
    return None


class _Follower:
    """Tells of each round of a run, and before the first of the sites that are awaited."""

    def __init__(self, centre: Centre, run_id: str, folder: Path, min_sites: int) -> None:
        self._centre, self._run_id, self._min_sites = centre, run_id, min_sites
        self._roster = read_roster(centre.state)
        self._folder, self._news = folder, RoundNews(folder)
        self._awaits, self._told = True, ""
        self._began = self._answered = time.monotonic()

    def follow(self) -> Run:
        """Return how the run ended."""
        while not (run := self._look()).finished:
            if run.status == "pending" and time.monotonic() - self._began > PENDING_SECONDS:
                self._centre.stop(self._run_id)
                raise RunError(
                    f"the SuperLink must start the run within {PENDING_SECONDS:.0f} seconds, it did not; "
                    "stop `fedfair federation start` and start it again"
                )
            if self._awaits:
                with contextlib.suppress(RunError):
                    self._tell_awaited()
            self._wait()
        self._news.tell()
        return run

    def _wait(self) -> None:
        """Tell of rounds until it is time to look again; each look starts a program of Flower's."""
        end, pause = time.monotonic() + POLL_SECONDS, min(1.0, POLL_SECONDS)
        while time.monotonic() < end and not (self._folder / MODEL).is_file():
            self._news.tell()
            time.sleep(pause)
        time.sleep(pause)

    def _look(self) -> Run:
        """Return where the run stands; a SuperLink that is being started again is given time."""
        try:
            run = self._centre.run(self._run_id)
        except UnknownRun:
            raise RunError(
                "the SuperLink was started again and has forgotten the run; go on with it by adding --resume"
            ) from None
        except RunError:
            if time.monotonic() - self._answered > LOST_SECONDS:
                raise
            return Run("unknown")
        self._answered = time.monotonic()
        return run

    def _tell_awaited(self) -> None:
        online = [node for node, status in self._centre.nodes().items() if status == "online"]
        self._awaits = len(online) < self._min_sites
        if not self._awaits:
            return
        away = sorted(site for site, entry in self._roster.items() if entry.node not in online)
        text = f"waiting for sites: {len(online)} of {self._min_sites}; not connected: {', '.join(away)}"
        if text != self._told:
            self._told = text
            logger.warning(text)


@contextlib.contextmanager
def _logged(centre: Centre, run_id: str, log: Path) -> Iterator[None]:
    process = centre.log(run_id, log)
    try:
        yield
    finally:
        stop(process)


def _check(run: Run, folder: Path) -> None:
    if run.status == "finished:stopped":
        raise RunError("the run was stopped by another program; go on with it by adding --resume")
    if run.status != "finished:completed":
        raise RunError(f"{run.details.removeprefix(FAILED)} (the server's log: {folder / LOG})")
    if not (folder / MODEL).is_file():
        raise RunError(
            f"a complete run must leave {MODEL} in {folder}, it did not; "
            "submit on the machine of the SuperLink, as the user who started it"
        )
