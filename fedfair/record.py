"""The record of one run: a line per round, an atomic checkpoint, the final evaluation."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from fedfair.assessment import EXACT, assess, mean_loss
from fedfair.coefficients import Coefficients, FairnessTerm, LossTerms
from fedfair.config import Config
from fedfair.coordinator import Coordinator
from fedfair.data.schema import Schema
from fedfair.errors import RunError
from fedfair.plain import first_difference
from fedfair.resolution import resolved_auc
from fedfair.signals import Signals
from fedfair.wire import has_signals, pack_signals, unpack_signals

ROUNDS, EVALUATION, CHECKPOINT = "rounds.jsonl", "evaluation.npz", "checkpoint.npz"
MODEL, MOMENTS, PRIVACY = "model.pt", "moments.npz", "privacy.json"
ASKED = "asked.txt"


@dataclass(frozen=True)
class Made:
    """What made a model; empty for the initial one.

    Attributes
    ----------
    coefficients : Mapping[str, Any] | None
        The coefficients that were applied.
    diagnostics : Mapping[str, Any]
        What produced the round's coefficients.
    sites : Sequence[str]
        Sites that took part.
    failed : Mapping[str, str]
        Nodes that failed, with their own error text.
    """

    coefficients: Mapping[str, Any] | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    sites: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)


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
        Metrics by the modulated attribute on the pooled test records, with counts; empty if nothing
        was released.
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
        return json.dumps(_plain(flat), allow_nan=False)


def train_loss(signals: Signals | None) -> float:
    """Return the mean cross-entropy of the fused head; NaN without signals or records, or under noise."""
    return float("nan") if signals is None else mean_loss(signals)


def test_metrics(
    config: Config, schema: Schema, pooled: Signals, by_site: Mapping[str, Signals]
) -> dict[str, Any]:
    """Return the metrics of one model on the pooled test records, and each site's AUC."""
    cells = tuple(len(groups) for groups in schema.attributes.values())
    axis = list(schema.attributes).index(config.data.attribute)
    table = assess(pooled, cells, axis, config.report.group_min)
    groups = schema.attributes[config.data.attribute]
    return {
        **table.to_dict(tuple(schema.modalities), groups),
        "site_auc": {site: _site_auc(signals, config.report.group_min) for site, signals in by_site.items()},
    }


