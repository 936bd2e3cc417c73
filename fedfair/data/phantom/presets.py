"""The presets, as the options that a configuration could hold; knobs they leave out keep their defaults."""

from __future__ import annotations

from collections.abc import Mapping

_ALIKE: Mapping[str, Mapping[str, object]] = {f"site-{k}": {} for k in (1, 2, 3)}

# Counts of the glaucoma test split of FairVision (arXiv 2310.02492): Asian 118 of 251, Black 268 of 431,
# White 1080 of 2318.
_FAIRVISION = {"race": [251, 431, 2318]}

PRESETS: Mapping[str, Mapping[str, object]] = {
    "fairvision": {
        "prevalence": [0.470, 0.622, 0.466],
        "sites": dict.fromkeys(_ALIKE, _FAIRVISION),
    },
    "fairvlmed": {"sites": _ALIKE},
    # Counts by race and shares of men of the simulated sites of FairFedMed-Oph (arXiv 2508.00873), which have
    # 5054, 5054 and 5057 patients; one device for each.
    "fairfedmed3": {
        "sites": {
            "site-1": {"race": [404, 758, 3892], "male": 0.70, "device": "A"},
            "site-2": {"race": [606, 1011, 3437], "male": 0.55, "device": "B"},
            "site-3": {"race": [268, 462, 4327], "male": 0.36, "device": "C"},
        }
    },
    # OCT says much and is seen at once; the fundus image says a little less and is seen late.
    "imbalanced": {
        "suspects": 0.2,
        "discordance": 0.4,
        "sigma_oct": [0.15, 0.35, 0.15],
        "fail_oct": [0.01, 0.04, 0.01],
        "sigma_slo": [0.6, 0.6, 0.6],
        "fail_slo": [0.06, 0.06, 0.06],
        "contrast_slo": 0.6,
        "sites": _ALIKE,
    },
    # OCT is poor for one group alone; the fundus image shows all groups alike.
    "noisy-group": {
        "sigma_slo": [1.2, 1.2, 1.2],
        "fail_slo": [0.17, 0.17, 0.17],
        "sigma_oct": [0.5, 1.8, 0.5],
        "fail_oct": [0.05, 0.35, 0.05],
        "sites": _ALIKE,
    },
    # Sites alike and races alike: there is nothing for a method to find between groups.
    "iid": {
        "prevalence": [0.505, 0.505, 0.505],
        "disc_area": [2.23, 2.23, 2.23],
        "rnfl": [99.2, 99.2, 99.2],
        "cct": [546.0, 546.0, 546.0],
        "pigment": [0.57, 0.57, 0.57],
        "signal": [0.97, 0.97, 0.97],
        "sigma_slo": [1.2, 1.2, 1.2],
        "fail_slo": [0.17, 0.17, 0.17],
        "sigma_oct": [0.9, 0.9, 0.9],
        "fail_oct": [0.07, 0.07, 0.07],
        "fail_note": [0.17, 0.17, 0.17],
        "sites": _ALIKE,
    },
}
