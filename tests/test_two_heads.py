"""Export of networks that know when not to answer: parity of both outputs, variants, threshold, bundles, Triton."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import make_graph
from onnx import helper, numpy_helper
from support.orientation_graphs import orientation_graph
from support.tiny_graphs import accept_every_variant
from support.two_heads import CLASSES, Exported, TwoHeads, random_slices

from export import triton, variants
from export.bundle import Trained, write_bundle
from export.bundle_info import BundleInfo
from export.golden import add_golden
from export.member import ExportError, check_orientation, export_member, to_onnx
from export.merge import check_merged, merge
from export.rewrite import rewrite
from export.triton_config import Serving
from export.variants import Slices, make_variants, outputs_of
from organ_infer import BundleError, OrganClassifier
from organ_infer.bundle.files import open_bundle, read_manifest
from organ_infer.bundle.golden import golden_orientation, golden_slices
from organ_infer.cli import main

VAL, TRAIN = random_slices(300), random_slices(80, seed=1)
# before `any_accuracy`
REAL_PRECISIONS = dict(variants.PRECISIONS)


@pytest.fixture(autouse=True, scope="module")
def any_accuracy():
    """Every variant is accepted: the classes of these random networks are as close as noise."""
    with pytest.MonkeyPatch.context() as patch:
        accept_every_variant(patch)
        yield


def tensor(slices):
    """float32 (N, 1, 28, 28), as the published normalization has it."""
    return torch.from_numpy((np.float32(slices) / 255 - 0.5) / 0.5)[:, None]


def outputs(network, slices=VAL):
    """Logits and orientation of a network in PyTorch, as NumPy arrays."""
    with torch.no_grad():
        return [array.numpy() for array in network.for_export().eval()(tensor(slices))]


@pytest.fixture(scope="module")
def networks():
    """Two networks, of which the first has very different plausibilities."""
    one, other = TwoHeads().eval(), TwoHeads(seed=1).eval()
    with torch.no_grad():
        one.orientation_head.weight *= 12
    return one, other


@pytest.fixture(scope="module")
def labels(networks):
    return outputs(networks[0])[0].argmax(1)


@pytest.fixture(scope="module")
def files(networks, labels, tmp_path_factory):
    """The ONNX files of both networks."""
    folder = tmp_path_factory.mktemp("members")
    for name, network in zip("ab", networks, strict=True):
        export_member(network, folder / f"{name}.onnx", VAL, labels)
    return [folder / "a.onnx", folder / "b.onnx"]


@pytest.fixture(scope="module")
def model(files):
    """The graph of the first network."""
    return onnx.load(files[0])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The ONNX file of a network without the second output."""
    path = tmp_path_factory.mktemp("plain") / "plain.onnx"
    path.write_bytes(make_graph())
    return path


def info_of(**changes):
    facts = {
        **{"name": "organamnist-two", "dataset": "organamnist", "view": "axial"},
        **{"classes": CLASSES, "size": 28, "training": {"seed": 0}},
        "metrics": {"val": {"accuracy": 0.5, "auc": 0.5, "ece": 0.1}},
    }
    return BundleInfo(**(facts | changes))


def written(folder, files, labels, **options):
    trained = [Trained(file.stem, file) for file in files]
    lines = []
    write_bundle(
        folder, info_of(), trained, Slices(TRAIN, VAL, labels, 28), report=lines.append, **options
    )
    return folder, lines


@pytest.fixture(scope="module")
def one_bundle(files, labels, tmp_path_factory):
    return written(tmp_path_factory.mktemp("one") / "bundle", files[:1], labels)[0]


@pytest.fixture(scope="module")
def two_bundle(files, labels, tmp_path_factory):
    return written(tmp_path_factory.mktemp("two") / "bundle", files, labels)[0]


# The member.


def test_both_outputs_are_exported_and_compared(networks, labels, tmp_path):
    parity = export_member(networks[0], tmp_path / "m.onnx", VAL, labels)
    logits, orientation = outputs(networks[0])
    np.testing.assert_allclose(parity.logits, logits, atol=1e-5)
    np.testing.assert_allclose(parity.orientation, orientation, atol=1e-6)
    ports = onnx.load(tmp_path / "m.onnx").graph.output
    shapes = [
        [axis.dim_param or axis.dim_value for axis in p.type.tensor_type.shape.dim] for p in ports
    ]
    assert [port.name for port in ports] == ["logits", "orientation"]
    assert [shape[1:] for shape in shapes] == [[11], [9]] and isinstance(shapes[1][0], str)


