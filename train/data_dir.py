"""Finds the data folder of a run that has been started, for the commands that read the run later."""

from __future__ import annotations

from pathlib import Path

from train.data import published_file
from train.datasets import DATASETS
from train.errors import RunError
from train.record import note
from train.results_format import RESULTS_FILE, Results, read_results


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
    folders = checkpoint.absolute().parents
    run = next((folder for folder in folders[1:3] if (folder / RESULTS_FILE).is_file()), None)
    if run is None:
        return None
    try:
        results = read_results(run)
    except RunError as e:
        note(f"{str(e).partition(';')[0]}; the data set is looked for in medmnist's own folder")
        return None
    return data_dir_of(results, None)
