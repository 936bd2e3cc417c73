"""What a folder of an eye data set holds, told to the hospital it belongs to."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedfair.data.eye.aliases import ATTRIBUTES, LEAKS, Field
from fedfair.data.eye.index import Facts, default_cache, facts_of, facts_of_file
from fedfair.data.eye.layout import Layout, Tree, diseases_in, find_layout, scan
from fedfair.data.eye.likeness import another, guess
from fedfair.data.eye.notes import FULL, SUMMARY, has_text, texts_by_table
from fedfair.data.eye.overview import Record, overview
from fedfair.data.eye.profiles import ARRAYS, NOTE, PROFILES, Profile, profile_named
from fedfair.data.eye.records import Entry, Joined, Problem, Tables, Wanted, absent, join, read_tables
from fedfair.data.eye.sites import Place, families, places_by_tables
from fedfair.errors import DataError

_SHOWN = 5
_TOLD_BY = {"glaucoma": "glaucoma", "amd_condition": "amd", "dr_subtype": "dr"}


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes
    ----------
    profile : str | None
        The data set; None if the folder is none of those known.
    found : tuple[str, ...]
        Lines on what is there; they hold no count of 1 to 9 people, and no cell of a record.
    problems : tuple[str, ...]
        One sentence per kind of problem, with names of files; empty if all is well.
    """

    profile: str | None
    found: tuple[str, ...]
    problems: tuple[str, ...]

    def lines(self) -> Sequence[str]:
        """Return the report, ready to print."""
        if not self.problems:
            return [*self.found, "no problems"]
        return [*self.found, "problems", *(f"  {problem}" for problem in self.problems)]


def check(path: str | Path, profile: str | None = None, cache: bool = True) -> Report:
    """Return what a folder holds: files, tables, modalities, groups, prevalence and problems.

    Parameters
    ----------
    path : str | Path
        The folder; nothing is written there.
    profile : str | None
        One of `PROFILES`; None: by the names of folders and tables, or else the members of a file.
    cache : bool
        Whether to keep what the files say in the user's own cache folder for the next time.

    Raises
    ------
    ConfigError
        If the profile is unknown.
    DataError
        If `path` is no folder.
    """
    tree = scan(path)
    chosen = guess(tree) if profile is None else profile_named(profile)
    if chosen is None or not tree.files:
        return _nothing(tree, chosen)
    found: list[str] = []
    problems = _mistaken(tree, chosen)
    for disease in diseases_in(tree, chosen) or _disease_of_members(tree):
        lines, wrong = _check_disease(tree, chosen, disease, cache)
        found += lines
        problems += wrong
    return Report(chosen.name, tuple(found), tuple(problems)) if found else _nothing(tree, chosen)


def _mistaken(tree: Tree, chosen: Profile) -> list[str]:
    """Return a sentence on files that are another set's; images of one read as another's are transposed."""
    other = another(tree, chosen)
    if other is None:
        return []
    told = f"fedfair data check {shlex.quote(str(tree.root))} --profile {other.name}"
    return [
        f"the files must be those of {chosen.title}, got what looks like {other.title}: type `{told}`, and "
        f"`data.name: {other.name}` in a configuration"
    ]


def _nothing(tree: Tree, profile: Profile | None) -> Report:
    """Return the report on a folder that holds none of the sets."""
    looked = [profile] if profile else list(PROFILES.values())
    packed = f", {len(tree.archives):,} .zip archives" if tree.archives else ""
    found = [
        f"{tree.root}: {len(tree.files):,} .npz files, {len(tree.tables):,} tables (.csv){packed}",
        "looked for",
    ]
    found += [f"  {one.name}: {one.expected}" for one in looked]
    advice = "; unpack the archives" if tree.archives else "; name its top folder"
    return Report(
        None, tuple(found), (f"the folder must be one of the sets above, got none of them{advice}",)
    )


def _disease_of_members(tree: Tree) -> tuple[str, ...]:
    """Return the disease that the first file's members are of, where no name says it."""
    values = facts_of_file(tree.root / tree.files[0].path).values
    return tuple(disease for key, disease in _TOLD_BY.items() if key in values)[:1]


