"""Small bundles, made once a session with the onnx package: no training, no network."""

import gc
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = (
    "1"  # tests that import onnxruntime themselves use no network either
)
os.environ["ORGAN_INFER_CACHE"] = ""  # nothing is left in the user's own
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # workers of pytest -n share the processors

ROOT = Path(__file__).parent.parent
DEFAULT = ROOT / "runtime" / "organ_infer" / "default" / "manifest.json"
CLASSES = [
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
]
PAIRED = [
    ["femur-left", "femur-right"],
    ["kidney-left", "kidney-right"],
    ["lung-left", "lung-right"],
]

# Files that take longer than their number of tests says, the longest first.
LONG_FILES = (
    "test_run.py",
    "test_run_repeats.py",
    "test_whole_run.py",
    "test_damaged_run.py",
    "test_parallel.py",
    "test_report.py",
    "test_prove.py",
    "test_variants.py",
    "test_export.py",
    "test_check.py",
)

needs_default = pytest.mark.skipif(
    not DEFAULT.exists(), reason="the packaged bundle is not built yet"
)


def pytest_collection(session):
    """Nothing that is collected is garbage."""
    gc.disable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """`pytest -n` gives each file to one worker, as `--dist loadfile` does: no fixture of a file is built twice."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadFileScheduling

    # the order of the workers' tests, below
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """In the workers of `pytest -n`, long files come first and files of few tests last, so that the workers end together."""
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)

    def place(item):
        name = item.path.name
        long = LONG_FILES.index(name) if name in LONG_FILES else len(LONG_FILES)
        return long, -tests[item.path], item.path

    items.sort(key=place)


def pytest_collection_finish(session):
    """The garbage collector passes over the imported modules and the thousands of collected tests from here on."""
    gc.enable()
    gc.collect()
    gc.freeze()


def make_graph(
    *, seed=0, classes=11, size=28, output="logits", scale=0.05, shape=None, change=None
):
    """A random network: convolution, ReLU, mean over the map, linear layer. `change` alters the model's protobuf."""
    from onnx import TensorProto, checker, helper, numpy_helper

    random = np.random.default_rng(seed)
    weights = {
        "kernel": random.normal(size=(8, 1, 5, 5)) * 0.5,
        "matrix": random.normal(size=(8 * 49, classes)) * scale,
        "bias": random.normal(size=(classes,)),
    }
    last = "logits" if output == "logits" else "raw"
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["a"], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node(
            "AveragePool", ["b"], ["c"], kernel_shape=[size // 7] * 2, strides=[size // 7] * 2
        ),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "matrix", "bias"], [last]),
    ]
    if output == "probabilities":
        nodes.append(helper.make_node("Softmax", ["raw"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, size, size])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape or ["N", classes])],
        [
            numpy_helper.from_array(value.astype(np.float32), name)
            for name, value in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if change:
        change(model)
    else:
        checker.check_model(model, full_check=True)
    return model.SerializeToString()


def constant_graph(probabilities):
    """A network that answers every slice with these, a class each; the other classes get none."""
    from onnx import numpy_helper

    row = np.full(11, -20, np.float32)
    row[[CLASSES.index(name) for name in probabilities]] = np.log(list(probabilities.values()))

    def change(model):
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            tensor.CopyFrom(
                numpy_helper.from_array(row if tensor.name == "bias" else value * 0, tensor.name)
            )

    return make_graph(change=change)


def entry(data, file, output="logits"):
    return {
        "stage": file.removesuffix(".onnx"),
        "file": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "precision": "fp32",
        "output": output,
        "val_accuracy": 0.5,
        "alternatives": [],
    }


def write_bundle(folder, graphs, *, outputs=None, change=None, **top):
    """A bundle of `graphs` (file -> bytes); `change` alters the manifest's parsed JSON before it is written."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    card = b"# A random network\n"
    (folder / "MODEL_CARD.md").write_bytes(card)
    for file, data in graphs.items():
        (folder / file).write_bytes(data)
    manifest = {
        "format": 1,
        "name": "random",
        "task": {"dataset": "organamnist", "view": "axial", "classes": CLASSES, "paired": PAIRED},
        "input": {
            "size": 28,
            "mean": 0.5,
            "std": 0.5,
            "resample": "area",
            "window": [40, 400],
            "orientation": ["L", "P"],
        },
        "members": [
            entry(data, file, (outputs or {}).get(file, "logits")) for file, data in graphs.items()
        ],
        "combine": "mean_probability",
        "temperature": 1.0,
        "metrics": {"val": {"accuracy": 0.5}},
        "training": {"seed": 0},
        "card": {"file": "MODEL_CARD.md", "sha256": hashlib.sha256(card).hexdigest()},
        "license": "none",
    } | top
    if change:
        change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """One network that gives logits. Read only: tests that alter it take `copied`."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "one", {"small.onnx": make_graph()})


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory):
    """Three networks, of which one gives probabilities."""
    graphs = {
        "first.onnx": make_graph(seed=1),
        "second.onnx": make_graph(seed=2),
        "third.onnx": make_graph(seed=3, output="probabilities"),
    }
    folder = tmp_path_factory.mktemp("bundle") / "three"
    return write_bundle(folder, graphs, outputs={"third.onnx": "probabilities"})