def test_a_network_without_a_second_head_has_one_output_as_before(labels, tmp_path):
    parity = export_member(TwoHeads(has_orientation=False), tmp_path / "m.onnx", VAL, labels)
    assert parity.orientation is None
    assert [port.name for port in onnx.load(tmp_path / "m.onnx").graph.output] == ["logits"]


class Wrong(TwoHeads):
    """A network whose exported orientation is wrong."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def for_export(self):
        return Exported(self, self.change)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, problem",
    [
        (
            lambda o: o[:, :8] / o[:, :8].sum(1, keepdim=True),
            r"has the shape \(300, 8\), expected \(N, 9\)",
        ),
        (lambda o: o * 1.01, "does not sum to 1, by up to 1.0e-02; return probabilities"),
        (lambda o: torch.log(o), "is negative, NaN or infinite; return probabilities"),
        (lambda o: o * float("nan"), "is negative, NaN or infinite; return probabilities"),
    ],
    ids=["shape", "sum", "logarithms", "nan"],
)
def test_an_orientation_without_probabilities_is_not_exported(change, problem, labels, tmp_path):
    with pytest.raises(ExportError, match=f"m: the orientation of PyTorch {problem}"):
        export_member(Wrong(change), tmp_path / "m.onnx", VAL, labels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moved, fits", [(0.9e-4, True), (1.1e-4, False)])
def test_an_orientation_that_differs_is_refused(moved, fits):
    expected = np.full((3, 9), 1 / 9, np.float32)
    found = expected.copy()
    found[1, 0] += moved
    found[1, 1] -= moved
    if fits:
        check_orientation(expected, found, name="m")
        return
    with pytest.raises(ExportError, match=r"m: the orientation differs from PyTorch's by 1\.1"):
        check_orientation(expected, found, name="m")


def spoiled_at_batch(model, batch):
    """The graph with another orientation for batches of this size alone: two columns are exchanged."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    graph = copied.graph
    for node in graph.node:
        node.output[:] = ["right" if name == "orientation" else name for name in node.output]
    for name, value in (
        ("first", np.array(0)),
        ("count", np.array(batch)),
        ("swapped", np.array([1, 0, *range(2, 9)])),
    ):
        graph.initializer.append(numpy_helper.from_array(value, name))
    graph.node.extend(
        [
            helper.make_node("Shape", ["images"], ["sizes"]),
            helper.make_node("Gather", ["sizes", "first"], ["n"]),
            helper.make_node("Equal", ["n", "count"], ["here"]),
            helper.make_node("Gather", ["right", "swapped"], ["wrong"], axis=1),
            helper.make_node("Where", ["here", "wrong", "right"], ["orientation"]),
        ]
    )
    return copied


@pytest.mark.parametrize("batch, where", [(1, " at batch 1"), (256, ""), (44, "")])
def test_an_orientation_that_differs_at_any_batch_is_refused(
    networks, model, labels, tmp_path, monkeypatch, batch, where
):
    spoiled = spoiled_at_batch(model, batch)
    monkeypatch.setattr("export.member.to_onnx", lambda network, size: spoiled)
    with pytest.raises(ExportError, match=f"^m{where}: the orientation differs from PyTorch's"):
        export_member(networks[0], tmp_path / "m.onnx", VAL, labels)


@pytest.mark.parametrize("batch, where", [(1, ", at batch 1"), (256, "")])
def test_a_rewritten_graph_whose_orientation_differs_is_refused(
    model, labels, monkeypatch, batch, where
):
    monkeypatch.setattr(variants, "rewrite", lambda model: spoiled_at_batch(model, batch))
    with pytest.raises(ExportError, match=f"^a rewritten{where}: the orientation differs"):
        make_variants("a", model, Slices(TRAIN, VAL, labels, 28), ("fp32",))


# The variants.


@pytest.mark.slow
def test_every_variant_has_both_outputs_and_probabilities(networks, model, labels):
    expected = outputs(networks[0])[1]
    found = make_variants("a", model, Slices(TRAIN, VAL, labels, 28), report=lambda line: None)
    assert [variant.precision for variant in found] == ["int8", "fp32", "fp16"]
    for variant in found:
        again = outputs_of(variant.content, VAL, 28)
        np.testing.assert_array_equal(variant.orientation, again.orientation)
        np.testing.assert_allclose(variant.orientation.sum(1), 1, atol=1e-3)
        assert np.abs(variant.orientation - expected).max() < 0.1


