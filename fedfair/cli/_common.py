"""What the commands share: types of arguments, the apps' place, how a run is interrupted."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from fedfair.errors import RunError

INTERRUPTED = 130
# argparse has no public name for it.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


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
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def natural(text: str) -> int:
    """Read an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value
