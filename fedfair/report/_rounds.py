"""How training went: who took part in each round and who failed, and why a run ended when it did."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedfair.report._load import Experiment, Record, Run

TOOK_PART, FAILED, ABSENT = 0, 1, 2
NOT_CONNECTED = "not connected"  # the server's word for a site that was not there to be asked
LONGEST = 300  # characters of a site's text


@dataclass(frozen=True)
class Presence:
    """One run in which not every site took part in every round.

    Attributes
    ----------
    run : Run
        Which.
    rounds : Sequence[int]
        On record, from 1.
    states : Mapping[str, Sequence[int]]
        Of each site that missed a round, one of `TOOK_PART`, `FAILED` and `ABSENT` per round.
    """

    run: Run
    rounds: Sequence[int]
    states: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Failure:
    """Why one site, or a node that is not known as one, failed in some rounds of a run."""

    run: str
    site: str
    rounds: str
    text: str


def presences(experiment: Experiment) -> list[Presence]:
    """Return the runs in which a site missed a round, with the sites that did."""
    found = []
    for run in experiment.runs.values():
        records = _rounds(run)
        states = {site: [_state(record, site) for record in records] for site in experiment.schema["sites"]}
        missed = {site: row for site, row in states.items() if any(row)}
        if missed:
            found.append(Presence(run, [int(record["round"]) for record in records], missed))
    return found


def _rounds(run: Run) -> list[Record]:
    """Return the records of models that rounds made."""
    return [record for record in run.records if record["round"] > 0]


def _state(record: Record, site: str) -> int:
    if site in record["sites"]:
        return TOOK_PART
    return ABSENT if record["failed"].get(site, NOT_CONNECTED) == NOT_CONNECTED else FAILED


def failures(experiment: Experiment) -> list[Failure]:
    """Return who failed and why, in the site's own words or, of one that fell silent, in the server's."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for run in experiment.runs.values():
        for record in _rounds(run):
            for site, text in record["failed"].items():
                if text != NOT_CONNECTED:
                    found.setdefault((title(run), site, _cut(text)), []).append(int(record["round"]))
    return [Failure(run, site, ranges(rounds), text) for (run, site, text), rounds in found.items()]


def _cut(text: str) -> str:
    """Return what a site said without line ends and signs that steer a page, cut if it is long."""
    plain = "".join(sign if sign.isprintable() else " " for sign in text)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as text, those that follow one another as a range: ``2, 4–6``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def repeated(experiment: Experiment) -> list[str]:
    """Return per run the rounds that were tried more than once, and how often."""
    return by_run((run, _repeats(run)) for run in experiment.runs.values())


def _repeats(run: Run) -> str:
    tried = {int(record["round"]): int(record.get("attempts", 1)) for record in _rounds(run)}
    return ", ".join(f"round {number} ({times} attempts)" for number, times in tried.items() if times > 1)


def endings(experiment: Experiment) -> list[str]:
    """Return per run why it ended early, save at the privacy cap, and which model was kept."""
    return by_run((run, "; ".join(_ending(run, experiment.rounds))) for run in experiment.runs.values())


def _ending(run: Run, rounds: int) -> list[str]:
    said = []
    if run.stopped and not run.capped:
        said.append(f"training ended after round {run.last_round} of {rounds}, {run.stopped}")
    if (best := run.outcome.get("best_round")) is not None:
        said.append(f"the model of round {best} was kept, the best by {run.outcome['monitor']}")
    return said


def notices(experiment: Experiment) -> list[str]:
    """Return what runs told while they ran."""
    return by_run(
        (run, notice) for run in experiment.runs.values() for notice in run.outcome.get("notices", ())
    )


def by_run(said: Iterable[tuple[Run, str]]) -> list[str]:
    """Return what is said of runs, once for all of which the same is said; an empty text says nothing."""
    told: dict[str, list[str]] = {}
    for run, text in said:
        if text:
            told.setdefault(text, []).append(title(run))
    return [f"{'; '.join(who)}: {text}" for text, who in told.items()]


def title(run: Run) -> str:
    """Return what a run is called on the page."""
    return f"{run.arm}, seed {run.seed}"
