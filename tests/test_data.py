"""Data sets: found, downloaded from a server on the loopback address, refused where they are not the published file."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import shutil
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES

from organ_infer import locks
from tests.support.data_files import DATA, needs_organamnist
from tests.support.unequal_splits import Origins, npz_of, unequal_data
from train import data as data_module
from train import download as download_module
from train.data import default_directory, load_data, published_file
from train.datasets import DATASETS, SIZES
from train.download import digest_of, download
from train.errors import RunError


def medmnist_file(size=28):
    """Splits of unequal lengths, labels and images."""
    return npz_of(unequal_data({"train": 40, "val": 22, "test": 27}, size=size))


CONTENT = medmnist_file()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT with ranges; breaks off after `break_after` bytes of the first answers.

    ignores_ranges: answers 200 with the whole file; names_length: whether it sends Content-Length; statuses: answered
    instead, one a request, before any of it.
    """

    content, break_after = CONTENT, 1000
    breaks, status, ignores_ranges, names_length = 0, None, False, True
    retry_after = None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.ranges, self.statuses, self.agents = [], [], []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        server.agents.append(self.headers.get("User-Agent"))
        status = server.statuses.pop(0) if server.statuses else server.status
        if status:
            self.send_response(status)
            if server.retry_after is not None:
                self.send_header("Retry-After", server.retry_after)
            self.end_headers()
            return
        partly = asked and not server.ignores_ranges
        start = int(asked.removeprefix("bytes=").rstrip("-")) if partly else 0
        if partly and start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if partly else 200)
        if server.names_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            self.wfile.write(body[: server.break_after])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *arguments):
        pass


class Clock:
    """Time that passes only in pauses, and random numbers at the upper end."""

    def __init__(self):
        self.now, self.pauses = 1_800_000_000.0, []

    def time(self):
        return self.now

    def monotonic(self):
        # another process, which is waited for, lives in real time
        return time.monotonic()

    def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(download_module, "time", clock)
    monkeypatch.setattr(download_module.random, "uniform", lambda low, high: high)
    return clock


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/organsmnist.npz?download=1"


@pytest.fixture
def organsmnist(server, monkeypatch):
    """medmnist's own table, with the address of the loopback server and the MD5 of what it serves."""
    from medmnist import INFO

    monkeypatch.setitem(
        INFO, "organsmnist", INFO["organsmnist"] | {"url": address(server), "MD5": MD5}
    )


def listed(directory):
    """The names of the files in a directory, also of hidden ones."""
    return [path.name for path in directory.iterdir()]


def test_the_default_data_set_is_downloaded_checked_and_read(organsmnist, server, tmp_path):
    data = load_data("organsmnist", directory=tmp_path)
    assert (data.flag, data.view, data.md5) == ("organsmnist", "sagittal", MD5)
    assert data.images["train"].shape == (40, 28, 28) and data.images["train"].dtype == np.uint8
    assert data.labels["val"].shape == (22,) and data.classes[:3] == [
        "bladder",
        "femur-left",
        "femur-right",
    ]
    assert listed(tmp_path) == ["organsmnist.npz"]
    load_data("organsmnist", directory=tmp_path)
    assert len(server.ranges) == 1  # found the second time


def test_slices_of_the_networks_size_are_packed_from_a_larger_file(tmp_path, monkeypatch):
    from medmnist import INFO

    from organ_infer._packing import pack

    content = medmnist_file(size=128)
    (tmp_path / "organcmnist_128.npz").write_bytes(content)
    named = {"MD5_128": hashlib.md5(content).hexdigest()}
    monkeypatch.setitem(INFO, "organcmnist", INFO["organcmnist"] | named)
    data = load_data("organcmnist", directory=tmp_path, resample_from=128)
    assert (data.size, data.stored) == (28, 128)
    found = data.network_images("val")
    assert found.dtype == np.float32 and np.array_equal(
        found[:, None], pack(data.images["val"], 28)
    )
    for resample in ("linear", "cubic"):
        other = load_data("organcmnist", directory=tmp_path, resample_from=128, resample=resample)
        assert np.array_equal(
            other.network_images("val")[:, None], pack(data.images["val"], 28, resample=resample)
        )
        assert not np.array_equal(other.network_images("val"), found)
    whole = load_data("organcmnist", directory=tmp_path, size=128)
    assert whole.network_images("val") is whole.images["val"]
    with pytest.raises(RunError, match="slices of 224 px: cannot be resampled from 128 px"):
        load_data("organcmnist", directory=tmp_path, size=224, resample_from=128)
    with pytest.raises(RunError, match="slices of 28 px: cannot be resampled from 100 px"):
        load_data("organcmnist", directory=tmp_path, resample_from=100)
    same = load_data("organcmnist", directory=tmp_path, size=128, resample_from=128)
    assert (same.size, same.stored) == (128, 128)


