"""The command and the reading of files: `pytest tests/benchmarks/test_command.py -s` prints the ratios and asserts.

The packaged model, on the first 8,827 training slices of OrganAMNIST as PNG files, as many as OrganSMNIST's test split
holds; without organamnist.npz, smooth random ones. From start to exit, every run is a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from organ_infer import OrganClassifier
from organ_infer._packing import pack
from organ_infer.engine.cpu_count import usable_processors
from organ_infer.images.registry import open_slices
from tests.benchmarks.comparison import compare
from tests.conftest import ROOT, child_environment, needs_default
from tests.support.data_files import DATA

COUNT = 8827
ROUNDS = 7
COMMAND = "import sys; from organ_infer.cli import main; sys.exit(main())"
IN_MEMORY = """
import sys, numpy
from organ_infer import OrganClassifier
images, threads = numpy.load(sys.argv[1]), int(sys.argv[2])
with OrganClassifier(device="cpu", threads=threads) as classifier:
    assert len(classifier.predict(images)) == len(images)
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The slices, uint8 (N, 28, 28), the path of the array, and the paths of the same as PNG, written by Pillow."""
    if (DATA / "organamnist.npz").is_file():
        with np.load(DATA / "organamnist.npz") as split:
            slices = split["train_images"][:COUNT]
    else:
        steps = np.random.default_rng(0).integers(-9, 10, (COUNT, 28, 28))
        slices = (steps.cumsum(1).cumsum(2) % 256).astype(np.uint8)
    folder, array = (
        tmp_path_factory.mktemp("files"),
        tmp_path_factory.mktemp("array") / "slices.npy",
    )
    np.save(array, slices)
    paths = [str(folder / f"{i:05}.png") for i in range(len(slices))]
    for pixels, path in zip(slices, paths, strict=True):
        Image.fromarray(pixels).save(path)
    return slices, array, paths


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python code, compiled modules kept as an installed package's are."""
    environment = child_environment(PYTHONPYCACHEPREFIX=str(tmp_path_factory.mktemp("compiled")))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(*arguments, output=subprocess.DEVNULL):
        command = [sys.executable, "-c", *map(str, arguments)]
        subprocess.run(
            command, check=True, stdout=output, stderr=subprocess.DEVNULL, env=environment
        )

    return run


# Files, start to exit.


@pytest.fixture(scope="module")
def runs(files, python, tmp_path_factory):
    """name -> all of the slices from start to exit."""
    _, array, paths = files
    folder = tmp_path_factory.mktemp("rows")
    rows, listed, directory = folder / "rows", folder / "list", os.path.dirname(paths[0])
    listed.write_text("\n".join(paths))
    threads = usable_processors()
    script = Path(__file__).with_name("plain_script.py").read_text()

    def command(*arguments):
        with open(rows, "wb") as output:
            python(COMMAND, "--device", "cpu", "--threads", threads, *arguments, output=output)
        assert rows.read_bytes().count(b"\n") >= len(paths)

    return {
        "arrays": lambda: python(IN_MEMORY, array, threads),
        "text": lambda: command(*paths),
        "jsonl": lambda: command("--format", "jsonl", *paths),
        "list-on-standard-input": lambda: command("--files-from", listed),
        "directory": lambda: command(directory),
        "plain-script": lambda: python(script, directory, threads),
    }


AGAINST_ARRAYS = f"{COUNT:,} PNG files against arrays, start to exit"
AGAINST_SCRIPT = f"{COUNT:,} PNG files against a plain script with PyTorch, start to exit"


@needs_default
def test_arrays(benchmark, runs):
    """The same slices in one array."""
    compare(
        benchmark, runs["arrays"], runs["text"], group=AGAINST_ARRAYS, against="text", rounds=ROUNDS
    )


@needs_default
@pytest.mark.parametrize("given", ["list-on-standard-input", "jsonl", "text"])
def test_files_take_at_most_a_quarter_longer_than_arrays(benchmark, runs, given):
    """Only text is held to the limit; the others are shown beside it."""
    medians = compare(
        benchmark,
        runs[given],
        runs["arrays"],
        group=AGAINST_ARRAYS,
        against="arrays",
        rounds=ROUNDS,
    )
    assert given != "text" or medians.ratio <= 1.25


@needs_default
def test_plain_script(benchmark, runs):
    """Pillow, torchvision's transforms and the same network in PyTorch eager."""
    pytest.importorskip("torchvision", reason="the baseline is PyTorch")
    compare(
        benchmark,
        runs["plain-script"],
        runs["directory"],
        group=AGAINST_SCRIPT,
        against="organ-infer",
        rounds=3,
    )


