"""An onnxruntime that offers and grants what it is told, for machines without a GPU.

Its CUDA copies where CUDA copies, refuses what CUDA refuses, and computes by `compute`: each slice's mean, so that
order and padding can be seen, or the network itself on the CPU (`compute="network"`).
"""

import sys
import threading
import types

import numpy as np
import onnxruntime

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def means(batch):
    """A row a slice: its mean times the class's number."""
    mean = batch.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
    return np.outer(mean, np.arange(11, dtype=np.float32))


def network(graph):
    """The graph itself, in the real onnxruntime on the CPU."""
    session = onnxruntime.InferenceSession(graph, providers=[CPU])
    return lambda batch: session.run(None, {"images": batch})[0]


def stand_in(
    available=(CUDA, CPU),
    granted=(CUDA, CPU),
    fails=None,
    answer=None,
    compute="means",
    refuses=None,
    pinned=False,
    placed=None,
):
    """A module to put in onnxruntime's place. `refuses` is where a CUDA graph fails: "open", "capture", "replay"
    (raises) or "answer" (a replay that does nothing); `placed` says which operators run where. It keeps what was asked of it: `opened` (options, providers),
    `shapes` of batches, `values` made on the device, `runs` as "plain", "capture" or "replay"."""
    module = types.ModuleType("onnxruntime")
    module.__version__ = onnxruntime.__version__
    module.opened, module.shapes, module.values, module.runs, module.preloaded = [], [], [], [], 0
    module.running = 0

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

        @classmethod
        def ortvalue_from_shape_and_type(
            cls, shape, element_type, device_type="cpu", device_id=0, memory_info=None
        ):
            place = memory_info or device_type
            assert place in ("cuda", "pinned") and device_id == 0
            value = cls(np.full(shape, 7, element_type), place)  # memory as it comes is not zero
            module.values.append(value)
            return value

        def numpy(self):
            return self.array.copy() if self.place == "cuda" else self.array

        def update_inplace(self, data):
            source = data.array if isinstance(data, OrtValue) else data
            assert source.dtype == self.array.dtype and source.size == self.array.size
            assert source.flags.c_contiguous
            self.array[...] = source.reshape(self.array.shape)

    class IOBinding:
        def __init__(self, session):
            self.session, self.input, self.output = session, None, None

        def bind_ortvalue_input(self, name, value):
            assert name == "images"
            self.input = value

        def bind_ortvalue_output(self, name, value):
            assert name in ("logits", "probabilities")
            self.output = value

    class InferenceSession:
        def __init__(self, graph, sess_options, providers, enable_fallback):
            assert isinstance(graph, bytes) and enable_fallback == 0
            names = [p if isinstance(p, str) else p[0] for p in providers]
            options = {} if isinstance(providers[0], str) else providers[0][1]
            if fails and CUDA in names:
                raise RuntimeError(fails)
            self.captures = options.get("enable_cuda_graph") == "1"
            if self.captures and refuses == "open":
                raise RuntimeError("This session cannot use the CUDA Graph feature")
            module.opened.append((sess_options, providers))
            self.names = [name for name in granted if name in names]
            recorded = sess_options.entries.get("session.record_ep_graph_assignment_info") == "1"
            if placed is not None and recorded:
                self.get_provider_graph_assignment_info = self.assigned
            self.compute = means if compute == "means" else network(graph)
            self.by_thread = threading.local()  # as onnxruntime keeps graphs

        def get_providers(self):
            return self.names

        def assigned(self):
            return [
                types.SimpleNamespace(
                    ep_name=name, get_nodes=lambda ops=ops: [types.SimpleNamespace(op_type=op) for op in ops]
                )
                for name, ops in placed.items()
            ]

        def answer(self, batch):
            module.shapes.append(batch.shape)
            return answer(len(batch)) if answer else self.compute(batch)

        def run(self, outputs, feed):
            return [self.answer(feed["images"])]

        def io_binding(self):
            return IOBinding(self)

        def run_with_iobinding(self, binding, run_options):
            assert binding.session is self and self.names[0] == CUDA
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
                binding.output.update_inplace(self.answer(binding.input.array))
                return
            graphs = self.by_thread.__dict__
            if number not in graphs:
                module.runs.append("capture")
                if refuses == "capture":
                    raise RuntimeError("operation not permitted\nwhen stream is capturing")
                graphs[number] = binding.input, binding.output
            else:
                module.runs.append("replay")
                if refuses == "replay":
                    raise RuntimeError("graph launch failed")
            source, target = graphs[number]  # of the capture, whatever is bound by now
            if refuses != "answer" or module.runs[-1] == "capture":
                target.update_inplace(self.answer(source.array))

    def preload_dlls():
        module.preloaded += 1
        print("Failed to load libcublas.so.12")

    module.SessionOptions, module.RunOptions = SessionOptions, RunOptions
    module.InferenceSession, module.OrtValue, module.preload_dlls = InferenceSession, OrtValue, preload_dlls
    module.get_available_providers = lambda: list(available)
    module.disable_telemetry_events = lambda: None
    module.severities = []
    module.set_default_logger_severity = module.severities.append
    if pinned:
        module.OrtDeviceMemoryType = types.SimpleNamespace(HOST_ACCESSIBLE="host accessible")
        gpu = types.SimpleNamespace(ep_name=CUDA, memory_info=lambda kind: "pinned")
        module.get_ep_devices = lambda: [types.SimpleNamespace(ep_name=CPU), gpu]
    return module


def install(monkeypatch, **how):
    """Put a stand-in in onnxruntime's place for the length of a test; torch counts as not loaded."""
    module = stand_in(**how)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return module
