"""Chains: groups of similar slices, most of them from one scan. Some are held out of training as a harder test.

Slices of one scan and organ resemble their neighbors, so that a random split would have slices of one scan on both
sides. Each slice is joined to the two nearest slices of its class if they are closer than NEAR. A connected group is a
chain. Held-out chains are a harder test than validation, which has 16 scans.
"""

from __future__ import annotations

import numpy as np

# largest root mean square difference of joined slices, in gray values of 0 to 255
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
    chain_numbers = np.zeros(len(images), np.int64)
    total = 0
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        search = NearestNeighbors(n_neighbors=min(3, len(members)), algorithm="brute").fit(
            flat[members]
        )
        # the nearest neighbor of each slice is the slice itself
        graph = search.kneighbors_graph(flat[members], mode="distance")
        # An edge gets the value 1. A distance of 0, between equal slices, would mean no edge.
        graph.data = (graph.data < NEAR * np.sqrt(flat.shape[1])).astype(np.float32)
        graph.eliminate_zeros()
        count, chain = connected_components(graph, directed=False)
        chain_numbers[members] = total + chain
        total += count
    return chain_numbers


def held_out(chain: np.ndarray, share: float = 0.25, seed: int = 7) -> np.ndarray:
    """Choose the chains to hold out.

    Args:
        chain: as `chains` returns it, int64 (N,).
        share: probability that a chain is held out, 0 to 1.
        seed: of the random choice.

    Returns:
        Whether each slice is held out, bool (N,).
    """
    mask: np.ndarray = (np.random.default_rng(seed).random(chain.max() + 1) < share)[chain]
    return mask
