"""python -m train.all from outside: a smoke run, its files, what it refuses, two at once, signals."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import onnx
import pytest

from export.temperature import mean_softmax
from tests.support.data_files import DATA, needs_organamnist
from tests.support.train_command import ROOT, command, results_of, train, train_here

LADDER = [
    "base",
    "early_stopping",
    "big",
    "augmentation",
    "batch_norm",
    "resnet50",
    "resnet101",
    "resnet152",
    "ensemble",
    "edge",
]


@pytest.fixture
def small_files():
    """As with a full disk, writes fail in the middle of a large file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A smoke run of the whole ladder, and how it went."""
    if not (DATA / "organamnist.npz").is_file():
        pytest.skip("ORGAN_DATA_DIR does not name the directory of organamnist.npz")
    out = tmp_path_factory.mktemp("smoke")
    done = train(out)
    assert done.returncode == 0, done.stderr
    return out, done


@pytest.mark.slow
def test_a_smoke_run_trains_every_stage(smoke):
    out, done = smoke
    assert done.stdout.startswith("device  cpu (")
    results = results_of(out)
    assert [row["name"] for row in results["stages"]] == LADDER
    with np.load(DATA / "organamnist.npz") as file:  # the first 256 slices of each split
        first = {split: file[f"{split}_labels"][:256, 0] for split in ("train", "val", "test")}
    for row in results["stages"]:
        for split, labels in first.items():
            confusion = np.array(row[split]["confusion"])
            assert confusion.sum(1).tolist() == np.bincount(labels, minlength=11).tolist(), split
            assert row[split]["accuracy"] == pytest.approx(confusion.trace() / 256)
    parameters = {row["name"]: row["parameters"] for row in results["stages"]}
    assert parameters["ensemble"] == 125_883_364 and parameters["edge"] < 500_000
    for row in results["stages"]:
        names = ["temperature", "val_ece", "test_ece", "fitted_on"]
        # Tiny data can reject a temperature.
        assert list(row["calibration"]) in (names, [*names, "rejected"])
    assert "epoch   1/2" in done.stdout and "mean nothing" in done.stdout


@pytest.mark.slow
def test_a_smoke_run_leaves_the_files_of_the_contract(smoke):
    directory = smoke[0] / "organamnist"
    for name in (
        "results.json",
        "results.csv",
        "report/index.html",
        "bundle/manifest.json",
        "robustness.json",
    ):
        assert (directory / name).is_file(), name
    for stage in set(LADDER) - {"ensemble"}:
        for name in ("checkpoint.pt", "history.csv", "member.onnx"):
            assert (directory / stage / name).is_file(), f"{stage}/{name}"
    assert not list(directory.rglob("*.partial"))
    assert "mean nothing" in (directory / "report" / "index.html").read_text()


def exact_first(member):
    """A member's entry that lists its float32 form, and the others as alternatives."""
    forms = [member, *member["alternatives"]]
    exact = next(form for form in forms if form["precision"] == "fp32")
    return exact | {
        "alternatives": [form | {"alternatives": []} for form in forms if form is not exact]
    }


@pytest.mark.slow
def test_the_bundle_is_the_edge_network(smoke):
    from organ_infer import OrganClassifier

    directory = smoke[0] / "organamnist"
    with (
        np.load(DATA / "organamnist.npz") as file,
        OrganClassifier(directory / "bundle") as classifier,
    ):
        assert classifier.manifest.name == "organamnist-edge-smoke"
        assert [member.stage for member in classifier.manifest.members] == ["edge"]
        assert classifier.predict_proba(file["val_images"][:5]).shape == (5, 11)
    card = (directory / "bundle" / "MODEL_CARD.md").read_text()
    assert "A residual network of 317,044 parameters; 2 epochs. Recipe: peak 0.003," in card
    assert "One seed." in card and "validation slices and 13 corrupted copies of each" in card


