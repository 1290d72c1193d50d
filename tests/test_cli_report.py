"""organ-infer --report: one page beside the rows, whole or not at all."""

import base64
import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys

import numpy as np
import pytest
from conftest import child_environment
from PIL import Image
from support.image_files import saved
from support.report_page import Page

from organ_infer import OrganClassifier
from organ_infer.cli import main, review, whole_file
from organ_infer.cli.output import OutputError
from organ_infer.explain import explanation_overlay


def rows_of(page):
    """Path -> the states of its row."""
    found = re.findall(
        r'<li class="row"[^>]* data-s="([^"]*)".*?<span class="path">(.*?)</span>', page.source
    )
    return {path: states for states, path in found}


def test_the_report_is_written_beside_the_same_rows(command, pictures, bad_image, tmp_path):
    plain = command(pictures, bad_image)
    path = tmp_path / "r.html"
    done = command(pictures, bad_image, "--report", path)
    assert (done.returncode, done.stdout, done.stderr) == (1, plain.stdout, plain.stderr)
    page = Page(path)
    rows = rows_of(page)
    assert len(rows) == 41 and rows[bad_image] == "failed"
    for name, (_, pixels) in zip(
        [path for path in rows if path != bad_image], page.images, strict=True
    ):
        with Image.open(name) as picture:
            assert (np.asarray(picture) == pixels).all(), name
    assert stat.S_IMODE(path.stat().st_mode) & 0o444
    assert sorted(os.listdir(tmp_path)) == ["bad.png", "r.html"]
    command_shown = dict(page.pairs)["command"]
    assert command_shown.startswith("organ-infer --bundle ")
    assert command_shown.endswith(f"{pictures} {bad_image} --report {path}")


def test_uncertain_strict_and_labeled_slices_are_marked(command, pictures, tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "black.png")
    arguments = (pictures, tmp_path / "black.png", "--report", tmp_path / "r.html", "--force")
    assert command(*arguments, "--min-probability", "1").returncode == 0
    states = rows_of(Page(tmp_path / "r.html"))
    assert all("uncertain" in state for state in states.values())
    assert states[str(tmp_path / "black.png")] == "uncertain warned"
    assert command(*arguments, "--strict").returncode == 1
    assert rows_of(Page(tmp_path / "r.html"))[str(tmp_path / "black.png")] == "failed"
    (tmp_path / "l.csv").write_text(f"{pictures / 's00.png'},liver\n{pictures / 's01.png'},aorta\n")
    assert command(*arguments, "--labels", tmp_path / "l.csv").returncode == 0
    page = Page(tmp_path / "r.html")
    states = rows_of(page)
    assert states[str(pictures / "s00.png")] in ("correct", "wrong")
    assert states[str(pictures / "s01.png")] == "unlabeled" and "labeled aorta" in page.text
    assert "1 slice with a label; 39 left out because they have no label" in page.text
    assert "because the model does not have their label: aorta (1)" in page.text


def test_pictures_are_what_the_model_sees(command, tmp_path):
    stack = np.random.default_rng(0).integers(-1000, 1500, (3, 30, 40)).astype(np.int16)
    np.save(tmp_path / "s.npy", stack)
    arguments = ("--orientation", "PL", "--report", tmp_path / "r.html")
    assert command(tmp_path / "s.npy", *arguments).returncode == 0
    page = Page(tmp_path / "r.html")
    gray = np.rint(np.clip((stack.astype(np.float32) + 160) * (255 / 400), 0, 255)).astype(np.uint8)
    names = list(rows_of(page))
    assert sorted(names) == [f"{tmp_path}/s.npy#{i}" for i in range(3)]
    for name, (_, pixels) in zip(names, page.images, strict=True):
        # The bundle's orientation is LP: rows and columns change places.
        assert (pixels == gray[int(name[-1])].T).all()


def test_the_image_on_standard_input_has_a_picture(command, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    done = command("-", "--report", tmp_path / "r.html", stdin=saved(pixels), text=False)
    assert done.returncode == 0
    page = Page(tmp_path / "r.html")
    assert list(rows_of(page)) == ["-"]
    ((_, shown),) = page.images
    assert (shown == pixels).all()


def test_a_file_that_is_gone_has_a_row_without_a_picture(bundle, pictures, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.open(pictures / "s00.png").save(path)
    original = review.Review.finish

    def finish(self):
        path.unlink()
        return original(self)

    monkeypatch.setattr(review.Review, "finish", finish)
    arguments = ["--bundle", str(bundle), str(path), "--report", str(tmp_path / "r.html")]
    assert main(arguments) == 0
    page = Page(tmp_path / "r.html")
    assert list(rows_of(page)) == [str(path)] and page.images == [] and "no picture" in page.text


@pytest.mark.parametrize("option", ["--report", "--metrics"])
def test_an_unwritable_path_is_one_message_before_anything_is_classified(
    command, three_images, tmp_path, option
):
    labels = tmp_path / "l.csv"
    labels.write_text("".join(f"{path},liver\n" for path in three_images))
    (tmp_path / "folder").mkdir()
    (tmp_path / "data").write_bytes(b"a\0b")
    os.mkfifo(tmp_path / "pipe")
    for name, reason in {
        "none/r.html": "cannot be written (No such file or directory)",
        "l.csv/r.html": "cannot be written (Not a directory)",
        "folder": "exists and is not a regular file; choose another path",
        "pipe": "exists and is not a regular file; choose another path",
        "data": "an image or another binary file; choose another name",
        "l.csv": "the file of --labels; choose another name",
        "folder/../l.csv": "the file of --labels; choose another name",
        "rows.csv": "the file of --output; choose another name",
        "x" * 300: "cannot be written (File name too long)",
    }.items():
        path = tmp_path / name
        done = command(*three_images, "--labels", labels, option, path, "-o", tmp_path / "rows.csv")
        assert (done.returncode, done.stdout) == (2, ""), name
        assert done.stderr.startswith(f"organ-infer: error: {option} {path}: {reason}"), name
        assert done.stderr.count("\n") == 1
        assert sorted(os.listdir(tmp_path)) == ["data", "folder", "l.csv", "pipe"], name
    done = command(*three_images, "--labels", labels, option, three_images[1])
    assert done.returncode == 2 and "an image or another binary file" in done.stderr
    done = command(*three_images, "--labels", labels, option, "-")
    assert done.returncode == 2 and not os.path.exists("-")
    assert f"{option} -: not standard output; name a file, or write ./-" in done.stderr
    both = ("--report", tmp_path / "same", "--metrics", tmp_path / "same")
    done = command(*three_images, "--labels", labels, *both)
    assert done.returncode == 2
    assert "same: the file of --metrics; choose another name" in done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "r.html", "../bundle/r.html"])
