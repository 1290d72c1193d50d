"""organ-infer as a user runs it: a process, its output, its exit code."""

import csv
import io
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, child_environment, constant_graph, make_graph, needs_default, write_bundle
from PIL import Image

from organ_infer import OrganClassifier
from organ_infer.progress import bar_text

RAMP = np.arange(28 * 28).reshape(28, 28, 1).astype(np.uint8)
COLUMNS = ["path", "label", "probability", "organ", "organ_probability", "warnings", "error"]


def rows(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def paths(done):
    return [row["path"] for row in rows(done)]


def failed(done, words, code=2):
    """One error line, nothing on standard output, no traceback."""
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("organ-infer: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert re.search(words, done.stderr), done.stderr


@pytest.fixture
def some(pictures):
    return sorted(map(str, pictures.iterdir()))[:3]


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"no image")
    return str(path)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A model of two classes."""

    def change(manifest):
        manifest["task"].update(classes=["liver", "spleen"], paired=[])

    folder = tmp_path_factory.mktemp("two") / "b"
    return write_bundle(folder, {"g.onnx": make_graph(classes=2)}, change=change)


# Formats.


def test_text(command, some, classifier):
    done = command(*some)
    expected = "".join(
        f"{p.label:<12} {p.probability:.3f} {p.path}\n" for p in classifier.predict_paths(some)
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, expected, "")


def test_text_with_the_likeliest_classes(command, some, classifier):
    (line,) = command("--top", "3", some[0]).stdout.splitlines()
    (found,) = classifier.predict_paths(some[:1])
    order = np.argsort(found.probabilities)[::-1][:3]
    assert line == " ".join(f"{CLASSES[i]:<12} {found.probabilities[i]:.3f}" for i in order) + " " + some[0]


def test_jsonl(command, some, bad, classifier):
    done = command("--format", "jsonl", some[0], bad, some[1])
    assert done.returncode == 1
    first, middle, last = rows(done)
    keys = [
        "path",
        "label",
        "index",
        "probability",
        "organ",
        "organ_probability",
        "probabilities",
        "warnings",
    ]
    assert list(first) == keys and middle.keys() == {"path", "error"} and middle["path"] == bad
    assert list(first["probabilities"]) == CLASSES and first["path"] == some[0] and last["path"] == some[1]
    (found,) = classifier.predict_paths(some[:1])
    np.testing.assert_array_equal(
        np.float32(list(first["probabilities"].values())), np.float32(found.probabilities)
    )
    assert done.stderr == f"organ-infer: error: {bad}: {middle['error']}\n"


def test_jsonl_with_the_likeliest_classes(command, some):
    (row,) = rows(command("--format", "jsonl", "--top", "2", some[0]))
    assert [list(pair) for pair in row["top"]] == [["label", "probability"]] * 2
    assert row["top"][0] == {"label": row["label"], "probability": row["probability"]}


def test_csv(command, some, bad, tmp_path):
    colour = tmp_path / "colour, alpha.png"
    Image.fromarray(RAMP.repeat(4, axis=2)).save(colour)
    done = command("--format", "csv", some[0], bad, colour)
    head, good, wrong, noted = csv.reader(io.StringIO(done.stdout))
    assert head == COLUMNS + CLASSES and done.returncode == 1
    assert good[0] == some[0] and good[1] in CLASSES and good[5:7] == ["", ""]
    assert float(good[2]) == max(map(float, good[7:])) and sum(map(float, good[7:])) == pytest.approx(
        1, abs=1e-5
    )
    assert (
        wrong[0] == bad
        and wrong[6].startswith("no image of a known format")
        and set(wrong[1:6] + wrong[7:]) == {""}
    )
    assert noted[0] == str(colour) and noted[5] == "converted from colour to gray; alpha composited on black"


def test_warnings_go_to_standard_error_with_text(command, tmp_path):
    path = tmp_path / "colour.png"
    Image.fromarray(RAMP.repeat(3, axis=2)).save(path)
    done = command(path)
    assert (
        done.stderr == f"organ-infer: warning: {path}: converted from colour to gray\n"
        and done.returncode == 0
    )
    assert command("--quiet", path).stderr == ""
    (row,) = rows(command("--format", "jsonl", path))
    assert row["warnings"] == ["converted from colour to gray"]


def test_orientation_turns(command, tmp_path):
    image = np.random.default_rng(2).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image.T).save(tmp_path / "b.png")
    stored, turned = (
        rows(command("--format", "jsonl", *options, tmp_path / name))[0]["probabilities"]
        for name, options in {"a.png": [], "b.png": ["--orientation", "PL"]}.items()
    )
    assert stored == turned
    failed(command("--orientation", "LR", tmp_path / "a.png"), "orientation: two letters")


def test_tta_averages_over_shifts(command, some, bundle):
    found = rows(command("--tta", "--format", "jsonl", *some))
    with OrganClassifier(bundle, device="cpu", tta=True) as opened:
        expected = [p.probabilities for p in opened.predict_paths(some)]
    np.testing.assert_allclose([list(row["probabilities"].values()) for row in found], expected, rtol=1e-6)
    assert found != rows(command("--format", "jsonl", *some))
    assert "--tta" in command("--help", model=None).stdout


# Organs, and what is uncertain.


@pytest.fixture(scope="module")
def torn(tmp_path_factory):
    """The label is heart at 0.4, the organ femur at 0.6."""
    graph = constant_graph({"femur-left": 0.35, "femur-right": 0.25, "heart": 0.4})
    return write_bundle(tmp_path_factory.mktemp("torn") / "b", {"g.onnx": graph})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("", "heart        0.400"),
        ("--organs", "femur    0.600"),
        ("--organs --top 1", "femur    0.600"),
        ("--organs --top 2", "femur    0.600 heart    0.400"),
        ("--min-probability 0.39", "heart        0.400"),
        ("--min-probability 0.41", "uncertain    0.400"),
        ("--min-probability 1", "uncertain    0.400"),
        ("--min-probability 0.41 --top 2", "uncertain    0.400 femur-left   0.350"),
        ("--min-probability 0.41 --organs", "femur     0.600"),
        ("--min-probability 0.61 --organs", "uncertain 0.600"),
        ("--min-probability 6.1e-1 --organs --top 2", "uncertain 0.600 heart     0.400"),
    ],
)
def test_text_with_organs_and_the_uncertain(command, torn, some, options, line):
    done = command(*options.split(), some[0], some[1], model=torn)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{line} {some[0]}\n{line} {some[1]}\n", "")


def test_text_with_the_likeliest_organs(command, some, classifier):
    found = classifier.predict_paths(some)
    for line, p in zip(command("--organs", "--top", "8", *some).stdout.splitlines(), found, strict=True):
        *words, _ = line.split()
        sums = dict(zip(words[::2], map(float, words[1::2]), strict=True))
        assert len(sums) == 8 and next(iter(sums)) == p.organ
        assert sorted(sums.values(), reverse=True) == list(sums.values())
        for organ, total in sums.items():
            parts = [q for c, q in zip(CLASSES, p.probabilities, strict=True) if c.startswith(organ)]
            assert total == pytest.approx(sum(parts), abs=5.1e-4)


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ("--organs", {}),
        ("--min-probability 0.39", {}),
        ("--min-probability 0.41", {"label": "uncertain"}),
        ("--min-probability 0.41 --organs", {}),
        ("--min-probability 0.61 --organs", {"organ": "uncertain"}),
    ],
)
def test_csv_and_jsonl_change_the_one_name_that_is_uncertain(command, torn, some, bad, options, changed):
    plain, found = (
        command("--format", "jsonl", "--top", "9", *more, some[0], bad, model=torn)
        for more in ([], options.split())
    )
    assert found.returncode == 1  # for the bad one
    expected = rows(plain)
    assert [expected[0][key] for key in ("label", "index", "organ")] == ["heart", 3, "femur"]
    assert (
        rows(found) == [expected[0] | changed, expected[1]] and rows(found)[0]["top"][0]["label"] == "heart"
    )
    plain, found = (
        list(csv.DictReader(io.StringIO(command("--format", "csv", *more, some[0], bad, model=torn).stdout)))
        for more in ([], options.split())
    )
    assert (plain[0]["label"], plain[0]["organ"]) == ("heart", "femur")
    assert found == [plain[0] | changed, plain[1]]


@pytest.mark.parametrize(("options", "key"), [([], "probability"), (["--organs"], "organ_probability")])
def test_a_probability_equal_to_the_least_is_not_uncertain(command, torn, some, options, key):
    (row,) = rows(command("--format", "jsonl", some[0], model=torn))
    with OrganClassifier(torn, device="cpu") as opened:
        (found,) = opened.predict_paths(some[:1])
    exact = getattr(found, key)
    above = float(np.nextafter(np.float32(exact), np.float32(1)))
    for least, uncertain in (row[key], False), (exact, False), (above, True):
        for form in "text", "csv", "jsonl":
            done = command("--min-probability", repr(least), "--format", form, *options, some[0], model=torn)
            assert ("uncertain" in done.stdout, done.returncode) == (uncertain, 0)


def test_names_are_padded_to_uncertain_in_a_model_of_shorter_ones(command, two, some):
    text = command(some[0], model=two).stdout
    assert re.fullmatch(r"(liver |spleen) 0\.\d{3} .*\n", text)
    text = command("--min-probability", "0.01", some[0], model=two).stdout
    assert re.fullmatch(r"(liver    |spleen   ) 0\.\d{3} .*\n", text)


def test_help_says_what_is_uncertain(command):
    text = " ".join(command("--help", model=None).stdout.split())
    assert "--organs text: the organ without its side, and the probability of both sides together" in text
    assert "becomes 'uncertain' where its probability is below P, with --organs the organ" in text
    assert "with --organs text has the K likeliest organs" in text


# Exit codes.


def test_all_failed_is_1(command, bad):
    failed(command(bad), "bad.png: no image of a known format", code=1)
    failed(command("/none/at/all.png"), "all.png: no such file", code=1)


def test_special_files_are_failed_images(command, some, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = command("--format", "jsonl", tmp_path / "pipe", some[0], "/dev/null")
    assert done.returncode == 1 and [row.get("error") for row in rows(done)] == [
        "a special file, not an image", None, "a special file, not an image",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no image given"),
        (["--nope", "x"], "unrecognized arguments: --nope"),
        (["--device", "tpu", "x"], "invalid choice: 'tpu'"),
        (["--threads", "0", "x"], "a whole number from 1 to 1,024 expected, found '0'"),
        (["--batch-size", "9999", "x"], "1 to 4,096"),
        (["--top", "\u0663", "x"], "a whole number"),
        (["--top", "12", "x"], "--top 12: the model has 11 classes"),
        (["--top", "12", "--organs", "--format", "jsonl", "x"], "--top 12: the model has 11 classes"),
        (["--top", "9", "--organs", "x"], "--top 9: the model has 8 organs"),
        *(
            ([f"--min-probability={value}", "x"], f"above 0 and at most 1 expected, found '{value}'")
            for value in ("0", "-0.5", "1.0001", "nan", "inf", "80%", "", "\u0661", "1e-999")
        ),
        (["--min-probability"], "--min-probability: expected one argument"),
        (["--format", "xml", "x"], "invalid choice"),
        (["-0", "x"], "-0 goes with --files-from"),
        (["--output", "", "x"], "--output is empty"),
        (["--output", "/none/x.csv", "x"], "--output /none/x.csv: cannot be written .No such file"),
        (["--output", "/dev/null", "x"], "a regular file expected"),
        (["--files-from", "/none"], "--files-from: /none cannot be read"),
        (["--files-from", os.devnull], "no image found, --files-from names none"),
        (["/none/*.png"], "no image found, /none/.*no file matches this pattern"),
    ],
)
def test_usage_errors_are_2(command, arguments, words):
    failed(command(*arguments), words)


def test_an_empty_directory_is_2(command, tmp_path):
    (tmp_path / "notes.txt").touch()
    failed(command(tmp_path), "no image found, .*no image in this directory")


def test_a_missing_or_damaged_bundle_is_2_and_writes_nothing(command, copied, some, tmp_path):
    failed(
        command(some[0], model=tmp_path / "none"), "a bundle is a directory with manifest.json, found nothing"
    )
    (copied / "small.onnx").write_bytes((copied / "small.onnx").read_bytes()[:-1])
    failed(
        command("--format", "csv", "--output", tmp_path / "out.csv", some[0], model=copied),
        "truncated or changed",
    )
    assert not list(tmp_path.glob("out.csv*"))


def test_cuda_that_is_not_there_is_2(command, some):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    failed(command("--device", "cuda", some[0]), "cuda was asked for but is not available")


def test_help_and_version(command):
    done = command("--help", model=None)
    assert done.returncode == 0 and "usage: organ-infer" in done.stdout
    assert "Research software, not a medical device." in " ".join(done.stdout.split())
    done = command("--version", model=None)
    assert done.returncode == 0 and re.fullmatch(r"organ-infer \S+\n", done.stdout)


# Which model.


def test_the_environment_names_the_bundle_and_the_option_beats_it(command, bundle, some, tmp_path):
    done = command(some[0], model=None, env={"ORGAN_INFER_BUNDLE": str(bundle)})
    assert done.returncode == 0 and done.stderr == ""
    assert command(some[0], env={"ORGAN_INFER_BUNDLE": str(tmp_path)}).returncode == 0
    failed(command(some[0], model=None, env={"ORGAN_INFER_BUNDLE": str(tmp_path)}), "it has no manifest.json")


@needs_default
def test_the_packaged_model_says_what_it_is(command, some):
    done = command(some[0], model=None)
    assert done.returncode == 0 and done.stderr.count("\n") == 1
    assert "axial model trained on OrganAMNIST" in done.stderr
    assert command("--quiet", some[0], model=None).stderr == ""
    text = " ".join(command("--help", model=None).stdout.split())
    assert "is for axial slices, trained on OrganAMNIST" in text


# Which images.


@pytest.fixture
def tree(tmp_path, pictures):
    """Names whose order differs by locale and by bytes; things that are no images."""
    for name in [
        "b.png",
        "B.PNG",
        "a.png",
        "a/z.png",
        "a-b.png",
        ".hidden.png",
        ".dir/x.png",
        "é.png",
        "sub/in/c.png",
    ]:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "s00.png", path)
    (tmp_path / "tree" / "notes.txt").touch()
    (tmp_path / "tree" / "folder.png").mkdir()
    (tmp_path / "tree" / "again").symlink_to(".", target_is_directory=True)
    return tmp_path / "tree"


def test_a_directory_gives_its_images_in_byte_order(command, tree):
    done = command("--format", "jsonl", tree)
    assert paths(done) == [f"{tree}/{name}" for name in ["B.PNG", "a-b.png", "a.png", "b.png", "é.png"]]
    assert paths(command("--format", "jsonl", ".", cwd=tree))[0] == "./B.PNG"


def test_recursive_goes_below_but_follows_no_link(command, tree):
    done = command("--format", "jsonl", "-r", tree)
    names = ["B.PNG", "a-b.png", "a.png", "a/z.png", "b.png", "sub/in/c.png", "é.png"]
    assert done.returncode == 0 and paths(done) == [f"{tree}/{name}" for name in names]


def test_patterns_are_expanded_and_a_file_beats_its_pattern(command, tree):
    assert paths(command("--format", "jsonl", f"{tree}/*.png"))[:2] == [f"{tree}/a-b.png", f"{tree}/a.png"]
    shutil.copy(tree / "a.png", tree / "[ab].png")
    assert paths(command("--format", "jsonl", f"{tree}/[ab].png")) == [f"{tree}/[ab].png"]
    assert paths(command("--format", "jsonl", f"{tree}/?.png", f"{tree}/s*/in/c.png")) == [
        f"{tree}/a.png", f"{tree}/b.png", f"{tree}/é.png", f"{tree}/sub/in/c.png",
    ]  # fmt: skip


def test_what_stands_for_nothing_keeps_its_place(command, some, tmp_path):
    (tmp_path / "empty").mkdir()
    done = command("--format", "jsonl", "/none/*.png", some[0], tmp_path / "empty", some[1], "/none/?")
    assert done.returncode == 1
    assert paths(done) == ["/none/*.png", some[0], str(tmp_path / "empty"), some[1], "/none/?"]
    assert ["error" in row for row in rows(done)] == [True, False, True, False, True]


def test_a_list_of_files(command, some, tmp_path):
    listed = tmp_path / "list"
    listed.write_text(f"{some[0]}\n\n{some[1]}\r\n{some[2]}")
    assert paths(command("--format", "jsonl", "--files-from", listed)) == some
    assert paths(command("--format", "jsonl", "--files-from", "-", stdin="\n".join(some) + "\n")) == some
    assert paths(command("--format", "jsonl", "-0", "--files-from", "-", stdin="\0".join(some))) == some
    done = command("--format", "jsonl", "--files-from", "-", some[2], stdin=some[0])
    assert paths(done) == [some[2], some[0]]


def test_a_path_without_end_is_refused(command):
    failed(command("--files-from", "-", stdin="x" * 300_000), "a path of more than 65,536 bytes")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_of_any_bytes(command, pictures, tmp_path):
    names = [b"new\nline.png", b"\xff\xfe.png", "ä.png".encode()]
    for name in names:
        shutil.copy(pictures / "s00.png", os.path.join(os.fsencode(tmp_path), name))
    given = [os.path.join(os.fsencode(tmp_path), name) for name in names]
    done = command("--format", "jsonl", "-0", "--files-from", "-", text=False, stdin=b"\0".join(given))
    assert done.returncode == 0
    assert [os.fsencode(json.loads(line)["path"]) for line in done.stdout.splitlines()] == given
    done = command("--format", "csv", tmp_path, text=False, env={"LC_ALL": "C"})
    _, *found = csv.reader(io.StringIO(done.stdout.decode("utf-8", "surrogateescape"), newline=""))
    assert [os.fsencode(row[0]) for row in found] == sorted(given) and done.returncode == 0
    done = command(*given, "/none/\x1b[31m", text=False)
    assert (
        done.stdout.count(b"\n") == 3 and b"new\\nline.png" in done.stdout and b"\xff\xfe.png" in done.stdout
    )
    assert b"\x1b" not in done.stderr and b"\\x1b[31m" in done.stderr


# Writing.


def test_output_appears_whole(command, some, tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("before")
    done = command("--format", "jsonl", "--output", out, *some)
    assert (done.returncode, done.stdout) == (0, "")
    assert out.read_text() == command("--format", "jsonl", *some).stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]
    assert command("--output", "rows.txt", some[0], cwd=tmp_path).returncode == 0


def test_output_through_a_link_in_the_partials_place_is_refused(command, some, tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "out.partial").symlink_to("precious")
    failed(command("--output", tmp_path / "out", some[0]), "cannot be written")
    assert (tmp_path / "precious").read_text() == "keep"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_2(bundle, some):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "organ_infer", "--bundle", bundle, *some],
            stdout=full, stderr=subprocess.PIPE, text=True, env=child_environment(), timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "organ-infer: error: standard output: cannot be written (No space left on device)\n"


def test_a_full_disk_is_2_and_leaves_whole_lines(command, pictures, tmp_path):
    """A limit on the file's size stands for the disk."""
    out = tmp_path / "out.jsonl"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    listed = "\n".join(str(pictures / f"s{i % 40:02}.png") for i in range(200))
    done = command("--format", "jsonl", "--output", out, "--files-from", "-", stdin=listed, preexec_fn=limit)
    failed(done, "cannot be written .File too large.*the results so far are in .*out.jsonl.partial")
    assert not out.exists()
    kept = (tmp_path / "out.jsonl.partial").read_text()
    assert kept.endswith("\n") and all(json.loads(line) for line in kept.splitlines()) and len(kept) > 10_000


def test_a_closed_pipe_is_quiet(bundle, pictures):
    arguments = [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), "--files-from", "-"]
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    process.stdout.close()
    _, words = process.communicate("\n".join([str(pictures / "s00.png")] * 3000).encode(), timeout=60)
    assert (process.returncode, words) == (0, b"")


