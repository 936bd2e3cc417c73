"""Patients: what is true of them, and what each modality will show, drawn in causal order without pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedfair.data.eye.aliases import ATTRIBUTES
from fedfair.data.phantom.anatomy import Floats, physiologic_cdr
from fedfair.data.phantom.spec import MODALITIES, PhantomSpec, SiteSpec
from fedfair.seeding import numpy_generator

Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]

BLOCK = 64
"""Patients per generator: patient i is fixed by (seed, site, i), and drawn with its block i // 64."""

RECORDED: Mapping[str, tuple[str, ...]] = {
    name: ATTRIBUTES[name].groups for name in ("race", "sex", "ethnicity", "language", "maritalstatus")
}
"""What a record may say of a patient beside the age, in the readers' words; -1 stands for unknown."""

# Shares of the groups above, then of unknown: FairVLMed (arXiv 2403.19949); marital status assumed, with the
# unknown and separated of FairVision's test split (71 and 22 of 3000).
_ETHNICITY = (0.906, 0.040, 0.054)
_LANGUAGE = (0.925, 0.017, 0.008, 0.050)
_MARITAL = (0.570, 0.250, 0.075, 0.074, 0.007, 0.024)


@dataclass(frozen=True)
class Patients:
    """n patients of one site as arrays.

    Attributes
    ----------
    index : Integers
        [n] numbers within the site.
    race, age : Integers, Floats
        [n] the true ones, whatever is recorded.
    recorded : Integers
        [n, 5] groups in the order of `RECORDED`, -1 unknown.
    label, stored : Integers
        [n] the true label, and the one that the record holds.
    md, damage : Floats
        [n] mean deviation of the visual field, and structural damage (dB).
    seen, missing : Floats, Truths
        [n, 3] the damage that each modality shows (dB), and whether the patient lacks it.
    named : Truths
        [n] whether the note names glaucoma.
    disc_area, cdr, rnfl, cct : Floats
        [n] mm^2, healthy cup-to-disc ratio, healthy mean RNFL (um), corneal thickness (um).
    side, focality : Floats
        [n] +1 superior or -1 inferior, and how focal the loss is.
    pigment, signal, clarity : Floats
        [n] fundus brightness, OCT signal strength, clearness of the media.
    arcade : Floats
        [n, 4] factors on the height of the vessels.
    """

    index: Integers
    race: Integers
    age: Floats
    recorded: Integers
    label: Integers
    stored: Integers
    md: Floats
    damage: Floats
    seen: Floats
    missing: Truths
    named: Truths
    disc_area: Floats
    cdr: Floats
    rnfl: Floats
    cct: Floats
    side: Floats
    focality: Floats
    pigment: Floats
    signal: Floats
    clarity: Floats
    arcade: Floats

    def __len__(self) -> int:
        """Return n."""
        return len(self.index)

    def take(self, rows: Integers | Truths) -> Patients:
        """Return the patients at `rows`, in that order."""
        return Patients(**{f.name: getattr(self, f.name)[rows] for f in dataclasses.fields(self)})

    def group(self, attribute: str) -> Integers:
        """Return the recorded group of each patient [n], -1 unknown."""
        return self.recorded[:, list(RECORDED).index(attribute)]


