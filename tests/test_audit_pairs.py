"""The pairs of an audit: CSV files, parallel directories, and when a pair counts as changed."""

import os

import numpy as np
import pytest
from support.phantoms import nifti

from organ_infer import InputError
from organ_infer.audit.pairs import Pair, pair_directories, read_pairs


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file and returns its pairs, without the directory."""

    def read(text, labels="totalsegmentator"):
        path = tmp_path / "pairs.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return [
            (
                os.path.relpath(pair.scan, tmp_path),
                os.path.relpath(pair.mask, tmp_path),
                pair.labels,
            )
            for pair in read_pairs(str(path), labels)
        ]

    return read


# CSV.


def test_a_line_is_a_scan_and_its_mask(table):
    expected = [("a.nii", "m/a.nii", "totalsegmentator"), ("b", "m/b", "totalsegmentator")]
    for text in (
        "a.nii,m/a.nii\nb,m/b\n",
        "scan,mask\na.nii,m/a.nii\nb,m/b",
        "\ufeffScan,MASK\r\na.nii, m/a.nii\r\n\r\nb,m/b\r\n",
        "scan,mask,labels\na.nii,m/a.nii,\nb,m/b\n",
    ):
        assert table(text) == expected, text


def test_a_header_names_the_columns_in_any_order_beside_others(table):
    assert table("mask,scan\nm,a\n") == [("a", "m", "totalsegmentator")]
    assert table("id,Labels,mask, scan\n1,btcv,m,a\n2,,n,b\n", "lits") == [
        ("a", "m", "btcv"),
        ("b", "n", "lits"),
    ]
    assert table("labels,mask,scan,age\nbtcv,m,a\n") == [("a", "m", "btcv")]
    assert table("scan,mask\na,m,btcv\n") == [("a", "m", "btcv")]
    assert table("scan,mask,id\na,m,7\nb,n\n")[1] == ("b", "n", "totalsegmentator")


def test_the_third_column_is_the_label_map(table, tmp_path):
    (tmp_path / "own.csv").write_text("1,liver\n")
    assert [row[2] for row in table("a,m,btcv\nb,m,\nc,m,own.csv\n", "amos22")] == [
        "btcv",
        "amos22",
        str(tmp_path / "own.csv"),
    ]


def test_relative_paths_begin_at_the_file_and_absolute_ones_stay(tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "p.csv").write_text("a,../m\n/b,/m\n")
    monkeypatch.chdir(tmp_path)
    assert read_pairs("lists/p.csv", "lits") == (
        Pair("lists/a", "lists/../m", "lits"),
        Pair("/b", "/m", "lits"),
    )


def test_quoted_names_may_hold_commas_line_breaks_and_quotes(table):
    assert table('"a,1\n""2""",m\nb,m\n')[0][:2] == ('a,1\n"2"', "m")


def test_one_scan_may_have_several_masks(table):
    assert len(table("a,m\na,n\nb,m\n")) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lists no scan; expected scan,mask per line"),
        ("scan,mask\n\n", "lists no scan"),
        ("a,m\nb\n", r"line 2: expected scan,mask\[,labels\], found 'b'"),
        ("a;m\n", "line 1: expected scan,mask.*found 'a;m'"),
        ("mask,id,scan\nm,7,a\nm,7\n", r"line 3: expected scan,mask\[,labels\], found 'm,7'"),
        ("id,mask,scan\n7,m,a,lits\n", "line 2: expected scan,mask"),
        ("scan,mask\na,m,lits,x\n", "line 2: expected scan,mask"),
        ("mask,scan\n,a\n", "line 2: expected scan,mask"),
        ("a,m,lits,x\n", "line 1: expected scan,mask"),
        ("a,m\n\n,m\n", "line 3: expected scan,mask"),
        ("a,\n", "line 1: expected scan,mask"),
        ('"a\nb",m\nc\n', "line 3: expected scan,mask.*found 'c'"),
        ("a,m\nscan,mask\nscan,mask\n", "line 3: the same scan and mask as in line 2"),
        ("a,m\nb,m\n./a,m\n", "line 3: the same scan and mask as in line 1; remove one"),
        ("a,m,nope\n", "line 1: labels .*nope'.*: no such label map"),
        ('a,m\n"b,m\n', "line 2: no valid CSV"),
        (nifti(np.zeros((2, 3, 4), np.int16), np.eye(4)), r"a scan or mask \(NIfTI\), not a list"),
        (b"a,m\nb\xe9,m\n", "line 2: not UTF-8; save the CSV file as UTF-8"),
        ("a,m\n".encode("utf-16"), "line 1: not UTF-8"),
        ("a,m\n\0,m\n", "line 2: NUL"),
    ],
)
def test_malformed_lines_are_refused_with_their_number(table, text, words):
    with pytest.raises(InputError, match=rf"pairs\.csv(, |: ){words}"):
        table(text)


