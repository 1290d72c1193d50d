"""Every command of this project's CI, once: `nox -l` lists them, `nox -s lint types` runs two of them.

Each session has an environment of its own. `--default-venv-backend uv` makes them faster. `nox --no-venv --no-install` runs
the sessions in the environment that nox is in. `PIP_CONSTRAINT=constraints.txt` installs the tried versions.
"""

import ast
import os
import subprocess
import tomllib
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
# of the 44 examples
CORRECT_AT_LEAST = 42
INSTALLED_MEGABYTES = 300
# Packages of training and export. The runtime's tests import none of them.
NOT_RUNTIME = {
    "train",
    "export",
    "torch",
    "torchvision",
    "medmnist",
    "scipy",
    "sklearn",
    "matplotlib",
}

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["lint", "types", "tests"]


@nox.session
def main_job(session: nox.Session) -> None:
    """README's first command: install the runtime alone, classify the examples."""
    session.install(".[cpu]")
    examples = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples").glob("*.png"))
    output = Path(session.create_tmp()) / "predictions.txt"
    session.log("organ-infer examples/*.png")
    session.run("organ-infer", "--output", str(output), *examples, log=False)
    answers = [line.split() for line in output.read_text().splitlines()]
    correct = sum(Path(path).stem.rpartition("-")[0] == label for label, _, path in answers)
    session.log(f"{correct} of {len(examples)} examples correct")
    if [path for _, _, path in answers] != examples or correct < CORRECT_AT_LEAST:
        session.error(f"an answer for each example expected, {CORRECT_AT_LEAST} of them correct")
    size = subprocess.run(
        ["du", "-sm", session.virtualenv.location], check=True, capture_output=True
    )
    megabytes = int(size.stdout.split()[0])
    session.log(f"{megabytes} MB installed")
    if megabytes >= INSTALLED_MEGABYTES:
        session.error(f"less than {INSTALLED_MEGABYTES} MB expected")
    session.run(
        "python",
        "-c",
        "import importlib.util as u; assert not u.find_spec('torch'), 'torch is installed'",
    )


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format; the diagram of the imports must be the current one."""
    session.install("ruff")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "docs/make_import_diagram.py", "--check")
    session.run("python", "docs/make_man_page.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """mypy, strict."""
    session.install("-e", ".[dev,cpu]", "pyright[nodejs]", "fastapi", "httpx")
    session.run("mypy")
    # The programs of README and docs, those that need FastAPI as well.
    session.run(
        "pytest",
        "-m",
        "",
        "tests/test_typed_programs.py",
        "tests/test_docs.py",
        "-k",
        "typed or asyncio",
    )


@nox.session
def tests(session: nox.Session) -> None:
    """The tests, on all cores. `nox --force-python 3.13 -s tests` takes another interpreter."""
    session.install("-e", ".[dev,cpu]")
    session.run("pytest", "-n", "auto", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests that take minutes, on all cores. The session types runs the type checkers on the programs of the docs."""
    # what tests/test_building.py builds with
    session.install("-e", ".[dev,cpu]", "setuptools>=77", "cython>=3.1")
    typed = "--ignore=tests/test_typed_programs.py"
    session.run("pytest", "-n", "auto", "-m", "slow", typed, *session.posargs)


@nox.session
def extras(session: nox.Session) -> None:
    """The tests of Ray, Triton and the example notebook, with the newest packages, which the development environment lacks.

    CPython before 3.11.8 can fail to parse Python while threads of Ray run or objects are collected
    (https://github.com/python/cpython/issues/106905), and pytest then ends with an internal error. It parses for its usual
    tracebacks, and when its hypothesis plugin imports a module at the end: so neither is used here.
    """
    session.install(
        *("-e", ".[cpu,parquet,ray,serve]", "ray[serve]", "tritonclient[grpc]"),
        *("onnx", "pandas", "pytest", "nbclient", "ipykernel"),
    )
    # the tests skip without these
    session.run(
        *("python", "-c"),
        "import ray.data, ray.serve, pyarrow, pandas, tritonclient.grpc.model_config_pb2, nbclient, ipykernel",
    )
    session.run(
        *("pytest", "--tb=native", "tests/test_ray.py", "tests/test_ray_serve.py"),
        *("tests/test_triton.py", "tests/test_parquet.py", "tests/test_example_notebook.py"),
        *session.posargs,
    )


