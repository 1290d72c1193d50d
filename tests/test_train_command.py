"""python -m train.all and python -m train.report in this process: options, exit codes, which bundle a run ends in, views."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import runpy
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import finished_checkpoint

from export.bundle_info import BundleInfo
from export.member import ExportError
from export.model_card import model_card
from organ_infer import BundleError
from tests.support.report_page import Page
from tests.support.result_rows import split_metrics, stage_result
from train import all as command
from train import calibration, run
from train.config import TrainConfig
from train.data import Data, load_data
from train.errors import RunError
from train.options import TrainOptions
from train.recipes.reference import ReferenceRecipe
from train.report import write_report
from train.report.__main__ import main as report
from train.results_format import Calibration, MeanStd, Results, StageResult, StageSummary
from train.stages import STAGES

# MedMNIST v2: "OrganAMNIST ... axial, OrganCMNIST ... coronal, OrganSMNIST ... sagittal" views
VIEWS = {"organamnist": "axial", "organcmnist": "coronal", "organsmnist": "sagittal"}
ORGANS = 11


def medmnist_file(folder: Path, flag: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small file in the place of a published one; its MD5."""
    from medmnist import INFO

    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("val", 14), ("test", 17)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % ORGANS).astype(np.uint8)[:, None]
    file = io.BytesIO()
    np.savez(file, **arrays)
    md5 = hashlib.md5(file.getvalue()).hexdigest()
    (folder / f"{flag}.npz").write_bytes(file.getvalue())
    monkeypatch.setitem(INFO, flag, INFO[flag] | {"MD5": md5})
    return md5


# views


@pytest.mark.parametrize("flag", VIEWS)
def test_data_report_and_card_name_the_view_of_the_data_set(tmp_path, monkeypatch, flag):
    medmnist_file(tmp_path, flag, monkeypatch)
    data = load_data(flag, directory=tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"stages": [], "dataset": {"flag": flag}}))
    page = Page(write_report(tmp_path, data)).text.lower()
    about = {"val_as_listed": {"accuracy": 0.5, "ece": 0.5, "ece_uncalibrated": 0.5}}
    info = BundleInfo("name", data.flag, data.view, data.classes, data.size, about, {})
    card = model_card(info, [], 1.0).lower()
    assert data.view == VIEWS[flag]
    for text in (page, card):
        assert VIEWS[flag] in text
        assert not any(view in text for view in set(VIEWS.values()) - {VIEWS[flag]})
    # axial slices alone have a known orientation
    assert (
        ("left-right axis" in page)
        == ("rows run to the patient's left" in card)
        == (flag == "organamnist")
    )


# options


def test_the_options_are_those_of_the_reference_study_unless_others_are_given():
    found = dataclasses.asdict(command.parse_arguments([]))
    assert found == {
        "dataset": "organsmnist",
        "data_dir": None,
        "split": None,
        "group_by": None,
        "pairs": None,
        "orientation": None,
        "out": Path("runs"),
        "stages": None,
        "device": "auto",
        "amp": "auto",
        "size": 28,
        "resample_from": None,
        "resample": "area",
        "seed": 1,
        "seeds": 1,
        "batch_size": 128,
        "max_epochs": (),
        "weights": "imagenet",
        "weights_dir": None,
        "precision": ("int8", "fp32", "fp16"),
        "temperature": None,
        "fast_member": None,
        "parallel": "stages",
        "deterministic": False,
        "smoke": False,
        "fresh": False,
        "plan": False,
        "tensorboard": None,
    }


def test_every_option_is_taken_as_it_is_given():
    given = {
        "--dataset": "organamnist",
        "--data-dir": "d",
        "--split": "0.8,0.1,0.1",
        "--group-by": "(a)",
        "--pairs": "p.csv",
        "--orientation": "LP",
        "--out": "o",
        "--stages": "base",
        "--device": "cuda:1",
        "--amp": "bf16",
        "--size": "64",
        "--resample-from": "128",
        "--resample": "cubic",
        "--seed": "0",
        "--seeds": "3",
        "--batch-size": "7",
        "--weights": "none",
        "--weights-dir": "w",
        "--precision": "fp32",
        "--temperature": "0.5",
        "--fast-member": "edge",
        "--parallel": "batches",
        "--tensorboard": "t",
    }
    words = [word for pair in given.items() for word in pair]
    flags = ["--deterministic", "--smoke", "--fresh", "--plan"]
    flags += ["--max-epochs", "3", "--max-epochs", "base=2"]
    found = dataclasses.asdict(command.parse_arguments([*words, *flags]))
    assert found.pop("stages") == ("base",) and found.pop("precision") == ("fp32",)
    for option, text in given.items():
        if option not in ("--stages", "--precision"):
            assert str(found.pop(option.removeprefix("--").replace("-", "_"))) == text
    assert found == {
        "deterministic": True,
        "smoke": True,
        "fresh": True,
        "plan": True,
        "max_epochs": ("3", "base=2"),
    }


