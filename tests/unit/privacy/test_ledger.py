"""The ledger: nothing is forgotten, nothing is released for nothing, nothing is spent beyond the cap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedfair.errors import ConfigError, PrivacyBudgetExhausted, PrivacyError
from fedfair.privacy.accounting import Event, epsilon, merge
from fedfair.privacy.ledger import Ledger

DELTA = 1e-5
ROUND = [Event(4.0, 64 / 700, 33), Event(20.0, 1.0, 1)]


def ledger(path: Path, cap: float | None = None, dataset: str = "heart", site: str = "Basel") -> Ledger:
    return Ledger(path / "account" / "ledger.json", dataset, site, DELTA, cap)


def file_of(path: Path) -> Path:
    return path / "account" / "ledger.json"


def folder_of(path: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of change of all that lies in the ledger's folder."""
    files = file_of(path).parent.iterdir()
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def child(program: str, path: Path) -> subprocess.Popen[str]:
    """Start a program that knows `account`, the ledger in `path`, and `event`."""
    start = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from fedfair.privacy.accounting import Event\n"
        "from fedfair.privacy.ledger import Ledger\n"
        f"account = Ledger(Path({str(file_of(path))!r}), 'heart', 'Basel', 1e-5, None)\n"
        "event = Event(4.0, 0.25, 1)\n"
    )
    return subprocess.Popen([sys.executable, "-c", start + program], stdout=subprocess.PIPE, text=True)


def test_nothing_is_written_before_the_first_charge(tmp_path: Path) -> None:
    assert ledger(tmp_path, cap=1.0).events() == ()
    assert not file_of(tmp_path).exists()


