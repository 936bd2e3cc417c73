"""How fast the phantom draws patients; as a program, the figures of docs/phantom.md.

``python -m benchmarks.phantom FOLDER`` writes ``phantom-slo.png``, ``phantom-oct.png`` and
``phantom-devices.png``.
"""

from __future__ import annotations

import io
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks._table import Table, milliseconds
from benchmarks._timing import stopwatch
from fedfair.data.phantom import PhantomAdapter, PhantomSpec
from fedfair.data.phantom.devices import DEVICES, Bytes
from fedfair.data.phantom.oct import oct_volume
from fedfair.data.phantom.patients import Patients, draw_patients
from fedfair.data.phantom.pictures import eye_of
from fedfair.data.phantom.slo import slo_image
from fedfair.data.phantom.spec import RACES

TURNS = 5
# Pixels, B-scans, and patients that a process draws in a turn.
SHAPES = ((32, 4, 600), (64, 8, 300), (200, 32, 6))

# Of the figures.
SIZE, SLICES, SEED = 200, 9, 3
STAGES = ((0.0, "healthy"), (4.0, "mild loss, 4 dB"), (18.0, "severe loss, 18 dB"))


def tables() -> Iterator[Table]:
    """Yield the patients that one and two processes draw in a second."""
    rows: list[tuple[str, ...]] = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(draw, [(32, 4, 10)] * 8))  # the imports
        for size, slices, patients in SHAPES:
            task = (size, slices, patients)
            draw(task)
            alone = float(np.median([stopwatch(partial(draw, task)) for _ in range(TURNS)]))
            both = float(np.median([stopwatch(partial(_both, pool, task)) for _ in range(TURNS)]))
            rate = (f"{patients / alone:.0f}", f"{2 * patients / both:.0f}")
            rows.append((f"{size} px, {slices} B-scans", milliseconds(alone / patients), *rate))
    columns = ("SLO and OCT", "a patient", "patients/s, one process", "patients/s, two processes")
    yield Table("phantom", columns, rows, "phantom.md")


def draw(task: tuple[int, int, int]) -> int:
    """Draw one site's patients with both images."""
    size, slices, patients = task
    options = {"size": size, "slices": slices, "patients": patients, "sites": 1}
    return len(PhantomAdapter(options, 0).load("site-1"))


def _both(pool: ProcessPoolExecutor, task: tuple[int, int, int]) -> None:
    list(pool.map(draw, [task] * 2))


def figures(folder: Path) -> None:
    """Write the figures: three stages of disease by race, and one eye by three devices."""
    eyes = [_typical(race) for race in range(len(RACES))]
    stages = [name for _, name in STAGES]
    slo = [[_slo(eye, damage) for damage, _ in STAGES] for eye in eyes]
    _save(_grid(slo, RACES, stages, "SLO fundus images"), folder / "phantom-slo.png")
    scans = [[scan for damage, _ in STAGES for scan in _scans(eye, damage)] for eye in eyes]
    places = [f"{stage}\n{place}" for stage in stages for place in ("through the disc", "above it")]
    _save(_grid(scans, RACES, places, "OCT B-scans"), folder / "phantom-oct.png")
    damage, white = STAGES[1][0], eyes[-1]
    by_device = [[_slo(white, damage, name), *_scans(white, damage, name)] for name in DEVICES]
    columns = ["SLO", "OCT through the disc", "OCT above it"]
    names = [f"device {name}" for name in DEVICES]
    figure = _grid(by_device, names, columns, "One eye with mild loss")
    _save(figure, folder / "phantom-devices.png")


def _typical(race: int) -> tuple[PhantomSpec, Patients]:
    """Return a patient of about 60 years whose disc, cup and fundus are about the mean of the race."""
    spec = PhantomSpec.from_options({"sites": {"figure": {"race": [float(race == k) for k in range(3)]}}})
    patients = draw_patients(spec, SEED, "figure", range(640))
    traits = (
        patients.disc_area,
        patients.cdr,
        patients.pigment,
        patients.rnfl,
        patients.age,
        patients.focality,
    )
    scores = [((trait - trait.mean()) / trait.std()) ** 2 for trait in traits]
    return spec, patients.take(np.array([int(np.argmin(np.sum(scores, axis=0)))]))


def _slo(chosen: tuple[PhantomSpec, Patients], damage: float, device: str = "A") -> Bytes:
    spec, patient = chosen
    eye = eye_of(patient, 0, "slo", spec)._replace(damage=damage)
    light = float(patient.pigment[0]), float(patient.clarity[0])
    return slo_image(eye, *light, 1.0, DEVICES[device], SIZE, np.random.default_rng(SEED))


def _scans(chosen: tuple[PhantomSpec, Patients], damage: float, device: str = "A") -> tuple[Bytes, Bytes]:
    """Return the B-scans through the disc and above it."""
    spec, patient = chosen
    eye = eye_of(patient, 0, "oct", spec)._replace(damage=damage)
    rng = np.random.default_rng(SEED)
    volume = oct_volume(eye, float(patient.signal[0]), 1.0, DEVICES[device], SIZE, SLICES, rng)
    return volume[SLICES // 2], volume[1]


def _save(figure: Figure, path: Path) -> None:
    """Write a figure in 256 greys: speckle does not compress, and colours would take three times the room."""
    figure.savefig(buffer := io.BytesIO(), dpi=80)
    Image.open(buffer).convert("L").save(path, optimize=True)


def _grid(
    images: Sequence[Sequence[Bytes]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    """Return the images with the names of rows and columns."""
    figure = Figure(figsize=(2 * len(columns) + 0.5, 2 * len(rows) + 1), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, row, name in zip(panels, images, rows, strict=True):
        line[0].set_ylabel(name)
        for axes, image in zip(line, row, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
    for axes, name in zip(panels[0], columns, strict=True):
        axes.set_title(name, fontsize=9)
    figure.suptitle(f"SYNTHETIC: {title}, {SIZE} px")
    return figure


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    figures(Path(sys.argv[1]))
