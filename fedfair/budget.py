"""The privacy budget of a run: which mechanisms it will use, how much noise that asks for, what it costs.

All of it follows from the configuration, which is public; no record has a part in it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedfair.config import Config
from fedfair.data import is_made_up
from fedfair.errors import counted
from fedfair.privacy.accounting import RELATION, Event, calibrate, describe, epsilon, merge
from fedfair.privacy.ledger import Ledger
from fedfair.privacy.settings import statistics_event, training_event
from fedfair.privacy.site_level import feasibility

SAMPLE_UNIT = "one patient (one record) of one site"
TRAINING_UNIT = "one training patient (one record) of one site ({} patients are not protected)"
SITE_UNIT = "all records of one site"
SITE_TRAINING_UNIT = "all training records of one site ({} figures are not protected)"
SITE_RELATION = "emptying one site (who takes part is public)"


def unit(config: Config) -> str:
    """Return whom the promise is about."""
    exact = config.privacy.evaluation == "exact"
    if config.privacy.mode == "site":
        return SITE_TRAINING_UNIT.format(_measured_on(config)) if exact else SITE_UNIT
    return TRAINING_UNIT.format(_measured_on(config)) if exact else SAMPLE_UNIT


def _measured_on(config: Config) -> str:
    return "validation and test" if config.data.validation_fraction else "test"


def releases_statistics(config: Config, number: int) -> bool:
    """Return whether statistics are released in round `number`; ``rounds + 1`` is the final evaluation."""
    released = config.privacy.evaluation == "released"
    if number > config.rounds:
        return released
    return (released or config.method.modulates) and (number - 1) % config.privacy.statistics.every == 0


def round_events(config: Config, number: int) -> tuple[Event, ...]:
    """Return what round `number` of a resolved configuration is charged for."""
    training = (training_event(config.privacy),) if number <= config.rounds else ()
    statistics = (statistics_event(config.privacy),) if releases_statistics(config, number) else ()
    return training + statistics


def charges(config: Config, number: int) -> tuple[Event, ...]:
    """Return what a ledger is charged in round `number`: noise that can be drawn again counts as none."""
    events = round_events(config, number)
    if config.privacy.noise_seed is None:
        return events
    return tuple(dataclasses.replace(event, noise_multiplier=0.0) for event in events)


def planned(config: Config) -> tuple[Event, ...]:
    """Return everything that a resolved configuration is charged for at one site, merged."""
    return merge([event for number in range(1, config.rounds + 2) for event in round_events(config, number)])


def resolve(config: Config) -> Config:
    """Return the configuration with noise multipliers in place of a target epsilon.

    The statistics get the noise at which all of them alone would cost `statistics.share` of the
    target; the gradients get what makes the whole event, statistics included, cost the target.

    Raises
    ------
    ConfigError
        If no noise reaches the target.
    MissingDependency
        If Opacus is not installed.
    """
    privacy = config.privacy
    if not privacy.on or privacy.target_epsilon is None:
        return config
    count = sum(releases_statistics(config, number) for number in range(1, config.rounds + 2))
    statistics = privacy.statistics
    if statistics.noise_multiplier is None:
        share = privacy.target_epsilon * statistics.share
        sigma = _calibrated(share, float(privacy.target_delta or 0), 1.0, count, ()) if count else 1.0
        statistics = dataclasses.replace(statistics, noise_multiplier=sigma)
    others = (Event(float(statistics.noise_multiplier or 0.0), 1.0, count),) if count else ()
    one = training_event(
        dataclasses.replace(
            privacy, target_epsilon=None, noise_multiplier=1.0, exact=(), statistics=statistics
        )
    )
    sigma = _calibrated(
        privacy.target_epsilon,
        float(privacy.target_delta or 0),
        one.sample_rate,
        one.steps * config.rounds,
        others,
    )
    resolved = dataclasses.replace(
        privacy, target_epsilon=None, noise_multiplier=sigma, statistics=statistics
    )
    return dataclasses.replace(config, privacy=resolved)


# A search takes seconds, and the arms of an experiment ask for the same ones.
@lru_cache(maxsize=256)
def _calibrated(
    epsilon: float, delta: float, sample_rate: float, steps: int, others: tuple[Event, ...]
) -> float:
    return calibrate(epsilon, delta, sample_rate, steps, others)


def account(config: Config, rounds: int, asked: Sequence[int], stopped: str | None = None) -> dict[str, Any]:
    """Return what a resolved run promised and spent, for its record.

    Parameters
    ----------
    config : Config
        Resolved.
    rounds : int
        Committed rounds.
    asked : Sequence[int]
        The rounds that a site was asked for and may have answered, those repeated after a crash as
        often as they were; ``rounds + 1`` of the configuration is the final evaluation.
    stopped : str | None
        Why training ended early.

    Returns
    -------
    dict[str, Any]
        Plain data. The figures are one site's of this run alone; its ledger adds earlier runs.
    """
    privacy = config.privacy
    events = merge([event for number in asked for event in round_events(config, number)])
    relation = SITE_RELATION if privacy.mode == "site" else RELATION
    spent = describe(events, float(privacy.target_delta or 0), unit(config), relation)
    rdp = epsilon(events, float(privacy.target_delta or 0), "rdp")
    return {
        **dataclasses.asdict(spent),
        "statement": str(spent),
        "epsilon_rdp": rdp,
        "mode": privacy.mode,
        "rounds": rounds,
        "events": [dataclasses.asdict(event) for event in events],
        "releases": sum(releases_statistics(config, number) for number in asked),
        "not_private": privacy.not_private,
        "evaluation": privacy.evaluation,
        "stopped": stopped,
    }


def outlook(config: Config, sites: int, values: int) -> str:
    """Return a text table of what a resolved configuration promises, and how loud its noise is.

    Parameters
    ----------
    config : Config
        Resolved.
    sites, values : int
        S, and the values d that one site sends for the model in a round. The noise in a round's mean
        update has the norm sigma C sqrt(K d / S) / L, what K steps of fully aligned clipped gradients
        add is at most K C: their ratio needs no record. (Mode site: K = L = 1 and S is not a root.)
    """
    privacy = config.privacy
    plan = account(config, config.rounds, range(1, config.rounds + 2))
    rows = [("mechanism", "noise multiplier", "sample rate", "steps")]
    training = training_event(privacy)
    for event in planned(config):
        name = "gradients" if event.noise_multiplier == training.noise_multiplier else "statistics"
        rows.append((name, f"{event.noise_multiplier:.4g}", f"{event.sample_rate:.4g}", str(event.steps)))
    if privacy.mode == "site":
        ratio = training.noise_multiplier * math.sqrt(values) / sites
    else:
        batch = float(privacy.expected_batch or math.nan)
        ratio = training.noise_multiplier * math.sqrt(values / (sites * training.steps)) / batch
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(
        [
            f"{config.name}: {plan['statement']}",
            f"RDP, a looser bound, says {plan['epsilon_rdp']:.4g}.",
            "",
            *lines,
            "",
            f"One round's noise has {ratio:.3g} times the norm that perfectly aligned gradients could reach "
            f"({counted(values, 'value')}, {counted(sites, 'site')}).",
            *notices(config, sites, values),
        ]
    )


def notices(config: Config, sites: int, values: int) -> list[str]:
    """Return what must be said before a resolved run starts: why it is no promise, or no use.

    Parameters
    ----------
    config : Config
        Resolved.
    sites, values : int
        S, and the values that one site sends for the model in a round.
    """
    privacy, said = config.privacy, []
    if privacy.on and privacy.not_private:
        said.append(f"NOT PRIVATE: {privacy.not_private}")
    if privacy.on and privacy.evaluation == "exact":
        said.append(
            f"{_measured_on(config)} records are not protected: their figures leave exactly "
            "(`privacy.evaluation: exact`)"
        )
    if privacy.mode == "sample" and (privacy.target_delta or 0) * (privacy.expected_batch or 0) >= (
        privacy.sample_rate or 1
    ):
        said.append(
            "`privacy.target_delta` is not below one over the number of records; nothing much is promised"
        )
    if privacy.mode == "site":
        sigma = training_event(privacy).noise_multiplier
        said += [note] if (note := feasibility(sigma, values, sites)) else []
    return said


def server_ledger(config: Config) -> Ledger | None:
    """Return the server's ledger for site-level privacy, or None."""
    return site_ledger(config, ledger_folder(config), "all sites") if config.privacy.mode == "site" else None


