"""What the commands share: types of arguments, the apps' place, how a run is interrupted."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from fedfair.errors import RunError, nearest

INTERRUPTED = 130
# What argparse says, and how every other error says it; anything else stays as it is.
_SAID = {
    r"argument (\S+): invalid int value: (.*)": r"`\1` must be a whole number, got \2",
    r"argument (\S+): expected one argument": r"`\1` must be followed by a value, got none",
    r"argument (\S+): not allowed with argument (\S+)": r"`\1` must not stand beside `\2`",
    r"argument (\S+): ignored explicit argument (.*)": r"`\1` takes no value, got \2",
    r"argument (\S+): (must .*)": r"`\1` \2",
    r"the following arguments are required: (.*)": r"\1 must be given",
    r"one of the arguments (.*) is required": r"one of \1 must be given",
}
_CHOICE = re.compile(r"argument (\S+): invalid choice: '?(.*?)'? \(choose from (.*)\)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """A parser that refuses with one sentence; its commands' parsers do too.

    Of an option nothing may be left out: ``--seed 3`` would repeat with three seeds.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401, those of argparse
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Read the arguments, all of which must be known; argparse would blame the top parser later."""
        found, odd = super().parse_known_args(args, namespace)
        if odd:
            options = [name for action in self._actions for name in action.option_strings]
            self.error(_unknown(odd[0], options))
        return found, []

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where to look, and exit with status 2."""
        said, mark, hint = _reworded(message).partition("; did you mean")
        # A hint stands last, as in all other errors.
        self.exit(2, f"{self.prog}: {said} (see `{self.prog} --help`){mark}{hint}\n")


# argparse has no public name for it.
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def _reworded(message: str) -> str:
    if match := _CHOICE.fullmatch(message):
        name, given, choices = match[1], match[2], re.findall(r"[\w-]+", match[3])
        return f"`{name}` must be one of {choices}, got {given!r}{nearest(given, choices)}"
    matches = ((re.fullmatch(pattern, message, re.DOTALL), words) for pattern, words in _SAID.items())
    return next((match.expand(words) for match, words in matches if match), message)


def _unknown(given: str, options: Sequence[str]) -> str:
    if not given.startswith("-"):
        return f"{given!r} is one argument too many"
    name = given.partition("=")[0]
    return f"`{name}` is not a known option{nearest(name, options)}"


def overrides(parser: argparse.ArgumentParser, example: str = "method.name=mimo") -> None:
    """Add ``--set KEY=VALUE``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a key of the configuration, e.g. {example}",
    )


def find_apps() -> Path:
    """Put the folder that holds server/, client/ and simulations/ on the path; return it.

    They are a Flower app, not part of the installed package: their names are too general for it.

    Raises
    ------
    RunError
        If neither the working directory nor the source checkout holds them.
    """
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if all((root / name).is_dir() for name in ("server", "client", "simulations")):
            sys.path.insert(0, str(root))
            return root
    raise RunError(
        f"this command must run in a checkout of fedfair (server/, client/, simulations/), got {Path.cwd()}"
    )


def say(text: str) -> None:
    """Print a line at once, also into a log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Read an integer of at least 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII) or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return int(text)
