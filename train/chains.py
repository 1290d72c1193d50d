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


# nearest slices among which the one on the other side is searched
CANDIDATES = 8


def neighbors(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Find the slices before and after each slice, in the same chain.

    One neighbor is the nearest slice. The other is the nearest of those for which the slice lies in between: they are
    farther from the first neighbor than from the slice, and farther from it than the slice is. The order of the two means nothing.

    Args:
        images: uint8 (N, S, S).
        labels: class indices, int (N,).

    Returns:
        Indices of slices of the same class that are closer than NEAR, int64 (N, 2). A slice without such a neighbor is
        its own.
    """
    from sklearn.neighbors import NearestNeighbors

    flat = images.reshape(len(images), -1).astype(np.float32)
    limit = NEAR * np.sqrt(flat.shape[1])
    table = np.repeat(np.arange(len(images))[:, None], 2, 1)  # (N, 2)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) == 1:
            continue
        slices = flat[members]
        count = min(CANDIDATES, len(members) - 1)
        search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(slices)
        # without slices, the search leaves each slice itself out
        distance, nearest = search.kneighbors()  # (members, count) each
        has_first = distance[:, 0] < limit
        table[members[has_first], 0] = members[nearest[has_first, 0]]
        first, missing = slices[nearest[:, 0]], has_first.copy()
        for k in range(1, count):
            to_first = np.sqrt(((slices[nearest[:, k]] - first) ** 2).sum(1))
            between = (to_first > distance[:, k]) & (to_first > distance[:, 0])
            found = missing & between & (distance[:, k] < limit)
            table[members[found], 1] = members[nearest[found, k]]
            missing &= ~found
    return table


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


# Chains of fewer slices have no reliable descriptors. They join the group whose center is nearest.
CHAIN_SLICES = 8


def pseudo_scans(images: np.ndarray, labels: np.ndarray, count: int = 115) -> np.ndarray:
    """Group chains of all classes that look as if they came from one scan.

    MedMNIST does not say which scan a slice is from. Scans differ in noise, sharpness and the gray values of fat and soft
    tissue. Chains whose descriptors are alike are joined by Ward's method. A chain is never divided.

    Args:
        images: uint8 (N, S, S).
        labels: class indices, int (N,).
        count: number of groups. The training split of OrganAMNIST has 115 scans.

    Returns:
        The number of each slice's group, from 0 to count - 1, int64 (N,).
    """
    from sklearn.cluster import AgglomerativeClustering

    chain = chains(images, labels)
    slices = np.bincount(chain)
    values = _standardized(_scan_descriptors(images), labels)  # (N, D)
    sums = np.stack([np.bincount(chain, column) for column in values.T], 1)
    descriptors = sums / slices[:, None]  # (chains, D)
    long = slices >= CHAIN_SLICES
    descriptors /= descriptors[long].std(0)
    clustering = AgglomerativeClustering(count, linkage="ward").fit(descriptors[long])
    centers = np.stack(
        [
            np.average(descriptors[long][group], axis=0, weights=slices[long][group])
            for group in (clustering.labels_ == number for number in range(count))
        ]
    )  # (count, D)
    distances = ((descriptors[:, None] - centers) ** 2).sum(2)
    group = distances.argmin(1)
    group[long] = clustering.labels_
    grouped: np.ndarray = group[chain]
    return grouped


def _scan_descriptors(images: np.ndarray) -> np.ndarray:
    """Describe noise, sharpness, the most frequent gray of fat and of soft tissue, and the median, (N, 5)."""
    x = images.astype(np.float32)
    center = x[:, 1:-1, 1:-1]
    laplacian = np.abs(
        4 * center - x[:, :-2, 1:-1] - x[:, 2:, 1:-1] - x[:, 1:-1, :-2] - x[:, 1:-1, 2:]
    ).reshape(len(x), -1)
    flat = images.reshape(len(images), -1)
    histograms = np.stack([np.bincount(row, minlength=256) for row in flat]).astype(np.float32)
    kernel = np.exp(-0.5 * (np.arange(-8, 9) / 3) ** 2)
    smooth = np.apply_along_axis(np.convolve, 1, histograms, kernel, "same")
    return np.stack(
        [
            np.median(laplacian, 1),
            np.quantile(laplacian, 0.9, axis=1),
            smooth[:, 30:100].argmax(1),
            smooth[:, 110:240].argmax(1),
            np.median(flat, 1),
        ],
        1,
    )


def _standardized(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Subtract each class's median and divide by its standard deviation, float64 (N, D)."""
    result = values.astype(np.float64)
    for label in np.unique(labels):
        rows = labels == label
        result[rows] -= np.median(result[rows], 0)
        result[rows] /= result[rows].std(0) + 1e-6
    return result


def folds(group: np.ndarray, count: int = 4) -> np.ndarray:
    """Distribute groups over folds of about equally many slices, the largest group first.

    Args:
        group: as `pseudo_scans` returns it, int64 (N,).
        count: number of folds.

    Returns:
        The number of each slice's fold, int64 (N,).
    """
    slices = np.bincount(group)
    fold_of_group, totals = np.zeros(len(slices), np.int64), np.zeros(count, np.int64)
    for number in np.argsort(-slices, kind="stable"):
        fold_of_group[number] = totals.argmin()
        totals[totals.argmin()] += slices[number]
    result: np.ndarray = fold_of_group[group]
    return result
