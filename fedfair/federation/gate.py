"""The gate of a site: Flower's own programs, save that code which the site has not approved is refused.

``flwr-clientapp`` is started by Flower for each message, and installs and runs whatever app the
server has named. Here the SHA-256 of the very bytes decides first. Four functions that Flower's
program calls are replaced; where it does not call them (another version of Flower), nothing runs.
"""

from __future__ import annotations

import faulthandler
import hashlib
import importlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, NoReturn

from fedfair.audit import AuditLog
from fedfair.errors import FedfairError, PrivacyError, RunError
from fedfair.federation.approval import approved
from fedfair.federation.folder import SiteFolder

SITE = "FEDFAIR_SITE"
"""Environment variable that names the site's folder."""
REFUSED = 78
"""Exit status of a program that cannot run here, whatever is tried again."""
OVERTIME = 75
LONGEST_SECONDS = 7 * 24 * 3600.0
_RUNTIME = "flwr.supernode.runtime.run_clientapp"
_REPLACED = ("pull_task_input", "install_from_fab", "get_load_client_app_fn", "push_message")


class Gate:
    """Stand between a message and the code that would answer it.

    Parameters
    ----------
    folder : SiteFolder
        Whose approvals count.
    runtime : ModuleType
        Flower's module, whose functions are called once the gate has let them.
    """

    def __init__(self, folder: SiteFolder, runtime: ModuleType) -> None:
        self._folder = folder
        self._get_place = runtime.get_project_dir
        self._pull, self._install, self._get_loader, self._push = (
            getattr(runtime, name) for name in _REPLACED
        )
        self._finish: Callable[[], None] | None = None
        self._told: dict[str, Any] = {}
        self._named = ""
        self._home: Path | None = None

    def pull_task_input(self, client: object) -> tuple[Any, Any, Any, Any]:
        """Pull message, context, run and code, and end this process when the message's time is over.

        A SuperNode waits for the answer to one message before it takes the next, so a run that hangs
        would hold the site for ever.
        """
        message, context, run, code = self._pull(client)
        about = message.metadata
        self._finish = end_after(about.created_at + about.ttl - time.time())
        self._named = code.hash_str
        self._told = {"run": str(run.run_id), "message": about.message_type, "round": about.group_id[:20]}
        return message, context, run, code

    def install_from_fab(self, content: bytes, **options: object) -> Path:
        """Install approved code, and refuse any other; the refusal is the answer that the server gets.

        Raises
        ------
        PrivacyError
            If the hash of `content` is not approved, or is not the one that the server named.
        """
        code = hashlib.sha256(content).hexdigest()
        log = AuditLog(self._folder.audit)
        if refusal := self._refusal(code):
            log.append("code-refused", code=code, reason=refusal, **self._told)
            raise PrivacyError(refusal)
        log.append("code-run", code=code, **self._told)
        self._home = self._folder.home / "code" / code
        if not self._home.is_dir():
            self._unpack(content, self._home, options)
        os.environ["FLWR_HOME"] = str(self._home)
        return self._home

    def get_load_client_app_fn(self, *args: object, **options: object) -> Callable[[str, str, str], object]:
        """Return Flower's loader, bound to the place of the code that was let through."""
        load = self._get_loader(*args, **options)

        def loaded(fab_id: str, fab_version: str, fab_hash: str) -> object:
            self._check_place(self._get_place(fab_id, fab_version, fab_hash))
            _forget_fedfair()
            return load(fab_id, fab_version, fab_hash)

        return loaded

    def push_message(self, *args: object) -> None:
        """Push the answer, which is in time: nothing ends this process between it and the node's state.

        Flower stores that state after the answer has left. Without it, a site would answer again with
        the secrets of an answer that is out.
        """
        if self._finish is not None:
            self._finish()
        self._push(*args)

    def _refusal(self, code: str) -> str | None:
        site = self._folder.name
        if code != self._named:
            return f"the code sent to site {site} must be the one named, got {code}; nothing ran"
        if code in approved(self._folder.root):
            return None
        return (
            f"site {site} has not approved the code {code}; "
            f"its administrator can with: fedfair site approve {code}"
        )

    def _unpack(self, content: bytes, home: Path, options: dict[str, object]) -> None:
        """Install into a folder of the whole hash, in one step.

        Flower names folders by eight digits of it, which can be made to collide, and takes a folder
        that is there for complete.
        """
        fresh = home.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        self._install(content, **{**options, "install_dir": fresh})
        fresh.rename(home)

    def _check_place(self, place: Path) -> None:
        """Refuse a name or version, which the server chooses, that leads to other files."""
        if self._home is None or place.parent != self._home / "apps":
            raise PrivacyError(
                f"site {self._folder.name} must run the code that it checked, got another name for it"
            )


