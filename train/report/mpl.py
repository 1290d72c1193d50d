"""Imports what the charts use of matplotlib, whatever backend the environment names.

A chart is drawn straight to a file and needs no backend. A notebook sets MPLBACKEND for its own environment, and an
import of matplotlib fails in one that does not have that backend.
"""

import os

_backend = os.environ.pop("MPLBACKEND", None)
try:
    import matplotlib as matplotlib
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.patches import Rectangle as Rectangle
finally:
    if _backend is not None:
        os.environ["MPLBACKEND"] = _backend
