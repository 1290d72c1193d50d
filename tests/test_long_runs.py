"""Runs that are stopped, killed, or run out of room: whole lines, a whole FILE or none, one line of error."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import child_environment

MANY = 20_000  # of which few are reached before a run is stopped
SOME = 1_500


@pytest.fixture
def listed(pictures, tmp_path):
    """A list of many paths, one in a hundred of them bad, and the paths."""
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    paths = [
        str(bad) if i % 100 == 99 else str(pictures / f"s{i % 40:02}.png") for i in range(MANY)
    ]
    (tmp_path / "list").write_text("\n".join(paths) + "\n")
    return tmp_path / "list", paths


def command(bundle, *arguments):
    return [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), *map(str, arguments)]


def started(bundle, *arguments, **options):
    """The command under way, SIGINT as a terminal's user has it."""
    return subprocess.Popen(
        command(bundle, *arguments),
        stdin=options.pop("stdin", subprocess.PIPE), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=child_environment(), bufsize=0, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
    )  # fmt: skip


@contextmanager
def fed(process, paths, every):
    """Paths written to the command's standard input, one `every` so many seconds, until it has gone."""

    def write():
        with suppress(OSError, ValueError):
            for path in paths:
                process.stdin.write(os.fsencode(path) + b"\n")
                time.sleep(every)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    yield
    thread.join(20)


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def rows(text):
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def held_against(text, paths):
    """Whole lines, the first paths in their order, the bad ones as errors; how many."""
    found = rows(text)
    assert [row["path"] for row in found] == paths[: len(found)]
    assert [i for i, row in enumerate(found) if "error" in row] == list(range(99, len(found), 100))
    return len(found)


def test_every_path_has_its_row_in_order_and_every_bad_one_its_line(bundle, listed, tmp_path):
    """tests/endurance/many_paths.py has 100,000, and looks at memory."""
    list_file, paths = listed
    some = "".join(f"{path}\n" for path in paths[:SOME])
    list_file.write_text(some)
    for source, given in ((list_file, None), ("-", some.encode())):
        done = subprocess.run(
            command(bundle, "--format", "jsonl", "--files-from", source, "--output", tmp_path / "rows"),
            input=given, capture_output=True, env=child_environment(), timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (1, b"")
        assert held_against((tmp_path / "rows").read_text(), paths) == SOME
        bad = f"organ-infer: error: {tmp_path}/bad.png: unknown image format"
        assert [line[: len(bad)] for line in done.stderr.decode().splitlines()] == [bad] * (
            SOME // 100
        )
        (tmp_path / "rows").unlink()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to_file", [True, False])
def test_a_signal_amid_a_slow_feed_leaves_whole_lines(
    bundle, listed, tmp_path, number, code, to_file
):
    """Paths come one by one, results go out as they are: stopped while it is at work, not while it waits."""
    _, paths = listed
    out = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    more = ["--output", out] if to_file else []
    process = started(bundle, "--format", "jsonl", "--batch-size", "2", "--files-from", "-", *more)
    with fed(process, paths, 0.003):
        if to_file:
            until(lambda: partial.exists() and partial.stat().st_size)
            first = b""
        else:
            first = process.stdout.readline()
        process.send_signal(number)
        written, words = process.communicate(timeout=30)
    assert process.returncode == code
    *errors, last = words.decode().splitlines()
    where = f"; results so far are in {partial}" if to_file else ""
    assert last == f"organ-infer: { {130: 'interrupted', 143: 'terminated'}[code] }{where}"
    text = partial.read_text() if to_file else (first + written).decode()
    count = held_against(text, paths)
    assert 0 < count < MANY and len(errors) == count // 100
    assert not out.exists()


def test_an_interrupted_run_over_a_list_leaves_whole_lines_and_the_old_file(
    bundle, listed, tmp_path
):
    """Files are read ahead, in C and in a thread, when the signal comes."""
    list_file, paths = listed
    out = tmp_path / "out.jsonl"
    out.write_text("of before")
    partial = tmp_path / "out.jsonl.partial"
    process = started(
        bundle, "--format", "jsonl", "--batch-size", "8", "--files-from", list_file, "--output", out
    )
    until(lambda: partial.exists() and partial.stat().st_size)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=30)
    assert (
        process.returncode == 130
        and words.decode().endswith(f"organ-infer: interrupted; results so far are in {partial}\n")
        and b"Traceback" not in words
    )
    assert 0 < held_against(partial.read_text(), paths) < MANY
    assert out.read_text() == "of before"


@pytest.mark.parametrize("becomes", ["raise ImportError('initialization failed')", "pass"])
def test_a_signal_that_an_import_makes_something_else_of_still_ends_the_run(
    bundle, listed, tmp_path, becomes
):
    """An extension module that was interrupted says that it cannot be loaded, or nothing at all."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "onnxruntime.py").write_text(f"""
import os, signal, sys, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
except BaseException:
    {becomes}
