"""The gate: real bundles, and a server that lies."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
from flwr.supercore.fab import Fab

import fedfair
from fedfair.audit import verify
from fedfair.errors import ConfigError, PrivacyError, RunError
from fedfair.federation import gate as gate_module
from fedfair.federation.approval import approve, revoke
from fedfair.federation.folder import SiteFolder
from fedfair.federation.gate import LONGEST_SECONDS, Gate, end_after, flower_runtime
from tests.unit.federation.codes import fab, sha
from tests.unit.federation.sites import NAME, unpacked

ROOT = Path(fedfair.__file__).parents[1]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return fab(tmp_path_factory.mktemp("good"), "good")


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return fab(tmp_path_factory.mktemp("evil"), "evil")


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return unpacked(tmp_path)


def events(site: Path) -> list[tuple[str, str]]:
    """Return what the audit log tells of code that was to run."""
    found = verify(site / "audit.jsonl").entries
    return [(e["event"], e["code"]) for e in found if e["event"] in ("code-run", "code-refused")]


# The three functions, each called as Flower's program calls it.


def delivered(site: Path, content: bytes, named: str | None = None, seconds: float = 600.0) -> Gate:
    """Return the gate after a message that named this code has come in."""
    real = flower_runtime()
    about = SimpleNamespace(created_at=time.time(), ttl=seconds, message_type="query", group_id="3")
    task = (
        SimpleNamespace(metadata=about),
        None,
        SimpleNamespace(run_id=7),
        Fab(named or sha(content), content, {}),
    )
    runtime: Any = SimpleNamespace(**{**vars(real), "pull_task_input": Mock(return_value=task)})
    gate = Gate(SiteFolder.read(site), runtime)
    assert gate.pull_task_input(None) is not None
    return gate


@pytest.fixture(autouse=True)
def unwatched(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Keep the end of a message's time from ending the tests, and put back what the gate changes."""
    end_after = Mock()
    monkeypatch.setattr(gate_module, "end_after", end_after)
    monkeypatch.setenv("FLWR_HOME", "/nonexistent")
    return end_after


def test_unapproved_code_is_refused_by_name_and_leaves_nothing(site: Path, good: bytes) -> None:
    gate = delivered(site, good)
    sentence = f"site {NAME} has not approved the code {sha(good)}; .* fedfair site approve {sha(good)}$"
    with pytest.raises(PrivacyError, match=sentence):
        gate.install_from_fab(good, skip_prompt=True)
    assert not (site / "flwr").exists()
    assert events(site) == [("code-refused", sha(good))]


def test_approved_code_is_installed_under_its_whole_hash(site: Path, good: bytes) -> None:
    approve(site, sha(good), "ada")
    place = delivered(site, good).install_from_fab(good, skip_prompt=True)
    assert place == site / "flwr" / "code" / sha(good)
    assert os.environ["FLWR_HOME"] == str(place)
    (app,) = (place / "apps").iterdir()
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        assert (app / "client" / "app.py").read_bytes() == archive.read("client/app.py")
    assert events(site) == [("code-run", sha(good))]
    entry = verify(site / "audit.jsonl").entries[-1]
    assert (entry["run"], entry["round"], entry["message"]) == ("7", "3", "query")


def test_one_other_byte_is_other_code(site: Path, good: bytes) -> None:
    approve(site, sha(good), "ada")
    altered = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(PrivacyError, match="has not approved the code " + sha(altered)):
        delivered(site, altered).install_from_fab(altered, skip_prompt=True)


def test_code_under_the_name_of_approved_code_is_refused(site: Path, good: bytes, evil: bytes) -> None:
    approve(site, sha(good), "ada")
    with pytest.raises(PrivacyError, match="must be the one named"):
        delivered(site, evil, named=sha(good)).install_from_fab(evil, skip_prompt=True)
    # Both approved: still not the one that would be loaded.
    approve(site, sha(evil), "ada")
    with pytest.raises(PrivacyError, match="must be the one named"):
        delivered(site, evil, named=sha(good)).install_from_fab(evil, skip_prompt=True)


def test_revoked_code_is_refused_though_it_is_installed(site: Path, good: bytes) -> None:
    approve(site, sha(good), "ada")
    delivered(site, good).install_from_fab(good, skip_prompt=True)
    revoke(site, sha(good), "ada")
    with pytest.raises(PrivacyError, match="has not approved"):
        delivered(site, good).install_from_fab(good, skip_prompt=True)


def test_an_install_that_was_cut_off_is_done_again(site: Path, good: bytes) -> None:
    approve(site, sha(good), "ada")
    (site / "flwr" / "code" / f"{sha(good)}.new" / "apps" / "half").mkdir(parents=True)
    place = delivered(site, good).install_from_fab(good, skip_prompt=True)
    assert [app.name.split(".")[:2] for app in (place / "apps").iterdir()] == [["centre", "tiny"]]


