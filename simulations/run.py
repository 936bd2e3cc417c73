"""One experiment: a method and its baseline on the same seeds, then the comparison and the report."""

from __future__ import annotations

import dataclasses
import datetime
import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedfair.config import Config, load
from fedfair.coordinator import Coordinator
from fedfair.data import DataAdapter, OwnTable, TableAdapter, is_made_up
from fedfair.data.schema import Schema
from fedfair.dataset import dataset_of
from fedfair.errors import ConfigError, FedfairError, RunError
from fedfair.modulation import METHODS
from fedfair.networks import with_networks
from fedfair.plain import first_difference
from fedfair.privacy.accounting import Event, describe
from fedfair.provenance import source_digest, versions
from fedfair.record import PRIVACY, newest_folder, next_folder
from fedfair.site import Workbench
from simulations.engines import FEDERATION, IN_PROCESS, ROOT, engine_of
from simulations.jobs import Job, run_jobs

EXPERIMENT = "experiment.json"
LEDGERS = "ledgers"


@dataclass(frozen=True)
class Request:
    """What the user asked for; see ``fedfair simulate --help`` and ``fedfair submit --help``.

    `federation` is the folder of the centre for engine federation. `baseline` null trains the baseline
    too, save on a federation: there it costs real sites' time and privacy.
    """

    config: Path
    overrides: tuple[str, ...] = ()
    seeds: int | None = None
    output: Path | None = None
    workers: int = 0
    engine: str = IN_PROCESS
    resume: bool = False
    federation: Path | None = None
    baseline: bool | None = None

    @property
    def with_baseline(self) -> bool:
        """Whether the baseline is an arm too."""
        return self.engine != FEDERATION if self.baseline is None else self.baseline


def run_experiment(request: Request) -> bool:
    """Run all arms and seeds, write the report, print the comparison; return whether interrupted.

    Raises
    ------
    FedfairError
        If an input is refused or a run fails; what was done stays in the folder.
    """
    config = load(request.config, request.overrides)
    engine = engine_of(request.engine, request.workers, request.federation)
    if request.engine == FEDERATION:
        # Each site has a path of its own.
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=None))
    adapter = dataset_of(config)
    if request.engine != FEDERATION:
        check_sites(adapter)
    arms = list(dict.fromkeys([config.report.baseline] * request.with_baseline + [config.method.name]))
    # Everything that the configuration can get wrong is refused before there is a folder.
    bench = Workbench(with_networks(config, _networks(request)), adapter.schema)
    Coordinator(config, adapter.schema, bench.vectors())
    wanted = _describe(request, config, adapter.schema, arms)
    folder, experiment = _open_folder(request, wanted)
    seeds: list[int] = experiment["seeds"]
    _write(folder / EXPERIMENT, experiment)
    (folder / "config.yaml").write_text(yaml.safe_dump(config.to_dict(), sort_keys=False), encoding="utf-8")
    jobs: list[Job] = []
    try:
        jobs += [_prepared(config, arm, seed, folder, request) for seed in seeds for arm in arms]
        interrupted = run_jobs(jobs, engine, adapter.schema, _at_once(request, jobs, adapter.schema))
    except FedfairError:
        # Nothing was trained: the mended command may use the same folder.
        if not (request.resume or request.engine == FEDERATION or any(folder.rglob("rounds.jsonl"))):
            shutil.rmtree(folder)
        raise
    finally:
        finished = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        status = "complete" if jobs and all(job.done for job in jobs) else "interrupted"
        if folder.is_dir():
            _write(folder / EXPERIMENT, {**experiment, "status": status, "finished": finished})
    shared = f" --workers {request.workers}" if request.workers else ""
    go_on = f"{experiment['command']} --resume --output {folder}{shared}"
    _conclude(folder, go_on if interrupted else None)
    return interrupted


def check_sites(adapter: DataAdapter) -> None:
    """Refuse a table that belongs to one site as a whole: here every site would get all of it; or none."""
    if isinstance(adapter, OwnTable):
        raise ConfigError(
            "`data.path` must name the file for csv, got nothing; sites with files of their own "
            "are for `fedfair submit`"
        )
    if isinstance(adapter, TableAdapter) and adapter.spec.site is None and len(adapter.schema.sites) > 1:
        raise ConfigError(
            "`data.options.site` must name the column that tells the sites apart, got null; "
            "a file of one site is for a deployment"
        )


def _networks(request: Request) -> Path:
    """Return where this machine's stored networks are; a hospital says itself where its own are."""
    if request.federation is None:
        return Path.cwd()
    from simulations.federation import networks_of

    return networks_of(request.federation)


def _prepared(config: Config, arm: str, seed: int, folder: Path, request: Request) -> Job:
    """Return one run to do, its configuration in its folder."""
    own = folder / f"seed-{seed}" / arm
    job = Job(own.resolve(), f"{arm} seed {seed}", _arm_config(config, arm, seed, own, request))
    if not job.done:
        own.mkdir(parents=True, exist_ok=True)
        plain = yaml.safe_dump(job.config.to_dict(), sort_keys=False)
        (own / "config.yaml").write_text(plain, encoding="utf-8")
    return job


