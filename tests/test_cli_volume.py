"""organ-infer volume: its arguments, rows, messages and exit codes, with a fake reader of scans and masks."""

import csv
import io
import json
import os
import re
import signal
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from conftest import CLASSES, constant_graph, write_bundle
from support.command_results import RAMP
from support.dict_mask import DictMask, block
from support.image_files import saved

from organ_infer import ImageError, InputError, OrganClassifier
from organ_infer.cli import main, output, progress, volume
from organ_infer.cli.arguments import BUNDLE_VARIABLE, UsageError
from organ_infer.cli.subcommands import after_word
from organ_infer.cli.summary import organ_summary
from organ_infer.cli.volume_arguments import VolumeOptions, parse_volume
from organ_infer.cli.volume_rows import TextFormat
from organ_infer.plausibility import without_plausibility
from organ_infer.volumes.types import Volume

SHAPE = (40, 40, 30)
HU = np.random.default_rng(2).integers(-200, 300, SHAPE, np.int16)
ORGANS = {
    "liver": block(SHAPE, (5, 30), (5, 25), (5, 15)),
    "kidney-left": block(SHAPE, (0, 9), (20, 35), (20, 25)),
}


@pytest.fixture(scope="module")
def kidney_bundle(tmp_path_factory):
    """A model that takes everything for a right kidney, with a probability of 0.75."""
    graph = constant_graph({"kidney-right": 0.75, "liver": 0.25})
    return str(write_bundle(tmp_path_factory.mktemp("bundle") / "kidney", {"a.onnx": graph}))


@pytest.fixture
def reading(monkeypatch):
    """A fake of the module that reads scans and masks. Its attributes can be set."""
    module = ModuleType("organ_infer.volumes.reading")
    module.volume = Volume(HU, np.diag([1.0, 1.0, 2.5, 1.0]), "scan.nii.gz")
    module.mask = DictMask(ORGANS, structures={"liver": ("5",)})
    module.asked, module.resampled = [], []

    def open_volume(path, *, series=None):
        module.asked.append(path if series is None else (path, series))
        return module.volume

    def open_mask(path, *, like, labels="totalsegmentator", resample=False):
        assert like is module.volume
        module.resampled.append(resample)
        module.asked.append((path, labels))
        return module.mask

    module.open_volume, module.open_mask = open_volume, open_mask
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def run(reading, kidney_bundle, capfd):
    """Runs the command. Returns the exit code, standard output and standard error."""

    def run(*arguments, scan="scan.nii.gz", mask="mask.nii.gz"):
        code = main(["volume", scan, "--mask", mask, "--bundle", kidney_bundle, *arguments])
        return code, *capfd.readouterr()

    return run


# Rows.


def test_text_has_a_line_per_organ_and_an_indented_line_per_slice(run):
    code, out, err = run()
    assert code == 0
    assert out.splitlines() == [
        "liver         kidney-right 0.750  differs       6 slices  scan.nii.gz",
        "  axial    7     17.5 mm  kidney-right 0.750",
        "  axial    8     20.0 mm  kidney-right 0.750",
        "  axial    9     22.5 mm  kidney-right 0.750",
        "  axial   10     25.0 mm  kidney-right 0.750",
        "  axial   11     27.5 mm  kidney-right 0.750",
        "  axial   12     30.0 mm  kidney-right 0.750",
        "kidney-left   kidney-right 0.750  other side    3 slices  scan.nii.gz",
        "  axial   21     52.5 mm  kidney-right 0.750",
        "  axial   22     55.0 mm  kidney-right 0.750",
        "  axial   23     57.5 mm  kidney-right 0.750",
    ]
    assert err.splitlines() == [
        "organ-infer: warning: kidney-left: the structure touches the border of the volume; part of the"
        " organ may be missing"
    ]


def test_a_single_slice_is_counted_in_the_singular(run, reading):
    reading.mask = DictMask({"liver": block(SHAPE, (5, 30), (5, 25), (5, 6))})
    assert run()[1].startswith("liver         kidney-right 0.750  differs       1 slice   scan")


