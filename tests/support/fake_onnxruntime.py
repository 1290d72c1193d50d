"""An onnxruntime that offers and grants what it is told, for machines without a GPU.

Its CUDA copies where CUDA copies, refuses what CUDA refuses, and computes by `compute`: each slice's mean, so that
order and padding can be seen, or the network itself on the CPU (`compute="network"`).

Every call and every release on CUDA must happen on the one CUDA thread: `assert_one_thread` fails otherwise.
"""

import gc
import os
import sys
import threading
import types
import weakref

import numpy as np
import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def means(batch):
    """A row a slice: its mean times the class's number."""
    mean = batch.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
    return np.outer(mean, np.arange(11, dtype=np.float32))


def network(graph):
    """The graph itself, in the real onnxruntime on the CPU: every output by name."""
    session = onnxruntime.InferenceSession(graph, providers=[CPU])
    names = [port.name for port in session.get_outputs()]
    return lambda batch: dict(zip(names, session.run(names, {"images": batch}), strict=True))


def output_of(answers, name):
    """One output. What is no dictionary is that of any name."""
    return answers[name] if isinstance(answers, dict) else answers


def fake(
    available=(CUDA, CPU),
    granted=(CUDA, CPU),
    fails=None,
    answer=None,
    compute="means",
    refuses=None,
    pinned=False,
    placed=None,
    gpus=1,
    cuda_version="12.8",
    refusal=None,
    only=None,
):
    """A module to put in onnxruntime's place. `refuses` is where a CUDA graph fails: "open", "capture", "replay"
    (raises, with the text `refusal` if there is one), "capture, stale" (the next plain run raises as well) or "answer"
    (a replay that does nothing; with `only`, that does nothing to this output); `placed` says which operators run where; `fails` is the text of the
    error with which CUDA does not open, or a function of the GPU's number and the number of openings so far. It keeps
    what was asked of it: `opened` (options, providers), `shapes` of batches, `values` made on the device (array, number,
    and a weak reference), `runs` as "plain", "capture" or "replay", `calls` on CUDA and `strays`, those made on another
    thread than the CUDA thread."""
    module = types.ModuleType("onnxruntime")
    module.__version__ = onnxruntime.__version__
    module.opened, module.shapes, module.values, module.runs, module.preloaded = [], [], [], [], 0
    module.running = module.openings = 0
    module.stale = False
    module.calls, module.strays, module.threads = [], [], {}
    module.cuda_version = cuda_version

    def touch(operation):
        """Record a call on CUDA, and whether the wrong thread made it."""
        thread = threading.current_thread()
        module.calls.append(operation)
        first = module.threads.setdefault(os.getpid(), thread.ident)
        if thread.name != "organ_infer_cuda" or thread.ident != first:
            module.strays.append(f"{operation} on {thread.name}")

    def owned(thing, operation):
        """`thing` was made on CUDA; its release is recorded, too."""
        touch(operation)
        weakref.finalize(thing, touch, f"release after {operation}").atexit = False

    class Options:
        def __init__(self):
            self.entries = {}

    class SessionOptions(Options):
        def add_session_config_entry(self, key, value):
            self.entries[key] = value

    class RunOptions(Options):
        def add_run_config_entry(self, key, value):
            self.entries[key] = value

    class OrtValue:
        def __init__(self, array, place):
            self.array, self.place = array, place
            owned(self, f"allocation ({place})")

        @classmethod
        def ortvalue_from_shape_and_type(
            cls, shape, element_type, device_type="cpu", device_id=0, memory_info=None
        ):
            place = memory_info or device_type
            assert place in ("cuda", "pinned") and device_id < gpus
            value = cls(np.full(shape, 7, element_type), place)  # memory as it comes is not zero
            number = None if memory_info else device_id
            module.values.append(
                types.SimpleNamespace(array=value.array, number=number, value=weakref.ref(value))
            )
            return value

        def numpy(self):
            touch("copy to the host")
            return self.array.copy() if self.place == "cuda" else self.array

        def update_inplace(self, data):
            touch("copy to the device")
            source = data.array if isinstance(data, OrtValue) else data
            assert source.dtype == self.array.dtype and source.size == self.array.size
            assert source.flags.c_contiguous
            self.array[...] = source.reshape(self.array.shape)

    class IOBinding:
        def __init__(self, session):
            self.session, self.input, self.outputs = session, None, {}
            owned(self, "binding")

        def bind_ortvalue_input(self, name, value):
            assert name == "images"
            self.input = value

        def bind_ortvalue_output(self, name, value):
            assert name in ("logits", "probabilities", "orientation")
            self.outputs[name] = value

        def store(self, outputs, answers):
            for name, value in outputs.items():
                value.update_inplace(output_of(answers, name))

    def assigned():
        return [
            types.SimpleNamespace(
                ep_name=name,
                get_nodes=lambda ops=ops: [types.SimpleNamespace(op_type=op) for op in ops],
            )
            for name, ops in placed.items()
        ]

    class InferenceSession:
        def __init__(self, graph, sess_options, providers, enable_fallback):
            assert isinstance(graph, bytes) and enable_fallback == 0
            names = [p if isinstance(p, str) else p[0] for p in providers]
            options = {} if isinstance(providers[0], str) else providers[0][1]
            if CUDA in names:
                owned(self, "open")
                self.number = int(options["device_id"])
                module.openings += 1
                text = fails(self.number, module.openings) if callable(fails) else fails
                if text:
                    raise RuntimeError(text)
                if self.number >= gpus:
                    raise RuntimeError(INVALID_DEVICE.format(self.number, gpus))
            self.captures = options.get("enable_cuda_graph") == "1"
            if self.captures and refuses == "open":
                raise RuntimeError(refusal or "This session cannot use the CUDA Graph feature")
            module.opened.append((sess_options, providers))
            self.names = [name for name in granted if name in names]
            recorded = sess_options.entries.get("session.record_ep_graph_assignment_info") == "1"
            if placed is not None and recorded:
                self.get_provider_graph_assignment_info = assigned
            self.compute = means if compute == "means" else network(graph)
            self.by_thread = threading.local()  # as onnxruntime keeps graphs

        def get_providers(self):
            return self.names

        def answer(self, batch):
            module.shapes.append(batch.shape)
            return answer(len(batch)) if answer else self.compute(batch)

        def run(self, outputs, feed):
            answers = self.answer(feed["images"])
            return [output_of(answers, name) for name in outputs]

        def io_binding(self):
            return IOBinding(self)

        def run_with_iobinding(self, binding, run_options):
            assert binding.session is self and self.names[0] == CUDA
            touch("run")
            module.running += 1
            assert module.running == 1, "two runs on the device at once"
            try:
                self.bound(binding, run_options.entries.get("gpu_graph_id", "0"))
            finally:
                module.running -= 1

        def bound(self, binding, number):
            if not self.captures or number == "-1":
                assert number in ("0", "-1")
                module.runs.append("plain")
                if module.stale:
                    module.stale = False
                    raise RuntimeError("CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED ; GPU=0")
                binding.store(binding.outputs, self.answer(binding.input.array))
                return
            graphs = self.by_thread.__dict__
            if number not in graphs:
                module.runs.append("capture")
                if refuses in ("capture", "capture, stale"):
                    module.stale = refuses != "capture"
                    raise RuntimeError(
                        refusal or "operation not permitted\nwhen stream is capturing"
                    )
                graphs[number] = binding.input, binding.outputs
            else:
                module.runs.append("replay")
                if refuses == "replay":
                    raise RuntimeError("graph launch failed")
            source, targets = graphs[number]  # of the capture, whatever is bound by now
            if refuses != "answer" or module.runs[-1] == "capture":
                binding.store(targets, self.answer(source.array))
            elif refuses == "answer" and only is not None:
                answers = self.answer(source.array)
                binding.store({name: targets[name] for name in targets if name != only}, answers)

    def preload_dlls():
        touch("preload")
        module.preloaded += 1
        print("Failed to load libcublas.so.12")

    module.SessionOptions, module.RunOptions = SessionOptions, RunOptions
    module.InferenceSession, module.OrtValue, module.preload_dlls = (
        InferenceSession,
        OrtValue,
        preload_dlls,
    )
    module.get_available_providers = lambda: list(available)
    module.disable_telemetry_events = lambda: None
    module.severities = []
    module.set_default_logger_severity = module.severities.append
    if pinned:
        module.OrtDeviceMemoryType = types.SimpleNamespace(HOST_ACCESSIBLE="host accessible")
        devices = [
            types.SimpleNamespace(
                ep_name=CUDA,
                memory_info=lambda kind: "pinned",
                ep_options={"device_id": str(number)},
            )
            for number in range(gpus)
        ]
        module.get_ep_devices = lambda: [types.SimpleNamespace(ep_name=CPU), *devices]
    return module


def assert_one_thread(module):
    """Every session is gone, and nothing on CUDA was done outside the CUDA thread."""
    from organ_infer.engine import cuda_thread

    gc.collect()
    if cuda_thread._worker is not None:
        cuda_thread.call(lambda: None)  # what finalizers have queued is done before it
    assert module.strays == []


# As onnxruntime 1.27 writes it.
INVALID_DEVICE = (
    "[ONNXRuntimeError] : 1 : FAIL : /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider_info.cc:74"
    " onnxruntime::CUDAExecutionProviderInfo::FromProviderOptions 0 <= info.device_id && info.device_id < num_devices was"
    " false. Invalid device ID: {}, must be between 0 (inclusive) and {} (exclusive).\n"
)


def install(monkeypatch, **how):
    """Put a fake in onnxruntime's place for the length of a test; torch counts as not loaded."""
    module = fake(**how)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return module