def ledger_folder(config: Config) -> Path:
    """Return where ledgers lie for whom no node says so: the run's, else ``~/.fedfair/ledgers``."""
    return Path(config.privacy.ledger) if config.privacy.ledger else Path.home() / ".fedfair" / "ledgers"


def site_ledger(
    config: Config, folder: Path, site: str, own_cap: float | None = None, own_dataset: str | None = None
) -> Ledger:
    """Return the ledger of a site's data; one file per data set and site, whatever the run.

    Parameters
    ----------
    config, folder, site
        The run, where ledgers lie, and whose it is.
    own_cap : float | None
        The site's own; the lower of it and the run's holds.
    own_dataset : str | None
        The site's own name of its data, which comes before the run's.
    """
    dataset = own_dataset or dataset_identity(config)
    name = hashlib.sha256(f"{dataset}\x1f{site}".encode()).hexdigest()[:16]
    delta = float(config.privacy.target_delta or 0.0)
    caps = [cap for cap in (own_cap, config.privacy.max_epsilon) if cap is not None]
    return Ledger(folder / f"{name}.json", dataset, site, delta, min(caps, default=None))


def dataset_identity(config: Config) -> str:
    """Return the name under which a site's ledger knows the data.

    `privacy.dataset` if given, so that a copy or a new export of the same patients goes on with the
    same account; else the path, or the built-in's name (with the seed, for made-up records).
    """
    if config.privacy.dataset:
        return config.privacy.dataset
    if config.data.path is not None:
        return str(Path(config.data.path).resolve())
    made_up = is_made_up(config.data.name, None)
    return f"{config.data.name}-{config.seed}" if made_up else config.data.name
