"""A hospital's side: join a federation, approve code, check, read the audit log."""

from __future__ import annotations

import argparse
import getpass
from pathlib import Path

from fedfair.cli._common import Commands, say


def add_site(commands: Commands) -> None:
    """Add ``site join|approve|revoke``, ``doctor`` and ``audit verify|show``."""
    site = commands.add_parser("site", help="take part in a federation (hospital)")
    parts = site.add_subparsers(title="commands", required=True, metavar="COMMAND")

    join = parts.add_parser("join", help="check everything, then take part", description=_join.__doc__)
    join.add_argument("bundle", type=Path, help="the bundle (.tar.gz), or the folder it was unpacked to")
    join.add_argument("--data", type=Path, help="the records; remembered in site.yaml")
    join.set_defaults(run=_join)

    for name, run in (("approve", _approve), ("revoke", _revoke)):
        parser = parts.add_parser(name, help=f"{name} a code hash", description=run.__doc__)
        parser.add_argument("hash", help="what `fedfair code` prints")
        parser.add_argument("--site", type=Path, default=Path(), help="the site's folder (default: here)")
        parser.set_defaults(run=run)

    doctor = commands.add_parser("doctor", help="check a site's folder", description=_doctor.__doc__)
    doctor.add_argument(
        "site", type=Path, nargs="?", default=Path(), help="the site's folder (default: here)"
    )
    doctor.add_argument("--offline", action="store_true", help="leave out what needs the network")
    doctor.set_defaults(run=_doctor)

    audit = commands.add_parser("audit", help="the log of what ran and what left")
    logs = audit.add_subparsers(title="commands", required=True, metavar="COMMAND")
    verify = logs.add_parser("verify", help="check that nothing was changed", description=_verify.__doc__)
    verify.add_argument("log", type=Path, help="a file such as audit.jsonl")
    verify.add_argument(
        "--against", type=Path, action="append", default=[], help="a log of the other side; shows a cut end"
    )
    verify.set_defaults(run=_verify)
    show = logs.add_parser("show", help="print it as a table", description=_show.__doc__)
    show.add_argument("log", type=Path, help="a file such as audit.jsonl")
    show.set_defaults(run=_show)


def _join(options: argparse.Namespace) -> int:
    """Check the site and the way to the centre; if all is well, take part until Ctrl-C."""
    from fedfair.federation.join import join

    return int(join(options.bundle, options.data, say))


def _approve(options: argparse.Namespace) -> int:
    """Let the code with this hash run here; nothing else does."""
    from fedfair.federation.approval import approve

    approve(options.site, options.hash, getpass.getuser())
    say(f"approved {options.hash}")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    """No longer let the code with this hash run here."""
    from fedfair.federation.approval import revoke

    revoke(options.site, options.hash, getpass.getuser())
    say(f"revoked {options.hash}")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    """Check versions, files, certificates, clock, network and data; name the fix of each failure."""
    from fedfair.federation.doctor import check, render

    findings = check(options.site, not options.offline)
    say(render(findings))
    return int(any(finding.ok is False for finding in findings))


def _verify(options: argparse.Namespace) -> int:
    """Check the chain of hashes of LOG, and that what the other side saw of it still stands there."""
    from fedfair.audit import summary

    say(summary(options.log, options.against))
    return 0


def _show(options: argparse.Namespace) -> int:
    """Print LOG as a table."""
    from fedfair.audit import entries, render

    say(render(entries(options.log)))
    return 0
