"""The README and the docs show real output: each command and program is run, and its output compared.

Numbers may differ by what the int8 model is allowed to differ between processors.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, child_environment, needs_default

TOLERANCE = 0.02  # docs/reference/check.md
NUMBER = re.compile(r"(?<![\w.-])\d+\.\d+(?:e-\d+)?|\d+e-\d+")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SELF_TEST = "organ-infer --check"  # shown from another machine


def blocks(page, pattern):
    return [
        (f"{page.relative_to(ROOT)}:{number}", *found.groups())
        for number, found in enumerate(
            re.finditer(pattern, page.read_text(), re.MULTILINE | re.DOTALL), 1
        )
    ]


COMMANDS = [
    block
    for page in PAGES
    for block in blocks(page, r"^```console\n\$ (organ-infer [^\n]+)\n(.*?)^```")
    if block[1] != SELF_TEST
]
PROGRAMS = [
    block
    for name in (
        "README.md",
        "docs/quickstart.md",
        "docs/reference/python.md",
        "docs/guides/embedding.md",
        "docs/guides/explanations.md",
        "docs/guides/evaluation.md",
    )
    for block in blocks(
        ROOT / name, r"^```python\n([^`]+?)^```\n+(?:The program prints:\n+)?^```text\n(.*?)^```"
    )
]


def assert_same(printed, shown):
    """Equal words, and numbers within the tolerance."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    for found, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        assert abs(float(found) - float(expected)) <= TOLERANCE, (found, expected)


def output_of(*command):
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=child_environment(PYTHONUNBUFFERED="1"),
        timeout=120,
    )
    return done.stdout


def test_the_readme_shows_three_calls_and_a_program():
    assert sum(name.startswith("README") for name, *_ in COMMANDS) == 3
    assert sum(name.startswith("README") for name, *_ in PROGRAMS) == 1
    assert len(COMMANDS) >= 10 and len(PROGRAMS) >= 5


@needs_default
@pytest.mark.parametrize(
    ("where", "command", "shown"), COMMANDS, ids=[where for where, *_ in COMMANDS]
)
def test_a_command_prints_what_is_shown(where, command, shown):
    name, *arguments = shlex.split(command)
    assert name == "organ-infer"
    assert_same(output_of(sys.executable, "-m", "organ_infer", *arguments), shown)


@needs_default
@pytest.mark.parametrize(
    ("where", "program", "shown"), PROGRAMS, ids=[where for where, *_ in PROGRAMS]
)
def test_a_program_prints_what_is_shown(where, program, shown, tmp_path):
    (tmp_path / "program.py").write_text(program)
    assert_same(output_of(sys.executable, tmp_path / "program.py"), shown)


# The scan of docs/guides/volumes.md, which no clone holds.

SCANS = Path(os.environ.get("ORGAN_SCANS_DIR", "/nonexistent")) / "totalsegmentator"


@needs_default
@pytest.mark.skipif(
    not SCANS.is_dir(), reason="ORGAN_SCANS_DIR does not name the directory of the CT scans"
)
def test_the_command_for_scans_prints_what_is_shown():
    page = (ROOT / "docs" / "guides" / "volumes.md").read_text()
    (command,) = re.findall(
        r"^organ-infer (volume --quiet .* --mask .*) \| grep -v '\^ '$", page, re.MULTILINE
    )
    organs, warnings = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[:2]
    arguments = [word for word in shlex.split(command) if word != "--quiet"]
    done = subprocess.run(
        [sys.executable, "-m", "organ_infer", *arguments],
        capture_output=True,
        text=True,
        cwd=SCANS,
        env=child_environment(),
        timeout=120,
    )
    lines = done.stdout.splitlines(keepends=True)
    assert_same("".join(line for line in lines if not line.startswith(" ")), organs)
    told = done.stderr.splitlines(keepends=True)
    warned = [line for line in told if "warning: " in line]
    implausible = [line for line in warned if "plausibility below" in line]
    slices = sum(int(number) for line in implausible for number in re.findall(r"(\d+) of", line))
    assert "".join(line for line in warned if line not in implausible) == warnings
    (number,) = re.findall(r"about (\d+) slices of low", page)
    # int8 answers differ between processors
    assert abs(slices - int(number)) <= 3
    assert sum("note: " in line for line in told) == len(told) - len(warned) == 1


# Lines without shown output.

# What a reader must bring: its first directory or name, and the words that tell so.
OWN = {
    "usual": "With your crops in `usual/`",
    "sagittal": "# sagittal/: your own crops",
    "runs": "python -m train.all",
    "two": "--bundle two/",
    "DIR": "`DIR` holds",
    "SUBSTITUTES": "`SUBSTITUTES` the initial weights",
}
SHELL_PAGES = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
LINES = [
    (page, line.partition("  #")[0])
    for page in SHELL_PAGES
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
] + [
    (page, line)
    for page in SHELL_PAGES
    for line in re.findall(r"`(organ-infer --[^`\n]+/[^`\n]*)`", page.read_text())
]


def own_paths(line):
    """The first parts of the paths of a line that are not in the clone."""
    words = [word.strip("'\"") for word in re.split(r"[\s=<>|]+", line)]
    named = {word.partition("/")[0] for word in words if "/" in word or word in OWN}
    return {name for name in named if not (ROOT / name).exists() and not name.startswith(".venv")}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_path_in_a_command_exists_in_the_clone_or_is_said_to_be_the_readers_own(page, line):
    for name in own_paths(line):
        assert OWN[name] in page.read_text(), f"{page.name} does not say what {name} is"


@needs_default
@pytest.mark.parametrize(
    "line",
    [
        line
        for _, line in LINES
        if re.search(r"(?:^|\| )organ-infer ", line) and not own_paths(line)
    ],
)
def test_a_command_runs_as_written(line, tmp_path):
    program = tmp_path / "bin" / "organ-infer"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m organ_infer "$@"\n')
    program.chmod(0o755)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = child_environment()
    environment["PATH"] = f"{program.parent}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 and "error" not in done.stderr, done.stderr
    assert done.stdout or "--output" in line


def test_the_quickstart_has_commands_that_run():
    assert sum("organ-infer" in line and not own_paths(line) for _, line in LINES) >= 4
