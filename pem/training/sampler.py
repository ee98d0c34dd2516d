"""The photos and random numbers of each training step, which do not depend on how often the run was stopped."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pem.training.data import PanopticDataset
from pem.training.processes import rank_and_world_size
from pem.training.target import Target

REPEAT_THRESHOLD = 0.05  # a class on a smaller share of the photos is shown more often


class RepeatableSampler:
    """Batches of (index, seed) that depend on the seed and the step alone.

    Photos with rare classes come more often: a photo's chance grows with 1 / sqrt(frequency) of its rarest class
    (repeat factor sampling, arXiv 1908.03195), where that frequency is below REPEAT_THRESHOLD.
    Raises ValueError when there are fewer photos than a batch has, or when processes cannot share a batch evenly.
    """

    def __init__(self, dataset: PanopticDataset, batch_size: int, first_step: int, last_step: int, seed: int) -> None:
        self.steps, self.batch_size, self.seed = range(first_step, last_step), batch_size, seed
        if len(dataset) == 1:
            raise ValueError("The split has one photo; add another, because a batch needs two for its norms.")
        if len(dataset) < batch_size:
            raise ValueError(
                f"The batch of {batch_size} is larger than the split of {len(dataset)} photos; change its size."
            )
        labels = [torch.as_tensor(record.labels).unique() for record in dataset.records]
        if not any(map(len, labels)):
            raise ValueError(
                "The JSON of the split lists no segment to learn from, crowds aside; complete its segments_info."
            )
        frequency = torch.bincount(torch.cat(labels), minlength=dataset.config.num_classes) / len(labels)
        repeat = (REPEAT_THRESHOLD / frequency.clamp(min=1e-6)).sqrt().clamp(min=1)
        self.weights = torch.stack([repeat[x].max() if len(x) else repeat.new_ones(()) for x in labels])
        self.rank, self.world_size = rank_and_world_size()
        if batch_size % self.world_size:
            raise ValueError(
                f"The batch of {batch_size} cannot be shared by {self.world_size} processes; change its size."
            )
        # GPUs share the statistics of their norms, CPUs do not.
        per_norm = batch_size if torch.cuda.is_available() else batch_size // self.world_size
        if per_norm < 2:
            raise ValueError("The batch has one photo; give it two at least (on CPUs, each process), for its norms.")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
            indices = torch.multinomial(self.weights, self.batch_size, generator=generator).tolist()
            seeds = torch.randint(2**31, (self.batch_size,), generator=generator).tolist()
            yield list(zip(indices, seeds, strict=True))[self.rank :: self.world_size]


class SeededDataset(Dataset):
    """Takes (index, seed) and augments with that seed, so that the process which does it plays no part."""

    def __init__(self, dataset: PanopticDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Target]:
        index, seed = item
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.dataset[index]