def end_after(seconds: float) -> Callable[[], None]:
    """End this process, whatever it does, after `seconds`; a week at most.

    Returns
    -------
    Callable[[], None]
        Lets the process go on; if its end has begun, it never returns.
    """
    # not (x < y): NaN is no end either
    seconds = max(seconds, 0.0) if seconds < LONGEST_SECONDS else LONGEST_SECONDS
    decided = threading.Lock()  # whoever takes it first, the end or the answer, has it for good
    timer = threading.Timer(seconds, lambda: _end() if decided.acquire(blocking=False) else None)
    timer.daemon = True
    timer.start()
    # For code that never lets go of the interpreter; it tells where it was.
    faulthandler.dump_traceback_later(seconds + 5, exit=True)

    def go_on() -> None:
        decided.acquire()
        faulthandler.cancel_dump_traceback_later()

    return go_on


def _end() -> NoReturn:
    sys.stderr.write("fedfair: the time of the message is over before its answer; the work on it was ended\n")
    sys.stderr.flush()
    os._exit(OVERTIME)


def _forget_fedfair() -> None:
    """Let the app import the fedfair it came with: this one here is the site's own."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "fedfair"]:
        del sys.modules[name]


def flower_runtime() -> ModuleType:
    """Return Flower's module that runs ClientApps.

    Raises
    ------
    RunError
        If it does not work as this gate needs it to.
    """
    try:
        runtime = importlib.import_module(_RUNTIME)
    except ImportError:
        runtime = ModuleType(_RUNTIME)
    program = getattr(runtime, "run_clientapp", None)
    used = program.__code__.co_names if isinstance(program, FunctionType) else ()
    if lacking := [name for name in (*_REPLACED, "get_project_dir") if name not in used]:
        raise RunError(
            f"Flower must be a version whose ClientApps can be checked before they run, got one without "
            f"{', '.join(lacking)}; install one that fedfair asks for: pip install --upgrade fedfair"
        )
    return runtime


def clientapp() -> None:
    """Run Flower's ``flwr-clientapp`` behind the gate."""
    try:
        if not (site := os.environ.get(SITE)):
            raise RunError(
                f"{SITE} must name the site's folder, got nothing; start the site with `fedfair site join`"
            )
        runtime = flower_runtime()
        gate = Gate(SiteFolder.read(Path(site)), runtime)
    except FedfairError as error:
        _stop(error)
    for name in _REPLACED:
        setattr(runtime, name, getattr(gate, name))
    from flwr.supernode.cli import flwr_clientapp

    flwr_clientapp()


def node() -> None:
    """Run Flower's ``flower-supernode`` for as long as it is connected and its parent lives.

    When its loop ends on an error, a thread of Flower's would keep the process, deaf, for ever.
    """
    try:
        flower_runtime()
    except FedfairError as error:
        _stop(error)
    from flwr.supercore.app_utils import start_parent_process_monitor
    from flwr.supernode.cli import flower_supernode

    start_parent_process_monitor(os.getppid())
    flower_supernode()
    sys.stderr.write("fedfair: the SuperNode has given up its connection\n")
    sys.stderr.flush()
    os._exit(1)


def _stop(error: FedfairError) -> NoReturn:
    sys.stderr.write(f"fedfair: {error}\n")
    sys.exit(REFUSED)


if __name__ == "__main__":
    clientapp()
