"""organ-infer as a user runs it: its exit codes, which model, which images."""

import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import child_environment, needs_default
from support.command_results import failed, paths, rows
from support.image_files import npy

from organ_infer import unescape_path

# Exit codes.


def test_what_was_answered_is_written_whatever_ends_the_run(
    bundle, pictures, tmp_path, monkeypatch, capfd
):
    """The network breaks in its third batch."""
    from organ_infer import OrganInferError
    from organ_infer.cli import command as cli
    from organ_infer.engine import ensemble

    calls, real = [], ensemble.Ensemble.probabilities

    def breaks(self, packed):
        calls.append(len(packed))
        if len(calls) == 3:
            raise OrganInferError("it broke")
        return real(self, packed)

    monkeypatch.setattr(ensemble.Ensemble, "probabilities", breaks)
    arguments = ["--bundle", str(bundle), "--batch-size", "8", "--quiet", str(pictures)]
    assert cli.main(arguments) == 2
    found = capfd.readouterr()
    assert len(found.out.splitlines()) == 16 and found.err == "organ-infer: error: it broke\n"
    calls.clear()
    out = tmp_path / "out.txt"
    assert cli.main(["--output", str(out), *arguments]) == 2
    assert len((tmp_path / "out.txt.partial").read_text().splitlines()) == 16 and not out.exists()
    assert f"it broke; results so far are in {out}.partial" in capfd.readouterr().err


def test_a_list_that_is_not_there_is_told_before_anything_is_classified(
    command, three_images, tmp_path
):
    failed(
        command(*three_images, "--files-from", tmp_path / "none"),
        "--files-from .*none: cannot be read .No such file",
    )
    failed(command(*three_images, "--files-from", tmp_path), "cannot be read .Is a directory")


def test_options_may_stand_between_paths_and_after_two_dashes_all_are_paths(
    command, three_images, tmp_path
):
    shutil.copy(three_images[0], tmp_path / "-x.png")
    done = command(
        three_images[0],
        "--format",
        "jsonl",
        three_images[1],
        "--quiet",
        "--",
        "-x.png",
        cwd=tmp_path,
    )
    assert done.returncode == 0 and paths(done) == [three_images[0], three_images[1], "-x.png"]
    failed(command("--", "--quiet"), "no image found: --quiet: no such file")


@pytest.mark.parametrize("arguments", [["x.png"], ["--check"]])
def test_a_processor_level_that_is_not_there_is_one_line(command, arguments):
    done = command(*arguments, env={"ORGAN_INFER_SIMD": "neon"})
    failed(done, r"ORGAN_INFER_SIMD: expected a level of this processor \(portable.*, found 'neon'")


def test_a_closed_standard_output_is_no_fault_of_the_version():
    line = f"{shlex.quote(sys.executable)} -m organ_infer --version >&-"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, env=child_environment()
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_all_failed_is_1(command, bad_image):
    failed(command(bad_image), "bad.png: unknown image format", code=1)


def test_special_files_are_failed_images(command, three_images, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = command("--format", "jsonl", tmp_path / "pipe", three_images[0], "/dev/null")
    assert done.returncode == 1 and [row.get("error") for row in rows(done)] == [
        "a special file, not an image", None, "a special file, not an image",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no image given"),
        (["--nope", "x"], "unrecognized arguments: --nope"),
        (["--threads", "0", "x"], "expected a whole number from 1 to 1,024, found '0'"),
        (["--batch-size", "9999", "x"], "1 to 4,096"),
        (["--top", "\u0663", "x"], "a whole number"),
        (["--top", "12", os.devnull], "--top 12: the model has 11 classes"),
        (
            ["--top", "12", "--organs", "--format", "jsonl", os.devnull],
            "--top 12: the model has 11 classes",
        ),
        (["--top", "9", "--organs", os.devnull], "--top 9: the model has 8 organs"),
        *(
            ([f"--min-probability={value}", "x"], f"above 0 and at most 1, found '{value}'")
            for value in ("0", "-0.5", "1.0001", "nan", "inf", "80%", "", "\u0661", "1e-999")
        ),
        (["--min-probability"], "--min-probability: expected one argument"),
        *(
            (
                ["--device", value, "x"],
                f"--device: expected auto, cpu, cuda or cuda:N, found '{value}'",
            )
            for value in ("tpu", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "", "cuda:1000")
        ),
        (["--format", "xml", "x"], "invalid choice"),
        (["-0", "x"], "-0: requires --files-from"),
        (["--output", "", "x"], "--output: the value is empty"),
        (
            ["--output", "/none/x.csv", os.devnull],
            "--output /none/x.csv: cannot be written .No such file",
        ),
        (
            ["--output", "/dev/null", os.devnull],
            "--output /dev/null: exists and is not a regular file",
        ),
        (["--files-from", "/none"], "--files-from /none: cannot be read"),
        (["--files-from", os.devnull], "no image found: --files-from lists no path"),
        (["/none/*.png"], "no image found: /none/.*no file matches this pattern"),
    ],
)
def test_usage_errors_are_2(command, arguments, words):
    failed(command(*arguments), words)


