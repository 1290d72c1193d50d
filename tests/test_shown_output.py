"""The README and the docs show real output: each command and program is run, and its output compared.

Numbers may differ by what the int8 model is allowed to differ between processors.
"""

import re
import shlex
import subprocess
import sys

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
