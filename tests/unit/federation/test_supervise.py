"""Keeping a program alive: real small children, waits on a clock that the test owns."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedfair
from fedfair.federation.signs import REFUSALS, UNSIGNED, Life
from fedfair.federation.supervise import Supervisor, Timing

ROOT = Path(fedfair.__file__).parents[1]
CONNECTED = "print('INFO :      SuperNode ID: 7', flush=True)"
UNKNOWN_KEY = "print('[code: 2004] Failed to activate SuperNode.'); raise SystemExit(1)"
WRONG_CA = "print('[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate in chain'); raise SystemExit(1)"
EXPIRED = "print('[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired'); raise SystemExit(1)"
KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


class World:
    """Children in order, and a clock that only waiting moves."""

    def __init__(self, folder: Path, scripts: Iterator[str], **timing: float) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.starts: list[float] = []
        self.folder = folder
        self._scripts = scripts
        self.supervisor = Supervisor(
            self.command,
            {"PATH": os.environ["PATH"]},
            folder,
            self.said.append,
            Timing(**timing),
            lambda: self.now,
            self.sleep,
        )

    def command(self) -> list[str]:
        self.starts.append(self.now)
        script = next(self._scripts, None)
        if script is None:
            self.stop()
        return [sys.executable, "-c", script or "import time; time.sleep(60)"]

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def stop(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def run(self) -> int:
        return self.supervisor.run()

    def waits(self) -> list[float]:
        """Return the seconds between one end and the next start."""
        return [round(b - a, 6) for a, b in zip(self.starts, self.starts[1:], strict=False)]


Make = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> Make:
    return lambda *scripts, **timing: World(tmp_path, iter(scripts), **timing)


def test_what_ends_is_started_again_ever_later(world: Make) -> None:
    made = world(*["raise SystemExit(3)"] * 5, longest=30.0)
    assert made.run() == 0
    assert made.waits() == pytest.approx([5, 10, 20, 30, 30])
    assert "ended with status 3; starting again in 5 s (its output is in supernode.log)" in made.said


def test_what_was_killed_waits_until_the_centre_has_forgotten_it(world: Make) -> None:
    made = world(KILLED, "raise SystemExit(1)", KILLED)
    assert made.run() == 0
    assert made.waits() == pytest.approx([75, 5, 75])
    assert any(said.startswith("killed by SIGKILL; starting again in 75 s") for said in made.said)


def lasting(made: World, monkeypatch: pytest.MonkeyPatch, seconds: list[float]) -> None:
    """Let the lives of the children last so long, by the clock of the test."""
    real, left = Supervisor._live, iter(seconds)

    def live(self: Supervisor, *args: Any) -> int:
        made.now += next(left, 0)
        return real(self, *args)

    monkeypatch.setattr(Supervisor, "_live", live)


def test_after_a_good_while_the_waits_begin_anew(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(*[f"{CONNECTED}; raise SystemExit(1)"] * 4)
    lasting(made, monkeypatch, [1, 1, 61, 1])
    assert made.run() == 0
    paused = [said.partition(" in ")[2].split()[0] for said in made.said if "starting again" in said]
    assert paused == ["5", "10", "5", "10"]


def test_a_refused_key_is_tried_for_three_minutes(world: Make) -> None:
    made = world(*[UNKNOWN_KEY] * 20)
    assert made.run() == 1
    assert 180 <= made.now < 180 + 160  # 5 + 10 + 20 + ... passes 180 with its sixth wait
    assert made.said[-1].startswith("stopped for good: the centre does not take this site's key")


def test_a_key_that_is_taken_after_all_starts_the_patience_anew(world: Make) -> None:
    made = world(*[UNKNOWN_KEY] * 4, f"{CONNECTED}; raise SystemExit(1)", *[UNKNOWN_KEY] * 2)
    assert made.run() == 0
    assert len(made.starts) == 8


def test_a_wrong_authority_ends_it_at_once(world: Make) -> None:
    made = world(*[WRONG_CA] * 3)
    assert (made.run(), made.starts) == (1, [0.0])
    assert "not signed by the authority in ca.crt" in made.said[-1]


def test_a_wrong_authority_after_a_connection_has_patience(world: Make) -> None:
    made = world(f"{CONNECTED}; raise SystemExit(1)", *[WRONG_CA] * 20)
    assert made.run() == 1
    assert made.now >= 180


def test_an_expired_certificate_may_be_renewed(world: Make) -> None:
    made = world(*[EXPIRED] * 2)
    assert made.run() == 0
    assert len(made.starts) == 3


def test_a_good_end_that_nobody_asked_for_is_a_refused_signature(world: Make) -> None:
    made = world(*["raise SystemExit(0)"] * 20)
    assert made.run() == 1
    assert made.said[-1] == f"stopped for good: {UNSIGNED.advice}"


def test_a_long_life_that_ends_well_is_no_refusal(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(f"{CONNECTED}; raise SystemExit(0)", "raise SystemExit(1)")
    lasting(made, monkeypatch, [36000])
    assert made.run() == 0


def test_what_a_server_writes_is_no_refusal(world: Make) -> None:
    made = world(f"{CONNECTED}; {WRONG_CA}", "raise SystemExit(1)")
    assert made.run() == 0
    assert len(made.starts) == 3


def test_what_a_child_started_does_not_outlive_it(world: Make, tmp_path: Path) -> None:
    leaves = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)']); "
        f"open({str(tmp_path / 'left')!r}, 'w').write(str(p.pid)); raise SystemExit(1)"
    )
    assert world(leaves).run() == 0
    left = int((tmp_path / "left").read_text())
    state = Path(f"/proc/{left}/stat")
    # Gone, or ended and not yet collected by the process that inherited it.
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_log_has_every_line_and_no_strange_character(world: Make, tmp_path: Path) -> None:
    world(r"print('\x1b[91mred\x1b[0m \x07bell \x1b]0;title\x07'); print('x' * 20000); print('last')").run()
    log = tmp_path / "supernode.log"
    text = log.read_text()
    assert "red ?bell ?]0;title?" in text
    assert "\x1b" not in text and "\x07" not in text
    assert text.count("x") >= 20000 and "last" in text
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_the_log_is_cut_in_pieces(world: Make, tmp_path: Path) -> None:
    world("for k in range(9000): print('y' * 2000)").run()
    sizes = [path.stat().st_size for path in tmp_path.glob("supernode.log*")]
    assert len(sizes) == 4  # 18 MB in pieces of 5 MiB
    assert max(sizes) <= 5 * 2**20


# What is said of what was heard.


def heard(*lines: str) -> list[str]:
    said: list[str] = []
    life = Life(said.append, 0.0)
    for line in lines:
        life.hear(line)
    return said


def test_news_is_told_once() -> None:
    lost, back = (
        "WARNING: Connection attempt failed, retrying in 2 seconds",
        "INFO: Connection successful after",
    )
    assert heard(lost, lost, lost, back, lost) == [
        "the centre cannot be reached; trying again",
        "the centre is reached again",
        "the centre cannot be reached; trying again",
    ]


def test_rounds_and_refused_code_are_told() -> None:
    lines = [
        "INFO : [RUN 12, ROUND 3]",
        "INFO : Receiving: train",
        "x.PrivacyError: site A has not approved the code f00",
    ]
    assert heard(*lines) == ["[RUN 12, ROUND 3]", "site A has not approved the code f00"]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.sign)
def test_each_refusal_says_what_to_do(refusal: object) -> None:
    advice = refusal.advice  # type: ignore[attr-defined]
    assert any(word in advice for word in ("ask", "check", "install", "unpack", "says why"))
    assert "\n" not in advice


# Signals, to a supervisor in a process of its own.

SUPERVISOR = """
import sys
from pathlib import Path
from fedfair.federation.supervise import Supervisor, Timing
child = {child!r}
command = lambda: [sys.executable, "-c", child]
say = lambda text: print(text, flush=True)
sys.exit(Supervisor(command, {{}}, Path({folder!r}), say, Timing(grace={grace})).run())
"""
HEEDS = (
    "import signal, sys, time\n"
    "signal.signal(signal.{name}, lambda *_: (print('fedfair: told {name}', flush=True), sys.exit(0)))\n"
    "print('SuperNode ID: 1', flush=True)\n"
    "time.sleep(60)\n"
)
DEAF = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('SuperNode ID: 1', flush=True)\n"
    "time.sleep(60)\n"
)


def told_to_stop(folder: Path, child: str, number: int, grace: float = 20.0) -> tuple[int, str, float]:
    """Send a signal once the child is up; return the supervisor's status, what it said, and its seconds."""
    script = SUPERVISOR.format(child=child, folder=str(folder), grace=grace)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        while "connected" not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], said
        process.send_signal(number)
        began = time.monotonic()
        rest = process.stdout.read()
        return process.wait(30), "".join(said) + rest, time.monotonic() - began


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_word_to_stop_reaches_the_child(tmp_path: Path, name: str) -> None:
    status, said, _ = told_to_stop(tmp_path, HEEDS.format(name=name), getattr(signal, name))
    assert status == 0
    assert f"fedfair: told {name}" in said
    assert said.endswith("stopped\n")


def test_a_deaf_child_is_ended_by_force(tmp_path: Path) -> None:
    status, said, seconds = told_to_stop(tmp_path, DEAF, signal.SIGTERM, grace=0.5)
    assert status == 0
    assert "starting again" not in said
    assert 0.5 <= seconds < 20


def test_the_word_to_stop_ends_a_wait(tmp_path: Path) -> None:
    made = World(tmp_path, iter(["raise SystemExit(1)"] * 9))

    def slept(seconds: float) -> None:
        made.now += seconds
        if made.now > 7:  # within the second wait, from 5 to 15
            made.stop()

    made.supervisor._sleep = slept
    assert made.run() == 0
    assert len(made.starts) == 2
    assert made.now < 8


def test_who_listened_before_listens_again(world: Make) -> None:
    before = signal.getsignal(signal.SIGTERM)
    world().run()
    assert signal.getsignal(signal.SIGTERM) is before
