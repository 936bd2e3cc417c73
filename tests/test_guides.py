"""The guides for the centre and for a hospital, followed word by word on one machine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fedfair.errors import MissingDependency
from fedfair.federation.approval import approve
from fedfair.federation.consortium import load_consortium, slug
from fedfair.federation.doctor import check
from fedfair.federation.proxy import nginx_command
from fedfair.federation.settings import KEYS
from simulations.programs import call
from tests.apps.runs import ROOT, rounds, run, same_bits
from tests.e2e.test_federation import SITES, free_port, program, until
from tests.unit.federation.sites import HASH, change, own_table, served, unpacked

CENTRE, HOSPITAL = (ROOT / "docs" / name for name in ("deployment.md", "hospital-it.md"))
CHECKOUT = ("fedfair", "server", "client", "simulations", "configs")
FILES = ("pyproject.toml", "README.md", "LICENSE", "NOTICES")
AUDIT = "fedfair audit"
SUBMIT = "fedfair submit configs/heart.yaml --federation ../heart-federation"

LEFT_OUT = {
    "sudo ": "asks for root",
    "make -C checkout install": "downloads what this test runs with",
    ". checkout/.venv/bin/activate": "the same",
    "python3 -m venv venv": "the same",
    "pip install torch": "the same",
    "FEDFAIR_CHECKOUT=": "asks for Docker",
    f"{SUBMIT} --set server.min_sites=3": "takes an hour",
    "fedfair federation add": "the heart data have no fifth hospital",
}
"""What is not followed, by its beginning, and why; all else is."""

FOREGROUND = {
    "fedfair federation start": "Ctrl-C stops all",
    "fedfair site join": "connected to the centre",
    "./start.sh": "connected to the centre",
}
"""What goes on until Ctrl-C, and what it says when it is ready."""


def commands(page: Path) -> list[str]:
    """Return the lines after a prompt in a page's blocks of commands, in order."""
    blocks = re.findall(r"^```(?:console|sh)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


@dataclass
class Reader:
    """Somebody with a terminal, a guide, and a machine that is a folder of this one.

    `words` is the table of what the reader reads otherwise: names of hosts, paths, the hash that was told.
    """

    folder: Path
    packages: Path
    words: Mapping[str, str]
    stack: ExitStack
    to_follow: list[str]
    said: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.place = self.folder

    def follow(self, before: str = "") -> None:
        """Do what the guide says, up to the first command that begins with `before`."""
        while self.to_follow and not (before and self.to_follow[0].startswith(before)):
            command = self.to_follow.pop(0)
            if not command.startswith(tuple(LEFT_OUT)):
                self.do(command)

    def do(self, command: str) -> None:
        """Do one thing."""
        read = command
        for word, other in self.words.items():
            read = read.replace(word, other)
        if ready := next((said for start, said in FOREGROUND.items() if command.startswith(start)), None):
            self.leave_running(read, ready)
        elif read.startswith("cd "):
            self.place /= read.removeprefix("cd ")
        elif wheel := re.match(r"pip install '(fedfair.*whl)", read):
            shutil.unpack_archive(self.folder / wheel[1], self.packages, "zip")
        else:
            done = call(["sh", "-c", read], self.place, self.variables())
            assert done.returncode == 0, f"{read}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            self.said[command] = done.stdout + done.stderr

    def leave_running(self, command: str, ready: str) -> None:
        log = self.folder / f"terminal-{len(self.running)}.log"
        given = [f"{name}={value}" for name, value in self.variables().items()]
        words = ["env", *given, "sh", "-c", f"exec {command}"]
        self.running.append(self.stack.enter_context(program(words, self.place, log)))
        self.said[command] = until(ready, log)

    def press_ctrl_c(self) -> None:
        """Stop what was left running last; it ends well."""
        self.running[-1].send_signal(signal.SIGINT)
        assert self.running[-1].wait(timeout=120) == 0

    def variables(self) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"PATH": path, "PYTHONPATH": str(self.packages), "HOME": str(self.folder)}
        return {**os.environ, **own, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def centre(tmp_path: Path, stack: ExitStack) -> Reader:
    """Return the centre's administrator, whose checkout names a host and ports of this machine."""
    folder = tmp_path / "centre"
    for name in CHECKOUT:
        shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(ROOT / name, folder / "checkout" / name)
    example = folder / "checkout" / "configs" / "consortium.yaml"
    text = example.read_text()
    others = {"fedfair.example.org": "localhost", "8443": str(free_port()), "9443": str(free_port())}
    for word, other in others.items():
        assert text.count(word) == 1
        text = text.replace(word, other)
    example.write_text(text)
    return Reader(folder, folder / "checkout", {"/srv/fedfair": str(folder)}, stack, commands(CENTRE))


def hospital(site: str, centre: Reader) -> Reader:
    """Return a hospital's administrator, with what the centre has handed over and a table of its own."""
    folder = centre.folder.parent / slug(site)
    folder.mkdir()
    bundle = f"{slug(site)}.tar.gz"
    for handed in (*centre.folder.glob("*.whl"), centre.folder / "heart-federation" / "bundles" / bundle):
        shutil.copy(handed, folder)
    words = {
        "cleveland.tar.gz": bundle,
        "heart-cleveland": f"heart-{slug(site)}",
        "/data/heart.csv": str(own_table(folder / "heart.csv", site)),
        "HASH": centre.said["fedfair code"].strip(),
    }
    return Reader(folder, folder / "packages", words, centre.stack, commands(HOSPITAL))


def take_part(reader: Reader) -> Reader:
    """Join, approve, stop and start again."""
    reader.follow(before="./start.sh")
    reader.press_ctrl_c()
    reader.follow(before=AUDIT)
    return reader


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_centre_and_four_hospitals_that_follow_their_guides_train_a_model(
    centre: Reader, tmp_path: Path
) -> None:
    try:
        nginx_command(Path())
    except MissingDependency as error:
        pytest.skip(str(error))
    centre.follow(before="fedfair submit")
    with ThreadPoolExecutor() as pool:
        hospitals = list(pool.map(take_part, [hospital(site, centre) for site in SITES]))
    for reader in hospitals:
        assert "shipped with fedfair" not in reader.said["fedfair doctor"]
        assert " 0 to mend, 0 to note" in reader.said["./start.sh"]
    (rehearsal,) = [c for c in centre.to_follow if c.startswith(SUBMIT) and "rounds=" in c]
    changes = re.findall(r"--set (\S+)", rehearsal)
    centre.follow()
    ours = centre.folder / "checkout" / "runs" / "heart" / "001"
    assert (ours / "report.html").is_file()
    # All records, each hospital's own, and nothing else made this model.
    arm = ours / "seed-0" / "dual_mimo"
    assert same_bits(run(tmp_path / "here", changes), arm)
    named = re.findall(r"`(centre/state/[\w./-]+)`", CENTRE.read_text())
    assert [name for name in named if not (centre.folder / "heart-federation" / name).exists()] == []
    for reader in hospitals:
        # The centre sends its log when it is asked to.
        state = centre.folder / "heart-federation" / "centre" / "state"
        shutil.copy(state / "audit.jsonl", reader.place / "centre.jsonl")
        reader.follow()
        last = reader.said["fedfair audit verify audit.jsonl --against centre.jsonl"]
        assert "unbroken" in last
        # The survey, each round and the final figures: with each answer the centre noted this log's head.
        assert f"witnesses: {len(rounds(arm)) + 1} of its heads" in last
    with ThreadPoolExecutor() as pool:
        list(pool.map(Reader.press_ctrl_c, [*hospitals, centre]))


def test_each_command_that_is_left_out_is_in_a_guide() -> None:
    every = [*commands(CENTRE), *commands(HOSPITAL)]
    assert [start for start in LEFT_OUT if not any(line.startswith(start) for line in every)] == []


def test_the_example_says_how_it_is_used_and_names_what_the_guides_name() -> None:
    file = ROOT / "configs" / "consortium.yaml"
    assert file.read_text().splitlines()[0] == f"# fedfair federation init configs/{file.name}"
    made = load_consortium(file)
    assert (made.name, tuple(made.sites)) == ("heart", SITES)


def test_the_hospitals_guide_is_one_page() -> None:
    assert len(HOSPITAL.read_text().splitlines()) <= 70


def first_column(page: Path) -> str:
    return "\n".join(line.split("|")[1] for line in page.read_text().splitlines() if line.startswith("|"))


def test_the_hospitals_guide_has_every_setting() -> None:
    assert [key for key in KEYS if f"`{key}`" not in first_column(HOSPITAL)] == []


def test_the_hospitals_guide_says_what_to_do_about_each_failure(tmp_path: Path) -> None:
    site = unpacked(tmp_path)
    change(site, data=str(own_table(tmp_path / "ours.csv")))
    approve(site, HASH, "ada")
    authority = tmp_path / "centre" / "centre"
    with served(authority / "server.crt", authority / "server.key") as port:
        change(site, centre=f"localhost:{port}")
        names = {finding.name for finding in check(site)}
    never = {name for name in names if name == "GPU" or name.startswith("groups of")}
    cells = re.split(r"[,|\n]", first_column(HOSPITAL))
    assert names - never - {cell.strip() for cell in cells} == set()
