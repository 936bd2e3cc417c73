"""The coordinating centre: make a federation, run it, submit to it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedfair.cli._common import INTERRUPTED, Commands, find_apps, overrides, positive, say


def add_federation(commands: Commands) -> None:
    """Add ``federation init|add|rekey|renew|start``, ``submit`` and ``code``."""
    federation = commands.add_parser("federation", help="make and run a federation (coordinating centre)")
    parts = federation.add_subparsers(title="commands", required=True, metavar="COMMAND")

    init = parts.add_parser("init", help="keys, certificates, a bundle per site", description=_init.__doc__)
    init.add_argument("consortium", type=Path, help="a YAML file such as configs/consortium.yaml")
    init.add_argument("--output", type=Path, help="a new folder; default NAME-federation")
    init.set_defaults(run=_init)

    add = parts.add_parser("add", help="one more site", description=_add.__doc__)
    add.add_argument("folder", type=Path, help="the federation's folder")
    add.add_argument("site", help="the site's name")
    add.set_defaults(run=_add)

    rekey = parts.add_parser("rekey", help="a new key and bundle for a site", description=_rekey.__doc__)
    rekey.add_argument("folder", type=Path, help="the federation's folder")
    rekey.add_argument("site", help="the site's name")
    rekey.set_defaults(run=_rekey)

    renew = parts.add_parser("renew", help="new certificates, same keys", description=_renew.__doc__)
    renew.add_argument("folder", type=Path, help="the federation's folder")
    renew.set_defaults(run=_renew)

    start = parts.add_parser("start", help="run the SuperLink and the proxy", description=_start.__doc__)
    start.add_argument("folder", type=Path, help="the federation's folder")
    start.add_argument(
        "--no-proxy", action="store_true", help="another proxy passes on /v1/fleet/, and nothing else"
    )
    start.set_defaults(run=_start)

    submit = commands.add_parser(
        "submit", help="run an experiment on a federation and write a report", description=_submit.__doc__
    )
    submit.add_argument("config", type=Path, help="a YAML file such as configs/heart.yaml")
    submit.add_argument("--federation", type=Path, required=True, help="the federation's folder")
    overrides(submit)
    submit.add_argument("--seeds", type=positive, metavar="N", help="repeat with N seeds (default 1)")
    submit.add_argument("--output", type=Path, help="a new folder; default runs/NAME/001, 002, ...")
    submit.add_argument(
        "--baseline", action="store_true", help="train the baseline too: twice the rounds, twice the budget"
    )
    submit.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, or with the newest one"
    )
    submit.set_defaults(run=_submit)

    code = commands.add_parser("code", help="print the hash that sites approve", description=_code.__doc__)
    code.set_defaults(run=_code)


def _init(options: argparse.Namespace) -> int:
    """Make the certificate authority, the centre's certificates and one bundle per site."""
    from fedfair.federation.centre import init

    folder = init(options.consortium, options.output)
    say(f"made {folder}: give each site its own bundle, over a channel that you trust:")
    for bundle in sorted((folder / "bundles").iterdir()):
        say(f"  {bundle}")
    say(f"then start the centre with: fedfair federation start {folder}")
    return 0


def _add(options: argparse.Namespace) -> int:
    """Make the bundle of one more site; a running centre lets it in by itself."""
    from fedfair.federation.centre import add_site

    say(f"made {add_site(options.folder, options.site)}")
    return 0


def _rekey(options: argparse.Namespace) -> int:
    """Replace a site's key that was lost or stolen; a running centre turns the old one away."""
    from fedfair.federation.centre import rekey

    say(f"made {rekey(options.folder, options.site)}; the old key is good for nothing any more")
    return 0


def _renew(options: argparse.Namespace) -> int:
    """Make new server certificates by the same authority; sites need nothing new."""
    from fedfair.federation.centre import renew

    renew(options.folder)
    say("made new certificates; restart the centre to use them")
    return 0


def _start(options: argparse.Namespace) -> int:
    """Run the SuperLink and the proxy in front of it until Ctrl-C."""
    find_apps()
    from simulations.federation import start

    return int(start(options.folder, say, proxy=not options.no_proxy))


def _submit(options: argparse.Namespace) -> int:
    """Train CONFIG on the sites of a federation, with their own data and settings."""
    find_apps()
    from simulations.run import Request, run_experiment

    request = Request(
        options.config,
        tuple(options.set),
        options.seeds,
        options.output,
        engine="federation",
        resume=options.resume,
        federation=options.federation,
        baseline=options.baseline,
    )
    return INTERRUPTED if run_experiment(request) else 0


def _code(options: argparse.Namespace) -> int:
    """Print the hash of this checkout's app, which a site approves before it runs it."""
    del options
    root = find_apps()
    from simulations.federation import code_hash

    say(code_hash(root))
    return 0
