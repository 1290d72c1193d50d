"""Where organ-infer writes: files, pipes and full disks, signals, the progress bar."""

import errno
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import child_environment
from support.command_results import failed
from support.image_files import dicom, npy, saved

from organ_infer.cli import output
from organ_infer.cli.output import Writer
from organ_infer.cli.progress import bar_text

# Writing.


def test_output_appears_whole(command, three_images, tmp_path):
    out = tmp_path / "rows.jsonl"
    out.write_text("before")
    done = command("--format", "jsonl", "--output", out, *three_images)
    assert (done.returncode, done.stdout) == (0, "")
    assert out.read_text() == command("--format", "jsonl", *three_images).stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]
    assert command("--output", "rows.txt", three_images[0], cwd=tmp_path).returncode == 0


def test_an_existing_output_is_replaced_with_a_note(command, three_images, tmp_path):
    out = tmp_path / "rows.csv"
    out.touch()
    assert command("--output", out, three_images[0]).stderr == ""
    note = (
        f"organ-infer: note: --output {out}: exists and will be replaced; --force omits this note\n"
    )
    assert command("--output", out, three_images[0]).stderr == note
    assert out.read_text() == command("--format", "csv", three_images[0]).stdout
    for option in ("--force", "--quiet"):
        done = command("--output", out, option, three_images[1])
        assert (done.returncode, done.stderr) == (0, "")
        assert out.read_text() == command("--format", "csv", three_images[1]).stdout


def test_a_json_file_is_one_array_of_the_rows_of_json_lines(
    command, three_images, bad_image, tmp_path
):
    for given in ([bad_image], [*three_images, bad_image], [bad_image, *three_images]):
        lines = command("--format", "jsonl", *given).stdout.splitlines()
        assert command("--output", tmp_path / "rows.json", "--force", *given).returncode == 1
        written = (tmp_path / "rows.json").read_text()
        assert json.loads(written) == list(map(json.loads, lines))
        assert command("--format", "json", *given).stdout == written


def test_output_through_a_link_in_the_partials_place_is_refused(command, three_images, tmp_path):
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "out.partial").symlink_to("precious")
    failed(command("--output", tmp_path / "out", three_images[0]), "cannot be written")
    assert (tmp_path / "precious").read_text() == "keep"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_2(bundle, three_images):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "organ_infer", "--bundle", bundle, *three_images],
            stdout=full, stderr=subprocess.PIPE, text=True, env=child_environment(), timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr
        == "organ-infer: error: standard output: cannot be written (No space left on device)\n"
    )


def test_a_full_disk_is_2_and_leaves_whole_lines(command, pictures, tmp_path):
    """A limit on the file's size stands for the disk."""
    out = tmp_path / "out.jsonl"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    listed = "\n".join(str(pictures / f"s{i % 40:02}.png") for i in range(200))
    done = command(
        "--format", "jsonl", "--output", out, "--files-from", "-", stdin=listed, preexec_fn=limit
    )
    failed(done, "cannot be written .File too large.*; results so far are in .*out.jsonl.partial")
    assert not out.exists()
    kept = (tmp_path / "out.jsonl.partial").read_text()
    assert (
        kept.endswith("\n")
        and all(json.loads(line) for line in kept.splitlines())
        and len(kept) > 10_000
    )


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
    _, words = process.communicate(
        "\n".join([str(pictures / "s00.png")] * 3000).encode(), timeout=60
    )
    assert (process.returncode, words) == (0, b"")


def test_a_closed_standard_output_is_an_error_and_a_closed_standard_error_none(
    bundle, three_images
):
    line = f"{sys.executable} -m organ_infer --bundle {bundle} {three_images[0]}"
    done = subprocess.run(
        f"{line} >&-", shell=True, stderr=subprocess.PIPE, text=True, env=child_environment()
    )
    assert (
        done.returncode == 2
        and done.stderr
        == "organ-infer: error: standard output is closed; redirect it, or use --output FILE\n"
    )
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


