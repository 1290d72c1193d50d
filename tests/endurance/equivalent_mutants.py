"""Mutants that change nothing that can be seen, by target: (line, as changed) and why. Kept out of the score."""

EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "export/all.py": {
        (
            "for path, state in zip(options.checkpoint, states, strict=True):",
            "False",
        ): "a state is loaded from each path",
    },
    "export/bundle.py": {
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "export/forms.py": {
        ("lost = round(exact.val_accuracy - accuracy, 9)", "10"): "ten decimals hide the rounding as well",
    },
    "export/member.py": {
        (
            "if not used <= STANDARD_DOMAINS:",
            "used < STANDARD_DOMAINS",
        ): "onnx's checker takes no operator of the domain 'ai.onnx' by that name",
        (
            "domains = {entry.domain for entry in model.opset_import} | {node.domain for node in model.graph.node}",
            "{entry.domain for entry in model.opset_import} & {node.domain for node in model.graph.node}",
        ): "what standard operators alone are made of names their set",
        (
            'assert "" in domains or "ai.onnx" in domains',
            "'ai.onnx' not in domains",
        ): "what standard operators alone are made of names their set",
        ("size = size or images.shape[-1]", "2"): "stored slices are square",
    },
    "export/merge.py": {
        (
            "for start, batch in ((0, 1), *((start, BATCH) for start in range(0, len(images), BATCH))):",
            "1",
        ): "the first slice is compared by the other of the two batches that begin with it",
    },
    "export/quantize.py": {
        ("CALIBRATION_BATCH = 64", "65"): "the minimum and maximum of all batches, however they are cut",
    },
    "runtime/organ_infer/bundle.py": {
        ("data = file.read(limit + 1)", "2"): "any more than the limit is too much",
    },
    "export/rewrite.py": {
        (
            "kernel, stride = weight.shape[2], _stride(node, weight)",
            "3",
        ): "the kernel is square",
        (
            'stride, kernel = found.get("strides", [1, 1])[0], weight.shape[2]',
            "3",
        ): "the shape is compared with a square one",
    },
    "export/triton.py": {
        ("directory.rmdir()", "pass"): "Linux lets a directory take the place of an empty one",
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
        (
            "logits = random.normal(0, 5, (batch, classes)).astype(np.float32)",
            "1",
        ): "other numbers do as well",
        (
            "logits = random.normal(0, 5, (batch, classes)).astype(np.float32)",
            "6",
        ): "other numbers do as well",
        (
            "options.intra_op_num_threads = options.inter_op_num_threads = 1",
            "2",
        ): "the same by two threads",
    },
    "ext/packing.pyx": {
        ("cdef int past = 0", "cdef int past = 1"): "the call sets it",
        ("return 0", "return 1"): "only -1 is looked at",
        (
            "if low >= -32768.0 and low + width <= 32767.0 and low == floor(low) and width == floor(width):",
            "if low >= -32768.0 and low + width < 32767.0 and low == floor(low) and width == floor(width):",
        ): "the other way gives the same there",
        (
            "if low >= -32768.0 and low + width <= 32767.0 and low == floor(low) and width == floor(width):",
            "if low > -32768.0 and low + width <= 32767.0 and low == floor(low) and width == floor(width):",
        ): "the other way gives the same there",
        (
            "if type_number >= 0 and found != type_number:",
            "if type_number > 0 and found != type_number:",
        ): "0 is no type of slices",
        (
            "if type_number >= 0 and found != type_number:",
            "if type_number >= 1 and found != type_number:",
        ): "0 is no type of slices",
        (
            "run.stride_n = strides[0] if ndim == 3 else 0",
            "run.stride_n = strides[0] if ndim == 3 else 1",
        ): "one slice has no next one",
        (
            "def pack(images, size=28, *, mean=0.5, std=0.5, window=None, threads=1, out=None):",
            "def pack(images, size=28, *, mean=0.5, std=0.5, window=None, threads=2, out=None):",
        ): "the same by two threads",
        (
            "cdef size_t i, count, slices = 0, pixels = 0",
            "cdef size_t i, count, slices = 1, pixels = 0",
        ): "set in both branches",
        (
            "cdef size_t i, count, slices = 0, pixels = 0",
            "cdef size_t i, count, slices = 0, pixels = 1",
        ): "from which size on the lock is released",
        ("cdef int type_number = -1, status", "cdef int type_number = -2, status"): "below 0 is none",
        (
            "type_number = _run(images, False, -1, &single)",
            "type_number = _run(images, False, -2, &single)",
        ): "below 0 is none",
        (
            "pixels = single.n * single.h * single.w",
            "pixels = single.n + single.h * single.w",
        ): "from which size on the lock is released",
        (
            "pixels = single.n * single.h * single.w",
            "pixels = single.n * single.h + single.w",
        ): "from which size on the lock is released",
        ("if count > 1:", "if count >= 1:"): "one run on the heap",
        ("if reach[axis] < 0:", "if reach[axis] <= 0:"): "nothing is added",
        ("if reach[axis] < 0:", "if reach[axis] < 1:"): "nothing is added",
    },
}
