"""The model repository for Triton: parsed by Triton's own protobuf definitions, its graphs run as they are configured."""

import json
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from conftest import DEFAULT, ROOT, entry, make_graph, needs_default, write_bundle
from PIL import Image

from export.triton import KINDS, Serving, main, write_repository
from organ_infer import OrganClassifier
from organ_infer._packing import pack

EXAMPLES = sorted((ROOT / "examples").glob("*.png"))
SLICES = np.stack([np.asarray(Image.open(path)) for path in EXAMPLES])


def write(bundle, out, *, device="cpu", precision="listed", instances=1, batch=64):
    serving = Serving(KINDS[device], instances, batch)
    return write_repository(bundle, out, device=device, precision=precision, serving=serving)


class Repository:
    """Stands for the server: every configuration parsed and held against its files, requests run step by step."""

    def __init__(self, directory):
        definitions = pytest.importorskip(
            "tritonclient.grpc.model_config_pb2",
            reason="pip install 'tritonclient[grpc]' has Triton's definitions",
        )
        from google.protobuf import text_format

        self.types = definitions.DataType
        self.configs, self.sessions = {}, {}
        for folder in directory.iterdir():
            text = (folder / "config.pbtxt").read_text()
            config = self.configs[folder.name] = text_format.Parse(text, definitions.ModelConfig())
            assert config.name == folder.name and config.max_batch_size > 0
            versions = [path.name for path in folder.iterdir() if path.is_dir()]
            assert versions == ["1"]
            for port in config.output:
                assert len((folder / port.label_filename).read_text().split()) == port.dims[0]
            if config.platform == "ensemble":
                assert not list((folder / "1").iterdir()) and config.WhichOneof("scheduling_choice") == (
                    "ensemble_scheduling"
                )
                assert not config.instance_group and not config.model_warmup
            else:
                self.open(config, folder / "1" / "model.onnx")

    def open(self, config, file):
        assert config.platform == "onnxruntime_onnx"
        session = self.sessions[config.name] = onnxruntime.InferenceSession(
            file, providers=["CPUExecutionProvider"]
        )
        for told, real in (config.input, session.get_inputs()), (config.output, session.get_outputs()):
            assert [port.name for port in told] == [port.name for port in real]
            for port, actual in zip(told, real, strict=True):
                assert port.data_type == self.types.Value("TYPE_FP32") and actual.type == "tensor(float)"
                free, *fixed = actual.shape
                assert isinstance(free, str) and fixed == list(port.dims)
        for sample in config.model_warmup:
            zeros = {
                name: np.zeros((sample.batch_size, *given.dims), np.float32)
                for name, given in sample.inputs.items()
            }
            assert sample.batch_size <= config.max_batch_size and session.run(None, zeros)

    def ask(self, name, **tensors):
        """The outputs of a model, by name."""
        config = self.configs[name]
        assert sorted(tensors) == sorted(port.name for port in config.input)
        for port in config.input:
            assert tensors[port.name].dtype == np.float32
            assert list(tensors[port.name].shape[1:]) == list(port.dims)
            assert len(tensors[port.name]) <= config.max_batch_size
        wanted = [port.name for port in config.output]
        if config.platform != "ensemble":
            return dict(zip(wanted, self.sessions[name].run(wanted, tensors), strict=True))
        for step in config.ensemble_scheduling.step:
            assert (
                step.model_version == -1
                and config.max_batch_size <= self.configs[step.model_name].max_batch_size
            )
            answer = self.ask(
                step.model_name, **{key: tensors[value] for key, value in step.input_map.items()}
            )
            tensors |= {value: answer[key] for key, value in step.output_map.items()}
        return {name: tensors[name] for name in wanted}


def compare(bundle, directory, name, *, atol, **how):
    repository = Repository(directory)
    with OrganClassifier(bundle, device="cpu", threads=1) as classifier:
        expected, manifest = classifier.predict_proba(SLICES), classifier.manifest
    for rows in (slice(1), slice(44)):
        found = repository.ask(name, images=pack(SLICES[rows], manifest.input.size))["probabilities"]
        np.testing.assert_allclose(found, expected[rows], atol=atol)
    return repository


@needs_default
def test_the_packaged_bundle_answers_as_the_classifier(tmp_path):
    out = tmp_path / "deep" / "repository"
    name = write(DEFAULT.parent, out)
    repository = compare(DEFAULT.parent, out, name, atol=1e-5)
    told = json.loads(DEFAULT.read_text())
    assert (out / name / "labels.txt").read_text().split() == told["task"]["classes"]
    members = [f"{name}-{member['stage']}" for member in told["members"]]
    assert sorted(repository.configs) == sorted([name, *members, f"{name}-mean"])
    assert [path.name for path in out.parent.iterdir()] == ["repository"]


