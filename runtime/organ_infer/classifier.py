"""OrganClassifier: slices in, predictions out."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batching import Batch, batches, pack_slices, read_ahead, read_batches
from .bundle.files import Manifest, packaged_bundle
from .engine.cuda import Placement
from .engine.devices import parse_device
from .engine.ensemble import Probabilities, open_ensemble
from .engine.session import THREAD_LIMIT, thread_count
from .engine.tta import shifted_mean
from .errors import ImageError, InputError, OrganInferError, one_line
from .images.memory import EXPECTED, slices_in_memory
from .images.orientation import Orientation, parse_orientation, plane_of, turn, turnable
from .images.registry import open_slices
from .images.types import FILE_LIMIT, PIXEL_LIMIT, Limits, Slice
from .plausibility import WHOLE_SIDE, pixel_warnings, shape_warnings
from .results import ImageFailure, Prediction

__all__ = ["OrganClassifier"]

BATCH_SIZE = 64
BATCH_LIMIT = 4096
PIXEL_MOST, FILE_MOST = 65_535**2, 1 << 50
PLAIN_FILE = 1 << 20  # bytes of the largest file that is read in C


class OrganClassifier:
    """The networks of a bundle, ready to classify; a context manager, safe to use from many threads.

    bundle: a directory, or None for the packaged one. device: `auto`, `cpu`, `cuda` or `cuda:N`, the GPU with number N
    of those that CUDA_VISIBLE_DEVICES leaves visible. threads: of onnxruntime, by default what the affinity mask and the
    container's quota allow. batch_size: slices a run, at most.
    orientation: how given slices lie ("PL": rows run to the back, columns to the left), to be turned to the model's;
    by default they are taken as stored. tta: test-time augmentation, each slice's probabilities are the mean over five
    views, as it is and shifted by one pixel up, down, left and right: five times the work. cuda_graphs: record runs on
    CUDA as CUDA graphs; False if other threads of the program use CUDA at the same time. No effect on the CPU.

    Belongs to the process that made it: a forked child makes its own, and unpickling opens the bundle again.
    Raises BundleError, DeviceError, InputError.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int = BATCH_SIZE,
        orientation: str | Sequence[str] | None = None,
        tta: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        try:
            parse_device(device)
        except ValueError as e:
            raise InputError(f"device: {e}") from None
        if threads is not None:
            _check_count("threads", threads, THREAD_LIMIT)
        _check_count("batch_size", batch_size, BATCH_LIMIT)
        _check_switch("tta", tta)
        _check_switch("cuda_graphs", cuda_graphs)
        self._options: dict[str, Any] = {
            "bundle": None if bundle is None else os.path.abspath(bundle),
            "device": device,
            "threads": threads,
            "batch_size": batch_size,
            "orientation": None if orientation is None else parse_orientation(orientation),
            "tta": tta,
            "cuda_graphs": cuda_graphs,
        }
        self._threads = thread_count(threads)
        self._ensemble = open_ensemble(
            packaged_bundle() if bundle is None else bundle,
            device=device,
            threads=self._threads,
            cuda_graphs=cuda_graphs,
        )
        self.manifest: Manifest = self._ensemble.manifest
        self._batch_size, self._tta = batch_size, tta
        self._given: Orientation | None = self._options["orientation"]
        if self._given:
            self._check_turn(self._given, InputError)
        organs = self.manifest.task.organs()
        self._organ_names = list(dict.fromkeys(organs))
        self._organ_of = [self._organ_names.index(organ) for organ in organs]  # of each class

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the probabilities."""
        return self.manifest.task.classes

    @property
    def providers(self) -> tuple[str, ...]:
        """onnxruntime's execution providers as granted, the one in use first."""
        return self._ensemble.providers

    @property
    def placements(self) -> list[tuple[str, Placement]]:
        """For each network on CUDA, its file and where onnxruntime placed its nodes; empty on the CPU."""
        return self._ensemble.placements

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """float32 (N, classes), rows sum to 1.

        images: uint8, uint16 or int16 (HU) arrays (H, W) or (N, H, W), a Pillow image, or a sequence of (H, W) arrays
        and Pillow images. Raises InputError for anything else, and for none at all.
        """
        packed = self._packed([piece.pixels for piece in self._slices(images)])
        return np.concatenate([self._probabilities(some) for some in packed]).astype(np.float32)

    def predict(self, images: Any) -> list[Prediction]:
        """One Prediction a slice; `images` as in `predict_proba`, one slice gives a list of one."""
        slices = self._slices(images)
        found: list[Prediction] = []
        for packed in self._packed([piece.pixels for piece in slices]):
            said = [piece.warnings for piece in slices[len(found) : len(found) + len(packed)]]
            found += self._predictions(packed, [None] * len(packed), said)
        return found

    def predict_paths(
        self,
        paths: Iterable[str | os.PathLike[str]],
        *,
        pixel_limit: int = PIXEL_LIMIT,
        file_limit: int = FILE_LIMIT,
    ) -> Iterator[Prediction | ImageFailure]:
        """For each path, in order, a Prediction, or an ImageFailure where it cannot be read; for a file of many slices
        one each, by the names of `path#0`, `path#1`, ..., which can be given as paths too. Lazy: slices are read a
        batch at a time, and memory does not grow with the number of paths or of slices.

        Of a sequence, the next batch is read in a thread meanwhile. Any other iterable is only asked for paths when
        the results before them have been given, for it may have to wait for them.

        pixel_limit: of a slice; file_limit: bytes of a file, and of what is compressed in it. More is not read.
        """
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise InputError(f"a sequence of paths expected, found one ({paths!r}): pass [path]")
        _check_count("pixel_limit", pixel_limit, PIXEL_MOST)
        _check_count("file_limit", file_limit, FILE_MOST)
        return self._predict_paths(paths, Limits(pixel_limit, file_limit))

    def _predict_paths(
        self, paths: Iterable[str | os.PathLike[str]], limits: Limits
    ) -> Iterator[Prediction | ImageFailure]:
        in_c = self._given is None and limits.file_bytes >= PLAIN_FILE
        read = partial(
            read_batches,
            size=self._batch_size,
            how=self.manifest.input,
            load=lambda name: open_slices(name, limits),
            turn=self._oriented,
            plain=min(limits.pixels, WHOLE_SIDE**2 - 1)
            if in_c
            else 0,  # larger ones are looked at one by one
            threads=self._threads,
        )
        found: Generator[Batch, None, None]
        if isinstance(paths, Sequence):
            found = read_ahead(paths, self._batch_size, read)
        else:
            found = (batch for some in batches(paths, self._batch_size) for batch in read(some))
        with closing(found):
            for batch in found:
                yield from self._results(batch)
                self._ensemble.check_process()  # a fork has not the thread that reads

    def _results(self, batch: Batch) -> Iterator[Prediction | ImageFailure]:
        whole = [
            (name, said)
            for name, said in zip(batch.names, batch.words, strict=True)
            if not isinstance(said, str)
        ]
        predictions = iter(
            self._predictions(batch.packed, [name for name, _ in whole], [said for _, said in whole])
            if whole
            else ()
        )
        for name, said in zip(batch.names, batch.words, strict=True):
            yield ImageFailure(name, said) if isinstance(said, str) else next(predictions)

    def _packed(self, slices: Sequence[NDArray[Any]]) -> Iterator[NDArray[np.float32]]:
        """Slices (H, W) -> float32 (N, 1, S, S), a batch at a time."""
        for i in range(0, len(slices), self._batch_size):
            yield self._pack(slices[i : i + self._batch_size])

    def _probabilities(self, packed: NDArray[np.float32]) -> Probabilities:
        """packed: float32 (N, 1, S, S), a batch -> float64 (N, classes)."""
        answers = self._ensemble.probabilities
        return shifted_mean(answers, packed) if self._tta else answers(packed)

    def _pack(self, slices: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """One pass for each dtype among them."""
        how = self.manifest.input
        packed = np.empty((len(slices), 1, how.size, how.size), np.float32)
        dtypes = {piece.dtype for piece in slices}
        if len(dtypes) == 1:
            return pack_slices(slices, how, packed)
        for dtype in dtypes:
            at = [i for i, piece in enumerate(slices) if piece.dtype == dtype]
            packed[at] = pack_slices(
                [slices[i] for i in at], how, np.empty((len(at), *packed.shape[1:]), np.float32)
            )
        return packed

    def _predictions(
        self, packed: NDArray[np.float32], paths: Sequence[str | None], warnings: Sequence[tuple[str, ...]]
    ) -> list[Prediction]:
        """packed: float32 (N, 1, S, S), a batch."""
        rows = self._probabilities(packed)
        doubts = pixel_warnings(packed, self.manifest.input)
        merged = np.zeros((len(rows), len(self._organ_names)))  # (N, organs), the two sides added
        for column, organ in zip(rows.T, self._organ_of, strict=True):
            merged[:, organ] += column
        organs = merged.argmax(axis=1)
        beside = np.minimum(merged[np.arange(len(rows)), organs].astype(np.float32), 1.0)
        columns = (rows.argmax(axis=1), rows.astype(np.float32), organs, beside)
        return [
            Prediction(
                path=path,
                label=self.classes[index],
                index=index,
                probability=probabilities[index],
                probabilities=tuple(probabilities),
                organ=self._organ_names[organ],
                organ_probability=probability,
                warnings=said + doubt,
            )
            for path, said, doubt, index, probabilities, organ, probability in zip(
                paths, warnings, doubts, *(column.tolist() for column in columns), strict=True
            )
        ]

    # Input.

    def _slices(self, images: Any) -> list[Slice]:
        """`images` checked and oriented, one Slice each."""
        slices: list[Slice] = []
        for where, piece in slices_in_memory(images):
            try:
                slices.append(self._oriented(piece))
            except ImageError as e:
                raise InputError(f"{where}: {e}") from e
        if not slices:
            raise InputError(f"images: no slice in it; {EXPECTED}")
        return slices

    def _oriented(self, piece: Slice) -> Slice:
        """Turned as the model takes it: by what the file says, else by `orientation=`, else as stored. What its size
        says is added to what was said of it. Raises ImageError."""
        if piece.pixels.dtype == np.int16 and self.manifest.input.window is None:
            raise ImageError(
                "Hounsfield units (int16), and this model takes no window: pass 8- or 16-bit gray"
            )
        pixels, given = piece.pixels, piece.orientation or self._given
        said = piece.warnings + shape_warnings(*pixels.shape)
        if given is not None:
            self._check_turn(given, ImageError)
            wanted = self.manifest.input.orientation
            assert wanted is not None
            pixels = turn(pixels, given, wanted)
        return Slice(pixels, said)

    def _check_turn(self, given: Orientation, error: type[OrganInferError]) -> None:
        wanted = self.manifest.input.orientation
        lies = "".join(given)
        if wanted is None:
            raise error(
                f"orientation {lies}: how this model's {self.manifest.task.view} slices lie has not been established,"
                " so nothing can be turned to it: pass PNG or arrays as the model was trained on, without orientation"
            )
        if not turnable(given, wanted):
            raise error(
                f"orientation {lies}: a slice in the {plane_of(given)} plane, this model's is {plane_of(wanted)}"
            )

    # Its life.

    def close(self) -> None:
        """Free the networks; once closed, or twice, is fine."""
        self._ensemble.close()

    def __enter__(self) -> "OrganClassifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._options)

    def __repr__(self) -> str:
        state = "closed" if self._ensemble.closed else self.providers[0]
        return f"<OrganClassifier {self.manifest.name}, {self.manifest.task.view}, {state}>"


def _reopen(kind: type[OrganClassifier], options: dict[str, Any]) -> OrganClassifier:
    return kind(**options)


def _check_count(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(f"{name}: a whole number from 1 to {most:,} expected, found {value!r}")


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise InputError(f"{name}: True or False expected, found {one_line(repr(value))}")
