"""export.golden: the stored answers against float64 NumPy that resamples, normalizes and averages on its own."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from conftest import ROOT, child_environment, entry, write_bundle
from onnx import helper

from export.golden import add_golden, main
from organ_infer import BundleError
from organ_infer.bundle.golden import golden_slices
from tests.support.tiny_graphs import SIZE, linear_graph, model_of, softmax

RNG = np.random.default_rng(41)
LOGITS, PROBABILITIES, HALF = (RNG.normal(size=(16, 11)).astype(np.float32) for _ in range(3))
MEAN, STD, TEMPERATURE = 0.4, 0.25, 1.7


def area_weights(pixels):
    """(4, pixels): the share of each pixel in each of four equal parts of the side."""
    edges = np.arange(SIZE + 1) * pixels / SIZE
    shares = [
        [max(0, min(p + 1, high) - max(p, low)) for p in range(pixels)]
        for low, high in pairwise(edges)
    ]
    return np.array(shares) * SIZE / pixels


def expected_pixels():
    """float64 (16, 16): the golden slices by area, in shares of their type's largest value, normalized."""
    found = []
    for piece in golden_slices():
        gray = piece.astype(np.float64) / np.iinfo(piece.dtype).max
        small = area_weights(piece.shape[0]) @ gray @ area_weights(piece.shape[1]).T
        found.append(((small - MEAN) / STD).reshape(-1))
    return np.array(found)


@pytest.fixture
def tiny_bundle(tmp_path):
    """Two members, one of which gives probabilities and has an fp16 variant."""
    graphs = {
        "a.onnx": linear_graph(LOGITS).SerializeToString(),
        "b.onnx": softmax_graph(PROBABILITIES).SerializeToString(),
    }
    half = linear_graph(HALF).SerializeToString()

    def change(manifest):
        manifest["input"].update(size=SIZE, mean=MEAN, std=STD)
        manifest["members"][0]["alternatives"] = [
            entry(half, "c.onnx") | {"stage": "a", "precision": "fp16", "output": "logits"}
        ]

    folder = write_bundle(
        tmp_path / "b",
        graphs,
        outputs={"b.onnx": "probabilities"},
        temperature=TEMPERATURE,
        metrics={"val": {"accuracy": 0.25}},
        change=change,
    )
    (folder / "c.onnx").write_bytes(half)
    return folder


def softmax_graph(matrix):
    """`linear_graph` that ends in its softmax."""
    nodes = [
        helper.make_node("Flatten", ["images"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "matrix"], ["raw"]),
        helper.make_node("Softmax", ["raw"], ["probabilities"], axis=1),
    ]
    return model_of(nodes, {"images": [1, SIZE, SIZE]}, {"probabilities": [11]}, {"matrix": matrix})


def stored(bundle, device):
    golden = json.loads((bundle / "manifest.json").read_text())["metrics"]["golden"]
    assert golden.keys() == {"cpu", "cuda"}
    return np.array([[float(value) for value in row.split()] for row in golden[device]])


@pytest.mark.parametrize("device, logits", [("cpu", LOGITS), ("cuda", HALF)])
def test_the_stored_answers_are_the_mean_probabilities_of_the_device_s_variants(
    device, logits, tiny_bundle
):
    add_golden(tiny_bundle)
    pixels = expected_pixels()
    expected = (softmax(pixels @ logits / TEMPERATURE) + softmax(pixels @ PROBABILITIES)) / 2
    np.testing.assert_allclose(stored(tiny_bundle, device), expected, atol=2e-6)
    assert not np.allclose(stored(tiny_bundle, "cpu"), stored(tiny_bundle, "cuda"), atol=0.01)


def test_the_rest_of_the_manifest_is_as_it_was(tiny_bundle):
    before = json.loads((tiny_bundle / "manifest.json").read_text())
    files = {
        path.name: path.read_bytes()
        for path in tiny_bundle.iterdir()
        if path.name != "manifest.json"
    }
    assert main([str(tiny_bundle)]) == 0
    after = json.loads((tiny_bundle / "manifest.json").read_text())
    assert after["training"].pop("seal") and after["metrics"].pop("golden")
    assert after == before
    assert files == {
        path.name: path.read_bytes()
        for path in tiny_bundle.iterdir()
        if path.name != "manifest.json"
    }
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["b"]


def test_a_manifest_that_cannot_be_written_stays_and_nothing_else_is_left(
    tiny_bundle, monkeypatch, capsys
):
    before = (tiny_bundle / "manifest.json").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(tiny_bundle)]) == 2
    assert capsys.readouterr().err == "export: error: No space left on device\n"
    assert (tiny_bundle / "manifest.json").read_bytes() == before
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["b"]


def test_the_new_manifest_is_whole_on_the_disk_before_it_takes_its_place(tiny_bundle, monkeypatch):
    real, synced = os.replace, []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))

    def replaced(source, target):
        assert synced == [os.stat(source).st_size] and synced[0] > 0
        real(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    add_golden(tiny_bundle)


def test_a_bundle_whose_files_were_changed_gets_no_answers(tiny_bundle):
    (tiny_bundle / "a.onnx").write_bytes((tiny_bundle / "c.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"a\.onnx: sha256"):
        add_golden(tiny_bundle)
    assert main([str(tiny_bundle)]) == 2


def test_the_sessions_are_closed_when_the_answers_are_known(tiny_bundle, monkeypatch):
    from organ_infer.engine.ensemble import Ensemble

    closed, real = [], Ensemble.close

    def close(ensemble):
        closed.append(ensemble)
        real(ensemble)

    monkeypatch.setattr(Ensemble, "close", close)
    add_golden(tiny_bundle)
    assert len(closed) == 2


def test_the_answers_are_of_this_cpu_by_one_thread_whatever_the_device(tiny_bundle, monkeypatch):
    from organ_infer.engine import ensemble, session

    opened, real, averaged, average = [], session.Session.__init__, [], ensemble.Ensemble.__init__

    def record(self, data, **options):
        opened.append((options["where"], options["device"], options["threads"]))
        real(self, data, **options)

    def record_threads(self, manifest, members, sessions, threads):
        averaged.append(threads)
        average(self, manifest, members, sessions, threads)

    monkeypatch.setattr(session.Session, "__init__", record)
    monkeypatch.setattr(ensemble.Ensemble, "__init__", record_threads)
    add_golden(tiny_bundle)
    assert averaged == [1, 1]
    assert opened == [(name, "cpu", 1) for name in ("a.onnx", "b.onnx", "c.onnx", "b.onnx")]


def test_the_module_is_a_command(tiny_bundle):
    def run(*arguments):
        command = [sys.executable, "-m", "export.golden", *arguments]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env=child_environment()
        )

    done = run(str(tiny_bundle))
    assert done.returncode == 0, done.stderr
    assert stored(tiny_bundle, "cpu").shape == (16, 11)
    assert run(str(tiny_bundle / "nothing")).returncode == 2


def test_the_help_says_what_the_command_does(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "Store the networks' probabilities for the golden slices in a bundle's manifest." in text
