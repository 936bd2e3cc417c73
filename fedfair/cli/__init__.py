"""The command line: experiments on one machine, and a federation between real ones."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fedfair import __version__
from fedfair.cli._common import INTERRUPTED, Parser
from fedfair.cli._data import add_data
from fedfair.cli._experiments import add_experiments
from fedfair.cli._federation import add_federation
from fedfair.cli._site import add_site
from fedfair.errors import FedfairError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0, 1 for a refusal (one sentence on stderr) or 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except FedfairError as error:
        sys.stderr.write(f"fedfair: {error}\n")
        return 1
    except OSError as error:
        # A disk that is full or a file that may not be written: nothing that the program can mend.
        place = f" ({error.filename})" if error.filename else ""
        sys.stderr.write(
            f"fedfair: the system refused: {error.strerror or error}{place}; mend that and go on\n"
        )
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("fedfair: interrupted\n")
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fedfair",
        description="Train one multimodal model across hospitals, modulated by modality and group.",
    )
    parser.add_argument("--version", action="version", version=f"fedfair {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_experiments(commands)
    add_data(commands)
    add_federation(commands)
    add_site(commands)
    return parser