def test_every_published_size_of_slices_is_taken():
    # MedMNIST+: 28, 64, 128 and 224 pixels
    sizes = [command.parse_arguments(["--size", size]).size for size in ("28", "64", "128", "224")]
    assert sizes == [28, 64, 128, 224]
    larger = [
        command.parse_arguments(["--resample-from", size]).resample_from
        for size in ("64", "128", "224")
    ]
    assert larger == [64, 128, 224]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "32"],
        ["--resample-from", "28"],
        ["--seed", "-1"],
        ["--seeds", "0"],
        ["--batch-size", "0"],
        ["--amp", "fp8"],
        ["--weights", "other"],
        ["--parallel", "nothing"],
        ["--device", "gpu"],
        ["more"],
    ],
)
def test_options_that_cannot_be_taken_end_the_program_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command.parse_arguments(arguments)
    assert ended.value.code == 2 and "usage: python -m train.all" in capsys.readouterr().err


def test_help_says_what_the_command_does_and_how_it_is_used(capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert "Train every stage, export each to ONNX, and write a bundle and a report." in text
    for line in command.EPILOG.splitlines():
        assert line in text
    assert "Research software, not a medical device." in text


# exit codes


def fails(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def stop(_: TrainOptions) -> None:
        raise error

    monkeypatch.setattr(run, "run", stop)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (RunError("no data"), 2, "train: error: no data"),
        (RunError("it broke off", exit_code=1), 1, "train: error: it broke off"),
        (
            ImportError("x", name="onnxscript"),
            2,
            "train: error: onnxscript: not installed; run pip install",
        ),
        (
            OSError(28, "No space left on device", "runs/x"),
            1,
            "train: error: runs/x: No space left on device; rerun the same command to resume",
        ),
        (OSError("gone"), 1, "train: error: there: gone; rerun the same command"),
        (
            KeyboardInterrupt(),
            130,
            "train: stopped; rerun the same command to continue from the last finished epoch",
        ),
    ],
)
def test_what_ends_a_run_is_one_line_and_an_exit_code(monkeypatch, capsys, error, code, words):
    fails(monkeypatch, error)
    assert command.main(["--out", "there"]) == code
    printed = capsys.readouterr()
    assert printed.err.startswith(words) and printed.err.count("\n") == 1 and printed.out == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_the_handlers_are_put_back(monkeypatch, capsys, number):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

    def work(_: TrainOptions) -> None:
        signal.raise_signal(number)
        raise AssertionError("not stopped")

    monkeypatch.setattr(run, "run", work)
    assert command.main([]) == 128 + number
    assert capsys.readouterr().err.startswith("train: stopped;")
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("error", [RuntimeError, OSError, ImportError])
def test_a_signal_that_comes_out_as_another_error_stops_the_run(monkeypatch, capsys, error):
    """As it does inside extension modules."""

    def work(_: TrainOptions) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise error("unknown") from None

    monkeypatch.setattr(run, "run", work)
    assert command.main([]) == 128 + signal.SIGTERM
    assert capsys.readouterr().err.startswith("train: stopped;")


def test_a_run_that_ends_well_gets_its_options_and_ends_in_0(monkeypatch, capsys):
    got = []
    monkeypatch.setattr(run, "run", got.append)
    assert command.main(["--seed", "7"]) == 0
    assert [options.seed for options in got] == [7] and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("code", "joined", "left_at_once"), [(0, True, False), (1, False, False), (1, True, True)]
)
def test_a_process_that_fails_in_a_group_leaves_at_once(monkeypatch, code, joined, left_at_once):
    left = []
    monkeypatch.setattr(command, "main", lambda: code)
    monkeypatch.setattr("train.parallel.is_joined", lambda: joined)
    monkeypatch.setattr(command.os, "_exit", left.append)
    with pytest.raises(SystemExit) as ended:
        command.run_and_exit()
    assert ended.value.code == code and left == ([1] if left_at_once else [])


def test_an_unforeseen_error_is_shown_and_ends_the_process_with_1(monkeypatch, capsys):
    def broken() -> int:
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(command, "main", broken)
    with pytest.raises(SystemExit) as ended:
        command.run_and_exit()
    assert ended.value.code == 1 and "ZeroDivisionError: unforeseen" in capsys.readouterr().err


# what is found before the first epoch