@nox.session
def browser(session: nox.Session) -> None:
    """The web page of export.web in a headless Chromium or Chrome. npm downloads its packages."""
    session.install("-e", ".[cpu,dicom]", "onnx", "pytest")
    # the tests skip without these
    needed = "import shutil; from tests.support.chromium import find_chromium; assert find_chromium() and shutil.which('npm')"
    session.run("python", "-c", needed)
    session.run("pytest", "-m", "browser", "tests/test_web_browser.py", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def runtime(session: nox.Session) -> None:
    """The runtime's tests under each version of Python that is installed here, without PyTorch."""
    session.install(
        *("-e", ".[cpu,volume,serve]", "onnx"),
        *("pytest", "pytest-xdist", "pytest-benchmark", "hypothesis"),
    )
    session.run("pytest", "-n", "auto", *(session.posargs or runtime_tests()))


@nox.session
def frozen(session: nox.Session) -> None:
    """A program made by PyInstaller, built and run."""
    session.install(".[cpu,dicom]", "pyinstaller", "pytest")
    session.run("pytest", "-m", "slow", "tests/test_frozen.py", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The runtime's tests with the oldest versions that pyproject.toml allows of what the runtime imports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = project["dependencies"] + extras["cpu"] + extras["volume"] + extras["serve"]
    required += [line for line in extras["train"] if line.startswith("onnx>=")]
    oldest = [line.replace(">=", "==") for line in required]
    session.install("-e", ".", *oldest, "pytest", "pytest-xdist", "pytest-benchmark", "hypothesis")
    session.run("pytest", "-n", "auto", *(session.posargs or runtime_tests()))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, in build/site."""
    session.install("-e", ".[docs,cpu]")
    session.run("mkdocs", "build", "--strict")


@nox.session
def wheels(session: nox.Session) -> None:
    """sdist and wheel: built, looked at, installed and run. `-- --python P ...` names the interpreters."""
    session.install(
        "build", "cython>=3.1", "numpy>=2.0", "setuptools>=77", "auditwheel", "abi3audit"
    )
    session.run("python", "tests/endurance/wheels.py", *session.posargs)


@nox.session
def sanitizers(session: nox.Session) -> None:
    """The C extensions under AddressSanitizer and UndefinedBehaviorSanitizer."""
    session.install("-e", ".[dev,cpu]", "setuptools>=77", "cython>=3.1")
    session.run(
        "bash",
        "tests/endurance/sanitize.sh",
        *session.posargs,
        env={"PYTHON": "python"},
        external=True,
    )


@nox.session
def mutate(session: nox.Session) -> None:
    """Do the tests notice a changed line? A sample of the files that changed most; `-- COMMIT`: since then, not in a day."""
    session.install("-e", ".[dev,cpu]")
    asked = ["git", "rev-list", "-1", "--before=1 day ago", "HEAD"]
    base = (
        session.posargs[0]
        if session.posargs
        else session.run(*asked, external=True, silent=True).strip()
    )
    if not base:
        session.skip("no commit is older than a day")
    command = [
        "python",
        "tests/endurance/mutate.py",
        "--changed-since",
        base,
        "--most-changed",
        "4",
        "--sample",
        "12",
    ]
    session.run(*command)


def runtime_tests() -> list[str]:
    """The test files that need neither PyTorch nor what is beside it."""
    return [
        os.path.relpath(path, ROOT)
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if not imported(path) & NOT_RUNTIME
    ]


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=aliases):
                names |= {alias.name.partition(".")[0] for alias in aliases}
            case ast.ImportFrom(module=str(module), level=0):
                names.add(module.partition(".")[0])
    return names
