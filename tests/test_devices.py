"""The device that trains: chosen, refused with a remedy, named in a run's first line, and its precision."""

import os

import pytest
import torch

from train import devices
from train.arguments import device_name
from train.devices import choose_device, device_line, precision, runs_on, why_no_gpu
from train.errors import RunError

GPU = torch.device("cuda", 0)
CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture
def gpus(monkeypatch):
    """A PyTorch that sees GPUs of one kind, without any: `gpus(count, capability)`."""

    def install(count=1, capability=(9, 0), name="A Made-up GPU", built_for=CUDA_13, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(built_for))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)

    return install


@pytest.fixture
def no_kernel_needed(monkeypatch):
    monkeypatch.setattr(devices, "check_gpu", lambda device: None)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((7, 5), ["sm_75"], True),
        ((7, 0), ["sm_75", "sm_80"], False),
        ((6, 0), CUDA_13, False),
        # binaries run on later minor versions of the same major one
        ((8, 9), ["sm_80", "sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((9, 0), ["sm_80"], False),
        # PTX is compiled at load for everything later
        ((12, 1), ["sm_80", "compute_90"], True),
        ((8, 9), ["compute_90"], False),
        # features of one version, or of one family
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((12, 0), ["sm_100f"], False),
        ((6, 0), [], True),
    ],
)
def test_which_gpus_a_build_runs_on(capability, built_for, expected):
    assert runs_on(capability, built_for) == expected


@pytest.mark.parametrize("capability", [(6, 0), (7, 0)])
def test_a_gpu_older_than_the_build_is_refused_with_the_line_that_works(gpus, capability):
    gpus(capability=capability, name="Tesla P100")
    with pytest.raises(RunError) as refused:
        choose_device("auto")
    assert refused.value.exit_code == 2
    assert "Tesla P100" in str(refused.value) and f"{capability[0]}.{capability[1]}" in str(
        refused.value
    )
    assert (
        "pip install torch==2.7.1 torchvision==0.22.1 'onnxruntime-gpu[cuda,cudnn]==1.26.0'"
        in str(refused.value)
    )


def test_a_gpu_newer_than_the_build_is_told_to_upgrade(gpus):
    gpus(capability=(13, 0), built_for=["sm_80", "sm_90"])
    with pytest.raises(RunError, match="pip install --upgrade torch torchvision"):
        choose_device("cuda")


def test_a_gpu_that_runs_no_kernel_is_refused(gpus, monkeypatch):
    gpus()

    def fail(*_, **__):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nmore"
        )

    monkeypatch.setattr(torch, "ones", fail)
    with pytest.raises(
        RunError, match=r"cannot run a convolution \(CUDA error: no kernel image .* device\); pip"
    ):
        choose_device("cuda")


def test_the_answer_of_the_kernel_that_is_tried_is_checked(gpus, monkeypatch):
    """The same convolution, on the CPU."""
    gpus()
    ones, factor = torch.ones, 1.0

    def on_cpu(*shape, device, requires_grad=False):
        return (ones(*shape) * factor).requires_grad_(requires_grad)

    monkeypatch.setattr(torch, "ones", on_cpu)
    devices.check_gpu(GPU)
    factor = 2.0
    with pytest.raises(RunError, match="computes a wrong convolution"):
        devices.check_gpu(GPU)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_kernel_that_leaves_no_gradient_is_refused(gpus, monkeypatch):
    gpus()
    ones = torch.ones
    monkeypatch.setattr(
        torch,
        "ones",
        lambda *shape, device, requires_grad=False: ones(*shape, requires_grad=requires_grad) * 1,
    )
    with pytest.raises(RunError, match="computes a wrong convolution"):
        devices.check_gpu(GPU)


