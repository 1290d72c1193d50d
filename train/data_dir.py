"""Finds the data folder of a run that has been started, for the commands that read the run later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from train.data import Data, published_file
from train.datasets import DATASETS
from train.errors import RunError
from train.own_data.load import load_own
from train.own_data.request import request_of
from train.record import note
from train.results_format import RESULTS_FILE, Dataset, Results, read_results


def data_dir_of(results: Results, given: Path | None) -> Path | None:
    """Return the folder of a run's data set.

    Args:
        results: of the run, which record the folder.
        given: --data-dir, which comes first.

    Returns:
        The folder; None for medmnist's own, also for runs that recorded no folder.

    Raises:
        RunError: the recorded folder does not have the file any more.
    """
    dataset = results.dataset
    if given or not results.data_dir or dataset is None or dataset.flag not in DATASETS:
        return given
    name = published_file(dataset.flag, dataset.resample_from or dataset.size)["name"]
    directory = Path(results.data_dir)
    path = directory / name
    try:
        exists = path.exists()
    except OSError:
        exists = False
    if not exists:
        raise RunError(f"{path}: the run used this file, but it is gone; pass --data-dir DIR")
    return directory


def data_dir_of_checkpoint(checkpoint: Path, given: Path | None) -> Path | None:
    """Return the folder of the data set that a checkpoint was trained on, as `data_dir_of`.

    Args:
        checkpoint: RUN/STAGE/checkpoint.pt or RUN/STAGE/seed-N/checkpoint.pt.
        given: --data-dir, which comes first.

    Returns:
        The folder; None for medmnist's own, also for a checkpoint outside of a run.

    Raises:
        RunError: as `data_dir_of`.
    """
    if given:
        return given
    run = _run_of(checkpoint)
    if run is None:
        return None
    try:
        results = read_results(run)
    except RunError as e:
        note(f"{str(e).partition(';')[0]}; the data set is looked for in medmnist's own folder")
        return None
    return data_dir_of(results, None)


def _run_of(checkpoint: Path) -> Path | None:
    """Return the directory of a checkpoint's run; None for a checkpoint outside of a run."""
    folders = checkpoint.absolute().parents
    return next((folder for folder in folders[1:3] if (folder / RESULTS_FILE).is_file()), None)


def own_data_of(
    dataset: Dataset | None, given: Path | None, resample: str | None = None
) -> Data | None:
    """Load the data set of a run, if it is one of the user.

    Args:
        dataset: as results.json has it.
        given: --data-dir, the folder or file where the data set is now; None for the recorded path.
        resample: how slices are resampled; None as in the run.

    Returns:
        The data; None for a data set of MedMNIST.

    Raises:
        RunError: it cannot be read, or is not the one that the run used.
    """
    if dataset is None or dataset.own is None:
        return None
    request = request_of(dataset.own, given)
    if not request.path.exists():
        raise RunError(
            f"{request.path}: the run used these images, but they are gone; pass their place with --data-dir"
        )
    # the run has reported what there is to know
    data = load_own(
        request,
        size=dataset.size,
        resample=resample or dataset.resample,
        warn=lambda line: None,
    )
    if data.md5 != dataset.md5:
        raise RunError(
            f"{request.path}: not the images of the run, expected MD5 {dataset.md5}, found {data.md5}; restore them, or"
            " pass their place with --data-dir"
        )
    return replace(data, flag=dataset.flag)


def own_data_of_checkpoint(
    checkpoint: Path, flag: str, given: Path | None, resample: str | None = None
) -> Data | None:
    """Load the data set that a checkpoint was trained on, if it is one of the user, as `own_data_of`.

    Args:
        checkpoint: RUN/STAGE/checkpoint.pt or RUN/STAGE/seed-N/checkpoint.pt.
        flag: the name of its data set.
        given: --data-dir.
        resample: as for `own_data_of`.

    Raises:
        RunError: as `own_data_of`, or the checkpoint is outside of its run, whose results.json describes the data set.
    """
    if flag in DATASETS:
        return None
    run = _run_of(checkpoint)
    data = own_data_of(read_results(run).dataset, given, resample) if run else None
    if data is None or data.flag != flag:
        raise RunError(
            f"{checkpoint}: trained on your own data {flag!r}; export it in the directory of its run, beside results.json"
        )
    return data
