"""Whether a run's messages have room at the centre, asked before the first one is sent.

The factors are what `benchmarks/large_models.py` measured, see docs/performance.md.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fedfair.errors import RunError, counted

# In messages: Flower takes an answer apart and puts it together again, one answer at a time.
_TAKEN_APART = 3.0
# In bytes held: all messages of a round lie in the SuperLink until they are fetched.
_KEPT = 2.0
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Demand:
    """What a round needs at the centre beside the model itself, in bytes.

    Attributes
    ----------
    model : int
        Of what is sent to a site.
    answer : int
        Of the largest answer of one site.
    sites : int
        How many answer.
    """

    model: int
    answer: int
    sites: int

    @property
    def link(self) -> float:
        """Memory of the SuperLink."""
        return _KEPT * (self.model + self.sites * self.answer)

    @property
    def server(self) -> float:
        """Memory of the ServerApp: the message, the new model, and one answer."""
        return 2 * self.model + _TAKEN_APART * self.answer

    @property
    def disk(self) -> int:
        """Of the run's folder: all answers until the round is committed, and its checkpoint."""
        return self.sites * self.answer + self.model


def require_room(demand: Demand, folder: Path) -> None:
    """Refuse a run whose messages this machine cannot hold.

    Parameters
    ----------
    demand : Demand
        Of a round. The SuperLink is taken to be on this machine.
    folder : Path
        The run's; it exists.

    Raises
    ------
    RunError
        With what is needed, and what there is.
    """
    needed, free = demand.link + demand.server, _available()
    less = "`training.mode: weights` sends one row instead of one per group"
    asked = f"a round of {counted(demand.sites, 'site')} with answers of {_gigabytes(demand.answer)}"
    if free is not None and needed > free:
        raise RunError(
            f"the centre must have {_gigabytes(needed)} of memory free for {asked}, "
            f"got {_gigabytes(free)}; {less}"
        )
    if demand.disk > (room := shutil.disk_usage(folder).free):
        raise RunError(
            f"the disk of {folder} must have {_gigabytes(demand.disk)} free for {asked}, "
            f"got {_gigabytes(room)}; {less}"
        )


def _available() -> int | None:
    """Return the bytes of memory that new programs can have; None where the system does not tell."""
    if not _MEMORY.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMORY.read_text(encoding="ascii").splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2g} GB"
