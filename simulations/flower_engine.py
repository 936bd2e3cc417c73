"""Flower's own simulation engine (Ray) for one run: ``flwr run`` against a SuperLink started here.

Three traps are closed. Ray's workers import from the directory where the SuperLink was started,
so that is an empty one. ``flwr run`` exits 0 when a run fails, so the run's status is read. The
SuperLink that ``flwr run`` starts by itself never stops, so this one is a child and is stopped.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedfair.errors import MissingDependency, RunError
from simulations.programs import (
    RunConfig,
    answer,
    call,
    connection,
    environment,
    listens,
    run_config,
    search_path,
    stop,
    tail,
)

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60
CONNECTION = "here"
BUNDLE = ("fedfair", "server", "client", "configs", "pyproject.toml", "README.md")


def run_on_flower(values: RunConfig, num_sites: int, app: Path = ROOT) -> None:
    """Run the app in `app` on virtual nodes, one per site, and wait for the end.

    Parameters
    ----------
    values : RunConfig
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
    if shutil.which("flower-superlink", path=search_path()) is None or not _has_ray():
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
        variables = environment(home)
        with _superlink(empty, variables) as address:
            (home / "config.toml").write_text(connection(CONNECTION, address), encoding="utf-8")
            _run(copy, values, num_sites, empty, variables)


def _run(app: Path, values: RunConfig, num_sites: int, empty: Path, variables: Mapping[str, str]) -> None:
    command = ["flwr", "run", str(app), CONNECTION, "--stream", *run_config(values)]
    federation = f"num-supernodes={num_sites} client-resources-num-cpus=1"
    done = call([*command, "--federation-config", federation], empty, variables)
    runs = answer(call(["flwr", "list", CONNECTION, "--format", "json"], empty, variables))["runs"]
    status = runs[0]["status"] if runs else "no run"
    if status != "finished:completed":
        raise RunError(f"the run on Flower must be finished:completed, got {status}: {tail(done)}")


@contextlib.contextmanager
def _superlink(cwd: Path, variables: Mapping[str, str]) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = cwd.parent / "superlink.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["flower-superlink", "--simulation", "--insecure", "--host", "127.0.0.1", "--port", str(port)],
            cwd=cwd,
            env=dict(variables),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not listens(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RunError(f"the SuperLink must start, got: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        stop(process)


def _has_ray() -> bool:
    import importlib.util

    return importlib.util.find_spec("ray") is not None


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(source, target)
