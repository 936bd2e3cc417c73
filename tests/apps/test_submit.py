"""Submitting to a federation, told by a centre that runs the very app in this process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import Context, RecordDict

from client.app import app as client_app
from fedfair.audit import entries
from fedfair.errors import FedfairError, RunError
from fedfair.provenance import source_digest
from server.app import app as server_app
from simulations.federation import build_code, code_hash, engine
from simulations.federation.control import Centre, Run
from simulations.grid import InProcessGrid
from simulations.programs import answer, reason
from simulations.run import Request, run_experiment
from tests.apps.runs import HEART, PRIVATE, ROOT, SHORT, run, same_bits

RUNNING, COMPLETED = Run("running"), Run("finished:completed", "N/A")


class PretendCentre:
    """Answers as the SuperLink would; a submitted run is run at once, on this process's grid."""

    def __init__(self, state: Path) -> None:
        self.state = self.root = self.weights = state
        self.calls: list[str] = []
        self.values: Mapping[str, Any] = {}
        self.online: list[list[str]] = [["2", "3", "4", "5"]]
        self.answers: list[Run | BaseException] = [RUNNING, COMPLETED]
        self.works = True

    def open(self, folder: Path) -> PretendCentre:
        assert folder.name == "federation"
        return self

    def require(self) -> None:
        self.calls.append("require")

    def submit(self, app: Path, values: Mapping[str, Any]) -> str:
        self.calls.append("submit")
        self.values = dict(values)
        assert source_digest(app) == source_digest(ROOT)
        context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(values))
        if self.works:
            with InProcessGrid(client_app, 4) as grid:
                server_app(grid, context)
        return "77"

    def run(self, run_id: str) -> Run:
        assert run_id == "77"
        told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(told, BaseException):
            raise told
        return told

    def nodes(self) -> dict[str, str]:
        online = self.online.pop(0) if len(self.online) > 1 else self.online[0]
        return {node: "online" if node in online else "offline" for node in "2345"}

    def stop(self, run_id: str) -> None:
        self.calls.append(f"stop {run_id}")

    def log(self, run_id: str, into: Path) -> subprocess.Popen[bytes]:
        into.write_text(f"log of {run_id}")
        return subprocess.Popen([sys.executable, "-c", ""])


@pytest.fixture
def centre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendCentre:
    state = tmp_path / "state"
    state.mkdir()
    # The nodes of a grid in this process count from 2.
    names = ("cleveland", "hungary", "switzerland", "va-long-beach")
    sites = {name: {"key": name, "node": str(k)} for k, name in enumerate(names, start=2)}
    (state / "nodes.json").write_text(json.dumps(sites))
    pretend = PretendCentre(state)
    monkeypatch.setattr(engine, "Centre", pretend)
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.0)
    return pretend


def request(tmp_path: Path, *overrides: str, **options: Any) -> Request:
    options = {"output": tmp_path / "out", "federation": tmp_path / "federation", **options}
    return Request(HEART, (*SHORT, *overrides), engine="federation", **options)


