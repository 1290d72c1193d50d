"""Races of the command: `pytest tests/benchmarks/test_command.py -s` prints the tables and asserts.

The packaged model, on the first 8,827 training slices of OrganAMNIST as PNG files, as many as OrganSMNIST's test split
holds; without organamnist.npz, smooth random ones. Contestants run in turn, every run a process of its own; a ratio
is that of their medians.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from at_hand import DATA
from conftest import ROOT, child_environment, needs_default
from PIL import Image

from organ_infer import OrganClassifier
from organ_infer._packing import pack
from organ_infer.images import open_slices
from organ_infer.processors import usable_processors

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
    """The slices, uint8 (N, 28, 28), and the paths of the same as PNG, written by Pillow."""
    if (DATA / "organamnist.npz").is_file():
        with np.load(DATA / "organamnist.npz") as split:
            slices = split["train_images"][:COUNT]
    else:
        steps = np.random.default_rng(0).integers(-9, 10, (COUNT, 28, 28))
        slices = (steps.cumsum(1).cumsum(2) % 256).astype(np.uint8)
    folder, array = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("array") / "slices.npy"
    np.save(array, slices)
    paths = [str(folder / f"{i:05}.png") for i in range(len(slices))]
    for pixels, path in zip(slices, paths, strict=True):
        Image.fromarray(pixels).save(path)
    return slices, array, paths


def in_turn(contestants, rounds):
    """Seconds of each, median and quartiles, after one round that does not count."""
    taken = [[] for _ in contestants]
    for round_ in range(rounds + 1):
        for contestant, seconds in zip(contestants, taken, strict=True):
            begin = time.perf_counter()
            contestant()
            if round_:
                seconds.append(time.perf_counter() - begin)
    return [statistics.quantiles(seconds, n=4, method="inclusive") for seconds in taken]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python code, compiled modules kept as an installed package's are."""
    environment = child_environment(PYTHONPYCACHEPREFIX=str(tmp_path_factory.mktemp("compiled")))
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run(*arguments, output=subprocess.DEVNULL):
        command = [sys.executable, "-c", *map(str, arguments)]
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.DEVNULL, env=environment)

    return run


def table(title, names, quartiles):
    print(f"\n{title}")
    for name, (low, middle, high) in zip(names, quartiles, strict=True):
        print(
            f"  {name:<44} {middle * 1e3:9.1f} ms  ({low * 1e3:.1f} to {high * 1e3:.1f})"
            f"  {middle / quartiles[-1][1]:5.2f}"
        )


@needs_default
def test_files_take_at_most_a_quarter_longer_than_arrays(files, python, tmp_path):
    """Start to exit, 8,827 paths on the command line against the same slices in one array."""
    _, array, paths = files
    threads = usable_processors()

    def command(*options, given):
        with open(tmp_path / "rows", "wb") as rows:
            python(COMMAND, "--device", "cpu", "--threads", threads, *options, *given, output=rows)
        assert (tmp_path / "rows").read_bytes().count(b"\n") >= len(paths)

    names = ["organ-infer, text", "organ-infer, jsonl", "organ-infer, a list on standard input", "arrays"]
    (tmp_path / "list").write_text("\n".join(paths))
    taken = in_turn(
        [
            lambda: command(given=paths),
            lambda: command("--format", "jsonl", given=paths),
            lambda: command("--files-from", tmp_path / "list", given=[]),
            lambda: python(IN_MEMORY, array, threads),
        ],
        ROUNDS,
    )
    table(f"{len(paths):,} PNG files of 28x28, {threads} threads, start to exit", names, taken)
    assert taken[0][1] <= 1.25 * taken[-1][1]


@needs_default
def test_files_against_a_plain_script(files, python):
    """Start to exit, against Pillow, torchvision's transforms and the same network in PyTorch eager."""
    pytest.importorskip("torchvision", reason="the peer is PyTorch")
    folder, threads = os.path.dirname(files[2][0]), usable_processors()
    script = Path(__file__).with_name("plain_script.py").read_text()
    names = ["organ-infer", "a plain script with PyTorch"]
    taken = in_turn(
        [
            lambda: python(COMMAND, "--device", "cpu", "--threads", threads, folder),
            lambda: python(script, folder, threads),
        ],
        3,
    )
    table(f"{len(files[2]):,} PNG files of 28x28, {threads} threads, start to exit", names, taken)
    assert taken[1][1] >= 6 * taken[0][1]  # the aim is 8


@needs_default
@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_reading_ahead_costs_nothing(files, suffix):
    """In this process: a list, of which the next batch is read meanwhile, against an iterator, of which it is not. PNG
    is read in C, BMP by Pillow."""
    _, _, paths = files
    if suffix == "bmp":
        for path in paths:
            if not os.path.exists(f"{path}.bmp"):
                Image.open(path).save(f"{path}.bmp")
        paths = [f"{path}.bmp" for path in paths]
    with OrganClassifier(device="cpu") as classifier:
        taken = in_turn(
            [
                lambda: list(classifier.predict_paths(paths)),
                lambda: list(classifier.predict_paths(iter(paths))),
            ],
            ROUNDS,
        )
    table(f"{len(paths):,} {suffix.upper()} files, predict_paths", ["one batch ahead", "in between"], taken)
    assert taken[0][1] <= 1.05 * taken[1][1]


def test_reading_in_c_against_pillow(files):
    """Open, read, decode and pack, in this process, the files in the system's cache."""
    read = pytest.importorskip("organ_infer._reading", reason="built without zlib").read
    slices, _, paths = files

    def ours(threads):
        packed, done = read(paths, threads=threads)
        assert all(done)
        return packed

    def pillow():
        return pack([np.asarray(Image.open(path)) for path in paths])

    assert (ours(1) == pack(slices)).all() and (pillow() == ours(4)).all()
    names = ["C, one thread", "C, two threads", "open_slices (opened twice, verified)", "Pillow, opened once"]
    taken = in_turn(
        [
            lambda: ours(1),
            lambda: ours(2),
            lambda: pack([read().pixels for path in paths for _, read in open_slices(path)]),
            pillow,
        ],
        ROUNDS,
    )
    table(f"{len(paths):,} PNG files of 28x28, read and packed", names, taken)
    assert taken[-1][1] >= 2.5 * taken[0][1] and taken[-2][1] >= 5 * taken[0][1]


@needs_default
def test_starting_and_asking(python):
    """Start to exit of what answers at once, beside Python alone and one prediction."""
    example = ROOT / "examples" / "liver-1.png"
    names = [
        "one prediction",
        "import onnxruntime",
        "organ-infer --help",
        "organ-infer --version",
        "Python alone",
    ]
    taken = in_turn(
        [
            lambda: python(COMMAND, "--device", "cpu", example),
            lambda: python("import onnxruntime"),
            lambda: python(COMMAND, "--help"),
            lambda: python(COMMAND, "--version"),
            lambda: python("pass"),
        ],
        3 * ROUNDS,
    )
    table("start to exit", names, taken)
    assert taken[0][1] <= 1.8 * taken[1][1]  # the aim is 1.4
    assert taken[3][1] <= 4 * taken[4][1]