def test_a_new_ledger_on_the_file_has_the_same_account(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    for _ in range(3):
        first.charge("run 1", ROUND)
    again = ledger(tmp_path)
    assert again.events() == first.events() == merge(ROUND * 3)
    # Multipliers survive the text exactly, so that equal mechanisms stay equal.
    odd = [Event(0.1 + 0.2, 1 / 3, 7), Event(1e-300, 5e-324, 1)]
    again.charge("run 1", odd)
    assert ledger(tmp_path).events() == merge([*ROUND * 3, *odd])


def test_a_new_run_adds_to_the_same_account(tmp_path: Path) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    ledger(tmp_path).charge("run 2", [*ROUND, Event(2.0, 1.0, 1)])
    ledger(tmp_path).charge("run 1", ROUND)
    assert ledger(tmp_path).events() == merge([*ROUND * 3, Event(2.0, 1.0, 1)])
    runs = json.loads(file_of(tmp_path).read_text())["runs"]
    assert {run: len(entry["events"]) for run, entry in runs.items()} == {"run 1": 2, "run 2": 3}
    assert runs["run 1"]["events"] == [[4.0, 64 / 700, 66], [20.0, 1.0, 2]]
    assert runs["run 1"]["first"] <= runs["run 1"]["last"]


def test_the_file_holds_the_history_and_nothing_else(tmp_path: Path) -> None:
    ledger(tmp_path, cap=8.0).charge("run 1", ROUND)
    document = json.loads(file_of(tmp_path).read_text())
    assert document.keys() == {"format", "dataset", "site", "runs", "digest"}
    assert document["runs"]["run 1"].keys() == {"first", "last", "events"}


def test_another_delta_reads_the_same_history(tmp_path: Path) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    other = Ledger(file_of(tmp_path), "heart", "Basel", 1e-6, None)
    assert other.events() == merge(ROUND)
    assert other.statement("each patient").epsilon == epsilon(ROUND, 1e-6)


def test_the_statement_covers_all_runs(tmp_path: Path) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    ledger(tmp_path).charge("run 2", ROUND)
    statement = ledger(tmp_path).statement("each patient of Basel")
    assert (statement.epsilon, statement.delta) == (epsilon(ROUND * 2, DELTA), DELTA)
    assert statement.unit == "each patient of Basel"


# The design's job: 50 rounds cost 4.458 by PRV and 4.812 by RDP, and the 51st comes to 4.50.
def test_the_cap_is_kept_and_a_refusal_writes_nothing(tmp_path: Path) -> None:
    ledger(tmp_path).charge("run 1", ROUND * 49)
    capped = ledger(tmp_path, cap=4.47)
    assert epsilon(ROUND * 50, DELTA) < 4.47 < epsilon(ROUND * 50, DELTA, "rdp")
    capped.charge("run 2", ROUND)  # RDP alone would refuse it
    before = folder_of(tmp_path)
    with pytest.raises(PrivacyBudgetExhausted, match=r"site Basel .* 4\.458 is spent and 4\.47 is the cap"):
        capped.charge("run 2", ROUND)
    assert folder_of(tmp_path) == before
    assert capped.statement("each patient").epsilon <= 4.47
    # Another run, and another process's ledger, face the same cap.
    with pytest.raises(PrivacyBudgetExhausted):
        ledger(tmp_path, cap=4.47).charge("run 3", ROUND)


def test_a_cap_below_the_first_release_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(PrivacyBudgetExhausted, match="where 0 is spent"):
        ledger(tmp_path, cap=0.05).charge("run 1", ROUND)
    assert not file_of(tmp_path).exists()


def test_a_release_without_noise_is_refused_under_any_cap(tmp_path: Path) -> None:
    exact = [Event(0.0, 1.0, 1)]
    with pytest.raises(PrivacyBudgetExhausted, match="got epsilon inf"):
        ledger(tmp_path, cap=1e9).charge("run 1", exact)
    ledger(tmp_path).charge("run 1", exact)
    assert ledger(tmp_path).statement("each patient").epsilon == float("inf")


def test_a_reserve_counts_against_the_cap_and_is_not_charged(tmp_path: Path) -> None:
    final = [Event(2.0, 1.0, 1)]
    cost, whole = epsilon(ROUND, DELTA), epsilon([*ROUND, *final], DELTA)
    capped = ledger(tmp_path, cap=(cost + whole) / 2)
    with pytest.raises(PrivacyBudgetExhausted):
        capped.charge("run 1", ROUND, reserve=final)
    assert capped.events() == ()
    capped = ledger(tmp_path, cap=whole + 0.01)
    capped.charge("run 1", ROUND, reserve=final)
    assert capped.events() == merge(ROUND)
    capped.charge("run 1", final)  # what was reserved is there to be spent
    assert capped.events() == merge([*ROUND, *final])


def test_a_process_killed_before_its_release_has_paid(tmp_path: Path) -> None:
    process = child(
        "account.charge('run 1', [event])\nprint('charged', flush=True)\ntime.sleep(60)", tmp_path
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "charged\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert ledger(tmp_path).events() == (Event(4.0, 0.25, 1),)
    ledger(tmp_path).charge("run 2", [Event(4.0, 0.25, 1)])  # its lock died with it
    assert ledger(tmp_path).events() == (Event(4.0, 0.25, 2),)


# What a charge does in order; a process that is killed in any of them leaves a whole account, old or new.
@pytest.mark.parametrize(("stage", "paid"), [("os.fsync", 0), ("os.replace", 0), ("os.close", 1)])
def test_a_process_killed_while_charging_leaves_a_whole_account(
    tmp_path: Path, stage: str, paid: int
) -> None:
    ledger(tmp_path).charge("run 1", [Event(4.0, 0.25, 1)])
    process = child(
        f"{stage} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "account.charge('run 1', [event])\n"
        "print('released', flush=True)",
        tmp_path,
    )
    output, _ = process.communicate(timeout=30)
    assert (output, process.returncode) == ("", -signal.SIGKILL)
    assert ledger(tmp_path).events() == (Event(4.0, 0.25, 1 + paid),)


def test_a_charge_is_durable_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(descriptor: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_replace(source: Path, target: Path) -> Path:
        done.append("replace")
        assert source.read_text().endswith("}")  # flushed, not only handed to fsync empty
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    ledger(tmp_path).charge("run 1", ROUND)
    assert done == ["sync ledger.json.new", "replace", "sync account"]


def charge_at_once(path: Path, before: str = "") -> list[int]:
    """Charge 100 times in each of two processes that start together, and return their exit codes."""
    program = (
        f"{before}\n"
        f"go = Path({str(path / 'go')!r})\n"
        "print('ready', flush=True)\n"
        "while not go.exists():\n"
        "    time.sleep(0.001)\n"
        "for _ in range(100):\n"
        "    account.charge('run of ' + str(os.getpid()), [event])"
    )
    with child(program, path) as first, child(program, path) as second:
        for process in (first, second):
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        (path / "go").touch()
    return [first.returncode, second.returncode]


def test_two_processes_charging_at_once_lose_nothing(tmp_path: Path) -> None:
    assert charge_at_once(tmp_path) == [0, 0]
    assert ledger(tmp_path).events() == (Event(4.0, 0.25, 200),)
    runs = json.loads(file_of(tmp_path).read_text())["runs"]
    assert [entry["events"] for entry in runs.values()] == [[[4.0, 0.25, 100]]] * 2


def test_two_processes_without_the_lock_would_be_seen(tmp_path: Path) -> None:
    codes = charge_at_once(tmp_path, "import fcntl; fcntl.flock = lambda *_: None; sys.stderr.close()")
    kept = sum(event.steps for event in ledger(tmp_path).events())
    # They overwrite each other's charges, or trip over each other's new file.
    assert kept < 200 or codes != [0, 0]


def test_a_link_to_the_file_is_the_same_account(tmp_path: Path) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    link = tmp_path / "link.json"
    link.symlink_to(file_of(tmp_path))
    Ledger(link, "heart", "Basel", DELTA, None).charge("run 1", ROUND)
    assert link.is_symlink()
    assert ledger(tmp_path).events() == merge(ROUND * 2)


def refused_untouched(path: Path, account: Ledger, match: str) -> None:
    before = path.read_bytes()
    for use in (
        account.events,
        lambda: account.charge("run 2", ROUND),
        lambda: account.statement("each patient"),
    ):
        with pytest.raises(PrivacyError, match=match):
            use()
    assert path.read_bytes() == before


DAMAGE = {
    "empty": lambda _: "",
    "truncated": lambda text: text[: len(text) // 2],
    "no object": lambda _: "[]",
    "other json": lambda _: '{"epsilon": 3}',
    "binary": lambda _: "\x00\x01\x02",
    "fewer steps": lambda text: text.replace("33", "3"),
    "a run left out": lambda text: json.dumps({**json.loads(text), "runs": {}}),
    "negative steps": lambda text: text.replace("33", "-33"),
    "runs of another shape": lambda text: json.dumps({**json.loads(text), "runs": [1]}),
    "an event of another shape": lambda text: text.replace("33", '"33"'),
    "another date": lambda text: text.replace("T", "t"),
    "no digest": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "digest"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused_and_kept(tmp_path: Path, damage: str) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    path = file_of(tmp_path)
    path.write_text(DAMAGE[damage](path.read_text()))
    refused_untouched(
        path, ledger(tmp_path), r"must be .*(damaged or foreign|another digest).*forget what was"
    )


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    file_of(tmp_path).write_bytes(b"\xff\xfe" + file_of(tmp_path).read_bytes())
    refused_untouched(file_of(tmp_path), ledger(tmp_path), "damaged or foreign")


@pytest.mark.parametrize("other", [{"dataset": "lung"}, {"site": "Zurich"}])
def test_the_account_of_another_is_refused_and_kept(tmp_path: Path, other: dict[str, str]) -> None:
    ledger(tmp_path).charge("run 1", ROUND)
    refused_untouched(
        file_of(tmp_path), ledger(tmp_path, **other), "must belong to .*" + next(iter(other.values()))
    )


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as later:
        later.setattr("fedfair.privacy.ledger.FORMAT", 2)
        ledger(tmp_path).charge("run 1", ROUND)
    refused_untouched(file_of(tmp_path), ledger(tmp_path), "'format': 1.* got .*'format': 2")


def test_a_file_that_cannot_be_read_or_written_is_refused(tmp_path: Path) -> None:
    file_of(tmp_path).mkdir(parents=True)  # permissions do not bind root, a folder in the place does
    with pytest.raises(PrivacyError, match="must be readable, got Is a directory"):
        ledger(tmp_path).events()
    (tmp_path / "file").touch()
    with pytest.raises(PrivacyError, match="must be in a folder that can be written"):
        Ledger(tmp_path / "file" / "ledger.json", "heart", "Basel", DELTA, None).charge("run 1", ROUND)


def test_a_full_disk_refuses_the_release_and_keeps_the_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger(tmp_path).charge("run 1", ROUND)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(PrivacyError, match="No space left on device; nothing may be released"):
            ledger(tmp_path).charge("run 1", ROUND)
    assert ledger(tmp_path).events() == merge(ROUND)


@pytest.mark.parametrize(
    ("delta", "cap", "name"), [(0.0, 1.0, "delta"), (1.0, 1.0, "delta"), (1e-5, 0.0, "cap")]
)
def test_settings_out_of_range_are_refused(tmp_path: Path, delta: float, cap: float, name: str) -> None:
    with pytest.raises(ConfigError, match=f"`{name}` must be"):
        Ledger(tmp_path / "ledger.json", "heart", "Basel", delta, cap)


def test_a_ledger_that_was_deleted_is_missed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    Ledger(path, "registry", "north", 1e-5, None).charge("run", [Event(4.0, 0.1, 10)])
    path.unlink()
    with pytest.raises(PrivacyError, match="must lie beside its lock, got none"):
        Ledger(path, "registry", "north", 1e-5, None).charge("run", [Event(4.0, 0.1, 10)])
