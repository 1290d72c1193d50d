"""docs/deploy/other_languages.md: the golden vectors, and the C++ program, which is built and compared with the classifier."""

import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_graph, needs_default, write_bundle
from PIL import Image
from support.tiny_graphs import model_of

from organ_infer import OrganClassifier
from organ_infer._packing import pack
from organ_infer.bundle.files import packaged_bundle, read_manifest
from organ_infer.bundle.golden import golden_answers, tolerance

PROGRAM = ROOT / "examples" / "cpp"
VECTORS = json.loads((ROOT / "docs" / "deploy" / "golden_vectors.json").read_text())
SUBSET = ROOT / "tests" / "support" / "onnxruntime_subset"
# the directory of the real header
HEADERS = Path(os.environ.get("ORT_INCLUDE", "/usr/include/onnxruntime"))
PAGE = (ROOT / "docs" / "deploy" / "other_languages.md").read_text()


def script():
    specification = importlib.util.spec_from_file_location(
        "make_golden_vectors", ROOT / "docs" / "make_golden_vectors.py"
    )
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# Golden vectors.


def test_the_golden_vectors_are_current(tmp_path, monkeypatch, capsys):
    module = script()
    assert module.main(["--check"]) == 0
    stale = tmp_path / "stale.json"
    monkeypatch.setattr(module, "VECTORS", stale)
    assert module.main(["--check"]) == 1
    assert "not current; run python docs/make_golden_vectors.py" in capsys.readouterr().err
    assert module.main([]) == 0 and module.main(["--check"]) == 0
    stale.write_text(stale.read_text().replace("0.5", "0.6", 1))
    assert module.main(["--check"]) == 1


def test_the_golden_vectors_cover_each_step():
    vectors = VECTORS["vectors"]
    assert f"{len(vectors)} small slices" in PAGE
    assert {each["resample"] for each in vectors} == {"area", "linear", "cubic"}
    assert {each["dtype"] for each in vectors} == {"uint8", "uint16", "int16"}
    for vector in vectors:
        assert (vector["window"] is not None) == (vector["dtype"] == "int16")
        pixels = np.array(vector["pixels"], vector["dtype"])
        assert pixels.tolist() == vector["pixels"]
        packed = pack(
            pixels,
            VECTORS["input"]["size"],
            mean=VECTORS["input"]["mean"],
            std=VECTORS["input"]["std"],
            window=vector["window"],
            resample=vector["resample"],
        )
        np.testing.assert_array_equal(np.array(vector["packed"], np.float32), packed[0, 0])


