"""report.html of an audit, as a reader finds it: parsed from the HTML alone."""

import base64
import hashlib
import re
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT
from support.fake_audit import SWAPPED, finding, organ, picture
from support.report_page import Page

from organ_infer.audit import Finding, ScanAudit
from organ_infer.audit import page as page_module
from organ_infer.audit.directory import audit_directory
from organ_infer.audit.outputs import write_outputs
from organ_infer.audit.pairs import Pair
from organ_infer.audit.records import Record, RunIdentity
from organ_infer.audit.types import KINDS

IDENTITY = RunIdentity("1.2.3", "model <m>", "ab" * 32, "organamnist", "axial", 2.5, False)
HOSTILE = "<script>alert('x')</script>\"&\n\udce9\x1b[2J"
ESCAPED = "<script>alert('x')</script>\"&\\x0a\\xe9\\x1b[2J"


@pytest.fixture
def page(tmp_path):
    """Writes the records of an audit, and returns the page."""

    def write(*records, total=None, command="organ-infer audit p.csv -o out"):
        with audit_directory(tmp_path / "out", IDENTITY, fresh=True) as directory:
            for record in records:
                directory.add(record)
            read = [directory.get(record.key) for record in records]
            write_outputs(directory, read, IDENTITY, total=total or len(records), command=command)
        return Page(tmp_path / "out" / "report.html")

    return write


def audited(name="a.nii", *findings, organs=(), unmapped=(), warnings=(), mask="m.nii"):
    audit = ScanAudit(name, mask, tuple(organs), findings, tuple(unmapped), tuple(warnings))
    return Record(Pair(name, mask, "btcv"), f"key of {name!a}", audit)


def failed(name="bad.nii", error="bad.nii: cut short"):
    return Record(Pair(name, "m.nii", "btcv"), f"key of {name!a}", error=error)


def cards(page):
    """The kinds of the cards, in order, by their classes."""
    return [
        attributes["class"].removeprefix("card ")
        for tag, attributes in page.elements
        if tag == "li" and (attributes.get("class") or "").startswith("card ")
    ]


