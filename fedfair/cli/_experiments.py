"""Experiments on one machine: simulate, sweep, report, privacy, methods."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

from fedfair.cli._common import INTERRUPTED, Commands, find_apps, natural, overrides, positive
from fedfair.errors import RunError


def add_experiments(commands: Commands) -> None:
    """Add the commands."""
    simulate = commands.add_parser(
        "simulate",
        help="run an experiment on virtual sites and write a report",
        description=_simulate.__doc__,
    )
    simulate.add_argument("config", type=Path, help="a YAML file such as configs/heart.yaml")
    overrides(simulate)
    simulate.add_argument("--seeds", type=positive, metavar="N", help="repeat with N seeds (default 1)")
    simulate.add_argument("--output", type=Path, help="a new folder; default runs/NAME/001, 002, ...")
    simulate.add_argument(
        "--workers",
        type=natural,
        default=0,
        metavar="N",
        help="processes that share the runs (seeds, methods), or the sites of one run at a time where more "
        "of these can work at once; same bits (default 0: one process does all)",
    )
    simulate.add_argument(
        "--engine",
        choices=("in-process", "flower"),
        default="in-process",
        help="flower: `flwr run` on Flower's simulation engine (Ray); same numbers, slower to start",
    )
    simulate.add_argument(
        "--resume", action="store_true", help="go on with the run in --output, or with the newest one"
    )
    simulate.set_defaults(run=_simulate)

    sweep = commands.add_parser(
        "sweep",
        help="run a privacy-budget experiment and draw what privacy costs",
        description=_sweep.__doc__,
    )
    sweep.add_argument("config", type=Path, help="a YAML file such as configs/privacy_budget.yaml")
    overrides(sweep, "rounds=40")
    sweep.add_argument("--seeds", type=positive, metavar="N", help="seeds per setting (default: the file's)")
    sweep.add_argument("--output", type=Path, help="a new folder; default runs/NAME/001, 002, ...")
    sweep.add_argument("--workers", type=positive, metavar="N", help="runs at a time (default: one per CPU)")
    sweep.add_argument(
        "--resume", action="store_true", help="run what is missing or failed in --output, or in the newest"
    )
    sweep.set_defaults(run=_sweep)

    report = commands.add_parser(
        "report", help="write report.html of a run again", description=_report.__doc__
    )
    report.add_argument("folder", type=Path, help="a folder such as runs/heart/001")
    report.set_defaults(run=_report)

    privacy = commands.add_parser(
        "privacy", help="what a private configuration will promise and cost", description=_privacy.__doc__
    )
    privacy.add_argument("config", type=Path, help="a YAML file such as configs/heart_private.yaml")
    overrides(privacy, "privacy.target_epsilon=3")
    privacy.set_defaults(run=_privacy)

    methods = commands.add_parser("methods", help="list the methods and their parameters")
    methods.set_defaults(run=_methods)


def _simulate(options: argparse.Namespace) -> int:
    """Train the method of CONFIG and its baseline on the same seeds, then compare them."""
    find_apps()
    from simulations.run import Request, run_experiment

    request = Request(
        options.config,
        tuple(options.set),
        options.seeds,
        options.output,
        options.workers,
        options.engine,
        options.resume,
    )
    return INTERRUPTED if run_experiment(request) else 0


def _sweep(options: argparse.Namespace) -> int:
    """Run the arms of CONFIG at every epsilon on the same seeds, then show what privacy costs."""
    find_apps()
    from simulations.sweep import SweepRequest, run_sweep

    request = SweepRequest(
        options.config, tuple(options.set), options.seeds, options.output, options.workers, options.resume
    )
    outcome = run_sweep(request)
    if outcome.interrupted:
        return INTERRUPTED
    return 1 if outcome.failed else 0


def _report(options: argparse.Namespace) -> int:
    """Write the report from the files of a run or a sweep, complete or interrupted."""
    from fedfair.report import comparison_table, write_budget, write_report

    if (options.folder / "sweep.json").is_file():
        page, verdict = write_budget(options.folder)
        sys.stdout.write(f"{verdict}\nreport: {page}\n")
        return 0
    if not (options.folder / "experiment.json").is_file():
        raise RunError(f"`folder` must be a run with an experiment.json, got {options.folder}")
    path = write_report(options.folder)
    sys.stdout.write(f"{comparison_table(options.folder)}\nreport: {path}\n")
    return 0


def _privacy(options: argparse.Namespace) -> int:
    """Calibrate the noise of CONFIG and print its privacy statement, before anything is spent."""
    from fedfair.budget import outlook, resolve
    from fedfair.config import load
    from fedfair.coordinator import Coordinator
    from fedfair.dataset import dataset_of
    from fedfair.errors import ConfigError
    from fedfair.site import Workbench

    config = load(options.config, options.set)
    if not config.privacy.on:
        raise ConfigError("`privacy.mode` must be sample or site, got 'off'; nothing is promised")
    config = resolve(config)
    adapter = dataset_of(config)
    coordinator = Coordinator(config, adapter.schema, Workbench(config, adapter.schema).vectors())
    sys.stdout.write(outlook(config, len(adapter.schema.sites), coordinator.values) + "\n")
    return 0


def _methods(options: argparse.Namespace) -> int:
    """List the methods, what they do and their parameters with defaults."""
    del options
    from fedfair.modulation import METHODS

    for name, method in METHODS.items():
        summary = (method.__doc__ or "").strip().splitlines()[0]
        sys.stdout.write(f"{name}: {summary}\n")
        for field in dataclasses.fields(method):  # type: ignore[arg-type]
            sys.stdout.write(f"    method.{field.name} = {field.default}\n")
    return 0
