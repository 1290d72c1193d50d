"""A yardstick harder than validation, which 16 scans saturate: chains of like slices held out of the training split.

Slices of one scan and organ resemble their neighbours. Each slice is joined to its two nearest of the same class where
they lie closer than NEAR; what hangs together is a chain, of one scan more often than not.
"""

from __future__ import annotations

import numpy as np

NEAR = 33.0  # root mean square difference of the gray values of 0 to 255


def chains(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """images uint8 (N, S, S), labels int (N,) -> the chain of each slice, int64 (N,)."""
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    flat = images.reshape(len(images), -1).astype(np.float32)
    found = np.zeros(len(images), np.int64)
    count = 0
    for label in np.unique(labels):
        at = np.flatnonzero(labels == label)
        search = NearestNeighbors(n_neighbors=min(3, len(at)), algorithm="brute").fit(flat[at])
        graph = search.kneighbors_graph(flat[at], mode="distance")  # each slice is its own nearest
        # 1 joins: of equal slices the distance itself is 0, which the graph takes for no edge
        graph.data = (graph.data < NEAR * np.sqrt(flat.shape[1])).astype(np.float32)
        graph.eliminate_zeros()
        number, chain = connected_components(graph, directed=False)
        found[at] = count + chain
        count += number
    return found


def held_out(chain: np.ndarray, share: float = 0.25, seed: int = 7) -> np.ndarray:
    """Which slices belong to the `share` of chains that is held out, bool (N,)."""
    return (np.random.default_rng(seed).random(chain.max() + 1) < share)[chain]
