"""Arguments of the command: each option and its field, its range, and which options exclude each other."""

import sys

import pytest

from organ_infer.cli import arguments
from organ_infer.cli.arguments import BUNDLE_VARIABLE, Options, UsageError, dataset_name, parse
from organ_infer.images.types import FILE_LIMIT, PIXEL_LIMIT


def test_what_is_not_asked_for_is_off(monkeypatch):
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    assert parse(["a", "b"]) == Options(
        paths=["a", "b"], files_from=None, boxes=None, null=False, recursive=False, bundle=None, device="auto",
        threads=None, batch_size=64, orientation=None, tta=False, fast=False, cuda_graphs=True, pixel_limit=None, file_limit=None, any_modality=False,
        format="text", output=None, force=False, top=None, organs=False, min_probability=None, min_plausibility=None, strict=False,
        report=None, explain=False, labels=None, labels_from_folders=False, group_by=None, metrics=None, check=False, quiet=False,
    )  # fmt: skip


def test_each_option_sets_its_own_field_and_no_other():
    plain = parse(["x"])
    for words, changed in {
        "--files-from list": {"files_from": "list"},
        "-f JSONL": {"format": "jsonl"},
        "--files-from - -0": {"files_from": "-", "null": True},
        "--files-from - --null": {"files_from": "-", "null": True},
        "-r": {"recursive": True},
        "--recursive": {"recursive": True},
        "--bundle b": {"bundle": "b"},
        "--device cuda:3": {"device": "cuda:3"},
        "--threads 3": {"threads": 3},
        "--batch-size 9": {"batch_size": 9},
        "--orientation PL": {"orientation": "PL"},
        "--tta": {"tta": True},
        "--fast": {"fast": True},
        "--no-cuda-graphs": {"cuda_graphs": False},
        "--pixel-limit 8": {"pixel_limit": 8},
        "--file-limit 7": {"file_limit": 7},
        "--format csv": {"format": "csv"},
        "--output o": {"output": "o"},
        "--top 2": {"top": 2},
        "--organs": {"organs": True},
        "--min-probability .25": {"min_probability": 0.25},
        "-b b": {"bundle": "b"},
        "-f csv": {"format": "csv"},
        "-o o": {"output": "o"},
        "-q": {"quiet": True},
        "--force": {"force": True},
        "--strict": {"strict": True},
        "--report r": {"report": "r"},
        "--labels l": {"labels": "l"},
        "--labels-from-folders": {"labels_from_folders": True},
        "--labels l --group-by ^(p[0-9]+)": {"labels": "l", "group_by": "^(p[0-9]+)"},
        "--labels l --metrics m": {"labels": "l", "metrics": "m"},
        "--labels-from-folders --metrics m": {"labels_from_folders": True, "metrics": "m"},
        "--quiet": {"quiet": True},
    }.items():
        assert parse(["x", *words.split()]) == plain._replace(**changed), words
    assert parse(["--check"]) == plain._replace(paths=[], check=True)
    assert parse(["--boxes", "b.csv"]) == plain._replace(paths=[], boxes="b.csv")


# The published ranges: docs/reference/errors.md, docs/guides/formats.md and `organ-infer --help`.
RANGES = {
    "threads": 1024,
    "batch-size": 4096,
    "pixel-limit": 65_535**2,
    "file-limit": 2**50,
    "top": 1000,
}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_is_taken_from_1_to_its_most(name):
    most, field = RANGES[name], name.replace("-", "_")
    for value in (1, 2, most - 1, most):
        assert getattr(parse([f"--{name}={value}", "x"]), field) == value
        assert getattr(parse([f"--{name}={value:012}", "x"]), field) == value
    for text in (
        "0",
        "-1",
        str(most + 1),
        "1.0",
        "1e3",
        "",
        " 1",
        "+1",
        "1_0",
        "٣",
        "²",
        "0" * 17,
        "9" * 5000,
    ):
        with pytest.raises(UsageError, match=rf"expected a whole number from 1 to {most:,}, found"):
            parse([f"--{name}={text}", "x"])
    assert getattr(parse([f"--{name}=" + "0" * 15 + "1", "x"]), field) == 1  # 16 digits


