"""Numbers, options and keys that the docs state, each read from its page and held against what the code does.

Read from the page, so that neither can change without the other.
"""

import inspect
import json
import re
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ROOT, child_environment, needs_default

from organ_infer import OrganClassifier, plausibility
from organ_infer.bundle import manifest as manifest_module
from organ_infer.bundle.files import packaged_bundle, read_manifest
from organ_infer.bundle.golden import COUNT, golden_slices
from organ_infer.bundle.precision import PRECISIONS
from organ_infer.cli.formats import PLAUSIBILITY_COLUMNS
from organ_infer.engine import cuda, cuda_thread, gpus
from organ_infer.engine.cuda_errors import _ADVICE, advice, describe
from organ_infer.engine.devices import parse_device
from organ_infer.images import dicom, pillow, registry
from organ_infer.images.registry import SUFFIXES
from organ_infer.images.types import FILE_LIMIT, PIXEL_LIMIT, Limits

FORMATS, CHECK, CUDA, COMMAND, BUNDLE_FORMAT, RESULTS_FORMAT = (
    (ROOT / "docs" / f"{page}.md").read_text()
    for page in (
        "guides/formats",
        "reference/check",
        "deploy/cuda",
        "reference/command",
        "reference/bundle_format",
        "reference/results_format",
    )
)


def stated(page, pattern):
    """The only match of a pattern with one group in a page, its lines joined."""
    (found,) = re.findall(pattern, " ".join(page.split()))
    return found


def number(page, pattern):
    return float(stated(page, pattern).replace(",", ""))


def rows(page, heading):
    """The cells of the first table under a heading, without its head."""
    table = re.search(rf"^#+ {heading}\n.*?^(\|.*?)^(?!\|)", page, re.S | re.M)[1]
    return [
        [cell.strip() for cell in line.strip()[1:-1].split("|")] for line in table.splitlines()[2:]
    ]


# docs/guides/formats.md


def test_the_plausibility_checks():
    assert (
        number(FORMATS, r"both sides of (\d+) pixels or more")
        == plausibility.WHOLE_SLICE_SIDE
        == 400
    )
    assert number(FORMATS, r"DICOM: both sides of (\d+) mm") == plausibility.WHOLE_SLICE_FIELD
    assert number(FORMATS, r"or one of (\d+) mm or more") == plausibility.WHOLE_SLICE_LENGTH
    assert number(FORMATS, r"apart by (\d+) of 255 or more on average") == pillow.CHROMA == 10
    assert number(FORMATS, r"brightest pixel under (\d+) %") / 100 == plausibility.MIN_SPAN == 0.25
    assert (
        number(FORMATS, r"(\d+) % or more of the pixels black or white") / 100
        == plausibility.CLIPPED_LIMIT
    )
    assert (
        number(FORMATS, r"(\d+) % or more of the outermost pixels") / 100
        == plausibility.BLACK_BORDER_LIMIT
    )
    assert plausibility.CLIPPED_LIMIT == plausibility.BLACK_BORDER_LIMIT == 0.9
    within = number(FORMATS, r"black or white \(within (\d+) %\)") / 100
    assert within == plausibility.BLACK == 0.02 and 1 - within == plausibility.WHITE


def test_the_angle_of_an_oblique_slice():
    assert number(FORMATS, r"more than (\d+) degrees off") == 25
    assert np.degrees(np.arccos(dicom.MIN_COSINE)) == pytest.approx(25, abs=1e-9)


def test_the_limits():
    table = {name: default for name, default, *_ in rows(FORMATS, "Limits")}
    pixels, size = (int(table[name].replace(",", "")) for name in list(table)[:2])
    assert (
        (pixels, size)
        == (PIXEL_LIMIT, FILE_LIMIT)
        == tuple(Limits())[:2]
        == (89_478_485, 268_435_456)
    )
    options = inspect.signature(OrganClassifier.predict_paths).parameters
    assert (options["pixel_limit"].default, options["file_limit"].default) == (pixels, size)
    assert table["pixels per side"] == "65,535"  # test_classifier.py tries both sides of it
    # Pillow refuses from twice its own limit on
    assert number(FORMATS, r"Pillow's own limit of ([\d,]+) pixels") == 2 * PIXEL_LIMIT


