"""organ_infer.ray.audit: pairs, what is asked of Ray, reruns, and a run on a local cluster."""

import csv
import json
import os
from types import SimpleNamespace

import pytest
from support import fake_audit
from support.phantoms import nifti, phantom
from test_ray import needs_ray

import organ_infer.ray as beyond
from organ_infer import DeviceError, InputError, OrganInferError
from organ_infer.audit.pairs import Pair

PHANTOM = phantom()


class FakeArrow:
    """Tables are lists of rows."""

    string = staticmethod(lambda: "text")
    schema = staticmethod(list)
    array = staticmethod(lambda values, kind: list(values))
    table = staticmethod(lambda columns: columns)
    Table = SimpleNamespace(from_pylist=lambda rows, schema: rows)


class FakeRay:
    """Runs the workers in this process, one table at a time, in reverse order.

    Attributes:
        asked: The keyword arguments of map_batches.
    """

    exceptions = SimpleNamespace(RayActorError=KeyError, RayError=LookupError)

    def __init__(self):
        self.asked = []
        self.data = SimpleNamespace(
            from_arrow=self._from_arrow, ActorPoolStrategy=lambda size: ("pool", size)
        )

    def is_initialized(self):
        return True

    def _from_arrow(self, tables):
        def map_batches(kind, **options):
            self.asked.append((kind, options))
            worker = kind(**options["fn_constructor_kwargs"] | {"device": "cpu"})
            return SimpleNamespace(
                iter_rows=lambda: (row for table in reversed(tables) for row in worker(table))
            )

        return SimpleNamespace(map_batches=map_batches)


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setattr(beyond, "_ray", lambda: fake)
    monkeypatch.setattr(beyond, "_arrow", lambda: FakeArrow)
    return fake


@pytest.fixture
def fake(monkeypatch):
    return fake_audit.install(monkeypatch)


