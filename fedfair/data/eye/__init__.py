"""Readers of access-controlled ophthalmology sets: FairVision, FairVLMed and FairFedMed-Oph.

They are for those who hold the licence (CC BY-NC-ND 4.0: non-commercial research, never for clinical
decisions). Nothing of those sets is shipped. `EyeAdapter` reads one as a data set; `check` tells what a
folder holds, in numbers that single nobody out.
"""

from fedfair.data.eye.check import Report, check
from fedfair.data.eye.profiles import PROFILES
from fedfair.data.eye.reader import EyeAdapter

__all__ = ["PROFILES", "EyeAdapter", "Report", "check"]
