"""The project's own promises: sizes, declared dependencies, layers that are really checked, documents that are true."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MAX_LINES = 500
INSTALLED = ("tensorsmith", "compiler", "frontend", "passes", "backends", "runtime")
"""The packages of the wheel."""
BESIDE = ("examples", "benchmarks", "tests")
ELSEWHERE = ("zoo",)
"""Modules that come with the shared models, not from a distribution."""
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def distributions() -> dict[str, list[str]]:
    return {name: [d.lower() for d in found] for name, found in importlib.metadata.packages_distributions().items()}


def declared(*extras: str) -> set[str]:
    """Distribution names of the run-time dependencies and some extras."""
    lists = [PROJECT["project"]["dependencies"], *(PROJECT["project"]["optional-dependencies"][extra] for extra in extras)]
    return {re.split(r"[\s<>=!~\[;]", requirement)[0].lower().replace("_", "-") for group in lists for requirement in group}


def imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    own = {*INSTALLED, *BESIDE, *ELSEWHERE, *(path.stem for path in (ROOT / "tests").glob("*.py"))}
    return names - set(sys.stdlib_module_names) - own


@pytest.mark.parametrize("folder", [*INSTALLED, *BESIDE])
def test_no_source_file_is_longer_than_the_limit(folder: str) -> None:
    files = sources(folder)
    assert files, f"{folder} has no Python files: the folder list of this test is stale"
    long = {str(path.relative_to(ROOT)): lines for path in files if (lines := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long


EXTRAS = {"tests": ("test",), "examples": ("demo", "train", "test"), "benchmarks": ("test",), "compiler": ("peers",)}
"""The extras that may be needed beside the run-time dependencies."""


@pytest.mark.parametrize("folder", [*INSTALLED, *BESIDE])
def test_every_third_party_import_is_a_declared_dependency(folder: str) -> None:
    known = declared(*EXTRAS.get(folder, ()))
    missing = set()
    for path in sources(folder):
        for name in imported(path):
            owners = {owner.replace("_", "-") for owner in distributions().get(name, [name])}
            if not owners & known:
                missing.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not missing


def test_every_runtime_dependency_is_imported() -> None:
    used = {owner.replace("_", "-") for path in sources(*INSTALLED) for name in imported(path) for owner in distributions().get(name, [name])}
    assert declared() <= used


def test_wheel_types_and_layer_contracts_cover_the_same_packages() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - set(BESIDE)
    assert packages == set(INSTALLED)
    assert {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]} == packages
    assert set(PROJECT["tool"]["importlinter"]["root_packages"]) == packages
    assert packages < set(PROJECT["tool"]["mypy"]["packages"])


def test_type_marker_is_shipped() -> None:
    assert (ROOT / "tensorsmith" / "py.typed").exists()


def test_changelog_has_the_current_version() -> None:
    assert re.search(rf"^## {re.escape(PROJECT['project']['version'])}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_in_documents_exist(document: Path) -> None:
    text = document.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text) if "://" not in link]
    folders = "|".join((*INSTALLED, *BESIDE, "docs"))
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.(?:py|md|onnx))`", text)
    broken = [link for link in links if not (document.parent / link).exists()] + [path for path in named if not (ROOT / path).exists()]
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents_parses(document: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL):
        ast.parse(textwrap.dedent(block))


def test_documents_name_only_make_targets_that_exist() -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    named = {name for document in DOCUMENTS for name in re.findall(r"(?:`|^ {4})make ([\w-]+)", document.read_text(), re.MULTILINE)}
    assert {"demo", "test"} <= named <= set(phony[1].split())


def test_continuous_integration_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
