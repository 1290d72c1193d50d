"""onnxruntime's errors on CUDA: what stays of 1,000 characters, and the advice that follows."""

import logging
import os
import re
import subprocess

import numpy as np
import pytest
from conftest import CLASSES, make_graph
from support.fake_onnxruntime import CPU, INVALID_DEVICE

from organ_infer import DeviceError, OrganClassifier
from organ_infer.engine import gpus
from organ_infer.engine.cuda_errors import _ADVICE, advice, describe, shorten
from organ_infer.engine.session import Session

IMAGES = np.zeros((1, 1, 28, 28), np.float32)


def long_text(failure):
    """As onnxruntime 1.20 to 1.31 write it, which says it twice."""
    said = (
        f"{failure} ; GPU=-1 ; hostname=x ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/"
        "cuda_execution_provider.cc ; line=282 ; expr=cudaSetDevice(info_.device_id); "
    )
    signature = (
        "/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:{} std::conditional_t<THRW, void,"
        " common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, const char*, const char*,"
        " int) [with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; std::conditional_t<THRW, void,"
        " common::Status> = void] "
    )
    return (
        f"[ONNXRuntimeError] : 1 : FAIL : {signature.format(129)}{signature.format(121)}{said}\n\n"
    )


TOO_OLD = "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version"


@pytest.fixture
def no_driver(monkeypatch, tmp_path):
    """A machine without a driver and without nvidia-smi."""
    monkeypatch.setattr(gpus, "_DRIVER_FILE", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.fixture
def nvidia_smi(monkeypatch, tmp_path, no_driver):
    """Puts a program in nvidia-smi's place."""

    def put(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    return put


def opened():
    return Session(
        make_graph(),
        output="logits",
        classes=len(CLASSES),
        where="g.onnx",
        device="cuda",
        threads=1,
    )


# What stays.


@pytest.mark.parametrize(
    "failure",
    [
        TOO_OLD,
        "CUDA failure 2: out of memory",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR",
        "CUDNN_FE failure 8: No valid engine configs for Conv",
        "cuFFT failure 5: CUFFT_INTERNAL_ERROR",
        "CUDA failure -1: unrecognized error code",
    ],
)
def test_the_failure_alone_stays(failure):
    text = long_text(failure)
    assert len(text) > 700 and shorten(RuntimeError(text)) == failure


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (
            INVALID_DEVICE.format(3, 1),
            "Invalid device ID: 3, must be between 0 (inclusive) and 1 (exclusive)",
        ),
        (
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Conv node."
            " Name:'/conv' Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:376 void*"
            " onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory"
            " for requested buffer of size 1048576\n",
            "Failed to allocate memory for requested buffer of size 1048576",
        ),
        (
            "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:1778 onnxruntime::Provider&"
            " onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library"
            " libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object file",
            "Failed to load library libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared"
            " object file",
        ),
        (  # without the GPU's number
            "CUDA failure 2: out of memory ; hostname=x ; file=/y ; line=1 ; expr=cudaMalloc(&p, n); ",
            "CUDA failure 2: out of memory",
        ),
        ("something\nelse", "something else"),
    ],
)
def test_other_texts_are_cut_to_what_happened_or_left_as_they_are(text, kept):
    assert shorten(text) == kept