def _site_auc(signals: Signals, min_count: float) -> float:
    """Return the AUC of one site's records, NaN for not estimable."""
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
    """Writes one run (one seed of one method) so that a crash at any moment loses at most a round."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    def save_config(self, config: Config) -> None:
        """Save the effective configuration."""
        text = yaml.safe_dump(config.to_dict(), sort_keys=False)
        _write_atomically(self.path / "config.yaml", text.encode())

    def append(self, record: RoundRecord) -> None:
        """Append one line to the round records."""
        with (self.path / ROUNDS).open("a", encoding="utf-8") as file:
            file.write(record.to_json() + "\n")

    def note_asked(self, number: int) -> None:
        """Note, before it is sent, that sites are asked for round `number`."""
        self._note(number)

    def note_refused(self, number: int) -> None:
        """Note that every site refused round `number`, so that nothing was released in it."""
        self._note(-number)

    def _note(self, number: int) -> None:
        file = self.path / ASKED
        _write_atomically(file, ((file.read_bytes() if file.is_file() else b"") + b"%d\n" % number))

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
            _write_atomically(file, "".join(kept).encode())

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
        ordered = [test.get(site, empty) for site in schema.sites]
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            counts=np.stack([s.counts for s in ordered]),
            losses=np.stack([s.losses for s in ordered]),
            histograms=np.stack([s.histograms for s in ordered]),
            train_counts=np.stack([_known(train_counts.get(site), empty.counts) for site in schema.sites]),
            # [K, 3] noise variance per cell of histograms, losses, head gradients; zeros if exact.
            variance=np.array([s.variance or (0.0, 0.0, 0.0) for s in ordered]),
        )
        _write_atomically(self.path / EVALUATION, buffer.getvalue())

    def save_checkpoint(self, coordinator: Coordinator, made: Made) -> None:
        """Save the coordinator's whole state; the file is replaced as a whole or not at all."""
        arrays = _state(coordinator)
        meta = {
            "round": coordinator.round,
            "config": coordinator.config.to_dict(),
            "made": _plain(vars(made)),
            "surveyed": dict(coordinator.surveyed),
        }
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        body = buffer.getvalue()
        _write_atomically(self.path / CHECKPOINT, hashlib.sha256(body).digest() + body)

    def load_checkpoint(self, coordinator: Coordinator) -> Made | None:
        """Put a saved state into the coordinator; return what made its model, or None if there is none.

        Raises
        ------
        RunError
            If the file is damaged or belongs to another configuration.
        """
        file = self.path / CHECKPOINT
        if not file.is_file():
            return None
        raw = file.read_bytes()
        if hashlib.sha256(raw[32:]).digest() != raw[:32]:
            raise RunError(f"{file} must be an intact checkpoint, its checksum differs; start a new run")
        with np.load(io.BytesIO(raw[32:]), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        meta = json.loads(bytes(arrays.pop("meta")))
        if key := first_difference(meta["config"], coordinator.config.to_dict()):
            raise RunError(f"`{key}` must be as in the run to resume, it differs; start a new run instead")
        _restore(coordinator, arrays, meta["round"])
        coordinator.surveyed = meta["surveyed"]
        return Made(**meta["made"])

    def save_privacy(self, account: Mapping[str, Any]) -> None:
        """Save what the run promised and spent."""
        text = json.dumps(_plain(dict(account)), indent=1, allow_nan=False)
        _write_atomically(self.path / PRIVACY, text.encode())

    def save_model(
        self, state: Mapping[str, torch.Tensor], moments: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """Save the final model as a plain torch state dict, and the moments its inputs need."""
        model, pooled = io.BytesIO(), io.BytesIO()
        torch.save(dict(state), model)
        np.savez(pooled, **dict(moments))  # type: ignore[arg-type]
        _write_atomically(self.path / MOMENTS, pooled.getvalue())
        _write_atomically(self.path / MODEL, model.getvalue())


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


def _state(coordinator: Coordinator) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {f"model/{k}": v for k, v in coordinator.model.items()}
    arrays |= {f"velocity/{k}": v for k, v in (coordinator.velocity or {}).items()}
    arrays |= {f"memory/{k}": v for k, v in coordinator.memory.items()}
    arrays |= {f"moments/{k}": v for k, v in coordinator.moments.items()}
    arrays["fused"], arrays["unimodal"] = coordinator.coefficients.fused, coordinator.coefficients.unimodal
    terms = coordinator.terms
    if terms.direction is not None:
        arrays["direction"] = terms.direction
    if terms.fairness is not None:
        arrays["slopes"], arrays["histograms"] = terms.fairness.slopes, terms.fairness.histograms
        arrays["temperature"] = np.array(terms.fairness.temperature)
    if coordinator.released is not None:
        arrays |= pack_signals("released", coordinator.released)
    return arrays


def _restore(coordinator: Coordinator, arrays: Mapping[str, NDArray[Any]], round_number: int) -> None:
    def part(prefix: str) -> dict[str, NDArray[Any]]:
        return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}

    coordinator.model = part("model/")
    if coordinator.velocity is not None:
        coordinator.velocity = part("velocity/")
    coordinator.memory = part("memory/")
    coordinator.moments = part("moments/")
    coordinator.coefficients = Coefficients(
        arrays["fused"], arrays["unimodal"], coordinator.config.method.live
    )
    fairness = None
    if "slopes" in arrays:
        fairness = FairnessTerm(arrays["slopes"], arrays["histograms"], float(arrays["temperature"]))
    coordinator.terms = LossTerms(arrays.get("direction"), fairness)
    if has_signals("released", arrays):
        coordinator.released = unpack_signals("released", arrays)
    coordinator.round = round_number


def _write_atomically(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _plain(value: object) -> object:
    """Return JSON data: arrays become lists, NaN becomes None."""
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
