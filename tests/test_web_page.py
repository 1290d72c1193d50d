"""`python -m export.web` without npm: the directory that it writes, and every way in which it cannot."""

import base64
import hashlib
import io
import json
import os
import re
import sys
import tarfile

import pytest
from conftest import DEFAULT, make_graph, needs_default, write_bundle

from export.web import packages
from export.web.__main__ import main
from export.web.packages import third_party_files
from export.web.page import SOURCE

VENDOR = {
    "onnxruntime-web": {"dist/ort.mjs": "ort.wasm.bundle.min.js", "dist/ort.wasm": "ort-wasm-simd-threaded.wasm"},
    "dicom-parser": {"dist/dicomParser.min.js": "dicomParser.min.js"},
    "jpeg-lossless-decoder-js": {"release/lossless-min.js": "lossless-min.js"},
}  # fmt: skip


def archive_of(names):
    """The archive of a package, as npm packs it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in names:
            data = f"content of {name}".encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A directory of the archives of small packages, which the table names."""
    folder = tmp_path / "archives"
    folder.mkdir()
    table = {}
    for name, files in VENDOR.items():
        data = archive_of(files)
        digest = base64.b64encode(hashlib.sha512(data).digest()).decode()
        table[name] = {
            "version": "1.2.3",
            "integrity": f"sha512-{digest}",
            "files": files,
            "copyright": f"Copyright of {name}",
            "source": "https://example.org",
        }
        (folder / f"{name}-1.2.3.tgz").write_bytes(data)
    (tmp_path / "packages.json").write_text(json.dumps(table))
    monkeypatch.setattr(packages, "TABLE", tmp_path / "packages.json")
    return folder


def install_npm(folder, monkeypatch, script):
    """Put a program in npm's place, and nothing else on the path."""
    folder.mkdir()
    program = folder / "npm"
    program.write_text(f"#!{sys.executable}\nimport os, pathlib, shutil, sys\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


EXACT = ["edge.onnx", "edge_wide.onnx", "edge_deep.onnx"]
LISTED = [name.replace(".onnx", ".int8.onnx") for name in EXACT]


def files_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@needs_default
def test_the_directory_holds_the_page_the_packages_and_the_bundle(archives, tmp_path, capsys):
    out = tmp_path / "deep" / "page"

    code = main([str(DEFAULT.parent), str(out), "--packages", str(archives)])

    assert code == 0
    files = files_of(out)
    own = {path.name for path in SOURCE.iterdir()} - {"package.json"}
    vendor = {f"vendor/{name}" for names in VENDOR.values() for name in names.values()}
    bundle = {
        "bundle/manifest.json",
        "bundle/MODEL_CARD.md",
        *(f"bundle/{name}" for name in LISTED),
    }
    assert {*files} == own | vendor | bundle | {"vendor/NOTICE.txt", "page.json"}
    for name in bundle:
        assert files[name] == (DEFAULT.parent / name.removeprefix("bundle/")).read_bytes()
    assert files["vendor/ort.wasm.bundle.min.js"] == b"content of dist/ort.mjs"
    assert all(f"Copyright of {name}".encode() in files["vendor/NOTICE.txt"] for name in VENDOR)
    size = sum(map(len, files.values())) / 1e6
    assert (
        capsys.readouterr().out
        == f"{out}: {size:.1f} MB; python -m http.server --directory {out}\n"
    )


@needs_default
def test_page_json_lists_every_other_file_for_a_server(archives, tmp_path):
    out = tmp_path / "page"
    assert main([str(DEFAULT.parent), str(out), "--packages", str(archives)]) == 0
    files = files_of(out)

    page = json.loads(files.pop("page.json"))

    assert (page["format"], page["precision"], page["graphs"]) == (
        1,
        "listed",
        LISTED,
    )
    assert {*page["files"]} == {*files}
    for name, data in files.items():
        listed = page["files"][name]
        assert listed["bytes"] == len(data)
        assert listed["sha256"] == hashlib.sha256(data).hexdigest()
    types = {name.rpartition(".")[2]: listed["type"] for name, listed in page["files"].items()}
    assert types["wasm"] == "application/wasm" and types["js"].startswith("text/javascript")
    assert {*page["headers"]} == {
        "Content-Security-Policy",
        "Referrer-Policy",
        "X-Content-Type-Options",
    }
    policy = page["headers"]["Content-Security-Policy"]
    assert policy.endswith("; frame-ancestors 'none'")
    assert policy.removesuffix("; frame-ancestors 'none'") in files["index.html"].decode()


@needs_default
@pytest.mark.parametrize(
    ("precision", "files"), [("listed", LISTED), ("int8", LISTED), ("fp32", EXACT)]
)  # fmt: skip
def test_a_precision_chooses_the_graph(precision, files, archives, tmp_path):
    out = tmp_path / "page"

    code = main(
        [str(DEFAULT.parent), str(out), "--packages", str(archives), "--precision", precision]
    )

    assert code == 0
    assert {path.name for path in (out / "bundle").glob("*.onnx")} == {*files}
    assert json.loads((out / "page.json").read_text())["graphs"] == files


def test_each_network_of_an_ensemble_is_copied(ensemble, archives, tmp_path):
    out = tmp_path / "page"

    assert main([str(ensemble), str(out), "--packages", str(archives)]) == 0

    assert json.loads((out / "page.json").read_text())["graphs"] == [
        "first.onnx",
        "second.onnx",
        "third.onnx",
    ]
    assert len([*(out / "bundle").glob("*.onnx")]) == 3


def test_the_page_names_no_outside_address_and_runs_no_inline_script():
    for path in SOURCE.iterdir():
        text = path.read_text()
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], path.name
    html = (SOURCE / "index.html").read_text()
    assert re.findall(r"<script(?![^>]* src=)", html) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=", html) == []
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', html)
    assert policy.startswith("default-src 'none'; ") and "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy and "*" not in policy