@needs_default
def test_another_form_is_served_where_it_is_asked_for(tmp_path):
    name = write(DEFAULT.parent, tmp_path / "fp32", precision="fp32")
    for member in json.loads(DEFAULT.read_text())["members"]:
        form = next(f for f in [member, *member["alternatives"]] if f["precision"] == "fp32")
        served = tmp_path / "fp32" / f"{name}-{member['stage']}" / "1" / "model.onnx"
        assert served.read_bytes() == (DEFAULT.parent / form["file"]).read_bytes()
    compare(DEFAULT.parent, tmp_path / "fp32", name, atol=0.2)  # the classifier may take int8


def test_an_ensemble_with_a_temperature_is_averaged(ensemble, tmp_path):
    hot = tmp_path / "hot"
    graphs = {path.name: path.read_bytes() for path in sorted(ensemble.glob("*.onnx"))}
    write_bundle(hot, graphs, outputs={"third.onnx": "probabilities"}, temperature=1.7, name="three of them")
    name = write(hot, tmp_path / "out", instances=2, batch=48)
    assert name == "three_of_them"
    repository = compare(hot, tmp_path / "out", name, atol=1e-5)
    member = repository.configs["three_of_them-first"]
    assert member.max_batch_size == 48 and member.HasField("dynamic_batching")
    assert [(group.kind, group.count) for group in member.instance_group] == [(2, 2)]
    assert [sample.batch_size for sample in member.model_warmup] == [1, 48]
    assert member.parameters["intra_op_thread_count"].string_value == "1"


def with_fp16(folder):
    """A bundle of a member that is listed in int8, with fp32 and fp16 as alternatives (small float graphs all)."""
    graphs = {f"small.{form}.onnx": make_graph(seed=i) for i, form in enumerate(("int8", "fp32", "fp16"))}

    def change(manifest):
        forms = [
            entry(data, file) | {"stage": "small", "precision": file[6:10]} for file, data in graphs.items()
        ]
        manifest["members"] = [forms[0] | {"alternatives": forms[1:]}]

    return write_bundle(folder, graphs, change=change), graphs


@pytest.mark.parametrize(
    "device, precision, file",
    [
        ("cpu", "listed", "int8"),
        ("cuda", "listed", "fp16"),
        ("cpu", "fp16", "fp16"),
        ("cuda", "fp32", "fp32"),
        ("cuda", "int8", "int8"),
    ],
)
def test_the_form_follows_the_device_and_the_option(device, precision, file, tmp_path):
    bundle, graphs = with_fp16(tmp_path / "bundle")
    out = tmp_path / "out"
    name = write(bundle, out, device=device, precision=precision)
    assert (out / f"{name}-small" / "1" / "model.onnx").read_bytes() == graphs[f"small.{file}.onnx"]
    config = Repository(out).configs[f"{name}-small"]
    assert config.instance_group[0].kind == {"cpu": 2, "cuda": 1}[device]
    assert ("intra_op_thread_count" in config.parameters) == (device == "cpu")


def test_two_members_of_one_name_are_refused(tmp_path, capsys):
    graphs = {"a.onnx": make_graph(seed=1), "b.onnx": make_graph(seed=2)}

    def change(manifest):
        for member in manifest["members"]:
            member["stage"] = "same"

    bundle = write_bundle(tmp_path / "bundle", graphs, change=change)
    assert main([str(bundle), str(tmp_path / "out")]) == 2
    assert "two members would have one name" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--precision", "fp16"], "member small has no fp16 form, only fp32"),
        (["--instances", "0"], "--instances: 1 to 4096 expected, found 0"),
        (["--max-batch", "9999"], "--max-batch: 1 to 4096 expected, found 9999"),
        (["--device", "tpu"], "invalid choice"),
    ],
)
def test_errors_are_one_line_and_end_in_2(arguments, words, bundle, tmp_path, capsys):
    try:
        code = main([str(bundle), str(tmp_path / "out"), *arguments])
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr().err.splitlines()
    assert code == 2 and words in said[-1]
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(bundle, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    assert main([str(bundle), str(tmp_path)]) == 2
    assert main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "is not empty" in told[0] and "found nothing there" in told[1]
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_write_that_fails_leaves_nothing(bundle, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "there")

    monkeypatch.setattr("export.triton._ensemble", full)
    assert main([str(bundle), str(tmp_path / "out")]) == 2
    assert not list(tmp_path.iterdir())


def test_the_command_runs_without_torch(bundle, tmp_path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        f"from export.triton import main; sys.exit(main([{str(bundle)!r}, {str(tmp_path / 'out')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.endswith("clients ask random\n"), done.stderr


@pytest.mark.parametrize("name", ["..", ".", ".hidden"])
def test_a_model_of_a_hidden_name_is_refused(tmp_path, name):
    def change(manifest):
        manifest["name"] = name

    bundle = write_bundle(tmp_path / "bundle", {"small.onnx": make_graph()}, change=change)
    assert main([str(bundle), str(tmp_path / "deep" / "out")]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
