"""organ-infer audit: its arguments, files, messages, reruns and exit codes, with a fake of what audits one scan."""

import csv
import errno
import json
import os
import re
import signal
import sys

import numpy as np
import pytest
from conftest import constant_graph, write_bundle
from support import fake_audit
from support.command_results import RAMP
from support.image_files import saved
from support.phantoms import nifti, nrrd, phantom

from organ_infer import locks
from organ_infer.audit import directory as directory_module
from organ_infer.cli import main, progress
from organ_infer.cli.arguments import BUNDLE_VARIABLE, UsageError
from organ_infer.cli.audit_arguments import AuditOptions, parse_audit
from organ_infer.cli.subcommands import after_word

PHANTOM = phantom()
SCAN = nifti(PHANTOM.hu, PHANTOM.affine)
# 1 is the spleen and 5 the liver of TotalSegmentator, 4 has no class
MASK = nifti(PHANTOM.labels, PHANTOM.affine)
OUTPUTS = ["findings.csv", "organs.csv", "report.html", "results.jsonl"]
SWAPPED = fake_audit.SWAPPED


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Two models."""
    folder = tmp_path_factory.mktemp("bundle")
    graphs = [constant_graph({"kidney-right": p, "liver": 1 - p}) for p in (0.75, 0.5)]
    return [
        str(write_bundle(folder / name, {"a.onnx": graph}))
        for name, graph in zip("ab", graphs, strict=True)
    ]


@pytest.fixture
def fake(monkeypatch):
    return fake_audit.install(monkeypatch)


@pytest.fixture
def cases(tmp_path):
    """Creates scans with their masks, in scans/ and masks/."""

    def create(*names):
        for folder, content in (("scans", SCAN), ("masks", MASK)):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name in names:
                (tmp_path / folder / f"{name}.nii").write_bytes(content)

    return create


@pytest.fixture
def run(fake, bundles, tmp_path, monkeypatch, capfd):
    """Runs the command in the directory of `cases`. Returns the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, inputs=("scans", "masks"), output="out", bundle=bundles[0]):
        code = main(["audit", *inputs, "-o", output, "--bundle", bundle, *arguments])
        return code, *capfd.readouterr()

    return run


def rows(path):
    """The rows of results.jsonl behind the first."""
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def errors(err):
    return [line for line in err.splitlines() if " error: " in line]


# Output.


def test_findings_are_printed_the_strongest_first_and_files_are_written(run, cases, tmp_path):
    cases("good", "swapped9", "swapped120")
    code, out, err = run()
    assert code == 0
    assert out.splitlines() == [
        f"   1     120.0  {SWAPPED}  scans/swapped120.nii",
        f"   2       9.0  {SWAPPED}  scans/swapped9.nii",
    ]
    assert err.splitlines()[-1].startswith(
        "organ-infer: 3 scans audited, 2 with findings, 0 failed; "
    )
    assert sorted(os.listdir(tmp_path / "out")) == OUTPUTS
    with open(tmp_path / "out" / "findings.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {
        **{"rank": "1", "evidence": "120.0", "kind": "labels swapped"},
        **{"scan": "scans/swapped120.nii", "mask": "masks/swapped120.nii"},
        **{"organs": "kidney-left; kidney-right", "message": SWAPPED},
        **{"numbers": "log likelihood as it is=-20.0; log likelihood swapped=-7.5"},
    }
    assert (second["rank"], second["scan"]) == ("2", "scans/swapped9.nii")
    with open(tmp_path / "out" / "organs.csv", newline="") as file:
        organs = list(csv.DictReader(file))
    assert [(row["scan"], row["expected"], row["label"], row["agrees"]) for row in organs] == [
        ("scans/good.nii", "liver", "liver", "true"),
        ("scans/good.nii", "kidney-left", "kidney-left", "true"),
        ("scans/swapped120.nii", "liver", "liver", "true"),
        ("scans/swapped120.nii", "kidney-left", "kidney-right", "false"),
        ("scans/swapped9.nii", "liver", "liver", "true"),
        ("scans/swapped9.nii", "kidney-left", "kidney-right", "false"),
    ]
    assert organs[3] == organs[3] | {
        **{"structures": "3", "probability": "0.9", "expected_probability": "0.05"},
        **{"slices": "12", "volume_ml": "151.5", "median_hu": "31.0", "warnings": ""},
    }