def test_text_says_that_an_organ_agrees(run, reading):
    reading.mask = DictMask({"kidney-right": ORGANS["liver"]})
    assert run()[1].startswith("kidney-right  kidney-right 0.750  agrees        6 slices")


def test_csv_has_one_table_of_organs_and_slices(run):
    code, out, err = run("--format", "csv")
    assert (code, err) == (0, "")
    table = list(csv.DictReader(io.StringIO(out)))
    assert out.splitlines()[0] == (
        "row,scan,structure,expected,view,index,position,label,probability,slices,organ_label,"
        "organ_probability,agrees,only_side_differs,warnings," + ",".join(CLASSES)
    )
    assert [row["row"] for row in table] == ["organ", *["slice"] * 6, "organ", *["slice"] * 3]
    answers = dict.fromkeys(CLASSES, "")
    organ, first, kidney = table[0], table[1], table[7]
    for row in (organ, first, kidney):
        assert float(row["kidney-right"]) == pytest.approx(0.75, abs=1e-6)
        assert float(row["liver"]) == pytest.approx(0.25, abs=1e-6)
        for name in ("probability", "organ_probability"):
            row[name] = row[name] and f"{float(row[name]):.3f}"
        row.update(answers)
    same = {"scan": "scan.nii.gz", "structure": "5", "expected": "liver", "view": "axial"}
    no_slice = dict.fromkeys(["index", "position", "label", "probability"], "")
    no_organ = dict.fromkeys(
        ["slices", "organ_label", "organ_probability", "agrees", "only_side_differs"], ""
    )
    said = {"organ_label": "kidney-right", "organ_probability": "0.750"}
    assert organ == {
        **{"row": "organ", "slices": "6", "agrees": "false", "only_side_differs": "false"},
        **{"warnings": ""},
        **(same | no_slice | said | answers),
    }
    assert first == {
        **{"row": "slice", "index": "7", "position": "17.5", "label": "kidney-right"},
        **{"probability": "0.750", "warnings": ""},
        **(same | no_organ | answers),
    }
    assert (kidney["agrees"], kidney["only_side_differs"]) == ("false", "true")
    assert "touches the border" in kidney["warnings"] == table[8]["warnings"]
    assert kidney["structure"] == "kidney-left"