@pytest.mark.slow
def test_the_ensembles_bundle_is_kept_beside_it_and_averages_its_members(smoke, tmp_path):
    from organ_infer import OrganClassifier

    directory = smoke[0] / "organamnist"
    manifest = json.loads((directory / "bundle-ensemble" / "manifest.json").read_text())
    assert [m["stage"] for m in manifest["members"]] == [
        "batch_norm",
        "resnet50",
        "resnet101",
        "resnet152",
    ]
    manifest["members"] = [exact_first(m) for m in manifest["members"]]
    manifest["training"].pop("seal")  # the change is meant
    for file in (directory / "bundle-ensemble").iterdir():
        os.link(file, tmp_path / file.name)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    members = [
        np.load(directory / m["stage"] / "probabilities.npz")["val"] for m in manifest["members"]
    ]
    expected = mean_softmax([np.log(p) for p in members], manifest["temperature"])
    with (
        np.load(DATA / "organamnist.npz") as file,
        OrganClassifier(tmp_path, device="cpu") as classifier,
    ):
        found = classifier.predict_proba(file["val_images"][: len(expected)])
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(smoke):
    out, before = smoke[0], results_of(smoke[0])
    bundles = [
        out / "organamnist" / name / "manifest.json" for name in ("bundle", "bundle-ensemble")
    ]
    made = [bundle.stat().st_ino for bundle in bundles]
    killed = (
        out / "organamnist" / ".bundle.x.partial"
    )  # what a run leaves that is killed while it writes its bundle
    killed.mkdir()
    (killed / "manifest.json").touch()
    again = train(out)
    assert not killed.exists()
    assert again.returncode == 0 and "epoch   1" not in again.stdout
    assert [
        bundle.stat().st_ino for bundle in bundles
    ] == made  # neither quantised nor written again
    assert results_of(out) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--seed", "2"], "with --seed 1, but this command has --seed 2;"),
        (["--batch-size", "64"], "with --batch-size 128, but this command has --batch-size 64;"),
        (
            ["--max-epochs", "ensemble=1"],
            "with no --max-epochs, but this command has --max-epochs ensemble=1;",
        ),
    ],
)
def test_a_directory_of_other_settings_is_refused(smoke, capsys, arguments, difference):
    assert train_here(smoke[0], *arguments) == 2
    error = capsys.readouterr().err
    assert difference in error and "--fresh" in error and error.count("\n") == 1


@needs_organamnist
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stages", "nope"], "unknown stage 'nope'; choose from base"),
        (["--dataset", "pathmnist"], "data set 'pathmnist': unknown"),
        (["--max-epochs", "x"], "--max-epochs: expected N or STAGE=N"),
        (["--max-epochs", "nope=3"], "unknown stage 'nope'"),
        (
            ["--precision", "int4"],
            "--precision: unknown precision 'int4'; choose from int8, fp32, fp16",
        ),
        (["--data-dir", str(ROOT / "pyproject.toml")], "pyproject.toml"),
        (["--out", "/proc/nope"], "/proc/nope/organamnist: cannot be written"),
    ],
)
def test_what_is_wrong_is_found_before_the_first_epoch(tmp_path, capsys, arguments, words):
    assert train_here(tmp_path, "--stages", "base", *arguments) == 2
    printed = capsys.readouterr()
    assert (
        words in printed.err
        and printed.err.startswith("train: error: ")
        and printed.err.count("\n") == 1
    )
    assert "epoch" not in printed.out


def test_cuda_where_there_is_none_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # torch may have counted the GPUs before
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert train_here(tmp_path, "--device", "cuda") == 2
    error = capsys.readouterr().err
    assert error.startswith("train: error: --device cuda: ")
    assert "CUDA_VISIBLE_DEVICES='' hides every GPU" in error or "built for the CPU" in error


@needs_organamnist
def test_missing_weights_stop_the_run_with_both_ways_to_get_them(tmp_path, capsys):
    from train.all import main

    arguments = command(tmp_path, "--stages", "resnet50", "--weights-dir", str(tmp_path))[3:]
    assert main([argument for argument in arguments if argument != "--smoke"]) == 2
    printed = capsys.readouterr()
    assert (
        "fetch https://" in printed.err
        and "--weights none" in printed.err
        and "epoch" not in printed.out
    )


@needs_organamnist
def test_two_runs_on_one_directory_are_refused_and_a_signal_stops_the_first(tmp_path, capsys):
    options = ("--stages", "big", "--max-epochs", "100", "--batch-size", "16")
    arguments = command(tmp_path, *options)
    first = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline().startswith("device  cpu (")
        assert first.stdout.readline().startswith("disk    about ")
        assert "epoch" in first.stdout.readline()
        assert train_here(tmp_path, *options) == 2
        assert "another run is using it" in capsys.readouterr().err
        first.send_signal(signal.SIGTERM)
        _, said = first.communicate(timeout=60)
    finally:
        first.kill()
    assert (
        first.returncode == 143
        and "to continue from the last finished epoch" in said
        and "Traceback" not in said
    )


@needs_organamnist
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, capsys, small_files):
    assert train_here(tmp_path, "--stages", "big") == 1
    error = capsys.readouterr().err
    assert error.startswith("train: error: ")
    assert ": File too large; rerun" in error and error.count("\n") == 1
    left = sorted(p.name for p in (tmp_path / "organamnist").rglob("*") if p.is_file())
    assert left == ["results.json"]


