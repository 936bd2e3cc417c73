"""Checkpoints: the coordinator's whole state after a committed round, so that a run can go on from it.

A file is the SHA-256 of its body, then the body, an archive of arrays: `meta` is JSON text, and the
others are as on the wire. They give the state back to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedRandom, BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedfair.config import Config
from fedfair.coordinator import Coordinator
from fedfair.errors import RunError
from fedfair.files import atomic_file, sync_folder
from fedfair.plain import first_difference, to_plain
from fedfair.wire import has_signals, pack_download, pack_signals, unpack_download, unpack_signals

OLD_LAYOUT, DAMAGED = "checkpoint.npz", ".damaged"
DIGEST_SIZE = hashlib.sha256().digest_size
Arrays = dict[str, NDArray[Any]]


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
        Sites or nodes that failed, with their own error text.
    attempts : int
        How often the round was tried; 0 for the initial model.
    """

    coefficients: Mapping[str, Any] | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    sites: Sequence[str] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 0


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds beside the coordinator's state.

    Attributes
    ----------
    made : Made
        What made the model, as plain data.
    extra : Mapping[str, Any]
        What was saved with it.
    notices : tuple[str, ...]
        What the user should know: which checkpoints are damaged, and which is used instead.
    """

    made: Made
    extra: Mapping[str, Any]
    notices: tuple[str, ...] = ()


class CheckpointStore:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : Path
        Where they lie; created by the first save.
    keep : int
        How many of the newest to keep, at least 2: one may be damaged. The best one is kept besides.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def save(
        self, coordinator: Coordinator, made: Made, extra: Mapping[str, Any], best: int | None = None
    ) -> Path:
        """Save the coordinator's whole state, and `extra`, which must be plain JSON data.

        Of the models that were marked as the best, that of round `best` is kept: until this returns,
        a crash goes back to a state for which an earlier one is.
        """
        arrays = _state(coordinator)
        meta = {
            "round": coordinator.round,
            "config_digest": coordinator.config.digest(),
            "config": coordinator.config.to_dict(),
            "made": to_plain(vars(made)),
            "surveyed": dict(coordinator.surveyed),
            "extra": dict(extra),
        }
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync_folder(self.folder.parent)
        path = self._path(coordinator.round)
        # Never as a whole in memory: beside a large model there may be no room for its copies.
        with atomic_file(path) as file:
            file.write(bytes(DIGEST_SIZE))
            np.savez(file, **arrays)  # type: ignore[arg-type]
            digest = _digest(file)
            file.seek(0)
            file.write(digest)
        for old in self._rounds()[: -self._keep]:
            old.unlink()
        for old in self.folder.glob("best-*.npz"):
            if best is not None and old != self._best(best):
                old.unlink()
        return path

    def load(self, coordinator: Coordinator) -> Loaded | None:
        """Put the newest intact state into the coordinator; None if nothing was saved.

        Damaged files are set aside, but for the case that there is no intact one: then they stay, so that
        the next start does not take the run for a new one.

        Raises
        ------
        RunError
            If all are damaged, or the state belongs to another configuration or an older version.
        """
        if (old := self.folder.parent / OLD_LAYOUT).is_file():
            raise RunError(f"{old} is of version 0.1, which this version cannot resume; start a new run")
        damaged: list[Path] = []
        for path in reversed(self._rounds()):
            arrays = _read(path)
            if arrays is None:
                damaged.append(path)
                continue
            loaded = _restore(coordinator, arrays, path)
            notices = tuple(_set_aside(bad, path) for bad in damaged)
            return Loaded(loaded.made, loaded.extra, notices)
        if damaged:
            names = ", ".join(path.name for path in damaged)
            raise RunError(
                f"one checkpoint in {self.folder} must be intact, all are damaged ({names}); "
                "restore one from a backup, or start a new run"
            )
        return None

    def mark_best(self, number: int) -> None:
        """Keep the checkpoint of round `number` as that of the best model, beside the newest ones.

        A copy: a link would share the damage of a bad block.

        Raises
        ------
        RunError
            If it is not there or damaged.
        """
        path = self._path(number)
        if not _intact(path):
            raise RunError(f"{path} must be an intact checkpoint to be kept as the best, it is not")
        with path.open("rb") as source, atomic_file(self._best(number)) as copy:
            shutil.copyfileobj(source, copy)

    def load_best(self, coordinator: Coordinator, number: int) -> Loaded:
        """Put the state of the best model, that of round `number`, into the coordinator.

        Raises
        ------
        RunError
            If there is none, it is damaged, or it belongs to another configuration.
        """
        path = self._best(number)
        arrays = _read(path)
        if arrays is None:
            raise RunError(f"{path} must be an intact checkpoint of the best model, it is not")
        return _restore(coordinator, arrays, path)

    def _path(self, number: int) -> Path:
        return self.folder / f"round-{number:04d}.npz"

    def _best(self, number: int) -> Path:
        return self.folder / f"best-{number:04d}.npz"

    def _rounds(self) -> list[Path]:
        """Return the checkpoints of rounds, oldest first."""
        numbered = {path.stem.partition("-")[2]: path for path in self.folder.glob("round-*.npz")}
        # By number: round 10000 comes before round 9999 in the alphabet.
        return [numbered[number] for number in sorted(filter(str.isdigit, numbered), key=int)]


def _set_aside(path: Path, instead: Path) -> str:
    aside = path.with_name(path.name + DAMAGED)
    path.replace(aside)
    sync_folder(path.parent)
    return f"checkpoint {path.name} is damaged (set aside as {aside.name}); {instead.name} is used instead"


def _digest(file: BufferedRandom | BufferedReader) -> bytes:
    """Return the digest of all that follows the place for it."""
    file.seek(DIGEST_SIZE)
    return hashlib.file_digest(file, "sha256").digest()


def _intact(path: Path) -> bool:
    """Whether a checkpoint is there as it was written."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(DIGEST_SIZE) == _digest(file)


