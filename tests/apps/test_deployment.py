"""The same app between real processes: Flower's deployment engine on loopback, four SuperNodes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from simulations.flower_engine import BUNDLE, ENVIRONMENT, stop
from tests.apps.runs import ROOT, run, same_bits

SITES = ("Cleveland", "Hungary", "Switzerland", "VA Long Beach")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(port)


@contextlib.contextmanager
def program(command: list[str], cwd: Path, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=cwd, env=dict(environment), stdout=file, stderr=file)
    try:
        yield
    finally:
        stop(process)


@pytest.mark.slow
def test_four_supernodes_give_the_bits_of_the_simulation(tmp_path: Path) -> None:
    home, empty, app = (tmp_path / name for name in ("home", "empty", "app"))
    for folder in (home, empty, app):
        folder.mkdir()
    for name in BUNDLE:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, app / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        **os.environ,
        **ENVIRONMENT,
        "FLWR_HOME": str(home),
        "PATH": path,
        "OMP_NUM_THREADS": "1",
    }
    link = f"127.0.0.1:{(port := free_port())}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link}"\ninsecure = true\n'
    )
    overrides = ["rounds=1", "server.min_sites=4", "report.resamples=20"]
    values = {
        "config": "configs/heart.yaml",
        "overrides": ";".join(overrides),
        "output": str(tmp_path / "run"),
    }
    with contextlib.ExitStack() as stack:

        def start(name: str, *command: str) -> None:
            stack.enter_context(program(list(command), empty, environment, tmp_path / f"{name}.log"))

        start("link", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port))
        wait_for(port)
        for k, site in enumerate(SITES):
            node = f'site="{site}" partition-id={k} num-partitions={len(SITES)}'
            own = ["--node-config", node, "--port", str(free_port())]
            start(f"node-{k}", "flower-supernode", "--insecure", "--superlink", link, *own)
        run_config = " ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
        done = subprocess.run(
            ["flwr", "run", str(app), "here", "--stream", "--run-config", run_config],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
        )
    logs = "\n".join(p.read_text()[-1500:] for p in tmp_path.glob("*.log"))
    assert (tmp_path / "run" / "model.pt").is_file(), done.stdout[-2000:] + done.stderr[-1000:] + logs
    assert same_bits(run(tmp_path / "here", overrides), tmp_path / "run")