sys.path.remove({str(tmp_path / "first")!r})
del sys.modules["onnxruntime"]
import onnxruntime
""")
    environment = child_environment()
    path = os.pathsep.join([str(tmp_path / "first"), environment["PYTHONPATH"]])
    done = subprocess.run(
        command(bundle, "--format", "jsonl", "--files-from", listed[0]),
        capture_output=True, text=True, env=environment | {"PYTHONPATH": path}, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "organ-infer: interrupted")
    assert held_against(done.stdout, listed[1]) < MANY


def test_a_killed_run_leaves_no_file(bundle, listed, tmp_path):
    """SIGKILL: nothing can be tidied, so FILE must not have been there; the next run takes its place."""
    list_file, paths = listed
    out = tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    process = started(
        bundle, "--format", "jsonl", "--batch-size", "8", "--files-from", list_file, "--output", out
    )
    until(lambda: partial.exists() and partial.stat().st_size)
    process.kill()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL and not out.exists()
    assert 0 < held_against(partial.read_text(), paths) < MANY
    list_file.write_text("\n".join(paths[:150]) + "\n")
    done = subprocess.run(
        command(bundle, "--format", "jsonl", "--files-from", list_file, "--output", out),
        capture_output=True, env=child_environment(), timeout=60,
    )  # fmt: skip
    assert (
        done.returncode == 1
        and held_against(out.read_text(), paths) == 150
        and not partial.exists()
    )


@pytest.mark.parametrize("form", ["text", "jsonl", "csv"])
def test_a_reader_that_leaves_after_a_line_ends_the_run_quietly(bundle, listed, form):
    """`organ-infer ... | head -1` over a list that would take a while."""
    list_file, _ = listed
    quoted = " ".join(
        command(bundle, "--quiet", "--batch-size", "4", "--format", form, "--files-from", list_file)
    )
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {quoted} | head -1"],
        capture_output=True, text=True, env=child_environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert all(
        "bad.png" in line for line in done.stderr.splitlines()
    )  # the bad ones before it was noticed
    assert len(done.stderr.splitlines()) < MANY // 100


def test_a_reader_that_leaves_ends_a_run_that_is_still_being_fed(bundle, listed):
    _, paths = listed
    process = started(bundle, "--batch-size", "2", "--quiet", "--files-from", "-")
    with fed(process, paths, 0.003):
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(30) == 0
    assert all(b"bad.png" in line for line in process.stderr.read().splitlines())
    process.stderr.close()


@pytest.fixture
def small_disk(tmp_path):
    """A directory of 64 KiB, of which a part is left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if (
        not mount
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run([umount, "-l", folder], check=True)


@pytest.mark.parametrize("before", [None, "of before\n"])
def test_a_full_disk_is_an_error_and_no_truncated_file(bundle, listed, small_disk, before):
    list_file, paths = listed
    out = small_disk / "out.jsonl"
    if before:
        out.write_text(before)
    done = subprocess.run(
        command(bundle, "--format", "jsonl", "--quiet", "--files-from", list_file, "--output", out),
        capture_output=True, text=True, env=child_environment(), timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"organ-infer: error: --output {out}: cannot be written (No space left on device);"
        f" results so far are in {out}.partial"
    )
    assert out.read_text() == before if before else not out.exists()
    assert 0 < held_against(Path(f"{out}.partial").read_text(), paths) < MANY


def test_a_disk_that_is_full_from_the_start_leaves_nothing(bundle, listed, small_disk):
    list_file, _ = listed
    with suppress(OSError), open(small_disk / "other", "wb", buffering=0) as file:
        while file.write(b"\0" * 512):
            pass
    done = subprocess.run(
        command(bundle, "--format", "csv", "--files-from", list_file, "--output", small_disk / "out.csv"),
        capture_output=True, text=True, env=child_environment(), timeout=60,
    )  # fmt: skip
    assert (
        done.returncode == 2 and "cannot be written (No space left" in done.stderr.splitlines()[-1]
    )
    assert [path.name for path in small_disk.iterdir()] == ["other"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("form", ["text", "csv", "jsonl"])
def test_standard_output_that_is_full_ends_the_run_with_an_error(bundle, listed, form):
    list_file, _ = listed
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(bundle, "--quiet", "--format", form, "--files-from", list_file),
            stdout=full, stderr=subprocess.PIPE, text=True, env=child_environment(), timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == "organ-infer: error: standard output: cannot be written (No space left on device)"
    )


def test_a_full_standard_error_stops_nothing(bundle, listed, tmp_path):
    list_file, paths = listed
    list_file.write_text("\n".join(paths[:SOME]))
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command(bundle, "--format", "jsonl", "--files-from", list_file),
            stdout=subprocess.PIPE, stderr=full, text=True, env=child_environment(), timeout=60,
        )  # fmt: skip
    assert done.returncode == 1 and held_against(done.stdout, paths) == SOME
