"""Bad input of every class, tried at length: `python tests/endurance/bad_input.py [--edits 200] [--seed 0] [--only TEXT ...]`

Prints a Markdown table: how many cases, how many were refused with a reason, how many accepted as what they are, how many
crashed (anything but ImageError, InputError, BundleError or a usage error of one line, or the end of the process), hung, and
how many were silently wrong (other pixels or labels than those of the sound file, and no error). Ends in 1 where one of the
last three is not 0. Each row runs in a process of its own. ORGAN_DATA_DIR names the directory of PngSuite's (tests/support/data_files.py).
"""

import argparse
import contextlib
import io
import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import bad_environments  # noqa: E402
import bad_pixels  # noqa: E402
import bad_volumes  # noqa: E402
import numpy as np  # noqa: E402
from support.bombs import bombs  # noqa: E402
from support.damaged_files import answer, checked, cuts, edits, flips, outcome, unchecked  # noqa: E402
from support.data_files import DATA  # noqa: E402
from support.png_files import KINDS, mended, random_png, reference_gray  # noqa: E402

CORPUS = ROOT / "tests" / "corpus" / "images"
EXAMPLES = sorted((ROOT / "examples").glob("*.png"))
MEMORY = 1 << 28  # bytes that a bomb may take
HOURS = 2

Outcomes = Iterable[str]


def damaged(
    files: dict[str, bytes], ways: Iterable[Callable[[bytes], Iterator[bytes]]]
) -> Outcomes:
    for data in files.values():
        expected = answer(data)
        for way in ways:
            for other in way(data):
                yield outcome(other, expected)


def png_files() -> dict[str, bytes]:
    found = {name: data for name, data in checked().items() if name.startswith("PNG")}
    return found | {path.name: path.read_bytes() for path in EXAMPLES[:3]}


def npz_files() -> dict[str, bytes]:
    return {name: data for name, data in checked().items() if name.startswith(".npz")}


def suite(broken: bool) -> Outcomes:
    for path in sorted((DATA / "pngsuite").glob("*.png")):
        if path.name.startswith("x") == broken:
            yield by_the_specification(path.read_bytes())


def by_the_specification(data: bytes) -> str:
    """A PNG as it is read, against a decoder written by the specification."""
    found = outcome(data, {}, lambda data: answer(data)[""])
    if found == "different":  # there is an answer
        try:
            gray, depth, kind = reference_gray(data)
        except Exception as e:
            return f"different: no answer by the specification ({e!r})"
        pixels = answer(data)[""]
        apart = np.abs(pixels - gray * (255 if pixels.dtype == np.uint8 else 65_535)).max()
        near = 0 if kind == 0 else 2 if depth == 16 and kind != 4 else 1
        found = "same" if apart <= near else f"different: by {apart}"
    return found


def in_c(files: list[bytes], expected: list[np.ndarray] | None) -> Outcomes:
    """Through the C decoder: `refused` is what it leaves to Pillow, `different` what Pillow does not read like it."""
    from organ_infer._packing import pack
    from organ_infer._reading import read

    with tempfile.TemporaryDirectory() as folder:
        for at in range(0, len(files), 1000):
            paths = []
            for i, data in enumerate(files[at : at + 1000]):
                paths.append(Path(folder, f"{i}.png"))
                paths[-1].write_bytes(data)
            packed, done = read(paths)
            for i, whole in enumerate(done):
                if not whole:
                    yield "refused"
                    continue
                try:
                    wanted = expected[at + i] if expected else answer(files[at + i])[""]
                except Exception as e:
                    yield f"different: {e}"
                    continue
                yield "same" if (packed[i] == pack(wanted)[0]).all() else "different"


def damaged_in_c() -> Outcomes:
    for path in EXAMPLES[:3]:
        data = path.read_bytes()
        files = [*cuts(data), *flips(data)]
        yield from in_c(files, [answer(data)[""]] * len(files))


def mended_in_c(count: int, rng: random.Random) -> Outcomes:
    files = [mended(other) for path in EXAMPLES for other in edits(path.read_bytes(), rng, count)]
    return in_c(files, None)


def mended_in_pillow(count: int, rng: random.Random) -> Outcomes:
    for kind, depth in KINDS:
        for interlaced in (False, True):
            for other in edits(random_png(kind, depth, interlaced=interlaced), rng, count):
                yield by_the_specification(mended(other))


def edited(count: int, rng: random.Random) -> Outcomes:
    for path in sorted(CORPUS.iterdir()):
        for other in edits(path.read_bytes(), rng, count):
            found = outcome(other, {})
            yield "same" if found == "different" else found