def test_one_line_per_scan_holds_everything(run, cases, tmp_path):
    cases("swapped7")
    run()
    first = json.loads((tmp_path / "out" / "results.jsonl").read_text().splitlines()[0])
    assert (first["row"], first["format"], first["margin_mm"]) == ("audit", 1, 5)
    assert len(first["sha256"]) == 64 and first["version"]
    (row,) = rows(tmp_path / "out" / "results.jsonl")
    assert (row["row"], row["scan"], row["mask"], row["labels"], row["error"]) == (
        *("scan", "scans/swapped7.nii", "masks/swapped7.nii", "totalsegmentator"),
        None,
    )
    assert row["unmapped"] == ["4"] and len(row["warnings"]) == 1
    (finding,) = row["findings"]
    assert finding["evidence"] == 7 and len(finding["pictures"]) == 2
    assert finding["pictures"][0]["png"].startswith("iVBOR")


def test_a_csv_file_lists_pairs_and_label_maps(run, cases, tmp_path, fake):
    cases("a", "b")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "p.csv").write_text(
        "scan,mask,labels\n../scans/b.nii,../masks/b.nii,btcv\n../scans/a.nii,../masks/b.nii\n"
    )
    code, _, _ = run("--labels", "amos22", "--margin", "2.5", inputs=["lists/p.csv"])
    assert (code, fake.asked, fake.margins) == (0, ["b.nii", "a.nii"], [2.5, 2.5])
    assert [(row["scan"], row["labels"]) for row in rows(tmp_path / "out" / "results.jsonl")] == [
        ("lists/../scans/b.nii", "btcv"),
        ("lists/../scans/a.nii", "amos22"),
    ]


def test_what_has_no_partner_is_noted_and_quiet_omits_it(run, cases, tmp_path):
    cases("a")
    (tmp_path / "scans" / "alone.nii").write_bytes(SCAN)
    _, _, err = run()
    assert "organ-infer: note: 1 scan without a mask, left out: alone.nii" in err
    assert "organ-infer: note: structures of no class, not audited: 4" in err
    code, out, err = run("-q", "--fresh")
    assert (code, out, err) == (0, "", "")


def test_a_warning_of_several_scans_is_shown_once(run, cases):
    cases("a", "b", "c")
    _, _, err = run()
    shown = [line for line in err.splitlines() if "numbers without names" in line]
    assert len(shown) == 2 and shown[0].startswith("organ-infer: warning: scans/a.nii: numbers")
    assert shown[1].startswith("organ-infer: note: the same warning for 3 scans: numbers")
    _, _, err = run("--labels", "totalsegmentator-v1")
    assert "numbers without names" not in err
    cases("d", "e")
    assert "the same warning for 2 scans" in run()[2]
    cases("f")
    assert "the same warning" not in run()[2]


def test_names_with_line_breaks_and_other_bytes_are_escaped_everywhere(run, cases, tmp_path):
    name = "swapped5\n<b>\udce9"
    cases(name)
    code, out, _ = run()
    shown = r"scans/swapped5\x0a<b>\xe9.nii"
    assert code == 0 and out == f"   1       5.0  {SWAPPED}  {shown}\n"
    page = (tmp_path / "out" / "report.html").read_text()
    assert r"scans/swapped5\x0a&lt;b&gt;\xe9.nii" in page and "<b>\\xe9" not in page
    with open(tmp_path / "out" / "findings.csv", newline="") as file:
        assert next(csv.DictReader(file))["scan"] == "scans/swapped5\n<b>\\xe9.nii"
    (row,) = rows(tmp_path / "out" / "results.jsonl")
    assert row["scan"] == "scans/swapped5\n<b>\\xe9.nii"
    assert run()[1] == out, "the rerun finds the scan again"