@needs_default
def test_the_window_of_the_packaged_model():
    level, width = re.search(r"level (\d+), width\s+(\d+)", FORMATS).groups()
    assert (
        read_manifest(packaged_bundle()).input.window == (float(level), float(width)) == (25, 450)
    )


# docs/reference/check.md


def test_the_known_answers_and_what_is_allowed():
    assert (
        stated(CHECK, r"(\w+) synthetic slices") == "Sixteen"
        and len(golden_slices()) == COUNT == 16
    )
    low, high = map(int, re.search(r"of (\d+) to (\d+) pixels per side", CHECK).groups())
    sides = {side for piece in golden_slices() for side in piece.shape}
    assert (low, high) == (min(sides), max(sides)) == (28, 64)
    assert {piece.dtype.itemsize * 8 for piece in golden_slices()} == {8, 16}
    allowed = {
        name.replace("float32", "fp32"): float(most)
        for name, most, _ in rows(CHECK, "The known answers")
    }
    tolerances = {row.name: row.tolerance for row in PRECISIONS}
    assert allowed == tolerances == {"fp32": 0.001, "int8": 0.02, "fp16": 0.02}


def test_how_long_nvidia_smi_is_waited_for():
    assert number(CHECK, r"\((\d+) seconds at most\)") == gpus.SECONDS == 10


def test_what_is_taken_from_a_directory():
    suffixes, content, _ = rows(FORMATS, "Files of a directory")
    assert tuple(re.findall(r"`(\.\w+)`", suffixes[1])) == SUFFIXES
    short = {row.title for row in registry.FORMATS if len(row.signatures[0][1]) <= 2}
    assert short == {"BMP", "PNM"} and "all formats but `.npz`, BMP and PNM" in content[1]


# docs/reference/command.md


def test_the_options_of_the_command():
    """In both directions; --help documents itself."""
    cells = [
        row[0]
        for heading in ("Inputs", "Model", "Output", "Evaluation")
        for row in rows(COMMAND, heading)
    ]
    stated_options = set(re.findall(r"--[a-z-]+", " ".join(cells)))
    done = subprocess.run(
        [sys.executable, "-m", "organ_infer", "--help"],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=True,
    )
    offered = set(re.findall(r"^  (?:-\w(?: [A-Z]+)?, )?(--[a-z-]+)", done.stdout, re.M))
    assert stated_options == offered - {"--help"} and len(offered) > 15


# docs/reference/bundle_format.md


def keys(page, heading):
    return [name for cell, *_ in rows(page, heading) for name in re.findall(r"`(\w+)`", cell)]


@needs_default
def test_the_keys_of_a_manifest():
    manifest = json.loads(read_manifest(packaged_bundle()).to_json())
    listed, optional = keys(BUNDLE_FORMAT, "manifest.json"), manifest_module.OPTIONAL
    assert [key for key in listed if key in manifest or key not in optional] == list(manifest)
    assert {*listed} >= optional == {"plausibility", "fast"}
    assert keys(BUNDLE_FORMAT, "task") == list(manifest["task"])
    assert keys(BUNDLE_FORMAT, "input") == list(manifest["input"])
    assert keys(BUNDLE_FORMAT, "members and alternatives") == list(manifest["members"][0])


def test_the_limits_of_a_manifest():
    assert stated(BUNDLE_FORMAT, r"at most (\d+ MiB) each") == "1 MiB"
    assert manifest_module.MANIFEST_LIMIT == manifest_module.CARD_LIMIT == 1 << 20
    assert number(BUNDLE_FORMAT, r"`bytes` \| 1 to ([\d,]+)") == manifest_module.GRAPH_LIMIT
    assert number(BUNDLE_FORMAT, r"2 to ([\d,]+) different names") == manifest_module.CLASS_LIMIT


