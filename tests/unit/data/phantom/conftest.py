"""Many patients of one site with FairVLMed's mix, drawn once."""

from __future__ import annotations

import pytest

from fedfair.data.phantom import PhantomSpec
from fedfair.data.phantom.patients import Patients, draw_patients


@pytest.fixture(scope="session")
def spec() -> PhantomSpec:
    return PhantomSpec.from_options({"preset": "fairvlmed"})


@pytest.fixture(scope="session")
def many(spec: PhantomSpec) -> Patients:
    return draw_patients(spec, 11, "site-1", range(60_000))
