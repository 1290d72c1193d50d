"""The forked command of the tests answers as a process of its own: exit code, both outputs, directory, standard input."""

import os
import socket
import subprocess
import sys
import time

import pytest
from conftest import child_environment


@pytest.fixture
def forked(forked_command):
    if forked_command is None:
        pytest.skip("this machine cannot fork the command")
    return forked_command


def in_a_new_process(arguments, *, cwd, stdin=None):
    return subprocess.run(
        [sys.executable, "-m", "organ_infer", *arguments],
        capture_output=True,
        cwd=cwd,
        input=stdin,
        env=child_environment(),
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["s00.png", "s01.png"], 0),
        (["--format", "jsonl", "s00.png", os.fsdecode(b"none\xff.png")], 1),
        (["--no-such-option"], 2),
        (["--help"], 0),
        (["volume", "none.nii"], 2),
        (["-"], 1),
    ],
    ids=lambda value: (
        " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else ""
    ),
)
def test_a_fork_answers_as_a_new_process(forked, bundle, pictures, arguments, code):
    model = [] if arguments[0] == "volume" else ["--bundle", str(bundle)]
    arguments = [*arguments, *model]

    found = forked.run(arguments, cwd=str(pictures), stdin=b"no image", timeout=60)

    expected = in_a_new_process(arguments, cwd=pictures, stdin=b"no image")
    assert expected.returncode == code
    assert (found.returncode, found.stdout, found.stderr) == (
        expected.returncode,
        expected.stdout,
        expected.stderr,
    )


def test_standard_input_longer_than_a_pipe_arrives_whole(forked, bundle, pictures):
    listed = b"s00.png\n" * 20_000
    arguments = ["--bundle", str(bundle), "--quiet", "--format", "csv", "--files-from", "-"]

    found = forked.run(arguments, cwd=str(pictures), stdin=listed, timeout=60)

    assert found.returncode == 0 and found.stdout.count(b"\n") == 20_001


def test_a_command_that_does_not_end_is_killed_and_the_next_one_answers(forked, bundle, tmp_path):
    os.mkfifo(tmp_path / "list")
    arguments = ["--bundle", str(bundle), "--files-from", str(tmp_path / "list")]

    with pytest.raises(subprocess.TimeoutExpired):
        forked.run(arguments, cwd=str(tmp_path), stdin=None, timeout=0.5)

    assert forked.run(["--version"], cwd=str(tmp_path), stdin=None, timeout=60).returncode == 0


def test_a_command_that_ends_before_it_is_waited_for_is_in_time(forked, monkeypatch, tmp_path):
    send = socket.send_fds

    def send_and_wait(*arguments):
        send(*arguments)
        time.sleep(1)

    monkeypatch.setattr(socket, "send_fds", send_and_wait)

    done = forked.run(["--version"], cwd=str(tmp_path), stdin=None, timeout=0.2)

    assert done.returncode == 0


def test_options_that_change_how_a_process_starts_are_not_forked(command, forked, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("forked")

    monkeypatch.setattr(forked, "run", refuse)

    assert command("--version", env={"PYTHONUTF8": "1"}).returncode == 0
    assert command("--version", stdin="", close_fds=False).returncode == 0
    monkeypatch.setenv("ORGAN_INFER_SIMD", "portable")
    assert command("--version").returncode == 0
    monkeypatch.delenv("ORGAN_INFER_SIMD")
    # PyTorch sets this one when it is imported
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "any")
    with pytest.raises(AssertionError, match="forked"):
        command("--version")
