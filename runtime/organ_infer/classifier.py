"""OrganClassifier, the entry point of the package: it classifies slices in memory and in files."""

import logging
import operator
import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .batching import Batch, pack_slices, path_chunks, read_ahead, read_batches
from .bundle.files import Manifest, packaged_bundle
from .engine.cuda import CLOSED, Placement
from .engine.devices import parse_device
from .engine.ensemble import Answer, Orientations, Probabilities, open_ensemble
from .engine.session import THREAD_LIMIT, thread_count
from .engine.tta import shifted_answer, shifted_mean
from .errors import (
    ImageError,
    InputError,
    OrganInferError,
    file_reason,
    one_line,
    short_repr,
    shorten_names,
)
from .images.axes import orientation_names
from .images.memory import EXPECTED, slices_in_memory
from .images.orientation import Orientation, can_reorient, parse_orientation, plane_of, reorient
from .images.registry import decode_slices, open_slices
from .images.types import FILE_LIMIT, PIXEL_LIMIT, Limits, Slice, SliceReaders
from .names import path_text
from .plausibility import (
    WHOLE_SLICE_SIDE,
    field_warnings,
    orientation_warnings,
    pixel_warnings,
    shape_warnings,
    without_orientation_warnings,
)
from .results import ImageFailure, Prediction, remember

if TYPE_CHECKING:
    from .evaluation import Evaluation
    from .images.inputs import Images
    from .results import OrganPredictions
    from .volumes.crops import Crop, Slices
    from .volumes.types import Mask, Volume

__all__ = ["OrganClassifier"]

logger = logging.getLogger("organ_infer")

BATCH_SIZE = 64
BATCH_LIMIT = 4096
# the largest values of `pixel_limit` (pixels) and `file_limit` (bytes)
PIXEL_LIMIT_MAX, FILE_LIMIT_MAX = 65_535**2, 1 << 50
# bytes of the largest file that is read in C
PLAIN_FILE = 1 << 20


class SupportsRead(Protocol):
    """A stream open for reading bytes."""

    def read(self, size: int, /) -> bytes | None:
        """Return up to `size` bytes, and none at the end."""