def test_a_submitted_run_has_the_bits_of_the_simulation(
    tmp_path: Path, centre: PretendCentre, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_experiment(request(tmp_path))
    arm = tmp_path / "out" / "seed-0" / "dual_mimo"
    assert same_bits(arm, run(tmp_path / "here"))
    assert centre.values == {
        "config": str(arm / "config.yaml"),
        "overrides": "",
        "output": str(arm),
        "roster": str(centre.state / "nodes.json"),
        "audit": str(centre.state / "audit.jsonl"),
        "weights": str(centre.weights),
    }
    assert [e["event"] for e in entries(centre.state / "audit.jsonl")][-1] == "run-ended"
    assert (arm / "serverapp.log").read_text() == "log of 77"
    experiment = json.loads((tmp_path / "out" / "experiment.json").read_text())
    # A second arm would train at real sites twice.
    assert (experiment["engine"], experiment["arms"]) == ("federation", ["dual_mimo"])
    assert experiment["status"] == "complete"
    assert (tmp_path / "out" / "report.html").is_file()
    shown = capsys.readouterr().err
    assert shown.count("round   0  loss") == 1
    assert "waiting" not in shown


def test_the_baseline_is_trained_if_asked_for(tmp_path: Path, centre: PretendCentre) -> None:
    run_experiment(request(tmp_path, "rounds=1", baseline=True))
    assert centre.calls.count("submit") == 2
    assert (tmp_path / "out" / "seed-0" / "fedavg" / "model.pt").is_file()


def test_sites_have_their_own_paths_and_ledgers(tmp_path: Path, centre: PretendCentre) -> None:
    """The server's path and a ledger in its run's folder would be meaningless, or worse, at a site."""
    columns = {"numeric": ["a", "b"]}
    options: dict[str, Any] = {
        "sites": ["North", "South"],
        "label": {"column": "y", "values": {"no": [0], "yes": [1]}},
        "modalities": {"one": columns},
        "attributes": {"sex": {"column": "sex", "values": {"female": ["f"], "male": ["m"]}}},
    }
    ranges = {"a": [0, 1], "b": [0, 1]}
    plain = {
        "data": {"name": "csv", "path": "/nowhere/on/this/machine.csv", "options": options, "ranges": ranges},
        "training": {"mode": "update"},
        "privacy": yaml.safe_load(PRIVATE.read_text())["privacy"],
    }
    file = tmp_path / "private.yaml"
    file.write_text(yaml.safe_dump(plain))
    centre.works, centre.answers = False, [Run("finished:failed", "enough seen")]
    with pytest.raises(RunError, match="enough seen"):
        run_experiment(
            Request(
                file, (), output=tmp_path / "out", engine="federation", federation=tmp_path / "federation"
            )
        )
    sent = yaml.safe_load(Path(centre.values["config"]).read_text())
    assert sent["data"]["path"] is None
    assert sent["privacy"]["ledger"] is None


def test_a_failed_run_says_the_servers_own_sentence(tmp_path: Path, centre: PretendCentre) -> None:
    centre.works = False
    centre.answers = [RUNNING, Run("finished:failed", "ServerApp failed with exception: site X is down")]
    with pytest.raises(RunError, match=r"^site X is down \(the server's log: .*serverapp\.log\)$"):
        run_experiment(request(tmp_path))


@pytest.mark.parametrize(
    ("last", "why"),
    [
        (Run("finished:stopped", "N/A"), "was stopped by another program"),
        (COMPLETED, r"must leave model\.pt"),
    ],
)
def test_a_run_that_left_no_model_is_an_error(
    tmp_path: Path, centre: PretendCentre, last: Run, why: str
) -> None:
    centre.works, centre.answers = False, [last]
    with pytest.raises(RunError, match=why):
        run_experiment(request(tmp_path))


def test_ctrl_c_stops_the_run_and_resume_begins_another(
    tmp_path: Path, centre: PretendCentre, capsys: pytest.CaptureFixture[str]
) -> None:
    centre.works, centre.answers = False, [RUNNING, KeyboardInterrupt()]
    assert run_experiment(request(tmp_path))
    assert centre.calls == ["require", "submit", "stop 77"]
    shown = capsys.readouterr().err
    assert f"fedfair submit {HEART} --federation {tmp_path / 'federation'} --set rounds=2" in shown
    assert f"--resume --output {tmp_path / 'out'}" in shown
    centre.works, centre.answers = True, [Run("finished:stopped"), COMPLETED]
    assert not run_experiment(request(tmp_path, resume=True))
    assert centre.calls[3:] == ["require", "submit"]


def test_a_run_that_still_goes_on_is_followed_and_not_begun_twice(
    tmp_path: Path, centre: PretendCentre, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever submitted may have lost the terminal; two runs at once would spend privacy twice."""
    monkeypatch.setattr(engine, "LOST_SECONDS", -1.0)
    centre.works, centre.answers = False, [RUNNING, RunError("lost")]
    with pytest.raises(RunError, match="lost"):
        run_experiment(request(tmp_path))

    def finish_meanwhile(run_id: str) -> Run:
        if not centre.works:
            centre.works = True
            centre.submit(build_code(ROOT, tmp_path), centre.values)
            return RUNNING
        assert run_id == "77"
        return COMPLETED

    monkeypatch.setattr(centre, "run", finish_meanwhile)
    centre.calls.clear()
    assert not run_experiment(request(tmp_path, resume=True))
    assert centre.calls == ["require", "submit"]  # the one in `finish_meanwhile`
    assert same_bits(tmp_path / "out" / "seed-0" / "dual_mimo", run(tmp_path / "here"))


def test_a_superlink_that_is_started_again_is_given_time(tmp_path: Path, centre: PretendCentre) -> None:
    centre.answers = [RUNNING, RunError("nothing listens"), COMPLETED]
    assert not run_experiment(request(tmp_path))


def test_a_run_that_is_never_started_is_an_error(
    tmp_path: Path, centre: PretendCentre, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PENDING_SECONDS", -1.0)
    centre.works, centre.answers = False, [Run("pending")]
    with pytest.raises(RunError, match="must start the run"):
        run_experiment(request(tmp_path))
    assert "stop 77" in centre.calls


def test_it_says_which_sites_are_awaited(
    tmp_path: Path, centre: PretendCentre, capsys: pytest.CaptureFixture[str]
) -> None:
    centre.online = [["2"], ["2"], ["2", "4"], ["2", "3", "4", "5"]]
    centre.answers = [RUNNING] * 5 + [COMPLETED]
    run_experiment(request(tmp_path, "server.min_sites=4"))
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.count("waiting for sites: 1 of 4; not connected: hungary, switzerland, va-long-beach") == 1
    assert shown.count("waiting for sites: 2 of 4; not connected: hungary, va-long-beach") == 1
    assert shown.count("waiting") == 2


def test_an_experiment_of_this_machine_is_not_resumed_on_a_federation(
    tmp_path: Path, centre: PretendCentre
) -> None:
    run_experiment(Request(HEART, SHORT, output=tmp_path / "out", baseline=False))
    with pytest.raises(RunError, match="`engine` must be as in the run to resume"):
        run_experiment(request(tmp_path, resume=True))
    assert not centre.calls


def test_a_federation_and_its_engine_go_together(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="`federation` must be a folder for engine federation alone"):
        run_experiment(Request(HEART, federation=tmp_path))
    with pytest.raises(RunError, match="`federation` must be a folder for engine federation alone"):
        run_experiment(Request(HEART, engine="federation"))


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be one that `fedfair federation init` made"):
        run_experiment(request(tmp_path))


def test_a_centre_that_is_not_started_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "federation"
    (folder / "centre").mkdir(parents=True)
    plain = {"name": "a", "sites": ["North"], "attributes": {"sex": ["f"]}, "centre": {"host": "localhost"}}
    # Nobody listens at port 1.
    plain["centre"] |= {"inner_port": 1}  # type: ignore[operator]
    (folder / "consortium.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(RunError, match=r"nothing listens on 127\.0\.0\.1:1; .* federation start /"):
        run_experiment(request(tmp_path))


# The code that travels


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of the sources, other times and other company, in a folder of another name."""
    root = tmp_path / "elsewhere_v2"
    for name in ("fedfair", "server", "client", "configs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copyfile(ROOT / name, root / name)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, (10**9 + number, 10**9 + number))
    return root


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # Flower's own
def test_the_code_hash_is_of_the_code_alone(checkout: Path) -> None:
    here = code_hash(ROOT)
    assert len(here) == 64
    (checkout / "fedfair" / "__pycache__").mkdir()
    (checkout / "fedfair" / "__pycache__" / "errors.cpython-311.pyc").write_bytes(b"x")
    (checkout / "server" / ".ipynb_checkpoints").mkdir()
    (checkout / "server" / ".ipynb_checkpoints" / "app.py").write_text("x")
    (checkout / "client" / "notes.txt").write_text("x")
    (checkout / ".gitignore").write_text("*.py\n")
    (checkout / "README.md").write_text("another")
    (checkout / "configs" / "heart.yaml").write_text("another")
    project = (checkout / "pyproject.toml").read_text()
    (checkout / "pyproject.toml").write_text(project.replace("line-length = 110", "line-length = 90"))
    assert code_hash(checkout) == here
    with (checkout / "fedfair" / "errors.py").open("a") as file:
        file.write("\n")
    assert code_hash(checkout) != here


def test_the_code_is_all_that_a_site_checks_and_no_more(tmp_path: Path) -> None:
    app = build_code(ROOT, tmp_path)
    assert app.name == "fedfair"  # a checkout's name may be one that Flower refuses
    assert source_digest(app) == source_digest(ROOT)
    assert {path.name for path in app.iterdir()} == {"fedfair", "server", "client", "pyproject.toml"}
    assert {path.suffix for path in app.rglob("*") if path.is_file()} == {".py", ".jsonl", ".toml"}


def test_only_a_checkout_has_code(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="must be a checkout of fedfair, got .* without fedfair"):
        code_hash(tmp_path)


# What Flower's programs say


def test_what_flower_says_becomes_one_line() -> None:
    exit_ = "\x1b[91mERROR \x1b[0m: Exit Code: 500\nInvalid line\nPlease ensure\n\nFor more information\n"
    assert reason(exit_) == "Invalid line"
    assert reason("a\nb\n\n") == "b"
    assert reason("") == "nothing"
    told = subprocess.CompletedProcess(
        ["flwr", "list"], 0, 'Listing\n{"success": false, "error-message": "x\\ny"}', ""
    )
    with pytest.raises(RunError, match="^y$"):
        answer(told)
    with pytest.raises(RunError, match="`flwr list` must answer, got: Invalid line"):
        answer(subprocess.CompletedProcess(["flwr", "list"], 1, "", exit_))


def test_a_federation_is_opened_by_its_consortium(tmp_path: Path) -> None:
    (tmp_path / "centre").mkdir()
    (tmp_path / "consortium.yaml").write_text("nam: x\n")
    with pytest.raises(FedfairError, match="did you mean `name`"):
        Centre.open(tmp_path)
