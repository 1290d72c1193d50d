"""Which onnxruntime is installed, how it is imported, and which GPUs and processors the machine reports."""

import os
import sys
import types

import pytest

from organ_infer import DeviceError
from organ_infer.engine import gpus, ort
from organ_infer.engine.cpu_count import usable_processors
from organ_infer.engine.installed import installed_version
from organ_infer.engine.ort import both_wheels_installed, import_onnxruntime


@pytest.fixture
def site(tmp_path, monkeypatch):
    """Puts distributions on an otherwise empty sys.path: `site(folder, name, ...)`."""
    monkeypatch.setattr(sys, "path", [])

    def put(folder, *names):
        for name in names:
            (tmp_path / folder / name).mkdir(parents=True)
        sys.path.append(str(tmp_path / folder))

    return put


# Distributions.


def test_the_first_distribution_on_the_path_is_the_one(site):
    site("a", "other-1.dist-info", "onnxruntime")
    site("b", "onnxruntime-1.27.0.dist-info")
    site("c", "onnxruntime-1.20.0.dist-info")
    assert installed_version("onnxruntime") == "1.27.0"


def test_a_name_is_found_as_wheels_write_it(site):
    site("a", "onnxruntime_gpu-1.26.0.dist-info", "Pillow-11.0.dist-info")
    assert (
        installed_version("onnxruntime-gpu") == "1.26.0" and installed_version("pillow") == "11.0"
    )
    assert installed_version("onnxruntime") is None and installed_version("pil") is None


def test_folders_that_are_not_there_are_passed_over(site, tmp_path, monkeypatch):
    site("b", "numpy-2.0.dist-info")
    sys.path[:0] = [str(tmp_path / "none"), ""]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert installed_version("numpy") == "2.0"
    (tmp_path / "here" / "numpy-3.0.dist-info").mkdir()  # "" is the working directory
    assert installed_version("numpy") == "3.0"


@pytest.mark.parametrize(
    ("names", "both"),
    [
        (["onnxruntime-1.dist-info", "onnxruntime_gpu-1.dist-info"], True),
        (["onnxruntime-1.dist-info"], False),
        (["onnxruntime_gpu-1.dist-info"], False),
        (["x-1.dist-info"], False),
    ],
)
def test_both_wheels_are_seen_only_if_both_are_there(site, names, both):
    site("a", *names)
    assert both_wheels_installed() is both


# onnxruntime.


@pytest.fixture
def onnxruntime(monkeypatch):
    """A module in onnxruntime's place, which records what is asked of it."""
    module = types.ModuleType("onnxruntime")
    module.asked = []
    module.InferenceSession = object
    module.disable_telemetry_events = lambda: module.asked.append("telemetry off")
    module.set_default_logger_severity = lambda level: module.asked.append(level)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    return module


def test_telemetry_is_off_where_the_program_had_loaded_it_before(onnxruntime):
    assert import_onnxruntime() is onnxruntime
    assert onnxruntime.asked == ["telemetry off"]
    del onnxruntime.disable_telemetry_events  # before 1.29 there is none
    assert import_onnxruntime() is onnxruntime


@pytest.mark.parametrize(("silent", "asked"), [(False, []), (True, [4])])
def test_its_logger_is_silenced_for_the_command_alone(onnxruntime, monkeypatch, silent, asked):
    monkeypatch.setattr(ort, "silent", silent)
    import_onnxruntime()
    assert onnxruntime.asked == ["telemetry off", *asked]


@pytest.mark.parametrize("before", [None, "0", ""])
def test_the_variable_is_set_while_it_loads_and_as_before_afterwards(monkeypatch, before):
    monkeypatch.delenv(ort.TELEMETRY_VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(ort.TELEMETRY_VARIABLE, before)
    seen = []

    def load(name):
        seen.append((name, os.environ.get("ORT_DISABLE_TELEMETRY")))
        raise ImportError(
            "libcublas.so.12:\ncannot open shared object file", name="onnxruntime.capi"
        )

    monkeypatch.setattr(ort.importlib, "import_module", load)
    with pytest.raises(DeviceError) as caught:
        import_onnxruntime()
    assert seen == [("onnxruntime", "1" if before is None else before)]
    assert os.environ.get(ort.TELEMETRY_VARIABLE) == before
    assert str(caught.value) == (
        "onnxruntime cannot be loaded (libcublas.so.12: cannot open shared object file); pip uninstall -y onnxruntime"
        " onnxruntime-gpu, then pip install 'organ-infer[cpu]' or 'organ-infer[gpu]'"
    )


# GPUs.


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("0, A, 10, 9, more\n\n", ["0: A, 10 MiB, 9 MiB free"]),
        ("0, A\n", ["0: A, ? MiB, ? MiB free"]),
        ("0\n", ["0: ?, ? MiB, ? MiB free"]),
        (" \n", "nvidia-smi lists none"),
    ],
)
def test_rows_of_nvidia_smi_that_lack_a_field(monkeypatch, printed, expected):
    def run(command, **how):
        assert how["timeout"] == 10  # docs/reference/check.md
        return types.SimpleNamespace(returncode=0, stdout=printed, stderr="")

    monkeypatch.setattr("subprocess.run", run)
    assert gpus.list_gpus() == expected


