"""A bundle of a smoke run warns at every use that its answers mean nothing."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

from export import triton
from export.triton_config import Serving
from organ_infer import OrganClassifier
from organ_infer.cli.arguments import parse
from organ_infer.cli.check import check
from organ_infer.cli.command import main

WARNING = "from a smoke run, its answers mean nothing; train without --smoke"


@pytest.fixture
def smoke_bundle(bundle_copy):
    """The small bundle, as a smoke run would have written it."""
    return marked(bundle_copy, True)


def marked(folder, smoke):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["training"].pop("seal", None)
    manifest["training"]["smoke"] = smoke
    path.write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "slice.npy"
    np.save(path, np.zeros((28, 28), np.uint8))
    return path


def test_the_library_logs_one_warning(smoke_bundle, caplog):
    with OrganClassifier(smoke_bundle, device="cpu") as classifier:
        classifier.predict_proba(np.zeros((3, 28, 28), np.uint8))
        name = classifier.manifest.name
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, f"{name}: {WARNING}")
    ]


@pytest.mark.parametrize("value", [False, "no", 1, None])
def test_no_other_bundle_warns(bundle_copy, caplog, value):
    OrganClassifier(marked(bundle_copy, value), device="cpu").close()
    assert not caplog.records


def test_the_command_writes_one_line_and_none_if_quiet(smoke_bundle, image, capsys):
    arguments = ["--device", "cpu", "--bundle", str(smoke_bundle), str(image)]
    assert main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.err.count(WARNING) == 1 and WARNING not in shown.out
    assert main(["--quiet", *arguments]) == 0
    assert WARNING not in capsys.readouterr().err


def test_the_check_shows_it(smoke_bundle):
    lines, problems = check(parse(["--check", "--device", "cpu", "--bundle", str(smoke_bundle)]))
    assert [line for line in lines if line.startswith("warning ") and line.endswith(WARNING)]
    assert not any(WARNING in problem for problem in problems)


def test_a_repository_for_triton_warns(smoke_bundle, tmp_path, capsys):
    serving = Serving(kind="KIND_CPU", instances=1, batch=8)
    triton.write_repository(
        smoke_bundle, tmp_path / "models", device="cpu", precision="listed", serving=serving
    )
    assert capsys.readouterr().err.startswith("export: warning: ")