def test_every_slice_is_read_with_its_own_label_into_its_own_split(tmp_path, monkeypatch):
    from medmnist import INFO

    (tmp_path / "organamnist.npz").write_bytes(CONTENT)
    monkeypatch.setitem(INFO, "organamnist", INFO["organamnist"] | {"MD5": MD5})
    data = load_data("organamnist", directory=tmp_path)
    whole = unequal_data({"train": 40, "val": 22, "test": 27})
    origins = Origins(whole)
    for split, count in (("train", 40), ("val", 22), ("test", 27)):
        assert origins.places(data.images[split], data.labels[split], split) == list(range(count))
        assert data.labels[split].dtype == np.int64 and data.labels[split].shape == (count,)
    assert data.counts == whole.counts


@pytest.mark.parametrize(
    ("flag", "view", "version_1"),
    [
        ("organamnist", "axial", "OrganMNIST_Axial"),
        ("organcmnist", "coronal", "OrganMNIST_Coronal"),
        ("organsmnist", "sagittal", "OrganMNIST_Sagittal"),
    ],
)
def test_each_set_has_the_view_that_medmnist_names(tmp_path, monkeypatch, flag, view, version_1):
    """Yang et al., "MedMNIST v2", Scientific Data 2023: Organ{A,C,S}MNIST are the axial, coronal and sagittal slices."""
    from medmnist import INFO

    assert version_1 in INFO[flag]["description"]
    (tmp_path / f"{flag}.npz").write_bytes(CONTENT)
    monkeypatch.setitem(INFO, flag, INFO[flag] | {"MD5": MD5})
    data = load_data(flag, directory=tmp_path)
    assert (data.flag, data.view) == (flag, view)
    assert len(DATASETS) == 3


def test_a_smoke_run_takes_the_first_256_slices_with_their_labels():
    whole = unequal_data({"train": 300, "val": 261, "test": 200})
    smoke, origins = whole.smoke(), Origins(whole)
    for split, count in (("train", 256), ("val", 256), ("test", 200)):
        places = origins.places(smoke.images[split], smoke.labels[split], split)
        assert places == list(range(count))
    assert smoke.counts == whole.counts
    assert (smoke.flag, smoke.md5, smoke.size) == (whole.flag, whole.md5, whole.size)


def test_without_a_directory_medmnists_own_folder_is_used(organsmnist, tmp_path, monkeypatch):
    import medmnist.info

    monkeypatch.setattr(medmnist.info, "DEFAULT_ROOT", str(tmp_path / "medmnists"))
    load_data("organsmnist")
    assert (tmp_path / "medmnists" / "organsmnist.npz").is_file()
    # medmnist sets it to None if the folder could not be made
    monkeypatch.setattr(medmnist.info, "DEFAULT_ROOT", None)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_data("organsmnist")
    assert (tmp_path / "home" / ".medmnist" / "organsmnist.npz").is_file()


def test_medmnist_itself_looks_into_the_same_folder():
    import inspect

    import medmnist

    root = inspect.signature(medmnist.OrganSMNIST.__init__).parameters["root"].default
    assert default_directory() == Path(root)


def test_a_download_goes_on_where_it_broke_off(server, tmp_path):
    server.breaks = 2
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=2000-"]


def test_a_download_of_an_earlier_run_goes_on(server, tmp_path):
    (tmp_path / "a.npz.part").write_bytes(CONTENT[:1234])
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT and server.ranges == ["bytes=1234-"]


def test_a_wrong_part_is_thrown_away_and_fetched_again(server, tmp_path):
    (tmp_path / "a.npz.part").write_bytes(b"x" * 100)
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT
    assert server.ranges == ["bytes=100-", None]


def test_a_whole_answer_to_a_request_for_the_rest_replaces_the_part(server, tmp_path):
    """The server knows no ranges: appended to the part, the file would be wrong and fetched once more."""
    server.ignores_ranges = True
    (tmp_path / "a.npz.part").write_bytes(CONTENT[:1234])
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1234-"]