def test_the_pinned_packages_are_exact_versions_with_a_sha512():
    for package in packages.packages():
        assert re.fullmatch(r"\d+\.\d+\.\d+", package.version)
        assert len(base64.b64decode(package.integrity.removeprefix("sha512-"))) == 64


# What cannot be done.


def refusal(arguments, capsys):
    """Run the command, which must fail, and return its one line."""
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err.removeprefix("export: error: ").rstrip()


def test_without_npm_the_message_names_what_is_missing(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    out, empty = tmp_path / "page", tmp_path / "empty"

    line = refusal([bundle, out, "--packages", empty], capsys)

    name = packages.packages()[0].archive
    assert line == (
        f"npm: not found, and {empty / name} is missing; install Node.js, or name a directory with that file with"
        " --packages"
    )
    assert not out.exists() and not empty.exists()


def test_if_npm_fails_the_message_says_why(bundle, tmp_path, monkeypatch, capsys):
    script = (
        "sys.exit('npm error code ENOTFOUND\\nnpm error network request failed\\nnpm error more')"
    )
    install_npm(tmp_path / "bin", monkeypatch, script)
    out = tmp_path / "page"

    line = refusal([bundle, out, "--packages", tmp_path / "new"], capsys)

    package = packages.packages()[0]
    assert line == (
        f"npm: cannot download {package.name} {package.version} (code ENOTFOUND; network request failed);"
        f" check the network, or name a directory with {package.archive} with --packages"
    )
    assert not out.exists() and [*(tmp_path / "new").iterdir()] == []


def test_npm_is_asked_once_per_package_and_without_scripts(bundle, archives, tmp_path, monkeypatch):
    script = f"""
with open({str(tmp_path / "log")!r}, "a") as log:
    log.write(" ".join(sys.argv[1:4]) + " " + sys.argv[-1] + chr(10))
target = sys.argv[sys.argv.index("--pack-destination") + 1]
shutil.copy(pathlib.Path({str(archives)!r}) / (sys.argv[-1].replace("@", "-") + ".tgz"), target)"""
    install_npm(tmp_path / "bin", monkeypatch, script)
    cache = tmp_path / "cache"

    for name in ("one", "two"):
        assert main([str(bundle), str(tmp_path / name), "--packages", str(cache)]) == 0

    assert (tmp_path / "log").read_text().splitlines() == [
        f"pack --ignore-scripts --loglevel=error {name}@1.2.3" for name in VENDOR
    ]
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        f"{name}-1.2.3.tgz" for name in VENDOR
    )


