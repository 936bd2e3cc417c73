"""The centre's folder, and its SuperLink spoken to through Flower's command line."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedfair.errors import RunError
from fedfair.federation.consortium import Consortium, load_consortium
from simulations.programs import RunConfig, answer, call, connection, environment, listens, run_config

CONNECTION = "centre"
CONSORTIUM = "consortium.yaml"
FINISHED = "finished:"
_UNKNOWN = "Run ID not found"  # in Flower's words
# Of glibc's allocator: what a large array took goes back to the system when it is freed. Else the
# SuperLink and the ServerApp keep a third more than they use.
_GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


class UnknownRun(RunError):
    """The SuperLink has no such run: it was started again since."""


@dataclass(frozen=True)
class Run:
    """Where a run stands: pending, starting, running, or finished:completed, :failed or :stopped."""

    status: str
    details: str = ""

    @property
    def finished(self) -> bool:
        """Whether it has ended, one way or another."""
        return self.status.startswith(FINISHED)


@dataclass(frozen=True)
class Centre:
    """What ``fedfair federation init`` made for the centre.

    Attributes
    ----------
    folder : Path
        The federation's, absolute.
    consortium : Consortium
        Its names and ports.
    """

    folder: Path
    consortium: Consortium

    @classmethod
    def open(cls, folder: Path) -> Centre:
        """Read the folder.

        Raises
        ------
        FedfairError
            If it is not one that ``fedfair federation init`` made.
        """
        if not (folder / CONSORTIUM).is_file() or not (folder / "centre").is_dir():
            raise RunError(
                f"`FOLDER` must be one that `fedfair federation init` made, "
                f"got {folder} without {CONSORTIUM} or centre/"
            )
        return cls(folder.resolve(), load_consortium(folder / CONSORTIUM))

    @property
    def root(self) -> Path:
        """The centre's own part."""
        return self.folder / "centre"

    @property
    def weights(self) -> Path:
        """Stored networks that runs name; made by whoever needs it."""
        return self.root / "weights"

    @property
    def state(self) -> Path:
        """Logs, Flower's settings, which key is which node."""
        return self.root / "state"

    @property
    def empty(self) -> Path:
        """Where Flower's programs start: from a checkout they might import it instead of the run's code."""
        return self.state / "empty"

    @property
    def port(self) -> int:
        """Of the SuperLink, for this machine alone."""
        return self.consortium.centre.inner_port

    @cached_property
    def environment(self) -> Mapping[str, str]:
        """Of Flower's programs."""
        return {**environment(self.state / "flwr"), **_GIVE_BACK}

    def prepare(self) -> None:
        """Make the folders of `state`, closed to other users, and Flower's settings."""
        for folder in (self.state, self.state / "flwr", self.empty):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
        text = connection(CONNECTION, f"127.0.0.1:{self.port}", self.root / "ca.crt")
        (self.state / "flwr" / "config.toml").write_text(text, encoding="utf-8")

    def require(self) -> None:
        """Refuse to go on without a SuperLink.

        Raises
        ------
        RunError
            If none listens.
        """
        if not listens(self.port):
            raise RunError(
                f"nothing listens on 127.0.0.1:{self.port}; "
                f"start it with: fedfair federation start {self.folder}"
            )

    def register(self, key: Path) -> str | None:
        """Let the site with this public key connect; return its node id, None if it was let before.

        Raises
        ------
        RunError
            If Flower refuses the key.
        """
        try:
            return str(self._ask("supernode", "register", str(key))["node-id"])
        except RunError as error:
            if "already in use" in str(error):
                return None
            raise

    def unregister(self, node: str) -> None:
        """Turn a site away from now on."""
        self._ask("supernode", "unregister", node)

    def nodes(self) -> dict[str, str]:
        """Return each registered node's id with its status: registered, online or offline."""
        told = self._ask("supernode", "list")["nodes"]
        return {node["node-id"]: node["status"] for node in told if node["status"] != "unregistered"}

    def submit(self, app: Path, values: RunConfig) -> str:
        """Start a run of `app` and return its id."""
        return str(self._ask("run", str(app), after=run_config(values))["run-id"])

    def run(self, run_id: str) -> Run:
        """Return where a run stands.

        Raises
        ------
        UnknownRun
            If the SuperLink does not know it.
        RunError
            If the SuperLink does not answer.
        """
        try:
            (told,) = self._ask("list", after=["--run-id", run_id])["runs"]
        except RunError as error:
            raise UnknownRun(str(error)) if _UNKNOWN in str(error) else error from None
        return Run(told["status"], told["status-details"])

    def stop(self, run_id: str) -> None:
        """End a run."""
        self._ask("stop", run_id)

    def log(self, run_id: str, into: Path) -> subprocess.Popen[bytes]:
        """Return a program that adds the ServerApp's log to a file until the run ends."""
        with into.open("ab") as file:
            return subprocess.Popen(
                ["flwr", "log", run_id, CONNECTION, "--stream"],
                cwd=self.empty,
                env=dict(self.environment),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _ask(self, *words: str, after: list[str] | None = None) -> dict[str, Any]:
        self.require()
        command = ["flwr", *words, CONNECTION, "--format", "json", *(after or [])]
        return answer(call(command, self.empty, self.environment))