@pytest.fixture
def cases(tmp_path, monkeypatch):
    """Creates scans with their masks in scans/ and masks/ of the working directory, and returns the pairs."""
    monkeypatch.chdir(tmp_path)

    def create(*names):
        for folder, voxels in (("scans", PHANTOM.hu), ("masks", PHANTOM.labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            for name in names:
                (tmp_path / folder / f"{name}.nii").write_bytes(nifti(voxels, PHANTOM.affine))
        return [(f"scans/{name}.nii", f"masks/{name}.nii") for name in names]

    return create


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()][1:]


def test_every_pair_has_a_line_and_the_files_are_those_of_the_command(
    ray, fake, cases, bundle, tmp_path
):
    pairs = cases("a", "bad", "swapped7\udce9\n")
    beyond.audit(pairs, "out", bundle=bundle, margin_mm=3)
    assert sorted(os.listdir(tmp_path / "out")) == [
        *("findings.csv", "organs.csv", "report.html", "results.jsonl"),
    ]
    found = lines(tmp_path / "out" / "results.jsonl")
    assert [row["scan"] for row in found] == [
        f"{tmp_path}/scans/{name}.nii" for name in ("swapped7\\xe9\n", "bad", "a")
    ]
    assert found[1]["error"] == f"{tmp_path}/scans/bad.nii: the scan is bad"
    assert fake.margins == [3, 3, 3]
    assert "organ_infer.ray.audit(" in (tmp_path / "out" / "report.html").read_text()
    with open(tmp_path / "out" / "findings.csv", newline="") as file:
        assert [row["evidence"] for row in csv.DictReader(file)] == ["7.0"]


def test_a_second_call_audits_what_failed_or_is_new(ray, fake, cases, bundle, tmp_path):
    pairs = cases("a", "bad")
    beyond.audit(pairs, "out", bundle=bundle)
    fake.asked.clear()
    beyond.audit(pairs + cases("new"), "out", bundle=bundle)
    assert sorted(fake.asked) == ["bad.nii", "new.nii"]
    beyond.audit(pairs[:1], "out", bundle=bundle)
    assert len(ray.asked) == 2, "Ray is not asked if nothing is left"
    beyond.audit(pairs[:1], "out", bundle=bundle, fresh=True)
    assert len(lines(tmp_path / "out" / "results.jsonl")) == 1
    with pytest.raises(InputError, match="started with no --tta, now --tta"):
        beyond.audit(pairs, "out", bundle=bundle, tta=True)


def test_a_run_is_asked_of_ray_as_it_was_asked_for(ray, fake, cases, bundle):
    beyond.audit(
        cases("a", "b", "c"), "out", bundle=bundle, workers=2, num_cpus=2.5, num_gpus=0.5, tta=True
    )
    ((kind, options),) = ray.asked
    assert kind is beyond.AuditBatch
    assert options["fn_constructor_kwargs"] == {
        **{"bundle": str(bundle), "device": "cuda", "threads": 2, "margin_mm": 5.0, "tta": True},
    }
    assert (options["compute"], options["batch_size"]) == (("pool", 2), 1)
    assert (options["num_cpus"], options["num_gpus"]) == (2.5, 0.5)
    assert options["ray_remote_args_fn"]() == {"max_task_retries": 10}


def test_a_run_that_fails_keeps_the_finished_scans(ray, fake, cases, bundle, tmp_path):
    # the last one is audited first
    pairs = cases("device", "a")
    with pytest.raises(DeviceError, match="the GPU is gone"):
        beyond.audit(pairs, "out", bundle=bundle)
    assert len(lines(tmp_path / "out" / "results.jsonl")) == 1
    assert "1 scan of 2 not reached" in (tmp_path / "out" / "report.html").read_text()

    fake.audit_scan = lambda *_, **__: (_ for _ in ()).throw(DeviceError("gone"))
    ray.exceptions = SimpleNamespace(RayActorError=DeviceError, RayError=LookupError)
    with pytest.raises(
        OrganInferError, match="a worker died 11 times on the same 1 scans or fewer"
    ):
        beyond.audit(pairs, "out", bundle=bundle)


def test_pairs_are_a_csv_file_two_directories_or_a_sequence(cases, tmp_path):
    pairs = cases("a", "b")
    whole = [Pair(f"{tmp_path}/{scan}", f"{tmp_path}/{mask}", "btcv") for scan, mask in pairs]
    (tmp_path / "p.csv").write_text("".join(f"{scan},{mask}\n" for scan, mask in pairs))
    assert beyond._pairs("p.csv", "btcv") == beyond._pairs(tmp_path / "p.csv", "btcv") == whole
    assert beyond._pairs(("scans", tmp_path / "masks"), "btcv") == whole
    assert beyond._pairs(pairs, "btcv") == whole
    assert beyond._pairs([(*pair, "lits") for pair in pairs], "btcv")[0].labels == "lits"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([], "pairs: no scan given"),
        (3, "pairs: expected a CSV file, two directories, or .scan, mask"),
        ([("a", "m"), "b"], r"pairs\[1\]: expected a CSV file, two directories"),
        ([("a",)], r"pairs\[0\]: expected a CSV file"),
        ([("a", "m", "lits", "x")], r"pairs\[0\]: expected a CSV file"),
        ([("a", None)], r"pairs\[0\]: expected a path"),
        ([("a", "m", "nope")], "labels 'nope': no such label map"),
        ([("a", "m"), ("./a", "m")], r"pairs\[1\]: the same scan and mask as pairs\[0\]"),
        ("none.csv", "none.csv: cannot be read"),
        (("none", "m"), "SCANS none: cannot be listed"),
    ],
)
def test_what_are_no_pairs_is_refused(cases, pairs, words):
    cases("a")
    with pytest.raises(InputError, match=words):
        beyond.audit(pairs, "out")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "workers: expected a number of at least 1"),
        ({"margin_mm": -1}, "margin_mm: expected a number of at least 0"),
        ({"margin_mm": float("nan")}, "margin_mm: expected a number of at least 0"),
        ({"output": 3}, "output: expected a path"),
        ({"labels": "nope"}, "labels 'nope': no such label map"),
    ],
)
def test_what_cannot_be_meant_is_refused(cases, options, words):
    pairs = cases("a")
    with pytest.raises(InputError, match=words):
        beyond.audit(**{"pairs": pairs, "output": "out"} | options)


@needs_ray
@pytest.mark.slow
def test_a_run_on_a_local_cluster(cases, bundle, tmp_path):
    import ray

    pairs = [*cases("a"), ("scans/none.nii", "masks/a.nii")]
    (tmp_path / "scans" / "cut.nii").write_bytes(b"n")
    pairs.append(("scans/cut.nii", "masks/a.nii"))
    try:
        for _ in range(2):
            beyond.audit(pairs, tmp_path / "out", bundle=bundle, workers=2, num_cpus=0.5)
    finally:
        ray.shutdown()
    found = lines(tmp_path / "out" / "results.jsonl")
    failed = [os.path.basename(row["scan"]) for row in found if row["error"]]
    assert sorted(name for name in failed if name != "a.nii") == ["cut.nii"] * 2 + ["none.nii"] * 2
    assert "Failed scans" in (tmp_path / "out" / "report.html").read_text()