# What follows.


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (TOO_OLD, r"is too old .* pip install 'onnxruntime-gpu\[cuda,cudnn\]<1\.27'"),
        (
            "CUDA failure 100: no CUDA-capable device is detected",
            "no GPU is visible.*CUDA_VISIBLE_DEVICES",
        ),
        (
            "CUDA failure 101: invalid device ordinal",
            "no GPU has this number.*CUDA_VISIBLE_DEVICES",
        ),
        (INVALID_DEVICE.format(3, 1), "no GPU has this number"),
        (
            "CUDA failure 209: no kernel image is available for execution on the device",
            "does not support this GPU",
        ),
        ("CUDA failure 98: invalid device function", "does not support this GPU"),
        (
            "CUDA failure 222: the provided PTX was compiled with an unsupported toolchain.",
            "does not support",
        ),
        ("CUBLAS failure 8: CUBLAS_STATUS_ARCH_MISMATCH", "does not support this GPU"),
        (
            "CUDA failure 2: out of memory",
            "out of memory; use a smaller batch size, or end other processes",
        ),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", "out of memory; use a smaller batch size"),
        ("Failed to allocate memory for requested buffer of size 9", "out of memory"),
        ("CUDA failure 3: initialization error", "forked.*multiprocessing's 'spawn'"),
        ("CUDA failure 46: CUDA-capable device(s) is/are busy or unavailable", "another process"),
        (
            "CUDA failure 803: system has unsupported display driver / cuda driver combination",
            "restart",
        ),
        ("CUDA failure 700: an illegal memory access was encountered", "start it again"),
        ("CUDA failure 719: unspecified launch failure", "start it again"),
    ],
)
def test_advice_follows_the_number(no_driver, failure, words):
    for text in (failure, long_text(failure)):
        assert re.search(words, describe(text)), describe(text)
    assert advice(failure) == describe(failure)


def test_no_row_takes_anothers_number(no_driver):
    """2 is not 20, 200 or 222; 3 not 35."""
    for number in (20, 200, 300, 350, 1000, 1010, 7190):
        assert describe(f"CUDA failure {number}: text") is None
    for number in (2, 3, 35, 46, 98, 100, 101, 209, 222, 700, 803):
        rows = [row for row in _ADVICE if re.search(row.failures, f"CUDA failure {number}: text")]
        assert len(rows) == 1, number


def test_other_failures_get_the_general_advice(no_driver):
    assert describe("something else") is None
    assert advice("something else") == advice() and "pip install 'organ-infer[gpu]'" in advice()


@pytest.mark.parametrize(
    ("line", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023",
            "535.129.03",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (dvs@server)",
            "550.54.15",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  570.86.10  Release Build  (dvs@server)",
            "570.86.10",
        ),
    ],
)
def test_the_installed_driver_is_named(no_driver, tmp_path, monkeypatch, line, version):
    file = tmp_path / "version"
    file.write_text(f"{line}\nGCC version:  gcc version 11.4.0 (Ubuntu)\n")
    monkeypatch.setattr(gpus, "_DRIVER_FILE", file)
    assert f"the NVIDIA driver {version} is too old" in describe(TOO_OLD)


def test_the_driver_is_asked_of_nvidia_smi_where_the_file_is_missing(nvidia_smi):
    nvidia_smi("echo 528.49; echo 528.49")
    assert "the NVIDIA driver 528.49 is too old" in describe(TOO_OLD)


def test_a_driver_that_is_not_found_is_not_named(no_driver):
    assert describe(TOO_OLD).startswith("the NVIDIA driver is too old")


def test_only_advice_about_the_driver_asks_for_its_version(no_driver, monkeypatch):
    def asked():
        raise AssertionError("the driver's version was asked for")

    monkeypatch.setattr("organ_infer.engine.cuda_errors.driver_version", asked)
    assert "out of memory" in describe("CUDA failure 2: out of memory")


def test_two_wheels_of_onnxruntime_are_the_advice_if_the_failure_is_unknown(no_driver, monkeypatch):
    monkeypatch.setattr("organ_infer.engine.cuda_errors.both_wheels_installed", lambda: True)
    text = advice("something else")
    assert text.startswith(
        "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; pip uninstall"
    )
    assert "too old" in advice(TOO_OLD)


# Where they are reported.


