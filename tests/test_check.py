"""organ-infer --check: what it says, what it finds wrong, and the answers it holds a device to."""

import hashlib
import json
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions

import numpy as np
import pytest
from conftest import child_environment, entry, make_graph, needs_default, write_bundle
from support.fake_onnxruntime import CPU, CUDA

from export.golden import add_golden
from export.golden import main as golden_main
from organ_infer import BundleError, OrganClassifier, OrganInferError
from organ_infer.bundle.files import open_bundle, packaged_bundle, read_manifest
from organ_infer.bundle.golden import golden_answers, golden_slices, tolerance
from organ_infer.bundle.precision import BY_NAME
from organ_infer.cli import check as check_module
from organ_infer.cli.arguments import parse
from organ_infer.cli.check import check
from organ_infer.engine import ort as ort_module


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A bundle whose answers are known. Read only."""
    folder = write_bundle(tmp_path_factory.mktemp("known") / "b", {"small.onnx": make_graph()})
    add_golden(folder)
    return folder


@pytest.fixture
def altered(known, tmp_path):
    """`known` with its stored answers changed by a function of the rows (a list of texts)."""
    import shutil

    def make(change):
        folder = shutil.copytree(known, tmp_path / "altered")
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["training"]["seal"]
        manifest["metrics"]["golden"] = change(manifest["metrics"]["golden"])
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.fixture(scope="module")
def installed_packages():
    """Read once: the lists of every installed package's files take half a second."""
    return packages_distributions()


@pytest.fixture(autouse=True)
def packages_are_read_once(monkeypatch, installed_packages):
    """For checks in this process. Those of the command read them themselves."""
    monkeypatch.setattr(check_module, "packages_distributions", lambda: installed_packages)


def values(text):
    """The report's lines by name."""
    found = {}
    for line in text.splitlines() if isinstance(text, str) else text:
        found[line[:14].strip()] = line[15:]
    return found


def looked(*arguments):
    return check(parse(["--check", *map(os.fspath, arguments)]))


# The command.