def accepted(found: Outcomes) -> Outcomes:
    """Where no checksum tells, other pixels are what the file holds."""
    return ("same" if what == "different" else what for what in found)


def exploded() -> Outcomes:
    import zipfile  # noqa: F401

    import pydicom  # noqa: F401

    files = bombs(1 << 30)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)
    for data in files.values():
        yield outcome(data, {})


def no_files() -> Outcomes:
    from organ_infer import ImageError
    from organ_infer.images.registry import open_slices

    with tempfile.TemporaryDirectory() as name, socket.socket(socket.AF_UNIX) as server:
        folder = Path(name)
        os.mkfifo(folder / "pipe.png")
        server.bind(str(folder / "socket.png"))
        for link, to in {
            "loop": "loop",
            "gone": "nothing",
            "piped": "pipe.png",
            "folder": ".",
        }.items():
            (folder / link).symlink_to(to)
        (folder / "empty.png").touch()
        paths = [
            *map(str, folder.iterdir()),
            name,
            f"{name}/none",
            f"{name}/none#1",
            f"{name}/{'x' * 300}",
            "a\0b",
            "",
        ]
        paths += [f"{path}#0" for path in paths]
        paths += [f"/dev/{device}" for device in ("null", "zero", "random", "tty", "full", "stdin")]
        paths += ["/proc/self/mem", "/proc/kmsg", "/proc/self/maps", "/proc/self/fd/0"]
        for path in paths:
            try:
                for _, read in open_slices(path):
                    read()
                yield "same"
            except ImageError as e:
                yield "refused" if "\n" not in str(e) else "crashed: two lines"
            except Exception as e:
                yield f"crashed: {path}: {e!r}"


def arrays() -> Outcomes:
    from organ_infer import InputError, OrganClassifier

    kinds = ["bool", "float16", "float32", "float64", "int8", "int32", "int64", "uint32", "uint64", "complex64", "O",
             "U3", "S3", "datetime64[s]", "V4", ">f4"]  # fmt: skip
    given = [np.zeros((28, 28), kind) for kind in kinds]
    shapes = [(), (0,), (28,), (0, 28), (28, 0), (0, 28, 28), (2, 0, 28), (28, 28, 3), (28, 28, 4), (1, 1, 28, 28),
              (1, 65_536), (65_536, 1)]  # fmt: skip
    given += [np.zeros(shape, np.uint8) for shape in shapes]
    given += [None, 3, 3.5, "slice.png", b"slice", Path("slice.png"), object(), {}, [], [[]], [None], [[1, 2], [3, 4]],
              {"a": np.zeros((28, 28), np.uint8)}, np.array(None), iter([]),
              [np.zeros((28, 28)), np.zeros((28, 28), np.uint8)], np.ma.masked_array(np.zeros((2, 2))), range(3)]  # fmt: skip
    with OrganClassifier(device="cpu", threads=1) as classifier:
        for images in given:
            for ask in (classifier.predict, classifier.predict_proba):
                try:
                    ask(images)
                    yield f"different: {images!r:.60}"
                except InputError as e:
                    yield (
                        "refused"
                        if "\n" not in str(e)
                        else f"crashed: two lines for {images!r:.60}"
                    )
                except Exception as e:
                    yield f"crashed: {images!r:.60}: {e!r}"


def manifests(count: int, rng: random.Random) -> Outcomes:
    from organ_infer import BundleError
    from organ_infer.bundle.files import Manifest, packaged_bundle

    text = (Path(packaged_bundle()) / "manifest.json").read_bytes()
    for other in [*cuts(text), *flips(text), *edits(text, rng, 20 * count)]:
        try:
            found = Manifest.from_json(other)
            yield "same" if Manifest.from_json(found.to_json()) == found else "different"
        except BundleError as e:
            yield "refused" if "\n" not in str(e) else "crashed: two lines"
        except Exception as e:
            yield f"crashed: {e!r}"