def test_missing_paths_alone_are_2_and_beside_others_1(
    command, bad_image, three_images, tmp_path, bundle
):
    (tmp_path / "link.png").symlink_to(tmp_path / "gone")
    for missing in ("/none/at/all.png", tmp_path / "link.png", "/none/stack.npy#3", "/none/dir/"):
        failed(command(missing), f"error: no image found: {missing}: no such file\n$")
        failed(command("--format", "csv", "--output", tmp_path / "o.csv", missing), "no such file")
    assert not (tmp_path / "o.csv").exists()
    (tmp_path / "empty").mkdir()
    done = command("/none/a.png", "/none/b.png", tmp_path / "empty")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "organ-infer: error: /none/a.png: no such file",
        "organ-infer: error: /none/b.png: no such file",
        f"organ-infer: error: no image found: {tmp_path}/empty: no image in this directory;"
        " use --recursive to include subdirectories",
    ]
    done = command("--format", "jsonl", "/none/a.png", three_images[0], "/none/b.png")
    assert done.returncode == 1
    assert [row.get("error") for row in rows(done)] == ["no such file", None, "no such file"]
    failed(command(bad_image), "unknown image format", code=1)
    failed(command(f"{three_images[0]}/x.png"), r"cannot be read \(Not a directory\)", code=1)
    failed(command("--files-from", "-", stdin="/none/a.png\n"), "a.png: no such file", code=1)


def test_standard_input_is_one_image_of_any_format(command, three_images, tmp_path, slices):
    image = Path(three_images[0]).read_bytes()
    done = command("--format", "jsonl", "-", three_images[1], text=False, stdin=image)
    assert done.returncode == 0
    first, second = map(json.loads, done.stdout.splitlines())
    (expected,) = rows(command("--format", "jsonl", three_images[0]))
    assert first == expected | {"path": "-"} and second["path"] == three_images[1]
    stack = npy(slices[:3])
    done = command("--format", "jsonl", three_images[1], "-", text=False, stdin=stack)
    assert [json.loads(line)["path"] for line in done.stdout.splitlines()] == [
        three_images[1], "-#0", "-#1", "-#2"
    ]  # fmt: skip
    for data, options, words in [
        (b"", [], b"-: the file is empty"),
        (b"text", [], b"-: unknown image format"),
        (image[:-30], [], b"-: "),
        (image, ["--file-limit", "9"], b"-: more than 9 bytes: too large; raise the limit with --f"),
        (image, ["--pixel-limit", "9"], b"at most 9 pixels are read"),
    ]:  # fmt: skip
        done = command(*options, "-", text=False, stdin=data)
        assert (done.returncode, done.stdout) == (1, b"") and words in done.stderr, done.stderr
    (tmp_path / "-").write_bytes(image)
    done = command("--format", "jsonl", "./-", cwd=tmp_path)
    assert paths(done) == ["./-"]
    done = command("--format", "jsonl", "--files-from", "-", cwd=tmp_path, stdin="-\n")
    assert paths(done) == ["-"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{0} - --bundle {1} <&-", "-: standard input is closed; redirect an image to it"),
        ("{0} - - --bundle {1} </dev/null", "-: standard input is named twice"),
        ("{0} - --files-from - --bundle {1} </dev/null", "-: standard input is named twice"),
        ("{0} - --bundle {1} 0>/dev/null", "-: cannot be read (Bad file descriptor)"),
    ],
)
def test_a_standard_input_that_is_no_image_is_one_line(bundle, line, words):
    program = f"{shlex.quote(sys.executable)} -m organ_infer"
    done = subprocess.run(
        ["sh", "-c", line.format(program, bundle)],
        capture_output=True, text=True, env=child_environment(), timeout=60,
    )  # fmt: skip
    assert done.returncode == (1 if "cannot be read" in words else 2) and done.stdout == ""
    assert done.stderr.startswith(f"organ-infer: error: {words}") and done.stderr.count("\n") == 1


def test_a_terminal_as_standard_input_is_refused_and_not_waited_for(bundle, monkeypatch, capfd):
    from types import SimpleNamespace

    from organ_infer.cli import main

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert main(["--bundle", str(bundle), "-"]) == 2
    assert capfd.readouterr().err == (
        "organ-infer: error: -: standard input is a terminal; redirect an image to it\n"
    )