def test_the_page_has_the_command(run, cases, tmp_path):
    cases("a")
    run("--margin", "3")
    assert (
        "organ-infer audit scans masks -o out --bundle "
        in (tmp_path / "out" / "report.html").read_text()
    )


def test_progress_counts_scans(run, cases, monkeypatch, capfd):
    cases("a", "bad", "c")
    monkeypatch.setattr(progress, "_is_terminal", lambda: True)
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    _, _, err = run()
    assert "1/3 scans" in err and "3/3 scans" in err and "/min" in err and "1 failed" in err
    assert err.splitlines()[-1].count("scans audited") == 1


def test_structures_of_no_class_are_listed_once_numbers_first(run, cases, tmp_path, monkeypatch):
    cases("a", "b")
    labels = PHANTOM.labels.copy()
    labels[0, 0, :3] = [250, 90, 9]
    (tmp_path / "masks" / "b.nii").write_bytes(nifti(labels, PHANTOM.affine))
    assert "note: structures of no class, not audited: 4, 9, 90, 250\n" in run()[2]
    monkeypatch.setattr("organ_infer.cli.audit.NAMES_LIMIT", 12)
    assert "not audited: 4, ..., 250\n" in run()[2]


def test_a_finding_of_a_scan_with_several_masks_names_the_mask(run, cases, tmp_path):
    cases("a", "swapped4", "swapped5")
    pairs = "scans/swapped4.nii,masks/a.nii\nscans/swapped4.nii,masks/swapped4.nii\nscans/swapped5.nii,masks/a.nii\n"
    (tmp_path / "pairs.csv").write_text(pairs)
    code, out, _ = run(inputs=("pairs.csv",))
    assert code == 0
    paths = [line.split("  ")[-2:] for line in out.splitlines()]
    assert ["scans/swapped4.nii", "masks/a.nii"] in paths
    assert ["scans/swapped4.nii", "masks/swapped4.nii"] in paths
    assert [end for _, end in paths].count("scans/swapped5.nii") == 1


# Scans that fail.


def test_a_scan_that_fails_is_one_line_and_the_others_go_on(run, cases, fake):
    cases("a", "bad", "bug", "swapped3")
    code, out, err = run()
    assert code == 1 and out.count("\n") == 1
    assert errors(err) == [
        "organ-infer: error: scans/bad.nii: the scan is bad",
        "organ-infer: error: scans/bug.nii: unexpected ZeroDivisionError (a bug); please report this error",
    ]
    assert "2 scans audited, 1 with findings, 2 failed" in err


def test_no_scan_audited_is_2(run, cases, tmp_path):
    cases("bad")
    assert run()[0] == 2
    assert sorted(os.listdir(tmp_path / "out")) == OUTPUTS


OTHER_GRID = nifti(np.zeros((5, 5, 5), np.uint8), PHANTOM.affine)
NO_CLASS = nifti(np.where(PHANTOM.labels, 250, 0).astype(np.uint8), PHANTOM.affine)