def _check_disease(tree: Tree, profile: Profile, disease: str, cache: bool) -> tuple[list[str], list[str]]:
    """Return lines and problems of one disease."""
    layout, label = find_layout(tree, profile, disease), profile.disease(disease)
    facts = facts_of(layout.root, layout.files, default_cache(layout.root) if cache else None)
    try:
        tables = read_tables(layout)
        texts = {field: texts_by_table(layout, field) for field in (SUMMARY, FULL)}
        places, misplaced = _places(layout)
    except DataError as error:
        return [f"{profile.title}, {disease}"], [str(error)]
    attributes = _offered(tables, facts)
    arrays = [name for name in profile.modalities if name in ARRAYS]
    joined = join(layout, tables, facts, Wanted(label, attributes, arrays))
    lacking = {absent(ARRAYS[name].key): name for name in arrays}
    broken = [problem for problem in (*joined.problems, *misplaced) if problem.must not in lacking]
    # Problems are counted out, so their records are not among those whose small counts are hidden.
    apart = {problem.file for problem in broken} | set(joined.no_row)
    records = [
        Record(entry, _split(entry, places), _has(entry, profile, arrays, texts))
        for entry in joined.entries
        if entry.file.path not in apart and entry.file.name not in apart
    ]
    lines = [
        f"{profile.title}, {disease}, {len(layout.files):,} .npz files",
        *_tables(layout),
        *overview(records, label, attributes, {name: place.site for name, place in places.items()}),
        *_leaks(tables, facts),
    ]
    musts = {problem.must for problem in joined.problems}
    absences = [f"{must}: see the line on {name}" for must, name in lacking.items() if must in musts]
    return lines, [*_told(broken), *absences, *_unmatched(joined, layout)]


def _places(layout: Layout) -> tuple[Mapping[str, Place], list[Problem]]:
    """Return each record's site and split by the data set's own tables, if it has some."""
    known = families(layout)
    if not known:
        return {}, []
    return places_by_tables(layout, "race" if "race" in known else known[0])


def _offered(tables: Tables, facts: Mapping[str, Facts]) -> list[Field]:
    """Return the attributes that some table or file has."""
    rows = [next(iter(table.values())) for table in tables.records]
    values = [found.values for found in facts.values()]
    return [field for field in ATTRIBUTES.values() if any(map(field.find, (*rows, *values)))]


def _split(entry: Entry, places: Mapping[str, Place]) -> int | None:
    place = places.get(entry.file.name)
    return place.split if place and place.split is not None else entry.split


def _has(
    entry: Entry, profile: Profile, arrays: Iterable[str], texts: Mapping[str, Mapping[str, str]]
) -> dict[str, str]:
    """Return how a record has each modality: present, empty or absent."""
    found = {}
    for name in arrays:
        known = ARRAYS[name].key in entry.facts.shapes
        found[name] = "present" if name in entry.seen else "empty" if known else "absent"
    if NOTE in profile.modalities:
        for field, by_name in texts.items():
            found[field] = "present" if has_text(entry, field, by_name) else "absent"
    return found


def _tables(layout: Layout) -> Iterator[str]:
    """Yield which tables were found, and which are not known."""
    yield f"  tables: {', '.join(layout.tables) or 'none; labels and groups come from the .npz files'}"
    if layout.unused:
        yield f"  not used: {', '.join(layout.unused[:_SHOWN])}"


def _leaks(tables: Tables, facts: Mapping[str, Facts]) -> Iterator[str]:
    """Yield which columns and members say the label."""
    columns = {key for table in tables.records for key in next(iter(table.values())) if key in LEAKS}
    members = {key for found in facts.values() for key in found.noted if key in LEAKS}
    if columns | members:
        named = ", ".join(key for key in LEAKS if key in columns | members)
        yield f"  say the label or the groups, so no input unless `allow_leakage: true`: {named}"


def _told(problems: Sequence[Problem]) -> Iterator[str]:
    """Yield one sentence per kind of problem."""
    for must in dict.fromkeys(problem.must for problem in problems):
        yield _sentence(must, [problem.file for problem in problems if problem.must == must])


def _unmatched(joined: Joined, layout: Layout) -> Iterator[str]:
    """Yield what stands in a table or a folder alone."""
    if joined.no_file:
        yield _sentence("each row must have its .npz file", joined.no_file)
    if joined.no_row:
        yield _sentence(f"each .npz file must have its row in {', '.join(layout.records)}", joined.no_row)


def _sentence(must: str, names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _SHOWN else ""
    return f"{must}: {len(names):,} otherwise ({', '.join(names[:_SHOWN])}{more})"