def _at_once(request: Request, jobs: Sequence[Job], schema: Schema) -> int:
    """Return how many runs share the worker processes, or zero where the sites of a run had better do so.

    Runs are alike and wait for nobody; of three sites on two processes one is alone for half of the time.
    Runs that spend one budget must follow one another: which of them gets how much would be chance.
    """
    ledgers = [job.config.privacy.ledger for job in jobs if job.config.privacy.on]
    if request.engine != IN_PROCESS or len({*ledgers}) < len(ledgers):
        return 0
    left = sum(not job.done for job in jobs)
    runs, sites = min(request.workers, left), min(request.workers, len(schema.sites))
    return runs if runs >= sites else 0


def _arm_config(config: Config, arm: str, seed: int, folder: Path, request: Request) -> Config:
    method = config.method if arm == config.method.name else METHODS[arm]()
    data, privacy = config.data, config.privacy
    if privacy.on and privacy.ledger is None and request.engine != FEDERATION:
        # A simulation spends nobody's budget, so each of its runs has accounts of its own.
        privacy = dataclasses.replace(privacy, ledger=str((folder / LEDGERS).resolve()))
    if data.path is not None:
        # Flower's engines run elsewhere than here.
        data = dataclasses.replace(data, path=str(Path(data.path).resolve()))
    if request.engine != FEDERATION:
        config = with_networks(config, _networks(request))
    return dataclasses.replace(config, seed=seed, method=method, data=data, privacy=privacy)


def _open_folder(request: Request, wanted: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """Return a new folder with what is wanted, or the one to resume with what it began with.

    Raises
    ------
    RunError
        If the folder exists and is not to be resumed, cannot be made, or there is nothing to resume,
        or what is wanted differs from what the run began with.
    """
    parent = Path("runs") / wanted["name"]
    if not request.resume:
        folder = request.output or next_folder(parent)
        if folder.exists():
            raise RunError(f"`--output` must not exist yet, got {folder}; add --resume to go on with it")
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"`--output` must be a folder that can be made, got {folder} ({error})") from error
        return folder, wanted
    found = request.output or newest_folder(parent)
    if found is None or not (found / EXPERIMENT).is_file():
        raise RunError(f"`--resume` must find a run, got none in {found or parent}")
    before: dict[str, Any] = json.loads((found / EXPERIMENT).read_text(encoding="utf-8"))
    if request.seeds is None:
        wanted["seeds"] = before["seeds"]
    same = ["config", "schema", "code_digest", "seeds"]
    if FEDERATION in (before["engine"], wanted["engine"]):
        # Engines on one machine give the same bits; sites have records of their own.
        same += ["engine", "arms"]
    if key := first_difference({k: before[k] for k in same}, {k: wanted[k] for k in same}):
        raise RunError(
            f"`{key}` must be as in the run to resume ({found}), it differs; start a new run instead"
        )
    return found, before


def _describe(request: Request, config: Config, schema: Schema, arms: list[str]) -> dict[str, Any]:
    command = ["fedfair", "simulate", str(request.config)]
    if request.federation is not None:
        command = ["fedfair", "submit", str(request.config), "--federation", str(request.federation)]
        command += ["--baseline"] * request.with_baseline
    command += [part for text in request.overrides for part in ("--set", text)]
    command += ["--seeds", str(request.seeds or 1)]
    return {
        "name": config.name,
        "command": shlex.join(command),
        "status": "running",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "finished": None,
        "synthetic": config.data.synthetic or is_made_up(config.data.name, config.data.path),
        "seeds": [config.seed + k for k in range(request.seeds or 1)],
        "arms": arms,
        "attribute": config.data.attribute,
        "rounds": config.rounds,
        "engine": request.engine,
        "config": config.to_dict(),
        "versions": versions(),
        "code_digest": source_digest(ROOT),
        "schema": {
            "modalities": list(schema.modalities),
            "classes": list(schema.classes),
            "attributes": {name: list(groups) for name, groups in schema.attributes.items()},
            "sites": list(schema.sites),
        },
    }


def _conclude(folder: Path, go_on: str | None) -> None:
    from fedfair.report import comparison_table, write_report

    if go_on:
        sys.stderr.write(f"interrupted: what was done is kept; go on with: {go_on}\n")
    if any(folder.glob("seed-*/*/rounds.jsonl")):
        path = write_report(folder)
        sys.stdout.write(f"\n{comparison_table(folder)}\n{_composed(folder)}\nreport: {path}\n")


def _composed(folder: Path) -> str:
    """Return what all private runs of the folder cost together, or nothing to say."""
    spent = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"seed-*/*/{PRIVACY}")]
    if len(spent) < 2 or any(account["not_private"] for account in spent):
        return ""
    events = [Event(**event) for account in spent for event in account["events"]]
    told = describe(events, spent[0]["delta"], spent[0]["unit"], spent[0]["relation"])
    return f"\nall {len(spent)} runs together, were they on one data set of real patients: {told}\n"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
