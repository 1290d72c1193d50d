"""Mutants that change nothing that can be seen, by target: (line, as changed) and why. Kept out of the score."""

EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "train/corruptions.py": {
        (
            "return _gray(np.where(drawn < amount, drawn < amount / 2, colour))",
            "drawn <= amount / 2",
        ): "a number drawn is never exactly that",
        (
            "return _gray(np.where(drawn < amount, drawn < amount / 2, colour))",
            "drawn <= amount",
        ): "a number drawn is never exactly that",
    },
    "train/data.py": {
        ('return int(self.images["train"].shape[-1])', "2"): "slices are square",
        (
            'labels = {split: file[f"{split}_labels"].reshape(-1).astype(np.int64) for split in SPLITS}',
            "2",
        ): "NumPy takes any negative length as -1",
    },
    "train/download.py": {
        ("CHUNK = 1 << 20  # bytes", "2"): "the same bytes in other pieces",
        ("CHUNK = 1 << 20  # bytes", "21"): "the same bytes in other pieces",
        ("path.parent.mkdir(parents=True, exist_ok=True)", "pass"): "filelock makes the directory too",
        (
            "return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()",
            "True",
        ): "MD5 is refused then only by a Python built for FIPS",
    },
    "train/metrics.py": {
        (
            'warnings.simplefilter("ignore")  # classes absent from a small split are counted as zero, on purpose',
            "pass",
        ): "with zero_division given scikit-learn does not warn",
    },
    "train/record.py": {
        (
            "atomic_save(path, lambda file: file.write(content) and None)",
            "1",
        ): "what it returns is not looked at",
    },
    "train/robustness.py": {
        ("say: Callable[[str], None] = lambda line: None,", "1"): "what it returns is not looked at",
        ('lines.insert(4, "-" * len(lines[0]))', "1"): "the lines of a table are equally long",
        (
            "accuracy[name], error[name] = map(list, zip(*found, strict=True))",
            "False",
        ): "each is a pair",
        (
            "networks = {file: _Network(file, data, device, shared=needed.count(file) > 1) for file in needed}",
            "needed.count(file) >= 1",
        ): "answers are kept that nobody asks for again",
    },
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
}