def test_an_empty_directory_is_2(command, tmp_path):
    (tmp_path / "notes.txt").touch()
    failed(command(tmp_path), "no image found: .*no image in this directory")


def test_a_missing_or_damaged_bundle_is_2_and_writes_nothing(
    command, bundle_copy, three_images, tmp_path
):
    failed(
        command(three_images[0], model=tmp_path / "none"),
        "no such directory; pass a bundle, a directory with manifest.json",
    )
    (bundle_copy / "small.onnx").write_bytes((bundle_copy / "small.onnx").read_bytes()[:-1])
    failed(
        command(
            "--format", "csv", "--output", tmp_path / "out.csv", three_images[0], model=bundle_copy
        ),
        "truncated or changed",
    )
    assert not list(tmp_path.glob("out.csv*"))


def test_cuda_that_is_not_there_is_2(command, three_images):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    failed(command("--device", "cuda", three_images[0]), "device cuda: CUDA is not available")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ("0", "1")),
        (["--no-cuda-graphs"], ("0", None)),
        (["--device", "cuda:1"], ("1", "1")),
        (["--device=cuda:1", "--no-cuda-graphs"], ("1", None)),
    ],
)
def test_the_gpu_and_the_switch_for_graphs_reach_onnxruntime(
    install_fake, bundle, three_images, capfd, options, expected
):
    from organ_infer.cli import main

    ort = install_fake(gpus=2)
    assert main(["--bundle", str(bundle), *options, three_images[0]]) == 0
    (_, given), _ = ort.opened[0][1]
    assert (given["device_id"], given.get("enable_cuda_graph")) == expected
    assert capfd.readouterr().out.count("\n") == 1


def test_a_network_that_stays_partly_on_the_cpu_is_a_warning(
    install_fake, bundle, three_images, capfd
):
    from organ_infer.cli import main

    install_fake(placed={"CUDAExecutionProvider": ["Relu"], "CPUExecutionProvider": ["Gemm"]})
    assert main(["--bundle", str(bundle), "--device", "cuda", three_images[0]]) == 0
    assert "warning: " in (said := capfd.readouterr().err) and "1 of 2 nodes run on the CPU" in said


def test_help_and_version(command):
    done = command("--help", model=None)
    assert done.returncode == 0 and "usage: organ-infer" in done.stdout
    assert "Research software, not a medical device." in " ".join(done.stdout.split())
    done = command("--version", model=None)
    assert done.returncode == 0 and re.fullmatch(r"organ-infer \S+\n", done.stdout)


# Which model.


def test_the_environment_names_the_bundle_and_the_option_beats_it(
    command, bundle, three_images, tmp_path
):
    done = command(three_images[0], model=None, env={"ORGAN_INFER_BUNDLE": str(bundle)})
    assert done.returncode == 0 and done.stderr == ""
    assert command(three_images[0], env={"ORGAN_INFER_BUNDLE": str(tmp_path)}).returncode == 0
    failed(
        command(three_images[0], model=None, env={"ORGAN_INFER_BUNDLE": str(tmp_path)}),
        "it has no manifest.json",
    )


@needs_default
def test_the_packaged_model_says_what_it_is(command, three_images):
    done = command(three_images[0], model=None)
    # the image is noise
    assert done.returncode == 0 and done.stderr.count("\n") == 1 and "no organ crop" in done.stderr
    text = " ".join(command("--help", model=None).stdout.split())
    assert "for axial slices, trained on OrganAMNIST." in text


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


