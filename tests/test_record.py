"""What a run writes: whole or not at all, with the user's permissions, and read again or refused in one line."""

import csv
import errno
import fcntl
import io
import json
import math
import multiprocessing
import os
import socket
import stat

import pytest
import torch

from train import record
from train.errors import RunError


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def half_written(file):
    file.write(b"half of ")
    raise OSError(28, "No space left on device")


def interrupted(file):
    file.write(b"half of ")
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("writer", "error"), [(half_written, OSError), (interrupted, KeyboardInterrupt)]
)
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, writer, error):
    path = tmp_path / "results.json"
    record.atomic_write(path, "old")
    with pytest.raises(error):
        record.atomic_save(path, writer)
    assert path.read_text() == "old" and names(tmp_path) == ["results.json"]
    with pytest.raises(error):
        record.atomic_save(tmp_path / "new", writer)
    assert names(tmp_path) == ["results.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_each_step_of_a_write_may_fail(tmp_path, monkeypatch, step):
    path = tmp_path / "results.json"
    record.atomic_write(path, "old")

    def fails(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, step, fails)
    with pytest.raises(OSError, match="Input/output error"):
        record.atomic_write(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["results.json"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_that_cannot_flush_is_accepted(tmp_path, monkeypatch, number):
    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    record.atomic_write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("call", ["open", "fsync"])
def test_a_directory_that_cannot_be_flushed_is_accepted(tmp_path, monkeypatch, number, call):
    real_open, real_sync = os.open, os.fsync

    def opened(path, *arguments, **options):
        if call == "open" and os.path.isdir(path):
            raise OSError(number, os.strerror(number))
        return real_open(path, *arguments, **options)

    def sync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        real_sync(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "fsync", sync)
    record.atomic_write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EACCES])
def test_a_file_system_that_refuses_chmod_is_accepted(tmp_path, monkeypatch, number):
    def refuse(path, mode, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "chmod", refuse)
    record.atomic_write(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and names(tmp_path) == ["a"]


def test_a_failure_is_reported_even_if_the_temporary_file_is_gone(tmp_path):
    def removes_itself(file):
        (temporary,) = tmp_path.iterdir()
        temporary.unlink()
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        record.atomic_save(tmp_path / "a", removes_itself)


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path, seen = tmp_path / "a.bin", []
    record.atomic_write(path, b"old")

    def save(file):
        file.write(b"new")
        file.flush()
        seen.append((path.read_bytes(), names(tmp_path)))

    record.atomic_save(path, save)
    ((content, beside),) = seen
    assert content == b"old" and path.read_bytes() == b"new"
    (partial,) = set(beside) - {"a.bin"}
    # hidden, and named as sweep_partials looks for it
    assert partial.startswith(".a.bin.") and partial.endswith(".partial")


def test_a_file_is_on_the_disk_before_it_is_renamed_and_its_directory_after(tmp_path, monkeypatch):
    steps, real_sync, real_replace = [], os.fsync, os.replace

    def sync(descriptor):
        state = os.fstat(descriptor)
        steps.append("directory" if stat.S_ISDIR(state.st_mode) else f"{state.st_size} bytes")
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", lambda a, b: steps.append("renamed") or real_replace(a, b))
    record.atomic_write(tmp_path / "a", b"x" * 50)  # less than a buffer
    assert steps == ["50 bytes", "renamed", "directory"]


def test_no_descriptor_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    record.atomic_write(tmp_path / "a", b"x")
    with pytest.raises(OSError):
        record.atomic_save(tmp_path / "a", half_written)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o666)]
)
def test_permissions_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        record.atomic_write(tmp_path / "a", b"x")
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_missing_directories_are_made(tmp_path):
    record.atomic_write(tmp_path / "a" / "b" / "c", "text")
    assert (tmp_path / "a" / "b" / "c").read_text() == "text"


def test_text_is_written_as_utf_8_and_bytes_as_they_are(tmp_path):
    record.atomic_write(tmp_path / "text", "µ ±\n")
    record.atomic_write(tmp_path / "bytes", b"\xff\r\n")
    assert (tmp_path / "text").read_bytes() == b"\xc2\xb5 \xc2\xb1\n"
    assert (tmp_path / "bytes").read_bytes() == b"\xff\r\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_say_is_refused_and_nothing_is_written(tmp_path, value):
    path = tmp_path / "results.json"
    record.write_json(path, {"auc": None})
    with pytest.raises(ValueError, match="Out of range float"):
        record.write_json(path, {"stages": [{"auc": value}]})
    assert record.read_json(path) == {"auc": None} and names(tmp_path) == ["results.json"]