class OrganClassifier:
    """Classifies slices with the networks of a bundle.

    It is a context manager, and can be used from several threads at once. It belongs to the process that
    opened it: a forked child must open its own, and unpickling opens the bundle again.

    Args:
        bundle: The bundle's directory, or None for the packaged bundle.
        device: `auto`, `cpu`, `cuda` or `cuda:N`. N is the number of a GPU, counted from 0 among those
            that CUDA_VISIBLE_DEVICES leaves visible.
        threads: Threads that run the networks. By default as many as the process's CPU affinity and the
            container's CPU quota allow.
        batch_size: Slices per run of a network, 1 to 4,096, by default 64.
        orientation: Orientation of the inputs, to reorient them to the model's. Two letters of
            L R A P H F: the patient directions in which the row index, then the column index grow ("PL":
            posterior, left). A file that states its orientation uses that one. By default inputs are used
            as stored.
        tta: Test-time augmentation. Probabilities are the mean over five views: the slice, and the slice
            shifted by one pixel up, down, left and right. Takes five times as long.
        fast: Whether to use only the best single network of a bundle that averages several, with its own
            temperature and threshold of plausibility. `manifest` is then that of this network. No effect on a
            bundle of one network.
        cuda_graphs: Whether to use CUDA graphs. By default they are used, but none is recorded while
            PyTorch or CuPy uses CUDA in this process, because a recording makes calls of their threads
            fail. True records them nevertheless. No effect on the CPU.
        expected_sha256: The `sha256` of the model that this program was tested with, or None for any.
            Another bundle is refused.

    Attributes:
        manifest: What the bundle contains, of what is used: the task with its classes, the input, the networks, figures of
            validation and test.

    Raises:
        BundleError: If the bundle is incomplete, altered, of another format, or not the expected one.
        DeviceError: If onnxruntime is missing, or the device is not available.
        InputError: If an argument has the wrong type or value.
    """

    def __init__(
        self,
        bundle: str | bytes | os.PathLike[str] | None = None,
        *,
        device: Literal["auto", "cpu", "cuda"] | str = "auto",
        threads: int | None = None,
        batch_size: int = BATCH_SIZE,
        orientation: str | Sequence[str] | None = None,
        tta: bool = False,
        fast: bool = False,
        cuda_graphs: bool | None = None,
        expected_sha256: str | None = None,
    ) -> None:
        _check_device(device)
        directory = None if bundle is None else path_text(bundle, "bundle")
        threads = None if threads is None else _count("threads", threads, THREAD_LIMIT)
        batch_size = _count("batch_size", batch_size, BATCH_LIMIT)
        tta, fast = _switch("tta", tta), _switch("fast", fast)
        cuda_graphs = None if cuda_graphs is None else _switch("cuda_graphs", cuda_graphs)
        _check_digest(expected_sha256)
        self._options: dict[str, Any] = {
            "bundle": None if directory is None else _absolute(directory),
            "device": device,
            "threads": threads,
            "batch_size": batch_size,
            "orientation": None if orientation is None else parse_orientation(orientation),
            "tta": tta,
            "fast": fast,
            "cuda_graphs": cuda_graphs,
            "expected_sha256": expected_sha256,
        }
        self._threads = thread_count(threads)
        self._ensemble = open_ensemble(
            packaged_bundle() if directory is None else directory,
            device=device,
            threads=self._threads,
            cuda_graphs=cuda_graphs,
            expected_sha256=expected_sha256,
            fast=fast,
        )
        self.manifest: Manifest = self._ensemble.manifest
        if self.manifest.is_smoke:
            logger.warning(
                "%s: from a smoke run, its answers mean nothing; train without --smoke",
                self.manifest.name,
            )
        self._batch_size, self._tta = batch_size, tta
        self._orientation: Orientation | None = self._options["orientation"]
        if self._orientation:
            self._check_orientation(self._orientation, InputError)
        organs = self.manifest.task.organs()
        self._organ_names = list(dict.fromkeys(organs))
        # for each class, the index of its organ
        self._organ_of = [self._organ_names.index(organ) for organ in organs]
        self._orientations = orientation_names(self.manifest.input.orientation)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the probabilities."""
        return self.manifest.task.classes

    @property
    def sha256(self) -> str:
        """The SHA-256 of the bundle's manifest.json. It identifies the model, because the manifest lists the
        SHA-256 of every other file. `organ-infer --check` prints it too."""
        return self._ensemble.sha256

    @property
    def providers(self) -> tuple[str, ...]:
        """onnxruntime's active execution providers, the preferred one first."""
        return self._ensemble.providers

    @property
    def placements(self) -> list[tuple[str, Placement]]:
        """For each network on CUDA, its file and where onnxruntime placed its nodes. Empty on the CPU."""
        return self._ensemble.placements

    def predict_proba(self, images: "Images") -> NDArray[np.float32]:
        """Return the probabilities of each class.

        Args:
            images: uint8, uint16 or int16 (HU) arrays (H, W) or (N, H, W), a Pillow image, or a sequence
                of (H, W) arrays and Pillow images.

        Returns:
            float32 (N, classes). Each row has a sum of 1.

        Raises:
            InputError: If `images` is anything else, or empty.
            OrganInferError: If the classifier is closed, or was opened in another process.
            DeviceError: If a network fails.
        """
        slices = [image.pixels for image in self._slices(images)]
        probabilities = [self._probabilities(packed) for packed in self._packed_batches(slices)]
        return np.concatenate(probabilities).astype(np.float32)

    def predict(self, images: "Images") -> list[Prediction]:
        """Classify slices in memory.

        Args:
            images: As for `predict_proba`.

        Returns:
            One Prediction per slice, also for a single slice.

        Raises:
            InputError: If `images` is anything else, or empty.
            OrganInferError: If the classifier is closed, or was opened in another process.
            DeviceError: If a network fails.
        """
        slices = self._slices(images)
        predictions: list[Prediction] = []
        for packed in self._packed_batches([image.pixels for image in slices]):
            start = len(predictions)
            warnings = [image.warnings for image in slices[start : start + len(packed)]]
            predictions += self._predictions(packed, [None] * len(packed), warnings)
        return predictions

    def explain(self, image: "Images", label: str | None = None) -> NDArray[np.float32]:
        """Return how much the probability of a class depends on each part of a slice, by occlusion.

        The network runs some 600 times on the slice, each time with another square replaced by the slice's mean gray. The
        value of a pixel is the mean drop of the log odds, ln(p / (1 - p)), over the squares that cover it: positive if the
        probability p of the class needs that part of the slice, negative if it rises without it. A drop of 1 divides the
        odds by 2.7. The squares are 4 and 10 of 28 parts wide, so nothing smaller is resolved. The map describes this
        classifier, not anatomy.

        Args:
            image: One slice, as for `predict`.
            label: The class that is looked at, one of `classes`. By default the one that `predict` names.

        Returns:
            float32 (H, W), in the size and orientation of `image`.

        Raises:
            InputError: If `image` is not one slice, or `label` not one of `classes`.
            OrganInferError: If the classifier is closed, or was opened in another process.
            DeviceError: If a network fails.
        """
        if label is not None and not (isinstance(label, str) and label in self.classes):
            raise InputError(
                f"label: expected one of the model's classes, found {short_repr(label)};"
                f" pass one of {shorten_names(self.classes, 300)}"
            )
        slices = self._slices(image)
        if len(slices) != 1:
            raise InputError(
                f"image: expected one slice, found {len(slices):,}; call explain once per slice"
            )
        heat = self._heat(slices[0].pixels, label)
        if self._orientation is not None:
            # back from the model's orientation to that of the image
            model_orientation = self.manifest.input.orientation
            assert model_orientation is not None
            return np.ascontiguousarray(reorient(heat, model_orientation, self._orientation))
        return np.ascontiguousarray(heat)

    def _heat(self, pixels: NDArray[Any], label: str | None = None) -> NDArray[np.float32]:
        """Return the map of a slice (H, W) that is in the model's orientation, float32 (H, W)."""
        # Imported here, because most programs explain nothing.
        from .explain import occlusion_map, stretched

        packed = self._pack([pixels])
        index = (
            int(self._probabilities(packed)[0].argmax())
            if label is None
            else self.classes.index(label)
        )
        heat = occlusion_map(self._probabilities, packed, index, self._batch_size)
        return stretched(heat, *pixels.shape)

    def evaluate(
        self,
        images: "Images",
        labels: Sequence[str | int | None] | NDArray[Any],
        *,
        groups: Sequence[Any] | NDArray[Any] | None = None,
    ) -> "Evaluation":
        """Compare the answers for slices in memory with their true labels.

        Slices without a label, and those whose label the model does not have, are left out. The result counts them,
        and a warning is logged for the latter.

        Args:
            images: As for `predict_proba`.
            labels: One per slice: the name of its class, its index in `classes`, or None for no label. Case does not
                count in names, and spaces and underscores are hyphens.
            groups: One per slice, such as the patient. The interval of the accuracy then resamples groups, because
                slices of one patient resemble each other.

        Returns:
            Accuracy with an interval, metrics by class, confusion matrix, calibration and the most confident mistakes.

        Raises:
            InputError: If an argument has the wrong type or length, or no slice is left.
            OrganInferError: If the classifier is closed, or was opened in another process.
            DeviceError: If a network fails.
        """
        self._check_open()
        # Imported here, because most programs have no labels.
        from .evaluation import evaluate
        from .evaluation.arguments import group_numbers, label_indices

        slices = [image.pixels for image in self._slices(images)]
        indices, unknown = label_indices(labels, self.classes, len(slices))
        numbers = None if groups is None else group_numbers(groups, len(slices))
        if unknown:
            logger.warning(
                "labels: not a class of the model, left out: %s",
                shorten_names([f"{name} ({count:,})" for name, count in unknown.items()], 300),
            )
        probabilities = self._slice_probabilities(slices).astype(np.float32)
        return evaluate(
            probabilities, indices, self.classes, groups=numbers, unknown_labels=unknown
        )

    def predict_paths(
        self,
        paths: Iterable[str | bytes | os.PathLike[str]],
        *,
        pixel_limit: int = PIXEL_LIMIT,
        file_limit: int = FILE_LIMIT,
        any_modality: bool = False,
    ) -> Iterator[Prediction | ImageFailure]:
        """Classify image files, lazily and in order.

        A file of many slices gives one result per slice, named `path#0`, `path#1`, ... Such a name can be
        given as a path too. Files are read one batch at a time, so memory does not grow with the number
        of paths or slices.

        If `paths` is a sequence, the next batch is read in a thread while one is classified. Any other
        iterable may have to wait for its next path. Its next paths are therefore taken only after the
        results of the previous ones were returned.

        Args:
            paths: Image files.
            pixel_limit: Pixels per slice, by default 89,478,485. Larger slices are refused.
            file_limit: Bytes per file, and of what it decompresses to, by default 256 MiB. Larger files are
                refused.
            any_modality: Also classify DICOM of other modalities than CT, with a warning.

        Returns:
            An iterator over the results: a Prediction per slice, or an ImageFailure if it cannot be read. If the
            classifier is closed meanwhile, the next result raises OrganInferError.

        Raises:
            InputError: If `paths` is a single path, or has an entry that is no path, such as the NaN of
                a pandas column. Lists and tuples are checked before the first file is read. Also if a
                limit is not a positive whole number, or `any_modality` is not True or False.
            OrganInferError: If the classifier is closed, or was opened in another process.
            DeviceError: If a network fails.
        """
        if isinstance(paths, (str, bytes, os.PathLike)):
            raise InputError(
                f"paths: expected a sequence of paths, found one ({short_repr(paths)}); pass [path]"
            )
        try:
            iter(paths)
        except TypeError as e:
            raise InputError(
                f"paths: expected a sequence of paths, found {short_repr(paths)}; pass [path]"
            ) from e
        if isinstance(paths, (list, tuple)):
            for i, path in enumerate(paths):
                path_text(path, f"paths[{i}]")
        limits = self._limits(pixel_limit, file_limit, any_modality)
        self._check_open()
        return self._predict_paths(paths, limits)

    def predict_bytes(
        self,
        data: bytes | bytearray | memoryview | SupportsRead,
        *,
        name: str = "data",
        pixel_limit: int = PIXEL_LIMIT,
        file_limit: int = FILE_LIMIT,
        any_modality: bool = False,
    ) -> list[Prediction | ImageFailure]:
        """Classify an image file that is in memory, such as an upload, with the checks and limits of files.

        Args:
            data: The content of a file of any supported format (DICOM needs the extra `dicom`), or a stream open
                for reading bytes, which is read from its position to its end.
            name: Names the results, as a path names those of `predict_paths`.
            pixel_limit: As for `predict_paths`.
            file_limit: As for `predict_paths`. A longer stream is read up to the limit only.
            any_modality: As for `predict_paths`.

        Returns:
            A Prediction per slice, or an ImageFailure if it cannot be read. At least one.

        Raises:
            InputError: If an argument has the wrong type, or a limit is not a positive whole number.
            OrganInferError: If the classifier is closed, or was opened in another process.
            DeviceError: If a network fails.
        """
        limits = self._limits(pixel_limit, file_limit, any_modality)
        if not isinstance(name, str):
            raise InputError(f"name: expected text, found {type(name).__name__}")
        self._check_open()
        try:
            content = _content(data, limits.file_bytes)
        except ImageError as e:
            return [ImageFailure(name, str(e))]
        batches = self._read_files([(name, content)], limits)
        return [result for batch in batches for result in self._results(batch)]

    def predict_volume(
        self,
        volume: "Volume",
        mask: "Mask",
        *,
        margin_mm: float | None = None,
        slices: "Slices" = "middle",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "OrganPredictions":
        """Classify the organs of a scan, to compare the answers with the names in its mask.

        Each organ is cut out with one box and oriented by the affine (`volumes.crops.organ_crops`). The mean of its
        slices' probabilities decides. The crops are views of the volume, and are packed one batch at a time, so
        memory does not grow with the number of slices. The classifier's option `orientation` has no effect.

        Args:
            volume: The scan, as from `volumes.reading.open_volume`.
            mask: Its organs, as from `volumes.reading.open_mask`, or boxes around them, as from
                `volumes.boxes.open_boxes`. Organs without voxels are skipped.
            margin_mm: Margin around an organ in the plane of the slices, in millimeters, 0 to 1,000. By default 5,
                for boxes 0.
            slices: `middle`, the middle 60 % of each organ's slices, or `all`.
            on_progress: Called before the first batch and after each one with the number of slices that are
                classified, and of all slices.

        Returns:
            One OrganPrediction per organ with voxels, in the order of the mask. The list has the attribute
            `warnings`, which says if the slices together look flipped, turned or like no organ crops.

        Raises:
            InputError: If an argument has the wrong type or value, the volume is oblique, the mask does not fit it or
                names a class that the model does not have, or the model takes no Hounsfield units or defines no
                orientation.
            OrganInferError: If the classifier is closed, or was opened in another process.
            DeviceError: If a network fails.
        """
        self._check_open()
        # Imported here, because most programs classify images.
        from .results import OrganPredictions
        from .volumes.crops import check_classes, check_types, organ_crops
        from .volumes.organs import organ_predictions
        from .volumes.votes import scan_orientation, scan_warnings

        orientation = self.manifest.input.orientation
        if orientation is None or self.manifest.input.window is None:
            raise InputError(
                "this model takes no volumes, because its manifest has no"
                f" {'window' if orientation else 'orientation'}; use another bundle"
            )
        check_types(volume, mask)
        check_classes(mask, self.classes)
        crops = organ_crops(
            volume, mask, orientation=orientation, margin_mm=margin_mm, slices=slices
        )
        predictions, orientations = self._predict_crops(
            crops, on_progress or (lambda done, total: None)
        )
        winner = None
        if orientations is not None:
            winner = scan_orientation(orientations, self._orientations)
        if winner is not None:
            # One warning for the scan replaces those of its slices.
            predictions = [
                replace(each, warnings=without_orientation_warnings(each.warnings, winner))
                for each in predictions
            ]
        return OrganPredictions(
            organ_predictions(mask, self.manifest.task, crops, predictions),
            scan_warnings(winner, len(crops)),
        )

    def _predict_crops(
        self, crops: "Sequence[Crop]", on_progress: Callable[[int, int], None]
    ) -> tuple[list[Prediction], Orientations | None]:
        """Classify crops, one batch at a time. Returns their predictions and orientations, float32 (N, 9)."""
        predictions: list[Prediction] = []
        orientations: list[Orientations] = []
        on_progress(0, len(crops))
        for start in range(0, len(crops), self._batch_size):
            batch = crops[start : start + self._batch_size]
            packed = self._pack([crop.pixels for crop in batch])
            # Not the number of pixels: with small voxels, an organ has as many as a whole slice.
            warnings = [crop.warnings + field_warnings(crop.field) for crop in batch]
            answer = self._answer(packed)
            predictions += self._predictions_of(answer, packed, [None] * len(packed), warnings)
            if answer.orientation is not None:
                orientations.append(answer.orientation)
            on_progress(start + len(batch), len(crops))
        return predictions, np.concatenate(orientations) if orientations else None

    def _slice_probabilities(self, slices: Sequence[NDArray[Any]]) -> Probabilities:
        """Classify slices (H, W) of the model's orientation -> float64 (N, classes)."""
        return np.concatenate(
            [self._probabilities(packed) for packed in self._packed_batches(slices)]
        )

    def _slice_answers(self, slices: Sequence[NDArray[Any]]) -> Answer:
        """Classify slices (H, W) of the model's orientation, and return their orientations, too."""
        answers = [self._answer(packed) for packed in self._packed_batches(slices)]
        orientations = [a.orientation for a in answers if a.orientation is not None]
        return Answer(
            np.concatenate([answer.probabilities for answer in answers]),
            np.concatenate(orientations) if orientations else None,
        )

    def _slice_orientations(self, slices: Sequence[NDArray[Any]]) -> Orientations | None:
        """Return the orientations of slices (H, W) as stored, float32 (N, 9), or None if the model gives none."""
        if self.manifest.plausibility is None:
            return None
        return self._slice_answers(slices).orientation

    def _check_open(self) -> None:
        if self._ensemble.closed:
            raise OrganInferError(CLOSED)

    def _predict_paths(
        self, paths: Iterable[str | bytes | os.PathLike[str]], limits: Limits
    ) -> Iterator[Prediction | ImageFailure]:
        read = partial(self._read_paths, limits=limits)
        batches: Generator[Batch, None, None]
        if isinstance(paths, Sequence):
            batches = read_ahead(paths, self._batch_size, read)
        else:
            batches = (
                batch for chunk in path_chunks(paths, self._batch_size) for batch in read(chunk)
            )
        with closing(batches):
            for batch in batches:
                for result in self._results(batch, are_files=True):
                    self._check_open()
                    yield result
                # a forked child lacks the reading thread, and would otherwise end early
                self._ensemble.check_process()

    def _read_paths(
        self,
        paths: Iterable[str | bytes | os.PathLike[str]],
        stopped: Callable[[], bool] = lambda: False,
        *,
        limits: Limits,
    ) -> Iterator[Batch]:
        """Read every slice of some files. Raises OrganInferError before the next slice if the classifier is closed."""
        batches = read_batches(
            paths,
            lambda: stopped() or self._ensemble.closed,
            batch_size=self._batch_size,
            spec=self.manifest.input,
            load=lambda path: open_slices(path, limits),
            prepare=self._prepare,
            plain_pixel_limit=self._plain_pixel_limit(limits),
            threads=self._threads,
        )
        complete = False
        for batch in batches:
            complete = batch.last
            yield batch
        if not complete and not stopped():
            self._check_open()

    def _read_files(self, files: Sequence[tuple[str, bytes]], limits: Limits) -> Iterator[Batch]:
        """Read every slice of files in memory, each with its name. The names may be equal."""
        contents = iter(files)
        return read_batches(
            [name for name, _ in files],
            batch_size=self._batch_size,
            spec=self.manifest.input,
            load=lambda name: _named_slices(name, next(contents)[1], limits),
            prepare=self._prepare,
            plain_pixel_limit=0,
            threads=self._threads,
        )

    def _plain_pixel_limit(self, limits: Limits) -> int:
        """Return the pixel limit for plain PNG files that are read in C, which can neither warn nor reorient."""
        if self._orientation is not None or limits.file_bytes < PLAIN_FILE:
            return 0
        return min(limits.pixels, WHOLE_SLICE_SIDE**2 - 1)

    def _results(
        self, batch: Batch, *, are_files: bool = False
    ) -> Iterator[Prediction | ImageFailure]:
        """Yield the result of each name of a batch."""
        outcomes = list(zip(batch.names, batch.outcomes, strict=True))
        read = [(name, outcome) for name, outcome in outcomes if not isinstance(outcome, str)]
        predictions: Iterator[Prediction] = iter(())
        if read:
            names, warnings = [name for name, _ in read], [outcome for _, outcome in read]
            predictions = iter(
                self._predictions(batch.packed, names, warnings, are_files=are_files)
            )
        for name, outcome in outcomes:
            yield ImageFailure(name, outcome) if isinstance(outcome, str) else next(predictions)

    def _packed_batches(self, slices: Sequence[NDArray[Any]]) -> Iterator[NDArray[np.float32]]:
        """Yield slices (H, W) as float32 (N, 1, S, S), one batch at a time."""
        for start in range(0, len(slices), self._batch_size):
            yield self._pack(slices[start : start + self._batch_size])

    def _probabilities(self, packed: NDArray[np.float32]) -> Probabilities:
        """Run one batch, float32 (N, 1, S, S) -> float64 (N, classes)."""
        probabilities = self._ensemble.probabilities
        return shifted_mean(probabilities, packed) if self._tta else probabilities(packed)

    def _answer(self, packed: NDArray[np.float32]) -> Answer:
        """Run one batch, float32 (N, 1, S, S)."""
        answer = self._ensemble.answer
        return shifted_answer(answer, packed) if self._tta else answer(packed)

    def _pack(self, slices: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Pack slices (H, W) into float32 (N, 1, S, S), in one pass per dtype."""
        spec = self.manifest.input
        packed = np.empty((len(slices), 1, spec.size, spec.size), np.float32)
        dtypes = {pixels.dtype for pixels in slices}
        if len(dtypes) == 1:
            return pack_slices(slices, spec, packed)
        for dtype in dtypes:
            indices = [i for i, pixels in enumerate(slices) if pixels.dtype == dtype]
            packed[indices] = pack_slices(
                [slices[i] for i in indices],
                spec,
                np.empty((len(indices), *packed.shape[1:]), np.float32),
            )
        return packed

    def _predictions(
        self,
        packed: NDArray[np.float32],
        paths: Sequence[str | None],
        warnings: Sequence[tuple[str, ...]],
        *,
        are_files: bool = False,
    ) -> list[Prediction]:
        """Classify one batch, float32 (N, 1, S, S). `warnings` are those of reading."""
        return self._predictions_of(
            self._answer(packed), packed, paths, warnings, are_files=are_files
        )

    def _predictions_of(
        self,
        answer: Answer,
        packed: NDArray[np.float32],
        paths: Sequence[str | None],
        warnings: Sequence[tuple[str, ...]],
        *,
        are_files: bool = False,
    ) -> list[Prediction]:
        """Return the predictions of the networks' answer for one batch. `warnings` are those of reading."""
        rows = answer.probabilities
        all_warnings = [
            read_warnings + slice_warnings
            for read_warnings, slice_warnings in zip(
                warnings, pixel_warnings(packed, self.manifest.input), strict=True
            )
        ]
        plausibilities: list[float | None] = [None] * len(rows)
        orientations: list[str | None] = [None] * len(rows)
        if answer.orientation is not None:
            assert self.manifest.plausibility is not None
            plausibilities = answer.orientation[:, 0].tolist()
            best = answer.orientation.argmax(axis=1).tolist()
            orientations = [self._orientations[i] for i in best]
            all_warnings = orientation_warnings(
                answer.orientation,
                self.manifest.plausibility.threshold,
                self._orientations,
                all_warnings,
            )
        # (N, organs), the two sides added
        merged = np.zeros((len(rows), len(self._organ_names)))
        for column, organ in zip(rows.T, self._organ_of, strict=True):
            merged[:, organ] += column
        organs = merged.argmax(axis=1)
        organ_probabilities = np.minimum(
            merged[np.arange(len(rows)), organs].astype(np.float32), 1.0
        )
        columns = (rows.argmax(axis=1), rows.astype(np.float32), organs, organ_probabilities)
        predictions = [
            Prediction(
                path=path,
                label=self.classes[index],
                index=index,
                probability=probabilities[index],
                probabilities=tuple(probabilities),
                organ=self._organ_names[organ],
                organ_probability=organ_probability,
                warnings=slice_warnings,
                plausibility=plausibility,
                orientation=orientation,
            )
            for path, slice_warnings, plausibility, orientation, index, probabilities, organ, organ_probability in zip(
                paths,
                all_warnings,
                plausibilities,
                orientations,
                *(column.tolist() for column in columns),
                strict=True,
            )
        ]
        for prediction in predictions:
            remember(prediction, self.classes, is_file=are_files)
        return predictions

    # Input

    def _slices(self, images: Any) -> list[Slice]:
        """Return the slices of `images`, checked and reoriented."""
        slices: list[Slice] = []
        for where, image in slices_in_memory(images):
            try:
                slices.append(self._prepare(image))
            except ImageError as e:
                raise InputError(f"{where}: {e}") from e
        if not slices:
            raise InputError(f"images: empty; {EXPECTED}")
        return slices

    def _prepare(self, image: Slice) -> Slice:
        """Reorient a slice to the model, and add the warnings about its size.

        The file's own orientation comes first, then the option `orientation`. Without either, the slice
        is used as stored.

        Raises:
            ImageError: If the model does not take the slice's units or orientation.
        """
        if image.pixels.dtype == np.int16 and self.manifest.input.window is None:
            raise ImageError(
                "Hounsfield units (int16) are not supported by this model, which has no window;"
                " pass 8- or 16-bit gray"
            )
        pixels, orientation = image.pixels, image.orientation or self._orientation
        height, width = pixels.shape
        warnings = image.warnings + shape_warnings(height, width, image.field)
        if orientation is not None:
            self._check_orientation(orientation, ImageError)
            model_orientation = self.manifest.input.orientation
            assert model_orientation is not None
            pixels = reorient(pixels, orientation, model_orientation)
        return Slice(pixels, warnings)

    def _check_orientation(self, orientation: Orientation, error: type[OrganInferError]) -> None:
        """Raise `error` if inputs of this orientation cannot be reoriented to the model."""
        model_orientation = self.manifest.input.orientation
        letters = "".join(orientation)
        if model_orientation is None:
            raise error(
                f"orientation {letters}: this model does not define an orientation, so inputs cannot be"
                " reoriented; pass PNG or arrays oriented as in training, without orientation"
            )
        if not can_reorient(orientation, model_orientation):
            raise error(
                f"orientation {letters}: expected a slice in the {plane_of(model_orientation)} plane,"
                f" found one in the {plane_of(orientation)} plane; pass {plane_of(model_orientation)} slices"
            )

    def _limits(self, pixel_limit: Any, file_limit: Any, any_modality: Any) -> Limits:
        orientation = self.manifest.input.orientation
        return Limits(
            _count("pixel_limit", pixel_limit, PIXEL_LIMIT_MAX),
            _count("file_limit", file_limit, FILE_LIMIT_MAX),
            _switch("any_modality", any_modality),
            None if orientation is None else plane_of(orientation),
        )

    # Lifetime

    def close(self) -> None:
        """Free the networks. Closing twice has no effect."""
        self._ensemble.close()

    def __enter__(self) -> "OrganClassifier":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._options)

    def __repr__(self) -> str:
        state = "closed" if self._ensemble.closed else self.providers[0]
        task = self.manifest.task
        return f"<OrganClassifier {self.manifest.name}, {task.view}, {len(task.classes)} classes, {state}>"

    def _repr_html_(self) -> str:
        # Imported here, because only notebooks call this.
        from .notebook import classifier_html

        state = "closed" if self._ensemble.closed else ", ".join(self.providers)
        return classifier_html(self.manifest, self.sha256, state)


def _reopen(cls: type[OrganClassifier], options: dict[str, Any]) -> OrganClassifier:
    return cls(**options)


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError:
        # the working directory was removed; opening the bundle reports it
        return path


def _check_device(device: Any) -> None:
    try:
        parse_device(device)
    except ValueError as e:
        raise InputError(f"device: {e}") from None


def _check_digest(expected_sha256: Any) -> None:
    if expected_sha256 is not None and not (
        isinstance(expected_sha256, str) and re.fullmatch("[0-9a-fA-F]{64}", expected_sha256)
    ):
        raise InputError(
            f"expected_sha256: expected 64 hexadecimal digits, found {short_repr(expected_sha256)}"
        )


def _named_slices(name: str, content: bytes, limits: Limits) -> SliceReaders:
    if len(content) > limits.file_bytes:
        raise ImageError(
            f"more than {limits.file_bytes:,} bytes: too large; raise the limit with --file-limit or file_limit="
        )
    for suffix, read in decode_slices(content, limits):
        yield name + suffix, read


def _content(data: Any, limit: int) -> bytes:
    """Return the bytes of `data`, of a stream at most one more than `limit`, which is then refused."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    read = getattr(data, "read", None)
    if read is None:
        raise InputError(
            "data: expected bytes or a stream open for reading bytes,"
            f" found {type(data).__name__}; for paths use predict_paths, for pixels predict"
        )
    pieces: list[bytes] = []
    left = limit + 1
    while left > 0:
        try:
            piece = read(left)
        except TypeError as e:
            raise InputError(
                f"data: read({left}) fails ({one_line(e)}); pass a binary stream"
            ) from e
        except (OSError, ValueError, EOFError) as e:
            raise ImageError(f"cannot be read ({file_reason(e)})") from e
        if piece and not isinstance(piece, bytes):
            raise InputError(
                f"data: the stream returns {type(piece).__name__}, not bytes; open it in binary mode"
            )
        if not piece:
            break
        pieces.append(piece)
        left -= len(piece)
    if not pieces and _was_read(data):
        raise ImageError("the stream is at its end; rewind it with seek(0)")
    return b"".join(pieces)


def _was_read(stream: Any) -> bool:
    """Whether a stream that gives nothing has a content before its position."""
    try:
        return bool(stream.seekable() and stream.tell() > 0)
    except (AttributeError, TypeError, OSError, ValueError):
        return False


def _count(name: str, value: Any, most: int) -> int:
    """Return a whole number as int, also one of NumPy. A bool is none."""
    try:
        number = 0 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= most:
        raise InputError(
            f"{name}: expected a whole number from 1 to {most:,}, found {short_repr(value)}"
        )
    return number


def _switch(name: str, value: Any) -> bool:
    """Return True or False as bool, also that of NumPy."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name}: expected True or False, found {short_repr(value)}")
    return bool(value)
