"""A privacy-budget experiment: arms x methods x epsilons x seeds, one run each, then tables and figures."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from fedfair.config import Config, load
from fedfair.coordinator import Coordinator
from fedfair.data import DataAdapter, is_made_up
from fedfair.data.crossing import group_names
from fedfair.dataset import dataset_of
from fedfair.errors import ConfigError, RunError
from fedfair.plain import first_difference
from fedfair.provenance import source_digest, versions
from fedfair.record import MODEL, RunFolder, newest_folder, next_folder
from fedfair.report import write_budget
from fedfair.report._budget import CELLS, ERROR, SWEEP
from fedfair.site import Workbench
from simulations.arms import ARMS, PAIRS, REFERENCE, Setting
from simulations.engines import ROOT
from simulations.progress import CellProgress
from simulations.run import LEDGERS, check_sites
from simulations.sweep_file import Sweep, read_sweep

_SAME = ("sweep", "config", "schema", "code_digest")


@dataclass(frozen=True)
class SweepRequest:
    """What the user asked for; see ``fedfair sweep --help``."""

    config: Path
    overrides: tuple[str, ...] = ()
    seeds: int | None = None
    output: Path | None = None
    workers: int | None = None
    resume: bool = False


class Outcome(NamedTuple):
    """How a sweep ended."""

    failed: int
    interrupted: bool


def run_sweep(request: SweepRequest) -> Outcome:
    """Run all cells that are not done, then write tables and figures.

    Raises
    ------
    FedfairError
        If an input is refused, or noise for an epsilon cannot be had; a failed cell is none.
    """
    sweep = read_sweep(request.config, request.seeds)
    base = _base(sweep, request)
    adapter = dataset_of(base)
    check_sites(adapter)
    found = sweep.settings(base)
    bench = Workbench(base, adapter.schema)
    # Everything that the configurations can get wrong is refused before there is a folder.
    for setting in found:
        Coordinator(setting.config, adapter.schema, bench.vectors())
    wanted = _describe(request, sweep, base, adapter, bench)
    folder, plan = _open_folder(request, wanted, found)
    cells = _prepare(folder, plan)
    interrupted = False
    try:
        interrupted = _run(cells, len(adapter.schema.sites), request.workers or os.cpu_count() or 1)
    finally:
        _conclude(folder, plan, cells, interrupted)
    return Outcome(sum((cell / ERROR).is_file() for cell in cells), interrupted)


def _base(sweep: Sweep, request: SweepRequest) -> Config:
    """Return the base configuration under the sweep's name."""
    base = load(request.config.parent / sweep.base, (*sweep.overrides, *request.overrides))
    unseen = base.data.validation_fraction
    for key, wanted, value, why in (
        ("privacy.mode", "sample", base.privacy.mode, "its arms are about single records"),
        ("privacy.evaluation", "exact", base.privacy.evaluation, "noise would hide what is compared"),
        ("data.validation_fraction", 0, unseen, "rounds would not measure the test records to compare"),
    ):
        if value != wanted:
            raise ConfigError(f"`{key}` of a sweep's base must be {wanted}, got {value!r}; {why}")
    # Cells lie in folders of their own.
    path = None if base.data.path is None else str(Path(base.data.path).resolve())
    return dataclasses.replace(base, name=sweep.name, data=dataclasses.replace(base.data, path=path))


def _describe(
    request: SweepRequest, sweep: Sweep, base: Config, adapter: DataAdapter, bench: Workbench
) -> dict[str, Any]:
    command = ["fedfair", "sweep", str(request.config)]
    command += [part for text in request.overrides for part in ("--set", text)]
    command += [] if request.seeds is None else ["--seeds", str(request.seeds)]
    schema = adapter.schema
    plain = dataclasses.asdict(sweep)
    return {
        "name": sweep.name,
        "command": shlex.join(command),
        "status": "running",
        "created": _now(),
        "finished": None,
        "synthetic": base.data.synthetic or is_made_up(base.data.name, base.data.path),
        "sweep": {**plain, "epsilons": [f"{float(value):g}" for value in sweep.epsilons]},
        "config": base.to_dict(),
        "seeds": [base.seed + k for k in range(sweep.seeds)],
        "groups": list(group_names(schema.attributes, base.data.attribute)),
        "arms": {name: ARMS[name].meaning for name in dict.fromkeys(sweep.arms)},
        "pairs": PAIRS,
        "reference": REFERENCE,
        "trained_values": sum(len(vector) for vector in bench.vectors().values()),
        "records": {site: len(adapter.load(site)) for site in schema.sites},
        "versions": versions(),
        "code_digest": source_digest(ROOT),
        "schema": schema.digest(),
    }


