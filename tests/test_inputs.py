"""What the command's arguments stand for: limits on both sides, lists cut anywhere, and the order of what is found."""

import io
import os
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organ_infer.cli import arguments
from organ_infer.cli import paths as inputs
from organ_infer.cli.arguments import BUNDLE_VARIABLE, Options, UsageError, dataset_name, parse
from organ_infer.cli.paths import NAME_LIMIT, find
from organ_infer.images.discovery import Candidate
from organ_infer.images.types import FILE_LIMIT, PIXEL_LIMIT

quick = settings(max_examples=60, deadline=None)

# Options.


def test_what_is_not_asked_for_is_off(monkeypatch):
    monkeypatch.delenv(BUNDLE_VARIABLE, raising=False)
    assert parse(["a", "b"]) == Options(
        paths=["a", "b"], files_from=None, null=False, recursive=False, bundle=None, device="auto", threads=None,
        batch_size=64, orientation=None, tta=False, cuda_graphs=True, pixel_limit=None, file_limit=None,
        format="text", output=None, top=None, organs=False, min_probability=None, check=False, quiet=False,
    )  # fmt: skip


def test_each_option_sets_its_own_field_and_no_other():
    plain = parse(["x"])
    for words, changed in {
        "--files-from list": {"files_from": "list"},
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
        "--no-cuda-graphs": {"cuda_graphs": False},
        "--pixel-limit 8": {"pixel_limit": 8},
        "--file-limit 7": {"file_limit": 7},
        "--format csv": {"format": "csv"},
        "--output o": {"output": "o"},
        "--top 2": {"top": 2},
        "--organs": {"organs": True},
        "--min-probability .25": {"min_probability": 0.25},
        "--quiet": {"quiet": True},
    }.items():
        assert parse(["x", *words.split()]) == plain._replace(**changed), words
    assert parse(["--check"]) == plain._replace(paths=[], check=True)


# The published ranges: docs/reference/errors.md, docs/guides/formats.md and `organ-infer --help`.
RANGES = {"threads": 1024, "batch-size": 4096, "pixel-limit": 65_535**2, "file-limit": 2**50, "top": 1000}


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
        with pytest.raises(UsageError, match=rf"a whole number from 1 to {most:,} expected, found"):
            parse([f"--{name}={text}", "x"])
    assert getattr(parse([f"--{name}=" + "0" * 15 + "1", "x"]), field) == 1  # 16 digits


def test_a_least_probability_is_above_0_and_at_most_1():
    for text, value in {"1": 1.0, "1e-300": 1e-300, "0.5": 0.5, "100e-2": 1.0}.items():
        assert parse([f"--min-probability={text}", "x"]).min_probability == value
    for text in ("0", "-0.1", "1.0000001", "2", "nan", "inf", "x", "", "٠.٥", "1e-400"):
        with pytest.raises(UsageError, match="a number above 0 and at most 1 expected"):
            parse([f"--min-probability={text}", "x"])


@pytest.mark.parametrize(
    "given, words",
    [
        ("", "no image given: name files, directories or patterns, or use --files-from"),
        ("--check x", "--check takes no images and no --output"),
        ("--check --files-from l", "--check takes no images and no --output"),
        ("--check --output o", "--check takes no images and no --output"),
        ("-0 x", "-0 goes with --files-from"),
        ("--bundle= x", "--bundle is empty"),
        ("--output= x", "--output is empty"),
        ("--files-from= x", "--files-from is empty"),
        ("--files x", "unrecognized arguments: --files"),
        ("--device tpu x", "auto, cpu, cuda or cuda:N expected"),
    ],
)
def test_what_does_not_go_together_is_refused(given, words):
    with pytest.raises(UsageError, match=words) as told:
        parse(given.split())
    assert str(told.value).endswith(" (organ-infer --help shows the options)")


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
    assert "Exit codes: 0 all images classified, 1 some were not, 2 nothing could be done" in text
    for name in Options._fields:
        option = {"paths": "PATH", "cuda_graphs": "--no-cuda-graphs"}.get(name, f"--{name.replace('_', '-')}")
        assert option in text
    with pytest.raises(SystemExit) as ended:
        parse(["--version"])
    assert not ended.value.code and capsys.readouterr().out.startswith("organ-infer ")


