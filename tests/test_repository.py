"""The files around the code: CI has one list of commands, and constraints.txt covers what pyproject.toml names."""

import ast
import re
import sys
import tomllib

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MYPY = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# what development needs; Ray and CUDA are tried with the newest versions
TRIED = ("cpu", "dicom", "serve", "train", "dev", "docs")


def sessions():
    """The names of noxfile.py's sessions."""
    return {
        node.name
        for node in ast.parse((ROOT / "noxfile.py").read_text()).body
        if isinstance(node, ast.FunctionDef)
        and "nox.session" in map(ast.unparse, node.decorator_list)
    }


def named(text):
    return {
        name
        for line in re.findall(r"\bsessions?:? +([a-z_ ]+)$", text, re.MULTILINE)
        for name in line.split()
    }


def constraints():
    rows = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(row.split("==") for row in rows if not row.startswith("#"))


def test_ci_and_the_workflows_run_sessions_of_the_noxfile():
    run = named((ROOT / ".ci" / "run").read_text())
    elsewhere = set().union(*(named(path.read_text()) for path in WORKFLOWS))
    assert run and elsewhere and run | elsewhere == sessions()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path):
    assert re.findall(
        r"^ *permissions:.*\n((?: +.+\n)*?)(?=\S|\n)", path.read_text(), re.MULTILINE
    ) == ["  contents: read\n"]


def test_every_supported_python_is_tested():
    (versions,) = re.findall(
        r"python: (\[.+\])", (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    )
    minors = [int(version.partition(".")[2]) for version in ast.literal_eval(versions)]
    lowest = int(PROJECT["requires-python"].removeprefix(">=3."))
    assert minors == list(range(lowest, lowest + len(minors)))
    (built,) = re.findall(
        r'^build = "cp3\{([\d,]+)\}-', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert list(map(int, built.split(","))) == minors


def test_every_dependency_has_a_tried_version_that_it_allows():
    tried = constraints()
    assert list(tried) == sorted(tried)
    lines = PROJECT["dependencies"] + [
        line for extra in TRIED for line in PROJECT["optional-dependencies"][extra]
    ]
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        if name != PROJECT["name"]:
            assert name in tried, f"constraints.txt has no version of {name}"
            assert tried[name] in requirement.specifier, (
                f"{requirement} does not allow {tried[name]}"
            )


def test_mypy_needs_no_package_of_an_optional_extra():
    """A clone without pydicom passes: each package that the runtime imports is required, or may be missing for mypy."""
    imported = set()
    for path in (ROOT / "runtime" / "organ_infer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    names = {"pillow": "PIL"}
    required = {re.split(r"[>=<\[]", line)[0] for line in PROJECT["dependencies"]}
    required = {names.get(name, name) for name in required}
    (overrides,) = [each for each in MYPY["overrides"] if "ignore_missing_imports" in each]
    missing_allowed = {name.removesuffix(".*") for name in overrides["module"]}
    optional = imported - required - set(sys.stdlib_module_names) - {"organ_infer"}
    assert overrides["ignore_missing_imports"] is True
    assert "pydicom" in optional and optional <= missing_allowed