def test_a_least_probability_is_above_0_and_at_most_1():
    for text, value in {"1": 1.0, "1e-300": 1e-300, "0.5": 0.5, "100e-2": 1.0}.items():
        assert parse([f"--min-probability={text}", "x"]).min_probability == value
    for text in ("0", "-0.1", "1.0000001", "2", "nan", "inf", "x", "", "٠.٥", "1e-400"):
        with pytest.raises(UsageError, match="expected a number above 0 and at most 1"):
            parse([f"--min-probability={text}", "x"])


@pytest.mark.parametrize(
    "given, words",
    [
        ("", "no image given; name files, directories or patterns, or use --files-from"),
        ("--check x", "--check: takes no images and no --output"),
        ("--check --files-from l", "--check: takes no images and no --output"),
        ("--check --output o", "--check: takes no images and no --output"),
        ("-0 x", "-0: requires --files-from"),
        ("--bundle= x", "--bundle: the value is empty"),
        ("--output= x", "--output: the value is empty"),
        ("--files-from= x", "--files-from: the value is empty"),
        ("--files x", "unrecognized arguments: --files"),
        ("--report= x", "--report: the value is empty"),
        ("--labels= x", "--labels: the value is empty"),
        ("--labels l --metrics= x", "--metrics: the value is empty"),
        ("--check --report r", "--check: takes no images, so no labels and no --report"),
        ("--check --labels l", "--check: takes no images, so no labels and no --report"),
        ("--check --labels-from-folders", "--check: takes no images, so no labels and no --report"),
        ("--labels l --labels-from-folders x", "--labels: excludes --labels-from-folders"),
        ("--metrics m x", "--metrics: requires --labels or --labels-from-folders"),
        ("--group-by p x", "--group-by: requires --labels or --labels-from-folders"),
        ("--labels l --group-by ( x", "expected a regular expression, found '\\('"),
        ("--device tpu x", "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(UsageError, match=words) as told:
        parse(given.split())
    assert str(told.value).endswith(" (see organ-infer --help)")


@pytest.mark.parametrize(
    ("suffix", "form"),
    {
        ".csv": "csv", ".CSV": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".txt": "text",
        ".out": "text", "": "text", ".csv.partial": "text", "/.csv": "text",
    }.items(),
)  # fmt: skip
def test_the_suffix_of_the_output_chooses_the_format_unless_one_is_named(suffix, form):
    assert parse(["x", "--output", f"a/rows{suffix}"]).format == form
    for name in ("text", "csv", "jsonl", "json", "parquet"):
        for spelled in (name, name.upper(), name.title()):
            assert parse(["x", "--format", spelled, "--output", f"rows{suffix}"]).format == name


@pytest.mark.parametrize("suffix", [".arrow", ".XLSX", ".tsv", ".gz", ".zip"])
def test_a_suffix_of_a_format_that_is_not_written_is_refused_unless_one_is_named(suffix):
    with pytest.raises(UsageError) as told:
        parse(["x", "--output", f"rows.csv{suffix}"])
    assert str(told.value) == (
        f"--output 'rows.csv{suffix}': {suffix.lower()} is not written; use .csv, .jsonl, .json, .parquet or .txt,"
        " or pass --format (see organ-infer --help)"
    )
    assert parse(["x", "--format", "csv", "--output", f"rows{suffix}"]).format == "csv"


@pytest.mark.parametrize(
    ("given", "option"),
    {
        "--formt csv": "--format",
        "--Format=csv": "--format",
        "--out x": "--output",
        "--batchsize 3": "--batch-size",
        "--batch_size=3": "--batch-size",
        "--quite": "--quiet",
        "--recursiv": "--recursive",
        "--min-prob=.5": "--min-probability",
        "-output x": "--output",
        "-format=csv": "--format",
        "-quiet": "--quiet",
    }.items(),
)
def test_a_misspelled_option_gets_a_suggestion(given, option):
    with pytest.raises(UsageError) as told:
        parse(["x", *given.split()])
    start = f"unrecognized arguments: {given.split()[0]}"
    assert str(told.value).startswith(start)
    assert str(told.value).endswith(f"; did you mean {option}? (see organ-infer --help)")


@pytest.mark.parametrize("given", ["--nope", "--xyz=format", "--x"])
def test_an_option_like_no_other_gets_none(given):
    with pytest.raises(UsageError, match=rf"^unrecognized arguments: {given} \(see"):
        parse(["x", given])


def test_what_begins_with_a_short_option_is_still_that_option():
    assert parse(["x", "-oout"]).output == "out"
    assert parse(["x", "-qr"]) == parse(["x", "--quiet", "--recursive"])
    assert parse(["x", "--", "-output"]).paths == ["x", "-output"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_the_completion_of_a_shell_names_every_option(shell, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed")
    with pytest.raises(SystemExit) as ended:
        parse(["--print-completion", shell])
    text = capsys.readouterr().out
    assert not ended.value.code
    for name in ("--files-from", "--output", "--print-completion", "--strict"):
        assert name.lstrip("-") in text
    assert "jsonl" in text


def test_without_shtab_completion_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(UsageError, match="shtab is not installed; pip install"):
        parse(["--print-completion", "bash"])
    with pytest.raises(UsageError, match="invalid choice: 'fish'"):
        parse(["--print-completion", "fish"])


def test_a_list_needs_no_path_and_two_dashes_begin_the_paths():
    assert parse(["--files-from", "-"]).paths == []
    assert parse(["a", "--", "-0", "--quiet", "--"]).paths == ["a", "-0", "--quiet", "--"]
    assert parse(["--quiet", "a", "--tta", "b"]).paths == ["a", "b"]


def test_the_option_beats_the_variable_and_an_empty_variable_is_none(monkeypatch):
    for variable, words, bundle in [("v", [], "v"), ("v", ["--bundle", "o"], "o"), ("", [], None)]:
        monkeypatch.setenv(BUNDLE_VARIABLE, variable)
        assert parse(["x", *words]).bundle == bundle


def test_the_limits_in_the_help_are_those_that_hold(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert (
        not ended.value.code
        and f"(default: {PIXEL_LIMIT:,})" in text
        and f"(default: {FILE_LIMIT:,})" in text
    )
    assert (PIXEL_LIMIT, FILE_LIMIT) == (89_478_485, 268_435_456)  # docs/guides/formats.md, Limits
    assert "Exit codes: 0 all images classified, 1 some images failed, 2 error," in text
    for name in Options._fields:
        option = {"paths": "PATH", "cuda_graphs": "--no-cuda-graphs"}.get(
            name, f"--{name.replace('_', '-')}"
        )
        assert option in text
    with pytest.raises(SystemExit) as ended:
        parse(["--version"])
    assert not ended.value.code and capsys.readouterr().out.startswith("organ-infer ")


def test_the_help_names_the_packaged_model_or_says_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "__file__", str(tmp_path / "cli" / "arguments.py"))
    none = "This installation has no packaged model; use --bundle DIR."
    assert arguments._packaged_model_text() == none
    (tmp_path / "default").mkdir()
    manifest = tmp_path / "default" / "manifest.json"
    for text in (
        "",
        "[]",
        "{}",
        '{"name": "n", "task": 3}',
        '{"name": "n", "task": {"view": "axial"}}',
    ):
        manifest.write_text(text)
        assert arguments._packaged_model_text() == none
    manifest.write_text('{"name": "50% n", "task": {"view": "coronal", "dataset": "organcmnist"}}')
    expected = "The packaged model is 50%% n, for coronal slices, trained on OrganCMNIST."
    assert arguments._packaged_model_text() == expected  # argparse takes %% for %
    names = {
        "organamnist": "OrganAMNIST",
        "organcmnist": "OrganCMNIST",
        "organsmnist": "OrganSMNIST",
        "x": "x",
    }
    assert {name: dataset_name(name) for name in names} == names