def test_the_help_names_the_packaged_model_or_says_that_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "__file__", str(tmp_path / "cli" / "arguments.py"))
    none = "No model is packaged with this installation: give one with --bundle."
    assert arguments._packaged_text() == none
    (tmp_path / "default").mkdir()
    manifest = tmp_path / "default" / "manifest.json"
    for text in ("", "[]", "{}", '{"name": "n", "task": 3}', '{"name": "n", "task": {"view": "axial"}}'):
        manifest.write_text(text)
        assert arguments._packaged_text() == none
    manifest.write_text('{"name": "50% n", "task": {"view": "coronal", "dataset": "organcmnist"}}')
    expected = "The packaged model 50%% n is for coronal slices, trained on OrganCMNIST."
    assert arguments._packaged_text() == expected  # argparse takes %% for %
    names = {
        "organamnist": "OrganAMNIST",
        "organcmnist": "OrganCMNIST",
        "organsmnist": "OrganSMNIST",
        "x": "x",
    }
    assert {name: dataset_name(name) for name in names} == names


# Lists.

pieces_of = st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")), max_size=8)


@quick
@given(names=pieces_of, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_a_list_is_cut_at_its_ends_however_its_blocks_fall(names, cuts):
    data = b"\n".join(names)
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    blocks = [data[a:b] for a, b in pairwise(at)]
    assert list(inputs._pieces(blocks, b"\n")) == data.split(b"\n")


def test_a_path_of_a_list_is_taken_up_to_its_limit_and_not_a_byte_more():
    """65,536 bytes: docs/reference/errors.md."""
    assert NAME_LIMIT == 65_536
    name = b"x" * NAME_LIMIT
    assert list(inputs._pieces([name], b"\n")) == [name]
    assert list(inputs._pieces([name, b"\ny"], b"\n")) == [name, b"y"]
    with pytest.raises(
        UsageError, match=r"a path of more than 65,536 bytes \(is -0 missing, or too much\?\)"
    ):
        list(inputs._pieces([name, b"x"], b"\n"))


@quick
@given(
    names=st.lists(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), min_size=1)
    ),
    null=st.booleans(),
    last=st.booleans(),
)
def test_a_list_gives_its_paths_in_its_order(tmp_path_factory, names, null, last):
    names = [f"/none/{name}" for name in names]
    end = "\0" if null else "\n"
    path = tmp_path_factory.mktemp("list") / "list"
    path.write_bytes((end.join(names) + (end if last else "")).encode())
    options = parse(["first", "--files-from", str(path), *(["-0"] if null else [])])
    assert list(find(options)) == [Candidate("first"), *map(Candidate, names)]


def test_lines_lose_one_carriage_return_and_paths_ended_by_nul_none(tmp_path):
    (tmp_path / "lines").write_bytes(b"/a\r\n\r\n/b\r\r\n/c")
    found = list(find(parse(["--files-from", str(tmp_path / "lines")])))
    assert found == [Candidate("/a"), Candidate("/b\r"), Candidate("/c")]
    (tmp_path / "nul").write_bytes(b"/a\r\0/b\n\0\0")
    assert list(find(parse(["-0", "--files-from", str(tmp_path / "nul")]))) == [
        Candidate("/a\r"),
        Candidate("/b\n"),
    ]


def test_standard_input_is_read_as_it_comes_or_told_to_be_closed(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"/a\n/b"))))
    assert list(find(parse(["--files-from", "-"]))) == [Candidate("/a"), Candidate("/b")]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match=r"^--files-from: standard input cannot be read \(closed\)$"):
        list(find(parse(["--files-from", "-"])))


def test_a_list_that_cannot_be_read_is_told_before_the_paths(tmp_path):
    (tmp_path / "images").mkdir()
    for source, words in {
        str(tmp_path / "none"): "No such file or directory",
        str(tmp_path): "Is a directory",
        "a\0b": "embedded null byte",
    }.items():
        with pytest.raises(UsageError) as told:
            next(find(parse([str(tmp_path / "images"), "--files-from", source])))
        assert str(told.value) == f"--files-from: {source} cannot be read ({words})"


