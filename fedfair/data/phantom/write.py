"""Trees of synthetic patients on the disk, in the layouts of the data sets that a reader knows."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedfair.data.options import as_integer
from fedfair.data.phantom.devices import Bytes
from fedfair.data.phantom.layouts import SPLITS, Entry, Layout, layout_of, write_tables
from fedfair.data.phantom.notes import note_of
from fedfair.data.phantom.patients import draw_patients
from fedfair.data.phantom.pictures import oct_of, slo_of
from fedfair.data.phantom.spec import MODALITIES, PhantomSpec
from fedfair.errors import DataError
from fedfair.processes import start_worker, starting_workers
from fedfair.seeding import numpy_generator

_AT_ONCE = 8
NOTICE, SYNTHETIC = "README.txt", "SYNTHETIC"
"""The file beside the records, and its first line."""

_README = f"""{SYNTHETIC}

Nobody is behind these files. The program fedfair drew them: preset {{preset}}, seed {{seed}},
{{count}} patients. They have the layout of {{layout}}, and are calibrated to published summary
statistics, not to pixels of patients. Differences between groups are parameters of the simulation,
not findings. Not for diagnosis.
synthetic_truth.csv holds the true label, damage and site of each patient.
"""


class _Task(NamedTuple):
    """What a process writes: patients of one tree."""

    entries: Sequence[Entry]
    layout: Layout
    spec: PhantomSpec
    seed: int
    size: int
    slices: int
    folder: Path


def write_tree(
    preset: str,
    size: int,
    slices: int,
    patients: int | None,
    seed: int,
    folder: str | Path,
    on_patient: Callable[[], object] = lambda: None,
    workers: int = 1,
    overrides: Mapping[str, object] | None = None,
) -> int:
    """Write a tree of synthetic patients and return how many there are.

    Its bytes depend on all but `on_patient` and `workers`. It is written beside itself, as `folder` with
    ``.partial`` at its end, and renamed when it is whole.

    Parameters
    ----------
    preset : str
        A name in `PRESETS`; it decides the layout.
    size, slices : int
        Pixels across an image (at least 16), and B-scans.
    patients : int | None
        Per site; None: what the preset says.
    seed : int
        The seed.
    folder : str | Path
        Must be empty or not exist.
    on_patient : Callable[[], object]
        Called once for each patient that is written.
    workers : int
        Processes.
    overrides : Mapping[str, object] | None
        Knobs, as `PhantomSpec.from_options` reads them.

    Raises
    ------
    ConfigError
        If an argument is out of range.
    DataError
        If there is something in the folder, or an unfinished tree beside it.
    """
    spec = PhantomSpec.from_options({**(overrides or {}), "preset": preset}, seed)
    if patients is not None:
        spec = spec.with_patients(as_integer(patients, "patients", 1))
    for name, value, least in (("size", size, 16), ("slices", slices, 1), ("workers", workers, 1)):
        as_integer(value, name, least)
    folder, layout = Path(folder), layout_of(preset)
    partial = _begun(folder, layout)
    entries = _entries(spec, layout, seed)
    tasks = [
        _Task(entries[start : start + _AT_ONCE], layout, spec, seed, size, slices, partial)
        for start in range(0, len(entries), _AT_ONCE)
    ]
    for written in _run(tasks, workers):
        for _ in range(written):
            on_patient()
    notes = [] if layout.name != "fairvlmed" else [_note(entry, spec, seed) for entry in entries]
    write_tables(layout, partial, entries, notes, tuple(spec.sites))
    notice = _README.format(preset=preset, seed=seed, count=len(entries), layout=layout.name)
    (partial / NOTICE).write_text(notice, encoding="utf-8")
    partial.replace(folder)
    return len(entries)


def _begun(folder: Path, layout: Layout) -> Path:
    """Return the folder to write in, with its subfolders and the notice that all is synthetic."""
    partial = folder.with_name(folder.name + ".partial")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(
            f"`folder` must be empty or not exist, got {str(folder)!r}; choose another or empty it"
        )
    if partial.exists():
        raise DataError(f"`folder` must have no unfinished tree beside it, got {str(partial)!r}; remove that")
    for subfolder in set(layout.folders.values()):
        (partial / subfolder).mkdir(parents=True)
    return partial


def _entries(spec: PhantomSpec, layout: Layout, seed: int) -> list[Entry]:
    """Return all patients in an order that mixes the sites, numbered from 1 and split along it."""
    sites = {site: draw_patients(spec, seed, site) for site in spec.sites}
    places = [(site, row) for site, own in sites.items() for row in range(len(own))]
    order = numpy_generator(seed, "phantom", "tree").permutation(len(places))
    ends = np.rint(np.cumsum(layout.shares) * len(places))
    entries = []
    for number, place in enumerate(order.tolist()):
        site, row = places[place]
        split = SPLITS[int(np.searchsorted(ends, number, side="right"))]
        entries.append(Entry(f"data_{number + 1:05d}.npz", split, site, sites[site].take(np.array([row])), 0))
    return entries


def _run(tasks: Sequence[_Task], workers: int) -> Iterator[int]:
    """Write the patients of each task, and yield how many."""
    if workers == 1:
        yield from map(_write, tasks)
        return
    # Workers must not inherit threads or generators from this process.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        with starting_workers():
            futures = [pool.submit(_write, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _write(task: _Task) -> int:
    for entry in task.entries:
        images = {name: _image(task, entry, name) for name in task.layout.arrays}
        members = task.layout.members(entry, images)
        np.savez(task.folder / task.layout.file(entry), allow_pickle=False, **members)
    return len(task.entries)


def _image(task: _Task, entry: Entry, modality: str) -> Bytes:
    """Return an image; it has length 0 if the patient lacks it."""
    patients, row, site = entry.patients, entry.row, entry.site
    missing = bool(patients.missing[row, MODALITIES.index(modality)])
    if modality == "slo":
        if missing:
            return np.zeros((0, task.size), np.uint8)
        return slo_of(patients, row, task.spec, task.seed, site, task.size)
    if missing:
        return np.zeros((0, task.size, task.size), np.uint8)
    return oct_of(patients, row, task.spec, task.seed, site, task.size, task.slices)


def _note(entry: Entry, spec: PhantomSpec, seed: int) -> str:
    """Return a note; it is empty if the patient lacks it."""
    if entry.patients.missing[entry.row, MODALITIES.index("note")]:
        return ""
    return note_of(entry.patients, entry.row, spec, seed, entry.site)
