"""Names of files that no one expects: bytes that are not UTF-8, line breaks, objects that are no path, links in circles."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, child_environment
from hypothesis import given, settings
from hypothesis import strategies as st

from organ_infer import (
    BundleError,
    ImageFailure,
    InputError,
    OrganClassifier,
    Prediction,
    escape_path,
    ray,
    unescape_path,
)
from organ_infer.bundle.files import open_bundle, read_manifest
from organ_infer.cli import main
from organ_infer.cli.arguments import parse
from organ_infer.cli.paths import Candidates
from organ_infer.cli.progress import LINE_LIMIT, Messages
from organ_infer.errors import short_repr, shorten
from organ_infer.images.discovery import Candidate, Skipped

linux = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
quick = settings(max_examples=200, deadline=None)

# The escaping.

# Texts that look like escapes, and what is escaped.
tricky = st.text(
    st.sampled_from("\\xuU0159aefd\n\x1b\x85\u2028\udc80\udcff\udcc3\udca9\ud800é😀"), max_size=14
)
names = tricky | st.text(max_size=10)


@quick
@given(name=names, one_line=st.booleans())
def test_an_escaped_path_can_be_written_everywhere_and_leads_back(name, one_line):
    text = escape_path(name, one_line=one_line)
    text.encode("utf-8")
    assert unescape_path(text) == name
    if one_line:
        assert text.isprintable()


@quick
@given(st.binary(min_size=1, max_size=12))
def test_bytes_lead_back_to_the_same_file(name):
    assert os.fsencode(unescape_path(escape_path(name))) == name


@quick
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\\")))
def test_a_name_in_utf8_without_backslash_stays(name):
    assert escape_path(name) == name == unescape_path(name)


def test_the_rule():
    """docs/reference/results_format.md."""
    assert escape_path(b"caf\xe9.png") == r"caf\xe9.png"
    assert escape_path(Path(os.fsdecode(b"caf\xe9.png"))) == r"caf\xe9.png"
    assert escape_path(r"caf\xe9.png") == r"caf\x5cxe9.png"
    assert escape_path(r"C:\new\text\xy\u12\U0011ffff") == r"C:\new\text\xy\u12\U0011ffff"
    assert escape_path(r"\u00e9\U0010ffff") == r"\x5cu00e9\x5cU0010ffff"
    assert escape_path("a\nb\ud800") == "a\nb\\ud800"
    assert escape_path("a\nb\x85\u2028\U000e0001", one_line=True) == (
        r"a\x0ab\u0085\u2028\U000e0001"
    )


@linux
def test_the_output_does_not_depend_on_the_locale(tmp_path):
    """In an ASCII locale every byte above 127 is a surrogate, also those of UTF-8."""
    name = "ä\n".encode() + b"\xe9"
    (tmp_path / "plain").write_bytes(b"found")
    os.rename(tmp_path / "plain", os.path.join(os.fsencode(tmp_path), name))
    code = (
        "import os, sys, organ_infer as o; (name,) = os.listdir(); text = o.escape_path(name);"
        "assert sys.getfilesystemencoding() == sys.argv[1];"
        "assert open(o.unescape_path(text)).read() == 'found';"
        "sys.stdout.buffer.write(text.encode('utf-8'))"
    )
    for encoding, variables in {
        "utf-8": {"PYTHONUTF8": "1"},
        "ascii": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    }.items():
        done = subprocess.run(
            [sys.executable, "-c", code, encoding],
            cwd=tmp_path,
            env=child_environment(**variables),
            capture_output=True,
        )
        assert (done.returncode, done.stdout.decode()) == (0, "ä\n\\xe9"), done.stderr


# Every output.


@pytest.fixture
def odd(tmp_path, pictures):
    """A directory whose name and whose file are not UTF-8, as bytes."""
    folder = os.path.join(os.fsencode(tmp_path), b"d\xff")
    os.mkdir(folder)
    shutil.copy(pictures / "s00.png", os.path.join(folder, b"caf\xe9\n.png"))
    return folder


ASCII = {
    "LC_ALL": "C",
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
}


@linux
@pytest.mark.parametrize("variables", [{"PYTHONUTF8": "1"}, ASCII], ids=["UTF-8", "ASCII"])
def test_one_name_in_every_output(command, odd, tmp_path, variables):
    path = f"{tmp_path}/d\\xff/caf\\xe9\n.png"
    shown = path.replace("\n", "\\x0a")

    def run(*arguments):
        done = command(*arguments, text=False, env=variables)
        # Nothing but UTF-8, and nothing is lost.
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    code, out, err = run(odd)
    assert code == 0 and out.endswith(f" {shown}\n") and out.count("\n") == 1
    assert err == ""
    code, out, _ = run("--format", "jsonl", odd)
    assert code == 0 and json.loads(out)["path"] == path
    code, out, _ = run("--format", "csv", odd)
    header, row = csv.reader(io.StringIO(out, newline=""))
    assert code == 0 and dict(zip(header, row, strict=True))["path"] == path
    missing = os.path.join(odd, b"\xe9\nnone")
    code, out, err = run("--format", "jsonl", missing)
    reason = f"{tmp_path}/d\\xff/\\xe9\\x0anone: no such file\n"
    assert (code, out, err) == (2, "", f"organ-infer: error: no image found: {reason}")
    code, out, err = run("--format", "jsonl", odd, missing)
    out = out.splitlines()[1]
    assert (code, err) == (1, f"organ-infer: error: {reason}")
    assert json.loads(out) == {
        "path": f"{tmp_path}/d\\xff/\\xe9\nnone",
        "error": "no such file",
    }
    row = ray.ClassifyBatch._row(None, os.fsdecode(missing), ImageFailure("", "e\udce9"))
    assert row == {"path": json.loads(out)["path"], "warnings": [], "error": "e\\xe9"}


@linux
def test_every_kind_of_path_may_be_any_bytes(command, odd, bundle, tmp_path):
    """The bundle, the output, the list and what is listed."""
    shutil.copytree(bundle, os.fsdecode(os.path.join(odd, b"b\xfe")))
    (image,) = (os.path.join(odd, name) for name in os.listdir(odd) if name.endswith(b".png"))
    Path(os.fsdecode(odd), "list").write_bytes(image + b"\0")
    source, out = os.path.join(odd, b"l\xfd"), os.path.join(odd, b"o\xfc")
    os.rename(os.path.join(odd, b"list"), source)
    done = command(
        *("--bundle", os.path.join(odd, b"b\xfe"), "-0", "--files-from", source, "--output", out),
        model=None,
        text=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert Path(os.fsdecode(out)).read_text().endswith("/d\\xff/caf\\xe9\\x0a.png\n")
    for arguments, words in {
        ("--bundle", odd): "/d\\xff: not a bundle, it has no manifest.json",
        ("--files-from", b"\xff"): "--files-from \\xff: cannot be read (No such file or directory)",
        ("--output", odd): "/d\\xff: exists and is not a regular file",
        ("--device", b"\xff"): "expected auto, cpu, cuda or cuda:N, found '\\xff'",
        (b"--\xff",): "unrecognized arguments: --\\xff",
        (b"\xff*",): "no image found: \\xff*: no file matches this pattern",
    }.items():
        more = [image] if arguments[0] not in ("--files-from", b"\xff*") else []
        done = command(*arguments, *more, text=False)
        assert done.returncode == 2 and words in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


@linux
def test_without_a_working_directory(bundle, three_images, tmp_path):
    def run(*arguments):
        gone = tmp_path / "gone"
        gone.mkdir()
        script = 'rmdir "$PWD" && exec "$@"'
        done = subprocess.run(
            ["sh", "-c", script, "sh", sys.executable, "-m", "organ_infer", *arguments],
            cwd=gone,
            env=child_environment(ORGAN_INFER_CACHE="relative"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout.count("\n"), done.stderr

    given = ("--bundle", str(bundle))
    assert run(*given, three_images[0]) == (0, 1, "")
    reason = "no image found: a.png: no such file"
    assert run(*given, "a.png") == (2, 0, f"organ-infer: error: {reason}\n")
    for arguments, words in {
        ("--bundle", "b", three_images[0]): "b: no such directory; pass a bundle",
        (*given, "--output", "o", three_images[0]): "--output o: cannot be written (No such file",
    }.items():
        code, lines, err = run(*arguments)
        assert (code, lines) == (2, 0) and words in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "no/such"])
def test_a_bundle_that_no_file_can_be_named_is_no_directory(name):
    with pytest.raises(BundleError, match="no such directory; pass a bundle"):
        OrganClassifier(name)


@pytest.mark.parametrize("call", [OrganClassifier, open_bundle, read_manifest])
def test_an_error_can_always_be_printed(call, tmp_path):
    with pytest.raises(BundleError) as told:
        call(os.path.join(os.fsencode(tmp_path), b"caf\xe9\n"))
    assert str(told.value).startswith(f"{tmp_path}/caf\\xe9\\x0a: no such directory; pass a bundle")
    with pytest.raises(InputError, match=r"expected a path .*, found nan;"):
        call(float("nan"))


def test_a_bundle_may_be_named_by_bytes(bundle):
    with OrganClassifier(os.fsencode(bundle), device="cpu") as opened:
        assert opened.classes


# What is no path.

NONE = {
    "NaN": (float("nan"), "nan"),
    "NumPy's NaN": (np.float32("nan"), "nan"),
    "None": (None, "None"),
    "a number": (7, "7"),
    "a list": (["a.png"], "['a.png']"),
    "an array": (np.arange(3), "array([0, 1, 2])"),
    "a long list": (["a.png"] * 10**6, "..."),
    "a huge number": (10**9000, "a value of type int"),
}


@pytest.mark.parametrize("value, shown", NONE.values(), ids=NONE)
@pytest.mark.parametrize("kind", [list, tuple, iter, lambda paths: np.array([*paths, ""], object)])
def test_what_is_no_path_is_named_with_its_position(classifier, three_images, value, shown, kind):
    paths = np.empty(4, object)
    paths[:] = [*three_images, None]
    paths[3] = value
    with pytest.raises(InputError) as told:
        list(classifier.predict_paths(kind(list(paths))))
    message = str(told.value)
    assert message.startswith("paths[3]: expected a path (str, bytes or os.PathLike), found ")
    assert shown in message and len(message) < 300 and "\n" not in message


def test_a_list_is_checked_before_the_first_file_is_read(classifier):
    with pytest.raises(InputError, match=r"paths\[1\]"):
        classifier.predict_paths(["none.png", None])


def test_positions_count_across_batches(classifier, three_images):
    results = classifier.predict_paths(iter([three_images[0]] * 130 + [None]))
    with pytest.raises(InputError, match=r"paths\[130\]"):
        list(results)


@pytest.mark.parametrize("paths", [None, 5, float("nan"), b"a.png", np.array("a.png")])
def test_what_is_no_sequence_of_paths_is_named(classifier, paths):
    with pytest.raises(InputError, match=r"expected a sequence of paths, found .*; pass"):
        classifier.predict_paths(paths)


@pytest.mark.parametrize("name", ["\ud800.png", "a\0b", "x" * 70_000, "", "\udcff", b"\xff"])
def test_a_name_that_no_file_can_have_is_a_failure(classifier, name):
    (failure,) = classifier.predict_paths([name])
    assert isinstance(failure, ImageFailure) and failure.path == os.fsdecode(name)
    assert len(failure.error) < 200


def test_ray_names_what_is_no_path_too(tmp_path):
    with pytest.raises(InputError, match=r"^paths\[1\]: expected a path .*, found nan;"):
        ray.classify(["a.png", float("nan")], tmp_path / "rows")
    with pytest.raises(InputError, match=r"^path\[0\]: expected a path .*, found None;"):
        ray.ClassifyBatch.__call__(SimpleNamespace(), {"path": [None]})
    with pytest.raises(InputError, match=r"^paths: expected a directory, a list .* found None$"):
        ray.classify(None, tmp_path / "rows")
    with pytest.raises(InputError, match=r"^out: expected a path .*, found 3;"):
        ray.classify(["a.png"], 3)
    with pytest.raises(InputError, match=r"^bundle: expected a path .*, found nan;"):
        OrganClassifier(float("nan"))


# Numbers.


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.int32, lambda n: np.array(n)])
def test_numpy_integers_are_whole_numbers(bundle, three_images, kind):
    with OrganClassifier(
        bundle, device="cpu", threads=kind(1), batch_size=kind(2), tta=np.True_
    ) as opened:
        options = opened._options
        assert (options["threads"], options["batch_size"], options["tta"]) == (1, 2, True)
        assert [type(options[name]) for name in ("threads", "batch_size", "tta")] == [
            int,
            int,
            bool,
        ]
        found = list(
            opened.predict_paths(three_images, pixel_limit=kind(100), any_modality=np.False_)
        )
        assert "100 pixels" in found[0].error or "at most 100" in found[0].error


@pytest.mark.parametrize(
    "value",
    [True, np.True_, 1.0, np.float64(1), "1", np.array([1]), 10**5000],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("name", ["threads", "batch_size"])
def test_other_numbers_are_refused(bundle, name, value):
    with pytest.raises(InputError, match=f"^{name}: expected a whole number from 1 to") as told:
        OrganClassifier(bundle, **{name: value})
    assert len(str(told.value)) < 200


@pytest.mark.parametrize("value", [0, 1, np.int64(1), "yes", None])
def test_a_switch_is_a_bool(bundle, value):
    with pytest.raises(InputError, match=r"^tta: expected True or False"):
        OrganClassifier(bundle, tta=value)


def test_ray_takes_numpy_numbers():
    assert type(ray._worker_count(np.int64(2))) is int
    assert ray._number("num_cpus", np.float64(0.5), 0) == 0.5
    assert type(ray._number("num_cpus", np.int16(3), 0)) is int
    for value in (True, np.True_, "2", float("nan"), float("inf"), None, np.float64("nan")):
        with pytest.raises(InputError, match=r"^num_gpus: expected a number of at least 0"):
            ray._number("num_gpus", value, 0)


# Lengths.

HUGE = {
    "bytes": b"\x89PNG\n" * 400_000,
    "str": "x\n" * 10**6,
    "list": ["x" * 1000] * 10**5,
    "nested": [[[["x"] * 100] * 100] * 100] * 100,
    "dict": {str(i): i for i in range(10**5)},
    "int": 10**9000,
    "array": np.zeros((999, 3)),
    "text array": np.array(["x" * 10_000] * 3),
    "dtype": np.zeros(1, [(f"name{i}", "u1") for i in range(3000)]),
}


@pytest.mark.parametrize("value", HUGE.values(), ids=HUGE)
@pytest.mark.parametrize(
    "call",
    [
        lambda c, value: c.predict(value),
        lambda c, value: c.predict([value]),
        lambda c, value: list(
            c.predict_paths(value if isinstance(value, (str, bytes)) else [value])
        ),
        lambda c, value: c.predict_paths([], pixel_limit=value),
        lambda c, value: c.predict_paths([], any_modality=value),
        lambda c, value: OrganClassifier(device=value),
        lambda c, value: OrganClassifier(orientation=value),
        lambda c, value: OrganClassifier(threads=value),
        lambda c, value: ray.classify([], "none", format=value),
        lambda c, value: ray.classify([], "none", workers=value),
    ],
)
def test_no_message_repeats_a_huge_value(classifier, call, value):
    with pytest.raises(InputError) as told:
        call(classifier, value)
    assert len(str(told.value)) < 600 and str(told.value).isprintable()


def test_a_value_is_shown_on_one_short_line():
    class Broken:
        def __repr__(self):
            raise RuntimeError("no")

    assert short_repr("a'b") == '"a\'b"' and short_repr(1.5) == "1.5"
    assert short_repr("\udce9\n") == r"'\xe9\n'"
    assert "Broken" in short_repr(Broken())
    assert len(short_repr("x" * 10**7)) <= 120 and len(short_repr([Broken()] * 10)) <= 120
    assert shorten("abc", 3) == "abc"
    assert len(shorten("a" * 50 + "z" * 50, 20)) == 20
    assert shorten("a" * 50 + "z" * 50, 20) == "aaaaaaaaaa ... zzzzz"


@pytest.mark.parametrize("value", [b"x" * (1 << 24), bytearray(1 << 24), "x" * (1 << 24)], ids=type)
def test_a_long_value_is_not_copied_to_show_its_beginning(value):
    tracemalloc.start()
    try:
        assert len(short_repr(value)) <= 120
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_line_of_the_command_is_bounded(capfdbinary):
    Messages().error("x" * 10**6)
    assert len(capfdbinary.readouterr().err) < LINE_LIMIT + 50
    assert main(["--device", "x" * 10**5, "a.png"]) == 2
    assert main(["--" + "x" * 10**5, "a.png"]) == 2
    assert all(len(line) < 1200 for line in capfdbinary.readouterr().err.splitlines())


def test_an_archive_of_long_names_gives_a_short_error(classifier, tmp_path):
    np.savez(tmp_path / "a.npz", **{f"{'x' * 500}\n{i}": np.zeros((9, 9)) for i in range(99)})
    results = list(classifier.predict_paths([f"{tmp_path}/a.npz", f"{tmp_path}/a.npz#none"]))
    assert len(results) == 100
    assert all(len(result.error) < 400 and result.error.isprintable() for result in results)


# Links and depth.


@linux
def test_links_to_directories_are_counted_and_circles_end(command, three_images, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    shutil.copy(three_images[0], tmp_path / "a" / "b" / "one.png")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "a" / "b" / "self").symlink_to(".")
    # Links to nothing and to themselves are files, and hide no other.
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "a" / "loop.png").symlink_to("loop.png")
    candidates = Candidates(parse(["-r", str(tmp_path)]))
    assert list(candidates) == [
        Candidate(f"{tmp_path}/a/b/one.png"),
        Candidate(f"{tmp_path}/a/loop.png"),
    ]
    assert candidates.skipped == {Skipped.LINK: 2, Skipped.FILE: 1}
    done = command("-r", tmp_path)
    assert done.returncode == 1 and done.stdout.endswith("/a/b/one.png\n")
    assert done.stderr == (
        f"organ-infer: error: {tmp_path}/a/loop.png: cannot be read (Too many levels of symbolic links)\n"
        "organ-infer: note: skipped in directories: 1 (files that are no images), 2 (links to directories);"
        " pass a linked directory as a path to include it\n"
    )
    # A link that is named is followed.
    assert command(tmp_path / "a" / "up", "-r").returncode == 1


@linux
def test_directories_may_be_nested_deeper_than_calls(three_images, tmp_path):
    # Not in tmp_path itself, whose removal by pytest would recurse.
    top = tmp_path / "top"
    top.mkdir()
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    with open(os.open("x.png", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor), "wb") as file:
        file.write(b"x")
    os.close(descriptor)
    (found,) = Candidates(parse(["-r", str(top)]))
    assert found.path == f"{top}/{'d/' * 1500}x.png"
    subprocess.run(["rm", "-rf", top], check=True)


# Where the command runs.


def test_the_command_runs_in_any_thread(bundle, three_images, bad_image, capfd):
    codes = []

    def work(*arguments):
        codes.append(main(["--bundle", str(bundle), *arguments]))

    for arguments in ([three_images[0]], [bad_image], ["--device", "none", "a.png"], ["--version"]):
        thread = threading.Thread(target=work, args=arguments)
        thread.start()
        thread.join(60)
    assert codes == [0, 1, 2, 0]
    out, err = capfd.readouterr()
    assert three_images[0] in out and bad_image in err and "unexpected" not in err


def test_the_messages_reach_a_standard_error_that_is_no_file(bundle, bad_image, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert main(["--bundle", str(bundle), bad_image]) == 1
    assert sys.stderr.getvalue().startswith(f"organ-infer: error: {bad_image}: ")
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(encoding="ascii", write=told.append))
    assert main(["--bundle", str(bundle), f"{bad_image}ü"]) == 2
    assert told == [f"organ-infer: error: no image found: {bad_image}\\xfc: no such file\n"]
    monkeypatch.setattr(sys, "stderr", object())
    assert main(["--bundle", str(bundle), bad_image]) == 1


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["IMAGE"], ["BAD"], ["--check"], ["--output", ""]]
)
def test_without_docstrings_and_asserts_the_command_is_the_same(
    arguments, bundle, three_images, bad_image, tmp_path
):
    given = [{"IMAGE": three_images[0], "BAD": bad_image}.get(a, a) for a in arguments]
    done = [
        subprocess.run(
            [sys.executable, *option, "-m", "organ_infer", "--bundle", str(bundle), *given],
            capture_output=True,
            text=True,
            env=child_environment(PYTHONDONTWRITEBYTECODE="1"),
            timeout=120,
        )
        for option in ([], ["-OO"])
    ]
    plain, optimized = [
        (run.returncode, re.sub(r"time .*|\d\.\d+e-\d+", "", run.stdout), run.stderr)
        for run in done
    ]
    assert optimized == plain and "Traceback" not in plain[2]


def test_no_check_of_input_is_an_assert():
    """-O drops asserts. Those of the runtime only tell mypy that a value is not None."""
    asserts = [
        line.strip()
        for path in (ROOT / "runtime").rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith("assert ")
    ]
    assert [line for line in asserts if not line.endswith(" is not None")] == []


@linux
def test_help_can_be_printed_in_any_encoding(tmp_path):
    """Texts of the packaged model may be of any alphabet."""
    code = (
        "import organ_infer.cli.arguments as a, organ_infer.cli as c, sys;"
        "a._packaged_model_text = lambda: '\\u041c\\u043e.'; sys.exit(c.main(['--help']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=child_environment(**ASCII), capture_output=True
    )
    assert done.returncode == 0 and done.stderr == b""
    assert rb"\u041c\u043e." in done.stdout and b"--files-from" in done.stdout


def test_a_prediction_names_its_path_as_given(classifier, odd):
    paths = [os.path.join(odd, name) for name in os.listdir(odd)]
    (found,) = classifier.predict_paths(paths)
    assert isinstance(found, Prediction) and os.fsencode(found.path) == paths[0]