def options(folder: Path, *more: str) -> TrainOptions:
    place = ["--dataset", "organcmnist", "--data-dir", str(folder), "--out", str(folder / "runs")]
    return command.parse_arguments([*place, "--device", "cpu", "--stages", "base", *more])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--precision", "fp32,int4"],
            "--precision: unknown precision 'int4'; choose from int8, fp32, fp16",
        ),
        (
            ["--batch-size", "1"],
            "--batch-size: expected 2 or more for batch normalization, found 1",
        ),
        (["--max-epochs", "0"], "--max-epochs: expected N or STAGE=N"),
        (["--stages", "base,nope"], "unknown stage 'nope'"),
        (["--dataset", "pathmnist"], "data set 'pathmnist': unknown"),
        (
            ["--fast-member", "base"],
            "--fast-member: 'base' is no member of an average that is trained; leave it out, no average is among",
        ),
        (
            ["--stages", "edge_ensemble", "--fast-member", "nope"],
            "'nope' is no member of an average that is trained; choose from edge, edge_wide, edge_deep",
        ),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(tmp_path, arguments, words):
    with pytest.raises(RunError, match=words) as raised:
        run.run(options(tmp_path, *arguments))
    assert raised.value.exit_code == 2 and not (tmp_path / "runs").exists()


def test_a_package_that_an_export_needs_is_missed_before_training(tmp_path, monkeypatch):
    def missing() -> None:
        raise ExportError("onnxruntime is not installed")

    monkeypatch.setattr(run, "check_installed", missing)
    with pytest.raises(RunError, match="onnxruntime is not installed") as raised:
        run.run(options(tmp_path))
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(("share", "least"), [("batches", 6), ("stages", 2)])
def test_every_process_that_shares_batches_needs_two_slices(tmp_path, monkeypatch, share, least):
    group = run.parallel.Group(rank=0, size=3)
    monkeypatch.setattr(run.parallel, "group_from_environment", lambda: group)
    monkeypatch.setattr(run.parallel, "check", lambda *_: None)
    few = options(tmp_path, "--parallel", share, "--batch-size", str(least - 1))
    with pytest.raises(RunError, match=f"--batch-size: expected {least} or more"):
        run._check_options(few)
    enough = options(tmp_path, "--parallel", share, "--batch-size", str(least))
    assert run._check_options(enough).group == group