def test_slices_are_made_from_a_larger_file_as_the_runtime_resamples(tmp_path, monkeypatch, capsys):
    """The larger files cannot be had here: the slices are made."""
    from medmnist import INFO

    from organ_infer import OrganClassifier
    from tests.test_data import medmnist_file
    from train.all import main

    content = medmnist_file(size=64)
    (tmp_path / "organamnist_64.npz").write_bytes(content)
    md5 = hashlib.md5(content).hexdigest()
    monkeypatch.setitem(INFO, "organamnist", INFO["organamnist"] | {"MD5_64": md5})
    out = tmp_path / "runs"
    start = [
        "--dataset",
        "organamnist",
        "--data-dir",
        str(tmp_path),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    assert (
        main(
            [
                *start,
                "--stages",
                "base",
                "--max-epochs",
                "1",
                "--resample-from",
                "64",
                "--resample",
                "linear",
                "--precision",
                "fp32",
            ]
        )
        == 0
    )
    directory = out / "organamnist_from_64_linear"
    results = json.loads((directory / "results.json").read_text())
    assert (results["dataset"]["size"], results["dataset"]["resample_from"]) == (28, 64)
    assert results["dataset"]["md5"] == md5 and (directory / "report" / "index.html").is_file()
    with (
        np.load(tmp_path / "organamnist_64.npz") as file,
        OrganClassifier(directory / "bundle", device="cpu") as classifier,
    ):
        spec = classifier.manifest.input
        assert (spec.size, spec.resample) == (28, "linear")
        found = classifier.predict_proba(file["test_images"])  # 64x64, resampled by the runtime
    with np.load(directory / "base" / "probabilities.npz") as kept:
        expected = mean_softmax([np.log(kept["test"])], classifier.manifest.temperature)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    export = [
        "--checkpoint",
        str(directory / "base" / "checkpoint.pt"),
        "--data-dir",
        str(tmp_path),
    ]
    from export.all import main as export_main

    assert export_main([*export, "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "base.onnx").read_bytes() == (
        directory / "base" / "member.onnx"
    ).read_bytes()
    capsys.readouterr()
    assert main([*start, "--batch-size", "1"]) == 2
    assert (
        "--batch-size: expected 2 or more for batch normalization, found 1"
        in capsys.readouterr().err
    )
    assert main([*start, "--size", "224", "--resample-from", "64"]) == 2
    assert "slices of 224 px: cannot be resampled from 64 px" in capsys.readouterr().err


@pytest.mark.slow
def test_export_alone_gives_the_same_member_and_a_bundle(smoke, tmp_path):
    stages = [smoke[0] / "organamnist" / name for name in ("base", "batch_norm")]
    arguments = [
        "--checkpoint",
        *(str(stage / "checkpoint.pt") for stage in stages),
        "--data-dir",
        str(DATA),
    ]
    export = [
        sys.executable,
        "-m",
        "export.all",
        *arguments,
        "--out",
        str(tmp_path),
        "--bundle",
        str(tmp_path / "b"),
        "--precision",
        "fp32",
        "--merged",
        str(tmp_path / "merged.onnx"),
    ]
    done = subprocess.run(export, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for stage in stages:
        assert (tmp_path / f"{stage.name}.onnx").read_bytes() == (
            stage / "member.onnx"
        ).read_bytes()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert [m["stage"] for m in manifest["members"]] == ["base", "batch_norm"]
    assert [(m["precision"], m["alternatives"]) for m in manifest["members"]] == [("fp32", [])] * 2
    merged = onnx.load(tmp_path / "merged.onnx")
    assert [port.name for port in merged.graph.output] == ["probabilities"]
    from export.member import open_session
    from organ_infer import OrganClassifier
    from organ_infer._packing import pack

    with (
        np.load(DATA / "organamnist.npz") as file,
        OrganClassifier(tmp_path / "b", device="cpu") as classifier,
    ):
        slices = file["val_images"][:50]
        expected = classifier.predict_proba(slices)
        assert classifier.manifest.temperature != 1
    found = open_session(merged.SerializeToString()).run(None, {"images": pack(slices)})[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    refused = subprocess.run(
        [*export, "--precision", "int4"], cwd=ROOT, capture_output=True, text=True
    )
    assert (
        refused.returncode == 2
        and "unknown precision 'int4'; choose from int8, fp32, fp16" in refused.stderr
    )


def test_export_names_a_file_that_is_no_checkpoint(tmp_path, capsys):
    from export.all import main as export_main

    (tmp_path / "checkpoint.pt").write_bytes(b"nothing")
    assert export_main(["--checkpoint", str(tmp_path / "checkpoint.pt")]) == 2
    error = capsys.readouterr().err
    assert "checkpoint.pt: not a readable checkpoint" in error and "Traceback" not in error