def wait_until(condition):
    """Fails after a minute, far more than is ever needed."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("to_file", [True, False])
def test_a_signal_leaves_whole_lines(bundle, pictures, tmp_path, number, code, to_file):
    """The list never ends, so the command waits for it when the signal comes."""
    out = tmp_path / "out.jsonl"
    arguments = [
        "--format",
        "jsonl",
        "--files-from",
        "-",
        "--batch-size",
        "4",
        "--bundle",
        str(bundle),
    ]
    arguments += ["--output", str(out)] if to_file else []
    process = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=child_environment(),
        bufsize=0, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests may run where it is ignored
    )  # fmt: skip
    process.stdin.write(b"".join(os.fsencode(path) + b"\n" for path in sorted(pictures.iterdir())))
    process.stdin.flush()
    partial = Path(f"{out}.partial")
    # Until all that it was given is answered, however long that takes.
    if to_file:
        wait_until(lambda: partial.exists() and partial.read_text().count("\n") == 40)
    first = b"" if to_file else b"".join(process.stdout.readline() for _ in range(40))
    process.send_signal(number)
    written, words = process.communicate(timeout=60)
    written = first + written
    assert process.returncode == code, words
    word = {130: "interrupted", 143: "terminated"}[code]
    where = f"; results so far are in {partial}" if to_file else ""
    assert words.decode() == f"organ-infer: {word}{where}\n"
    text = partial.read_text() if to_file else written.decode()
    found = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n") and [row["path"] for row in found] == sorted(
        map(str, pictures.iterdir())
    )
    assert not out.exists()


def test_sigint_that_was_ignored_stays_ignored(bundle, pictures):
    """The signal comes between two slices, when the command has long set its handlers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), "--files-from", "-", "--batch-size", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment(), bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    process.stdin.write(os.fsencode(pictures / "s00.png") + b"\n")
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    written, _ = process.communicate(os.fsencode(pictures / "s01.png"), timeout=60)
    assert process.returncode == 0 and written.count(b"\n") == 1


# The progress bar.


def on_a_terminal(*arguments, stdout):
    """Run the command with a pseudo-terminal as standard error. Returns the exit code and what the terminal got."""
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
    done = subprocess.run(
        [sys.executable, "-m", "organ_infer", *map(str, arguments)],
        stdout=stdout, stderr=theirs, env=child_environment(TERM="xterm"), timeout=60,
    )  # fmt: skip
    os.close(theirs)
    reader.join()
    os.close(ours)
    return done.returncode, seen.decode()


@pytest.fixture
def many_arguments(bundle, pictures, bad_image):
    listed = [str(pictures / f"s{i % 40:02}.png") for i in range(3000)]
    return ["--bundle", bundle, "--batch-size", "8", *listed, bad_image]


def test_the_bar_is_drawn_on_a_terminal_and_cleared_before_the_last_lines(many_arguments, tmp_path):
    with (tmp_path / "rows").open("wb") as rows:
        code, seen = on_a_terminal(*many_arguments, stdout=rows)
    assert code == 1 and (tmp_path / "rows").read_bytes().count(b"\n") == 3000
    assert "/3,001 images" in seen and " s left" in seen
    *_, error, summary = seen.rstrip("\r\n").split("\n")
    error = error.rstrip("\r").split("\r")[-1]
    assert error.startswith("organ-infer: error: ") and "bad.png" in error
    summary = summary.split("\r")[-1]
    assert summary.startswith("organ-infer: 3,000 slices from 3,001 files; 1 failed; ")


def test_there_is_no_bar_if_results_go_through_a_pipe_to_a_pager(many_arguments, tmp_path):
    code, seen = on_a_terminal(*many_arguments, stdout=subprocess.PIPE)
    assert code == 1 and " images" not in seen and "[" not in seen
    assert "organ-infer: 3,000 slices from 3,001 files; 1 failed; " in seen
    output = ["--output", tmp_path / "rows.txt"]
    code, seen = on_a_terminal(*output, *many_arguments, stdout=subprocess.PIPE)
    assert code == 1 and " images" in seen