def test_a_directory_that_cannot_be_listed_is_named_and_the_rest_classified(tmp_path, monkeypatch):
    from organ_infer.cli.arguments import parse
    from organ_infer.cli.paths import Candidates
    from organ_infer.images.discovery import Candidate

    for name in ("a/1.png", "b/2.png", "b/deep/3.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    real = os.scandir

    def scandir(path):
        if os.path.basename(path) in ("a", "deep"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    refused = "cannot be listed (Permission denied)"
    found = list(Candidates(parse(["--recursive", str(tmp_path)])))
    expected = [("a", refused), ("b/2.png", None), ("b/deep", refused), ("c.png", None)]
    assert found == [Candidate(str(tmp_path / name), error) for name, error in expected]


def test_a_directory_gives_its_images_in_byte_order(command, tree):
    done = command("--format", "jsonl", tree)
    assert paths(done) == [
        f"{tree}/{name}" for name in ["B.PNG", "a-b.png", "a.png", "b.png", "é.png"]
    ]
    assert paths(command("--format", "jsonl", ".", cwd=tree))[0] == "./B.PNG"


def test_recursive_goes_below_but_follows_no_link(command, tree):
    done = command("--format", "jsonl", "-r", tree)
    names = ["B.PNG", "a-b.png", "a.png", "a/z.png", "b.png", "sub/in/c.png", "é.png"]
    assert done.returncode == 0 and paths(done) == [f"{tree}/{name}" for name in names]


def test_patterns_are_expanded_and_a_file_beats_its_pattern(command, tree):
    assert paths(command("--format", "jsonl", f"{tree}/*.png"))[:2] == [
        f"{tree}/a-b.png",
        f"{tree}/a.png",
    ]
    shutil.copy(tree / "a.png", tree / "[ab].png")
    assert paths(command("--format", "jsonl", f"{tree}/[ab].png")) == [f"{tree}/[ab].png"]
    assert paths(command("--format", "jsonl", f"{tree}/?.png", f"{tree}/s*/in/c.png")) == [
        f"{tree}/a.png", f"{tree}/b.png", f"{tree}/é.png", f"{tree}/sub/in/c.png",
    ]  # fmt: skip


def test_what_stands_for_nothing_keeps_its_place(command, three_images, tmp_path):
    (tmp_path / "empty").mkdir()
    done = command(
        "--format",
        "jsonl",
        "/none/*.png",
        three_images[0],
        tmp_path / "empty",
        three_images[1],
        "/none/?",
    )
    assert done.returncode == 1
    assert paths(done) == [
        "/none/*.png",
        three_images[0],
        str(tmp_path / "empty"),
        three_images[1],
        "/none/?",
    ]
    assert ["error" in row for row in rows(done)] == [True, False, True, False, True]


def test_a_list_of_files(command, three_images, tmp_path):
    listed = tmp_path / "list"
    listed.write_text(f"{three_images[0]}\n\n{three_images[1]}\r\n{three_images[2]}")
    assert paths(command("--format", "jsonl", "--files-from", listed)) == three_images
    assert (
        paths(
            command("--format", "jsonl", "--files-from", "-", stdin="\n".join(three_images) + "\n")
        )
        == three_images
    )
    assert (
        paths(
            command("--format", "jsonl", "-0", "--files-from", "-", stdin="\0".join(three_images))
        )
        == three_images
    )
    done = command("--format", "jsonl", "--files-from", "-", three_images[2], stdin=three_images[0])
    assert paths(done) == [three_images[2], three_images[0]]


def test_a_path_without_end_is_refused(command):
    failed(command("--files-from", "-", stdin="x" * 300_000), "a path has more than 65,536 bytes")


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_names_of_any_bytes(command, pictures, tmp_path):
    names = [b"new\nline.png", b"\xff\xfe.png", "ä.png".encode()]
    for name in names:
        shutil.copy(pictures / "s00.png", os.path.join(os.fsencode(tmp_path), name))
    given = [os.path.join(os.fsencode(tmp_path), name) for name in names]
    done = command(
        "--format", "jsonl", "-0", "--files-from", "-", text=False, stdin=b"\0".join(given)
    )
    assert done.returncode == 0
    named = [json.loads(line)["path"] for line in done.stdout.splitlines()]
    assert [os.fsencode(unescape_path(name)) for name in named] == given
    done = command("--format", "csv", tmp_path, text=False, env={"LC_ALL": "C"})
    _, *found = csv.reader(io.StringIO(done.stdout.decode("utf-8"), newline=""))
    assert [os.fsencode(unescape_path(row[0])) for row in found] == sorted(given)
    assert done.returncode == 0
    done = command(*given, "/none/\x1b[31m", text=False)
    assert (
        done.stdout.count(b"\n") == 3
        and b"new\\x0aline.png" in done.stdout
        and b"\\xff\\xfe.png" in done.stdout
    )
    assert b"\x1b" not in done.stderr and b"\\x1b[31m" in done.stderr


def test_a_path_that_has_arrived_does_not_wait_for_the_next(bundle, three_images):
    running = subprocess.Popen(
        [sys.executable, "-m", "organ_infer", "--bundle", str(bundle), "--files-from", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )
    with running:
        for path in three_images:
            running.stdin.write(f"{path}\n")
            running.stdin.flush()
            assert running.stdout.readline().split()[-1] == path
        running.stdin.close()
        assert running.stdout.read() == ""
    assert running.returncode == 0


def test_what_a_directory_holds_beside_images_is_counted(command, three_images, tmp_path):
    shutil.copy(three_images[0], tmp_path / "IM0001")
    (tmp_path / "notes.txt").write_text("none")
    done = command(tmp_path)
    assert done.returncode == 0 and done.stdout.endswith(f" {tmp_path}/IM0001\n")
    assert done.stderr == (
        "organ-infer: note: skipped in directories: 1 (files that are no images)\n"
    )
    assert command("--quiet", tmp_path).stderr == ""
