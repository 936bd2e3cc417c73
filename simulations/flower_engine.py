"""Flower's own simulation engine (Ray) for one run: ``flwr run`` against a SuperLink started here.

Three traps are closed. Ray's workers import from the directory where the SuperLink was started,
so that is an empty one. ``flwr run`` exits 0 when a run fails, so the run's status is read. The
SuperLink that ``flwr run`` starts by itself never stops, so this one is a child and is stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedfair.errors import MissingDependency, RunError

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60
ENVIRONMENT = {
    # Without it the SuperLink would install torch's CUDA build for every run.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
BUNDLE = ("fedfair", "server", "client", "configs", "pyproject.toml", "README.md")


def run_on_flower(
    run_config: Mapping[str, bool | float | int | str], num_sites: int, app: Path = ROOT
) -> None:
    """Run the app in `app` on virtual nodes, one per site, and wait for the end.

    Parameters
    ----------
    run_config : Mapping[str, bool | float | int | str]
        `config`, `overrides` and `output` as `server.app` reads them.
    num_sites : int
        Virtual SuperNodes.
    app : Path
        The folder with pyproject.toml, server/ and client/.

    Raises
    ------
    MissingDependency
        If Flower's simulation extra is not installed.
    RunError
        If the run does not end as completed; with Flower's own words.
    """
    if shutil.which("flower-superlink", path=_path()) is None or not _has_ray():
        raise MissingDependency(
            "`--engine flower` must have Flower's simulation engine, got none; "
            "install it with: pip install 'fedfair[simulation]'"
        )
    with tempfile.TemporaryDirectory(prefix="fedfair-") as scratch:
        home, empty, copy = (Path(scratch) / name for name in ("home", "empty", "fedfair"))
        for folder in (home, empty, copy):
            folder.mkdir()
        # Flower wants a folder name of letters, digits and hyphens, which a checkout may not have.
        for name in BUNDLE:
            _copy(app / name, copy / name)
        environment = {**os.environ, **ENVIRONMENT, "FLWR_HOME": str(home), "PATH": _path()}
        with _superlink(empty, environment) as address:
            (home / "config.toml").write_text(
                f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{address}"\ninsecure = true\n',
                encoding="utf-8",
            )
            _run(copy, run_config, num_sites, empty, environment)


def _run(
    app: Path, run_config: Mapping[str, Any], num_sites: int, empty: Path, environment: Mapping[str, str]
) -> None:
    values = " ".join(f"{key}={json.dumps(value)}" for key, value in run_config.items())
    federation = f"num-supernodes={num_sites} client-resources-num-cpus=1"
    command = ["flwr", "run", str(app), "here", "--stream", "--run-config", values]
    done = _call([*command, "--federation-config", federation], empty, environment)
    listed = _call(["flwr", "list", "here", "--format", "json"], empty, environment)
    try:
        runs = json.loads(listed.stdout[listed.stdout.index("{") :])["runs"]
    except (ValueError, KeyError) as error:
        raise RunError(f"`flwr run` must submit a run, got: {_tail(done)}") from error
    status = runs[0]["status"] if runs else "no run"
    if status != "finished:completed":
        raise RunError(f"the run on Flower must be finished:completed, got {status}: {_tail(done)}")


@contextlib.contextmanager
def _superlink(cwd: Path, environment: Mapping[str, str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = cwd.parent / "superlink.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["flower-superlink", "--simulation", "--insecure", "--host", "127.0.0.1", "--port", str(port)],
            cwd=cwd,
            env=dict(environment),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RunError(f"the SuperLink must start, got: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a program, by force if it does not end by itself within 20 seconds."""
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _call(command: list[str], cwd: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=dict(environment), capture_output=True, text=True, check=False
    )


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr).strip()[-2000:]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _path() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _has_ray() -> bool:
    import importlib.util

    return importlib.util.find_spec("ray") is not None


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)