@pytest.mark.parametrize("columns", range(0, 90, 3))
def test_the_bar_fits_any_terminal(columns):
    for total in (None, 100_000):
        text = bar_text(12_345, 67, total, 8.0, columns)
        assert len(text) <= columns and "\n" not in text
    assert bar_text(5, 0, 10, 1.0, 79) == "[" + "#" * 15 + "." * 15 + "] 5/10 images 5/s 1 s left"


def test_a_signal_waits_for_the_end_of_a_write_and_a_second_one_does_not():
    from types import SimpleNamespace

    from organ_infer.cli.signals import Signals, Stopped

    signals = Signals()
    with pytest.raises(Stopped):  # before there is a writer
        signals._handle(signal.SIGINT, None)
    signals = Signals()
    signals.writer = SimpleNamespace(busy=True)
    signals.check()
    signals._handle(signal.SIGINT, None)
    with pytest.raises(Stopped):
        signals.check()
    with pytest.raises(Stopped):
        signals._handle(signal.SIGTERM, None)
    signals = Signals()
    signals.writer = SimpleNamespace(busy=False)
    with pytest.raises(Stopped):
        signals._handle(signal.SIGINT, None)
    with pytest.raises(Stopped):  # whatever became of the first
        signals.check()


def test_a_message_takes_the_bar_away_first(monkeypatch):
    from organ_infer.cli.progress import Messages

    written = []
    messages = Messages()
    messages.bar, messages._last_drawn = True, 0.0
    monkeypatch.setattr(messages, "_write", written.append)
    messages.progress(7, 0, 9)
    messages.error("x")
    messages.warning("y")
    messages.note("z")
    messages.status("end")
    width = len(written[0].rstrip()) - 1
    assert written == [
        written[0],
        "\r" + " " * width + "\r",
        "organ-infer: error: x\n",
        "organ-infer: warning: y\n",
        "organ-infer: note: z\n",
        "organ-infer: end\n",
    ]


def test_a_folder_that_cannot_be_opened_does_not_spoil_what_was_written(tmp_path, monkeypatch):
    from organ_infer.cli import output

    real = os.open

    def refuse(path, *rest, **named):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest, **named)

    writer = output.Writer(tmp_path / "out.txt")
    writer.write("heart\n")
    monkeypatch.setattr(os, "open", refuse)
    writer.finish()
    assert (tmp_path / "out.txt").read_text() == "heart\n" and len(list(tmp_path.iterdir())) == 1


# One file, two runs; links, permissions and file systems.


def written_to(path, text="row\n"):
    writer = Writer(str(path))
    writer.write(text)
    writer.finish()
    return writer


