"""Failures of the machine while a network is exported: the command ends with one line, and nothing is concluded from them."""

import errno
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import CLASSES, make_graph

import export.all
import train.all
from export import quantize, variants
from export.bundle import Trained, write_bundle
from export.bundle_info import BundleInfo
from export.machine import check_space, machine_failure
from export.member import ExportError
from export.quantize import to_int8
from export.variants import Slices, make_variants
from tests.support.tiny_graphs import accept_every_variant
from train import run
from train.errors import RunError
from train.record import load_checkpoint

DISK = ("ENOSPC", "EDQUOT", "EACCES", "EROFS", "EMFILE", "EIO", "ESTALE", "ENOENT")


def system_error(name):
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), "/tmp/x/float.onnx")


def chained(error, cause):
    try:
        raise error from cause
    except Exception as e:
        return e


FAILURES = [
    *((system_error(name), os.strerror(getattr(errno, name))) for name in DISK),
    (MemoryError(), "out of memory"),
    (RuntimeError("std::bad_alloc"), "std::bad_alloc"),
    (RuntimeError("[E] Failed\nto read: No space left on device"), "No space left on device"),
    (
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        ),
        "can't allocate memory",
    ),
    (RuntimeError("can't start new thread"), "can't start new thread"),
    (chained(ValueError("no model"), system_error("ENOSPC")), "No space left on device"),
    (chained(ValueError("no model"), chained(KeyError("x"), MemoryError())), "out of memory"),
]
OTHERS = [
    ValueError("no such kernel"),
    RuntimeError("Node (Conv_3) has an unsupported attribute"),
    OSError("a message without a number"),
    chained(ValueError("a"), KeyError("b")),
]


@pytest.mark.parametrize(("error", "reason"), FAILURES, ids=repr)
def test_failures_of_the_machine_are_told_from_others(error, reason):
    text = machine_failure(error)
    assert text is not None and reason in text and "\n" not in text


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_other_errors_are_no_failures_of_the_machine(error):
    assert machine_failure(error) is None


def test_a_chain_of_errors_that_is_a_circle_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert machine_failure(first) is None


def test_space_is_checked_by_writing(tmp_path):
    check_space(tmp_path, 1 << 16)
    assert list(tmp_path.iterdir()) == []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            check_space(tmp_path, 1 << 16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert caught.value.filename == str(tmp_path) and list(tmp_path.iterdir()) == []


# Variants.


@pytest.fixture(scope="module")
def member():
    images = np.random.default_rng(3).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    model = onnx.load_from_string(make_graph())
    return model, Slices(images, images, np.zeros(len(images), np.int64), 28)


def raising(error):
    def convert(*_, **__):
        raise error

    return convert


@pytest.mark.parametrize("precision", ["int8", "fp16"])
@pytest.mark.parametrize(("error", "reason"), FAILURES, ids=repr)
def test_a_failure_of_the_machine_is_no_verdict_on_a_variant(
    member, monkeypatch, precision, error, reason
):
    monkeypatch.setattr(variants, f"to_{precision}", raising(error))
    lines = []
    with pytest.raises(ExportError, match=rf"^small: no {precision} variant \(.+\); make room"):
        make_variants("small", *member, (precision,), report=lines.append)
    assert lines == []


def test_a_failure_while_a_variant_is_measured_is_no_verdict_either(member, monkeypatch):
    real, opened = variants.open_session, []

    def open_session(content):
        # the third one is that of the int8 graph
        opened.append(content)
        if len(opened) > 3:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc")
        return real(content)

    monkeypatch.setattr(variants, "to_int8", lambda model, samples: model)
    monkeypatch.setattr(variants, "open_session", open_session)
    with pytest.raises(ExportError, match=r"no int8 variant \(.*std::bad_alloc\)"):
        make_variants("small", *member, ("int8",), report=lambda line: None)


@pytest.mark.parametrize("error", OTHERS, ids=repr)
def test_a_conversion_that_fails_for_another_reason_is_reported_as_failed(
    member, monkeypatch, error
):
    monkeypatch.setattr(variants, "to_int8", raising(error))
    lines, failed = [], []
    made = make_variants("small", *member, ("int8",), report=lines.append, failed=failed.append)
    assert [variant.precision for variant in made] == ["fp32"]
    assert failed == ["int8"] and lines[0].startswith("small: no int8 variant: ")


def test_a_variant_that_is_not_finite_or_not_accurate_has_not_failed(member, monkeypatch):
    """Both would be the same at the next try."""
    failed, lines = [], []
    model, slices = member
    monkeypatch.setattr(variants, "to_int8", lambda model, samples: model)
    monkeypatch.setattr(variants, "to_fp16", lambda model: model)
    real, calls = variants._accuracy, []

    def accuracy(outputs, labels):
        calls.append(len(calls))
        # float32, int8, fp16
        if len(calls) == 2:
            return real(outputs._replace(logits=outputs.logits * np.nan), labels)
        return 1.0 if len(calls) == 1 else 0.5

    monkeypatch.setattr(variants, "_accuracy", accuracy)
    made = make_variants(
        "small", model, slices, ("int8", "fp16"), report=lines.append, failed=failed.append
    )
    assert [variant.precision for variant in made] == ["fp32"] and failed == []
    assert "no int8 variant: it returns NaN" in lines[0] and "fp16 not accepted" in lines[1]


def test_a_disk_that_is_full_without_an_error_is_noticed(member, monkeypatch):
    """Parts of onnx write in C++, and what is cut off cannot be read again."""
    from onnxruntime import quantization

    checked = []

    def quantize_static(source, target, *_, **__):
        Path(target).write_bytes(b"cut off")

    def full(directory, size):
        checked.append((Path(directory).is_dir(), size))
        raise system_error("ENOSPC")

    model, slices = member
    monkeypatch.setattr(quantization, "quantize_static", quantize_static)
    monkeypatch.setattr(quantize, "check_space", full)
    with pytest.raises(OSError, match="No space left"):
        to_int8(model, slices.int8_samples())
    assert checked == [(True, 2 * model.ByteSize())]


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0, reason="a small file system needs root"
)
def test_a_temporary_directory_that_is_really_full_ends_the_conversion(
    member, tmp_path, monkeypatch
):
    import subprocess

    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", tmp_path], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mount is not permitted")
    try:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        with pytest.raises(ExportError, match=r"no int8 variant \(.*No space left on device\)"):
            make_variants("small", *member, ("int8",), report=lambda line: None)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    accept_every_variant(monkeypatch)
    made = make_variants("small", *member, ("int8",), report=lambda line: None)
    assert [variant.precision for variant in made] == ["int8", "fp32"]