def join(parts: Sequence[Patients]) -> Patients:
    """Return all patients of the parts, in order."""
    names = [f.name for f in dataclasses.fields(Patients)]
    return Patients(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def draw_patients(
    spec: PhantomSpec, seed: int, site: str, index: Sequence[int] | Integers | None = None
) -> Patients:
    """Return patients of a site; each is the same whichever others are drawn.

    Parameters
    ----------
    spec : PhantomSpec
        It names the site.
    seed : int
        The run's seed.
    site : str
        A generator of its own: no other site matters.
    index : Sequence[int] | Integers | None
        Numbers from 0, also beyond the site's count; all of the site by default.
    """
    wanted = np.arange(spec.sites[site].patients) if index is None else np.asarray(index, np.int64)
    blocks, place = np.unique(wanted // BLOCK, return_inverse=True)
    drawn = join([_block(spec, spec.sites[site], seed, site, int(b)) for b in blocks])
    return drawn.take(place * BLOCK + wanted % BLOCK)


def _block(spec: PhantomSpec, own: SiteSpec, seed: int, site: str, block: int) -> Patients:
    """Return a whole block. How much is drawn does not depend on a knob, so that knobs can be compared."""
    rng = numpy_generator(seed, "phantom", "patients", site, block)
    race, age = _origin(rng, spec, own)
    recorded = _recorded(rng, own, race)
    label, md, damage = _course(rng, spec, own, race, age)
    seen, shown = _seen(rng, spec, own, race, label, damage)
    area = np.maximum(spec.by_race("disc_area", race) + spec.disc_area_sd * _normal(rng), 1.0)
    healthy = spec.by_race("rnfl", race) + spec.rnfl_age * (age - 46)
    healthy += spec.rnfl_disc * (area - spec.by_race("disc_area", race)) + spec.rnfl_sd * _normal(rng)
    over_60 = np.maximum(age - 60, 0)
    return Patients(
        index=block * BLOCK + np.arange(BLOCK),
        race=race,
        age=age,
        recorded=recorded,
        label=label,
        stored=np.where(rng.random(BLOCK) < np.array(own.label_noise)[race], 1 - label, label),
        md=md,
        damage=damage,
        seen=seen,
        missing=_missing(rng, own),
        named=(shown == 1) & (rng.random(BLOCK) < spec.leak),
        disc_area=area,
        cdr=physiologic_cdr(area, 0.07 * _normal(rng)),
        rnfl=healthy,
        cct=spec.by_race("cct", race) + 34 * _normal(rng),
        side=np.where(rng.random(BLOCK) < 0.65, -1.0, 1.0),
        focality=rng.beta(2, 2, BLOCK),
        pigment=np.clip(spec.by_race("pigment", race) + 0.08 * _normal(rng), 0.12, 0.9),
        signal=np.clip(spec.by_race("signal", race) - 0.004 * over_60 + 0.06 * _normal(rng), 0.2, None),
        clarity=np.clip(1 - 0.004 * over_60 + 0.04 * _normal(rng), 0.4, 1.0),
        arcade=1 + 0.12 * rng.standard_normal((BLOCK, 4)),
    )


def _normal(rng: np.random.Generator) -> Floats:
    return rng.standard_normal(BLOCK)


def _pick(rng: np.random.Generator, shares: Sequence[float]) -> Integers:
    """Return an index into `shares` for each patient."""
    edges = np.cumsum(shares) / np.sum(shares)
    return np.searchsorted(edges[:-1], rng.random(BLOCK), side="right")


def _origin(rng: np.random.Generator, spec: PhantomSpec, own: SiteSpec) -> tuple[Integers, Floats]:
    """Return race and age."""
    age = spec.age_mean + own.age_shift + spec.age_sd * _normal(rng)
    return _pick(rng, own.race), np.clip(age, 10, 97.9)


def _recorded(rng: np.random.Generator, own: SiteSpec, race: Integers) -> Integers:
    sex = (rng.random(BLOCK) < own.male).astype(np.int64)
    columns = [race, sex]
    for shares in (_ETHNICITY, _LANGUAGE, _MARITAL):
        group = _pick(rng, shares)
        columns.append(np.where(group == len(shares) - 1, -1, group))
    recorded = np.stack(columns, axis=1)
    recorded[rng.random(recorded.shape) < own.unknown] = -1
    return recorded


def _course(
    rng: np.random.Generator, spec: PhantomSpec, own: SiteSpec, race: Integers, age: Floats
) -> tuple[Integers, Floats, Floats]:
    """Return the label, the mean deviation and the structural damage."""
    prevalence = spec.by_race("prevalence", race)
    odds = prevalence / (1 - prevalence) * np.exp(spec.age_slope * (age - spec.age_mean))
    label = (rng.random(BLOCK) < odds / (1 + odds)).astype(np.int64)
    exponential = -np.log1p(-rng.random((2, BLOCK)))
    loss = own.severity * spec.severity_scale * exponential[0] ** (1 / spec.severity_shape)
    healthy = np.clip(0.2 + 0.9 * _normal(rng), -1, 4.6)
    md = np.where(label == 1, -3 - np.minimum(loss, 29.5), healthy)
    suspect = (rng.random(BLOCK) < spec.suspects) * spec.suspect_scale * exponential[1]
    return label, md, np.where(label == 1, -md * np.exp(spec.discordance * _normal(rng)), suspect)


def _seen(
    rng: np.random.Generator,
    spec: PhantomSpec,
    own: SiteSpec,
    race: Integers,
    label: Integers,
    damage: Floats,
) -> tuple[Floats, Integers]:
    """Return the damage that each modality shows [n, 3], and the label that the note goes by.

    d_m = d exp(sigma e1) + 0.8 sigma |e2|, and with the rate of failure d is another patient's.
    """
    columns = []
    for modality in MODALITIES:
        other_label, _, other_damage = _course(rng, spec, own, *_origin(rng, spec, own))
        failed = rng.random(BLOCK) < spec.by_race(f"fail_{modality}", race)
        sigma = spec.by_race(f"sigma_{modality}", race)
        shown = np.where(failed, other_damage, damage) * np.exp(sigma * _normal(rng))
        columns.append(shown + 0.8 * sigma * np.abs(_normal(rng)))
    # The note is the last modality.
    return np.stack(columns, axis=1), np.where(failed, other_label, label)


def _missing(rng: np.random.Generator, own: SiteSpec) -> Truths:
    missing = rng.random((BLOCK, len(MODALITIES))) < own.missing
    kept = rng.integers(len(MODALITIES), size=BLOCK)
    missing[np.arange(BLOCK), kept] &= ~missing.all(axis=1)
    return missing
