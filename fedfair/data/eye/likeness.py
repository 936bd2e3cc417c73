"""Which of the sets the files of a folder look like: by the names of tables and folders, or by members."""

from __future__ import annotations

from collections.abc import Collection

from fedfair.data.eye.index import facts_of_file
from fedfair.data.eye.layout import Tree, diseases_in, find_layout, names_a_disease
from fedfair.data.eye.profiles import ARRAYS, PROFILES, Profile

_LOOKED_AT = 5
_VISION, _NOTES, _SITES = (PROFILES[name] for name in ("fairvision", "fairvlmed", "fairfedmed"))


def guess(tree: Tree) -> Profile | None:
    """Return the data set that a folder most likely is, None if it is none."""
    return (_by_names(tree) or _by_members(tree)) if tree.files else None


def another(tree: Tree, chosen: Profile) -> Profile | None:
    """Return the data set that the files are of, if they are not of the chosen one; None in doubt.

    FairVision and FairFedMed differ in names alone, so without these either may be meant.
    """
    named = _by_names(tree) if tree.files else None
    likely = named or guess(tree)
    if likely is None or likely is chosen:
        return None
    return likely if named or ("oct" in likely.modalities) != ("oct" in chosen.modalities) else None


def _by_names(tree: Tree) -> Profile | None:
    """Return what tables and folders are named after; the folder's own name may be anything."""
    layout = find_layout(tree, _NOTES, "glaucoma")
    if layout.sites:
        return _SITES
    if layout.texts or layout.splits:
        return _NOTES
    return _VISION if names_a_disease(tree) else None


def _by_members(tree: Tree) -> Profile | None:
    """Return what the images of some files tell; only FairVLMed has no OCT."""
    keys = _images(tree)
    if ARRAYS["oct"].key not in keys and ARRAYS["slo"].key in keys:
        return _NOTES
    if diseases_in(tree, _VISION):
        return _VISION
    if ARRAYS["oct"].key not in keys:
        return None
    return _SITES if find_layout(tree, _SITES, "glaucoma").records else _VISION


def _images(tree: Tree) -> Collection[str]:
    """Return the image members of some files from all over the folder: one may lack what it should have."""
    some = tree.files[:: max(1, len(tree.files) // _LOOKED_AT)][:_LOOKED_AT]
    return {key for file in some for key in facts_of_file(tree.root / file.path).shapes}