def _read(path: Path) -> Arrays | None:
    """Return the arrays of a checkpoint, or None if it is damaged or not there."""
    if not _intact(path):
        return None
    try:
        with path.open("rb") as file:
            file.seek(DIGEST_SIZE)
            with np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in stored.files}
    except (ValueError, EOFError, zipfile.BadZipFile):
        return None


def _state(coordinator: Coordinator) -> Arrays:
    arrays: Arrays = {**pack_download(coordinator.download())}
    arrays |= {f"velocity/{name}": value for name, value in (coordinator.velocity or {}).items()}
    arrays |= {f"memory/{name}": value for name, value in coordinator.memory.items()}
    if coordinator.released is not None:
        arrays |= pack_signals("released", coordinator.released)
    return arrays


def _restore(coordinator: Coordinator, arrays: Arrays, path: Path) -> Loaded:
    """Put a saved state into the coordinator, whatever state it is in."""
    meta = json.loads(bytes(arrays["meta"]))
    _check_config(meta, coordinator.config)
    state = unpack_download(arrays)
    shapes = {name: value.shape for name, value in coordinator.model.items()}
    if shapes != {name: value.shape for name, value in state.model.items()}:
        raise RunError(f"the model must be as in the run to resume, its blocks differ from those of {path}")

    def part(prefix: str) -> Arrays:
        return {name[len(prefix) :]: arrays[name] for name in arrays if name.startswith(prefix)}

    coordinator.model, coordinator.moments = dict(state.model), dict(state.moments)
    coordinator.coefficients, coordinator.terms = state.coefficients, state.terms
    if coordinator.velocity is not None:
        coordinator.velocity = part("velocity/")
    coordinator.memory = part("memory/")
    has_released = has_signals("released", arrays)
    coordinator.released = unpack_signals("released", arrays) if has_released else None
    coordinator.round, coordinator.surveyed = meta["round"], meta["surveyed"]
    return Loaded(Made(**meta["made"]), meta["extra"])


def _check_config(meta: Mapping[str, Any], config: Config) -> None:
    if meta["config_digest"] != config.digest():
        key = first_difference(meta["config"], config.to_dict()) or "config"
        raise RunError(f"`{key}` must be as in the run to resume, it differs; start a new run instead")