def test_a_driver_that_is_too_old_is_one_short_line(install_fake, bundle, no_driver, caplog):
    install_fake(fails=long_text(TOO_OLD))
    with pytest.raises(DeviceError) as caught:
        OrganClassifier(bundle, device="cuda")
    text = str(caught.value)
    assert text.startswith(f"device cuda: CUDA failed ({TOO_OLD}): the NVIDIA driver is too old")
    assert len(text) < 350 and "install CUDA's libraries" not in text
    with (
        caplog.at_level(logging.INFO, "organ_infer"),
        OrganClassifier(bundle, device="auto") as classifier,
    ):
        assert classifier.providers == (CPU,)
    (record,) = caplog.records  # nothing of graphs, which were not what failed
    assert record.levelname == "WARNING" and len(record.getMessage()) < 400


def test_a_failure_in_a_run_is_one_short_line_with_advice(install_fake):
    def answer(count):
        raise RuntimeError(long_text("CUDA failure 2: out of memory"))

    install_fake(answer=answer)
    with pytest.raises(DeviceError) as caught:
        opened().run(IMAGES)
    assert str(caught.value) == (
        "g.onnx: onnxruntime failed (CUDA failure 2: out of memory): the GPU is out of memory; use a smaller batch"
        " size, or end other processes that nvidia-smi lists"
    )


def test_an_unknown_failure_in_a_run_has_no_advice(install_fake):
    def answer(count):
        raise RuntimeError(long_text("CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR"))

    install_fake(answer=answer)
    with pytest.raises(DeviceError) as caught:
        opened().run(IMAGES)
    assert (
        str(caught.value)
        == "g.onnx: onnxruntime failed (CUDNN failure 4000: CUDNN_STATUS_INTERNAL_ERROR)"
    )


@pytest.mark.parametrize("refuses", ["capture", "open"])
def test_why_graphs_are_refused_is_short(install_fake, monkeypatch, caplog, refuses):
    failure = "CUDA failure 900: operation not permitted when stream is capturing"
    ort = install_fake(refuses=refuses, refusal=long_text(failure))
    with caplog.at_level(logging.INFO, "organ_infer"):
        opened().run(IMAGES)
    assert [r.getMessage() for r in caplog.records] == [
        f"cuda: running without CUDA graphs: {failure}"
    ]
    assert ort.openings == 2


# nvidia-smi.


def test_gpus_are_listed_with_their_memory(nvidia_smi):
    nvidia_smi("echo '0, NVIDIA H100 80GB HBM3, 81559, 81079'; echo '1, Tesla T4, [N/A], 3'")
    assert gpus.list_gpus() == [
        "0: NVIDIA H100 80GB HBM3, 81559 MiB, 81079 MiB free",
        "1: Tesla T4, [N/A] MiB, 3 MiB free",
    ]


def test_bytes_of_nvidia_smi_that_are_not_text_are_replaced(nvidia_smi):
    nvidia_smi(r"printf '0, GPU \377, 2, 1\n'")
    assert gpus.list_gpus() == ["0: GPU \N{REPLACEMENT CHARACTER}, 2 MiB, 1 MiB free"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
            r"failed \(Failed to init",
        ),
        ("exit 3", r"failed \(3\)"),
        ("true", "lists none"),
        ("exec sleep 30", "gave no answer in 0.2 seconds"),
    ],
)
def test_why_nvidia_smi_lists_none(nvidia_smi, monkeypatch, script, reason):
    nvidia_smi(script)
    monkeypatch.setattr(gpus, "SECONDS", 0.2 if "sleep" in script else 20)
    assert re.search(reason, gpus.list_gpus()) and gpus.driver_version() is None


def test_a_machine_without_a_driver(no_driver):
    assert gpus.list_gpus() == "nvidia-smi is not installed" and gpus.driver_version() is None


def test_an_nvidia_smi_that_cannot_be_run(nvidia_smi, monkeypatch):
    def run(*arguments, **how):
        raise PermissionError(13, "Permission denied")

    nvidia_smi("true")
    monkeypatch.setattr(subprocess, "run", run)
    assert gpus.list_gpus() == "nvidia-smi cannot be run (Permission denied)"