@pytest.mark.parametrize(
    ("asked", "rank", "expected"),
    [
        ("auto", None, 0),
        ("cuda", "1", 1),
        ("cuda", "5", 1),
        ("cuda:1", None, 1),
        ("cuda:1", "0", 1),
    ],
)
def test_each_process_has_a_gpu_of_its_own_while_there_are_enough(
    gpus, no_kernel_needed, monkeypatch, asked, rank, expected
):
    gpus(count=2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(asked) == torch.device("cuda", expected)


def test_a_gpu_that_is_not_there_is_refused(gpus, no_kernel_needed):
    gpus(count=2)
    with pytest.raises(
        RunError, match=r"--device cuda:2: PyTorch finds 2 GPUs; choose from cuda:0 to cuda:1"
    ):
        choose_device("cuda:2")


def test_auto_without_a_gpu_warns_and_says_why(no_gpu, monkeypatch, capsys):
    monkeypatch.setattr(devices, "why_no_gpu", lambda: "the reason")
    assert choose_device("auto") == torch.device("cpu")
    assert capsys.readouterr().err == "train: warning: no GPU is used: the reason\n"
    with pytest.raises(RunError, match="--device cuda: the reason"):
        choose_device("cuda")
    assert choose_device("cpu") == torch.device("cpu")
    assert capsys.readouterr().err == ""


def test_why_no_gpu_is_used(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert "built for the CPU only" in why_no_gpu({})
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert why_no_gpu({"CUDA_VISIBLE_DEVICES": ""}).startswith(
        "CUDA_VISIBLE_DEVICES='' hides every GPU"
    )

    def fail():
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 12040). Please update your GPU driver."
        )

    monkeypatch.setattr(torch.cuda, "init", fail)
    assert why_no_gpu({}) == (
        "The NVIDIA driver on your system is too old (found version 12040); update the driver, or "
        + devices.PINNED
    )
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert "nvidia-smi" in why_no_gpu({})


@pytest.mark.parametrize(
    ("native", "amp", "expected"),
    [
        (True, "auto", "bf16"),
        (False, "auto", "fp32"),
        (False, "bf16", "bf16"),
        (True, "fp16", "fp16"),
        (True, "off", "fp32"),
    ],
)
def test_precision_follows_amp_and_the_hardware(gpus, native, amp, expected):
    gpus(bf16=native)
    assert precision(GPU, amp) == expected
    assert precision(GPU, devices.amp_option(expected)) == expected


def test_the_first_line_names_the_device_and_the_precision(gpus):
    gpus(capability=(8, 0), name="NVIDIA A100")
    assert device_line(GPU, "auto") == (
        "device  cuda:0, NVIDIA A100, compute capability 8.0; mixed precision (bf16, --amp auto)"
    )
    assert device_line(torch.device("cpu"), "off").endswith(
        "threads); full precision (fp32, --amp off)"
    )


