"""The record of one run: a line per round, checkpoints, the final evaluation, the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from fedfair.assessment import EXACT, assess, json_safe, mean_loss
from fedfair.checkpoint import CheckpointStore
from fedfair.checkpoint import Made as Made  # noqa: PLC0414, part of a record: the apps take it from here
from fedfair.coefficients import Coefficients
from fedfair.config import Config
from fedfair.data.crossing import axes, group_names, known
from fedfair.data.schema import Schema
from fedfair.files import append_line, atomic_file, write_atomically
from fedfair.plain import to_plain
from fedfair.resolution import resolved_auc
from fedfair.signals import Signals

ROUNDS, EVALUATION, CHECKPOINTS = "rounds.jsonl", "evaluation.npz", "checkpoints"
MODEL, MOMENTS, PRIVACY = "model.pt", "moments.npz", "privacy.json"
ASKED, OUTCOME = "asked.txt", "outcome.json"


@dataclass(frozen=True)
class RoundRecord:
    """What is known of the global model after `round` rounds (0 is the initial model).

    Attributes
    ----------
    round : int
        Rounds that made the model.
    train_loss : float
        Pooled mean cross-entropy of the fused head on training records, in nats; NaN if not known.
    test : Mapping[str, Any]
        Metrics by the modulated attribute on the pooled test records (validation records, if there are
        any), with counts; empty if nothing was released.
    made : Made
        What made the model.
    seconds : float
        Time since the last record.
    """

    round: int
    train_loss: float
    test: Mapping[str, Any]
    made: Made
    seconds: float

    def to_json(self) -> str:
        """Return one line of JSON; NaN (not estimable) becomes null."""
        flat = {k: v for k, v in vars(self).items() if k != "made"} | vars(self.made)
        return json.dumps(to_plain(flat), allow_nan=False)


def train_loss(signals: Signals | None) -> float:
    """Return the mean cross-entropy of the fused head; NaN without signals or records, or under noise."""
    return float("nan") if signals is None else mean_loss(signals)


def test_metrics(
    config: Config, schema: Schema, pooled: Signals, by_site: Mapping[str, Signals]
) -> dict[str, Any]:
    """Return the metrics of one model on the pooled test records, and each site's AUC."""
    modalities, least = tuple(schema.modalities), config.report.group_min
    return metric_record(pooled, by_site, schema.attributes, config.data.attribute, modalities, least)


def metric_record(
    pooled: Signals,
    by_site: Mapping[str, Signals],
    attributes: Mapping[str, Sequence[str]],
    attribute: str,
    modalities: Sequence[str],
    min_count: float,
) -> dict[str, Any]:
    """Return one model's metrics by one attribute, and each site's AUC, as a line of the records has them.

    Parameters
    ----------
    pooled, by_site : Signals, Mapping[str, Signals]
        By product cell, of all sites together and of each.
    attributes, attribute
        Group names in the order of the product cells, and by which attribute or crossing.
    modalities, min_count
        Names, and records of a class below which an AUC is not estimable.
    """
    cells = tuple(len(groups) for groups in attributes.values())
    compared = known(attributes, attribute)
    table = assess(pooled, cells, axes(attributes, attribute), min_count, compared)
    aucs = {site: json_safe(_fused_auc(signals, min_count)) for site, signals in by_site.items()}
    return {**table.to_dict(modalities, group_names(attributes, attribute)), "site_auc": aucs}


def _fused_auc(signals: Signals, min_count: float) -> float:
    """Return the fused head's AUC over all groups, NaN for not estimable."""
    noise = (signals.variance or EXACT).histograms * signals.num_groups
    return float(resolved_auc(signals.histograms[0].sum(0), min_count, noise))


def coefficient_table(coefficients: Coefficients) -> dict[str, Any]:
    """Return coefficients as plain lists."""
    return {
        "fused": coefficients.fused.tolist(),
        "unimodal": coefficients.unimodal.tolist(),
        "live": coefficients.live,
    }