def test_a_closed_standard_output_is_an_error_and_a_closed_standard_error_none(bundle, some):
    line = f"{sys.executable} -m organ_infer --bundle {bundle} {some[0]}"
    done = subprocess.run(
        f"{line} >&-", shell=True, stderr=subprocess.PIPE, text=True, env=child_environment()
    )
    assert done.returncode == 2 and done.stderr == "organ-infer: error: standard output is closed\n"
    done = subprocess.run(
        f"{line} nope 2>&-", shell=True, stdout=subprocess.PIPE, text=True, env=child_environment()
    )
    assert done.returncode == 1 and done.stdout.count("\n") == 1


def test_help_into_a_closed_pipe_is_quiet():
    done = subprocess.run(
        f"{sys.executable} -m organ_infer --help | true",
        shell=True,
        capture_output=True,
        env=child_environment(),
    )
    assert done.stderr == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to_file", [True, False])
def test_a_signal_leaves_whole_lines(bundle, pictures, tmp_path, number, code, to_file):
    """The list never ends, so the command waits for it when the signal comes."""
    out = tmp_path / "out.jsonl"
    arguments = ["--format", "jsonl", "--files-from", "-", "--batch-size", "4", "--bundle", str(bundle)]
    arguments += ["--output", str(out)] if to_file else []
    process = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(),
        bufsize=0, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run where it is ignored
    )  # fmt: skip
    process.stdin.write(b"".join(os.fsencode(path) + b"\n" for path in sorted(pictures.iterdir())))
    process.stdin.flush()
    partial = Path(f"{out}.partial")
    if to_file:
        until = time.monotonic() + 20
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
    first = b"" if to_file else process.stdout.readline()  # it is at work
    time.sleep(1.0)
    process.send_signal(number)
    written, words = process.communicate(timeout=20)
    written = first + written
    assert process.returncode == code, words
    assert words in (b"organ-infer: interrupted\n", b"organ-infer: terminated\n")
    text = partial.read_text() if to_file else written.decode()
    found = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n") and [row["path"] for row in found] == sorted(map(str, pictures.iterdir()))
    assert not out.exists()


