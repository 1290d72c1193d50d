"""Printing never ends a command: ASCII, closed and full standard output, and python -OO."""

import importlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from export.console import forgiving_output

ROOT = Path(__file__).resolve().parent.parent
PRINTS = """
import os, sys
from export.console import forgiving_output
with forgiving_output():
    print("{text}", flush=True)
    print("to stderr", file=sys.stderr, flush=True)
    descriptor = os.open("kept", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, b"kept")
    os.write(1, b"from a library")
    os.write(2, b"from a library")
"""


def prints(folder, redirection, text="a line", **environment):
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, PRINTS.format(text=text)],
        cwd=folder,
        capture_output=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )


@pytest.mark.parametrize(
    "redirection",
    [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", pytest.param("> /dev/full 2> /dev/full", marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full"))],
)  # fmt: skip
def test_a_closed_or_full_output_ends_nothing_and_no_file_takes_its_place(tmp_path, redirection):
    if "full" in redirection:
        source = PRINTS.replace('os.write(1, b"from a library")', "").replace('os.write(2, b"from a library")', "")  # fmt: skip
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" -c "$1" {redirection}', sys.executable, source],
            cwd=tmp_path,
            timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    else:
        done = prints(tmp_path, redirection)
    assert done.returncode == 0
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_characters_that_the_encoding_does_not_have_are_replaced(tmp_path):
    done = prints(tmp_path, "", r"0.9 ± 0.1 – \udcff µ", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == rb"0.9 +- 0.1 - \udcff \xb5"


def test_the_streams_are_put_back(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(KeyError), forgiving_output():
        print("a line")
        raise KeyError
    assert sys.stdout is stream and stream.getvalue() == "a line\n"


def test_a_reader_that_has_ended_ends_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", "from export.console import forgiving_output\nwith forgiving_output(): print('x' * 99999)"],
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 0 and done.stderr == b""


@pytest.mark.parametrize(
    "module",
    [
        "train.all",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("train.report", "train.robustness", "export.all", "export.triton")
        ),
    ],
)
def test_help_needs_no_docstrings(module):
    done = subprocess.run(
        [sys.executable, "-OO", "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"},
    )
    assert done.returncode == 0 and "usage: " in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"MPLBACKEND": "no such backend"},
        # Each takes a process that imports matplotlib.
        pytest.param(
            {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, marks=pytest.mark.slow
        ),
        pytest.param({"MPLBACKEND": "tkagg", "DISPLAY": ":99"}, marks=pytest.mark.slow),
        pytest.param({"MPLBACKEND": ""}, marks=pytest.mark.slow),
        pytest.param({"MPLCONFIGDIR": "/proc/none"}, marks=pytest.mark.slow),
        pytest.param({"MATPLOTLIBRC": "rc"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_charts_are_drawn_whatever_is_set_for_matplotlib(tmp_path, variables):
    (tmp_path / "rc").write_text("backend: nonsense\ntext.usetex: True\naxes.grid: x\n")
    code = """
import os, sys
before = os.environ.get("MPLBACKEND")
from train.report import figures
assert os.environ.get("MPLBACKEND") == before
assert "matplotlib.pyplot" not in sys.modules
with figures.drawing():
    print(len(figures.to_svg(figures.contact_sheet([], []), "a")))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"} | variables,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 500


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("export.all", "export"),
        ("export.golden", "export"),
        ("export.triton", "export"),
        ("train.robustness", "train.robustness"),
        ("train.report.__main__", "train.report"),
        ("train.edge.ablate", "ablate"),
        ("train.edge.distill", "distill"),
    ],
)
def test_ctrl_c_is_one_line(monkeypatch, capsys, module, name):
    def interrupted(arguments):
        raise KeyboardInterrupt

    command = importlib.import_module(module)
    monkeypatch.setattr(command, "_run", interrupted)
    assert command.main([]) == 130
    assert capsys.readouterr().err == f"{name}: interrupted\n"
