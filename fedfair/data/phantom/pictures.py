"""One patient's images: what the patient and the site say, handed to the painters."""

from __future__ import annotations

from fedfair.data.phantom.anatomy import Eye
from fedfair.data.phantom.devices import DEVICES, Bytes
from fedfair.data.phantom.oct import oct_volume
from fedfair.data.phantom.patients import Patients
from fedfair.data.phantom.slo import slo_image
from fedfair.data.phantom.spec import MODALITIES, PhantomSpec
from fedfair.seeding import numpy_generator


def eye_of(patients: Patients, row: int, modality: str, spec: PhantomSpec) -> Eye:
    """Return the eye of the patient at `row` as a modality shows it."""
    return Eye(
        area=float(patients.disc_area[row]),
        physiologic=float(patients.cdr[row]),
        healthy=float(patients.rnfl[row]),
        floor=spec.rnfl_floor,
        damage=float(patients.seen[row, MODALITIES.index(modality)]),
        side=float(patients.side[row]),
        focality=float(patients.focality[row]),
        arcade=tuple(patients.arcade[row].tolist()),
    )


def slo_of(patients: Patients, row: int, spec: PhantomSpec, seed: int, site: str, size: int) -> Bytes:
    """Return the fundus image [size, size] of the patient at `row`, drawn from (seed, site, index) alone."""
    rng = numpy_generator(seed, "phantom", "slo", site, int(patients.index[row]))
    eye, device = eye_of(patients, row, "slo", spec), DEVICES[spec.sites[site].device]
    pigment, clarity = float(patients.pigment[row]), float(patients.clarity[row])
    return slo_image(eye, pigment, clarity, spec.contrast_slo, device, size, rng)


def oct_of(
    patients: Patients, row: int, spec: PhantomSpec, seed: int, site: str, size: int, slices: int
) -> Bytes:
    """Return the volume [slices, size, size] of the patient at `row`, from (seed, site, index) alone."""
    rng = numpy_generator(seed, "phantom", "oct", site, int(patients.index[row]))
    eye, device = eye_of(patients, row, "oct", spec), DEVICES[spec.sites[site].device]
    return oct_volume(eye, float(patients.signal[row]), spec.contrast_oct, device, size, slices, rng)