def test_the_report_says_what_is_installed_granted_and_packaged(command, known):
    done = command("--check", "--device", "cpu", "--threads", "2", model=known)
    assert (done.returncode, done.stderr) == (0, "")
    found = values(done.stdout)
    import onnxruntime
    import PIL

    assert found["NumPy"] == np.__version__ and found["Pillow"] == PIL.__version__
    assert found["Python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["onnxruntime"].startswith(onnxruntime.__version__ + " (onnxruntime")
    assert CPU in found["providers"] and found["device"] == f"{CPU} (requested: cpu)"
    assert found["threads"] == "2" and re.search(r"\d+ of \d+ usable", found["processor"])
    assert re.match(r"(portable|avx2|avx512) \(available: portable", found["packing"])
    assert found["PNG reader"] and found["cache"] == "none (ORGAN_INFER_CACHE is empty)"
    assert (
        found["bundle"] == str(known) and found["model"] == "random: organamnist, axial, 11 classes"
    )
    digest = hashlib.sha256((known / "manifest.json").read_bytes()).hexdigest()
    assert found["manifest"] == f"sha256 {digest}"
    graph = hashlib.sha256((known / "small.onnx").read_bytes()).hexdigest()
    assert re.search(rf"small\.onnx: small, fp32, [\d,]+ bytes, sha256 {graph}\n", done.stdout)
    assert re.fullmatch(
        r"small fp32: 16 slices, probabilities within \de-0\d of the known answers; at most 0\.001 allowed",
        re.sub(r"\d\.\de", "1e", found["self-test"]),
    )


@needs_default
def test_the_packaged_model_answers_as_where_it_was_made(command):
    done = command("--check", model=None)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"self-test .* within \S+ of the known answers;", done.stdout)
    assert golden_answers(read_manifest(packaged_bundle()), "cuda") is not None


def test_a_bundle_without_known_answers_is_asked_all_the_same(command, bundle):
    done = command("--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "of the answers in one batch (this bundle has no known answers); at most"
        in values(done.stdout)["self-test"]
    )


def test_a_report_names_any_path_on_one_line(command, bundle, tmp_path):
    import shutil

    folder = shutil.copytree(bundle, tmp_path / "new\nline")
    done = command("--check", model=folder)
    assert done.returncode == 0 and "new\\x0aline" in values(done.stdout)["bundle"]


@pytest.mark.parametrize(
    "arguments", [["x.png"], ["--files-from", "-"], ["--output", "x"]], ids=lambda a: a[0]
)
def test_it_takes_no_images(command, arguments):
    done = command("--check", *arguments)
    assert (done.returncode, done.stdout) == (2, "") and "--check: takes no images" in done.stderr


def test_where_nobody_reads_and_where_nothing_can_be_written(bundle):
    line = f"{sys.executable} -m organ_infer --check --bundle {bundle}"
    how = {"shell": True, "stderr": subprocess.PIPE, "text": True, "env": child_environment()}
    assert subprocess.run(f"{line} | true", **how).stderr == ""
    if os.path.exists("/dev/full"):
        done = subprocess.run(f"{line} > /dev/full", **how)
        assert (
            done.returncode == 2
            and "standard output: cannot be written (No space left" in done.stderr
        )


# What is wrong.


def test_cuda_that_is_not_there_is_wrong_and_the_rest_is_said(command, known):
    import onnxruntime

    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    done = command("--check", "--device", "cuda", model=known)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "error: device cuda: CUDA is not available" in done.stderr
    assert {"NumPy", "providers", "model"} <= values(done.stdout).keys()


def test_cuda_that_is_offered_and_not_granted_says_which_library_is_missing(install_fake, known):
    install_fake(granted=(CPU,), compute="network")
    for device, wrong in {"auto": 0, "cuda": 1}.items():
        lines, found = looked("--bundle", known, "--device", device)
        assert len(found) == wrong and (
            "device cuda: onnxruntime activated" in "".join(found)
        ) == bool(wrong)
        assert re.match(
            r"cannot be loaded \(.*libonnxruntime_providers_cuda\.so", values(lines)["CUDA"]
        )
    assert "CUDA" not in values(looked("--bundle", known, "--device", "cpu")[0])


def test_cuda_that_is_granted_is_held_to_its_own_answers(install_fake, known, altered):
    install_fake(compute="network")
    lines, wrong = looked("--bundle", known, "--device", "cuda")
    assert wrong == [] and values(lines)["device"] == f"{CUDA} (requested: cuda)"
    folder = altered(lambda golden: golden | {"cuda": golden["cuda"][::-1]})
    assert looked("--bundle", folder, "--device", "cpu")[1] == []
    assert len(looked("--bundle", folder, "--device", "cuda")[1]) == 1


def test_the_nodes_of_every_network_are_counted(install_fake, tmp_path, caplog):
    folder = write_bundle(
        tmp_path / "b", {"a.onnx": make_graph(seed=1), "b.onnx": make_graph(seed=2)}
    )
    install_fake(compute="network", placed={CUDA: ["Conv", "Gemm"], CPU: ["Softmax"]})
    lines, wrong = looked("--bundle", folder, "--device", "cuda")
    nodes = [line[15:] for line in lines if line.startswith("nodes ")]
    assert wrong == [] and nodes == [
        f"{folder / name}: 2 of 3 nodes on CUDA; on the CPU: Softmax"
        for name in ("a.onnx", "b.onnx")
    ]
    install_fake(compute="network", placed={CUDA: ["Relu"], CPU: ["Conv", "Gemm", "Softmax"]})
    lines, wrong = looked("--bundle", folder, "--device", "cuda")
    assert wrong == [] and values(lines)["nodes"].endswith(
        "1 of 4 nodes on CUDA; on the CPU: Conv, Gemm, Softmax (slow: 2 of them are compute-intensive)"
    )
    assert "nodes" not in values(looked("--bundle", folder, "--device", "cpu")[0])


def test_gpus_driver_and_the_variable_are_listed(known, monkeypatch):
    monkeypatch.setattr(
        check_module, "list_gpus", lambda: ["0: H100, 81559 MiB, 3 MiB free", "1: T4, 2 MiB, 1 MiB"]
    )
    monkeypatch.setattr(check_module, "driver_version", lambda: "550.54.15")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    assert wrong == [] and values(lines)["driver"] == "550.54.15"
    assert [line[15:] for line in lines if line.startswith("GPU ")] == [
        "0: H100, 81559 MiB, 3 MiB free",
        "1: T4, 2 MiB, 1 MiB",
    ]
    assert values(lines)["visible GPUs"] == "CUDA_VISIBLE_DEVICES='1,0'"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides every GPU
    assert (
        values(looked("--bundle", known, "--device", "cpu")[0])["visible GPUs"]
        == "CUDA_VISIBLE_DEVICES=''"
    )


def test_a_machine_without_gpus_is_not_wrong(known, monkeypatch):
    monkeypatch.setattr(check_module, "list_gpus", lambda: "nvidia-smi is not installed")
    monkeypatch.setattr(check_module, "driver_version", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    found = values(lines)
    assert (
        wrong == []
        and found["GPU"] == "nvidia-smi is not installed"
        and "visible GPUs" not in found
    )
    assert found["driver"] == "no NVIDIA driver found"


def test_the_check_takes_the_gpu_and_the_switch_of_a_run(install_fake, known):
    ort = install_fake(compute="network", gpus=2)
    lines, wrong = looked("--bundle", known, "--device", "cuda:1", "--no-cuda-graphs")
    assert wrong == [] and values(lines)["device"] == f"{CUDA} (requested: cuda:1)"
    (_, options), _ = ort.opened[0][1]
    assert options["device_id"] == "1" and "enable_cuda_graph" not in options


def test_a_damaged_bundle_is_named_once(command, bundle_copy):
    (bundle_copy / "small.onnx").write_bytes((bundle_copy / "small.onnx").read_bytes()[::-1])
    done = command("--check", model=bundle_copy)
    assert done.returncode == 2 and re.fullmatch(
        r"organ-infer: error: .*small\.onnx: sha256 .*\n", done.stderr
    )
    assert "model" not in values(done.stdout) and "NumPy" in values(done.stdout)


def test_onnxruntime_that_is_missing_or_broken_is_wrong(monkeypatch, known):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    lines, wrong = looked("--bundle", known)
    assert values(lines)["onnxruntime"].startswith("missing") and "model" in values(lines)
    assert len(wrong) == 1 and "pip install 'organ-infer[cpu]'" in wrong[0]


@pytest.mark.parametrize("module", ["numpy", "PIL", "organ_infer._packing", "organ_infer._reading"])
def test_a_module_that_cannot_be_loaded_is_named(known, module):
    code = f"""
import sys
sys.modules[{module!r}] = None
from organ_infer.cli import main
sys.exit(main(["--check", "--bundle", {str(known)!r}]))"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=child_environment()
    )
    assert "Traceback" not in done.stderr and "report" not in done.stderr, done.stderr
    if module.endswith("_reading"):
        assert (
            done.returncode == 0 and "Pillow reads PNG files" in values(done.stdout)["PNG reader"]
        )
        return
    assert done.returncode == 2 and values(done.stdout)["model"]
    name = {"numpy": "NumPy", "PIL": "Pillow"}.get(module, "packing")
    assert re.search(rf"error: {name}( extension)?: cannot be loaded \(", done.stderr)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_both_wheels_at_once_are_explained(command, known, tmp_path, device):
    """Two distributions that hold one package: whichever came last lies over the other."""
    from importlib.metadata import version

    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / "site" / f"{name}-1.99.0.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.99.0\n"
        )
        (folder / "top_level.txt").write_text("onnxruntime\n")
    path = os.pathsep.join([str(tmp_path / "site"), child_environment()["PYTHONPATH"]])
    done = command("--check", "--device", device, model=known, env={"PYTHONPATH": path})
    assert version("onnxruntime") != "1.99.0" and done.returncode == 2
    assert (
        "error: onnxruntime and onnxruntime-gpu: both are installed and overwrite each other;"
        " pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'organ-infer[cpu]' or"
        in done.stderr
    )
    assert "(onnxruntime 1.99.0, onnxruntime-gpu 1.99.0)" in values(done.stdout)["onnxruntime"]
    assert "self-test" in values(done.stdout)
    failed = command("--device", "cuda", "/dev/null", model=known, env={"PYTHONPATH": path})
    assert (
        failed.returncode == 2
        and "are both installed and overwrite each other; pip uninstall" in failed.stderr
    )


def test_both_wheels_are_looked_for_only_where_cuda_was_not_granted(
    install_fake, known, monkeypatch
):
    asked = []
    monkeypatch.setattr(ort_module, "installed_version", lambda name: asked.append(name))
    install_fake()
    OrganClassifier(known, device="cuda").close()
    install_fake(available=(CPU,))
    OrganClassifier(known, device="cpu").close()
    assert asked == []
    OrganClassifier(known, device="auto").close()
    assert asked[:1] == ["onnxruntime"]


# The answers.


def test_the_slices_are_the_same_everywhere():
    slices = golden_slices()
    assert len(slices) == 16 and {piece.dtype.name for piece in slices} == {"uint8", "uint16"}
    assert len({piece.shape for piece in slices}) > 5
    data = b"".join(str(piece.shape).encode() + piece.astype("<u2").tobytes() for piece in slices)
    assert (
        hashlib.sha256(data).hexdigest()
        == "4dc61bded6debef28fff4655571f2f3638dd1cca124b97e025a66ca1feaa1da0"
    )


def test_a_network_that_answers_otherwise_is_wrong(command, altered):
    """As one file of int8 did on another processor."""

    def moved(golden):
        first = np.array([float(value) for value in golden["cpu"][0].split()])
        order = np.argsort(first)
        first[order[-1]] -= 0.0015
        first[order[0]] += 0.0015
        return golden | {"cpu": [" ".join(map(str, first)), *golden["cpu"][1:]]}

    folder = altered(moved)
    done = command("--check", "--device", "cpu", model=folder)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert re.search(
        r"error: self-test: small fp32 on CPUExecutionProvider differs from the known answers by up to 0\.0015"
        r" \(at most 0\.001 allowed\), and in 0 of 16 labels; try another version of onnxruntime, or a float32 bundle",
        done.stderr,
    )
    done = command("--check", "--device", "cpu", model=altered_labels(folder))
    assert re.search(r"and in 1[0-9] of 16 labels", done.stderr)


def altered_labels(folder):
    """All rows turned by one class."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    golden = manifest["metrics"]["golden"]
    golden["cpu"] = [" ".join(np.roll(row.split(), 1)) for row in golden["cpu"]]
    path.write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: 7,
        lambda golden: {},
        lambda golden: golden | {"cpu": golden["cpu"][1:]},
        lambda golden: golden | {"cpu": [row + " 0" for row in golden["cpu"]]},
        lambda golden: golden | {"cpu": [1.0] * 16},
        lambda golden: golden | {"cpu": ["x"] * 16},
        lambda golden: golden | {"cpu": [" ".join(["nan"] * 11)] * 16},
        lambda golden: golden | {"cpu": [" ".join(["0.5"] * 11)] * 16},
        lambda golden: golden | {"cpu": [*golden["cpu"][:-1], "1"]},
    ],
)
def test_known_answers_that_are_none_are_refused_by_the_check_alone(altered, change):
    folder = altered(change)
    assert open_bundle(folder)
    with pytest.raises(
        BundleError, match=r"metrics\.golden\.cpu must be 16 strings of 11 probabilities; export"
    ):
        golden_answers(read_manifest(folder), "cpu")
    _, wrong = looked("--bundle", folder, "--device", "cpu")
    assert len(wrong) == 1 and "metrics.golden" in wrong[0]


