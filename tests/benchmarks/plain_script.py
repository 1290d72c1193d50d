"""The baseline of the command: the script one would write, Pillow and torchvision transforms and PyTorch eager.

python -m tests.benchmarks.plain_script DIR THREADS: classifies every PNG of DIR with an `edge`
network (random weights: the time is the same) and prints a line each.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms

from train.networks import make_network

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    network = make_network("edge", classes=11, size=28, seed=1).eval()
    prepare = transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize((28, 28)),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.5]),
        ]
    )
    paths = sorted(Path(sys.argv[1]).glob("*.png"))
    with torch.inference_mode():
        for start in range(0, len(paths), 64):
            batch = torch.stack([prepare(Image.open(path)) for path in paths[start : start + 64]])
            for path, row in zip(paths[start : start + 64], network(batch).softmax(1), strict=True):
                print(int(row.argmax()), f"{float(row.max()):.3f}", path)
