"""Synthetic eye patients: SLO fundus image, OCT volume and clinical note, drawn from a causal model.

The order is: site -> demographics -> label -> visual field -> structural damage -> anatomy -> what each
modality shows -> pixels and words. Each knob of `PhantomSpec` sits on one of these arrows, so how much a
modality says, how fast it is learned, gaps between groups, label noise and differences between sites are
set apart. Calibrated to published summary statistics; differences between groups are parameters there, not
findings, and nobody is behind a record.
"""

from __future__ import annotations

from fedfair.data.phantom.adapter import PhantomAdapter
from fedfair.data.phantom.ceiling import ceiling_table
from fedfair.data.phantom.presets import PRESETS
from fedfair.data.phantom.spec import PhantomSpec, SiteSpec
from fedfair.data.phantom.write import NOTICE, SYNTHETIC, write_tree

__all__ = [
    "NOTICE",
    "PRESETS",
    "SYNTHETIC",
    "PhantomAdapter",
    "PhantomSpec",
    "SiteSpec",
    "ceiling_table",
    "write_tree",
]
