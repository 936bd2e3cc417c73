"""Which of the sets the files of a folder look like: by the names of tables and folders, or by members."""

from __future__ import annotations

from collections.abc import Collection

from fedfair.data.eye.index import facts_of_file
from fedfair.data.eye.layout import Tree, diseases_in, find_layout, names_of_diseases
from fedfair.data.eye.profiles import ARRAYS, NOTE, PROFILES, Profile

_LOOKED_AT = 5
_VISION, _NOTES, _SITES = (PROFILES[name] for name in ("fairvision", "fairvlmed", "fairfedmed"))


def guess(tree: Tree) -> Profile | None:
    """Return the data set that a folder most likely is, None if it is none."""
    return (_by_names(tree) or _by_members(tree)) if tree.files else None


def another(tree: Tree, chosen: Profile) -> Profile | None:
    """Return the data set that the files are of, if they are not of the chosen one; None in doubt.

    FairVision and FairFedMed differ in names alone, and glaucoma is in all three sets: a folder or table
    named after it proves nothing against a profile that its images fit.
    """
    likely = guess(tree)
    if likely is None or likely is chosen:
        return None
    if _by_names(tree):
        return likely
    volumes = ARRAYS["oct"].key in _members(tree)
    return likely if volumes == ("oct" in likely.modalities) != ("oct" in chosen.modalities) else None


def _by_names(tree: Tree) -> Profile | None:
    """Return what the names of tables and folders prove; the folder's own name may be anything."""
    layout = find_layout(tree, _NOTES, "glaucoma")
    if layout.sites:
        return _SITES
    if layout.texts or layout.splits:
        return _NOTES
    return _VISION if names_of_diseases(tree) - {*_NOTES.diseases} else None


def _by_members(tree: Tree) -> Profile | None:
    """Return what some files hold, and without a note in them what the names suggest."""
    members = _members(tree)
    volumes, photos = (ARRAYS[name].key in members for name in ("oct", "slo"))
    if NOTE in members:
        return _NOTES
    if not names_of_diseases(tree) and photos and not volumes:
        return _NOTES
    if diseases_in(tree, _VISION):
        return _VISION
    if not volumes:
        return None
    return _SITES if find_layout(tree, _SITES, "glaucoma").records else _VISION


def _members(tree: Tree) -> Collection[str]:
    """Return images and notes of some files from all over the folder: one may lack what it should have."""
    some = tree.files[:: max(1, len(tree.files) // _LOOKED_AT)][:_LOOKED_AT]
    facts = [facts_of_file(tree.root / file.path) for file in some]
    return {key for own in facts for key in (*own.shapes, *own.noted)}