def test_json_is_read_as_it_was_written(tmp_path):
    value = {"name": "µ", "values": [1, 0.1, None, True], "nested": {"a": []}}
    record.write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert record.read_json(tmp_path / "a.json") == value == json.loads(text)
    assert (
        text.endswith("}\n") and '\n "name"' in text
    )  # a line per value, so that two runs can be compared


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"nothing"])
def test_a_file_that_is_no_json_is_named(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(
        RunError, match=r"results.json: not valid JSON \(.*\); move it away or .*--fresh"
    ):
        record.read_json(tmp_path / "results.json")


def test_a_run_error_ends_with_code_2_unless_another_is_named():
    assert RunError("x").exit_code == 2 and RunError("x", 1).exit_code == 1
    assert str(RunError("a line")) == "a line"


def test_the_history_has_a_row_per_epoch(tmp_path):
    rows = [
        {
            "epoch": epoch,
            "train_loss": 1.5 / epoch,
            "train_accuracy": 0.5,
            "val_loss": 1.25,
            "val_accuracy": 0.6,
            "seconds": 2.5,
            "learning_rate": 1e-3,
        }
        for epoch in (1, 2)
    ]
    record.write_history(tmp_path / "history.csv", rows)
    text = (tmp_path / "history.csv").read_bytes().decode()
    assert text.splitlines()[0] == (
        "epoch,train_loss,train_accuracy,val_loss,val_accuracy,seconds,learning_rate"
    )
    assert "\r" not in text
    found = [
        {key: float(value) for key, value in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]
    assert found == rows


def test_what_killed_writers_left_is_swept_away_and_nothing_else(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    run = tmp_path / "run"
    (run / "base" / ".bundle.x.partial" / "inside").mkdir(parents=True)
    (run / "base" / ".checkpoint.pt.x.partial").touch()
    (run / ".results.json.x.partial").touch()
    (run / ".link.partial").symlink_to(outside, target_is_directory=True)
    for kept in ("results.json", "visible.partial", ".hidden", ".a.partial.npz"):
        (run / kept).touch()
    record.sweep_partials(run)
    assert names(run) == sorted(
        [".a.partial.npz", ".hidden", "base", "results.json", "visible.partial"]
    )
    assert names(run / "base") == [] and names(outside) == ["kept"]


def test_a_partial_that_cannot_be_removed_leaves_the_others_to_be_removed(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(39, "Directory not empty")

    for name in ("first", "second"):
        (tmp_path / f".{name}.partial").mkdir()
        (tmp_path / f".{name}.partial" / "graph.onnx").touch()
    monkeypatch.setattr(os, "rmdir", refuse)
    record.sweep_partials(tmp_path)
    assert [names(path) for path in tmp_path.iterdir()] == [[], []]


def test_a_partial_that_is_gone_meanwhile_is_passed_over(tmp_path, monkeypatch):
    gone = tmp_path / ".a.x.partial"
    monkeypatch.setattr(type(tmp_path), "rglob", lambda directory, pattern: [gone])
    record.sweep_partials(tmp_path)


def test_a_checkpoint_is_read_as_it_was_saved(tmp_path):
    state = {
        "network": "small",
        "state": {"weight": torch.arange(6.0).reshape(2, 3)},
        "history": [{"epoch": 1}],
    }
    record.save_checkpoint(tmp_path / "checkpoint.pt", state)
    found = record.load_checkpoint(tmp_path / "checkpoint.pt")
    assert torch.equal(found["state"].pop("weight"), state["state"].pop("weight"))
    assert found == state
    # torch's own reader takes it too, without running code
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["network"] == "small"


class Runs:
    """Pickled, it asks for code to be run."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"network": Runs()}, tmp_path / "checkpoint.pt")
    with pytest.raises(
        RunError, match=r"checkpoint.pt: not a readable checkpoint \(UnpicklingError\)"
    ):
        record.load_checkpoint(tmp_path / "checkpoint.pt")
    assert names(tmp_path) == ["checkpoint.pt"]


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(RunError, match=f"{path}: no such checkpoint"):
        record.load_checkpoint(path)
    path.write_bytes(b"nothing")
    with pytest.raises(
        RunError,
        match=r"checkpoint.pt: not a readable checkpoint .*; remove it .* or start over with --fresh",
    ):
        record.load_checkpoint(path)
    for other in ([1, 2], {"state": {}}):
        torch.save(other, path)
        with pytest.raises(
            RunError, match=": not a checkpoint of this program, it has no 'network' entry"
        ):
            record.load_checkpoint(path)


class FullDisk(io.BufferedWriter):
    """A file on a disk that takes 500 bytes more."""

    def __init__(self, descriptor, mode):
        super().__init__(io.FileIO(descriptor, mode))
        self.taken = 0

    def write(self, data):
        self.taken += len(data)
        if self.taken > 500:
            raise OSError(28, "No space left on device")
        return super().write(data)


def test_a_checkpoint_on_a_full_disk_is_the_systems_error(tmp_path, monkeypatch):
    """torch hides it behind a RuntimeError of its own."""
    path = tmp_path / "checkpoint.pt"
    record.save_checkpoint(path, {"network": "old"})
    monkeypatch.setattr(os, "fdopen", FullDisk)
    with pytest.raises(OSError, match="No space left on device"):
        record.save_checkpoint(path, {"network": "new", "state": {"weight": torch.zeros(10_000)}})
    assert record.load_checkpoint(path)["network"] == "old" and names(tmp_path) == ["checkpoint.pt"]


def test_an_error_of_torch_itself_stays_as_it_is(tmp_path, monkeypatch):
    def fails(state, file):
        raise RuntimeError("something else")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="something else"):
        record.save_checkpoint(tmp_path / "checkpoint.pt", {"network": "x"})
    assert names(tmp_path) == []


def try_to_lock(directory, answers):
    try:
        with record.locked(directory):
            answers.put("got it")
    except RunError as e:
        answers.put(str(e))


def test_another_process_is_refused_while_the_lock_is_held_and_let_in_after(tmp_path):
    run = tmp_path / "runs" / "organamnist"
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def ask():
        process = context.Process(target=try_to_lock, args=(run, answers))
        process.start()
        answer = answers.get(timeout=60)
        process.join(60)
        return answer

    with record.locked(run):
        assert ask() == f"{run}: another run is using it; wait for it, or choose another --out"
    assert ask() == "got it"
    with pytest.raises(KeyError), record.locked(run):
        raise KeyError
    assert ask() == "got it"


REFUSALS = [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL]


@pytest.fixture(params=REFUSALS, ids=errno.errorcode.get)
def no_locks(request, monkeypatch):
    """A file system whose flock answers with an error."""

    def refuse(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_a_file_system_without_locks_gets_a_marker_and_one_true_line(tmp_path, no_locks, capsys):
    marker = tmp_path / ".lock.owner"
    for _ in range(2):
        with record.locked(tmp_path):
            shown = capsys.readouterr()
            assert shown.out == "" and shown.err == (
                f"train: note: {tmp_path}: this file system has no locks; {marker} marks the directory as in use, remove"
                " it if a run on another computer is killed\n"
            )
            assert marker.read_text() == f"{os.getpid()} {socket.gethostname()}\n"
        assert not marker.exists()


def ended_process() -> int:
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join(60)
    return process.pid


@pytest.mark.parametrize(
    ("content", "owner"),
    [
        (f"{os.getppid()} {socket.gethostname()}\n", True),
        ("1 another-computer\n", True),
        ("", False),
        ("not a process\n", False),
    ],
)
def test_a_marker_of_another_run_is_named_with_what_to_remove(tmp_path, no_locks, content, owner):
    marker = tmp_path / ".lock.owner"
    marker.write_text(content)
    with pytest.raises(RunError) as caught, record.locked(tmp_path):
        pass
    number, _, host = content.strip().partition(" ")
    who = f" (process {number} on {host})" if owner else ""
    assert str(caught.value) == (
        f"{tmp_path}: another run is using it{who}; wait for it, or remove {marker} if that run was killed"
    )
    assert marker.read_text() == content


def test_the_marker_of_a_killed_run_of_this_computer_is_replaced(tmp_path, no_locks):
    marker = tmp_path / ".lock.owner"
    marker.write_text(f"{ended_process()} {socket.gethostname()}\n")
    with record.locked(tmp_path):
        assert marker.read_text() == f"{os.getpid()} {socket.gethostname()}\n"


def test_a_marker_means_nothing_where_there_are_locks(tmp_path, capsys):
    (tmp_path / ".lock.owner").write_text("1 another-computer\n")
    with record.locked(tmp_path):
        assert capsys.readouterr().err == ""


def test_a_lock_in_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(
            RunError, match=r"file/run: cannot be written \(Not a directory\); choose another --out"
        ),
        record.locked(tmp_path / "file" / "run"),
    ):
        pass
