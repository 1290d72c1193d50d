from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Slices = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.int16]

def pack(
    images: Slices
    | Sequence[NDArray[np.uint8]]
    | Sequence[NDArray[np.uint16]]
    | Sequence[NDArray[np.int16]],
    size: int = 28,
    *,
    mean: float = 0.5,
    std: float = 0.5,
    window: tuple[float, float] | Sequence[float] | None = None,
    resample: str = "area",
    threads: int = 1,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def levels() -> tuple[str, ...]: ...
def level() -> str: ...
def set_level(name: str) -> None: ...
def _nothing(
    images: Any,
    size: int = 28,
    *,
    mean: float = 0.5,
    std: float = 0.5,
    window: Any = None,
    resample: str = "area",
    threads: int = 1,
    out: Any = None,
) -> None: ...
def _read_limit(image: NDArray[np.uint8]) -> int: ...
def _store_limit(image: NDArray[np.uint8], out: NDArray[np.float32]) -> None: ...
def _touch_limit(
    image: NDArray[np.uint8], rows: NDArray[np.uint32], columns: NDArray[np.uint32]
) -> int: ...
