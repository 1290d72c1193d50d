"""Mutants that change nothing that can be seen, by target: (line, as changed) and why. Kept out of the score."""

EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "runtime/organ_infer/bundle.py": {
        ("data = file.read(limit + 1)", "2"): "any more than the limit is too much",
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
            "def accuracy_interval(confusion: np.ndarray | None, draws: int = 10_000) -> tuple[float, float] | None:",
            "10001",
        ): "one more draw of ten thousand",
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