@pytest.mark.parametrize("more", [b"", b"x", CONTENT])
def test_a_part_as_long_as_the_file_or_longer_starts_over(server, tmp_path, more):
    """The server answers 416, range not satisfiable."""
    (tmp_path / "a.npz.part").write_bytes(CONTENT[:-5] + b"wrong" + more)
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT) + len(more)}-", None]
    assert listed(tmp_path) == ["a.npz"]


def test_a_server_that_always_answers_416_is_named(server, tmp_path):
    server.status = 416
    with pytest.raises(RunError, match="the server answered 416"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert len(server.ranges) == 1


def test_a_download_without_a_length_is_complete_when_it_ends(server, tmp_path):
    server.names_length = False
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT
    for content in (b"something else", b""):
        server.content = content
        with pytest.raises(
            RunError, match=f"expected MD5 {MD5}, found {hashlib.md5(content).hexdigest()}"
        ):
            download(address(server), tmp_path / "b.npz", MD5)
        assert not (tmp_path / "b.npz.part").exists()


def test_a_large_file_is_fetched_in_several_pieces(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "CHUNK", 1000)
    server.breaks, server.break_after = 1, 2500
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=2500-"]


def test_after_six_broken_connections_the_part_is_kept_for_the_next_run(server, tmp_path):
    server.breaks, server.break_after = 6, 100
    with pytest.raises(RunError, match=r"download failed \(the connection broke off\); fetch"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz.part").read_bytes() == CONTENT[:600]
    download(address(server), tmp_path / "a.npz", MD5)
    assert server.ranges == [None, *(f"bytes={n}00-" for n in (1, 2, 3, 4, 5, 6))]


def test_a_file_that_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"as it is")
    download(address(server), tmp_path / "a.npz", MD5)
    assert server.ranges == [] and (tmp_path / "a.npz").read_bytes() == b"as it is"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 417, 451, 499])
