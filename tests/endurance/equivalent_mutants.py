"""Mutants that change nothing that can be seen, by target: (line, as changed) and why. Kept out of the score."""

EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "runtime/organ_infer/bundle.py": {
        ("data = file.read(limit + 1)", "2"): "any more than the limit is too much",
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
    "train/augment.py": {
        (
            "chosen = draws[:, :3] < PROBABILITY  # rotation, erasing, perspective",
            "draws[:, :3] <= PROBABILITY",
        ): "one draw in 16 million",
    },
    "train/average.py": {
        (
            "own, other = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)",
            "False",
        ): "each pair holds two",
    },
    "train/batches.py": {
        (
            "if len(batches) > 1 and len(batches[-1]) < at_least:",
            "len(batches) >= 1",
        ): "a single batch is joined with itself alone",
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
    "train/edge/augment.py": {
        (
            "share = draws[:, :1] / 2 * (draws[:, 1:] < probability)",
            "draws[:, 1:] <= probability",
        ): "one draw in 16 million",
    },
    "train/edge/chains.py": {
        (
            "return (np.random.default_rng(seed).random(chain.max() + 1) < share)[chain]",
            "np.random.default_rng(seed).random(chain.max() + 1) <= share",
        ): "a draw of exactly the share does not happen",
        (
            "return (np.random.default_rng(seed).random(chain.max() + 1) < share)[chain]",
            "2",
        ): "one draw more than there are chains",
        (
            "flat = images.reshape(len(images), -1).astype(np.float32)",
            "2",
        ): "NumPy takes every negative number for the rest",
        (
            "number, chain = connected_components(graph, directed=False)",
            "True",
        ): "a directed graph's chains are by default those of weak connection, whichever way",
    },
    "train/edge/method.py": {
        ("return torch.optim.AdamW(groups, lr=self.peak, fused=True)", "False"): "the same steps, slower",
        (
            "share = done / warm if done < warm else 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))",
            "done <= warm",
        ): "both are 1 there",
    },
    "train/fit.py": {
        (
            "best: dict[str, Tensor] | None = None  # the weights that are kept, on the CPU",
            "1",
        ): "the first epoch is the best so far",
        ("best_epoch: int = 0", "1"): "the first epoch is the best so far",
        ("learner.optimiser.zero_grad(set_to_none=True)", "False"): "gradients of 0 or none",
    },
    "train/method.py": {
        (
            "return torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)",
            "False",
        ): "the same steps, slower",
    },
}