# Bundles.


def info_of():
    return BundleInfo(
        name="organamnist-base",
        dataset="organamnist",
        view="axial",
        classes=CLASSES,
        size=28,
        metrics={},
        training={"seed": 1},
    )


def test_a_bundle_is_not_written_after_a_failure_of_the_machine(member, tmp_path, monkeypatch):
    model, slices = member
    onnx.save(model, tmp_path / "member.onnx")
    monkeypatch.setattr(variants, "to_int8", raising(system_error("ENOSPC")))
    with pytest.raises(ExportError, match="No space left"):
        write_bundle(
            tmp_path / "bundle",
            info_of(),
            [Trained("small", tmp_path / "member.onnx")],
            slices,
            report=lambda line: None,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["member.onnx"]


@pytest.mark.parametrize("fails", [True, False])
def test_a_bundle_of_a_failed_conversion_is_not_current(member, tmp_path, monkeypatch, fails):
    model, slices = member
    onnx.save(model, tmp_path / "member.onnx")
    accept_every_variant(monkeypatch)
    if fails:
        monkeypatch.setattr(variants, "to_int8", raising(ValueError("no such kernel")))
    info = info_of()
    write_bundle(
        tmp_path / "bundle",
        info,
        [Trained("small", tmp_path / "member.onnx")],
        slices,
        precisions=("int8", "fp32"),
        report=lambda line: None,
    )
    training = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["training"]
    assert training.get("failed_conversions") == ({"small": ["int8"]} if fails else None)
    assert run._is_current(tmp_path / "bundle", info.name, dict(info.training)) is not fails


# Commands.


@pytest.mark.parametrize(("error", "reason"), FAILURES[len(DISK) :], ids=repr)
def test_the_commands_end_with_one_line_and_1(monkeypatch, capsys, error, reason):
    monkeypatch.setattr(export.all, "export", raising(error))
    assert export.all.main(["--checkpoint", "x"]) == 1
    monkeypatch.setattr(run, "run", raising(error))
    assert train.all.main([]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("export: error: ") and reason in first
    assert second.startswith("train: error: ") and reason in second


@pytest.mark.parametrize(("error", "reason"), FAILURES[len(DISK) :], ids=repr)
def test_the_smaller_commands_end_with_one_line(monkeypatch, capsys, tmp_path, error, reason):
    from train import results_format, robustness
    from train.edge import ablate
    from train.report import __main__ as report

    monkeypatch.setattr(robustness, "_measure", raising(error))
    monkeypatch.setattr(ablate, "load_data", raising(error))
    monkeypatch.setattr(results_format, "read_results", raising(error))
    assert robustness.main([str(tmp_path)]) == 2
    assert ablate.main(["--out", str(tmp_path)]) == 1
    assert report.main([str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for name, line in zip(("train.robustness", "ablate", "train.report"), lines, strict=True):
        assert line.startswith(f"{name}: error: ") and reason in line


def test_other_errors_of_the_commands_are_not_hidden(monkeypatch):
    monkeypatch.setattr(export.all, "export", raising(ValueError("a fault of ours")))
    monkeypatch.setattr(run, "run", raising(ValueError("a fault of ours")))
    with pytest.raises(ValueError, match="a fault of ours"):
        export.all.main(["--checkpoint", "x"])
    with pytest.raises(ValueError, match="a fault of ours"):
        train.all.main([])


# Files that cannot be read now are not called damaged.


@pytest.mark.parametrize(
    "error", [*map(system_error, ("EACCES", "EMFILE", "EIO")), MemoryError()], ids=repr
)
def test_a_file_that_cannot_be_read_now_is_not_called_damaged(tmp_path, monkeypatch, error):
    import torch

    from train.data import _read
    from train.networks.weights import _read_weights

    monkeypatch.setattr(torch, "load", raising(error))
    monkeypatch.setattr(np, "load", raising(error))
    path = tmp_path / "x"
    for read in (load_checkpoint, _read_weights, lambda path: _read(path, 28, 11)):
        with pytest.raises(RunError) as caught:
            read(path)
        text = str(caught.value)
        assert text.startswith(f"{path}: ") and "read" in text
        assert not any(word in text for word in ("--fresh", "remove it", "not a ", "another file"))


def test_a_member_that_cannot_be_read_now_need_not_be_trained_again(tmp_path):
    from train.robustness import _Network

    predictor = SimpleNamespace(session=None, file=tmp_path / "member.onnx")
    with pytest.raises(FileNotFoundError):
        _Network._logits_exported(predictor, np.zeros((1, 28, 28), np.uint8))