def test_a_report_in_the_bundle_is_refused_and_the_bundle_stays_whole(
    bundle, pictures, tmp_path, monkeypatch, capsys, name
):
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    before = sorted(os.listdir(copy)), (copy / "manifest.json").read_bytes()
    picture = str(pictures / "s00.png")
    for arguments in (["--bundle", str(copy)], []):
        if not arguments:
            monkeypatch.setattr(whole_file, "packaged_bundle", lambda: copy)
        assert main([*arguments, picture, "--report", str(copy / name)]) == 2
        message = capsys.readouterr().err
        assert "in the directory of the model, which holds no other file" in message
        assert message.count("\n") == 1
    assert (sorted(os.listdir(copy)), (copy / "manifest.json").read_bytes()) == before


def test_an_existing_report_is_replaced_with_a_note_and_keeps_its_permissions(
    command, three_images, tmp_path
):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "real.html").chmod(0o600)
    (tmp_path / "r.html").symlink_to("real.html")
    done = command(*three_images, "--report", tmp_path / "r.html")
    assert done.returncode == 0
    assert "r.html: exists and will be replaced; --force omits this note" in done.stderr
    assert (tmp_path / "r.html").is_symlink() and len(rows_of(Page(tmp_path / "real.html"))) == 3
    assert stat.S_IMODE((tmp_path / "real.html").stat().st_mode) == 0o600
    assert command(*three_images, "--report", tmp_path / "r.html", "--force").stderr == ""


def test_a_disk_that_fills_leaves_the_old_report(tmp_path):
    (tmp_path / "r.html").write_text("old")

    def parts():
        yield "new"
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"^--report .*r.html: cannot be written \(No space left"):
        whole_file.write_whole_file("report", str(tmp_path / "r.html"), parts())
    assert (tmp_path / "r.html").read_text() == "old"
    assert os.listdir(tmp_path) == ["r.html"]


def start(bundle, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), *map(str, arguments)],
        stderr=subprocess.PIPE,
        env=child_environment(),
        **options,
    )


def test_the_report_needs_no_reader_of_the_rows(bundle, pictures, tmp_path):
    process = start(
        bundle, "--files-from", "-", "--report", tmp_path / "r.html",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    _, words = process.communicate(
        "\n".join([str(pictures / "s00.png")] * 300).encode(), timeout=60
    )
    assert (process.returncode, words) == (0, b"")
    assert dict(Page(tmp_path / "r.html").pairs)["slices classified"] == "300"


def test_an_interrupted_run_leaves_no_report(bundle, pictures, tmp_path):
    process = start(
        bundle, "--files-from", "-", "--report", tmp_path / "r.html",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    process.stdin.write(f"{pictures / 's00.png'}\n".encode())
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert (process.returncode, words) == (130, b"organ-infer: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_a_signal_during_the_report_leaves_the_finished_rows(
    bundle, three_images, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(
        review.Review, "_write_report", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        rows, report = tmp_path / "rows.csv", tmp_path / "r.html"
        arguments = ["--bundle", bundle, *three_images, "-o", rows, "--report", report]
        assert main(list(map(str, arguments))) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capfd.readouterr().err == "organ-infer: terminated\n"
    assert os.listdir(tmp_path) == ["rows.csv"] and rows.read_text().count("\n") == 4


def test_a_run_without_report_and_labels_loads_nothing_of_them(bundle, three_images):
    code = (
        f"import sys\nfrom organ_infer.cli import main\nmain(['--bundle', {str(bundle)!r}, {three_images[0]!r}])\n"
        "parts = ('.report', '.evaluation', '.page', '.review', '.whole_file', '.csv_rows')\n"
        "loaded = [n for n in sys.modules if n.startswith('organ_infer') and any(p in n for p in parts)]\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert done.returncode == 0, done.stderr


def test_explained_pictures_have_the_map_of_their_answer(command, pictures, bundle, tmp_path):
    path = tmp_path / "r.html"
    chosen = pictures / "s00.png"
    assert command(chosen, "--report", path).returncode == 0
    plain = path.read_text()
    assert command(chosen, "--report", path, "--explain").returncode == 0
    explained = path.read_text()
    assert 'class="heat"' not in plain and "Orange parts" not in plain
    assert "Orange parts of a picture raise the probability of its label" in explained
    (address,) = re.findall(r'<img class="heat" src="data:image/png;base64,([^"]*)"', explained)
    with Image.open(chosen) as image, OrganClassifier(bundle, device="cpu") as classifier:
        expected = explanation_overlay(classifier, np.asarray(image))
    assert base64.b64decode(address) == expected


def test_maps_need_a_report(command, pictures):
    done = command(pictures, "--explain")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == (
        "organ-infer: error: --explain: requires --report (see organ-infer --help)"
    )
