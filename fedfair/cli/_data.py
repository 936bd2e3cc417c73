"""Data sets on the disk: what a folder holds, and made-up patients to try everything with."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fedfair.cli._common import Commands, positive, say
from fedfair.errors import ConfigError, counted, nearest


def add_data(commands: Commands) -> None:
    """Add ``data check`` and ``data phantom``."""
    data = commands.add_parser("data", help="look at a data set, or make synthetic patients")
    parts = data.add_subparsers(title="commands", required=True, metavar="COMMAND")

    check = parts.add_parser("check", help="what a folder holds", description=_check.__doc__)
    check.add_argument("path", type=Path, help="the folder of an eye data set")
    check.add_argument("--profile", help="fairvision, fairvlmed or fairfedmed; default: by what is there")
    check.set_defaults(run=_check)

    phantom = parts.add_parser("phantom", help="synthetic eye patients", description=_phantom.__doc__)
    phantom.add_argument("--preset", default="fairvision", help="default fairvision")
    phantom.add_argument("--size", type=positive, default=64, help="pixels across an image, default 64")
    phantom.add_argument("--slices", type=positive, default=8, help="B-scans of an OCT volume, default 8")
    phantom.add_argument("--patients", type=positive, help="per site; default: what the preset says")
    phantom.add_argument("--seed", type=int, default=0, help="default 0")
    phantom.add_argument("--workers", type=positive, help="processes; default: one per core, at most 8")
    wanted = phantom.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--out", type=Path, metavar="FOLDER", help="a new folder for the files")
    wanted.add_argument("--ceiling", action="store_true", help="print what any method can reach, no files")
    phantom.set_defaults(run=_phantom)


def _check(options: argparse.Namespace) -> int:
    """Tell what a folder of FairVision, FairVLMed or FairFedMed files holds; 1 if something is wrong."""
    from fedfair.data.eye import check

    report = check(options.path, options.profile)
    for line in report.lines():
        say(line)
    return int(bool(report.problems))


def _phantom(options: argparse.Namespace) -> int:
    """Write made-up patients, or print the AUC that no method can exceed on them."""
    from fedfair.data.phantom import PRESETS, PhantomSpec, ceiling_table, write_tree

    if options.preset not in PRESETS:
        raise ConfigError(
            f"`--preset` must be one of {sorted(PRESETS)}, got {options.preset!r}"
            f"{nearest(options.preset, PRESETS)}"
        )
    if options.ceiling:
        for line in _aligned(ceiling_table(options.preset, seed=options.seed)):
            say(line)
        return 0
    sites = PhantomSpec.from_options({"preset": options.preset}, options.seed).sites.values()
    total = sum(options.patients or site.patients for site in sites)
    workers = options.workers or min(8, os.cpu_count() or 1)
    columns = (TextColumn("patients"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        count = write_tree(
            options.preset,
            options.size,
            options.slices,
            options.patients,
            options.seed,
            options.out,
            lambda: progress.advance(task),
            workers,
        )
    say(f"made {counted(count, 'synthetic patient')} in {options.out}")
    return 0


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