# docs/reference/results_format.md


@needs_default
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_the_columns_of_the_rows(form):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "organ_infer",
            "--quiet",
            "--format",
            form,
            *(["--min-plausibility", "1e-9"] if form == "csv" else []),
            ROOT / "examples" / "liver-1.png",
        ],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=True,
    )
    with OrganClassifier(device="cpu") as classifier:
        classes = list(classifier.classes)
        has_plausibility = classifier.manifest.plausibility is not None
    if form == "csv":
        # the last two, of models that know when not to answer
        *columns, plausible, oriented = keys(RESULTS_FORMAT, "csv")
        assert [plausible, oriented] == list(PLAUSIBILITY_COLUMNS)
        more = [plausible, oriented] if has_plausibility else []
        assert [*columns, *classes, *more] == done.stdout.splitlines()[0].split(",")
    else:
        section = RESULTS_FORMAT.partition("### jsonl")[2].partition("## Ray")[0]
        shown = json.loads(re.search(r"^\{.*\}$", section, re.M)[0])
        assert list(shown) == [*json.loads(done.stdout), "top"]


# docs/deploy/cuda.md


def test_the_device_names():
    names = {name for cell, _ in rows(CUDA, "Devices") for name in re.findall(r"`([^`]+)`", cell)}
    assert names == {"auto", "cpu", "cuda", "cuda:0", "cuda:N"}
    for name in names - {"cuda:N"}:
        assert parse_device(name) == (name.partition(":")[0], 0)
    for number in (1, 9, 10, 99, 100, 999):
        assert parse_device(f"cuda:{number}") == ("cuda", number)
    for name in ("cuda:N", "cuda:1000", "cuda:00", "cuda:+1", "Auto", "cpu,cuda", None, 0):
        with pytest.raises(ValueError, match=re.escape(f"cuda or cuda:N, found {name!r}")):
            parse_device(name)


def test_the_fixed_batch_sizes():
    *first, last = re.findall(r"\d+", stated(CUDA, r"padded to ([\d, or]+) slices"))
    assert tuple(map(int, [*first, last])) == cuda.BATCHES == (1, 4, 16, 64, 256)
    assert number(CUDA, r"Larger batches run in pieces of (\d+)") == cuda.BATCHES[-1]


def test_the_options_of_onnxruntime():
    table = {name.strip("`"): value for name, value, _ in rows(CUDA, "Options of onnxruntime")}
    fixed = {
        name: value.strip("`") for name, value in table.items() if re.fullmatch("`[^`]+`", value)
    }
    assert fixed == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "use_tf32": "0",
    }
    assert cuda.provider_options(False, 3) == fixed | {"device_id": "3"}
    assert cuda.provider_options(True) == fixed | {"device_id": "0", "enable_cuda_graph": "1"}
    assert table.keys() == cuda.provider_options(True).keys()
    assert table["enable_cuda_graph"].startswith("`1`, unless `cuda_graphs=False`")


def test_the_harmless_operators():
    listed = stated(CUDA, r"the few numbers of an answer into probabilities: ([^.]+)\.")
    assert set(re.findall(r"`(\w+)`", listed)) == cuda.HARMLESS_OPERATORS


def test_the_name_of_the_thread():
    thread = cuda_thread.call(threading.current_thread)
    assert thread.name == stated(CUDA, r"One thread per process, `(\w+)`")


ERRORS = rows(CUDA, "Errors")


