"""Data sets: found, downloaded from a server on the loopback address, refused where they are not the published file."""

import contextlib
import hashlib
import http.server
import io
import socket
import threading

import numpy as np
import pytest

from tests.at_hand import DATA, needs_organamnist
from train import data as data_module
from train.data import DATASETS, SIZES, load_data, published
from train.download import download
from train.record import RunError


def medmnist_file(classes=11, size=28):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 40), ("val", 22), ("test", 22)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (n, size, size), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % classes).astype(np.uint8)[:, None]
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


CONTENT = medmnist_file()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT with ranges; breaks off after `break_after` bytes of the first answers."""

    content, ranges, breaks, break_after, status = CONTENT, [], 0, 1000, None


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        if server.status:
            self.send_error(server.status)
            return
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = server.content[start:]
        self.send_response(206 if asked else 200)
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


@pytest.fixture
def server():
    server = Server(("127.0.0.1", 0), Handler)
    server.ranges = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def address(server):
    return f"http://127.0.0.1:{server.server_port}/organsmnist.npz?download=1"


@pytest.fixture
def organsmnist(server, monkeypatch):
    """medmnist's own table, with the address of the loopback server and the MD5 of what it serves."""
    from medmnist import INFO

    monkeypatch.setitem(INFO, "organsmnist", INFO["organsmnist"] | {"url": address(server), "MD5": MD5})


def listed(directory):
    """What lies there, but for the lock that a download holds."""
    return [path.name for path in directory.iterdir() if not path.name.endswith(".lock")]


def test_the_default_data_set_is_downloaded_checked_and_read(organsmnist, server, tmp_path):
    data = load_data("organsmnist", directory=tmp_path)
    assert (data.flag, data.view, data.md5) == ("organsmnist", "sagittal", MD5)
    assert data.images["train"].shape == (40, 28, 28) and data.images["train"].dtype == np.uint8
    assert data.labels["val"].shape == (22,) and data.classes[:3] == ["bladder", "femur-left", "femur-right"]
    assert data.counts["test"] == [2] * 11
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
    assert found.dtype == np.float32 and np.array_equal(found[:, None], pack(data.images["val"], 28))
    whole = load_data("organcmnist", directory=tmp_path, size=128)
    assert whole.network_images("val") is whole.images["val"]
    with pytest.raises(RunError, match="slices of 224 px cannot be resampled from 128 px"):
        load_data("organcmnist", directory=tmp_path, size=224, resample_from=128)


def test_the_default_directory_is_medmnists(organsmnist, tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "default_directory", lambda: tmp_path / "new")
    load_data("organsmnist")
    assert (tmp_path / "new" / "organsmnist.npz").is_file()


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


def test_a_server_with_another_file_is_refused_with_both_md5s(server, tmp_path):
    server.content = b"something else"
    found = hashlib.md5(b"something else").hexdigest()
    with pytest.raises(RunError, match=f"expected MD5 {MD5}, found {found}; fetch http://127.0.0.1"):
        download(address(server), tmp_path / "a.npz", MD5)
    assert not listed(tmp_path)


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_refuses_is_named(server, tmp_path, status):
    server.status = status
    with pytest.raises(
        RunError, match=f"a.npz could not be downloaded: the server answered {status} .*; fetch http"
    ):
        download(address(server), tmp_path / "a.npz", MD5)


@pytest.mark.parametrize(
    "answer", [b"no HTTP at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"]
)
def test_a_server_that_speaks_no_http_is_told(tmp_path, answer):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            for _ in range(4):
                with contextlib.suppress(OSError), listening.accept()[0] as connection:
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a.npz"
        with pytest.raises(
            RunError, match=f"a.npz could not be downloaded: .*; fetch {address} by hand"
        ) as told:
            download(address, tmp_path / "a.npz", MD5)
        thread.join(10)
    assert "\n" not in str(told.value)


def test_of_two_downloads_at_once_one_fetches(server, tmp_path):
    threads = [
        threading.Thread(target=download, args=(address(server), tmp_path / "a.npz", MD5)) for _ in range(3)
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
        RunError, match=r"could not be downloaded: .*refused.*fetch http://127.0.0.1:9/x by hand to .*a.npz"
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
        ({"val_images": np.zeros((22, 28, 27), np.uint8)}, "val holds uint8"),
        ({"test_images": np.zeros((22, 28, 28), np.float32)}, "test holds float32"),
        ({"train_labels": np.full((40, 1), 11, np.uint8)}, "labels outside 0 to 10"),
        ({"train_labels": None}, "not a MedMNIST file"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, monkeypatch, change, words):
    arrays = dict(np.load(io.BytesIO(CONTENT))) | change
    np.savez(tmp_path / "organsmnist.npz", **{k: v for k, v in arrays.items() if v is not None})
    md5 = hashlib.md5((tmp_path / "organsmnist.npz").read_bytes()).hexdigest()
    known = published("organsmnist", 28) | {"md5": md5}
    monkeypatch.setattr(data_module, "published", lambda flag, size: known)
    with pytest.raises(RunError, match=words):
        load_data("organsmnist", directory=tmp_path)


def test_unknown_names_and_sizes_list_the_valid_ones(tmp_path):
    with pytest.raises(
        RunError, match="unknown data set 'pathmnist'; choose from organsmnist, organamnist, organcmnist"
    ):
        load_data("pathmnist", directory=tmp_path)
    with pytest.raises(RunError, match="unknown size 32; choose from 28, 64, 128, 224"):
        load_data("organsmnist", size=32, directory=tmp_path)


def test_medmnist_publishes_what_the_study_used():
    assert published("organsmnist", 28)["md5"] == "9ab87b696fb54e2a387ebe992d6ed5f1"
    for flag in DATASETS:
        for size in SIZES:
            known = published(flag, size)
            assert (
                known["url"].startswith("https://")
                and len(known["md5"]) == 32
                and len(known["classes"]) == 11
            )


@needs_organamnist
def test_the_axial_set_at_hand_is_the_published_one():
    data = load_data("organamnist", directory=DATA)
    assert [len(data.labels[s]) for s in ("train", "val", "test")] == [34561, 6491, 17778]
    assert data.counts["val"] == [321, 233, 225, 392, 568, 637, 1033, 1033, 1009, 529, 511]
