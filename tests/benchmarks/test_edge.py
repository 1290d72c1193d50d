"""The packaged model from arrays: `pytest tests/benchmarks/test_edge.py -s` prints slices a second and asserts.

The peer is the same network in PyTorch eager with random weights, the slices normalised by torch, both with as many
threads as there are processors, in turn.
"""

import numpy as np
import pytest
from conftest import needs_default
from race import medians

from organ_infer import OrganClassifier
from organ_infer.processors import usable_processors

COUNT, BATCH = 8192, 64


@needs_default
def test_slices_a_second_from_arrays():
    torch = pytest.importorskip("torch", reason="the peer is PyTorch")
    from train.networks import make_network

    slices = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), np.uint8)
    torch.set_num_threads(usable_processors())
    network = make_network("edge", classes=11, size=28, seed=1).eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def eager():
        for start in range(0, COUNT, BATCH):
            x = torch.from_numpy(slices[start : start + BATCH])[:, None].float().div_(127.5).sub_(1)
            network(x).softmax(1)

    with OrganClassifier(device="cpu", batch_size=BATCH) as classifier:
        ours, one, theirs = medians(
            [lambda: classifier.predict_proba(slices), lambda: classifier.predict_proba(slices[0]), eager],
            [1, 200, 1],
            9,
            rest=0.1,
        )
        size = sum(entry.bytes for entry in classifier.manifest.members)
    print(f"\n{classifier.manifest.name}, {size / 2**20:.2f} MiB, {usable_processors()} threads")
    print(
        f"  ours          {COUNT / ours:9,.0f} slices a second from arrays, {ours / COUNT * 1e6:.0f} us each"
    )
    print(f"  ours, alone   {one * 1e6:9,.0f} us a slice")
    print(f"  PyTorch eager {COUNT / theirs:9,.0f} slices a second")
    assert theirs >= 2 * ours