def test_a_second_run_with_the_same_output_is_refused_and_the_first_ends_well(
    bundle, three_images, tmp_path, command
):
    out = tmp_path / "out.txt"
    first = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), "--files-from", "-", "--output", str(out)],
        stdin=subprocess.PIPE, env=child_environment(),
    )  # fmt: skip
    try:
        first.stdin.write(f"{three_images[0]}\n".encode())
        first.stdin.flush()
        partial = tmp_path / "out.txt.partial"
        for _ in range(600):
            if partial.exists():
                break
            time.sleep(0.05)
        done = command("--output", out, three_images[1])
        assert done.returncode == 2 and not done.stdout
        assert "another organ-infer is writing this file; choose another path" in done.stderr
        first.stdin.write(f"{three_images[2]}\n".encode())
    finally:
        first.stdin.close()
    assert first.wait(60) == 0
    assert [line.split()[-1] for line in out.read_text().splitlines()] == [
        three_images[0],
        three_images[2],
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.txt"]


def test_what_a_killed_run_left_is_overwritten(tmp_path):
    (tmp_path / "a.txt.partial").write_text("half a ro")
    written_to(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "row\n"
    assert not (tmp_path / "a.txt.partial").exists()


def test_a_partial_that_became_the_file_meanwhile_is_opened_anew(tmp_path, monkeypatch):
    """The first run ends between the second's opening and its lock."""
    first = Writer(str(tmp_path / "a.txt"))
    first.write("first\n")
    lock = output.lock_file
    attempts = []

    def lock_after_the_first_has_ended(descriptor):
        attempts.append(descriptor)
        if len(attempts) == 1:
            first.finish()
        return lock(descriptor)

    monkeypatch.setattr(output, "lock_file", lock_after_the_first_has_ended)
    second = Writer(str(tmp_path / "a.txt"))
    assert len(attempts) == 2 and (tmp_path / "a.txt").read_text() == "first\n"
    second.write("second\n")
    second.finish()
    assert (tmp_path / "a.txt").read_text() == "second\n"


@pytest.mark.parametrize("exists", [True, False])
def test_the_file_behind_a_link_is_written_and_the_link_stays(tmp_path, exists):
    target, link = tmp_path / "there" / "a.txt", tmp_path / "link.txt"
    target.parent.mkdir()
    if exists:
        target.write_text("old")
    link.symlink_to(target)
    written_to(link)
    assert link.is_symlink() and target.read_text() == "row\n"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_the_permissions_of_a_file_stay(tmp_path, mode):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    written_to(path)
    assert path.read_text() == "row\n" and path.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("length", [246, 247, 248, 255])
def test_names_of_any_length_are_written(tmp_path, length):
    path = tmp_path / ("a" * length)
    written_to(path)
    assert path.read_text() == "row\n" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("call", ["fsync", "chmod", "flock"])
def test_a_file_system_that_refuses_a_call_that_is_not_needed_is_accepted(
    tmp_path, monkeypatch, call
):
    import fcntl

    def refused(*_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl if call == "flock" else os, call, refused)
    (tmp_path / "a.txt").write_text("old")
    written_to(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "row\n"


def test_a_flush_that_fails_for_the_disk_is_an_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = Writer(str(tmp_path / "a.txt"))
    writer.write("row\n")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(output.OutputError, match="No space left on device"):
        writer.finish()
    assert not (tmp_path / "a.txt").exists()


def test_a_handler_that_python_did_not_install_stays(monkeypatch):
    from organ_infer.cli.signals import Signals

    installed = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *given: installed.append(given))
    with Signals():
        pass
    assert installed == []


# A file that is no result is not replaced: it may be one of the images.


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM", "npy", "binary"])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_an_image_is_not_replaced_by_results(command, three_images, tmp_path, kind, force):
    pixels = np.zeros((28, 28), np.uint8)
    content = {
        "PNG": lambda: saved(pixels),
        "JPEG": lambda: saved(pixels, "JPEG"),
        "DICOM": lambda: dicom(pixels.astype(np.uint16)),
        "npy": lambda: npy(pixels),
        "binary": lambda: b"\x1f\x8b\0\0 a compressed scan",
    }[kind]()
    target = tmp_path / "scan"
    target.write_bytes(content)
    done = command("--output", target, *force, *three_images)
    assert done.returncode == 2 and "an image or another binary file" in done.stderr
    assert target.read_bytes() == content and [*tmp_path.iterdir()] == [target]
    # Among its own inputs, also below a directory.
    done = command("--output", target, *force, tmp_path)
    assert done.returncode == 2 and target.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"results of before\n", "Ergebnis é\n".encode()])
def test_a_text_file_is_replaced(command, three_images, tmp_path, content):
    target = tmp_path / "rows"
    target.write_bytes(content)
    assert command("--output", target, *three_images).returncode == 0
    assert len(target.read_text().splitlines()) == 3
