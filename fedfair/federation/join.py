"""``fedfair site join``: from a bundle to a site that stays connected, in one command."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from fedfair.audit import AuditLog
from fedfair.errors import ConfigError, RunError
from fedfair.federation.approval import approved
from fedfair.federation.bundle import open_bundle
from fedfair.federation.doctor import check, programs_path, render
from fedfair.federation.files import PROGRAM, replace
from fedfair.federation.folder import PROGRAMS, SiteFolder
from fedfair.federation.supervise import FLOWER_ENVIRONMENT, Supervisor
from fedfair.plain import read_yaml

GATED = {
    "flower-supernode": ("-c", "from fedfair.federation.gate import node; node()"),
    "flwr-clientapp": ("-m", "fedfair.federation.gate"),
}
"""Programs of Flower's that run behind the gate; -P keeps what lies in the working folder out of them."""
REFUSED = ("flwr-agentapp", "flwr-model", "flwr-connector", "flwr-serverapp", "flwr-simulation")
"""Programs that a server could have started, and no site needs."""

_DATA = re.compile(
    r"""(?m)^data:[ \t]*(?:"(?:\\.|[^"\\])*"|'(?:''|[^'])*'|[^#\n]*?)(?=(?:[ \t]+#.*)?[ \t]*$)"""
)


def join(bundle: Path, data: Path | None, say: Callable[[str], None]) -> int:
    """Take part until told to stop.

    Parameters
    ----------
    bundle : Path
        The archive from the centre, unpacked beside it, or the folder that it was unpacked to.
    data : Path | None
        The records; None keeps what the settings say.
    say : Callable[[str], None]
        Told what a person wants to know.

    Returns
    -------
    int
        0 when told to stop, 1 when the checks fail or the centre refuses for good.

    Raises
    ------
    ConfigError
        If `bundle` or `data` is not what it must be.
    RunError
        If the site is running already.
    """
    site = open_bundle(bundle, bundle.resolve().parent) if bundle.is_file() else bundle
    folder = SiteFolder.read(site)
    with _alone(folder):
        if data is not None:
            set_data(folder.settings_file, data)
        findings = check(folder.root)
        say(render(findings))
        if any(finding.ok is False for finding in findings):
            say(f"not connected: mend what FAILs, then again: fedfair site join {shlex.quote(str(site))}")
            return 1
        write_programs(folder.root)
        if not approved(folder.root):
            say("every run will be refused until you approve its code: fedfair site approve HASH")
        return _take_part(folder, say)


def _take_part(folder: SiteFolder, say: Callable[[str], None]) -> int:
    centre, log = str(folder.settings["centre"]), AuditLog(folder.audit)
    say(f"{folder.name} connects to {centre}; Ctrl-C or SIGTERM ends it")
    log.append("joined", site=folder.name, consortium=str(folder.settings.get("consortium")), centre=centre)
    keeper = Supervisor(lambda: command(folder), environment(folder.root, os.environ), folder.root, say)
    status = keeper.run()
    log.append("stopped", reason="the centre refuses this site" if status else "told to stop")
    return status


def set_data(settings: Path, data: Path) -> None:
    """Write the path of the records into site.yaml and leave all else, comments too, as it stands.

    Raises
    ------
    ConfigError
        If there is nothing at the path, or the file has no line for it.
    """
    place = data.resolve()
    if not place.exists():
        raise ConfigError(f"`--data` must be the path of the records, got {str(data)!r}, where nothing is")
    text, line = settings.read_text(encoding="utf-8"), f"data: {json.dumps(str(place))}"
    # JSON's quotes are YAML's; a function, since a replacement text would have its backslashes read.
    new, count = _DATA.subn(lambda _: line, text)
    try:
        before, after = (read_yaml(each, str(settings)) for each in (text, new))
    except ConfigError:
        before, after = {}, None
    if count != 1 or {**before, "data": str(place)} != after:
        raise ConfigError(
            f"{settings} must have one line `data: PATH` of its own, got {count} that could be changed; "
            f"write there by hand: {line}"
        )
    if new != text:
        replace(settings, new.encode(), settings.stat().st_mode & 0o777)


def write_programs(site: Path) -> None:
    """Make the programs that stand before Flower's own on the PATH of the SuperNode."""
    folder = site / PROGRAMS
    folder.mkdir(exist_ok=True)
    for name, run in GATED.items():
        words = shlex.join([sys.executable, "-P", *run])
        replace(folder / name, f'#!/bin/sh\nexec {words} "$@"\n'.encode(), PROGRAM)
    for name in REFUSED:
        line = f"echo 'fedfair: this site does not run {name}' >&2"
        replace(folder / name, f"#!/bin/sh\n{line}\nexit 1\n".encode(), PROGRAM)


def command(folder: SiteFolder) -> Sequence[str]:
    """Return the SuperNode's command line; its own port, on the loopback, is a free one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return (
        *(str(folder.root / PROGRAMS / "flower-supernode"), "--superlink", str(folder.settings["centre"])),
        *("--root-certificates", "ca.crt", "--auth-supernode-private-key", "node.key"),
        *("--node-config", node_config({"site": folder.name, "settings": str(folder.settings_file)})),
        *("--host", "127.0.0.1", "--port", str(port)),
    )


def environment(site: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return what the SuperNode is started with: the gate first on its PATH, its own folder, no detours."""
    # A hospital's proxy must not be asked for the SuperNode's own port on this machine.
    direct = ",".join(filter(None, (given.get("no_proxy") or given.get("NO_PROXY"), "127.0.0.1,localhost")))
    return {
        **given,
        **FLOWER_ENVIRONMENT,
        "FLWR_HOME": str(site / "flwr"),
        "FEDFAIR_SITE": str(site),
        "PATH": os.pathsep.join([str(site / PROGRAMS), programs_path()]),
        "PYTHONUNBUFFERED": "1",
        "no_proxy": direct,
        "NO_PROXY": direct,
    }


def node_config(values: Mapping[str, str]) -> str:
    """Return values as Flower's ``--node-config`` takes them: TOML, found by a pattern without escapes."""
    return " ".join(f'{key}="{"".join(map(_toml, value))}"' for key, value in values.items())


def _toml(character: str) -> str:
    plain = character.isprintable() and character not in '"\\'
    return character if plain else f"\\U{ord(character):08X}"


@contextlib.contextmanager
def _alone(folder: SiteFolder) -> Iterator[None]:
    """Hold the site's folder, so that one program alone uses its key."""
    lock = os.open(folder.root / "join.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                f"site {folder.name} must be joined once, got process {os.pread(lock, 20, 0).decode()} that "
                "has joined it already; end that one first"
            ) from error
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)