@needs_default
def test_eight_times_as_fast_as_a_plain_script(benchmark, runs):
    pytest.importorskip("torchvision", reason="the baseline is PyTorch")
    medians = compare(
        benchmark,
        runs["directory"],
        runs["plain-script"],
        group=AGAINST_SCRIPT,
        against="a plain script",
        rounds=3,
    )
    assert medians.speedup >= 8


# Reading, in this process.


@pytest.fixture(scope="module")
def classifier():
    with OrganClassifier(device="cpu") as opened:
        yield opened


@pytest.fixture
def same_files(files, suffix):
    """The slices as files of a format; PNG is read in C, BMP by Pillow."""
    _, _, paths = files
    if suffix == "png":
        return paths
    for path in paths:
        if not os.path.exists(f"{path}.bmp"):
            Image.open(path).save(f"{path}.bmp")
    return [f"{path}.bmp" for path in paths]


@needs_default
@pytest.mark.parametrize("contestant", ["in-between", "ahead"])
@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_reading_ahead_costs_nothing(benchmark, classifier, same_files, suffix, contestant):
    """Of a list the next batch is read during prediction, of an iterator it is not."""

    def ahead():
        return list(classifier.predict_paths(same_files))

    def in_between():
        return list(classifier.predict_paths(iter(same_files)))

    options = {"group": f"{COUNT:,} {suffix.upper()} files, predict_paths", "rounds": ROUNDS}
    if contestant == "in-between":
        compare(benchmark, in_between, ahead, against="reading ahead", **options)
        return
    medians = compare(benchmark, ahead, in_between, against="reading in between", **options)
    assert medians.ratio <= 1.05


@pytest.fixture(scope="module")
def readers(files):
    """name -> all of the slices opened, read, decoded and packed, the files in the system's cache."""
    read = pytest.importorskip("organ_infer._reading", reason="built without zlib").read
    _, _, paths = files

    def in_c(threads):
        packed, done = read(paths, threads=threads)
        assert all(done)
        return packed

    return {
        "pillow": lambda: pack([np.asarray(Image.open(path)) for path in paths]),
        # Opens each file twice and verifies it.
        "open-slices": lambda: pack(
            [read().pixels for path in paths for _, read in open_slices(path)]
        ),
        "c-two-threads": lambda: in_c(2),
        "c-one-thread": lambda: in_c(1),
    }


@pytest.mark.parametrize(
    ("name", "against", "speedup"),
    [
        pytest.param("pillow", "c-one-thread", 0, id="pillow"),
        pytest.param("open-slices", "c-one-thread", 0, id="open-slices"),
        pytest.param("c-two-threads", "c-one-thread", 0, id="c-two-threads"),
        pytest.param("c-one-thread", "open-slices", 5, id="c-one-thread-against-open-slices"),
        pytest.param("c-one-thread", "pillow", 2.5, id="c-one-thread-against-pillow"),
    ],
)
def test_reading_in_c(benchmark, files, readers, name, against, speedup):
    slices, _, _ = files
    options = {"group": f"{COUNT:,} PNG files of 28x28, read and packed", "rounds": ROUNDS}
    assert (readers[name]() == pack(slices)).all()
    medians = compare(benchmark, readers[name], readers[against], against=against, **options)
    assert medians.speedup >= speedup


# What answers at once.


@pytest.fixture(scope="module")
def starts(python):
    """name -> a process from start to exit."""
    example = ROOT / "examples" / "liver-1.png"
    return {
        "python-alone": lambda: python("pass"),
        "help": lambda: python(COMMAND, "--help"),
        "version": lambda: python(COMMAND, "--version"),
        "import-onnxruntime": lambda: python("import onnxruntime"),
        "one-prediction": lambda: python(COMMAND, "--device", "cpu", example),
    }


# name -> its baseline, at most how many times as long it takes. The aim for one prediction was 1.4.
STARTS = {
    "python-alone": ("version", None),
    "help": ("python-alone", None),
    "version": ("python-alone", 4),
    "import-onnxruntime": ("one-prediction", None),
    "one-prediction": ("import-onnxruntime", 1.8),
}


@needs_default
@pytest.mark.parametrize("name", STARTS)
def test_starting(benchmark, starts, name):
    against, limit = STARTS[name]
    medians = compare(
        benchmark,
        starts[name],
        starts[against],
        group="start to exit",
        against=against,
        rounds=3 * ROUNDS,
    )
    assert limit is None or medians.ratio <= limit