def test_the_widest_tolerance_of_the_forms_in_use_holds(tmp_path):
    graphs = {"a.onnx": make_graph(seed=1), "b.onnx": make_graph(seed=2)}

    def change(manifest):
        half = make_graph(seed=3)
        manifest["members"][0].update(
            precision="int8", alternatives=[entry(half, "c.onnx") | {"precision": "fp16"}]
        )

    folder = write_bundle(tmp_path / "b", graphs, change=change)
    (folder / "c.onnx").write_bytes(make_graph(seed=3))
    add_golden(folder)
    manifest = read_manifest(folder)
    assert (
        tolerance(manifest, "cpu") == BY_NAME["int8"].tolerance
        and tolerance(manifest, "cuda") == BY_NAME["fp16"].tolerance
    )
    assert not np.allclose(
        golden_answers(manifest, "cpu"), golden_answers(manifest, "cuda"), atol=0.01
    )
    with OrganClassifier(folder, device="cpu") as opened:
        np.testing.assert_allclose(
            opened.predict_proba(golden_slices()), golden_answers(manifest, "cpu"), atol=1e-5
        )
    assert looked("--bundle", folder, "--device", "cpu")[1] == []


def test_the_command_that_adds_them_seals_the_manifest_anew_and_leaves_nothing(bundle_copy, capsys):
    before = read_manifest(bundle_copy)
    assert golden_main([str(bundle_copy)]) == 0
    after = read_manifest(bundle_copy)
    assert dict(after.training) == dict(
        before.training
    ) and after.metrics.keys() - before.metrics.keys() == {"golden"}
    assert '"seal": "sha256 of this file' in (bundle_copy / "manifest.json").read_text()
    once = (bundle_copy / "manifest.json").read_bytes()
    assert (
        golden_main([str(bundle_copy)]) == 0
        and (bundle_copy / "manifest.json").read_bytes() == once
    )
    assert [path.name for path in bundle_copy.parent.iterdir()] == [bundle_copy.name]
    (bundle_copy / "manifest.json").write_bytes(once.replace(b"random", b"Random"))
    assert (
        golden_main([str(bundle_copy)]) == 2
        and "changed since it was written" in capsys.readouterr().err
    )