@pytest.mark.parametrize(
    ("stdout", "stderr", "reason"),
    [("a\nb", "c", "a b"), ("", "c\nd", "c d"), ("x" * 300, "", "x" * 200), ("", "", "9")],
)
def test_why_nvidia_smi_failed_is_one_short_line(monkeypatch, stdout, stderr, reason):
    result = types.SimpleNamespace(returncode=9, stdout=stdout, stderr=stderr)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: result)
    assert gpus.list_gpus() == f"nvidia-smi failed ({reason})"


# Processors.

BASE = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({f"{BASE}/cpu.max": "0 100000"}, 8),
        ({f"{BASE}/cpu.max": "100001 100000"}, 2),  # rounded up
        ({f"{BASE}/cpu.max": "5000000 100000"}, 8),  # never more than the mask
        ({f"{BASE}/cpu.max": "300000"}, 8),  # no period
        ({"cpu.max": "100000 100000", "sys/cpu.max": "100000 100000"}, 8),  # outside of the groups
        # The tightest of a group and those above it.
        ({"proc/self/cgroup": "0::/a/b", f"{BASE}/a/b/cpu.max": "2 1", f"{BASE}/a/cpu.max": "5 1"}, 2),
        ({"proc/self/cgroup": "0::/a/b", f"{BASE}/a/b/cpu.max": "5 1", f"{BASE}/cpu.max": "2 1"}, 2),
        ({"proc/self/cgroup": "0::/a:b", f"{BASE}/a:b/cpu.max": "3 1"}, 3),
        ({"proc/self/cgroup": "0::/other", f"{BASE}/a/cpu.max": "3 1"}, 8),
        ({"proc/self/cgroup": "garbage\n0::/a", f"{BASE}/a/cpu.max": "3 1"}, 3),
        # Version 1: the controller of processors alone.
        ({"proc/self/cgroup": "4:cpu:/j", f"{BASE}/cpu/j/cpu.cfs_quota_us": "3",
          f"{BASE}/cpu/j/cpu.cfs_period_us": "1"}, 3),
        ({"proc/self/cgroup": "4:cpuset:/j", f"{BASE}/cpu/j/cpu.cfs_quota_us": "3",
          f"{BASE}/cpu/j/cpu.cfs_period_us": "1"}, 8),
        ({"proc/self/cgroup": "4:cpuacct,cpu:/j/k", f"{BASE}/cpu/j/cpu.cfs_quota_us": "3",
          f"{BASE}/cpu/j/cpu.cfs_period_us": "1"}, 3),
        # Both versions.
        ({f"{BASE}/cpu.max": "5 1", f"{BASE}/cpu/cpu.cfs_quota_us": "3", f"{BASE}/cpu/cpu.cfs_period_us": "1"}, 3),
        ({f"{BASE}/cpu.max": "2 1", f"{BASE}/cpu/cpu.cfs_quota_us": "3", f"{BASE}/cpu/cpu.cfs_period_us": "1"}, 2),
    ],
)  # fmt: skip
def test_the_tightest_quota_of_all_groups_holds(tmp_path, monkeypatch, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_processors(tmp_path) == expected


@pytest.mark.parametrize("refused", [False, True], ids=["not there", "refused"])
@pytest.mark.parametrize(("count", "expected"), [(5, 5), (None, 1)])
def test_without_an_affinity_mask_the_machine_is_counted(
    tmp_path, monkeypatch, count, expected, refused
):
    def refuse(pid):
        raise PermissionError(1, "Operation not permitted")

    if refused:
        monkeypatch.setattr(os, "sched_getaffinity", refuse, raising=False)
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert usable_processors(tmp_path) == expected


def test_bytes_that_are_no_text_limit_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    (tmp_path / BASE).mkdir(parents=True)
    (tmp_path / BASE / "cpu.max").write_bytes(b"\xff 1")
    assert usable_processors(tmp_path) == 2
