"""Bytes that this process has allocated and not freed, as the C library counts them.

Unlike the resident size they do not depend on the machine: nothing that was freed and is kept for later is counted.
"""

import ctypes
import gc

import pytest

FIELDS = [
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
]


class _Info(ctypes.Structure):
    """struct mallinfo2 of malloc.h"""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


try:
    _mallinfo2 = ctypes.CDLL(None).mallinfo2
    _mallinfo2.restype = _Info
except (AttributeError, OSError, TypeError):
    _mallinfo2 = None

needs_heap = pytest.mark.skipif(_mallinfo2 is None, reason="needs mallinfo2 (glibc 2.33)")


def heap_bytes():
    gc.collect()
    info = _mallinfo2()
    return info.uordblks + info.hblkhd
