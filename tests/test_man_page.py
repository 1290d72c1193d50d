"""The manual page: current, complete, and in valid troff."""

import argparse
import re
import shutil
import subprocess

import pytest
from conftest import ROOT

from docs import make_man_page as script
from organ_infer.cli.arguments import build_parser
from organ_infer.cli.exit_codes import ALL_CLASSIFIED, FAILED, SOME_FAILED
from organ_infer.cli.signals import SIGNALS


def test_the_stored_page_is_the_current_one():
    assert script.PAGE.read_text() == script.man_page(build_parser()), (
        "run python docs/make_man_page.py"
    )


def test_the_check_fails_for_an_old_page_and_writing_repairs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "PAGE", tmp_path / "organ-infer.1")
    assert script.main(["--check"]) == 1
    assert (
        "organ-infer.1 is not current; run python docs/make_man_page.py" in capsys.readouterr().err
    )
    assert script.main([]) == 0 == script.main(["--check"])
    script.PAGE.write_text(script.PAGE.read_text().replace("FILE", "PATH"))
    assert script.main(["--check"]) == 1


def test_every_option_exit_code_and_variable_is_on_the_page():
    page = script.PAGE.read_text().replace("\\-", "-")
    for action in build_parser()._actions:
        for name in action.option_strings or ["PATH"]:
            assert re.search(rf"\\f[BI]{re.escape(name)}\\fR", page), name
    codes = {ALL_CLASSIFIED, SOME_FAILED, FAILED, *(128 + number for number in SIGNALS)}
    assert set(script.EXIT_CODES) == codes
    command = (ROOT / "docs" / "reference" / "command.md").read_text()
    assert all(f"| `{name}` |" in command for name in script.ENVIRONMENT)


def test_special_characters_are_escaped():
    parser = argparse.ArgumentParser(description=".starts a\\b 'c'", add_help=False)
    parser.add_argument("--x", help="50%% of %(default)s", default=3, metavar="N")
    page = script.man_page(parser)
    assert "\n\\&.starts a\\eb \\(aqc\\(aq\n" in page
    assert "\n\\fB\\-\\-x\\fR \\fIN\\fR\n50% of 3\n" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_the_page_is_valid_troff():
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z", script.PAGE], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