def test_a_list_that_is_a_pipe_is_not_opened_before_its_turn(tmp_path):
    """Opening a pipe waits for its writer: the paths before it come first."""
    os.mkfifo(tmp_path / "pipe")
    assert next(find(parse(["first", "--files-from", str(tmp_path / "pipe")]))) == Candidate("first")


def test_a_list_names_directories_and_no_patterns(tmp_path):
    (tmp_path / "d" / "below").mkdir(parents=True)
    (tmp_path / "d" / "a.png").touch()
    (tmp_path / "d" / "below" / "b.png").touch()
    (tmp_path / "list").write_text(f"{tmp_path}/d\n{tmp_path}/d/*.png\n")
    pattern = Candidate(f"{tmp_path}/d/*.png")
    given = ["--files-from", str(tmp_path / "list")]
    assert list(find(parse(given))) == [Candidate(f"{tmp_path}/d/a.png"), pattern]
    below = Candidate(f"{tmp_path}/d/below/b.png")
    assert list(find(parse([*given, "-r"]))) == [Candidate(f"{tmp_path}/d/a.png"), below, pattern]


# Paths, directories and patterns.


def test_a_path_to_classify_has_no_error_and_stands_for_something():
    found = Candidate("x")
    assert (found.path, found.error, found.empty) == ("x", None, False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for name in (
        "some/b.png",
        "some/a.NPY",
        "some/.hidden.png",
        "some/c.txt",
        "some/in/d.dcm",
        "none/e.txt",
        "f.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "some" / "folder.png").mkdir()
    (folder / "some" / "link").symlink_to(folder / "some" / "in", target_is_directory=True)
    (folder / "some" / "z.png").symlink_to(folder / "f.png")
    return folder


def stands_for(tree, recursive):
    below = ["some/in/d.dcm"] if recursive else []
    advice = "" if recursive else " (--recursive looks below it)"
    nothing = f"no image in this directory{advice}"
    files = [Candidate(f"{tree}/{name}") for name in ("some/a.NPY", "some/b.png", *below, "some/z.png")]
    return {
        f"{tree}/some": files,
        f"{tree}/none": [Candidate(f"{tree}/none", nothing, empty=True)],
        f"{tree}/f.png": [Candidate(f"{tree}/f.png")],
        f"{tree}/f.png#2": [Candidate(f"{tree}/f.png#2")],
        f"{tree}/gone.png": [Candidate(f"{tree}/gone.png")],
        f"{tree}/so*": files,
        f"{tree}/[fn]*": [*([Candidate(f"{tree}/f.png")]), Candidate(f"{tree}/none", nothing, empty=True)],
        f"{tree}/?": [Candidate(f"{tree}/?", "no file matches this pattern", empty=True)],
        f"{tree}/some/?.png": [Candidate(f"{tree}/some/b.png"), Candidate(f"{tree}/some/z.png")],
    }


@settings(max_examples=40, deadline=None)
@given(data=st.data(), recursive=st.booleans())
def test_what_is_found_stands_in_the_order_of_the_arguments(tree, data, recursive):
    known = stands_for(tree, recursive)
    given = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=6))
    found = list(find(parse([*given, *(["-r"] if recursive else [])])))
    assert found == [item for name in given for item in known[name]]


def test_a_slice_of_a_file_with_a_pattern_s_characters_is_no_pattern(tmp_path):
    (tmp_path / "[a].npy").touch()
    for name in ("[a].npy", "[a].npy#1", "[a].npy#x#2"):
        assert list(find(parse([f"{tmp_path}/{name}"]))) == [Candidate(f"{tmp_path}/{name}")]


def test_a_pattern_s_names_are_in_byte_order(tmp_path):
    for name in ("ä.png", "z.png", "Z.png"):
        (tmp_path / name).touch()
    assert [found.path for found in find(parse([f"{tmp_path}/*.png"]))] == [
        f"{tmp_path}/{name}" for name in ("Z.png", "z.png", "ä.png")
    ]