def test_int8_keeps_small_plausibilities_apart(labels):
    """An int8 softmax knows steps of 1/256 only."""
    network = TwoHeads().eval()
    with torch.no_grad():
        network.orientation_head.weight *= 60
    model = to_onnx(network, 28)
    int8, *_ = make_variants("a", model, Slices(TRAIN, VAL, labels, 28), report=lambda line: None)
    assert int8.precision == "int8"
    small = int8.orientation[int8.orientation < 1 / 512]
    assert len(small) > 50 and len(np.unique(small)) > len(small) / 2
    operators = [node.op_type for node in onnx.load_from_string(int8.content).graph.node]
    assert "QuantizeLinear" in operators


def test_a_variant_without_probabilities_is_not_accepted(model, labels, monkeypatch):
    def spoiled(model, slices):
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        for node in copied.graph.node:
            if node.op_type == "Softmax":
                node.op_type = "Sigmoid"
                del node.attribute[:]
        return copied

    row = replace(variants.PRECISIONS["int8"], convert=spoiled)
    monkeypatch.setitem(variants.PRECISIONS, "int8", row)
    lines, failed = [], []
    found = make_variants(
        "a",
        model,
        Slices(TRAIN, VAL, labels, 28),
        ("int8",),
        report=lines.append,
        failed=failed.append,
    )
    assert [variant.precision for variant in found] == ["fp32"] and failed == []
    assert lines[0].startswith("a: no int8 variant: its orientation does not sum to 1")


def mark_reader(exchanged=()):
    """A graph that finds the orientation by the one white pixel of `marked_slices`; two columns may be exchanged."""
    graph = onnx.load_from_string(orientation_graph())
    one = np.zeros((28, 28))
    one[0, 1] = 1
    matrix = np.zeros((28 * 28, 9), np.float32)
    for column, turned in enumerate(
        [one, one[::-1], one[:, ::-1], one[::-1, ::-1],
         one.T, one[::-1].T, one[:, ::-1].T, one[::-1, ::-1].T]
    ):  # fmt: skip
        matrix[:, column] = 5 * turned.ravel()
    if exchanged:
        matrix[:, list(exchanged)] = matrix[:, list(exchanged)[::-1]]
    for weight in graph.graph.initializer:
        if weight.name == "matrix":
            weight.CopyFrom(numpy_helper.from_array(matrix, "matrix"))
    return graph


def marked_slices(count):
    """uint8 (N, 28, 28), black but for one pixel."""
    slices = np.zeros((count, 28, 28), np.uint8)
    slices[:, 0, 1] = 255
    return slices


@pytest.mark.parametrize(
    "exchanged, most, accepted",
    [((), 0.01, True), ((5, 6), 0.01, False), ((5, 6), 0.25, True), ((5, 6), 0.24, False)],
)
def test_a_variant_whose_orientation_is_worse_is_not_accepted(
    monkeypatch, exchanged, most, accepted
):
    """Exchanging two columns makes a quarter of the turned slices wrong, and no class."""
    row = replace(
        variants.PRECISIONS["int8"],
        convert=lambda *_: mark_reader(exchanged),
        max_orientation_loss=most,
    )
    monkeypatch.setitem(variants.PRECISIONS, "int8", row)
    val, lines = marked_slices(80), []
    slices = Slices(val, val, np.full(80, CLASSES.index("liver")), 28)
    found = make_variants("a", mark_reader(), slices, ("int8",), report=lines.append)
    assert [variant.precision for variant in found] == ["int8", "fp32"][not accepted :]
    assert found[-1].orientation_accuracy == 1.0
    right = "0.7500" if exchanged else "1.0000"
    verdict = "accepted" if accepted else "not accepted"
    assert lines == [
        f"a: int8 {verdict}, validation accuracy 1.0000, fp32 1.0000; right orientation of turned slices"
        f" {right}, fp32 1.0000"
    ]


def test_more_orientation_than_a_hundredth_may_not_be_lost():
    assert {row.max_orientation_loss for row in REAL_PRECISIONS.values()} == {0.01}


# The bundle.