def commands(count: int, rng: random.Random) -> Outcomes:
    """Whole runs of the command, in a directory of their own, where it may write what --output names."""
    from organ_infer.cli import main
    from organ_infer.cli.arguments import Options

    names = [
        f"--{name.replace('_', '-')}"
        for name in Options._fields
        if name not in ("paths", "null", "bundle")
    ]
    values = ["", "0", "1", "-1", "64", "1e3", "nan", "0.5", "text", "csv", "jsonl", "cpu", "PL", "LR", "x", "٣", "\n",
              "a.png", "none.png", "*.png", "list", "out", ".", "a.png#0", "a.png#9", "--", "-", "-0", "%s"]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        Path("a.png").write_bytes(EXAMPLES[0].read_bytes())
        Path("list").write_text("a.png\nnone.png\n")
        sys.stdin = io.TextIOWrapper(io.BytesIO(b"a.png\n"))
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            for _ in range(count):
                given = [
                    rng.choice((rng.choice(names), rng.choice(values)))
                    for _ in range(rng.randint(0, 6))
                ]
                said = io.TextIOWrapper(io.BytesIO())
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(nowhere):
                    try:
                        code = main(given)
                    except BaseException as e:
                        yield f"crashed: {given}: {e!r}"
                        continue
                words = said.buffer.getvalue().decode("utf-8", "replace")
                lines = words.splitlines()
                if "unexpected" in words or not all(
                    line.startswith("organ-infer: ") for line in lines
                ):
                    yield f"crashed: {given}: {words}"
                elif code == 2 and len(lines) == 0:
                    yield f"crashed: {given}: no word"
                else:
                    yield "same" if code == 0 else "refused"


def rows(count: int, seed: int) -> dict[str, Callable[[], Outcomes]]:
    rng = random.Random(seed)
    return {
        "PngSuite, valid": lambda: suite(broken=False),
        "PngSuite, broken": lambda: suite(broken=True),
        "PNG of every kind, cut at every length": lambda: damaged(png_files(), [cuts]),
        "PNG of every kind, every bit flipped": lambda: damaged(png_files(), [flips]),
        "the same of 3 examples in the C decoder (refused: left to Pillow)": damaged_in_c,
        "PNG edited and its checksums mended, C decoder against Pillow": lambda: mended_in_c(
            count, rng
        ),
        "PNG of every kind, edited and its checksums mended": lambda: mended_in_pillow(count, rng),
        "`.npz`, cut at every length, every bit flipped": lambda: damaged(
            npz_files(), [cuts, flips]
        ),
        "JPEG, TIFF, BMP, GIF, PNM, WebP, JPEG 2000, `.npy`, DICOM, cut at every length": lambda: (
            damaged(unchecked(), [cuts])
        ),
        "the same, every bit flipped *": lambda: accepted(damaged(unchecked(), [flips])),
        "the corpus (every format), edited at random *": lambda: edited(count, rng),
        f"bombs of up to 1 GiB and more, {MEMORY >> 20} MiB of memory to be had": exploded,
        "no files: pipes, sockets, devices, directories, links, odd names": no_files,
        "arrays and objects that are no slices": arrays,
        "manifest cut, flipped, edited *": lambda: manifests(count, rng),
        "random arguments, the command run *": lambda: commands(count, rng),
    } | {
        name: partial(row, count, rng)
        for name, row in (bad_pixels.ROWS | bad_environments.ROWS | bad_volumes.ROWS).items()
    }


def one(name: str, count: int, seed: int) -> None:
    """A row, in this process; the counts as JSON on the standard output that there was."""
    out = os.dup(1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    found: Counter[str] = Counter()
    for what in rows(count, seed)[name]():
        kind = what.partition(":")[0]
        found[kind] += 1
        if kind in ("crashed", "different", "hung"):
            print(f"{name}: {what}", file=sys.stderr)
    os.write(out, json.dumps(found).encode())


def row_in_a_process(name: str, given: list[str]) -> dict[str, int]:
    """How often each outcome came."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--row", name, *given],
            stdout=subprocess.PIPE,
            timeout=HOURS * 3600,
            env=os.environ | {"ORGAN_INFER_CACHE": ""},
        )
    except subprocess.TimeoutExpired:
        return {"hung": 1}
    return json.loads(done.stdout) if done.returncode == 0 else {"crashed": 1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--edits", type=int, default=200, help="random edits a file, runs of the command"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="rows that have it in their name"
    )
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        one(options.row, options.edits, options.seed)
        return 0
    bad = 0
    print(
        "| class of bad input | cases | refused | identical or accepted | crashed | hung | silently wrong |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    given = ["--edits", str(options.edits), "--seed", str(options.seed)]
    for name in rows(options.edits, options.seed):
        if not any(text in name for text in options.only):
            continue
        found = row_in_a_process(name, given)
        cases = sum(found.values())
        ends = [found.get(kind, 0) for kind in ("crashed", "hung", "different")]
        bad += sum(ends)
        columns = [cases, found.get("refused", 0), found.get("same", 0), *ends]
        if name.endswith("*"):
            columns[-1] = "–"
        print(
            f"| {name} | {' | '.join(f'{n:,}' if isinstance(n, int) else n for n in columns)} |",
            flush=True,
        )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
