"""What a killed program leaves behind is ended; what others have started is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.apps.runs import ROOT

SCRIPT = """
import os, signal, subprocess, sys, time
from simulations.federation.orphans import Orphans

other = subprocess.Popen(["sleep", "60"])
orphans = Orphans()
# A program that starts another one in a session of its own, and is killed.
program = subprocess.Popen(["sh", "-c", "setsid sleep 61 & echo $!; wait"], stdout=subprocess.PIPE)
own = subprocess.Popen(["sleep", "62"])
left = int(program.stdout.readline())
os.kill(program.pid, signal.SIGKILL)
program.wait()
time.sleep(0.5)
orphans.end([own.pid])
print(left, other.poll(), own.poll())
other.kill(), own.kill()
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux hands orphans on")
def test_orphans_are_ended_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT
    )
    left, *others = done.stdout.split()
    assert others == ["None", "None"]
    for _ in range(50):
        if not Path(f"/proc/{left}").exists():
            return
        time.sleep(0.1)
    os.kill(int(left), signal.SIGKILL)
    pytest.fail("the orphan is still there")