# The C++ program.


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A directory with the wheel's libonnxruntime under the usual names."""
    onnxruntime = pytest.importorskip("onnxruntime")
    found = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if not found:
        pytest.skip("this onnxruntime has no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("library")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(found[-1])
    return folder


def built(folder, library, include):
    if shutil.which("make") is None or shutil.which("g++") is None:
        pytest.skip("needs make and g++")
    shutil.copytree(PROGRAM, folder / "cpp", ignore=shutil.ignore_patterns("classify"))
    command = ["make", f"ORT_INCLUDE={include}", f"ORT_LIB={library}", "CXX=g++"]
    done = subprocess.run(
        [*command, "CXXFLAGS=-O1 -Wall -Wextra -Werror"],
        cwd=folder / "cpp",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "cpp" / "classify"


@pytest.fixture(scope="module")
def program(tmp_path_factory, library):
    """The program, built with the substitute of onnxruntime's header."""
    return built(tmp_path_factory.mktemp("program"), library, SUBSET)


def answers(program, bundle, paths):
    """The labels and probabilities that the program prints."""
    done = subprocess.run([program, bundle, *paths], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert [path for _, _, path in rows] == [str(path) for path in paths]
    return [label for label, _, _ in rows], np.array([float(value) for _, value, _ in rows])


def assert_same_answers(program, bundle, paths, limit=2e-5):
    with OrganClassifier(bundle, device="cpu") as classifier:
        expected = list(classifier.predict_paths(paths))
    labels, probabilities = answers(program, bundle, paths)
    assert labels == [each.label for each in expected]
    np.testing.assert_allclose(
        probabilities, [each.probability for each in expected], rtol=0, atol=limit
    )


def write_pgm(path, pixels):
    height, width = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(f"P5\n{width} {height}\n{np.iinfo(pixels.dtype).max}\n".encode() + data)
    return path


@pytest.fixture(scope="module")
def pgm_files(tmp_path_factory):
    """Slices of many sizes, 8 and 16 bits."""
    folder = tmp_path_factory.mktemp("pgm")
    rng = np.random.default_rng(5)
    paths = []
    for height, width in [
        (28, 28),
        (56, 56),
        (40, 61),
        (300, 29),
        (9, 11),
        (28, 90),
        (5, 200),
        (27, 29),
    ]:
        for dtype in (np.uint8, np.uint16):
            # a coarse picture, so that answers differ
            coarse = rng.integers(0, np.iinfo(dtype).max + 1, (4, 5))
            pixels = coarse[np.arange(height) * 4 // height][:, np.arange(width) * 5 // width]
            noise = rng.integers(0, np.iinfo(dtype).max // 4, (height, width))
            pixels = np.minimum(pixels + noise, np.iinfo(dtype).max).astype(dtype)
            paths.append(write_pgm(folder / f"{height}x{width}-{np.dtype(dtype).name}.pgm", pixels))
    return paths


def test_the_program_is_short():
    assert len((PROGRAM / "classify.cpp").read_text().splitlines()) < 150


@pytest.mark.skipif(
    not (HEADERS / "onnxruntime_c_api.h").is_file(),
    reason="onnxruntime_c_api.h is not installed; ORT_INCLUDE names its directory",
)
def test_the_program_builds_with_the_real_header(tmp_path, library, bundle, pgm_files):
    assert_same_answers(built(tmp_path, library, HEADERS), bundle, pgm_files)


@needs_default
def test_the_program_gives_the_answers_of_the_runtime_on_the_examples(program, tmp_path):
    paths = []
    for example in sorted((ROOT / "examples").glob("*.png")):
        paths.append(tmp_path / f"{example.stem}.pgm")
        Image.open(example).save(paths[-1])
    assert len(paths) == 44
    assert_same_answers(program, packaged_bundle(), paths)


@needs_default
def test_the_page_shows_what_the_program_prints(program, tmp_path):
    Image.open(ROOT / "examples" / "liver-1.png").save(tmp_path / "slice.pgm")
    done = subprocess.run(
        [program, packaged_bundle(), "slice.pgm"], capture_output=True, text=True, cwd=tmp_path
    )
    (shown,) = [line for line in PAGE.splitlines() if line.startswith("liver ")]
    assert done.stdout.split()[::2] == shown.split()[::2]
    assert abs(float(done.stdout.split()[1]) - float(shown.split()[1])) <= 0.02


@pytest.mark.parametrize("resample", ["area", "linear", "cubic"])
def test_slices_of_all_sizes_are_resampled_as_the_manifest_says(
    program, tmp_path, pgm_files, resample
):
    graph = make_graph(seed=4, scale=0.4)

    def change(manifest):
        manifest["input"].update(resample=resample, mean=0.4, std=0.3)
        manifest["temperature"] = 1.7

    bundle = write_bundle(tmp_path / "b", {"g.onnx": graph}, change=change)
    assert_same_answers(program, bundle, pgm_files)


def test_an_ensemble_is_averaged(program, ensemble, probabilities_bundle, pgm_files):
    """Also if one member returns probabilities, and with a temperature."""
    assert_same_answers(program, ensemble, pgm_files)
    assert_same_answers(program, probabilities_bundle, pgm_files)


def test_a_raw_slice_has_the_answer_of_its_pgm(program, bundle, tmp_path, slices):
    raw, pgm = tmp_path / "slice.raw", write_pgm(tmp_path / "slice.pgm", slices[0])
    raw.write_bytes(slices[0].tobytes())
    (label, same), values = answers(program, bundle, [raw, pgm])
    assert label == same and values[0] == values[1]


def probe_graph(matrix):
    """logits (N, 2) = pixels (N, 64) @ matrix"""
    from onnx import helper

    nodes = [
        helper.make_node("Flatten", ["images"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "matrix"], ["logits"]),
    ]
    weights = {"matrix": matrix.astype(np.float32)}
    return model_of(nodes, {"images": [1, 8, 8]}, {"logits": [2]}, weights).SerializeToString()


@pytest.mark.parametrize("resample", ["area", "linear", "cubic"])
def test_the_program_packs_the_golden_vectors(program, tmp_path, resample):
    """A network that adds up the input with random weights gives the probability that the stored input has."""
    matrix = np.random.default_rng(6).normal(size=(64, 2)) * 0.05

    def change(manifest):
        manifest["input"].update(VECTORS["input"], resample=resample)
        manifest["task"].update(classes=["liver", "spleen"], paired=[])

    bundle = write_bundle(tmp_path / "b", {"g.onnx": probe_graph(matrix)}, change=change)
    chosen = [
        each
        for each in VECTORS["vectors"]
        if each["resample"] == resample and each["dtype"] != "int16"
    ]
    paths = [
        write_pgm(tmp_path / f"{i}.pgm", np.array(each["pixels"], each["dtype"]))
        for i, each in enumerate(chosen)
    ]
    logits = np.array([np.ravel(each["packed"]) @ matrix for each in chosen])
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert len(chosen) >= 4 and expected.max(axis=1).max() < 0.9
    labels, probabilities = answers(program, bundle, paths)
    assert labels == [["liver", "spleen"][index] for index in expected.argmax(axis=1)]
    np.testing.assert_allclose(probabilities, expected.max(axis=1), rtol=0, atol=2e-6)


@needs_default
def test_the_program_knows_the_known_answers(program, tmp_path):
    assert script().main(["--slices", str(tmp_path / "golden")]) == 0
    paths = sorted((tmp_path / "golden").iterdir())
    manifest = read_manifest(packaged_bundle())
    known = golden_answers(manifest, "cpu")
    assert len(paths) == len(known) == 16
    _, probabilities = answers(program, packaged_bundle(), paths)
    np.testing.assert_allclose(
        probabilities, known.max(axis=1), rtol=0, atol=tolerance(manifest, "cpu")
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"P5 28 28 255\n" + bytes(783), "expected a binary PGM"),
        (b"P5 28 28 255\n" + bytes(785), "expected a binary PGM"),
        (b"P5 28 28 100\n" + bytes(784), "expected a binary PGM"),
        (b"P5 28 28 65535\n" + bytes(784), "expected a binary PGM"),
        (b"P5 0 28 255\n", "expected a binary PGM"),
        (b"P5 -1 -784 255\n" + bytes(784), "expected a binary PGM"),
        (b"P5\n# comment\n28 28 255\n" + bytes(784), "expected a binary PGM"),
        (b"P2 28 28 255\n" + b"0 " * 784, "expected a binary PGM"),
        (b"\x89PNG\r\n", "expected a binary PGM"),
        (b"P5 28 28", "expected a binary PGM"),
        (b"", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_the_program_refuses_other_images(program, bundle, tmp_path, content, expected):
    path = tmp_path / "image"
    if content is not None:
        path.write_bytes(content)
    done = subprocess.run([program, bundle, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"classify: {path}: {expected}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda text: text[: len(text) // 2], "manifest.json: not complete"),
        (lambda text: "", "manifest.json: cannot be read"),
        (lambda text: text.replace('"temperature"', '"temper"'), "no key /temperature"),
        (lambda text: text.replace("small.onnx", "other.onnx"), "other.onnx: cannot be read"),
        (lambda text: text.replace('"spleen"', '"spleen", "more"'), "classify: "),
        (lambda text: text.replace('"size": 28', '"size": 29'), "classify: "),
    ],
)
def test_the_program_refuses_damaged_bundles(
    program, bundle_copy, tmp_path, slices, change, expected
):
    manifest = bundle_copy / "manifest.json"
    text = manifest.read_text()
    assert change(text) != text
    manifest.write_text(change(text))
    path = write_pgm(tmp_path / "a.pgm", slices[0])
    done = subprocess.run([program, bundle_copy, path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert expected in done.stderr and done.stderr.startswith("classify: ")


def test_the_program_names_its_arguments(program):
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "classify: usage: classify BUNDLE IMAGE...\n")