# The report, line by line, in this process.


def test_the_report_has_its_lines_in_order_with_what_was_asked_for(known, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(check_module, "usable_processors", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    names = [line[:14].strip() for line in lines]
    assert wrong == [] and names == [
        *(
            "organ-infer",
            "Python",
            "NumPy",
            "Pillow",
            "pydicom",
            "system",
            "processor",
            "threads",
            "cache",
        ),
        *(
            "PNG reader",
            "packing",
            "driver",
            "GPU",
            "onnxruntime",
            "providers",
            "bundle",
            "model",
            "manifest",
            "",
        ),
        *("device", "self-test", "time"),
    ]
    assert all(line[14] == " " for line in lines)
    found = values(lines)
    assert found["threads"] == "3" and found["processor"].endswith(", 3 of 5 usable")
    assert values(looked("--bundle", known, "--threads", "2")[0])["threads"] == "2"
    opened, tested = re.fullmatch(
        r"(\d+\.\d{3}) s to open the model, (\d+\.\d{3}) s for the self-test", found["time"]
    ).groups()
    assert float(opened) < 100 and float(tested) < 100


def test_the_times_are_of_the_opening_and_of_the_self_test(known, monkeypatch):
    """A clock that goes a second further each time it is asked: begun, opened, tested."""
    times = iter([10.0, 11.5, 14.0])
    monkeypatch.setattr(check_module, "perf_counter", lambda: next(times))
    lines, _ = looked("--bundle", known, "--device", "cpu")
    assert values(lines)["time"] == "1.500 s to open the model, 2.500 s for the self-test"


@pytest.mark.parametrize("missing", ["numpy", "PIL", "organ_infer._reading"])
def test_what_cannot_be_imported_is_missing_and_the_rest_goes_on(known, monkeypatch, missing):
    real = check_module.import_module

    def fails(name, package=None):
        if name in (missing, missing.removeprefix("organ_infer")):
            raise ImportError("broken\nwheel")
        return real(name, package)

    monkeypatch.setattr(check_module, "import_module", fails)
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    found = values(lines)
    if missing == "organ_infer._reading":
        assert wrong == []
        assert (
            found["PNG reader"] == "not built (zlib headers were missing); Pillow reads PNG files"
        )
        return
    name = {"numpy": "NumPy", "PIL": "Pillow"}[missing]
    assert wrong == [
        f"{name}: cannot be loaded (broken wheel); run pip install --force-reinstall {name}"
    ]
    assert found[name] == "missing" and "self-test" in found


def test_a_packing_extension_that_is_missing_or_refuses_its_level_ends_the_check_before_the_model(
    known, monkeypatch
):
    monkeypatch.setitem(sys.modules, "organ_infer._packing", None)
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    assert values(lines)["packing"] == "missing" and "self-test" not in values(lines)
    assert len(wrong) == 1 and re.fullmatch(
        r"packing extension: cannot be loaded \(.*\); reinstall organ-infer", wrong[0]
    )
    assert values(lines)["model"]  # what can be said without it is


def test_pydicom_may_be_missing(known, monkeypatch):
    monkeypatch.setattr(check_module, "installed_version", lambda name: None)
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    assert wrong == [] and values(lines)["pydicom"] == (
        "not installed; for DICOM files: pip install 'organ-infer[dicom]'"
    )
    monkeypatch.setattr(check_module, "installed_version", lambda name: f"3.0 of {name}")
    assert values(looked("--bundle", known, "--device", "cpu")[0])["pydicom"] == "3.0 of pydicom"


def test_an_answer_apart_by_more_than_is_allowed_is_wrong_and_one_by_less_is_not(altered):
    """0.001 for float32; docs/reference/check.md."""

    def moved(by):
        def change(golden):
            row = np.array([float(value) for value in golden["cpu"][5].split()])
            order = np.argsort(row)
            row[order[-1]] -= by
            row[order[0]] += by
            return golden | {
                "cpu": [*golden["cpu"][:5], " ".join(map(repr, row.tolist())), *golden["cpu"][6:]]
            }

        return change

    folder = altered(moved(0.0009))
    lines, wrong = looked("--bundle", folder, "--device", "cpu")
    assert (
        wrong == []
        and "probabilities within 9.0e-04 of the known answers; at most 0.001 allowed"
        in values(lines)["self-test"]
    )
    import shutil

    shutil.rmtree(folder)
    lines, wrong = looked("--bundle", altered(moved(0.0011)), "--device", "cpu")
    assert (
        len(wrong) == 1
        and "by up to 0.0011 (at most 0.001 allowed), and in 0 of 16 labels" in wrong[0]
    )


def test_a_processor_is_named_by_the_system(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: A: B \nmodel name\t: C\n")
    monkeypatch.setattr(check_module, "Path", lambda path: tmp_path / "cpuinfo")
    assert check_module._processor_name() == "A: B"
    (tmp_path / "cpuinfo").write_text("nothing\n")
    monkeypatch.setattr(check_module.platform, "processor", lambda: "P")
    assert check_module._processor_name() == "P"
    (tmp_path / "cpuinfo").unlink()
    monkeypatch.setattr(check_module.platform, "processor", lambda: "")
    monkeypatch.setattr(check_module.platform, "machine", lambda: "M")
    assert check_module._processor_name() == "M"


def test_cuda_whose_libraries_are_all_there_names_the_driver(install_fake, known, monkeypatch):
    install_fake(granted=(CPU,), compute="network")
    monkeypatch.setattr(check_module.ctypes, "CDLL", lambda path: None)
    found = values(looked("--bundle", known, "--device", "auto")[0])["CUDA"]
    assert found.startswith("the libraries can be loaded, but no device is active; ")


def test_onnxruntime_of_no_distribution_is_said(install_fake, known, monkeypatch):
    monkeypatch.setattr(check_module, "packages_distributions", lambda: {})
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    assert wrong == [] and values(lines)["onnxruntime"].endswith(" (not installed as a package)")
    monkeypatch.setattr(
        check_module, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime"] * 2}
    )
    lines, wrong = looked("--bundle", known, "--device", "cpu")  # one, listed twice
    assert wrong == [] and values(lines)["onnxruntime"].count("onnxruntime") == 1


@pytest.mark.parametrize(
    ("wheels", "expected"), [([], "missing"), (["onnxruntime"], "missing (onnxruntime 9.8)")]
)
def test_onnxruntime_that_does_not_load_is_listed_with_its_wheel(
    known, monkeypatch, wheels, expected
):
    def fails():
        raise OrganInferError("onnxruntime cannot be loaded")

    monkeypatch.setattr(check_module, "packages_distributions", lambda: {"onnxruntime": wheels})
    monkeypatch.setattr(check_module, "version", lambda name: "9.8")
    monkeypatch.setattr(check_module, "import_onnxruntime", fails)
    lines, wrong = looked("--bundle", known, "--device", "cpu")
    assert wrong == ["onnxruntime cannot be loaded"] and values(lines)["onnxruntime"] == expected