@pytest.mark.parametrize("name", ["one_bundle", "two_bundle"])
def test_one_percent_of_validation_is_below_the_threshold_of_the_listed_variants(name, request):
    bundle = request.getfixturevalue(name)
    manifest = read_manifest(bundle)
    with OrganClassifier(bundle, device="cpu", threads=1) as classifier:
        predictions = classifier.predict(VAL)
    plausibility = np.array([one.plausibility for one in predictions])
    threshold = manifest.plausibility.threshold
    below = plausibility < threshold
    assert manifest.plausibility.output == "orientation"
    # 3 of 300; of two networks the mean is rounded in another order
    assert below.sum() in (2, 3) and (plausibility < threshold + 1e-6).sum() in (3, 4)
    warned = [any(text.startswith("plausibility") for text in one.warnings) for one in predictions]
    np.testing.assert_array_equal(warned, below)


def test_one_percent_of_validation_is_below_the_threshold_of_the_fast_member_alone(two_bundle):
    manifest = read_manifest(two_bundle)
    with OrganClassifier(two_bundle, device="cpu", threads=1, fast=True) as classifier:
        plausibility = np.array([one.plausibility for one in classifier.predict(VAL)])
        assert classifier.manifest.plausibility == manifest.fast.plausibility
        stored = golden_orientation(classifier.manifest, "cpu")
        answers = classifier._slice_orientations(golden_slices())
    assert (plausibility < manifest.fast.plausibility.threshold).sum() in (2, 3)
    assert manifest.fast.plausibility.threshold != manifest.plausibility.threshold
    np.testing.assert_allclose(answers, stored, atol=1e-5)


def test_the_plausibility_of_a_bundle_is_the_mean_over_its_networks(two_bundle):
    manifest, graphs = read_manifest(two_bundle), open_bundle(two_bundle).graphs
    each = [outputs_of(content, VAL, 28).orientation for _, content in graphs]
    with OrganClassifier(two_bundle, device="cpu", threads=1) as classifier:
        found = [one.plausibility for one in classifier.predict(VAL)]
    assert len(graphs) == 2 and manifest.plausibility is not None
    np.testing.assert_allclose(found, np.mean(each, axis=0)[:, 0], atol=1e-6)


def test_the_export_reports_the_threshold(files, labels, tmp_path):
    bundle, lines = written(tmp_path / "b", files[:1], labels, precisions=("fp32",))
    threshold = read_manifest(bundle).plausibility.threshold
    assert (
        f"plausibility threshold {threshold:g}: 1% of the validation slices are below it" in lines
    )


def test_the_model_card_says_what_is_warned_about(one_bundle, plain, labels, tmp_path):
    threshold = read_manifest(one_bundle).plausibility.threshold
    text = (one_bundle / "MODEL_CARD.md").read_text()
    assert f"Below {threshold:.4g}, as 1 % of the" in text and "without a warning" not in text
    bundle, lines = written(tmp_path / "b", [plain], labels, precisions=("fp32",))
    assert read_manifest(bundle).plausibility is None
    assert "without a warning" in (bundle / "MODEL_CARD.md").read_text()
    assert not any("plausibility" in line for line in lines)


@pytest.mark.parametrize("order", [1, -1])
def test_networks_with_and_without_the_output_are_not_combined(
    files, plain, labels, tmp_path, order
):
    with pytest.raises(
        ExportError,
        match="plain: the network has no output 'orientation', but a has one; combine networks",
    ):
        written(tmp_path / "b", [files[0], plain][::order], labels)
    assert not (tmp_path / "b").exists()


# The known answers.


def test_the_known_answers_include_the_orientation(one_bundle, capfd):
    manifest = read_manifest(one_bundle)
    for device in ("cpu", "cuda"):
        stored = golden_orientation(manifest, device)
        assert stored.shape == (16, 9)
        np.testing.assert_allclose(stored.sum(1), 1, atol=1e-4)
    assert main(["--check", "--bundle", str(one_bundle), "--device", "cpu"]) == 0
    assert "self-test      a int8: 16 slices" in capfd.readouterr().out


def edited(bundle, folder, change):
    """A copy of a bundle with another manifest, without its seal."""
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["training"]["seal"]
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_another_orientation_than_the_known_one_fails_the_check(one_bundle, tmp_path, capfd):
    def change(manifest):
        rows = manifest["metrics"]["golden_orientation"]["cpu"]
        rows[5] = " ".join(rows[5].split()[::-1])

    folder = edited(one_bundle, tmp_path / "b", change)
    assert main(["--check", "--bundle", str(folder), "--device", "cpu"]) == 2
    assert "differs from the known answers by up to" in capfd.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[1:],
        lambda rows: [row + " 0" for row in rows],
        lambda rows: [" ".join(["0.2"] * 9)] * 16,
    ],
    ids=["rows", "columns", "sum"],
)
def test_known_orientations_of_another_form_are_refused(one_bundle, tmp_path, change):
    def changed(manifest):
        golden = manifest["metrics"]["golden_orientation"]
        golden["cpu"] = change(golden["cpu"])

    manifest = read_manifest(edited(one_bundle, tmp_path / "b", changed))
    with pytest.raises(
        BundleError, match=r"metrics\.golden_orientation\.cpu must be 16 strings of 9"
    ):
        golden_orientation(manifest, "cpu")


