"""The clinical note: clauses from templates, with readings of what the note's author saw.

No clause names an age, a sex, a race, a mean deviation or a damage. Every note begins with "Synthetic note".
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator, Sequence

import numpy as np

from fedfair.data.phantom.anatomy import Eye, remaining
from fedfair.data.phantom.patients import Patients
from fedfair.data.phantom.pictures import eye_of
from fedfair.data.phantom.spec import PhantomSpec
from fedfair.seeding import numpy_generator

SUMMARY_LENGTH = 180
"""Characters; FairCLIP (arXiv 2403.19949) cuts its summaries there, for CLIP's 77 tokens."""

_REASONS = ("glaucoma evaluation", "a pressure check", "a comprehensive eye examination", "disc evaluation")
_GRADES = (1.2, 3.5, 9.0)  # dB between the four remarks on fibres and field
_FIBRES = (
    "RNFL within normal limits",
    "RNFL borderline {side}",
    "RNFL thinning {side}",
    "diffuse RNFL loss worse {side}",
)
_FIELDS = (
    "HVF full and reliable",
    "HVF with nonspecific points",
    "HVF with {other} nasal step",
    "HVF with dense {other} arcuate defect",
)
_UNNAMED = (
    "low risk, observe",
    "disc asymmetry, monitor",
    "elevated cupping, follow closely",
    "findings as above",
)
_NAMED = ("primary open angle glaucoma", "glaucoma, both eyes", "open angle glaucoma, moderate risk")
_DROPS = ("latanoprost at bedtime", "timolol twice daily", "dorzolamide timolol twice daily")
_PROBLEMS = (
    "cataract, not visually significant",
    "dry eye, artificial tears as needed",
    "blepharitis, warm compresses",
    "myopia, stable refraction",
    "hyperopia with presbyopia",
    "posterior vitreous detachment without tear",
    "pseudophakia, lens well centered",
    "hypertension, followed by primary care",
    "type 2 diabetes without retinopathy",
    "hyperlipidemia on statin",
    "hypothyroidism, stable",
    "seasonal allergies with itching",
    "chalazion, resolved",
    "migraine without visual aura",
    "asthma, no beta blocker",
    "epiretinal membrane, mild",
    "pterygium, not inflamed",
    "macular drusen, few and small",
    "sleep apnea on nightly treatment",
    "arthritis of the hands",
    "ptosis, mild and symmetric",
    "floaters, unchanged",
)
_EXAMINED = (
    "slit lamp examination with clear corneas, deep and quiet chambers, flat irides and reactive pupils",
    "lens with nuclear sclerosis consistent with the refraction, vitreous syneresis, no cell and no haze",
    "macula flat without edema, vessels of normal caliber, periphery attached for the full circumference",
    "best corrected visual acuity stable with present glasses, pinhole without improvement, motility full",
    "gonioscopy open to scleral spur in all quadrants without peripheral synechiae or new vessels",
    "medications and allergies were reviewed and reconciled with the list that the patient brought along",
)
_PLANS = ("return in six months with field", "return in one year", "repeat imaging at the next visit")


def note_of(patients: Patients, row: int, spec: PhantomSpec, seed: int, site: str) -> str:
    """Return the note on the patient at `row`, drawn from (seed, site, index) alone."""
    rng = numpy_generator(seed, "phantom", "note", site, int(patients.index[row]))
    eye, named = eye_of(patients, row, "note", spec), bool(patients.named[row])
    clauses = [f"Synthetic note. Patient seen for {_one(rng, _REASONS)}"]
    complete = spec.complete[int(patients.race[row])]
    clauses += [
        text for text in _findings(rng, eye, float(patients.cct[row]), named) if rng.random() < complete
    ]
    count = int(rng.integers(int(spec.filler[0]), int(spec.filler[1]) + 1))
    chosen = rng.permutation(len(_PROBLEMS))[:count]
    clauses += [_PROBLEMS[problem] for problem in chosen]
    clauses += [text for text in _EXAMINED if rng.random() < 0.8 * complete]
    return ". ".join([*clauses, _one(rng, _PLANS)]) + "."


def summary(note: str) -> str:
    """Return the beginning of a note, at most 180 characters of whole words."""
    if len(note) <= SUMMARY_LENGTH:
        return note
    return note[: SUMMARY_LENGTH + 1].rsplit(" ", 1)[0]


def _one(rng: np.random.Generator, texts: Sequence[str]) -> str:
    return texts[int(rng.integers(len(texts)))]


def _findings(rng: np.random.Generator, eye: Eye, cct: float, named: bool) -> Iterator[str]:
    """Yield the clauses that may be left out; how many draws they take does not depend on the patient."""
    side, other = ("superior", "inferior") if eye.side > 0 else ("inferior", "superior")
    lost = 1 - float(remaining(eye.damage))
    cup = min(max(round((eye.cdr + 0.10 * rng.standard_normal()) * 20) / 20, 0.1), 1.0)
    yield f"C/D {cup:.2f}"
    for remarks in (_FIBRES, _FIELDS):
        grade = bisect(_GRADES, eye.damage * float(np.exp(0.25 * rng.standard_normal())))
        hidden = rng.random() < 0.15
        yield "[REDACTED]" if hidden else remarks[grade].format(side=side, other=other)
    pressure = 16 + 5 * lost + 3.5 * rng.standard_normal()
    yield f"IOP {max(pressure, 6):.0f}, Tmax {max(pressure, 6) + 1 + 4 * rng.random():.0f}"
    yield f"CCT {cct:.0f}"
    yield f"family history {'positive' if rng.random() < 0.15 + 0.15 * lost else 'negative'}"
    texts = _NAMED if named else _UNNAMED
    yield f"Assessment: {_one(rng, texts)}"
    treated = rng.random() < 0.15 + 0.6 * lost
    drops = _one(rng, _DROPS)
    yield f"Drops: {drops}" if treated else "No drops"