@pytest.mark.parametrize(
    ("scan", "mask", "words"),
    [
        (None, MASK, "scans/x.nii: no such file or directory"),
        (SCAN, None, "masks/x.nii: no such file or directory"),
        (SCAN, OTHER_GRID, "masks/x.nii: "),
        (SCAN, nifti(PHANTOM.labels * 0, PHANTOM.affine), "masks/x.nii: "),
        (SCAN, NO_CLASS, "masks/x.nii: .*no structure"),
        (SCAN, b"", "masks/x.nii: "),
        (SCAN[: len(SCAN) // 2], MASK, "scans/x.nii: "),
        (SCAN, SCAN, "masks/x.nii: "),
    ],
    ids=[
        "no scan",
        "no mask",
        "other grid",
        "empty mask",
        "no class",
        "empty file",
        "cut short",
        "scan as mask",
    ],
)
def test_scans_and_masks_that_cannot_be_read(run, cases, tmp_path, scan, mask, words):
    cases("good", "x")
    for folder, content in (("scans", scan), ("masks", mask)):
        if content is None:
            (tmp_path / folder / "x.nii").unlink()
        else:
            (tmp_path / folder / "x.nii").write_bytes(content)
    (tmp_path / "p.csv").write_text("scans/x.nii,masks/x.nii\nscans/good.nii,masks/good.nii\n")
    code, _, err = run(inputs=["p.csv"])
    (line,) = errors(err)
    assert code == 1 and "1 scan audited, 0 with findings, 1 failed" in err
    assert re.match(f"organ-infer: error: {words}", line), line


def test_a_model_that_fails_ends_the_run_and_keeps_the_results(run, cases, tmp_path):
    cases("a", "device", "z")
    code, _, err = run()
    assert code == 2 and errors(err) == ["organ-infer: error: the GPU is gone"]
    assert [row["scan"] for row in rows(tmp_path / "out" / "results.jsonl")] == ["scans/a.nii"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not complete: 2 scans of 3 not reached" in page


# Other label maps.


def test_other_label_maps_are_offered_for_bare_numbers_alone(run, cases, fake, tmp_path):
    cases("bare", "named", "folder")
    fake.asks_others = True
    (tmp_path / "masks" / "named.nii").unlink()
    names = [f"Segment{i}_{key}:={value}" for i, name in enumerate(("spleen", "liver"))
             for key, value in (("Name", name), ("LabelValue", (1, 5)[i]))]  # fmt: skip
    (tmp_path / "masks" / "named.nrrd").write_bytes(
        nrrd(PHANTOM.labels, PHANTOM.affine, lines=names)
    )
    (tmp_path / "masks" / "folder.nii").unlink()
    (tmp_path / "masks" / "folder").mkdir()
    (tmp_path / "masks" / "folder" / "liver.nii").write_bytes(
        nifti((PHANTOM.labels == 1).astype(np.uint8), PHANTOM.affine)
    )
    assert run()[0] == 0
    assert fake.others["named.nii"] == fake.others["folder.nii"] == {}
    bare = fake.others["bare.nii"]
    assert "totalsegmentator" not in bare and {"btcv", "lits"} < bare.keys()
    assert bare["lits"] == ["liver"] and set(bare["flare22"]) >= {"liver", "kidney-right"}


def test_the_names_in_the_file_are_offered_if_the_label_map_reads_numbers(
    run, cases, fake, tmp_path
):
    cases("named")
    fake.asks_others = True
    (tmp_path / "masks" / "named.nii").unlink()
    lines = ["Segment0_Name:=liver", "Segment0_LabelValue:=1"]
    (tmp_path / "masks" / "named.nrrd").write_bytes(
        nrrd(PHANTOM.labels, PHANTOM.affine, lines=lines)
    )
    code, _, err = run("--labels", "amos22")
    assert code == 0 and fake.others["named.nii"] == {"totalsegmentator": ["liver"]}
    assert "named.nii: the label map amos22 contradicts the names in the file: 1 liver" in err


def test_label_maps_that_do_not_fit_are_left_out_and_one_mask_is_in_memory(monkeypatch, tmp_path):
    from organ_infer.audit.pairs import Pair
    from organ_infer.audit.run import OtherMasks
    from organ_infer.volumes import reading

    labels = np.where(PHANTOM.labels == 1, 11, 0).astype(np.uint8)
    (tmp_path / "m.nii").write_bytes(nifti(labels, PHANTOM.affine))
    (tmp_path / "s.nii").write_bytes(SCAN)
    opened = []
    original = reading.open_mask
    monkeypatch.setattr(
        reading,
        "open_mask",
        lambda path, **options: (opened.append(options["labels"]), original(path, **options))[1],
    )
    pair = Pair(str(tmp_path / "s.nii"), str(tmp_path / "m.nii"), "totalsegmentator")
    others = OtherMasks(pair, reading.open_volume(pair.scan))
    # 11 is the pancreas of BTCV, and of no other map
    assert [(name, list(mask)) for name, mask in others.items()] == [("btcv", ["pancreas"])]
    assert opened.count("btcv") == 1 and len(others) == 1
    with pytest.raises(KeyError):
        others["lits"]


# Reruns.


def test_a_rerun_audits_what_is_new_changed_or_failed(run, cases, fake, tmp_path):
    cases("a", "bad", "swapped4")
    _, out, _ = run()
    fake.asked.clear()
    code, again, err = run()
    assert (code, again) == (1, out) and fake.asked == ["bad.nii"]
    assert "organ-infer: note: 2 of 3 scans have results; --fresh starts over" in err
    assert len(errors(err)) == 1
    cases("new")
    os.utime(tmp_path / "masks" / "a.nii", ns=(0, 1))
    fake.asked.clear()
    run()
    assert fake.asked == ["a.nii", "bad.nii", "new.nii"]
    fake.asked.clear()
    run("--labels", "btcv")
    assert len(fake.asked) == 4


def test_a_rerun_writes_the_same_tables_and_page(run, cases, tmp_path, monkeypatch):
    cases("a", "swapped4")
    original = fake_audit.finding
    monkeypatch.setattr(fake_audit, "finding", lambda number: original(number / 3))
    run()
    before = {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUTS}
    run()
    assert {name: (tmp_path / "out" / name).read_bytes() for name in OUTPUTS} == before


def test_pairs_of_an_earlier_run_that_are_not_listed_are_left_out(run, cases, tmp_path):
    cases("a", "swapped4")
    run()
    (tmp_path / "p.csv").write_text("scans/a.nii,masks/a.nii\n")
    code, out, err = run(inputs=["p.csv"])
    assert (code, out) == (0, "") and "1 scan audited" in err
    assert run()[1].count("\n") == 1, "its result is still there"


def test_every_line_is_flushed_to_the_disk(run, cases, monkeypatch):
    cases("a", "bad")
    flushed = []
    monkeypatch.setattr(directory_module, "flush_file", flushed.append)
    run()
    # the first line, and one per scan
    assert len(flushed) == 3 and len({*flushed}) == 1


def test_results_of_another_format_are_refused(run, cases, tmp_path):
    cases("a")
    run()
    path = tmp_path / "out" / "results.jsonl"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2', 1))
    code, _, err = run()
    assert code == 2 and "out: started with format 2 of results.jsonl, now 1; " in err


def test_fresh_starts_over(run, cases, fake, tmp_path):
    cases("a")
    run()
    run("--fresh")
    assert fake.asked == ["a.nii", "a.nii"]
    assert len(rows(tmp_path / "out" / "results.jsonl")) == 1


def test_other_models_options_and_versions_are_refused(run, cases, bundles, monkeypatch, tmp_path):
    cases("a")
    run()
    before = (tmp_path / "out" / "results.jsonl").read_bytes()

    def refused(*arguments, **options):
        code, out, err = run(*arguments, **options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.endswith("; choose another directory, or start over with --fresh\n")
        return err

    assert "out: started with --margin 5, now 3" in refused("--margin", "3")
    assert "out: started with no --tta, now --tta" in refused("--tta")
    assert "out: started with the model " in refused(bundle=bundles[1])
    monkeypatch.setattr("organ_infer.__version__", "9.9", raising=False)
    assert ", now 9.9" in refused()
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert run("--tta", "--fresh")[0] == 0


def test_a_torn_last_line_is_repaired(run, cases, fake, tmp_path):
    cases("a", "b")
    run()
    path = tmp_path / "out" / "results.jsonl"
    whole = path.read_bytes()
    for cut in (1, 40, whole.rindex(b"\n", 0, -1) - 5, whole.index(b"\n") - 5):
        fake.asked.clear()
        path.write_bytes(whole[: len(whole) - cut] if cut < 100 else whole[:cut])
        assert run()[0] == 0
        assert path.read_bytes() == whole, cut
        assert fake.asked == (["b.nii"] if cut < 100 else ["a.nii", "b.nii"])


@pytest.mark.parametrize(
    "number, line", [(1, '{"row": "audit", "format": 1}'), (2, "{}"), (3, "[")]
)
def test_a_damaged_line_is_named(run, cases, tmp_path, number, line):
    cases("a", "b")
    run()
    path = tmp_path / "out" / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")
    code, _, err = run()
    assert code == 2 and f"out: line {number} of results.jsonl is damaged; " in err
    assert run("--fresh")[0] == 0


# The directory.


def test_a_directory_below_others_is_created_and_a_refused_run_leaves_none(run, cases, tmp_path):
    cases("a")
    assert run(output="deep/er/out")[0] == 0
    assert run(output="none/out", inputs=["no.csv"])[0] == 2
    assert run(output="none/out", bundle="nobundle")[0] == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("files", "output", "words"),
    [
        ({"out": "x"}, "out", "out: not a directory; pass a directory for the results"),
        ({"file": "x"}, "file/out", "file/out: cannot be written (Not a directory)"),
        ({"out/report.html": "x"}, "out", "out: contains report.html but no results.jsonl"),
        ({"out/organs.csv": "x", "out/results.jsonl": ""}, "out", "contains organs.csv but no"),
        ({"out/results.jsonl": "{}\n"}, "out", "out: results.jsonl is not of organ-infer audit"),
        ({"out/results.jsonl/x": ""}, "out", "out: cannot be written (Is a directory)"),
    ],
)
def test_files_of_others_are_not_replaced(run, cases, tmp_path, files, output, words):
    cases("a")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    for options in ([], ["--fresh"]):
        code, out, err = run(*options, output=output)
        assert (code, out, err.count("\n")) == (2, "", 1) and words in err
    kept = {name: (tmp_path / name).read_text() for name in files}
    assert kept == files and len(os.listdir(tmp_path)) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_permission_is_one_line(run, cases, tmp_path):
    cases("a")
    (tmp_path / "out").mkdir(mode=0o500)
    code, _, err = run()
    assert code == 2 and "out: cannot be written (Permission denied)" in err


def test_a_second_process_is_refused(run, cases, tmp_path):
    cases("a")
    run()
    lock = locks.Lock(tmp_path / "out" / ".lock")
    assert lock.acquire()
    for options in ([], ["--fresh"]):
        code, _, err = run(*options)
        assert code == 2 and "out: another organ-infer audit is writing into this" in err
    lock.release()
    assert run()[0] == 0


def test_a_second_process_is_refused_where_there_are_no_locks(run, cases, tmp_path, monkeypatch):
    cases("a")
    monkeypatch.setattr(locks, "lock_file", lambda descriptor: None)
    assert run()[0] == 0 and sorted(os.listdir(tmp_path / "out")) == OUTPUTS
    marker = tmp_path / "out" / ".lock.owner"
    marker.write_text("7 another-computer\n")
    code, _, err = run()
    assert code == 2 and err.endswith(
        "directory (process 7 on another-computer); wait for it, or remove out/.lock.owner if it was killed\n"
    )
    marker.unlink()
    assert run()[0] == 0


def test_a_full_disk_keeps_whole_lines(run, cases, tmp_path, monkeypatch):
    cases("a", "b")
    write, written = os.write, []

    def full(descriptor, data):
        written.append(descriptor)
        if len(written) == 3:
            return write(descriptor, data[:20])
        if len(written) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(directory_module.os, "write", full)
    code, _, err = run()
    monkeypatch.undo()
    assert code == 2
    assert errors(err) == [
        "organ-infer: error: out/results.jsonl: cannot be written (No space left on device);"
        " the same command continues"
    ]
    path = tmp_path / "out" / "results.jsonl"
    assert [row["scan"] for row in rows(path)] == ["scans/a.nii"]
    assert path.read_bytes().endswith(b"\n")


def test_a_page_that_cannot_be_written_leaves_the_former_one(run, cases, tmp_path, monkeypatch):
    cases("a")
    run()
    before = (tmp_path / "out" / "report.html").read_bytes()
    cases("swapped3")
    monkeypatch.setattr(
        "organ_infer.audit.page._organs", lambda _: (_ for _ in ()).throw(OSError(28, "full"))
    )
    code, _, err = run()
    assert code == 2 and "out/report.html: cannot be written (full); the same" in err
    assert (tmp_path / "out" / "report.html").read_bytes() == before
    assert sorted(os.listdir(tmp_path / "out")) == OUTPUTS


def test_standard_output_that_is_closed_or_full_loses_nothing(
    run, cases, tmp_path, monkeypatch, bundles
):
    cases("bad", "swapped3")
    reading, writing = os.pipe()
    os.close(reading)
    kept = os.dup(1)
    try:
        os.dup2(writing, 1)
        assert run()[0] == 1
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        code, _, err = run()
        os.close(1)
        monkeypatch.setattr(sys, "stdout", None)
        closed = main(["audit", "scans", "masks", "-o", "out", "--bundle", bundles[0], "-q"])
    finally:
        os.dup2(kept, 1)
    assert code == 2 and "standard output: cannot be written" in err
    assert closed == 1 and sorted(os.listdir(tmp_path / "out")) == OUTPUTS


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_finished_scans_and_writes_the_tables(run, cases, fake, tmp_path, number):
    cases("a", "b", "swapped1", "z")
    fake.before = lambda name: os.kill(os.getpid(), number) if name.startswith("swapped") else None
    code, out, err = run()
    assert (code, out) == (128 + number, "") and fake.asked == ["a.nii", "b.nii"]
    word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
    assert err.splitlines()[-1] == (
        f"organ-infer: {word}; finished scans are in out, and the same command continues"
    )
    assert sorted(os.listdir(tmp_path / "out")) == OUTPUTS
    assert "2 scans of 4 not reached" in (tmp_path / "out" / "report.html").read_text()
    fake.before = lambda name: None
    fake.asked.clear()
    assert run()[0] == 0 and fake.asked == ["swapped1.nii", "z.nii"]
    assert "not reached" not in (tmp_path / "out" / "report.html").read_text()


def test_a_signal_during_a_write_waits_for_the_line(run, cases, tmp_path, monkeypatch):
    cases("a", "b")
    write, written = os.write, []

    def interrupted(descriptor, data):
        written.append(descriptor)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(descriptor, data)

    monkeypatch.setattr(directory_module.os, "write", interrupted)
    assert run()[0] == 143
    assert [row["scan"] for row in rows(tmp_path / "out" / "results.jsonl")] == ["scans/a.nii"]


def test_a_second_signal_waits_for_the_tables(run, cases, fake, tmp_path, monkeypatch):
    cases("a", "b")
    fake.before = lambda name: os.kill(os.getpid(), signal.SIGINT) if name == "b.nii" else None
    from organ_infer.audit import outputs

    original = outputs.page_parts

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    monkeypatch.setattr(outputs, "page_parts", interrupted)
    assert run()[0] == 130
    assert sorted(os.listdir(tmp_path / "out")) == OUTPUTS


def test_a_signal_that_becomes_an_error_of_the_scan_is_no_failure(run, cases, fake, tmp_path):
    cases("a")

    def swallow(name):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException as e:
            raise ValueError("lost") from e

    fake.before = lambda name: os.kill(os.getpid(), signal.SIGINT)
    assert run()[0] == 130 and fake.asked == []
    fake.before = swallow
    assert run()[0] == 130
    assert rows(tmp_path / "out" / "results.jsonl") == []


# Arguments.


def test_what_is_not_asked_for_has_its_default(monkeypatch):
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    plain = parse_audit(["p.csv", "-o", "d"])
    assert plain == AuditOptions(
        inputs=("p.csv",), output="d", labels="totalsegmentator", margin=5.0, fresh=False, bundle=None, device="auto",
        threads=None, batch_size=64, tta=False, fast=False, cuda_graphs=True, quiet=False, arguments=("p.csv", "-o", "d"),
    )  # fmt: skip
    for words, changed in {
        "masks": {"inputs": ("p.csv", "masks")},
        "--labels l": {"labels": "l"},
        "--margin 0": {"margin": 0.0},
        "--fresh": {"fresh": True},
        "-b b": {"bundle": "b"},
        "--device cpu": {"device": "cpu"},
        "--threads 2": {"threads": 2},
        "--batch-size 3": {"batch_size": 3},
        "--tta": {"tta": True},
        "--fast": {"fast": True},
        "--no-cuda-graphs": {"cuda_graphs": False},
        "-q": {"quiet": True},
    }.items():
        given = ["p.csv", *words.split(), "--output", "d"]
        assert parse_audit(given) == plain._replace(arguments=tuple(given), **changed)
    monkeypatch.setenv(BUNDLE_VARIABLE, "/b")
    assert parse_audit(["p", "-o", "d"]).bundle == "/b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], r"expected PAIRS.csv, or the directories SCANS and MASKS, found 0 paths; .* \./audit"),
        (["a", "b", "c", "-o", "d"], "found 3 paths"),
        (["a", "", "-o", "d"], "PAIRS.csv: the value is empty"),
        (["a"], "--output: missing; name the directory of the results"),
        (["a", "-o", ""], "--output: the value is empty"),
        (["a", "-o", "d", "--labels", ""], "--labels: the value is empty"),
        (["a", "-o", "d", "--bundle", ""], "--bundle: the value is empty"),
        (["a", "-o", "d", "--margin", "x"], "expected a number of mm"),
        (["a", "-o", "d", "--fres"], "unrecognized arguments: --fres"),
    ],
)
def test_wrong_arguments_are_one_line_and_2(arguments, words, capfd):
    with pytest.raises(UsageError, match=words):
        parse_audit(arguments)
    assert main(["audit", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.endswith("(see organ-infer audit --help)\n")


def test_help_shows_the_usage_and_the_main_help_names_the_command(capfd):
    assert main(["audit", "--help"]) == 0
    shown = capfd.readouterr().out
    assert "usage: organ-infer audit PAIRS.csv -o DIR" in shown
    assert "1 some scans failed" in " ".join(shown.split())
    assert main(["--help"]) == 0
    assert "organ-infer audit PAIRS.csv|SCANS MASKS -o DIR" in capfd.readouterr().out


def test_a_directory_named_audit_is_still_classified(bundles, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "a.png").write_bytes(saved(RAMP[..., 0]))
    assert main(["./audit", "--bundle", bundles[0]]) == 0
    assert capfd.readouterr().out.endswith("./audit/a.png\n")


def test_a_model_without_volumes_is_refused_before_any_scan(run, cases, tmp_path, fake):
    cases("a")
    graph = constant_graph({"liver": 1.0})
    bundle = write_bundle(tmp_path / "plain", {"a.onnx": graph})
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["input"]["orientation"] = None
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    code, _, err = run(bundle=str(bundle))
    assert code == 2 and "this model takes no volumes, because its manifest has no" in err
    assert fake.asked == [] and not (tmp_path / "out").exists()


def test_options_may_precede_the_word_audit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = ["s", "m", "-q", "-o", "DIR"]
    assert after_word("audit", ["-q", "-o", "DIR", "audit", "s", "m"]) == [
        "s",
        "m",
        "-q",
        "-o",
        "DIR",
    ]
    assert after_word("audit", ["audit", *expected]) == expected
    assert after_word("audit", ["-o", "audit", "a.png"]) is None
    (tmp_path / "audit").mkdir()
    assert after_word("audit", ["-q", "audit"]) is None
    assert after_word("audit", ["-q", "--fresh", "audit", "s"]) == ["s", "-q", "--fresh"]