def test_sigint_that_was_ignored_stays_ignored(bundle, pictures):
    process = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), "--files-from", "-"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    written, _ = process.communicate(os.fsencode(pictures / "s00.png"), timeout=20)
    assert process.returncode == 0 and written.count(b"\n") == 1


# The progress bar.


def test_the_bar_is_drawn_on_a_terminal_only_and_cleared(bundle, pictures, bad):
    """Through a pseudo-terminal as standard error."""
    ours, theirs = pty.openpty()
    seen = b""

    def read():
        nonlocal seen
        try:
            while piece := os.read(ours, 4096):
                seen += piece
        except OSError:
            pass

    reader = threading.Thread(target=read)
    reader.start()
    listed = [str(pictures / f"s{i % 40:02}.png") for i in range(3000)]
    done = subprocess.run(
        [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), "--batch-size", "8", *listed, bad],
        stdout=subprocess.PIPE, stderr=theirs, env=child_environment(TERM="xterm"), timeout=60,
    )  # fmt: skip
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert done.returncode == 1 and done.stdout.count(b"\n") == 3000 and b"/3,001 images" in seen
    last = seen.decode().rstrip("\r\n").split("\r")[-1]
    assert last.startswith("organ-infer: error: ") and "bad.png" in last


@pytest.mark.parametrize("columns", range(0, 90, 3))
def test_the_bar_fits_any_terminal(columns):
    for total in (None, 100_000):
        text = bar_text(12_345, 67, total, 8.0, columns)
        assert len(text) <= columns and "\n" not in text
    assert bar_text(5, 0, 10, 1.0, 79) == "[" + "#" * 15 + "." * 15 + "] 5/10 images 5/s"