@pytest.mark.parametrize(
    "fab_id, version",
    [
        ("centre/tiny", "1.0.0.00000000/../../../elsewhere"),
        ("../..", "/../../../elsewhere"),
        ("x/..", "/../../../elsewhere"),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(site: Path, good: bytes, fab_id: str, version: str) -> None:
    approve(site, sha(good), "ada")
    gate = delivered(site, good)
    gate.install_from_fab(good, skip_prompt=True)
    load = gate.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    before = dict(sys.modules)
    with pytest.raises(PrivacyError, match="must run the code that it checked"):
        load(fab_id, version, sha(good))
    assert sys.modules == before


def test_nothing_is_loaded_that_was_not_let_through(site: Path, good: bytes) -> None:
    approve(site, sha(good), "ada")
    load = delivered(site, good).get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    with pytest.raises(PrivacyError, match="must run the code that it checked"):
        load("centre/tiny", "1.0.0", sha(good))


def test_a_damaged_list_of_approvals_runs_nothing(site: Path, good: bytes) -> None:
    approve(site, sha(good), "ada")
    with (site / "approved.txt").open("a") as file:
        file.write("garbage\n")
    with pytest.raises(ConfigError, match="line 2 of"):
        delivered(site, good).install_from_fab(good, skip_prompt=True)
    assert not (site / "flwr").exists()


def test_the_time_of_the_message_is_the_time_of_the_work(site: Path, good: bytes, unwatched: Mock) -> None:
    delivered(site, good, seconds=90.0)
    ((seconds,), _) = unwatched.call_args
    assert 89 < seconds <= 90  # less the milliseconds since it was made


USED = {"pull_task_input", "install_from_fab", "get_load_client_app_fn", "push_message", "get_project_dir"}


@pytest.mark.parametrize("lacking", sorted(USED))
def test_another_flower_is_refused(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    def run_clientapp() -> None:
        pass

    code = run_clientapp.__code__
    run_clientapp.__code__ = code.replace(co_names=tuple(USED - {lacking}))
    other = ModuleType("flwr.supernode.runtime.run_clientapp")
    vars(other).update(run_clientapp=run_clientapp)
    monkeypatch.setitem(sys.modules, other.__name__, other)
    with pytest.raises(RunError, match=f"got one without {lacking}; install"):
        flower_runtime()


def test_a_flower_without_the_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr.supernode.runtime.run_clientapp", None)
    with pytest.raises(RunError, match="Flower must be a version whose ClientApps can be checked"):
        flower_runtime()


def test_nothing_ends_the_process_from_the_answer_on(site: Path, good: bytes, unwatched: Mock) -> None:
    gate = delivered(site, good)
    calls = Mock()
    unwatched.return_value.side_effect = calls.time_is_no_matter
    gate._push = calls.pushed
    gate.push_message("client", "reply", "context")
    assert calls.mock_calls == [call.time_is_no_matter(), call.pushed("client", "reply", "context")]


# The end of a message's time, in processes of their own.


def ends(work: str, limit: float) -> tuple[int, str, float]:
    """Run `work` in a process; return its status, what it said and its seconds from the first line on."""
    began = time.monotonic()
    script = f"import time\nfrom fedfair.federation.gate import end_after\n{work}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=limit, cwd=ROOT
    )
    return done.returncode, done.stderr, time.monotonic() - began


def test_work_that_hangs_is_ended() -> None:
    status, said, _ = ends("end_after(0.2)\ntime.sleep(60)", limit=30)
    assert (status, said.count("\n")) == (75, 1)
    assert "the time of the message is over" in said


def test_work_that_keeps_the_interpreter_is_ended() -> None:
    # One C call that never lets another thread run: the timer cannot fire, the fallback can.
    status, said, _ = ends("end_after(-4.0)\nimport re\nre.match(r'(a|aa)*$', 'a' * 200 + 'b')", limit=60)
    assert status in (1, 75), said


def test_work_in_time_is_left_alone() -> None:
    assert ends("end_after(30)\nprint('done')", limit=30)[:2] == (0, "")


def test_work_that_has_its_answer_is_left_alone() -> None:
    assert ends("end_after(0.3)()\ntime.sleep(0.8)", limit=30)[:2] == (0, "")


def test_the_fallback_is_called_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    called_off = Mock()
    monkeypatch.setattr(gate_module.threading, "Timer", Mock())
    monkeypatch.setattr(gate_module.faulthandler, "dump_traceback_later", Mock())
    monkeypatch.setattr(gate_module.faulthandler, "cancel_dump_traceback_later", called_off)
    end_after(60)()
    called_off.assert_called_once_with()


def test_an_end_that_has_begun_lets_no_answer_out() -> None:
    # The end is held up in the middle, as by a full pipe: the answer waits for it instead of leaving.
    work = """
from fedfair.federation import gate
gate._end, end = lambda: (time.sleep(0.5), end()), gate._end
go_on = end_after(0.0)
time.sleep(0.2)
go_on()
print("left")"""
    assert ends(work, limit=30)[0] == 75


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 1e300])
def test_no_message_has_more_than_a_week(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    timer, fallback = Mock(), Mock()
    monkeypatch.setattr(gate_module.threading, "Timer", timer)
    monkeypatch.setattr(gate_module.faulthandler, "dump_traceback_later", fallback)
    end_after(seconds)
    assert timer.call_args.args[0] == LONGEST_SECONDS
    fallback.assert_called_once_with(LONGEST_SECONDS + 5, exit=True)
