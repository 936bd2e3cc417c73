"""Flower's programs as children of this one: their environment, their answers, their end."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfair.errors import RunError
from fedfair.federation.supervise import FLOWER_ENVIRONMENT

TAIL = 2000
EXIT = "Exit Code:"
RunConfig = Mapping[str, bool | float | int | str]


def search_path() -> str:
    """Return PATH with the programs installed beside this Python first."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's programs, with its settings in `home`."""
    return {**os.environ, **FLOWER_ENVIRONMENT, "FLWR_HOME": str(home), "PATH": search_path()}


def connection(name: str, address: str, authority: Path | None = None) -> str:
    """Return Flower's config.toml for one SuperLink; without an `authority` it speaks no TLS."""
    trust = "insecure = true" if authority is None else f"root-certificates = {json.dumps(str(authority))}"
    return f'[superlink]\ndefault = "{name}"\n[superlink.{name}]\naddress = "{address}"\n{trust}\n'


def run_config(values: RunConfig) -> list[str]:
    """Return the arguments that give `flwr run` its run config."""
    return ["--run-config", " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())]


def call(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it said."""
    return subprocess.run(
        command, cwd=cwd, env=dict(environment), capture_output=True, text=True, check=False
    )


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the JSON that ``flwr ... --format json`` ended with; other lines may stand before it.

    Raises
    ------
    RunError
        If there is none, or it says that the call failed; with Flower's own words.
    """
    try:
        told: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError as error:
        raise RunError(f"`{' '.join(done.args[:3])}` must answer, got: {reason(tail(done))}") from error
    if not told.get("success", True):
        raise RunError(reason(str(told.get("error-message", ""))))
    return told


def tail(done: subprocess.CompletedProcess[str]) -> str:
    """Return the end of what a program said."""
    return (done.stdout + done.stderr).strip()[-TAIL:]


def reason(output: str) -> str:
    """Return the one line of a program's output that says why it ended: Flower's own, else the last."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", output).splitlines() if line.strip()]
    marks = [k for k, line in enumerate(lines[:-1]) if EXIT in line]
    return lines[marks[-1] + 1] if marks else (lines or ["nothing"])[-1]


def listens(port: int) -> bool:
    """Return whether some program takes connections at a port of this machine."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stop(process: subprocess.Popen[Any]) -> None:
    """End a program, by force if it does not end by itself within 20 seconds."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
