"""PhantomSpec: every knob of the phantom, its defaults with their sources, and the presets.

Triples by race are in the order Asian, Black, White; triples by modality in the order SLO, OCT, note.

Sources of the defaults, by the name that the comments use:

- FairVLMed: Luo et al., FairCLIP, CVPR 2024, arXiv 2403.19949 (demographics, prevalence by race).
- FairVision: Luo et al., arXiv 2310.02492 (glaucoma test split: prevalence and severity).
- FairFedMed: Li et al., IEEE TMI 2025, arXiv 2508.00873 (three simulated sites).
- Seider et al., Ophthalmology 2009, PMC2836908 (disc area); Budenz et al., Ophthalmology 2007 (RNFL by age,
  race and disc area); Hood and Kardon, Prog Retin Eye Res 2007 (RNFL against field loss); Aghaian et al.,
  Ophthalmology 2004 (corneal thickness); Wu et al., 2009, PMC5340149 (signal strength).
- Assumed: no source; a parameter of the simulation, not a finding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedfair.data.options import as_integer, as_mapping, as_number, as_one_of, entries
from fedfair.data.phantom.knobs import knob, knob_names, with_knobs
from fedfair.data.phantom.presets import PRESETS
from fedfair.errors import ConfigError
from fedfair.seeding import numpy_generator

RACES = ("asian", "black", "white")
MODALITIES = ("slo", "oct", "note")
DEVICES = ("A", "B", "C")
Triple = tuple[float, float, float]

_WHERE = "data.options"


@dataclass(frozen=True)
class SiteSpec:
    """One site.

    Attributes
    ----------
    patients : int
        How many it has; patient i is the same whatever this number.
    race : Triple
        Shares of the races, in any unit.
    male : float
        Share of men.
    device : str
        ``A``, ``B`` or ``C``, for both images.
    severity, age_shift : float
        Factor on the field loss of cases, and years added to the ages.
    missing : Triple
        Rate at which patients lack each modality; one who would lack all keeps one.
    label_noise : Triple
        Rate, by race, at which the stored label is the wrong one.
    unknown : float
        Rate at which each attribute is not recorded, beside what the preset's cohort lacks.
    """

    patients: int = knob(1000, 1)
    race: Triple = knob((0.082, 0.149, 0.769), 0, 1e9)  # FairVLMed
    male: float = knob(0.437, 0, 1)  # FairVLMed
    device: str = knob("A")
    severity: float = knob(1.0, 0.01, 10)
    age_shift: float = knob(0.0, -30, 30)
    missing: Triple = knob((0.0, 0.0, 0.0), 0, 1)
    label_noise: Triple = knob((0.0, 0.0, 0.0), 0, 1)
    unknown: float = knob(0.0, 0, 1)

    @classmethod
    def from_options(cls, options: object, where: str) -> Self:
        """Read ``{KNOB: value ...}``; every key may be left out, and None is all of them.

        Raises
        ------
        ConfigError
            If a key is unknown, a value out of range, the device none of `DEVICES` or every share zero.
        """
        found = entries({} if options is None else options, where, optional=knob_names(cls))
        own = with_knobs(cls(), found, where)
        as_one_of(own.device, f"{where}.device", DEVICES)
        if not sum(own.race):
            raise ConfigError(f"`{where}.race` must hold a positive share, got {list(own.race)}")
        return own


@dataclass(frozen=True)
class PhantomSpec:
    """Every knob of the phantom; `fedfair.data.phantom` says in which order they act.

    Attributes
    ----------
    preset : str
        Where the values come from.
    prevalence : Triple
        P(glaucoma) at the mean age, by race; its log-odds grow by `age_slope` a year.
    age_mean, age_sd, age_slope : float
        Years.
    severity_scale, severity_shape : float
        Cases have MD = -3 - W dB, W from this Weibull distribution.
    suspects, suspect_scale : float
        Share of healthy patients with structural damage, exponential with this mean (dB).
    discordance : float
        SD of the log ratio of structural damage to field loss, in cases.
    disc_area, disc_area_sd : Triple, float
        mm^2, mean by race and SD.
    rnfl, rnfl_sd, rnfl_age, rnfl_disc, rnfl_floor : Triple, float ...
        Healthy mean RNFL thickness (um): by race at 46 years and the race's mean disc, SD, per year, per
        mm^2 of disc area; and what is left of it when all fibres are lost.
    cct, pigment, signal : Triple
        By race: corneal thickness (um), fundus brightness, OCT signal strength.
    sigma_slo, sigma_oct, sigma_note, fail_slo, fail_oct, fail_note : Triple
        How badly a modality shows the damage, by race: SD of its log error, and the rate at which it shows
        another patient's. They set the AUC that a modality allows.
    contrast_slo, contrast_oct : float
        Visibility of the drawn cue. It sets how fast a model learns, not what can be learned.
    leak : float
        Rate at which the note of a case names glaucoma.
    complete : Triple
        Rate, by race, at which a clause of the note that may be left out is there.
    filler : tuple[float, float]
        Least and most other problems in a note.
    sites : Mapping[str, SiteSpec]
        By name.
    """

    preset: str = "fairvision"
    prevalence: Triple = knob((0.487, 0.649, 0.479), 0.001, 0.999)  # FairVLMed
    age_mean: float = knob(60.9, 10, 98)  # FairVLMed
    age_sd: float = knob(16.2, 0, 40)  # FairVLMed
    age_slope: float = knob(0.015, -0.2, 0.2)  # assumed
    severity_scale: float = knob(5.5, 0.01, 30)  # with the shape: fitted to FairVision's 672/460/334
    severity_shape: float = knob(0.80, 0.1, 10)
    suspects: float = knob(0.40, 0, 1)  # assumed, calibrated
    suspect_scale: float = knob(3.0, 0, 30)  # assumed, calibrated
    discordance: float = knob(0.70, 0, 3)  # exists (PMC4758296); size assumed, calibrated
    disc_area: Triple = knob((2.38, 2.55, 2.15), 1, 4)  # Seider
    disc_area_sd: float = knob(0.42, 0, 1)  # Seider
    rnfl: Triple = knob((105.8, 101.5, 98.1), 50, 150)  # Budenz; Black assumed
    rnfl_sd: float = knob(9.5, 0, 30)  # Budenz: 11.6 with age and disc
    rnfl_age: float = knob(-0.20, -2, 2)  # Budenz
    rnfl_disc: float = knob(3.3, -30, 30)  # Budenz
    rnfl_floor: float = knob(50.0, 0, 90)  # Hood and Kardon
    cct: Triple = knob((555.6, 521.0, 550.4), 400, 700)  # Aghaian
    pigment: Triple = knob((0.50, 0.35, 0.62), 0.1, 1)  # assumed
    signal: Triple = knob((0.95, 0.80, 1.0), 0.05, 2)  # that it matters: Wu; by race assumed
    sigma_slo: Triple = knob((1.0, 1.7, 1.2), 0, 5)  # calibrated, as all that follow
    sigma_oct: Triple = knob((0.5, 1.4, 0.9), 0, 5)
    sigma_note: Triple = knob((0.30, 0.30, 0.30), 0, 5)
    fail_slo: Triple = knob((0.175, 0.24, 0.17), 0, 1)
    fail_oct: Triple = knob((0.035, 0.13, 0.07), 0, 1)
    fail_note: Triple = knob((0.04, 0.105, 0.185), 0, 1)
    contrast_slo: float = knob(1.0, 0, 2)
    contrast_oct: float = knob(1.0, 0, 1.5)
    leak: float = knob(0.25, 0, 1)
    complete: Triple = knob((1.0, 1.0, 1.0), 0, 1)
    filler: tuple[float, float] = knob((8, 20), 0, 100)
    sites: Mapping[str, SiteSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a range that runs backwards."""
        if self.filler[0] > self.filler[1]:
            raise ConfigError(f"`{_WHERE}.filler` must be the least and the most, got {list(self.filler)}")

    def by_race(self, knob: str, race: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return a knob's value for the race of each patient."""
        return np.array(getattr(self, knob))[race]

    def with_patients(self, patients: int) -> Self:
        """Return the spec with this number of patients at every site."""
        sites = {name: dataclasses.replace(own, patients=patients) for name, own in self.sites.items()}
        return dataclasses.replace(self, sites=sites)

    @classmethod
    def from_options(cls, options: object, seed: int = 0) -> PhantomSpec:
        """Read ``{preset, sites, spread, KNOB: value ...}``; every key may be left out.

        `sites` is a mapping of names to knobs of `SiteSpec`, or a number: then that many differ by `spread`
        (0: alike; 1: race mix, size, age, severity and device differ as `drawn_sites` says).

        Parameters
        ----------
        options : object
            A mapping; knobs set here win over those of the preset.
        seed : int
            The run's seed; only drawn sites depend on it.

        Raises
        ------
        ConfigError
            If a key is unknown or a value out of range.
        """
        found = dict(entries(options, _WHERE, optional=OPTIONS))
        name = as_one_of(found.pop("preset", cls.preset), f"{_WHERE}.preset", list(PRESETS))
        found = {**PRESETS[name], **found}
        spread = as_number(found.pop("spread", 1.0), f"{_WHERE}.spread", 0, 1)
        sites = _sites(found.pop("sites"), spread, seed)
        return dataclasses.replace(with_knobs(cls(), found, _WHERE), preset=name, sites=sites)


OPTIONS = ("preset", "sites", "spread", *knob_names(PhantomSpec))
"""What `PhantomSpec.from_options` reads."""


def drawn_sites(count: int, spread: float, seed: int, patients: int = 1000) -> dict[str, SiteSpec]:
    """Return sites that differ by `spread`.

    Race mix Dirichlet(20 / spread * cohort's mix), log-normal size with SD 0.6 spread, age shift uniform
    within 5 spread years, severity uniform in logs from 0.7^spread to 1.4^spread, devices in turn.
    A site depends on the seed and its own number alone. With `spread` 0 all sites are alike.
    """
    sites = {}
    for k in range(count):
        rng = numpy_generator(seed, "phantom", "sites", k)
        default = SiteSpec()
        mix = rng.dirichlet(np.array(default.race) * 20 / max(spread, 1e-6))
        sites[f"site-{k + 1}"] = SiteSpec(
            patients=max(1, round(patients * math.exp(0.6 * spread * rng.standard_normal()))),
            race=tuple(mix.tolist()) if spread else default.race,
            age_shift=5 * spread * rng.uniform(-1, 1),
            severity=math.exp(spread * rng.uniform(math.log(0.7), math.log(1.4))),
            device=DEVICES[k % len(DEVICES)] if spread else "A",
        )
    return sites


def _sites(options: object, spread: float, seed: int) -> dict[str, SiteSpec]:
    where = f"{_WHERE}.sites"
    if not isinstance(options, Mapping):
        return drawn_sites(as_integer(options, where, 1), spread, seed)
    sites = {}
    for name, own in as_mapping(options, where).items():
        sites[name] = SiteSpec.from_options(own, f"{where}.{name}")
    if not sites:
        raise ConfigError(f"`{where}` must name at least one site, got none")
    return sites