def test_an_archive_that_is_not_the_pinned_one_is_refused(bundle, archives, tmp_path, capsys):
    path = archives / "dicom-parser-1.2.3.tgz"
    path.write_bytes(path.read_bytes()[:-1])

    line = refusal([bundle, tmp_path / "page", "--packages", archives], capsys)

    assert line == (
        f"{path}: its SHA-512 is not that of dicom-parser 1.2.3; delete the file and rerun the command"
    )
    assert not (tmp_path / "page").exists()


def test_without_a_directory_the_packages_are_not_kept(archives, tmp_path, monkeypatch):
    script = f"""
target = sys.argv[sys.argv.index("--pack-destination") + 1]
shutil.copy(pathlib.Path({str(archives)!r}) / (sys.argv[-1].replace("@", "-") + ".tgz"), target)"""
    install_npm(tmp_path / "bin", monkeypatch, script)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()

    assert {*third_party_files(None)} > {"dicomParser.min.js", "NOTICE.txt"}

    assert [*(tmp_path / "temporary").iterdir()] == []


def test_a_directory_that_is_not_empty_is_refused(bundle, archives, tmp_path, capsys):
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "mine.txt").write_text("kept")

    line = refusal([bundle, tmp_path / "page", "--packages", archives], capsys)

    assert line == f"{tmp_path / 'page'}: not empty; name a new directory"
    assert files_of(tmp_path / "page") == {"mine.txt": b"kept"}


@pytest.mark.parametrize("existing", ["nothing", "empty directory"])
def test_a_new_or_an_empty_directory_is_written(existing, bundle, archives, tmp_path):
    out = tmp_path / "page"
    if existing == "empty directory":
        out.mkdir()

    assert main([str(bundle), str(out), "--packages", str(archives)]) == 0

    assert (out / "index.html").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_missing_variant_is_refused(bundle, archives, tmp_path, capsys):
    out = tmp_path / "page"

    line = refusal([bundle, out, "--packages", archives, "--precision", "int8"], capsys)

    assert line == "--precision: small has no int8 variant; choose from fp32"


def test_a_bundle_that_is_damaged_is_refused(bundle_copy, archives, tmp_path, capsys):
    (bundle_copy / "small.onnx").write_bytes(b"damaged")

    line = refusal([bundle_copy, tmp_path / "page", "--packages", archives], capsys)

    assert "small.onnx" in line and not (tmp_path / "page").exists()


def test_what_is_no_bundle_is_refused(archives, tmp_path, capsys):
    line = refusal([tmp_path / "missing", tmp_path / "page", "--packages", archives], capsys)

    assert str(tmp_path / "missing") in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(bundle, archives, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)

    line = refusal([bundle, tmp_path / "closed" / "page", "--packages", archives], capsys)

    assert "Permission denied" in line


def test_a_parent_that_is_a_file_is_named(bundle, archives, tmp_path, capsys):
    (tmp_path / "file").write_text("")

    line = refusal([bundle, tmp_path / "file" / "page", "--packages", archives], capsys)

    assert str(tmp_path / "file") in line


def test_a_bundle_of_a_smoke_run_warns(archives, tmp_path, capsys):
    graphs = {"small.onnx": make_graph()}
    folder = write_bundle(tmp_path / "smoke", graphs, training={"smoke": True})

    assert main([str(folder), str(tmp_path / "page"), "--packages", str(archives)]) == 0

    assert capsys.readouterr().err == (
        f"export: warning: {folder}: from a smoke run, its answers mean nothing; train without --smoke\n"
    )
