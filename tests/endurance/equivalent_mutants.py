"""Mutants that change nothing that can be seen, by target: (line, as changed) and why. Kept out of the score."""

EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "runtime/organ_infer/bundle/precision.py": {
        (
            'Precision("int8", tolerance=2e-2, cuda_rank=2),',
            "3",
        ): "only the order of the ranks counts",
    },
    "runtime/organ_infer/images/png_metadata.py": {
        ("while offset + 12 <= len(data):", "offset + 12 < len(data)"): "the rest is kept as it is",
    },
    "runtime/organ_infer/volumes/resampling.py": {
        ("BLOCK = 1 << 18", "19"): "only the memory and the speed of a block",
        ("BLOCK = 1 << 18", "1 >> 18"): "only the memory and the speed of a block",
    },
    "train/networks/init.py": {
        (
            "bound = 1 / math.sqrt(layer.weight[0].numel())",
            "1",
        ): "every output has as many inputs",
    },
    "export/all.py": {
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "export/bundle.py": {
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "export/calibrated.py": {
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "export/golden.py": {
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "export/member.py": {
        ("size = size or images.shape[-1]", "2"): "stored slices are square",
        (
            "if not used <= STANDARD_DOMAINS:",
            "used < STANDARD_DOMAINS",
        ): "onnx's checker takes no operator of the domain 'ai.onnx' by that name",
        (
            "domains = {entry.domain for entry in model.opset_import} | used",
            "{entry.domain for entry in model.opset_import} & used",
        ): "what standard operators alone are made of names their set",
        (
            'assert "" in domains or "ai.onnx" in domains',
            "'ai.onnx' not in domains",
        ): "what standard operators alone are made of names their set",
    },
    "export/merge.py": {
        (
            "for start, batch in ((0, 1), *((start, BATCH) for start in range(0, len(images), BATCH))):",
            "1",
        ): "the first slice is compared by the other of the two batches that begin with it",
    },
    "export/model_card.py": {
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "export/quantize.py": {
        ("SAMPLE_BATCH = 64", "65"): "the minimum and maximum of all batches, however they are cut",
    },
    "export/rewrite.py": {
        ("kernel, stride = weight.shape[2], _stride(node, weight)", "3"): "the kernel is square",
        (
            'stride, kernel = int(attributes.get("strides", [1, 1])[0]), weight.shape[2]',
            "3",
        ): "the shape is compared with a square one",
    },
    "export/triton.py": {
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
    "export/variants.py": {
        (
            "loss = round(exact.val_accuracy - variant.val_accuracy, 9)",
            "10",
        ): "ten decimals hide the rounding as well",
    },
    "ext/packing.pyx": {
        ("cdef int overflow = 0", "cdef int overflow = 1"): "the call sets it",
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
            "if type_number >= 0 and array_type != type_number:",
            "if type_number > 0 and array_type != type_number:",
        ): "0 is no type of slices",
        (
            "if type_number >= 0 and array_type != type_number:",
            "if type_number >= 1 and array_type != type_number:",
        ): "0 is no type of slices",
        (
            "run.stride_n = strides[0] if ndim == 3 else 0",
            "run.stride_n = strides[0] if ndim == 3 else 1",
        ): "one slice has no next one",
        (
            'def pack(images, size=28, *, mean=0.5, std=0.5, window=None, resample="area", threads=1, out=None):',
            'def pack(images, size=28, *, mean=0.5, std=0.5, window=None, resample="area", threads=2, out=None):',
        ): "the same by two threads",
        (
            "cdef size_t i, count, slices = 0, pixels = 0",
            "cdef size_t i, count, slices = 1, pixels = 0",
        ): "set in both branches",
        (
            "cdef size_t i, count, slices = 0, pixels = 0",
            "cdef size_t i, count, slices = 0, pixels = 1",
        ): "from which size on the lock is released",
        (
            "cdef int type_number = -1, status",
            "cdef int type_number = -2, status",
        ): "below 0 is none",
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
    "runtime/organ_infer/batching.py": {
        ("self._batch: Batch | None = None", "1"): "set before it is looked at",
    },
    "runtime/organ_infer/bundle/files.py": {
        ("data = file.read(limit + 1)", "2"): "any more than the limit is too much",
    },
    "runtime/organ_infer/bundle/golden.py": {
        (
            'hashlib.shake_256(b"organ_infer %d" % i).digest(64), np.uint8',
            "65",
        ): "the bytes before the last are the same, and it is not used",
    },
    "runtime/organ_infer/bundle/onnx_graph.py": {
        ("return None", "1"): "of bytes only that they are there is asked",
    },
    "runtime/organ_infer/classifier.py": {
        (
            "merged[np.arange(len(rows)), organs].astype(np.float32), 1.0",
            "2.0",
        ): "what is above 1 in float64 is 1 in float32",
        (
            "outcomes = list(zip(batch.names, batch.outcomes, strict=True))",
            "False",
        ): "a second look: the lengths are the same",
        (
            "for column, organ in zip(rows.T, self._organ_of, strict=True):",
            "False",
        ): "a second look: the lengths are the same",
        (
            "warnings, pixel_warnings(packed, self.manifest.input), strict=True",
            "False",
        ): "a second look: the lengths are the same",
        ("strict=True,", "False"): "a second look: the lengths are the same",
        (
            "assert model_orientation is not None",
            "1",
        ): "for the type checker: what comes before has refused it",
    },
    "runtime/organ_infer/cli/classify.py": {
        (
            "chunk_size = BATCHES_AHEAD * options.batch_size",
            "BATCHES_AHEAD + options.batch_size",
        ): "how many paths are passed on together",
    },
    "runtime/organ_infer/cli/command.py": {
        ("return _flush_stdout(int(e.code or 0))", "e.code and 0"): "--help and --version end in 0",
    },
    "runtime/organ_infer/cli/paths.py": {
        ("BLOCK = 1 << 16", "2"): "the same paths in other blocks",
    },
    "runtime/organ_infer/cli/signals.py": {
        ("super().__init__(number)", "pass"): "BaseException.__new__ stores the arguments as well",
    },
    "runtime/organ_infer/engine/ensemble.py": {
        ("workers = _workers(1)", "2"): "it has one task",
        (
            "return bool(rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() <= 1e-3)",
            "np.abs(rows.sum(axis=1) - 1).max() < 0.001",
        ): "no sum in float64 is just as far from 1",
    },
    "runtime/organ_infer/engine/cuda.py": {
        (
            'logger.debug("preload_dlls: %s", one_line(text.getvalue()))',
            "pass",
        ): "a message for developers",
        ("_preloaded: ModuleType | None = None", "1"): "no module is either of them",
    },
    "runtime/organ_infer/engine/tta.py": {
        (
            "index = np.arange(packed.shape[-1])",
            "2",
        ): "slices are square: axis 2 is as long as the last",
    },
    "runtime/organ_infer/explain.py": {
        (
            'image.save(file, "PNG", bits=4, optimize=True, transparency=bytes((0, *opacity, *opacity)))',
            "5",
        ): "Pillow takes the next larger number that PNG has; only the size of the file",
        (
            'image.save(file, "PNG", bits=4, optimize=True, transparency=bytes((0, *opacity, *opacity)))',
            "False",
        ): "only the size of the file",
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "runtime/organ_infer/notebook.py": {
        ('image.save(file, "PNG", optimize=True)', "False"): "only the size of the file",
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "an import for types alone",
    },
    "runtime/organ_infer/files.py": {
        ("target.rmdir()", "pass"): "Linux lets a directory take the place of an empty one",
    },
    "runtime/organ_infer/images/arrays.py": {
        ("BLOCK = 1 << 20", "21"): "how much is read at once",
        ("BLOCK = 1 << 20", "2"): "how much is read at once",
    },
    "runtime/organ_infer/images/dicom.py": {
        ("BLOCK = 1 << 20", "21"): "how much is inflated at once",
        ("BLOCK = 1 << 20", "2"): "how much is inflated at once",
        ("for axis, direction in zip(axes, directions, strict=True)", "False"): "each has two",
    },
    "runtime/organ_infer/images/memory.py": {
        (
            'yield where, Slice(pixels.astype(pixels.dtype.newbyteorder("="), copy=False))',
            "True",
        ): "the same pixels in a copy",
    },
    "runtime/organ_infer/images/pillow.py": {
        (
            'if name in ("PNG", "PPM") and wide.min() >= 0 and wide.max() <= 65_535:',
            "65536",
        ): "no PNG or PNM holds more than 16 bits",
    },
    "runtime/organ_infer/plausibility.py": {
        (
            "found[i] = _skin_brightness(gray) < SKIN_LIMIT",
            "_skin_brightness(gray) <= SKIN_LIMIT",
        ): "a mean of float32 is never exactly 0.15",
        (
            "return float(small[skin].mean()) if skin.any() else 1.0",
            "2.0",
        ): "more than the limit, as 1 is",
        (
            "if len(gray) <= SKIN_SIDE:",
            "len(gray) < SKIN_SIDE",
        ): "28 pixels are reduced to themselves",
        (
            "pixels = packed.reshape(len(packed), -1)",
            "2",
        ): "any negative number stands for what is left",
    },
    "train/augment.py": {
        (
            "chosen = draws[:, :3] < PROBABILITY",
            "draws[:, :3] <= PROBABILITY",
        ): "one draw in 16 million",
    },
    "train/batches.py": {
        (
            "if len(batches) > 1 and len(batches[-1]) < at_least:",
            "len(batches) >= 1",
        ): "a single batch is joined with itself alone",
    },
    "train/corruptions.py": {
        (
            "return _gray(np.where(drawn < amount, drawn < amount / 2, color))",
            "drawn <= amount / 2",
        ): "a number drawn is never exactly that",
        (
            "return _gray(np.where(drawn < amount, drawn < amount / 2, color))",
            "drawn <= amount",
        ): "a number drawn is never exactly that",
    },
    "train/data.py": {
        ('return int(self.images["train"].shape[-1])', "2"): "slices are square",
        (
            'split: file[f"{split}_labels"].reshape(-1).astype(np.int64) for split in SPLITS',
            "2",
        ): "NumPy takes any negative length as -1",
    },
    "train/devices.py": {
        (
            'print(f"train: warning: no GPU is used: {reason}", file=sys.stderr, flush=True)',
            "False",
        ): "standard error is flushed at every line",
        (
            "remedy = PINNED if capability < min(_parsed(arch)[1:3] for arch in built_for) else NEWEST",
            "4",
        ): "a GPU of the lowest version runs",
        (
            "remedy = PINNED if capability < min(_parsed(arch)[1:3] for arch in built_for) else NEWEST",
            "capability <= min((_parsed(arch)[1:3] for arch in built_for))",
        ): "a GPU of the lowest version runs",
    },
    "train/download.py": {
        ("CHUNK = 1 << 20", "2"): "the same bytes in other pieces",
        ("CHUNK = 1 << 20", "21"): "the same bytes in other pieces",
        (
            "file, lambda: hashlib.new(algorithm, usedforsecurity=False)",
            "True",
        ): "MD5 is refused then only by a Python built for FIPS",
    },
    "train/chains.py": {
        (
            "count, chain = connected_components(graph, directed=False)",
            "True",
        ): "a directed graph's chains are by default those of weak connection, whichever way",
        (
            "mask: np.ndarray = (np.random.default_rng(seed).random(chain.max() + 1) < share)[chain]",
            "np.random.default_rng(seed).random(chain.max() + 1) <= share",
        ): "a draw of exactly the share does not happen",
        (
            "mask: np.ndarray = (np.random.default_rng(seed).random(chain.max() + 1) < share)[chain]",
            "2",
        ): "one draw more than there are chains",
        (
            "flat = images.reshape(len(images), -1).astype(np.float32)",
            "2",
        ): "NumPy takes every negative number for the rest",
    },
    "train/ema.py": {
        (
            "averages, values = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)",
            "False",
        ): "each pair holds two",
    },
    "train/fit.py": {
        ("best_accuracy: float = -1.0", "2.0"): "any accuracy is better than a negative one",
        ("best: dict[str, Tensor] | None = None", "1"): "the first epoch is the best so far",
        ("best_epoch: int = 0", "1"): "the first epoch is the best so far",
        ("learner.optimizer.zero_grad(set_to_none=True)", "False"): "gradients of 0 or none",
    },
    "train/metrics.py": {
        (
            'warnings.simplefilter("ignore")',
            "pass",
        ): "with zero_division given scikit-learn does not warn",
    },
    "train/recipes/edge.py": {
        (
            "return torch.optim.AdamW(groups, lr=self.peak, fused=True)",
            "False",
        ): "the same steps, slower",
        ("if progress < warmup:", "progress <= warmup"): "both are 1 there",
    },
    "train/recipes/edge_augment.py": {
        (
            "share = draws[:, :1] / 2 * (draws[:, 1:] < probability)",
            "draws[:, 1:] <= probability",
        ): "one draw in 16 million",
    },
    "train/recipes/reference.py": {
        (
            "return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)",
            "False",
        ): "the same steps, slower",
    },
    "train/report/__init__.py": {
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"): "train.data is imported anyway, later",
    },
    "train/report/measures.py": {
        (
            "truth = np.asarray(labels).reshape(-1)[: len(probabilities)]",
            "2",
        ): "NumPy takes any negative number for the rest",
        (
            "confusion: np.ndarray | None, draws: int = 10_000",
            "10001",
        ): "one more draw of ten thousand",
    },
    "train/report/pictures.py": {
        (
            "if max(picture.size) > LARGEST:",
            "max(picture.size) >= LARGEST",
        ): "resized to the size that it has",
        (
            'picture.save(data, format="PNG", optimize=True)',
            "False",
        ): "the same pixels in more bytes",
    },
    "train/robustness.py": {
        (
            "report: Callable[[str], None] = lambda line: None,",
            "1",
        ): "what it returns is not looked at",
        ('lines.insert(4, "-" * len(lines[0]))', "1"): "the lines of a table are equally long",
        (
            "accuracy[name], error[name] = map(list, zip(*scores, strict=True))",
            "False",
        ): "each is a pair",
        (
            "file: _Network(file, data, device, shared=files.count(file) > 1) for file in files",
            "files.count(file) >= 1",
        ): "answers are kept that nobody asks for again",
    },
}
