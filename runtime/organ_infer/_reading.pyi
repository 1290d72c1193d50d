import os
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

def read(
    paths: Iterable[str | bytes | os.PathLike[str] | os.PathLike[bytes]],
    size: int = 28,
    *,
    mean: float = 0.5,
    std: float = 0.5,
    resample: str = "area",
    pixel_limit: int = 1048576,
    threads: int = 1,
) -> tuple[NDArray[np.float32], bytes]: ...
