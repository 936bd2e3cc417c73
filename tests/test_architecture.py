"""The structure that the design promises: layers, thin imports, what is shipped, what is never written."""

from __future__ import annotations

import ast
import graphlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedfair

ROOT = Path(__file__).parents[1]

# Lowest first. A module imports only from its own layer or lower ones, and never in a circle.
# A package stands for all its modules, save those named on their own (as `package.module`).
LAYERS = (
    {"errors", "seeding", "plugins", "plain", "provenance", "audit", "files", "processes"},
    {"batch", "coefficients"},
    {"data", "stored"},
    {"signals"},
    {"metrics", "resolution", "assessment", "bootstrap"},
    {"privacy.noise", "privacy.accounting", "privacy.ledger", "privacy.release", "privacy.gate"},
    {"modulation"},
    {
        "models",
        "device",
        "loading",
        "blocks",
        "paths",
        "terms",
        "gradients",
        "measure",
        "frozen",
        "local",
        "aggregation",
        "wire",
    },
    {"secagg"},
    {"privacy"},
    {"sections", "config"},
    {
        "dataset",
        "networks",
        "plan",
        "masking",
        "budget",
        "site",
        "privacy.floor",
        "privacy.policy",
        "privacy.server",
        "privacy.site",
        "recombination",
        "coordinator",
        "uploads",
    },
    {"checkpoint", "record", "monitor", "report", "trained"},
    {"federation"},
    {"cli"},
    {"__main__"},
)
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

NOT_IN = {
    "fedfair": {"flwr", "ray", "grpc", "server", "client", "simulations"},
    "server": {"client", "simulations", "ray"},
    "client": {"server", "simulations", "ray"},
}
# The first two start experiments; the last stands in for a program of Flower's.
MAY_IMPORT_ALL = {"fedfair.cli._experiments", "fedfair.cli._federation", "fedfair.federation.gate"}
OPTIONAL = (
    *("flwr", "ray", "grpc", "opacus", "transformers", "peft", "matplotlib"),
    *("server", "client", "simulations"),
)
DRAWS = {"fedfair.report._figures", "fedfair.report._budget_figures"}
MAY_NEED_OPTIONAL = MAY_IMPORT_ALL | DRAWS | {"fedfair.__main__"}

FORBIDDEN_WORDS = re.compile(r"debias|unbiased|guarantee\w*\s+(?:\w+\s+)?fairness", re.IGNORECASE)


def parse(folder: str) -> dict[str, ast.Module]:
    """Return the syntax tree of every module of a top-level folder, by dotted name."""
    trees = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        trees[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return trees


LIBRARY = parse("fedfair")
PACKAGES = LIBRARY | parse("server") | parse("client")


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of all that is imported, in functions too; relative imports fail the lint."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(tree: ast.Module) -> set[str]:
    """Return the modules of fedfair that are imported: ``from fedfair.x import y`` may name x or x.y."""
    names = {name for name in imported(tree) if name.partition(".")[0] == "fedfair"}
    return {name if name in LIBRARY else name.rpartition(".")[0] for name in names} - {"fedfair"}


def rank(module: str) -> int:
    """Return the layer of a module of fedfair, found by its longest listed prefix."""
    name = module.removeprefix("fedfair.")
    while name and name not in RANK:
        name = name.rpartition(".")[0]
    assert name, f"{module} stands in no layer: add it to LAYERS"
    return RANK[name]


@pytest.mark.parametrize("module", sorted(PACKAGES.keys() - MAY_IMPORT_ALL))
def test_folders_do_not_know_each_other(module: str) -> None:
    tops = {name.partition(".")[0] for name in imported(PACKAGES[module])}
    assert not tops & NOT_IN[module.partition(".")[0]]


@pytest.mark.parametrize("module", sorted(LIBRARY.keys() - {"fedfair"}))
def test_modules_import_from_lower_layers(module: str) -> None:
    own = rank(module)
    assert not {name for name in imported_modules(LIBRARY[module]) if rank(name) > own}


def test_modules_import_in_no_circle() -> None:
    graph = {module: imported_modules(tree) - {module} for module, tree in LIBRARY.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


def test_library_needs_no_optional_package() -> None:
    modules = sorted(LIBRARY.keys() - MAY_NEED_OPTIONAL)
    script = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
        f"for module in {modules}: importlib.import_module(module)\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_has_one_value() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == fedfair.__version__


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources, so a build leaves nothing here, in a folder whose name Flower accepts."""
    left_out = shutil.ignore_patterns(
        *(".git", ".venv", ".hypothesis", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs")
    )
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("copy") / "fedfair", ignore=left_out))


def files_under(folder: Path) -> set[str]:
    """Return the files in a folder, as paths relative to the folder that holds it."""
    return {path.relative_to(folder.parent).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_wheel_is_the_library_alone(checkout: Path, tmp_path: Path) -> None:
    sources = files_under(checkout / "fedfair")
    options = ["--no-deps", "--no-build-isolation", "-qq", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", ".", *options], cwd=checkout, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == sources
    assert "fedfair/py.typed" in names
    assert any(name.endswith(".jsonl") for name in names)


@pytest.mark.slow
def test_bundle_is_the_apps_and_their_sources(checkout: Path, tmp_path: Path) -> None:
    flwr = Path(sys.executable).with_name("flwr")
    quiet = {"FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(tmp_path)}
    subprocess.run([flwr, "build", "--app", checkout], cwd=tmp_path, env=os.environ | quiet, check=True)
    (bundle,) = tmp_path.glob("*.fab")
    names = set(zipfile.ZipFile(bundle).namelist())
    assert {name.partition("/")[0] for name in names} == {
        *("fedfair", "server", "client", "configs"),
        *("pyproject.toml", "README.md", ".info"),
    }
    code = {name for name in files_under(checkout / "fedfair") if name.endswith((".py", ".jsonl"))}
    assert code <= names


@pytest.mark.parametrize("module", sorted(PACKAGES))
def test_nothing_is_printed_or_swallowed(module: str) -> None:
    refused = []
    for node in ast.walk(PACKAGES[module]):
        match node:
            case ast.Call(func=ast.Name(id="print")) | ast.ExceptHandler(type=None):
                refused.append(node.lineno)
            case ast.ExceptHandler(type=caught) if caught is not None:
                names = {name.id for name in ast.walk(caught) if isinstance(name, ast.Name)}
                refused += [node.lineno] if names & {"Exception", "BaseException"} else []
    assert not refused, f"lines {refused}"


def docstrings(trees: dict[str, ast.Module]) -> Iterator[tuple[str, str]]:
    """Yield every docstring with the place it stands at."""
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}:{getattr(node, 'lineno', 1)}", ast.get_docstring(node) or ""


def test_words_promise_no_more_than_was_measured() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [(page.name, page.read_text(encoding="utf-8")) for page in pages]
    texts += docstrings(PACKAGES | parse("simulations"))
    assert not [(place, found.group()) for place, text in texts if (found := FORBIDDEN_WORDS.search(text))]
