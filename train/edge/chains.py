"""Chains of similar slices, held out of the training split: a harder test than validation, which has 16 scans.

Slices of one scan and organ resemble their neighbors. Each slice is joined to the two nearest slices of its class if
they are closer than NEAR. A connected group is a chain; most chains come from one scan.
"""

from __future__ import annotations

import numpy as np

# root mean square difference of gray values, 0 to 255
NEAR = 33.0


def chains(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Group similar slices.

    Args:
        images: uint8 (N, S, S).
        labels: class indices, int (N,).

    Returns:
        The number of each slice's chain, counted from 0, int64 (N,).
    """
    from scipy.sparse.csgraph import connected_components
    from sklearn.neighbors import NearestNeighbors

    flat = images.reshape(len(images), -1).astype(np.float32)
    chain_of = np.zeros(len(images), np.int64)
    count = 0
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        search = NearestNeighbors(n_neighbors=min(3, len(members)), algorithm="brute").fit(
            flat[members]
        )
        # each slice is its own nearest
        graph = search.kneighbors_graph(flat[members], mode="distance")
        # 1 stands for an edge: the distance of equal slices is 0, which the graph takes for no edge
        graph.data = (graph.data < NEAR * np.sqrt(flat.shape[1])).astype(np.float32)
        graph.eliminate_zeros()
        number, chain = connected_components(graph, directed=False)
        chain_of[members] = count + chain
        count += number
    return chain_of


def held_out(chain: np.ndarray, share: float = 0.25, seed: int = 7) -> np.ndarray:
    """Choose the chains to hold out.

    Args:
        chain: as `chains` returns it, int64 (N,).
        share: of the chains, 0 to 1.
        seed: of the choice.

    Returns:
        Whether each slice is held out, bool (N,).
    """
    chosen: np.ndarray = (np.random.default_rng(seed).random(chain.max() + 1) < share)[chain]
    return chosen