def test_refusals_are_not_tried_again(server, clock, tmp_path, status):
    server.status, server.retry_after = status, "1"
    with pytest.raises(RunError, match=f"the server answered {status}"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert len(server.ranges) == 1 and clock.pauses == []


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_a_busy_server_gets_time_that_doubles_and_each_pause_is_shown(
    server, clock, tmp_path, status, capsys
):
    server.status = status
    with pytest.raises(RunError, match=f"the server answered {status}"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert clock.pauses == [1, 2, 4, 8, 16] and len(server.ranges) == 6
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert lines[3].startswith(f"a.npz: the server answered {status} ")
    assert lines[3].endswith("; waiting 8 s, then attempt 5 of 6")


def test_pauses_differ_by_up_to_half_and_have_an_end(monkeypatch):
    monkeypatch.setattr(download_module.random, "uniform", lambda low, high: low)
    assert [download_module._pause(n, None) for n in (1, 2, 3)] == [0.5, 1, 2]
    monkeypatch.setattr(download_module.random, "uniform", lambda low, high: high)
    assert [download_module._pause(n, None) for n in (5, 6, 60)] == [16, 30, 30]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("7", 7),
        (" 120 ", 120),
        ("0", 1),
        ("Fri, 15 Jan 2027 08:00:45 GMT", 45),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 1),
        ("Friday, 15-Jan-27 08:00:45 GMT", 45),
        ("Fri Jan 15 08:00:45 2027", 45),
        ("-5", 1),
        ("soon", 1),
        ("", 1),
        ("1.5", 1),
    ],
)
def test_the_server_may_ask_for_a_pause_in_seconds_or_by_date(
    server, clock, tmp_path, status, header, pause, capsys
):
    """The clock shows Friday, 15 January 2027, 08:00:00 GMT. Nothing shorter than the usual pause is waited."""
    server.statuses, server.retry_after = [status], header
    download(address(server), tmp_path / "a.npz", MD5)
    assert clock.pauses == [pause]
    assert f"; waiting {pause} s, then attempt 2 of 6" in capsys.readouterr().err
    assert (tmp_path / "a.npz").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "header", ["301", "86400", "9" * 400, "Sat, 16 Jan 2027 08:00:00 GMT"], ids=str
)
def test_a_server_that_asks_for_too_long_a_pause_is_given_up(server, clock, tmp_path, header):
    server.status, server.retry_after = 503, header
    with pytest.raises(RunError, match=r"answered 503 .*, and asks to wait (\d+|inf) s\); fetch"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert len(server.ranges) == 1 and clock.pauses == []


def test_all_pauses_together_have_a_limit(server, clock, tmp_path):
    server.status, server.retry_after = 429, "140"
    with pytest.raises(RunError, match="and asks to wait 140 s"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert clock.pauses == [140, 140] and sum(clock.pauses) <= download_module.LONGEST_WAIT == 300


def test_a_pause_can_be_interrupted_and_the_lock_is_given_back(
    server, clock, tmp_path, monkeypatch
):
    def interrupt(seconds):
        raise KeyboardInterrupt

    server.statuses = [503]
    with monkeypatch.context() as patched:
        patched.setattr(clock, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download(address(server), tmp_path / "a.npz", MD5)
    download(address(server), tmp_path / "a.npz", MD5)
    assert len(server.ranges) == 2


def test_an_attempt_that_gets_further_begins_the_pauses_anew(server, clock, tmp_path):
    server.statuses, server.breaks = [503, 503], 2
    download(address(server), tmp_path / "a.npz", MD5)
    assert clock.pauses == [1, 2, 1, 1]


def test_a_refused_connection_is_tried_again(clock, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.npz"
    with pytest.raises(RunError, match=r"download failed \(.*refused\); fetch"):
        download(url, tmp_path / "a.npz", MD5)
    assert clock.pauses == [1, 2, 4, 8, 16]


def test_an_invalid_certificate_is_not_tried_again(clock, tmp_path, monkeypatch):
    def open_url(*_, **__):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("certificate has expired"))

    monkeypatch.setattr(urllib.request, "urlopen", open_url)
    with pytest.raises(RunError, match="certificate has expired"):
        download("https://127.0.0.1/a.npz", tmp_path / "a.npz", MD5)
    assert clock.pauses == []


def test_a_server_that_recovers_is_asked_again(server, tmp_path):
    server.statuses = [503, 500]
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT and len(server.ranges) == 3
    assert set(server.agents) == {"organ-infer-train"}


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    assert download_module.TIMEOUT == 30  # seconds
    monkeypatch.setattr(download_module, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/a.npz"
        with pytest.raises(RunError, match=r"a.npz: download failed \(timed out\); fetch"):
            download(url, tmp_path / "a.npz", MD5, attempts=2)


def test_a_directory_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        RunError, match=r"file/b: cannot be written \(Not a directory\); choose another --data-dir"
    ):
        download(address(server), tmp_path / "file" / "b" / "a.npz", MD5)
    assert server.ranges == []


def refuse_to_open(monkeypatch, error):
    """Opening a part raises `error`."""
    real = Path.open

    def opened(path, *arguments, **options):
        if path.suffix == ".part":
            raise error
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)


def test_a_directory_that_cannot_be_written_is_named(server, tmp_path, monkeypatch):
    refuse_to_open(monkeypatch, PermissionError(13, "Permission denied"))
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    with pytest.raises(
        RunError,
        match=rf"{tmp_path}: cannot be written \(Permission denied\); choose another --data-dir",
    ):
        download(address(server), tmp_path / "a.npz", MD5)
    assert len(server.ranges) == 1


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EFBIG"])
def test_a_full_disk_is_named_at_once(server, clock, tmp_path, monkeypatch, name):
    number = getattr(errno, name)
    refuse_to_open(monkeypatch, OSError(number, os.strerror(number)))
    with pytest.raises(RunError, match=rf"download failed \(.*{os.strerror(number)}\); fetch"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert len(server.ranges) == 1 and clock.pauses == []


def test_an_error_that_is_not_the_disks_says_nothing_of_the_directory(
    server, tmp_path, monkeypatch
):
    """It has no number: a connection's."""
    refuse_to_open(monkeypatch, OSError("the connection ended"))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match=r"download failed \(the connection ended\); fetch"):
        download(address(server), tmp_path / "a.npz", MD5)


def test_a_directory_that_vanishes_is_not_called_read_only(server, tmp_path):
    """The part's directory is gone when the answer comes."""
    home = tmp_path / "new"
    home.mkdir()
    real, server.finish_request = server.finish_request, None

    def finish(request, client):
        shutil.rmtree(home, ignore_errors=True)
        real(request, client)

    server.finish_request = finish
    with pytest.raises(RunError, match=r"download failed \(.*No such file or directory.*\); fetch"):
        download(address(server), home / "a.npz", MD5)


def test_missing_directories_are_made_and_the_progress_ends_at_all_of_it(server, tmp_path, capsys):
    path = tmp_path / "new" / "er" / "organsmnist.npz"
    path.parent.mkdir(parents=True)
    path.with_name(path.name + ".part").write_bytes(CONTENT[:1234])
    download(address(server), path, MD5)
    shown = capsys.readouterr().err
    assert "organsmnist.npz: 100%" in shown and "part" not in shown
    assert f"{len(CONTENT) / 1024:.1f}k/{len(CONTENT) / 1024:.1f}k" in shown
    download(address(server), tmp_path / "others" / "too" / "a.npz", MD5)
    assert (tmp_path / "others" / "too" / "a.npz").read_bytes() == CONTENT


def test_an_error_without_words_is_named_by_its_kind(server, tmp_path, monkeypatch):
    refuse_to_open(monkeypatch, ConnectionResetError())
    with pytest.raises(RunError, match=r"download failed \(ConnectionResetError\); fetch"):
        download(address(server), tmp_path / "a.npz", MD5)


def test_a_part_takes_its_name_only_when_it_is_on_the_disk(server, tmp_path, monkeypatch):
    order, real_sync, real_replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append(os.fstat(fd).st_size) or real_sync(fd))
    monkeypatch.setattr(os, "replace", lambda a, b: order.append("renamed") or real_replace(a, b))
    server.content = b"less than a buffer"
    download(address(server), tmp_path / "a.npz", hashlib.md5(server.content).hexdigest())
    assert order == [len(server.content), "renamed"]


def test_the_lock_of_a_download_is_given_back(server, tmp_path):
    """Also after a failure: another process, here another thread, may go on."""
    server.statuses = [404]
    with pytest.raises(RunError):
        download(address(server), tmp_path / "a.npz", MD5)
    other = threading.Thread(
        target=download, args=(address(server), tmp_path / "a.npz", MD5), daemon=True
    )
    other.start()
    other.join(30)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT


@pytest.mark.parametrize("marked", [False, True])
def test_a_download_of_another_process_that_does_not_grow_is_not_waited_for_for_ever(
    server, tmp_path, monkeypatch, marked
):
    path, lock = tmp_path / "a.npz", tmp_path / ".a.npz.lock"
    monkeypatch.setattr(download_module, "WAIT", 0.5)
    if marked:
        monkeypatch.setattr(locks, "lock_file", lambda descriptor: None)
        (tmp_path / ".a.npz.lock.owner").write_text("1 another-computer\n")
    holder = locks.Lock(lock)
    assert holder.acquire() is not marked
    named = f"remove {lock}.owner if it was killed" if marked else "end it"
    with pytest.raises(
        RunError, match=f"a.npz.part: another process is downloading it .*; {named}, then rerun"
    ):
        download(address(server), path, MD5)
    holder.release()


def test_a_file_that_another_process_completes_is_taken_without_its_lock(server, tmp_path):
    path = tmp_path / "a.npz"
    holder = locks.Lock(tmp_path / ".a.npz.lock")
    assert holder.acquire()
    waiting = threading.Thread(target=download, args=(address(server), path, MD5), daemon=True)
    waiting.start()
    path.write_bytes(CONTENT)
    waiting.join(30)
    assert not waiting.is_alive() and server.ranges == []
    holder.release()


def test_a_file_is_downloaded_where_there_are_no_locks(server, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "lock_file", lambda descriptor: None)
    download(address(server), tmp_path / "a.npz", MD5)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT
    assert not (tmp_path / ".a.npz.lock.owner").exists()


def test_md5_is_hashlibs(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    # RFC 1321, appendix A.5
    assert digest_of(tmp_path / "file", "md5") == "900150983cd24fb0d6963f7d28e17f72"


def test_a_server_with_another_file_is_refused_with_both_md5s(server, tmp_path):
    server.content = b"something else"
    found = hashlib.md5(b"something else").hexdigest()
    with pytest.raises(
        RunError, match=rf"expected MD5 {MD5}, found {found}\); fetch http://127.0.0.1"
    ):
        download(address(server), tmp_path / "a.npz", MD5)
    assert not listed(tmp_path)


def test_a_server_that_refuses_is_named_with_its_reason(server, tmp_path):
    server.status = 404
    with pytest.raises(
        RunError,
        match=rf"a.npz: download failed \(the server answered 404 Not Found\); fetch {address(server).replace('?', '.')}"
        rf" by hand to {tmp_path}/a.npz \(MD5 {MD5}\)",
    ):
        download(address(server), tmp_path / "a.npz", MD5)


@pytest.mark.parametrize(
    "answer",
    [b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"],
)
def test_a_server_that_speaks_no_http_is_told(tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            for _ in range(6):
                with contextlib.suppress(OSError), listening.accept()[0] as connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a.npz"
        with pytest.raises(
            RunError, match=rf"a.npz: download failed \(.*\); fetch {address} by hand"
        ) as told:
            download(address, tmp_path / "a.npz", MD5)
        thread.join(10)
    assert "\n" not in str(told.value)


def test_of_two_downloads_at_once_one_fetches(server, tmp_path):
    threads = [
        threading.Thread(target=download, args=(address(server), tmp_path / "a.npz", MD5))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (tmp_path / "a.npz").read_bytes() == CONTENT and server.ranges == [None]


def test_other_digests_are_checked_by_their_first_digits(server, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    download(address(server), tmp_path / "a.pth", digest, algorithm="sha256")
    assert (tmp_path / "a.pth").read_bytes() == CONTENT
    with pytest.raises(
        RunError, match=r"expected SHA256 00000000, found .*by hand to .* \(SHA256 00000000\)"
    ):
        download(address(server), tmp_path / "b.pth", "00000000", algorithm="sha256")


def test_no_network_says_what_to_fetch_and_where_to_put_it(tmp_path):
    with pytest.raises(
        RunError,
        match=r"download failed \(.*refused.*fetch http://127.0.0.1:9/x by hand to .*a.npz",
    ):
        download("http://127.0.0.1:9/x", tmp_path / "a.npz", MD5)


def test_a_truncated_file_is_named_with_both_md5s_and_the_address(organsmnist, server, tmp_path):
    path = tmp_path / "organsmnist.npz"
    path.write_bytes(CONTENT[:-7])
    found = hashlib.md5(CONTENT[:-7]).hexdigest()
    with pytest.raises(RunError) as e:
        load_data("organsmnist", directory=tmp_path)
    for part in (str(path), MD5, found, address(server)):
        assert part in str(e.value)
    assert "\n" not in str(e.value) and path.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"val_images": np.zeros((22, 28, 27), np.uint8)}, "expected val images uint8"),
        ({"test_images": np.zeros((27, 28, 28), np.float32)}, "found float32"),
        (
            {"test_images": np.zeros((26, 28, 28), np.uint8)},
            r"expected test images uint8 \(27, 28, 28\), found uint8 \(26, 28, 28\)",
        ),
        (
            {"test_labels": np.zeros((22, 1), np.uint8)},
            r"expected test images uint8 \(22, 28, 28\), found uint8 \(27",
        ),
        ({"train_labels": np.full((40, 1), 11, np.uint8)}, "expected train labels of 0 to 10"),
        ({"train_labels": np.full((40, 1), -1, np.int8)}, "expected train labels of 0 to 10"),
        (
            {
                "val_images": np.zeros((0, 28, 28), np.uint8),
                "val_labels": np.zeros((0, 1), np.uint8),
            },
            "expected val labels of 0 to 10",
        ),
        ({"train_labels": None}, "not a MedMNIST file"),
        ({"val_images": np.array([{}])}, "not a MedMNIST file"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, monkeypatch, change, words):
    arrays = dict(np.load(io.BytesIO(CONTENT))) | change
    np.savez(tmp_path / "organsmnist.npz", **{k: v for k, v in arrays.items() if v is not None})
    md5 = hashlib.md5((tmp_path / "organsmnist.npz").read_bytes()).hexdigest()
    known = published_file("organsmnist", 28) | {"md5": md5}
    monkeypatch.setattr(data_module, "published_file", lambda flag, size: known)
    with pytest.raises(RunError, match=words):
        load_data("organsmnist", directory=tmp_path)


def test_the_first_and_the_last_class_are_taken(tmp_path, monkeypatch):
    labels = np.tile([0, 10], 20)[:, None].astype(np.uint8)
    arrays = dict(np.load(io.BytesIO(CONTENT))) | {"train_labels": labels}
    np.savez(tmp_path / "organsmnist.npz", **arrays)
    known = published_file("organsmnist", 28) | {
        "md5": digest_of(tmp_path / "organsmnist.npz", "md5")
    }
    monkeypatch.setattr(data_module, "published_file", lambda flag, size: known)
    assert load_data("organsmnist", directory=tmp_path).counts["train"] == [20, *[0] * 9, 20]


@pytest.mark.parametrize("content", [b"no archive", CONTENT[:2000]])
def test_a_file_that_is_no_archive_is_named(tmp_path, monkeypatch, content):
    (tmp_path / "organsmnist.npz").write_bytes(content)
    known = published_file("organsmnist", 28) | {"md5": hashlib.md5(content).hexdigest()}
    monkeypatch.setattr(data_module, "published_file", lambda flag, size: known)
    with pytest.raises(RunError, match=r"organsmnist.npz: not a MedMNIST file"):
        load_data("organsmnist", directory=tmp_path)


def test_a_directory_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "organsmnist.npz").mkdir()
    with pytest.raises(RunError, match=r"organsmnist.npz: not a file"):
        load_data("organsmnist", directory=tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    def refuse(path, algorithm):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "organsmnist.npz").write_bytes(CONTENT)
    monkeypatch.setattr(data_module, "digest_of", refuse)
    with pytest.raises(RunError, match=r"organsmnist.npz: cannot be read \(Permission denied\)"):
        load_data("organsmnist", directory=tmp_path)


def test_unknown_names_and_sizes_list_the_valid_ones(tmp_path):
    with pytest.raises(
        RunError,
        match="data set 'pathmnist': unknown; choose from organsmnist, organamnist, organcmnist",
    ):
        load_data("pathmnist", directory=tmp_path)
    with pytest.raises(RunError, match="size 32: not published; choose from 28, 64, 128, 224"):
        load_data("organsmnist", size=32, directory=tmp_path)


# Yang et al., "MedMNIST v2", Scientific Data 2023, table 2, and medmnist 2.2.4, which removed blank slices
SLICES = {
    "organsmnist": {"train": 13932, "val": 2452, "test": 8827},
    "organamnist": {"train": 34561, "val": 6491, "test": 17778},
    "organcmnist": {"train": 12975, "val": 2392, "test": 8216},
}


def test_medmnist_publishes_what_the_study_used():
    assert published_file("organsmnist", 28)["md5"] == "9ab87b696fb54e2a387ebe992d6ed5f1"
    assert published_file("organamnist", 28)["md5"] == "68e3f8846a6bd62f0c9bf841c0d9eacc"
    assert SIZES == (28, 64, 128, 224)
    addresses, digests = set(), set()
    for flag in DATASETS:
        for size in SIZES:
            known = published_file(flag, size)
            name = f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"
            assert known["name"] == name
            assert known["url"].startswith("https://") and f"/{name}" in known["url"]
            assert len(known["md5"]) == 32 and known["n_samples"] == SLICES[flag]
            assert known["classes"] == CLASSES
            addresses.add(known["url"])
            digests.add(known["md5"])
    assert len(addresses) == len(digests) == 12


@needs_organamnist
def test_the_axial_set_at_hand_is_the_published_one():
    data = load_data("organamnist", directory=DATA)
    assert [len(data.labels[s]) for s in ("train", "val", "test")] == [34561, 6491, 17778]
    assert data.counts["val"] == [321, 233, 225, 392, 568, 637, 1033, 1033, 1009, 529, 511]


# what a failed download leaves behind


@pytest.mark.parametrize(
    ("directory", "message"),
    [
        ("mistyped/data", "no such directory, so organsmnist.npz is not there; correct --data-dir, or create"),
        ("photos/a.png", "not a directory, so organsmnist.npz is not there; correct --data-dir"),
        ("photos", "no organsmnist.npz, but other files such as a.png; correct --data-dir, or pass an empty"),
        ("named_so", "no organsmnist.npz, but other files such as my_data.npz; correct --data-dir"),
    ],
)  # fmt: skip
def test_a_mistyped_directory_starts_no_download(
    server, organsmnist, tmp_path, directory, message, capsys
):
    for name in ("photos/a.png", "named_so/my_data.npz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunError, match=f"{tmp_path / directory}: {message}"):
        load_data("organsmnist", directory=tmp_path / directory)
    assert not server.ranges and sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("beside", ["organsmnist_64.npz", "pathmnist.npz.part", ".DS_Store"])
def test_a_directory_of_data_sets_is_one_for_downloads(
    server, organsmnist, tmp_path, beside, capsys
):
    (tmp_path / beside).touch()
    load_data("organsmnist", directory=tmp_path)
    assert (tmp_path / "organsmnist.npz").is_file()
    note = f"train: note: {tmp_path / 'organsmnist.npz'}: no such file; downloading {address(server)}\n"
    assert capsys.readouterr().err.startswith(note)


def test_a_failed_download_leaves_a_directory_that_was_there(server, organsmnist, tmp_path):
    server.status = 404
    (tmp_path / "data").mkdir()
    with pytest.raises(RunError, match="the server answered 404"):
        load_data("organsmnist", directory=tmp_path / "data")
    assert listed(tmp_path) == ["data"] and not listed(tmp_path / "data")


def test_a_download_leaves_only_its_file(server, organsmnist, tmp_path):
    (tmp_path / "new").mkdir()
    load_data("organsmnist", directory=tmp_path / "new")
    assert listed(tmp_path / "new") == ["organsmnist.npz"]


def test_an_interrupted_download_keeps_what_it_has_to_resume_from(server, tmp_path, monkeypatch):
    def interrupted(url, path, part, digest, algorithm, attempts):
        part.write_bytes(b"PK")
        return "interrupted"

    monkeypatch.setattr(download_module, "_fetch", interrupted)
    with pytest.raises(RunError, match="interrupted"):
        download(address(server), tmp_path / "new" / "a.npz", MD5)
    assert listed(tmp_path / "new") == ["a.npz.part"]


def test_an_empty_part_is_removed(server, tmp_path, monkeypatch):
    def interrupted(url, path, part, digest, algorithm, attempts):
        part.touch()
        return "interrupted"

    monkeypatch.setattr(download_module, "_fetch", interrupted)
    with pytest.raises(RunError, match="interrupted"):
        download(address(server), tmp_path / "new" / "a.npz", MD5)
    assert not listed(tmp_path)


def test_a_file_of_the_user_is_neither_replaced_nor_advised_to_be_removed(organsmnist, tmp_path):
    path = tmp_path / "organsmnist.npz"
    path.write_bytes(b"years of work")
    found = hashlib.md5(b"years of work").hexdigest()
    with pytest.raises(RunError) as caught:
        load_data("organsmnist", directory=tmp_path)
    assert str(caught.value).startswith(
        f"{path}: has the name of MedMNIST's file but other content, expected MD5 {MD5}, found {found};"
        " give another --data-dir, or rename this file to download http://127.0.0.1"
    )
    assert "remove" not in str(caught.value) and path.read_bytes() == b"years of work"


# locks


def test_a_lock_leaves_no_file(tmp_path):
    lock = locks.Lock(tmp_path / ".lock")
    assert lock.acquire() and listed(tmp_path) == [".lock"]
    lock.release()
    assert not listed(tmp_path)


def test_a_marker_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "lock_file", lambda descriptor: None)
    lock, other = locks.Lock(tmp_path / ".lock"), locks.Lock(tmp_path / ".lock")
    assert lock.acquire() and not other.acquire()
    assert listed(tmp_path) == [".lock.owner"]
    lock.release()
    assert not listed(tmp_path)


def test_a_file_that_its_owner_removed_meanwhile_is_not_taken_for_the_lock(tmp_path, monkeypatch):
    """The owner removes the file between the opening and the locking of another process."""
    owner, waiting = locks.Lock(tmp_path / ".lock"), locks.Lock(tmp_path / ".lock")
    assert owner.acquire()
    real = locks.lock_file

    def release_first(descriptor):
        monkeypatch.setattr(locks, "lock_file", real)
        owner.release()
        return real(descriptor)

    monkeypatch.setattr(locks, "lock_file", release_first)
    assert waiting.acquire()
    assert not locks.Lock(tmp_path / ".lock").acquire()


def test_a_file_system_that_never_shows_the_same_file_twice_does_not_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.os.path, "samestat", lambda first, second: False)
    assert locks.Lock(tmp_path / ".lock").acquire()


def test_a_file_larger_than_the_disk_is_not_begun(server, tmp_path, monkeypatch):
    monkeypatch.setattr(
        download_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=len(CONTENT) - 1)
    )
    with pytest.raises(RunError, match=r"a\.npz: download failed \(0 MB needed, 0 MB free\)"):
        download(address(server), tmp_path / "new" / "a.npz", MD5)
    assert server.ranges == [None] and not listed(tmp_path)