@pytest.mark.parametrize("text", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_a_device_is_taken_as_written(text):
    assert device_name(text) == text


def test_deterministic_algorithms_are_chosen_only_if_asked_for(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", chosen.append)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    choose_device("cpu")
    assert chosen == [] and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    # set through monkeypatch first, which removes it again
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    choose_device("cpu", deterministic=True)
    assert chosen == [True] and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    del os.environ["CUBLAS_WORKSPACE_CONFIG"]
    choose_device("cpu", deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA unknown error - this may be due to an incorrectly set up environment. Setting", "CUDA unknown error - this may be due to an incorrectly set up environment"),
        ("No CUDA GPUs are available.", "No CUDA GPUs are available"),
        ("several\n  lines", "several lines"),
        ("", "RuntimeError"),
    ],
)  # fmt: skip
def test_pytorchs_own_reason_is_given_in_one_sentence(monkeypatch, message, expected):
    def fail():
        raise RuntimeError(message)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    assert why_no_gpu({}) == expected


@pytest.mark.parametrize(
    ("value", "hides"), [("-1", True), (" ", True), ("0", False), ("0,1", False)]
)
def test_visible_devices_that_hide_every_gpu_are_named(monkeypatch, value, hides):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    found = why_no_gpu({"CUDA_VISIBLE_DEVICES": value})
    assert (found == f"CUDA_VISIBLE_DEVICES={value!r} hides every GPU; unset it") is hides


def test_a_build_for_amd_gpus_is_no_build_for_the_cpu_and_has_no_compute_capability(
    gpus, monkeypatch
):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    assert "nvidia-smi" in why_no_gpu({})
    gpus(capability=(9, 4), built_for=["gfx942"])
    # the architectures are not compared; the kernel that is tried fails here, without a GPU
    monkeypatch.setattr(
        torch, "ones", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no kernel"))
    )
    with pytest.raises(RunError, match="cannot run a convolution"):
        devices.check_gpu(GPU)


def test_a_gap_in_the_build_is_closed_by_an_upgrade(gpus):
    """Older than the oldest architecture: the pinned versions. Between two: newer ones."""
    gpus(capability=(8, 0), built_for=["sm_75", "sm_90", "compute_90"])
    with pytest.raises(RunError) as refused:
        choose_device("cuda")
    text = str(refused.value)
    assert text.startswith("cuda:0 (A Made-up GPU): compute capability 8.0, but this PyTorch (")
    assert text.endswith(
        "is built for sm_75, sm_90, compute_90; pip install --upgrade torch torchvision"
    )


def test_an_architecture_of_another_form_is_named():
    with pytest.raises(RunError, match="unknown GPU architecture 'gfx942'; pip install"):
        runs_on((9, 0), ["gfx942"])


@pytest.mark.parametrize(("number", "count"), [(0, 1), (1, 2), (7, 8)])
def test_the_last_gpu_is_taken_and_the_one_after_it_refused(gpus, no_kernel_needed, number, count):
    gpus(count=count)
    assert choose_device(f"cuda:{number}") == torch.device("cuda", number)
    with pytest.raises(RunError):
        choose_device(f"cuda:{count}")


def test_every_gpu_is_tried_before_it_is_taken(gpus, monkeypatch):
    gpus(count=4)
    tried = []
    monkeypatch.setattr(devices, "check_gpu", tried.append)
    choose_device("cuda:2")
    assert tried == [torch.device("cuda", 2)]


@pytest.mark.parametrize(
    ("machine", "available", "supported", "avx512", "expected"),
    [
        ("x86_64", True, True, True, "bf16"),
        # emulated
        ("x86_64", True, True, False, "fp32"),
        ("AMD64", True, True, False, "fp32"),
        ("x86_64", True, False, True, "fp32"),
        ("x86_64", False, True, True, "fp32"),
        # the check of AVX-512 is for x86 alone
        ("aarch64", True, True, False, "bf16"),
        ("aarch64", True, False, False, "fp32"),
    ],
)
def test_a_cpu_trains_in_bf16_where_it_computes_it_natively(
    monkeypatch, machine, available, supported, avx512, expected
):
    monkeypatch.setattr(devices.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: available)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert precision(torch.device("cpu")) == precision(torch.device("cpu"), "auto") == expected


def test_a_pytorch_that_cannot_tell_trains_in_float32(monkeypatch):
    monkeypatch.setattr(devices.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)
    assert precision(torch.device("cpu")) == "fp32"


def test_a_gpu_that_emulates_bf16_trains_in_float32(gpus, monkeypatch):
    gpus()
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation
    )
    assert precision(GPU) == "fp32"


def test_the_device_is_named_as_results_name_it(gpus, monkeypatch):
    gpus(name="NVIDIA T4")
    assert devices.device_name(GPU) == "NVIDIA T4"
    monkeypatch.setattr(devices.platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert devices.device_name(torch.device("cpu")) == "cpu (riscv64, 3 threads)"
    assert device_line(torch.device("cpu"), "bf16") == (
        "device  cpu (riscv64, 3 threads); mixed precision (bf16, --amp bf16)"
    )


@pytest.mark.parametrize("text", ["cuda:", "cuda:x", "gpu", "cuda:1:2", "CUDA", ""])
def test_a_device_of_another_form_is_refused(text):
    import argparse

    with pytest.raises(
        argparse.ArgumentTypeError, match="expected auto, cpu, cuda or cuda:N, found"
    ):
        device_name(text)


def test_the_line_for_older_gpus_stands_in_the_docs():
    from tests.conftest import ROOT

    assert devices.PINNED in (ROOT / "docs" / "guides" / "training.md").read_text()
