"""What a run far away writes down, told like one in this process."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfair.record import ROUNDS, Made, RoundRecord

logger = logging.getLogger("fedfair.rounds")


class RoundNews:
    """Logs each record of a run's folder once, as the strategy does in its own process.

    Parameters
    ----------
    folder : Path
        The run's; what it holds already is no news.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / ROUNDS
        self._last = max((record["round"] for record in self._records()), default=-1)

    def tell(self) -> None:
        """Log what is new; a resumed run writes its last records again, which is not."""
        for plain in self._records():
            if plain["round"] > self._last:
                self._last = plain["round"]
                for site, reason in plain["failed"].items():
                    logger.warning("site %s failed: %s", site, reason)
                logger.info("round %d", plain["round"], extra={"round_record": _record(plain)})

    def _records(self) -> list[dict[str, Any]]:
        text = self._file.read_text(encoding="utf-8") if self._file.is_file() else ""
        # The last line may be half written.
        return [json.loads(line) for line in text.split("\n")[:-1]]


def _record(plain: Mapping[str, Any]) -> RoundRecord:
    made = Made(
        plain["coefficients"], plain["diagnostics"], plain["sites"], plain["failed"], plain["attempts"]
    )
    loss = math.nan if plain["train_loss"] is None else float(plain["train_loss"])
    return RoundRecord(plain["round"], loss, plain["test"], made, plain["seconds"])