@pytest.fixture(scope="session")
def probabilities_bundle(tmp_path_factory):
    """The network of `bundle` that ends in its softmax."""
    folder = tmp_path_factory.mktemp("bundle") / "softmax"
    graph = make_graph(output="probabilities")
    return write_bundle(folder, {"small.onnx": graph}, outputs={"small.onnx": "probabilities"})


@pytest.fixture
def bundle_copy(bundle, tmp_path):
    """A copy of `bundle` to be altered."""
    return Path(shutil.copytree(bundle, tmp_path / "copied"))


@pytest.fixture(scope="session")
def classifier(bundle):
    from organ_infer import OrganClassifier

    with OrganClassifier(bundle, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="session")
def slices():
    """uint8 (40, 28, 28)"""
    return np.random.default_rng(7).integers(0, 256, (40, 28, 28), np.uint8)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory, slices):
    """The slices as PNG files, s00.png to s39.png, and nothing else in the directory."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    for i, pixels in enumerate(slices):
        Image.fromarray(pixels).save(folder / f"s{i:02}.png")
    return folder


def child_environment(**more):
    """The environment of a child process that imports organ_infer as this process does."""
    import organ_infer

    where = str(Path(organ_infer.__file__).parent.parent)
    environment = {
        k: v for k, v in os.environ.items() if k not in ("ORGAN_INFER_BUNDLE", "PYTHONWARNINGS")
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [where, environment.get("PYTHONPATH")])
    )
    return environment | more


@pytest.fixture
def install_fake(monkeypatch):
    """Puts a fake in onnxruntime's place (support/fake_onnxruntime.py), made as the arguments say, and returns it. At the end of the
    test, no call on CUDA may have been made outside the CUDA thread."""
    from support import fake_onnxruntime

    modules = []

    def put(**how):
        modules.append(fake_onnxruntime.install(monkeypatch, **how))
        return modules[-1]

    yield put
    for module in modules:
        fake_onnxruntime.assert_one_thread(module)


@pytest.fixture(scope="session")
def forked_command():
    """The command in forked processes, or None if this machine cannot fork them."""
    if not sys.platform.startswith("linux"):
        yield None
        return
    from support.forked_command import ForkedCommand

    forked = ForkedCommand(child_environment())
    yield forked if forked.usable else None
    forked.close()


def same_environment(one, other):
    """Whether these are equal besides what pytest, PyTorch and scikit-learn set for themselves."""
    ignored = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_", "KMP_")
    return all(
        one.get(name) == other.get(name)
        for name in one.keys() | other.keys()
        if not name.startswith(ignored)
    )


@pytest.fixture
def command(bundle, forked_command):
    """Runs the command with `bundle` as its model; returns the finished process.

    It is forked from a process that has imported everything, unless its environment or another option says how a new one
    starts.
    """

    def run(*arguments, model=bundle, text=True, stdin=None, cwd=None, env=None, **options):
        chosen = [] if model is None else ["--bundle", str(model)]
        arguments = [*chosen, *map(os.fsdecode, arguments)]
        environment = child_environment(**(env or {}))
        forkable = (
            forked_command is not None
            and not options
            and same_environment(environment, forked_command.environment)
        )
        if not forkable:
            return subprocess.run(
                [sys.executable, "-m", "organ_infer", *arguments],
                capture_output=True,
                text=text,
                input=stdin,
                timeout=60,
                cwd=cwd,
                env=environment,
                **options,
            )
        done = forked_command.run(
            arguments,
            cwd=os.path.abspath(cwd or os.getcwd()),
            stdin=stdin.encode() if isinstance(stdin, str) else stdin,
            timeout=60,
        )
        if text:
            done.stdout, done.stderr = (
                io.TextIOWrapper(io.BytesIO(output)).read() for output in (done.stdout, done.stderr)
            )
        return done

    return run


@pytest.fixture
def three_images(pictures):
    return sorted(map(str, pictures.iterdir()))[:3]


@pytest.fixture
def bad_image(tmp_path):
    path = tmp_path / "bad.png"
    path.write_bytes(b"no image")
    return str(path)


@pytest.fixture(scope="module")
def two_class_bundle(tmp_path_factory):
    """A model of two classes."""

    def change(manifest):
        manifest["task"].update(classes=["liver", "spleen"], paired=[])

    folder = tmp_path_factory.mktemp("two") / "b"
    return write_bundle(folder, {"g.onnx": make_graph(classes=2)}, change=change)