def test_jsonl_has_an_object_per_organ_and_slice(run):
    code, out, _ = run("--format", "jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 11
    organ, first = rows[:2]
    for row in (organ, first):
        probabilities = row.pop("probabilities")
        assert list(probabilities) == CLASSES
        assert probabilities["kidney-right"] == pytest.approx(0.75, abs=1e-6)
    assert organ.pop("organ_probability") == pytest.approx(0.75, abs=1e-6)
    assert first.pop("probability") == pytest.approx(0.75, abs=1e-6)
    same = {"scan": "scan.nii.gz", "structure": ["5"], "expected": "liver", "view": "axial"}
    assert organ == {
        **{"row": "organ", "slices": 6, "organ_label": "kidney-right"},
        **{"agrees": False, "only_side_differs": False, "warnings": []},
        **same,
    }
    assert first == {
        **{"row": "slice", "index": 7, "position": 17.5, "label": "kidney-right"},
        **{"warnings": []},
        **same,
    }
    assert rows[7]["only_side_differs"] is True and len(rows[7]["warnings"]) == 1


@pytest.mark.parametrize("format_", ["text", "csv", "jsonl"])
def test_output_gets_the_rows_and_names_are_escaped(run, tmp_path, format_):
    scan = "a\udce9\nb.nii"
    _, shown, _ = run("--format", format_, scan=scan)
    code, out, _ = run("--format", format_, "--output", str(tmp_path / "o"), scan=scan)
    assert (code, out) == (0, "")
    assert (tmp_path / "o").read_text() == shown
    names = {"text": r"a\xe9\x0ab.nii", "csv": "a\\xe9\nb.nii", "jsonl": r"a\\xe9\nb.nii"}
    assert names[format_] in shown


def test_positions_have_three_decimal_places(run, reading):
    reading.volume = Volume(HU, np.diag([1.0, 1.0, 1.23456789, 1.0]), "s")
    reading.mask = DictMask({"liver": ORGANS["liver"]})
    # slice 7
    assert ",7,8.642," in run("--format", "csv")[1]
    assert json.loads(run("--format", "jsonl")[1].splitlines()[1])["position"] == 8.642


def test_several_structures_of_a_class_are_listed(run, reading):
    reading.mask = DictMask({"liver": ORGANS["liver"]}, structures={"liver": ("13", "14")})
    assert ",13; 14,liver," in run("--format", "csv")[1]
    assert json.loads(run("--format", "jsonl")[1].splitlines()[0])["structure"] == ["13", "14"]


# Options.


def test_margin_slices_labels_and_series_reach_their_place(run, reading, monkeypatch):
    asked = []
    original = OrganClassifier.predict_volume

    def predict_volume(self, volume, mask, **options):
        on_progress = options.pop("on_progress")
        asked.append(options)
        return original(self, volume, mask, on_progress=on_progress, **options)

    monkeypatch.setattr(OrganClassifier, "predict_volume", predict_volume)
    assert run()[0] == 0
    assert run("--margin", "2.5", "--slices", "all", "--labels", "amos22", "--series", "3")[0] == 0
    assert asked == [
        {"margin_mm": None, "slices": "middle"},
        {"margin_mm": 2.5, "slices": "all"},
    ]
    assert reading.asked == [
        *("scan.nii.gz", ("mask.nii.gz", "totalsegmentator")),
        *(("scan.nii.gz", "3"), ("mask.nii.gz", "amos22")),
    ]


def test_what_is_not_asked_for_has_its_default(monkeypatch):
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    plain = parse_volume(["s", "--mask", "m"])
    assert plain == VolumeOptions(
        scan="s", mask="m", boxes=None, box_units="voxels", resample_mask=False, labels="totalsegmentator", series=None,
        margin=None, slices="middle", bundle=None, device="auto", threads=None, batch_size=64, tta=False, fast=False, cuda_graphs=True, format="text", output=None, force=False, quiet=False,
    )  # fmt: skip
    for words, changed in {
        "--resample-mask": {"resample_mask": True},
        "--labels l": {"labels": "l"},
        "--series 1.2.3": {"series": "1.2.3"},
        "--margin 0": {"margin": 0.0},
        "--slices all": {"slices": "all"},
        "--bundle b": {"bundle": "b"},
        "--device cpu": {"device": "cpu"},
        "--threads 2": {"threads": 2},
        "--batch-size 3": {"batch_size": 3},
        "--tta": {"tta": True},
        "--fast": {"fast": True},
        "--no-cuda-graphs": {"cuda_graphs": False},
        "--format jsonl": {"format": "jsonl"},
        "--output o": {"output": "o"},
        "--quiet": {"quiet": True},
    }.items():
        assert parse_volume(["s", "--mask", "m", *words.split()]) == plain._replace(**changed)
    boxes = plain._replace(mask=None, boxes="b.csv")
    assert parse_volume(["s", "--boxes", "b.csv"]) == boxes
    asked = parse_volume(["s", "--boxes", "b.csv", "--box-units", "mm", "--margin", "3"])
    assert asked == boxes._replace(box_units="mm", margin=3.0)
    monkeypatch.setenv(BUNDLE_VARIABLE, "/b")
    assert parse_volume(["s", "--mask", "m"]).bundle == "/b"
    assert parse_volume(["s", "--mask", "m", "--bundle", "c"]).bundle == "c"
    assert parse_volume(["--mask", "m", "--", "-s"]).scan == "-s"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], r"expected one scan, found 0; .* write \./volume"),
        (["--mask", "m"], "expected one scan, found 0"),
        (["a", "b", "--mask", "m"], "expected one scan, found 2"),
        (["a", "m"], "expected one scan, found 2; name the mask after --mask"),
        (["a"], r"--mask: missing; .* write \./volume"),
        (["a", "--mask", "m", "--boxes", "b"], "--boxes: replaces --mask"),
        (["a", "--boxes", "b", "--resample-mask"], "--resample-mask: requires --mask"),
        (["a", "--mask", "m", "--box-units", "mm"], "--box-units: requires --boxes"),
        (["a", "--boxes", "b", "--box-units", "cm"], "--box-units: invalid choice"),
        (["a", "--boxes", ""], "--boxes: the value is empty"),
        (["", "--mask", "m"], "SCAN: the value is empty"),
        (["a", "--mask", ""], "--mask: the value is empty"),
        (["a", "--mask", "m", "--labels", ""], "--labels: the value is empty"),
        (["a", "--mask", "m", "--series", ""], "--series: the value is empty"),
        (["a", "--mask", "m", "--output", ""], "--output: the value is empty"),
        (["a", "--mask", "m", "--bundle", ""], "--bundle: the value is empty"),
        (["a", "--mask", "m", "--margin", "-1"], "expected a number of mm from 0 to 1,000"),
        (["a", "--mask", "m", "--margin", "nan"], "expected a number of mm .* found 'nan'"),
        (["a", "--mask", "m", "--margin", "1001"], "expected a number of mm"),
        (["a", "--mask", "m", "--margin", "five"], "expected a number of mm"),
        (
            ["a", "--mask", "m", "--margin", "\N{ARABIC-INDIC DIGIT FIVE}"],
            "expected a number of mm",
        ),
        (["a", "--mas", "m"], "unrecognized arguments: --mas"),
        (["a", "--mask", "m", "--slices", "some"], "--slices: invalid choice"),
        (["a", "--mask", "m", "--format", "xml"], "--format: invalid choice"),
        (["a", "--mask", "m", "--threads", "0"], "expected a whole number from 1"),
        (["a", "--mask", "m", "--nope"], "unrecognized arguments: --nope"),
    ],
)
def test_wrong_arguments_are_one_line_and_2(arguments, words, capfd):
    with pytest.raises(UsageError, match=words):
        parse_volume(arguments)
    assert main(["volume", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.endswith("(see organ-infer volume --help)\n")


def test_help_shows_the_usage_and_the_main_help_names_the_command(capfd):
    assert main(["volume", "--help"]) == 0
    assert "usage: organ-infer volume SCAN --mask MASK" in capfd.readouterr().out
    assert main(["--help"]) == 0
    assert "organ-infer volume SCAN --mask MASK" in capfd.readouterr().out


def test_a_mask_is_resampled_only_if_asked_for(run, reading):
    assert run()[0] == run("--resample-mask")[0] == 0
    assert reading.resampled == [False, True]


# Boxes.


def test_boxes_take_the_place_of_the_mask(run, reading, kidney_bundle, tmp_path, capfd):
    (tmp_path / "b.csv").write_text(
        "organ,x0,y0,z0,x1,y1,z1\nliver,5,5,5,30,25,45\ncolon,1,1,1,2,2,2\n"
    )
    common = [
        "volume",
        "scan.nii.gz",
        "--boxes",
        str(tmp_path / "b.csv"),
        "--bundle",
        kidney_bundle,
    ]
    assert main([*common, "--format", "jsonl"]) == 0
    out, err = capfd.readouterr()
    organ, *slices = map(json.loads, out.splitlines())
    # 25 of 30 slices are left, of them the middle 60 %
    assert (organ["expected"], organ["structure"], len(slices)) == ("liver", ["liver"], 15)
    assert [row["index"] for row in slices] == [*range(10, 25)]
    assert err.splitlines() == [
        f"organ-infer: warning: {tmp_path}/b.csv: liver: the box reaches beyond the scan; clipped to voxels"
        " 5:30, 5:25, 5:30",
        f"organ-infer: note: {tmp_path}/b.csv: structures of no class, not classified: colon",
    ]
    assert main([*common, "--box-units", "mm"]) == 0
    # 5 to 45 mm are the voxels 2 to 18 of 2.5 mm, of them the middle ones 5 to 15
    assert capfd.readouterr().out.splitlines()[1].startswith("  axial    5     12.5 mm")
    (tmp_path / "b.csv").write_text("liver,50,5,5,60,25,45\n")
    assert main(common) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "b.csv, line 1: outside the scan of 40 x 40 x 30 voxels" in err


# Progress and the summary.


@pytest.fixture
def screen(monkeypatch):
    """Standard error is a terminal of 60 columns."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setattr(progress, "_stdout_is_pipe", lambda: False)
    monkeypatch.setattr(progress, "_columns", lambda: 60)
    monkeypatch.setattr(progress, "INTERVAL", 0)


def test_a_terminal_shows_each_stage_and_the_summary(run, screen):
    code, out, err = run("--batch-size", "4")
    assert code == 0 and out.count("slices  scan") == 2
    drawn = [text.strip() for text in err.replace("\n", "\r").split("\r") if text.strip()]
    shown = [
        re.sub(r" \d[\d,]*/s.*", "", text)
        for text in drawn
        if not text.startswith("organ-infer: w")
    ]
    assert shown[:3] == [
        "reading scan.nii.gz",
        "reading mask.nii.gz",
        "cutting crops around the organs",
    ]
    assert [text.split("] ")[-1] for text in shown[3:7]] == [f"{n}/9 slices" for n in (0, 4, 8, 9)]
    assert re.fullmatch(
        r"organ-infer: 2 organs, 9 slices: 1 other side, 1 differs; [\d.]+ s", shown[-1]
    )


def test_the_bar_is_cleared_before_the_rows(run, screen, monkeypatch):
    events = []
    original = progress.Messages.end
    monkeypatch.setattr(
        progress.Messages, "end", lambda self: (events.append(self._bar_width > 0), original(self))
    )
    monkeypatch.setattr(
        output.Writer,
        "write",
        lambda self, lines: events.append("row" if "slices" in lines else ""),
    )
    run("--quiet")
    assert True not in events
    events.clear()
    run()
    assert True in events[: events.index("row")] and True not in events[events.index("row") :]


def test_quiet_and_files_show_no_progress(run, screen, monkeypatch):
    assert run("--quiet")[2] == ""
    monkeypatch.setattr(progress, "_is_terminal", lambda: False)
    assert "reading" not in run()[2] and "organs, " not in run()[2]


def test_long_names_of_a_stage_fit_on_one_line(screen, monkeypatch, capfd):
    messages = progress.Messages()
    for columns in (60, 20, 5, 1):
        monkeypatch.setattr(progress, "_columns", lambda columns=columns: columns)
        messages.stage("reading " + "x" * 300)
        assert len(capfd.readouterr().err.lstrip("\r")) == columns - 1
        messages.end()
        capfd.readouterr()


def test_the_summary_leaves_out_what_is_0():
    def organs(*answers):
        return [
            SimpleNamespace(agrees=a == "agrees", only_side_differs=a == "side", slices=range(3))
            for a in answers
        ]

    for answers, text in {
        ("agrees",): "1 organ, 3 slices: 1 agrees; 3.2 s",
        ("agrees", "agrees", "x"): "3 organs, 9 slices: 2 agree, 1 differs; 3.2 s",
        ("x", "x", "side"): "3 organs, 9 slices: 1 other side, 2 differ; 3.2 s",
    }.items():
        assert organ_summary(organs(*answers), 3.2) == text


@pytest.mark.parametrize(
    "arguments",
    [
        "--quiet volume scan.nii.gz --mask mask.nii.gz --bundle B",
        "-q --bundle B --batch-size 7 volume scan.nii.gz --mask mask.nii.gz",
        "--bundle=B --mask mask.nii.gz -q volume scan.nii.gz",
        "--margin 5 --mask=mask.nii.gz volume --bundle B scan.nii.gz --quiet",
    ],
)
@pytest.mark.parametrize("other", [False, True])
def test_options_may_precede_the_word_volume(
    run, kidney_bundle, arguments, other, tmp_path, monkeypatch, capfd
):
    expected = run("--quiet")
    monkeypatch.chdir(tmp_path)
    if other:
        # a mask means a scan, whatever files there are
        (tmp_path / "volume").mkdir()
    words = [word.replace("B", kidney_bundle) for word in arguments.split()]
    assert (main(words), *capfd.readouterr()) == expected and expected[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--quiet volume scan.nii.gz", "--mask: missing"),
        ("--recursive volume scan.nii.gz --mask m", "unrecognized arguments: --recursive (see organ-infer volume --help)"),
    ],
)  # fmt: skip
def test_a_wrong_option_before_the_word_volume_is_one_line(
    arguments, message, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments.split()) == 2
    told = capfd.readouterr().err
    assert message in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.png", "volume"],
        ["--bundle", "volume", "a.png"],
        ["-q", "--", "volume"],
        ["-", "volume"],
        ["-f", "volume"],
    ],
)
def test_volume_elsewhere_is_a_path_or_a_value(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert after_word("volume", arguments) is None


# Other inputs of that name.


def test_an_image_and_a_directory_named_volume_are_still_classified(
    kidney_bundle, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "volume").write_bytes(saved(RAMP[..., 0]))
    common = ["--bundle", kidney_bundle]
    assert main(["./volume", *common]) == 0
    assert main([*common, "volume"]) == 0
    assert main(["--", "volume"]) == 0
    (tmp_path / "volume").unlink()
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume" / "a.png").write_bytes(saved(RAMP[..., 0]))
    assert main(["./volume", *common]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines] == [
        "./volume",
        "volume",
        "volume",
        "./volume/a.png",
    ]


# Messages and exit codes.


def test_notes_name_warnings_unmapped_structures_and_empty_classes(run, reading):
    reading.volume = Volume(HU, np.eye(4), "s", ("two slices are missing",))
    reading.mask = DictMask(
        {"liver": ORGANS["liver"], "heart": np.zeros(SHAPE, bool)},
        unmapped=("aorta", "colon"),
        warnings=("reoriented to the scan",),
    )
    code, _, err = run()
    assert code == 0
    assert err.splitlines() == [
        "organ-infer: warning: scan.nii.gz: two slices are missing",
        "organ-infer: warning: mask.nii.gz: reoriented to the scan",
        "organ-infer: note: mask.nii.gz: structures of no class, not classified: aorta, colon",
        "organ-infer: note: mask.nii.gz: classes without voxels, skipped: heart",
    ]
    code, out, err = run("--quiet")
    assert (code, err) == (0, "") and out


def test_a_long_list_of_structures_is_shortened(run, reading):
    reading.mask = DictMask(
        {"liver": ORGANS["liver"]}, unmapped=[f"structure_{i}" for i in range(500)]
    )
    _, _, err = run()
    (line,) = err.splitlines()
    names = line.partition("not classified: ")[2]
    assert 270 < len(names) <= 300 and names.startswith("structure_0, structure_1, ")
    assert names.endswith(", structure_498, structure_499")
    # no name is cut
    assert all(re.fullmatch(r"structure_\d+|\.\.\.", name) for name in names.split(", "))


def test_warnings_of_single_slices_name_the_slice(run, reading):
    hu = HU.copy()
    hu[:, :, 9] = 50
    reading.volume = Volume(hu, np.eye(4), "s")
    reading.mask = DictMask({"liver": ORGANS["liver"]})
    _, _, err = run()
    (line,) = err.splitlines()
    assert line.startswith("organ-infer: warning: liver, slice 9: implausible: pixels span 0%")


def test_a_warning_of_several_slices_is_one_line_with_their_number(run, reading):
    hu = HU.copy()
    hu[:, :, 9:11] = 50
    reading.volume = Volume(hu, np.eye(4), "s")
    reading.mask = DictMask({"liver": ORGANS["liver"]})
    _, out, err = run()
    (line,) = err.splitlines()
    slices = int(re.search(r"(\d+) slices", out).group(1))
    assert line.startswith(
        f"organ-infer: warning: liver, 2 of {slices} slices: implausible: pixels span 0%"
    )


def test_slices_of_different_plausibility_have_one_warning():
    first, second = (
        f"plausibility {value}, below 0.042: no organ crop; crop it" for value in ("0.001", "0.03")
    )
    assert without_plausibility(first) == without_plausibility(second)
    assert without_plausibility(first) == "plausibility below 0.042: no organ crop; crop it"
    assert without_plausibility("implausible: a, b") == "implausible: a, b"


@pytest.mark.parametrize("step", ["open_volume", "open_mask"])
@pytest.mark.parametrize("error", [ImageError("x.nii: damaged; copy it again"), InputError("bad")])
def test_a_scan_or_mask_that_cannot_be_read_is_one_line_and_2(
    run, reading, monkeypatch, tmp_path, step, error
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(reading, step, fail)
    code, out, err = run("--output", str(tmp_path / "o"))
    assert (code, out, err) == (2, "", f"organ-infer: error: {error}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (DictMask({}), "contains no structure of a class"),
        (DictMask({"liver": np.zeros(SHAPE, bool)}), "every structure is empty; check"),
        (DictMask({"stomach": ORGANS["liver"]}), "the model has no class 'stomach'"),
        (DictMask({"liver": np.ones((50, 50, 50), bool)}), "does not fit the volume"),
    ],
)
def test_a_mask_without_a_usable_organ_is_2(run, reading, tmp_path, mask, words):
    reading.mask = mask
    code, out, err = run("--output", str(tmp_path / "o"))
    assert (code, out) == (2, "") and words in err
    assert err.startswith("organ-infer: error: mask.nii.gz: ") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_oblique_scan_and_a_missing_bundle_are_2(run, reading, tmp_path, capfd):
    turned = np.eye(4)
    turned[:2, :2] = [[0.8, -0.6], [0.6, 0.8]]
    reading.volume = Volume(HU, turned, "scan.nii.gz")
    code, _, err = run()
    assert code == 2 and "37 degrees off the patient axes" in err
    assert main(["volume", "s", "--mask", "m", "--bundle", str(tmp_path / "none")]) == 2
    assert len(reading.asked) == 2, "the scan was read before the bundle"


def test_a_signal_leaves_the_organs_so_far_in_the_partial_file(run, monkeypatch, tmp_path):
    original = TextFormat.organ_row

    def organ_row(self, organ):
        if organ.expected == "kidney-left":
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, organ)

    monkeypatch.setattr(TextFormat, "organ_row", organ_row)
    code, _, err = run("--output", str(tmp_path / "o"))
    assert code == 143 and err.endswith(
        f"organ-infer: terminated; results so far are in {tmp_path / 'o'}.partial\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["o.partial"]
    lines = (tmp_path / "o.partial").read_text().splitlines()
    assert len(lines) == 7 and lines[0].startswith("liver ")


def test_a_signal_during_the_last_write_leaves_no_complete_file(run, monkeypatch, tmp_path):
    write = os.write

    def interrupted(descriptor, data):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(descriptor, data)

    monkeypatch.setattr(output.os, "write", interrupted)
    assert run("--output", str(tmp_path / "o"))[0] == 143
    assert [path.name for path in tmp_path.iterdir()] == ["o.partial"]
    assert len((tmp_path / "o.partial").read_text().splitlines()) == 11


def test_a_signal_during_a_write_ends_the_run_after_it(run, monkeypatch, tmp_path):
    write, signals = os.write, [signal.SIGTERM]

    def interrupted(descriptor, data):
        if signals:
            os.kill(os.getpid(), signals.pop())
        return write(descriptor, data)

    monkeypatch.setattr(output.os, "write", interrupted)
    monkeypatch.setattr(volume, "DELAY", 0.0)
    assert run("--output", str(tmp_path / "o"))[0] == 143
    assert len((tmp_path / "o.partial").read_text().splitlines()) == 7


def test_the_packaged_model_is_named_when_no_other_is_chosen(reading, monkeypatch, capfd):
    pytest.importorskip("onnxruntime")
    from conftest import DEFAULT

    if not DEFAULT.exists():
        pytest.skip("the packaged bundle is not built yet")
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    assert main(["volume", "s", "--mask", "m"]) == 0
    assert "using the packaged" not in capfd.readouterr().err
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    assert main(["volume", "s", "--mask", "m"]) == 0
    assert (
        "organ-infer: note: using the packaged organamnist-edge_ensemble (axial slices)"
        in capfd.readouterr().err
    )


def test_the_suffix_of_output_chooses_the_format_and_short_options_work(run, tmp_path):
    for name, first in {"o.csv": "row,", "o.jsonl": "{", "o.txt": "liver"}.items():
        assert run("-q", "-o", str(tmp_path / name))[0] == 0
        assert (tmp_path / name).read_text().startswith(first)
    code, _, err = run("-o", str(tmp_path / "o.csv"), "-f", "jsonl")
    assert code == 0 and "o.csv: exists and will be replaced" in err
    assert (tmp_path / "o.csv").read_text().startswith("{")
    assert "will be replaced" not in run("-o", str(tmp_path / "o.csv"), "--force")[2]
    for name in ("o.xlsx", "o.json", "o.csv.gz"):
        code, _, err = run("--output", str(tmp_path / name))
        assert code == 2 and "is not written; use .csv, .jsonl, .parquet or .txt, or pass" in err


def test_a_scan_is_not_replaced_by_rows(run, tmp_path):
    scan = tmp_path / "ct.nii.gz"
    scan.write_bytes(b"\x1f\x8b\x08\x00 compressed")
    code, _, err = run("-f", "csv", "--output", str(scan))
    assert code == 2 and "another binary file" in err
    assert scan.read_bytes() == b"\x1f\x8b\x08\x00 compressed"


def test_a_mask_of_another_shape_is_refused():
    from organ_infer.volumes import Mask, organ_crops

    volume = Volume(np.zeros((8, 7, 6), np.int16), np.eye(4), "s")
    for shape in ((7, 7, 6), (8, 7, 5), (9, 8, 7), (6, 7, 8)):
        mask = Mask([np.ones(shape, np.uint8)], {"liver": 1})
        with pytest.raises(InputError, match=r"mask: .* voxels, but the volume has"):
            organ_crops(volume, mask, orientation="LP")


@pytest.mark.parametrize(
    ("layers", "codes", "words"),
    [
        ([np.ones((2, 2, 2), np.int16)], {"liver": 1}, "layers: expected"),
        ([np.ones((2, 2), np.uint8)], {"liver": 1}, "layers: expected"),
        (np.ones((2, 2, 2), np.uint8), {"liver": 1}, "layers: expected"),
        ([], {"liver": 1}, "layers: expected"),
        ([np.ones((2, 2, 2), np.uint8)], {"liver": 300}, "codes: expected"),
        ([np.ones((2, 2, 2), np.uint8)], {"liver": "5"}, "codes: expected"),
        ([np.ones((2, 2, 2), np.uint8)], ["liver"], "codes: expected"),
        ([np.ones((2, 2, 2), np.uint8)], None, "codes: expected"),
    ],
)
def test_what_is_no_mask_is_refused(layers, codes, words):
    from organ_infer.volumes import Mask

    with pytest.raises(InputError, match=words):
        Mask(layers, codes)