def test_a_package_that_the_report_needs_is_missed_before_training(tmp_path, monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(f"no module for {name}")

    monkeypatch.setattr(run, "importlib", SimpleNamespace(import_module=missing))
    with pytest.raises(ImportError, match=r"train\.report\.page"):
        run.run(options(tmp_path))
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_missing_are_missed_before_training_and_not_sought_for_a_stage_that_has_begun(
    tmp_path,
):
    def job(name: str) -> SimpleNamespace:
        config = SimpleNamespace(seed=1, weights="imagenet", weights_dir=tmp_path)
        return SimpleNamespace(stage=STAGES[name], config=config, directory=tmp_path / name)

    data = SimpleNamespace(classes=["a", "b"], size=28)
    run._check_weights([job("base")], data)
    with pytest.raises(RunError, match=r"no resnet50\.pth"):
        run._check_weights([job("base"), job("resnet50")], data)
    (tmp_path / "resnet50").mkdir()
    (tmp_path / "resnet50" / "checkpoint.pt").touch()
    run._check_weights([job("resnet50")], data)


# a run with fakes in the place of training and exports


@pytest.fixture
def faked(tmp_path, monkeypatch) -> SimpleNamespace:
    """Training, measuring, bundles and reports that only note what they are given."""
    seen = SimpleNamespace(steps=[], data=None, fitted=[], settings=None)
    seen.md5 = medmnist_file(tmp_path, "organcmnist", monkeypatch)

    def measured(job: Any, data: Data, device: torch.device, results: Results) -> None:
        seen.steps.append(f"measure {job.stage.name} {job.config.seed}")
        seen.data, seen.settings = data, results.settings
        scores = split_metrics()
        results.stages.insert(
            0, stage_result(job.stage.name, job.config.seed, train=scores, val=scores)
        )

    def tested(job: Any, data: Data, device: torch.device, results: Results) -> None:
        seen.steps.append(f"test {job.stage.name} {job.config.seed}")
        (row,) = (row for row in results.rows_of(job.stage.name) if row.seed == job.config.seed)
        row.test = row.val

    def fit(stage: Any, data: Data, recipe: Any, device: Any, directory: Path, **_: Any) -> None:
        seen.steps.append(f"fit {stage.name} {recipe.seed}")
        assert calibration.SPLIT not in data.images and directory.parts[-1] != "ensemble"

    def robust(
        directory: Path, data: Data, results: Any, names: Any, *, slices: int, **_: Any
    ) -> None:
        seen.steps.append(f"robustness {','.join(names)} {slices}")

    def bundled(
        directory: Path,
        data: Data,
        results: Any,
        seeds: int,
        precisions: Any,
        temperature: Any,
        fast_member: Any,
    ) -> Path:
        seen.steps.append(f"bundle {seeds} {','.join(precisions)}")
        return directory / "bundle"

    monkeypatch.setattr(run.fit, "fit", fit)
    monkeypatch.setattr(run, "measure_stage", measured)
    monkeypatch.setattr(run, "measure_test", tested)
    monkeypatch.setattr(run, "measure_robustness", robust)
    monkeypatch.setattr(run, "_bundles", bundled)
    monkeypatch.setattr(
        run, "_write_report", lambda directory, data, board: seen.steps.append("report")
    )
    return seen


def results_of(folder: Path, name: str = "organcmnist") -> dict[str, Any]:
    return json.loads((folder / "runs" / name / "results.json").read_text())


def test_a_run_goes_from_training_to_test_to_the_report_in_that_order(tmp_path, faked, capsys):
    run.run(options(tmp_path, "--stages", "big,base", "--precision", "fp16", "--seeds", "2"))
    jobs = ["base 1", "base 2", "big 1", "big 2"]
    assert faked.steps == [
        *(f"{step} {job}" for step in ("fit", "measure", "test") for job in jobs),
        "robustness ensemble,edge,edge_deep,edge_ensemble 1000",
        "bundle 2 fp16",
        "report",
    ]
    found = results_of(tmp_path)
    assert [(row["name"], row["seed"]) for row in found["stages"]] == [
        ("base", 1),
        ("base", 2),
        ("big", 1),
        ("big", 2),
    ]
    assert [entry["name"] for entry in found["summary"]] == ["base", "big"]
    assert (
        len(faked.data.labels[calibration.SPLIT]) == 14 * 14
        and found["dataset"]["md5"] == faked.md5
    )
    printed = capsys.readouterr().out
    assert (
        printed.startswith("device  cpu (")
        and "over 2 seeds" in printed
        and "mean nothing" not in printed
    )


def test_a_disk_that_is_too_small_is_refused_before_training_and_nothing_is_left(
    tmp_path, faked, monkeypatch
):
    def refused(directory: Path, *_: Any) -> str:
        raise RunError(f"{directory}: about 2 GB needed")

    monkeypatch.setattr(run, "check_space", refused)
    with pytest.raises(RunError, match="about 2 GB needed"):
        run.run(options(tmp_path, "--stages", "big"))
    assert faked.steps == [] and not (tmp_path / "runs").exists()


def test_the_processes_train_as_one_group_and_the_first_then_uses_all_processors(
    tmp_path, faked, monkeypatch
):
    for name in ("join", "leave", "use_all_processors"):
        monkeypatch.setattr(
            run.parallel, name, lambda *given, name=name: faked.steps.append((name, *given[2:]))
        )
    run.run(options(tmp_path, "--parallel", "batches"))
    assert faked.steps[:4] == [
        ("join", "batches"),
        "fit base 1",
        ("leave",),
        ("use_all_processors",),
    ]


def test_the_settings_of_a_run_are_those_that_were_given(tmp_path, faked):
    more = [
        "--seed",
        "3",
        "--batch-size",
        "9",
        "--weights",
        "none",
        "--max-epochs",
        "base=2",
        "--amp",
        "off",
    ]
    run.run(options(tmp_path, *more))
    assert faked.settings == {
        "seed": 3,
        "seeds": 1,
        "size": 28,
        "resample_from": None,
        "resample": "area",
        "batch_size": 9,
        "weights": "none",
        "smoke": False,
        "max_epochs": {"base": 2},
        "deterministic": False,
        "amp": "off",
    }
    assert "summary" not in results_of(tmp_path)


def test_a_smoke_run_is_short_and_says_that_it_means_nothing(tmp_path, faked, monkeypatch, capsys):
    monkeypatch.setattr("train.data.SMOKE_SLICES", 12)
    run.run(options(tmp_path, "--smoke"))
    assert {split: len(y) for split, y in faked.data.labels.items()} == {
        "train": 12,
        "val": 12,
        "test": 12,
        calibration.SPLIT: 4 * 14,
    }
    assert (
        faked.settings["smoke"]
        and faked.settings["weights"] == "none"
        and results_of(tmp_path)["smoke"]
    )
    assert "robustness ensemble,edge,edge_deep,edge_ensemble 4" in faked.steps
    assert "A smoke run: the figures above mean nothing." in capsys.readouterr().out


def test_another_size_and_a_larger_file_have_directories_of_their_own(tmp_path, faked, monkeypatch):
    plain = load_data("organcmnist", directory=tmp_path)

    def load(
        flag: str, *, size: int, directory: Path, resample_from: int | None, resample: str
    ) -> Data:
        side = resample_from or size
        images = {
            split: np.zeros((len(y), side, side), np.uint8) for split, y in plain.labels.items()
        }
        return replace(plain, size=size, images=images, resample=resample)

    monkeypatch.setattr(run, "load_data", load)
    for more, name in (
        (["--size", "64"], "organcmnist_64"),
        (["--resample-from", "64"], "organcmnist_from_64"),
        (["--size", "64", "--resample-from", "128"], "organcmnist_64_from_128"),
        (["--resample", "linear", "--resample-from", "64"], "organcmnist_from_64_linear"),
        (["--resample", "cubic"], "organcmnist_cubic"),
    ):
        run.run(options(tmp_path, *more))
        about = results_of(tmp_path, name)["dataset"]
        assert about["size"] == (64 if "--size" in more else 28)
        assert about["resample_from"] == (int(more[-1]) if "--resample-from" in more else None)
        assert about["resample"] == (more[1] if "--resample" in more else "area")


def test_what_other_runs_left_is_swept_and_fresh_removes_what_runs_leave_alone(tmp_path, faked):
    place = tmp_path / "runs" / "organcmnist"
    for name in ("bundle", "bundle-ensemble", "report", "base", "edge", "ensemble", "mine"):
        (place / name).mkdir(parents=True)
        (place / name / "file").touch()
    for name in ("results.csv", "robustness.json", "notes.txt", ".results.json.x.partial"):
        (place / name).touch()
    (place / "results.json").write_text(json.dumps({"settings": {"seed": 9}, "stages": []}))
    with pytest.raises(
        RunError,
        match=r"holds a run with --seed 9, --seeds not recorded, .* but this command has --seed 1, --seeds 1, ",
    ):
        run.run(options(tmp_path))
    assert (place / "base" / "file").exists() and not (place / ".results.json.x.partial").exists()
    run.run(options(tmp_path, "--fresh"))
    left = sorted(path.name for path in place.iterdir())
    assert left == ["mine", "notes.txt", "results.json"]
    assert results_of(tmp_path)["settings"]["seed"] == 1


# which process trains what


@pytest.mark.parametrize(
    ("size", "rank", "trained"),
    [
        (1, 0, ["base", "big", "edge"]),
        (2, 0, ["edge", "base"]),  # the most expensive first, dealt out in turn
        (2, 1, ["big"]),
        (4, 3, []),
    ],
)
def test_stages_are_dealt_out_to_the_processes(monkeypatch, size, rank, trained):
    fitted, waited = [], []
    monkeypatch.setattr(run.fit, "fit", lambda stage, *_, **__: fitted.append(stage.name))
    jobs = [
        SimpleNamespace(stage=STAGES[name], config=None, directory=None, label=name)
        for name in ("base", "big", "ensemble", "edge")
    ]
    group = SimpleNamespace(size=size, rank=rank, wait=lambda: waited.append(True))
    run._train_all(jobs, None, None, group, "stages")
    assert fitted == trained and waited == [True]


def test_batches_are_shared_by_all_processes_of_every_stage(monkeypatch):
    fitted = []
    monkeypatch.setattr(
        run.fit, "fit", lambda stage, *_, group, **__: fitted.append((stage.name, group))
    )
    jobs = [
        SimpleNamespace(stage=STAGES[name], config=None, directory=None, label=name)
        for name in ("base", "ensemble", "big")
    ]
    group = SimpleNamespace(size=2, rank=1)
    run._train_all(jobs, None, None, group, "batches")
    assert fitted == [("base", group), ("big", group)]


# the bundle of a run


@pytest.fixture
def data(tmp_path, monkeypatch) -> Data:
    medmnist_file(tmp_path, "organcmnist", monkeypatch)
    return calibration.add_calibration_split(load_data("organcmnist", directory=tmp_path), 5)


@pytest.fixture
def written(monkeypatch) -> list[tuple[str, dict[str, Any]]]:
    """What bundles are written with, by the name of their folder."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def write(
        place: Path,
        info: BundleInfo,
        members: Any,
        slices: Any,
        *,
        precisions: Any,
        temperature: Any,
        fast_member: Any,
        report: Any,
    ) -> Path:
        calls.append(
            (
                place.name,
                vars(info)
                | {"members": members, "slices": slices, "precisions": precisions}
                | {"fast_member": fast_member},
            )
        )
        return place

    monkeypatch.setattr(run, "write_bundle", write)
    return calls


def scored(
    name: str, seed: int, val: float, *, test: bool = True, weights: str = "none"
) -> StageResult:
    """A row whose numbers differ by split and seed."""
    splits: dict[str, Any] = {
        split: split_metrics(val - i / 10, auc=0.9 - i / 10 - seed / 100, ece=0.01 * (i + seed))
        for i, split in enumerate(("val", "train", "test"))
    }
    splits |= {} if test else {"test": None}
    errors = Calibration(2.0, val_ece=0.071 * seed, test_ece=0.083 * seed, fitted_on="x")
    about: dict[str, Any] = {
        "weights": weights,
        "parameters": 4_321,
        "epochs": 8,
        "calibration": errors,
    }
    return stage_result(name, seed, **about, **splits)


def results_with(*rows: StageResult, **more: Any) -> Results:
    return Results(versions={"torch": "2"}, device="cpu", stages=list(rows), **more)


def member(directory: Path, place: str) -> Path:
    folder = directory / place
    folder.mkdir(parents=True)
    (folder / "member.onnx").write_bytes(place.encode())
    checkpoint = finished_checkpoint("edge", "edge", method={"peak": 0.25})
    torch.save(checkpoint.to_dict(), folder / "checkpoint.pt")
    return folder / "member.onnx"


@pytest.mark.parametrize(
    ("stages", "bundles"),
    [
        (["base", "big"], {"bundle": "big"}),
        (["ensemble", "base"], {"bundle": "ensemble"}),
        (["edge", "base"], {"bundle": "edge"}),
        (["ensemble", "edge", "base"], {"bundle-ensemble": "ensemble", "bundle": "edge"}),
    ],
)
def test_the_bundle_is_edge_then_the_ensemble_then_the_last_network(
    tmp_path, data, written, stages, bundles
):
    for name in {*stages, *(STAGES["ensemble"].members if "ensemble" in stages else ())} - {
        "ensemble"
    }:
        member(tmp_path, name)
    rows = [scored(name, 1, 0.5) for name in stages] + [scored("edge", 1, 0.9, test=False)] * (
        "edge" not in stages
    )
    place = run._bundles(tmp_path, data, results_with(*rows), 1, ["fp32"])
    assert place == tmp_path / "bundle"
    assert {name: about["name"] for name, about in written} == {
        name: f"organcmnist-{stage}" for name, stage in bundles.items()
    }


def test_a_bundle_has_the_metrics_and_the_networks_of_its_stage(tmp_path, data, written):
    files = {name: member(tmp_path, name) for name in STAGES["ensemble"].members}
    row = scored("ensemble", 1, 0.8, weights="ImageNet")
    run._bundle(
        tmp_path / "bundle",
        "ensemble",
        data,
        results_with(scored("base", 1, 0.9), row),
        1,
        ["int8", "fp32"],
    )
    ((_, about),) = written
    assert about["metrics"] == {
        "val": {"accuracy": 0.8, "auc": pytest.approx(0.89), "ece": 0.01, "ece_calibrated": 0.071},
        "train": {"accuracy": pytest.approx(0.7), "auc": pytest.approx(0.79), "ece": 0.02},
        "test": {
            "accuracy": pytest.approx(0.6),
            "auc": pytest.approx(0.69),
            "ece": 0.03,
            "ece_calibrated": 0.083,
        },
    }
    assert [(trained.stage, trained.file) for trained in about["members"]] == list(files.items())
    assert about["training"] == {
        "seed": 1,
        "data_md5": data.md5,
        "weights": "ImageNet",
        "versions": {"torch": "2"},
        "device": "cpu",
        "smoke": False,
        "precisions_tried": ["int8", "fp32"],
        "temperature_fitted_on": "5 validation slices and 13 corrupted copies of each (MedMNIST-C, severity 3)",
        "members": {name: hashlib.sha256(name.encode()).hexdigest() for name in files},
    }
    assert (about["dataset"], about["view"], about["size"]) == ("organcmnist", "coronal", 28)
    assert about["classes"] == data.classes and about["precisions"] == ["int8", "fp32"]
    slices = about["slices"]
    assert slices.train is data.images["train"] and slices.val is data.images["val"]
    assert slices.labels is data.labels["val"] and slices.size == 28
    assert slices.fitted_on == (data.images[calibration.SPLIT], data.labels[calibration.SPLIT])


def test_of_several_seeds_the_best_on_validation_is_bundled_with_what_others_reached(
    tmp_path, data, written
):
    for seed in (4, 5, 6):
        member(tmp_path, f"edge/seed-{seed}")
    rows = [
        scored("edge", 4, 0.6),
        scored("edge", 5, 0.8),
        scored("edge", 6, 0.7),
        scored("base", 4, 0.99),
    ]
    rows[0].test = split_metrics(0.99, auc=0.99, ece=0.0)
    spread = {key: MeanStd(0.5, 0.1) for key in ("accuracy", "auc", "ece", "f1")}
    about = StageSummary("edge", [4, 5, 6], train=spread, val=spread, test=spread)
    results = results_with(*rows, summary=[replace(about, name="base", seeds=[4]), about])
    run._bundle(tmp_path / "bundle", "edge", data, results, 3, ["fp32"])
    ((_, written_with),) = written
    assert [m.file for m in written_with["members"]] == [
        tmp_path / "edge" / "seed-5" / "member.onnx"
    ]
    assert (
        written_with["training"]["seed"] == 5 and written_with["metrics"]["val"]["accuracy"] == 0.8
    )
    kept = {key: {"mean": 0.5, "std": 0.1} for key in ("accuracy", "auc", "ece")}
    assert written_with["metrics"]["seeds"] == {"count": 3, "val": kept, "test": kept}
    assert written_with["training"]["recipe"] == {
        "network": "A residual network of 4,321 parameters",
        "epochs": 8,
        "settings": {"peak": 0.25},
    }


@pytest.mark.parametrize(
    ("size", "smoke", "name"),
    [
        (28, False, "organcmnist-big"),
        (64, False, "organcmnist-64-big"),
        (28, True, "organcmnist-big-smoke"),
    ],
)
def test_the_name_of_a_bundle_says_what_it_is(tmp_path, data, written, size, smoke, name):
    member(tmp_path, "big")
    results = results_with(scored("big", 1, 0.5), smoke=smoke)
    run._bundle(tmp_path / "bundle", "big", replace(data, size=size), results, 1, ["fp32"])
    ((_, about),) = written
    assert (
        about["name"] == name
        and about["training"]["smoke"] == smoke
        and "recipe" not in about["training"]
    )


def test_a_seed_that_is_not_measured_on_test_is_not_bundled(tmp_path, data, written):
    for seed in (4, 5):
        member(tmp_path, f"big/seed-{seed}")
    results = results_with(scored("big", 4, 0.6), scored("big", 5, 0.9, test=False))
    run._bundle(tmp_path / "bundle", "big", data, results, 2, ["fp32"])
    ((_, about),) = written
    assert about["training"]["seed"] == 4


def test_a_bundle_that_cannot_be_written_ends_the_run_with_1(tmp_path, data, monkeypatch):
    def write(*_: Any, **__: Any) -> None:
        raise ExportError("no room")

    monkeypatch.setattr(run, "write_bundle", write)
    member(tmp_path, "big")
    with pytest.raises(RunError, match="no room") as raised:
        run._bundle(
            tmp_path / "bundle", "big", data, results_with(scored("big", 1, 0.5)), 1, ["fp32"]
        )
    assert raised.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [(None, None), ("resnet50", "resnet50"), ("base", None), ("edge", None)],
)
def test_an_average_names_the_fast_member_if_it_is_one_of_its_own(
    tmp_path, data, written, name, expected
):
    for stage in STAGES["ensemble"].members:
        member(tmp_path, stage)
    results = results_with(scored("ensemble", 1, 0.8))
    run._bundles(tmp_path, data, results, 1, ["fp32"], None, name)
    assert [about["fast_member"] for _, about in written] == [expected]


@pytest.mark.parametrize(
    ("changed", "current"),
    [
        ({}, True),
        ({"name": "another"}, False),
        ({"training": {"seed": 2}}, False),
        ({"metrics": {}}, False),
        ({"metrics": {"val_as_listed": {"accuracy": 0.5}}}, False),
    ],
)
def test_a_bundle_of_the_same_networks_stays(tmp_path, monkeypatch, changed, current):
    about = {
        "name": "n",
        "training": {"seed": 1},
        "metrics": {"val_as_listed": {"ece": 0.1}},
        "members": ["one"],
        "fast": None,
        "temperature": 1.0,
    } | changed
    opened = SimpleNamespace(manifest=SimpleNamespace(**about))
    monkeypatch.setattr(run, "open_bundle", lambda place: opened if place == tmp_path else None)
    assert run._is_current(tmp_path, "n", {"seed": 1}) is current


def stored_average(fast, temperature=1.25):
    """A bundle of two networks, of which `edge_deep` is the best on validation."""
    about = SimpleNamespace(
        name="n",
        training={},
        metrics={"val_as_listed": {"ece": 0.1}},
        members=[
            SimpleNamespace(stage="edge", val_accuracy=0.98, bytes=1),
            SimpleNamespace(stage="edge_deep", val_accuracy=0.99, bytes=2),
        ],
        fast=fast and SimpleNamespace(stage=fast),
        temperature=temperature,
    )
    return lambda place: SimpleNamespace(manifest=about)


@pytest.mark.parametrize(
    ("fast", "wanted", "current"),
    [
        (None, None, False),
        ("edge", None, False),
        ("edge_deep", None, True),
        ("edge", "edge", True),
        ("edge_deep", "edge_deep", True),
        ("edge", "edge_deep", False),
        ("edge_deep", "edge", False),
    ],
)
def test_an_average_without_the_fast_member_that_is_wanted_is_written_anew(
    tmp_path, monkeypatch, fast, wanted, current
):
    monkeypatch.setattr(run, "open_bundle", stored_average(fast))
    assert run._is_current(tmp_path, "n", {}, None, wanted) is current


@pytest.mark.parametrize(("wanted", "current"), [(None, True), (1.25, True), (1.3, False)])
def test_a_bundle_with_another_temperature_is_written_anew(tmp_path, monkeypatch, wanted, current):
    monkeypatch.setattr(run, "open_bundle", stored_average("edge_deep", temperature=1.25))
    assert run._is_current(tmp_path, "n", {}, wanted) is current


def test_a_run_compares_the_bundle_with_all_its_options(
    tmp_path, data, written, monkeypatch, capsys
):
    for stage in STAGES["ensemble"].members:
        member(tmp_path, stage)
    asked = []
    monkeypatch.setattr(run, "_is_current", lambda *arguments: asked.append(arguments[-2:]))
    results = results_with(scored("ensemble", 1, 0.8))
    run._bundles(tmp_path, data, results, 1, ["fp32"], 0.5, "resnet50")
    assert asked == [(0.5, "resnet50")] and len(written) == 1


def test_a_bundle_that_is_damaged_or_not_there_is_written_anew(
    tmp_path, data, written, monkeypatch, capsys
):
    def broken(_: Path) -> None:
        raise BundleError("no manifest")

    monkeypatch.setattr(run, "open_bundle", broken)
    assert run._is_current(tmp_path, "n", {}) is False
    member(tmp_path, "big")
    results = results_with(scored("big", 1, 0.5))
    assert (
        run._bundle(tmp_path / "bundle", "big", data, results, 1, ["fp32"]) == tmp_path / "bundle"
    )
    assert len(written) == 1
    monkeypatch.setattr(run, "_is_current", lambda place, name, *_: name == "organcmnist-big")
    assert (
        run._bundle(tmp_path / "bundle", "big", data, results, 1, ["fp32"]) == tmp_path / "bundle"
    )
    assert len(written) == 1
    assert (
        "bundle         of the same networks already; not written again" in capsys.readouterr().out
    )


# python -m train.report


def test_the_report_of_a_run_is_written_again_from_its_data_set(tmp_path, monkeypatch, capsys):
    medmnist_file(tmp_path, "organcmnist", monkeypatch)
    place = tmp_path / "run"
    place.mkdir()
    about = {"flag": "organcmnist", "size": 28, "resample_from": None}
    (place / "results.json").write_text(json.dumps({"dataset": about, "stages": []}))
    assert report([str(place), "--data-dir", str(tmp_path)]) == 0
    page = place / "report" / "index.html"
    printed = capsys.readouterr()
    assert printed.out == f"{page}\n" and printed.err == ""
    assert (
        "OrganCMNIST · coronal · 28 pixels" in Page(page).text and (place / "results.csv").is_file()
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "run/results.json: names no data set"),
        ({"dataset": None}, "run/results.json: names no data set"),
        ({"dataset": {"flag": "pathmnist"}}, "data set 'pathmnist': unknown"),
        ({"dataset": {"flag": "organcmnist", "size": 30}}, "size 30: not published"),
        (
            {"dataset": {"flag": "organcmnist", "size": 64, "resample_from": 28}},
            "slices of 64 px: cannot be resampled from 28 px",
        ),
    ],
)
def test_a_run_that_cannot_be_reported_is_one_line(tmp_path, capsys, content, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(content))
    assert report([str(tmp_path / "run"), "--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err.startswith("train.report: error: ")
        and words in printed.err
    )
    assert printed.err.count("\n") == 1


def test_a_report_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    medmnist_file(tmp_path, "organcmnist", monkeypatch)
    (tmp_path / "results.json").write_text(json.dumps({"dataset": {"flag": "organcmnist"}}))
    monkeypatch.setattr("train.report.__main__.write_report", full)
    assert report([str(tmp_path), "--data-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"train.report: error: {tmp_path}: No space left on device\n"


def test_the_report_needs_a_run(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report"])
    with pytest.raises(SystemExit) as ended:
        report()
    assert ended.value.code == 2 and "RUN_DIR" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("train.report.__main__", ["/nowhere"], "train.report: error: /nowhere: no results.json"),
        ("train.all", ["--stages", "nope"], "train: error: --stages: unknown stage 'nope'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_python_m_runs_the_command_and_ends_with_its_exit_code(
    monkeypatch, capsys, module, arguments, words
):
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(words)


def test_the_options_of_python_have_the_commands_defaults():
    assert TrainOptions() == command.parse_arguments([])


def test_a_configuration_is_no_smoke_run_and_downloads_its_weights_unless_told():
    config = TrainConfig(seed=1, batch_size=2, max_epochs=3, weights="none")
    assert (config.smoke, config.weights_dir, config.amp) == (False, None, "auto")


@pytest.mark.parametrize(("augmented", "shown"), [(True, "yes"), (False, "no")])
def test_a_recipe_of_the_reference_study_says_whether_it_augments(augmented, shown):
    assert ReferenceRecipe(augmented=augmented).augmentation == shown