def failures_of(cell):
    """Every failure that a cell of the table names, as onnxruntime would write it."""
    names = re.findall(r"`([^`]+)`", cell)
    texts, library = [], "CUDA"
    for i, name in enumerate(names):
        if found := re.fullmatch(r"(\w+) failure (\d+)", name):
            library, name = found.groups()
        if name.isdigit():
            first = int(names[i - 1]) + 1 if f"`{names[i - 1]}` to `{name}`" in cell else int(name)
            texts += [f"{library} failure {code}: text" for code in range(first, int(name) + 1)]
        else:
            texts.append(f"something {name} something")
    return texts


# What the advice of each row has to name, in the order of the table.
NAMED = (
    ["update the driver", "pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'"],
    ["nvidia-smi", "CUDA_VISIBLE_DEVICES"],
    ["counts from 0", "visible"],
    ["another onnxruntime-gpu", "update the driver", "cpu"],
    ["smaller batch size", "end other processes"],
    ["multiprocessing's 'spawn'"],
    ["restart the machine after a driver update", "LD_LIBRARY_PATH"],
    ["end it", "nvidia-smi -c DEFAULT"],
    ["start it again"],
)


def test_every_failure_of_the_table_gets_its_advice(monkeypatch):
    monkeypatch.setattr("organ_infer.engine.cuda_errors.driver_version", lambda: None)
    assert len(ERRORS) == len(NAMED) + 1 and len(_ADVICE) == len(NAMED)
    seen = []
    for (cell, *_), words in zip(ERRORS, NAMED, strict=False):
        (text,) = {describe(text) for text in failures_of(cell)}  # one row, all of its failures
        assert text is not None and all(word in text for word in words), cell
        seen.append(text)
    assert len(set(seen)) == len(NAMED)


def test_the_codes_of_the_table_are_all_that_are_known():
    """And no code between two of them: 701 and 713 have no advice."""
    stated_codes = {
        int(code)
        for cell, *_ in ERRORS
        for text in failures_of(cell)
        for code in re.findall(r"^CUDA failure (\d+)", text)
    }
    assert {code for code in range(1000) if describe(f"CUDA failure {code}: text")} == stated_codes
    assert {714, 715, 716, 717, 718, 719, 720} < stated_codes


def test_other_failures_point_to_nvidia_smi_and_to_the_extra(monkeypatch):
    monkeypatch.setattr("organ_infer.engine.cuda_errors.both_wheels_installed", lambda: False)
    assert ERRORS[-1][0] == "others" and "nvidia-smi" in ERRORS[-1][2] and "`gpu`" in ERRORS[-1][2]
    assert "nvidia-smi" in advice("other") and "organ-infer[gpu]" in advice("other")


# docs/reference/results_format.md, files of a training run


def first_cells(before):
    """The names in the first cells of the first table after a text of the page."""
    table = RESULTS_FORMAT.partition(before)[2].partition("|---|---|\n")[2].partition("\n\n")[0]
    return [
        name for line in table.splitlines() for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]


def test_the_columns_of_results_csv():
    from train.report.comparison import COLUMNS

    assert keys(RESULTS_FORMAT, "results.csv") == list(COLUMNS)


def test_the_columns_of_history_csv():
    from train.record import HISTORY_COLUMNS

    (line,) = re.findall(
        r"^\| `STAGE/history.csv` \| one line per epoch: (.*) \|$", RESULTS_FORMAT, re.M
    )
    assert re.findall(r"`(\w+)`", line) == list(HISTORY_COLUMNS)


def test_the_keys_of_results_json_and_robustness_json():
    from train.results_format import Results, RobustnessEntry, RobustnessFile, StageResult

    def fields(cls):
        return set(cls.__dataclass_fields__)

    assert set(first_cells("### results.json")) == fields(Results)
    assert set(first_cells("A row of `stages`:")) == fields(StageResult)
    about = RESULTS_FORMAT.partition("### robustness.json\n\n")[2].partition("\n\n")[0]
    assert fields(RobustnessFile) <= set(re.findall(r"`(\w+)`", about))
    assert set(first_cells("An entry of `stages`:")) == fields(RobustnessEntry)