class RunFolder:
    """Writes one run (one seed of one method) so that a crash at any moment loses at most a round.

    Parameters
    ----------
    path : Path
        Created.
    keep : int
        Checkpoints to keep, at least 2.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.checkpoints = CheckpointStore(path / CHECKPOINTS, keep)

    def save_config(self, config: Config) -> None:
        """Save the effective configuration."""
        text = yaml.safe_dump(config.to_dict(), sort_keys=False)
        write_atomically(self.path / "config.yaml", text.encode())

    def append(self, record: RoundRecord) -> None:
        """Append one line to the round records."""
        append_line(self.path / ROUNDS, record.to_json())

    def note_asked(self, number: int) -> None:
        """Note, before it is sent, that sites are asked for round `number`."""
        self._note(number)

    def note_refused(self, number: int) -> None:
        """Note that every site refused round `number`, so that nothing was released in it."""
        self._note(-number)

    def _note(self, number: int) -> None:
        file = self.path / ASKED
        write_atomically(file, ((file.read_bytes() if file.is_file() else b"") + b"%d\n" % number))

    def asked(self) -> list[int]:
        """Return the rounds that a site may have answered, repeated ones as often as they were asked."""
        file = self.path / ASKED
        result: list[int] = []
        for number in map(int, file.read_text(encoding="utf-8").split() if file.is_file() else []):
            if number > 0:
                result.append(number)
            else:
                result.remove(-number)
        return result

    def truncate(self, rounds: int) -> None:
        """Keep only the records of models made by at most `rounds` rounds."""
        file = self.path / ROUNDS
        if file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            # A line without its end was cut by a crash.
            kept = [x for x in lines if x.endswith("\n") and json.loads(x)["round"] <= rounds]
            write_atomically(file, "".join(kept).encode())

    def save_evaluation(
        self,
        schema: Schema,
        train_counts: Mapping[str, NDArray[np.float64] | None],
        test: Mapping[str, Signals],
    ) -> None:
        """Save the final model's test signals and the training counts, sites in the schema's order.

        Without test signals nothing is saved; training counts that nobody may know are zeros.
        """
        if not test:
            return
        some = next(iter(test.values()))
        empty = Signals(
            np.zeros_like(some.counts), np.zeros_like(some.losses), np.zeros_like(some.histograms)
        )
        # The sum of all sites, where nothing of one is known, stands for them.
        sites = schema.sites if any(site in test for site in schema.sites) else tuple(test)
        ordered = [test.get(site, empty) for site in sites]
        with atomic_file(self.path / EVALUATION) as file:
            np.savez_compressed(
                file,
                counts=np.stack([s.counts for s in ordered]),
                losses=np.stack([s.losses for s in ordered]),
                histograms=np.stack([s.histograms for s in ordered]),
                train_counts=np.stack([_known(train_counts.get(site), empty.counts) for site in sites]),
                # [K, 3] noise variance per cell of histograms, losses, head gradients; zeros if exact.
                variance=np.array([s.variance or (0.0, 0.0, 0.0) for s in ordered]),
            )

    def save_outcome(
        self, stopped: str | None, best_round: int | None, monitor: str | None, notices: Sequence[str]
    ) -> None:
        """Save how the run ended.

        Parameters
        ----------
        stopped : str | None
            Why training ended before the last round.
        best_round : int | None
            Rounds that made the best model by `monitor`.
        monitor : str | None
            The figure by which the model was chosen; None if the last one was taken.
        notices : Sequence[str]
            What the user was told.
        """
        outcome = {"stopped": stopped, "monitor": monitor, "best_round": best_round, "notices": list(notices)}
        write_atomically(self.path / OUTCOME, json.dumps(outcome, indent=1).encode())

    def save_privacy(self, account: Mapping[str, Any]) -> None:
        """Save what the run promised and spent."""
        text = json.dumps(to_plain(dict(account)), indent=1, allow_nan=False)
        write_atomically(self.path / PRIVACY, text.encode())

    def save_model(
        self, state: Mapping[str, torch.Tensor], moments: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """Save the final model as a plain torch state dict, and the moments its inputs need."""
        with atomic_file(self.path / MOMENTS) as pooled:
            np.savez(pooled, **dict(moments))  # type: ignore[arg-type]
        with atomic_file(self.path / MODEL) as model:
            torch.save(dict(state), model)


def _known(counts: NDArray[np.float64] | None, otherwise: NDArray[np.float64]) -> NDArray[np.float64]:
    return otherwise if counts is None else counts


def newest_folder(parent: Path) -> Path | None:
    """Return the last of ``parent/001``, ``parent/002`` ..., or None if there is none."""
    return max(
        (p for p in parent.glob("[0-9]*") if p.name.isdigit()), key=lambda p: int(p.name), default=None
    )


def next_folder(parent: Path) -> Path:
    """Return the first of ``parent/001``, ``parent/002`` ... after all that exist."""
    last = newest_folder(parent)
    return parent / f"{1 if last is None else int(last.name) + 1:03d}"