def test_golden_is_renewed_for_both_outputs(one_bundle, tmp_path):
    folder = edited(one_bundle, tmp_path / "b", lambda m: m["metrics"].pop("golden_orientation"))
    assert golden_orientation(read_manifest(folder), "cpu") is None
    add_golden(folder)
    assert read_manifest(folder).metrics == read_manifest(one_bundle).metrics


# One graph of all, and Triton.


def test_the_merged_graph_returns_the_mean_orientation(files, networks):
    models = {file.stem: rewrite(onnx.load(file)) for file in files}
    merged = merge(models, temperature=1.5)
    assert [port.name for port in merged.graph.output] == ["probabilities", "orientation"]
    session = onnxruntime.InferenceSession(
        merged.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    probabilities, found = session.run(None, {"images": tensor(VAL).numpy()})
    expected = np.mean([outputs(network)[1] for network in networks], axis=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    check_merged(merged, probabilities, VAL, 28, orientation=expected)
    expected[290, 3] += 2e-4
    with pytest.raises(ExportError, match="merged graph's orientation differs from the members'"):
        check_merged(merged, probabilities, VAL, 28, orientation=expected)


def test_graphs_with_and_without_the_output_are_not_merged(files):
    plain = onnx.load_from_string(make_graph())
    with pytest.raises(ExportError, match="b: the network has no output 'orientation', but a has"):
        merge({"a": onnx.load(files[0]), "b": plain})


def test_triton_serves_the_mean_orientation_with_its_names(two_bundle, tmp_path):
    out = tmp_path / "out"
    serving = Serving("KIND_CPU", 1, 32)
    name = triton.write_repository(
        two_bundle, out, device="cpu", precision="listed", serving=serving
    )
    for folder in out.iterdir():
        config = (folder / "config.pbtxt").read_text()
        labels = (folder / "orientation_labels.txt").read_text().splitlines()
        assert labels[0] == "as required" and labels[8] == "no organ crop" and len(labels) == 9
        output = 'output [ { name: "orientation" data_type: TYPE_FP32 dims: [9] label_filename: "orientation_labels.txt" } ]'
        assert output in config
    steps = (out / name / "config.pbtxt").read_text()
    for stage in "ab":
        assert f'output_map {{ key: "orientation" value: "{stage}_orientation" }}' in steps
        assert f'input_map {{ key: "{stage}_orientation" value: "{stage}_orientation" }}' in steps
    # the models, run by hand
    tensors = {}
    for stage in "ab":
        session = onnxruntime.InferenceSession(out / f"{name}-{stage}" / "1" / "model.onnx")
        for port, value in zip(
            session.get_outputs(), session.run(None, {"images": tensor(VAL).numpy()}), strict=True
        ):
            tensors[f"{stage}_{port.name}"] = value
    mean = onnxruntime.InferenceSession(out / f"{name}-mean" / "1" / "model.onnx")
    assert [port.name for port in mean.get_outputs()] == ["probabilities", "orientation"]
    _, found = mean.run(None, tensors)
    with OrganClassifier(two_bundle, device="cpu", threads=1) as classifier:
        expected = [one.plausibility for one in classifier.predict(VAL)]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)


def test_an_averaging_graph_with_a_wrong_orientation_is_not_served(
    two_bundle, tmp_path, monkeypatch
):
    from export import average

    real = average.averaging_nodes

    def spoiled(outputs, temperature, orientations=()):
        # the first network alone
        return real(outputs, temperature, list(orientations)[:1])

    monkeypatch.setattr(average, "averaging_nodes", spoiled)
    with pytest.raises(triton.TritonError, match="differ from NumPy's"):
        triton.write_repository(
            two_bundle,
            tmp_path / "out",
            device="cpu",
            precision="listed",
            serving=Serving("KIND_CPU", 1, 32),
        )