def test_the_page_needs_nothing_from_outside_and_runs_no_script(page):
    shown = page(audited("a.nii", finding()), failed())
    (policy,) = [
        attributes["content"]
        for tag, attributes in shown.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", shown.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    tags = {tag for tag, _ in shown.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in shown.elements:
        assert not {"style", "href", "srcset", "onload", "onclick"} & attributes.keys()
        assert (attributes.get("src") or "data:").startswith("data:image/png;base64,") or (
            "src" not in attributes
        )
    assert not re.search(r"https?:|url\(|@import|//", style)
    assert "prefers-color-scheme: dark" in style and "@media print" in style


def test_every_element_is_closed(page):
    shown = page(
        audited("a", finding(), finding(kind="odd"), organs=[organ(), organ(warnings=("w",))]),
        audited("b", organs=[organ()], unmapped=["x"], warnings=["w"]),
        failed(),
        total=9,
    )
    opened = Counter(tag for tag, _ in shown.elements)
    closed = Counter(re.findall(r"</(\w+)>", shown.source))
    void = {"meta", "input", "img", "br"}
    assert {tag: count for tag, count in opened.items() if tag not in void} == closed
    titles = [
        attributes["aria-labelledby"] for tag, attributes in shown.elements if tag == "section"
    ]
    assert titles == ["findings", "organs", "failed"]
    assert [attributes.get("id") for tag, attributes in shown.elements if tag == "h2"] == [
        *titles,
        None,
    ]
    assert shown.texts["h2"] == ["Findings", "Organs by scan", "Failed scans", "This run"]


def test_the_summary_has_the_numbers_of_the_run(page):
    shown = page(
        audited("a", finding(3.0), finding(5.0), organs=[organ(), organ("liver", "spleen")]),
        audited("b", organs=[organ()]),
        failed(),
        total=5,
    )
    assert shown.pairs[:5] == [
        ("scans audited", "2"),
        ("scans with findings", "1"),
        ("findings", "2"),
        ("organs that agree", "2 of 3"),
        ("scans failed", "1"),
    ]
    assert "This audit is not complete: 2 scans of 5 not reached yet." in shown.text
    assert "Research software, not a medical device." in shown.text


def test_findings_are_ranked_with_their_numbers_and_pictures(page):
    weak = finding(3.0, kind="orientation", message="orientation: flipped", pictures=())
    shown = page(audited("weak.nii", weak), audited("strong.nii", finding(1234.56)))
    assert shown.texts["h3"] == [SWAPPED, "orientation: flipped"]
    assert re.findall(r"evidence ([\d.,]+)", shown.text) == ["1,234.6", "3.0"]
    assert shown.text.index("strong.nii") < shown.text.index("weak.nii")
    assert ("log likelihood as it is", "-20") in shown.pairs
    assert ("log likelihood swapped", "-7.5") in shown.pairs
    assert [alt for alt, _ in shown.images] == ["kidney-left, slice 7", "kidney-right, slice 9"]
    for _, pixels in shown.images:
        assert (pixels == picture().pixels).all()
    assert shown.texts["figcaption"][0] == ("kidney-leftmodel: kidney-right 0.93slice 7, -45.2 mm")
    sizes = [attributes for tag, attributes in shown.elements if tag == "img"]
    assert (sizes[0]["width"], sizes[0]["height"]) == ("48", "40")


def test_kinds_can_be_chosen_without_a_script(page):
    shown = page(
        audited("a", finding(9.0), finding(8.0, kind="orientation"), finding(7.0, kind="odd")),
        audited("b", finding(1.0)),
    )
    # in the order of KINDS, unknown ones last
    assert cards(shown) == ["kind-1", "kind-0", "kind-2", "kind-1"]
    choices = [a["id"] for tag, a in shown.elements if tag == "input"]
    labels = [a["for"] for tag, a in shown.elements if tag == "label"]
    assert choices == labels == ["kind-all", "kind-0", "kind-1", "kind-2"]
    assert "all 4\norientation 1\nlabels swapped 2\nodd 1" in shown.text
    for i in range(3):
        assert f"#kind-{i}:checked ~ .cards > :not(.kind-{i}) {{ display: none; }}" in shown.source
    assert "#kind-3" not in shown.source
    assert ("orientation", KINDS["orientation"]) in shown.pairs


def test_only_the_strongest_findings_have_pictures_and_the_page_says_so(page, monkeypatch):
    monkeypatch.setattr(page_module, "PICTURES_LIMIT", 2)
    scans = [audited(f"{i}", finding(float(i))) for i in range(4)]
    shown = page(*scans)
    assert len(shown.images) == 4 and len(cards(shown)) == 4
    assert "The strongest 2 of 4 findings have pictures." in shown.text
    shown = page(*scans[:2])
    assert len(shown.images) == 4 and "have pictures" not in shown.text


def test_every_text_is_escaped(page):
    hostile = Finding(
        HOSTILE, HOSTILE, 2.0, (HOSTILE,), {HOSTILE: HOSTILE}, (picture(HOSTILE, HOSTILE),)
    )
    bad_organ = organ(HOSTILE, HOSTILE, structures=(HOSTILE,), warnings=(HOSTILE,))
    shown = page(
        audited(
            HOSTILE,
            hostile,
            organs=[bad_organ],
            unmapped=[HOSTILE],
            warnings=[HOSTILE],
            mask=HOSTILE,
        ),
        failed(HOSTILE + "2", HOSTILE),
        command=HOSTILE,
    )
    assert "script" not in {tag for tag, _ in shown.elements}
    assert "<script" not in shown.source and "x')" not in shown.source
    assert shown.text.count(ESCAPED) > 15
    assert "\x1b" not in shown.source and "model <m>" in shown.text


def test_organs_are_listed_by_scan(page):
    shown = page(
        audited(
            "a.nii",
            organs=[
                organ("liver", "spleen", median_hu=float("nan"), structures=("5", "6")),
                organ(warnings=("touches the border",)),
            ],
            unmapped=["aorta"],
            warnings=["reoriented"],
        ),
        audited("b.nii", organs=[organ()]),
    )
    head, liver, kidney, warning = shown.table("Organs of a.nii")
    assert head[:4] == ["mask", "model", "verdict", "probability"]
    assert liver == ["liver", "spleen", "differs", "0.900", "0.050", "12", "152", "0", "5, 6"]
    assert kidney[:5] == ["kidney-left", "kidney-left", "agrees", "0.900", "0.900"]
    assert warning == ["touches the border"]
    assert len(shown.table("Organs of b.nii")) == 2
    assert "a.nii 2 organs, 1 differs" in shown.text and "b.nii 1 organ, all agree" in shown.text
    assert "Structures of no class: aorta" in shown.text and "Warning: reoriented" in shown.text


def test_failed_scans_and_the_run_are_named(page):
    shown = page(failed(), command="organ-infer audit 'my scans' masks")
    assert "bad.nii: cut short" in shown.text and "No scan was audited." in shown.text
    assert "None. The labels as they are" in shown.text
    for pair in (
        ("command", "organ-infer audit 'my scans' masks"),
        ("organ-infer", "1.2.3"),
        ("manifest", f"sha256 {'ab' * 32}"),
        ("margin", "2.5 mm"),
        ("test-time augmentation", "off"),
    ):
        assert pair in shown.pairs
    assert "Failed scans" not in page(audited()).text


def test_numbers_that_json_does_not_have_are_written(page, tmp_path):
    odd = {
        "nan": float("nan"),
        "infinite": np.float32("inf"),
        "numpy": np.float64(0.125),
        "n": np.int64(7),
    }
    shown = page(
        audited("a", finding(float("inf"), numbers=odd), finding(float("nan"), numbers={})),
    )
    for pair in (("nan", "nan"), ("infinite", "inf"), ("numpy", "0.125"), ("n", "7")):
        assert pair in shown.pairs
    assert "1.8e+308" in shown.text
    assert "NaN" not in (tmp_path / "out" / "results.jsonl").read_text()


def test_the_guide_lists_every_kind():
    text = (ROOT / "docs" / "guides" / "audit.md").read_text()
    rows = re.findall(r"^\| `([\w ]+)` \| (.+) \|$", text, re.MULTILINE)
    assert dict(rows) == dict(KINDS)