def test_what_is_no_list_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none.csv: cannot be read \(No such file"):
        read_pairs(str(tmp_path / "none.csv"), "lits")
    with pytest.raises(InputError, match=r"\\x0a\\xe9.csv: cannot be read"):
        read_pairs(str(tmp_path / "\n\udce9.csv"), "lits")
    with pytest.raises(InputError, match="a directory; pass a CSV file"):
        read_pairs(str(tmp_path), "lits")
    with pytest.raises(InputError, match="labels 'nope': no such label map"):
        read_pairs(str(tmp_path / "none.csv"), "nope")
    (tmp_path / "long.csv").write_text("a,m\n" * 9)
    monkeypatch.setattr("organ_infer.audit.pairs.CSV_LIMIT", 30)
    with pytest.raises(InputError, match="larger than 30 bytes"):
        read_pairs(str(tmp_path / "long.csv"), "lits")


# Directories.


@pytest.fixture
def folders(tmp_path):
    """Creates SCANS and MASKS with these entries, and returns pairs and notes. A name that ends in / is a directory."""

    def pairs(scans, masks, labels="totalsegmentator"):
        for folder, names in (("scans", scans), ("masks", masks)):
            for name in names.split():
                path = tmp_path / folder / name
                path.parent.mkdir(exist_ok=True)
                path.mkdir() if name.endswith("/") else path.touch()
        found = pair_directories(str(tmp_path / "scans"), str(tmp_path / "masks"), labels)
        names = [
            f"{os.path.basename(p.scan)} {os.path.basename(p.mask)} {p.labels}" for p in found.pairs
        ]
        return names, found.notes

    return pairs


def test_equal_names_without_suffix_are_pairs(folders):
    names, notes = folders(
        "b.nii.gz a.nrrd c/ D.NII d.v1.mha e.zip .hidden.nii",
        "a.nii b/ c.dcm D.mhd d.v1.nii e.nii.gz .hidden.nii",
        "btcv",
    )
    assert names == [
        *("D.NII D.mhd btcv", "a.nrrd a.nii btcv", "b.nii.gz b btcv", "c c.dcm btcv"),
        *("d.v1.mha d.v1.nii btcv", "e.zip e.nii.gz btcv"),
    ]
    assert notes == ()


def test_channel_0_of_nnunet_belongs_to_the_case(folders):
    names, notes = folders(
        "x_0000.nii.gz x_0001.nii.gz y_0000.nii.gz z.nii z_0000.nii",
        "x.nii.gz y_0000.nii.gz y.nii.gz z.nii",
    )
    assert names == [
        *("x_0000.nii.gz x.nii.gz totalsegmentator",),
        *("y_0000.nii.gz y_0000.nii.gz totalsegmentator", "z.nii z.nii totalsegmentator"),
    ]
    assert notes == (
        "2 scans without a mask, left out: x_0001.nii.gz, z_0000.nii",
        "1 mask without a scan, left out: y.nii.gz",
    )


def test_what_has_no_partner_is_named_and_counted(folders, tmp_path):
    names, notes = folders("a.nii b.nii\udce9.nii c.txt d", "a.nii e/ f.json")
    assert names == ["a.nii a.nii totalsegmentator"]
    assert notes == (
        r"1 scan without a mask, left out: b.nii\xe9.nii",
        "1 mask without a scan, left out: e",
        f"{tmp_path / 'scans'}: 2 files without a suffix of scans, left out",
        f"{tmp_path / 'masks'}: 1 file without a suffix of scans, left out",
    )


def test_a_long_list_of_names_is_shortened(folders):
    _, (note,) = folders(" ".join(f"scan{i:03}.nii" for i in range(200)), "scan000.nii")
    assert note.startswith("199 scans without a mask, left out: scan001.nii, ")
    assert note.endswith("scan199.nii") and len(note) < 350


def test_two_entries_of_one_name_are_refused(folders, tmp_path):
    with pytest.raises(
        InputError, match=r"SCANS .*: a.nii and a.nrrd have the same name without suffix; rename"
    ):
        folders("a.nii a.nrrd", "a.nii")
    (tmp_path / "scans" / "a.nrrd").unlink()
    with pytest.raises(InputError, match=r"MASKS .*: b and b.nii have the same name"):
        folders("c.nii", "b/ b.nii")


def test_directories_without_a_pair_are_refused(folders, tmp_path):
    with pytest.raises(
        InputError, match=r"no scan and mask have the same name without suffix \(1 scans, 1 masks\)"
    ):
        folders("a.nii", "b.nii")
    scans = str(tmp_path / "scans")
    with pytest.raises(InputError, match="SCANS and MASKS are the same directory"):
        pair_directories(scans, os.path.join(scans, "."), "lits")
    with pytest.raises(InputError, match=r"SCANS .*a.nii: not a directory; list single files"):
        pair_directories(os.path.join(scans, "a.nii"), scans, "lits")
    with pytest.raises(InputError, match=r"MASKS .*none: cannot be listed \(No such file"):
        pair_directories(scans, str(tmp_path / "none"), "lits")
    with pytest.raises(InputError, match="no such label map"):
        pair_directories(scans, str(tmp_path / "none"), "nope")


# Keys.


@pytest.fixture
def pair(tmp_path):
    for name in ("scan.nii", "mask.nii"):
        (tmp_path / name).write_text("1")
    return Pair(str(tmp_path / "scan.nii"), str(tmp_path / "mask.nii"), "lits")


def touch(path, seconds=5):
    os.utime(path, ns=(0, seconds * 10**9))


def test_a_key_is_that_of_the_same_files_whatever_the_working_directory(
    pair, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert Pair("scan.nii", "./mask.nii", "LITS").key() == pair.key()


@pytest.mark.parametrize("name", ["scan.nii", "mask.nii"])
def test_a_key_changes_with_the_size_and_the_time_of_a_file(pair, tmp_path, name):
    keys = {pair.key()}
    touch(tmp_path / name)
    keys.add(pair.key())
    (tmp_path / name).write_text("12")
    touch(tmp_path / name)
    keys.add(pair.key())
    (tmp_path / name).unlink()
    keys.add(pair.key())
    assert len(keys) == 4


def test_a_key_changes_with_the_label_map_and_its_file(pair, tmp_path):
    path = tmp_path / "labels.csv"
    keys = {pair.key(), Pair(pair.scan, pair.mask, "btcv").key()}
    for second in (1, 2):
        path.write_text("1,liver\n")
        touch(path, second)
        keys.add(Pair(pair.scan, pair.mask, str(path)).key())
    assert len(keys) == 4
    assert Pair(pair.mask, pair.scan, "lits").key() != pair.key()


def test_a_key_changes_with_every_file_of_a_directory(tmp_path):
    series = tmp_path / "series"
    (series / "deep").mkdir(parents=True)
    for name in ("a", "deep/b"):
        (series / name).write_text("1")
        touch(series / name)
    pair = Pair(str(series), str(tmp_path / "mask"), "lits")
    keys = [pair.key()]
    touch(series / "deep" / "b", 9)
    keys.append(pair.key())
    (series / "a").rename(series / "c")
    keys.append(pair.key())
    (series / "c").unlink()
    keys.append(pair.key())
    assert len({*keys}) == 4


@pytest.mark.parametrize("header, voxels", [("scan.mhd", "scan.zraw"), ("scan.nhdr", "scan.raw")])
def test_a_key_changes_with_voxels_in_another_file(tmp_path, header, voxels):
    for name in (header, voxels):
        (tmp_path / name).write_text("1")
    pair = Pair(str(tmp_path / header), str(tmp_path / "mask"), "lits")
    before = pair.key()
    (tmp_path / "other.raw").write_text("1")
    assert pair.key() == before
    (tmp_path / voxels).write_text("12")
    assert pair.key() != before