def _open_folder(
    request: SweepRequest, wanted: dict[str, Any], found: Sequence[Setting]
) -> tuple[Path, dict[str, Any]]:
    """Return a new folder with the plan, its noise calibrated, or the folder and plan to go on with.

    Raises
    ------
    ConfigError
        If no noise reaches an epsilon.
    RunError
        If the folder exists and is not to be resumed, or there is nothing to resume, or what is wanted
        differs from what the sweep began with.
    """
    parent = Path("runs") / wanted["name"]
    if request.resume:
        return _resumed(request.output or newest_folder(parent), parent, request, wanted)
    folder = request.output or next_folder(parent)
    if folder.exists():
        raise RunError(f"`--output` must not exist yet, got {folder}; add --resume to go on with it")
    plan = {**wanted, "settings": [setting.to_dict() for setting in _calibrated(found)]}
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"`--output` must be a folder that can be made, got {folder} ({error})") from error
    _write(folder, plan)
    return folder, plan


def _resumed(
    folder: Path | None, parent: Path, request: SweepRequest, wanted: dict[str, Any]
) -> tuple[Path, dict[str, Any]]:
    if folder is None or not (folder / SWEEP).is_file():
        raise RunError(f"`--resume` must find a sweep, got none in {folder or parent}")
    before: dict[str, Any] = json.loads((folder / SWEEP).read_text(encoding="utf-8"))
    if request.seeds is None:
        wanted["sweep"]["seeds"] = before["sweep"]["seeds"]
    if key := first_difference({k: before[k] for k in _SAME}, {k: wanted[k] for k in _SAME}):
        raise RunError(
            f"`{key}` must be as in the sweep to resume ({folder}), it differs; start a new one instead"
        )
    return folder, before


def _calibrated(found: Sequence[Setting]) -> list[Setting]:
    """Return the settings with noise multipliers in place of a target."""
    console = Console(stderr=True)
    text = f"calibrating the noise of {len(found)} settings"
    if not console.is_terminal:
        console.print(text, highlight=False)
    bar = track(found, text, console=console, transient=True, disable=not console.is_terminal)
    return [setting.calibrated() for setting in bar]


def _prepare(folder: Path, plan: Mapping[str, Any]) -> list[Path]:
    """Return the folders of all cells, seed by seed, each with its configuration."""
    cells = []
    for seed in plan["seeds"]:
        for setting in map(Setting.from_dict, plan["settings"]):
            cell = (folder / CELLS / setting.folder / f"seed-{seed}").resolve()
            cells.append(cell)
            if not (cell / "config.yaml").is_file():
                cell.mkdir(parents=True, exist_ok=True)
                # Experiments on public data spend nobody's budget: each cell has accounts of its own.
                privacy = dataclasses.replace(setting.config.privacy, ledger=str(cell / LEDGERS))
                RunFolder(cell).save_config(dataclasses.replace(setting.config, seed=seed, privacy=privacy))
    return cells


def _run(cells: Sequence[Path], sites: int, workers: int) -> bool:
    """Run the cells that are not done; return whether interrupted."""
    # Imported late: Flower takes half a second that a refusal does not need.
    from simulations.pool import run_in_pool

    left = [cell for cell in cells if not (cell / MODEL).is_file()]
    for cell in left:
        (cell / ERROR).unlink(missing_ok=True)
    if not left:
        return False
    named = {cell: f"{cell.parent.name} {cell.name}" for cell in left}
    with CellProgress(len(left)) as progress:

        def told(cell: Path, error: str | None) -> None:
            if error is not None:
                (cell / ERROR).write_text(error + "\n", encoding="utf-8")
            progress.told(named[cell], error)

        return run_in_pool(named, sites, workers, told)


def _conclude(folder: Path, plan: dict[str, Any], cells: Sequence[Path], interrupted: bool) -> None:
    done = sum((cell / MODEL).is_file() for cell in cells)
    failed = sum((cell / ERROR).is_file() for cell in cells)
    _write(
        folder,
        {**plan, "status": "complete" if done == len(cells) else "incomplete", "finished": _now()},
    )
    if done < len(cells):
        why = "interrupted: " * interrupted
        go_on = f"{plan['command']} --resume --output {shlex.quote(str(folder))}"
        sys.stderr.write(
            f"{why}{done} of {len(cells)} cells are done, {failed} failed; go on with: {go_on}\n"
        )
    if done:
        page, verdict = write_budget(folder)
        sys.stdout.write(f"\n{verdict}\n\nreport: {page}\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _write(folder: Path, plan: Mapping[str, Any]) -> None:
    (folder / SWEEP).write_text(json.dumps(plan, indent=1), encoding="utf-8")
