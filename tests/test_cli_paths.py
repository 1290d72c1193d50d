"""Which images the paths of the command stand for: lists cut anywhere, directories, patterns, and their order."""

import io
import os
import sys
import types
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from organ_infer.cli import paths
from organ_infer.cli.arguments import UsageError, parse
from organ_infer.cli.paths import NAME_LIMIT, Candidates
from organ_infer.images.discovery import Candidate, Skipped

FILE, LINK = Skipped.FILE, Skipped.LINK
quick = settings(max_examples=60, deadline=None)

# Lists.


def joined(lists):
    return [name for names in lists for name in names]


pieces_of = st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\n", b"")), max_size=8)


@quick
@given(names=pieces_of, cuts=st.lists(st.integers(0, 60), max_size=6))
def test_a_list_is_cut_at_its_ends_however_its_blocks_fall(names, cuts):
    data = b"\n".join(names)
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    blocks = [data[a:b] for a, b in pairwise(at)]
    assert joined(paths._split_blocks(blocks, b"\n")) == data.split(b"\n")


def test_a_path_of_a_list_is_taken_up_to_its_limit_and_not_a_byte_more():
    """65,536 bytes: docs/reference/errors.md."""
    assert NAME_LIMIT == 65_536
    name = b"x" * NAME_LIMIT
    assert joined(paths._split_blocks([name], b"\n")) == [name]
    assert joined(paths._split_blocks([name, b"\ny"], b"\n")) == [name, b"y"]
    with pytest.raises(
        UsageError, match="a path has more than 65,536 bytes; check whether the list needs -0"
    ):
        list(paths._split_blocks([name, b"x"], b"\n"))


@quick
@given(
    names=st.lists(
        st.text(
            st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r*?["), min_size=1
        )
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
    assert list(Candidates(options)) == [Candidate("first"), *map(Candidate, names)]


def test_lines_lose_one_carriage_return_and_paths_ended_by_nul_none(tmp_path):
    (tmp_path / "lines").write_bytes(b"/a\r\n\r\n/b\r\r\n/c")
    found = list(Candidates(parse(["--files-from", str(tmp_path / "lines")])))
    assert found == [Candidate("/a"), Candidate("/b\r"), Candidate("/c")]
    (tmp_path / "nul").write_bytes(b"/a\r\0/b\n\0\0")
    assert list(Candidates(parse(["-0", "--files-from", str(tmp_path / "nul")]))) == [
        Candidate("/a\r"),
        Candidate("/b\n", "no such file; leave out -0 if the paths of the list end with a newline"),
    ]


def test_standard_input_is_read_as_it_comes_or_told_to_be_closed(monkeypatch):
    monkeypatch.setattr(
        sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(b"/a\n/b")))
    )
    assert list(Candidates(parse(["--files-from", "-"]))) == [Candidate("/a"), Candidate("/b")]
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UsageError, match=r"^--files-from -: standard input is closed$"):
        list(Candidates(parse(["--files-from", "-"])))


def test_a_list_that_cannot_be_read_is_told_before_the_paths(tmp_path):
    (tmp_path / "images").mkdir()
    for source, words in {
        str(tmp_path / "none"): "No such file or directory",
        str(tmp_path): "Is a directory",
        "a\0b": "NUL in the name",
    }.items():
        with pytest.raises(UsageError) as told:
            next(Candidates(parse([str(tmp_path / "images"), "--files-from", source])))
        assert str(told.value) == f"--files-from {source}: cannot be read ({words})".replace(
            "\0", r"\x00"
        )


def test_a_list_that_is_a_pipe_is_not_opened_before_its_turn(tmp_path):
    """Opening a pipe waits for its writer: the paths before it come first."""
    os.mkfifo(tmp_path / "pipe")
    assert next(Candidates(parse(["first", "--files-from", str(tmp_path / "pipe")]))) == Candidate(
        "first"
    )


def test_a_list_names_directories_and_no_patterns(tmp_path):
    (tmp_path / "d" / "below").mkdir(parents=True)
    (tmp_path / "d" / "a.png").touch()
    (tmp_path / "d" / "below" / "b.png").touch()
    (tmp_path / "list").write_text(f"{tmp_path}/d\n{tmp_path}/d/*.png\n")
    advice = "no such file; patterns in a list are not expanded, pass them as arguments"
    pattern = Candidate(f"{tmp_path}/d/*.png", advice)
    given = ["--files-from", str(tmp_path / "list")]
    assert list(Candidates(parse(given))) == [Candidate(f"{tmp_path}/d/a.png"), pattern]
    below = Candidate(f"{tmp_path}/d/below/b.png")
    assert list(Candidates(parse([*given, "-r"]))) == [
        Candidate(f"{tmp_path}/d/a.png"),
        below,
        pattern,
    ]


PATTERN = "no such file; patterns in a list are not expanded, pass them as arguments"
QUOTES = "no such file; write the paths of a list without quotes"
URL = "URLs are not read; download the file and pass its path"