def test_the_examples_of_a_bundle_of_two_classes(command, two, some):
    """Columns follow the model's classes."""
    done = command("--format", "csv", some[0], model=two)
    assert next(csv.reader(io.StringIO(done.stdout))) == [*COLUMNS, "liver", "spleen"]
    with OrganClassifier(two) as opened:
        assert opened.classes == ("liver", "spleen")


def test_a_signal_waits_for_the_end_of_a_write_and_a_second_one_does_not():
    from types import SimpleNamespace

    from organ_infer.cli import Stopped, _Signals

    signals = _Signals()
    signals.writer = SimpleNamespace(busy=True)
    signals.check()
    signals._arrived(signal.SIGINT, None)
    with pytest.raises(Stopped):
        signals.check()
    with pytest.raises(Stopped):
        signals._arrived(signal.SIGTERM, None)
    signals = _Signals()
    signals.writer = SimpleNamespace(busy=False)
    with pytest.raises(Stopped):
        signals._arrived(signal.SIGINT, None)
    with pytest.raises(Stopped):  # whatever became of the first
        signals.check()


def test_a_message_takes_the_bar_away_first(monkeypatch):
    from organ_infer.progress import Messages

    written = []
    messages = Messages()
    messages.bar, messages._drawn = True, 0.0
    monkeypatch.setattr(messages, "_put", written.append)
    messages.progress(7, 0, 9)
    messages.error("x")
    messages.note("y")
    width = len(written[0].rstrip()) - 1
    assert written == [written[0], "\r" + " " * width + "\r", "organ-infer: error: x\n", "organ-infer: y\n"]
