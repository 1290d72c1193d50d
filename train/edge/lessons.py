"""What the teachers say about the training split: asked once on each of VIEWS augmented copies of it, and kept.

Teachers cost more than the network they teach, and would be asked again for every epoch and seed. An epoch takes one of
the views, its batches in a new order; a view's batches are drawn from seeds of their own, so that the slices need not
be kept, only the answers. Student and teachers see the same slice, moved and cut alike (Beyer et al. 2022, "A good
teacher is patient and consistent"); its window is changed and a part erased for the student alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from train import record
from train.augment import normalise
from train.batches import cut
from train.method import Method

VIEWS = 8
SEED = 1  # of the views, whatever the student's


def generator(device: torch.device, *words: object) -> torch.Generator:
    """A generator on `device` seeded by words."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "little"))


class Lessons:
    """The views of a training split, and the teachers' mean probabilities on them."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        classes: int,
        method: Method,
        teachers: Sequence[nn.Module],
        folder: Path,
        *,
        batch_size: int,
        at_least: int = 2,
        bf16: bool = False,
    ) -> None:
        """images: uint8 (N, S, S), or float32 as normalised; labels: int64 (N,). The answers are kept in `folder`.
        at_least: slices of a last batch, which else joins the one before."""
        self.images, self.labels, self.classes = images, labels, classes
        self.method, self.teachers = method, teachers
        self.folder, self.batch_size, self.at_least, self.bf16 = folder, batch_size, at_least, bf16
        about = hashlib.sha256(
            json.dumps([method.described(), batch_size, at_least, classes, bf16], sort_keys=True).encode()
        )
        about.update(images.cpu().numpy())
        for teacher in teachers:
            for value in teacher.state_dict().values():
                about.update(value.cpu().numpy())
        self.digest = about.hexdigest()

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(self._batches(0))

    def epoch(self, number: int, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The batches of epoch `number`, from 1 on, in an order drawn from `order`: chosen int64 (B,), normalised and
        augmented slices (B, 1, S, S), their targets, the teachers' probabilities (B, C)."""
        view = (number - 1) % VIEWS
        answers = self._answers(view)
        batches = self._batches(view)
        for i in torch.randperm(len(batches), generator=order, device=order.device).tolist():
            x, targets = self._drawn(view, i, batches[i])
            yield batches[i], self.method.disturb(x, order), targets, answers[batches[i]]

    def _batches(self, view: int) -> list[Tensor]:
        device = self.images.device
        shuffled = torch.randperm(len(self.images), generator=generator(device, SEED, view), device=device)
        return cut(shuffled, self.batch_size, self.at_least)

    def _drawn(self, view: int, i: int, chosen: Tensor) -> tuple[Tensor, Tensor]:
        drawing = generator(self.images.device, SEED, view, i)
        return self.method.prepare(normalise(self.images[chosen]), self.labels[chosen], self.classes, drawing)

    @torch.no_grad()
    def _answers(self, view: int) -> Tensor:
        """float32 (N, C), from the folder where the same teachers were asked before."""
        device, path = self.images.device, self.folder / f"view-{view + 1}.npz"
        if path.exists():
            with np.load(path) as kept:
                if str(kept["digest"]) == self.digest:
                    return torch.from_numpy(kept["probabilities"]).to(device).float()
        answers = torch.zeros(len(self.images), self.classes, device=device)
        for i, chosen in enumerate(self._batches(view)):
            x, _ = self._drawn(view, i, chosen)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                said = [teacher(x).float().softmax(1) for teacher in self.teachers]
            answers[chosen] = torch.stack(said).mean(0)
        kept = answers.half().cpu().numpy()
        record.atomic_save(path, lambda file: np.savez(file, digest=self.digest, probabilities=kept))
        return torch.from_numpy(kept).to(device).float()