@pytest.mark.parametrize(
    ("path", "problem"),
    {
        "https://host/scan.png?size=1": URL,
        "S3://bucket/*.png": URL,
        "gs://bucket/a.npy#3": URL,
        "file:///scans/a.png": "URLs are not read; pass the path after file://",
        "http:/host/a.png": None,
        "a://": URL,
        "1a://b": None,
    }.items(),
)
def test_a_url_is_named_as_one_in_arguments_and_lists(tmp_path, path, problem):
    found = list(Candidates(parse([path])))
    assert found == [Candidate(path, problem, empty=problem is not None)]
    (tmp_path / "list").write_text(path)
    assert list(Candidates(parse(["--files-from", str(tmp_path / "list")]))) == [
        Candidate(path, problem)
    ]


@pytest.mark.parametrize(
    ("path", "problem"),
    {
        "/none/*.png": PATTERN,
        "/none/?": PATTERN,
        "/none/[ab]": PATTERN,
        '"/none/a.png"': QUOTES,
        "'/none/a.png'": QUOTES,
        "~/a.png": "no such file; ~ is not expanded in a list, write the whole path",
        "'": None,
        "/none/a.png": None,
    }.items(),
)
def test_a_line_of_a_list_that_is_written_for_a_shell_is_told(tmp_path, monkeypatch, path, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list").write_text(path)
    assert list(Candidates(parse(["--files-from", "list"]))) == [Candidate(path, problem)]
    if "/none" not in path and "/" not in path:
        return
    # A file of that very name is a file.
    existing = tmp_path / path.lstrip("/")
    existing.parent.mkdir(parents=True, exist_ok=True)
    existing.touch()
    (tmp_path / "list").write_text(path.lstrip("/"))
    assert list(Candidates(parse(["--files-from", "list"]))) == [Candidate(path.lstrip("/"))]


@pytest.mark.parametrize("data", [b"/a\0/b\0", b"/a\0", b"\0", b"/a\n/b\0", b"x" * 70_000 + b"\0"])
def test_a_list_with_nul_and_without_0_is_refused_at_any_length(tmp_path, data):
    (tmp_path / "list").write_bytes(data)
    with pytest.raises(UsageError, match="list: the list contains NUL; add -0 if its paths end"):
        list(Candidates(parse(["--files-from", str(tmp_path / "list")])))
    assert list(Candidates(parse(["-0", "--files-from", str(tmp_path / "list")]))) or data == b"\0"


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
    advice = "" if recursive else "; use --recursive to include subdirectories"
    nothing = f"no image in this directory{advice}"
    files = [
        Candidate(f"{tree}/{name}") for name in ("some/a.NPY", "some/b.png", *below, "some/z.png")
    ]
    return {
        f"{tree}/some": files,
        f"{tree}/none": [Candidate(f"{tree}/none", nothing, empty=True)],
        f"{tree}/f.png": [Candidate(f"{tree}/f.png")],
        f"{tree}/f.png#2": [Candidate(f"{tree}/f.png#2")],
        f"{tree}/gone.png": [Candidate(f"{tree}/gone.png")],
        f"{tree}/so*": files,
        f"{tree}/[fn]*": [
            *([Candidate(f"{tree}/f.png")]),
            Candidate(f"{tree}/none", nothing, empty=True),
        ],
        f"{tree}/?": [Candidate(f"{tree}/?", "no file matches this pattern", empty=True)],
        f"{tree}/some/?.png": [Candidate(f"{tree}/some/b.png"), Candidate(f"{tree}/some/z.png")],
    }


@settings(max_examples=40, deadline=None)
@given(data=st.data(), recursive=st.booleans())
def test_what_is_found_stands_in_the_order_of_the_arguments(tree, data, recursive):
    known = stands_for(tree, recursive)
    given = data.draw(st.lists(st.sampled_from(sorted(known)), min_size=1, max_size=6))
    found = list(Candidates(parse([*given, *(["-r"] if recursive else [])])))
    assert found == [item for name in given for item in known[name]]


def test_a_slice_of_a_file_with_a_pattern_s_characters_is_no_pattern(tmp_path):
    (tmp_path / "[a].npy").touch()
    for name in ("[a].npy", "[a].npy#1", "[a].npy#x#2"):
        assert list(Candidates(parse([f"{tmp_path}/{name}"]))) == [Candidate(f"{tmp_path}/{name}")]


def test_a_pattern_s_names_are_in_byte_order(tmp_path):
    for name in ("ä.png", "z.png", "Z.png"):
        (tmp_path / name).touch()
    assert [found.path for found in Candidates(parse([f"{tmp_path}/*.png"]))] == [
        f"{tmp_path}/{name}" for name in ("Z.png", "z.png", "ä.png")
    ]


def test_a_list_may_begin_with_a_byte_order_mark(tmp_path):
    listed = tmp_path / "list"
    listed.write_bytes(b"\xef\xbb\xbf/a\r\n/b\r\n")
    assert list(Candidates(parse(["--files-from", str(listed)]))) == [
        Candidate("/a"),
        Candidate("/b"),
    ]
    listed.write_bytes(b"/a\n\xef\xbb\xbf/b")
    assert [found.path for found in Candidates(parse(["--files-from", str(listed)]))] == [
        "/a",
        "\N{ZERO WIDTH NO-BREAK SPACE}/b",
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_list_in_utf_16_is_refused(tmp_path, encoding):
    listed = tmp_path / "list"
    listed.write_bytes("\N{ZERO WIDTH NO-BREAK SPACE}/a".encode(encoding))
    with pytest.raises(UsageError, match="the list is UTF-16; save it as UTF-8"):
        list(Candidates(parse(["--files-from", str(listed)])))


@pytest.mark.parametrize("folder", ["set [1]", "a*b", "what?", "[x]/[y]"])
def test_existing_directories_of_a_pattern_are_literal(tmp_path, folder):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / "a.png").touch()
    (tmp_path / folder / "b.txt").touch()
    found = [found.path for found in Candidates(parse([f"{tmp_path}/{folder}/*.png"]))]
    assert found == [f"{tmp_path}/{folder}/a.png"]


def test_a_directory_that_does_not_exist_is_a_pattern(tmp_path):
    for name in ("s1", "s2", "t"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    found = [found.path for found in Candidates(parse([f"{tmp_path}/s[12]/*.png"]))]
    assert found == [f"{tmp_path}/s1/a.png", f"{tmp_path}/s2/a.png"]


def test_whether_another_path_has_arrived_is_known(tmp_path, monkeypatch):
    """A path is not kept waiting for those that may never come."""
    (tmp_path / "folder").mkdir()
    for name in "ab":
        (tmp_path / "folder" / f"{name}.png").touch()
    blocks = [b"/1\n/2\n/3", b"\n" + str(tmp_path / "folder").encode() + b"\n", b"/4\n", b""]

    class Pipe:
        def read1(self, size):
            return blocks.pop(0)

    monkeypatch.setattr(paths.sys, "stdin", types.SimpleNamespace(buffer=Pipe()))
    candidates = Candidates(parse(["/x", "/y", "--files-from", "-"]))
    seen = [(candidate.path, candidates.has_more) for candidate in candidates]
    assert seen == [
        ("/x", True),
        ("/y", False),
        ("/1", True),
        ("/2", False),
        ("/3", True),
        (f"{tmp_path}/folder/a.png", True),
        (f"{tmp_path}/folder/b.png", False),
        ("/4", False),
    ]


def test_candidates_that_are_put_back_come_first_and_have_arrived():
    candidates = Candidates(parse(["/x"]))
    first = next(candidates)
    candidates.put_back([Candidate("/w"), first])
    assert candidates.has_more
    assert list(candidates) == [Candidate("/w"), Candidate("/x")]


def test_files_of_unknown_suffix_are_taken_by_their_first_bytes_and_the_others_counted(tmp_path):
    from PIL import Image
    from support.image_files import dicom, npy, npz, saved

    gray = np.arange(30, dtype=np.uint8).reshape(5, 6)
    image = Image.fromarray(gray)
    taken = {
        "IM000001": dicom(gray.astype(np.uint16)),
        "1.2.840.113619.2.55": dicom(gray.astype(np.uint16)),
        "noext": saved(image),
        "photo.JPEG_": saved(image, "JPEG"),
        "scan.bak": saved(image, "TIFF"),
        "array": npy(gray),
        "new.webp2": saved(image, "WEBP"),
    }
    passed_over = {
        "notes.txt": b"P3 is what this text begins with",
        "more.txt": b"BM, says this one",
        "archive.zip": npz(a=gray),
        "DICOMDIR.txt": b"",
        "short": b"\x89PN",
    }
    for name, content in {**taken, **passed_over}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "in").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "in")
    os.mkfifo(tmp_path / "pipe")
    for recursive, skipped in ((False, {FILE: 6}), (True, {FILE: 6, LINK: 1})):
        candidates = Candidates(parse([str(tmp_path), *(["-r"] if recursive else [])]))
        assert [found.path for found in candidates] == [
            f"{tmp_path}/{name}" for name in sorted(taken, key=os.fsencode)
        ]
        assert candidates.skipped == skipped


@pytest.mark.parametrize(("count", "noted"), [(4, False), (5, True)])
def test_a_whole_scan_is_pointed_to_the_command_that_takes_it(command, tmp_path, count, noted):
    np.save(tmp_path / "scan.npy", np.zeros((count, 410, 420), np.uint8))
    done = command("--format", "csv", tmp_path / "scan.npy")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == count + 1
    line = (
        f"organ-infer: note: {count} slices are likely those of a whole scan, an array without its orientation; pass the"
        " scan as NIfTI or DICOM to organ-infer volume, or Volume(hu, affine, source) to predict_volume\n"
    )
    assert (line in done.stderr) == noted
    assert "whole scan" not in command("--quiet", tmp_path / "scan.npy").stderr
