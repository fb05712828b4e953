"""Replay memories of fixed size, shared by the chapters on continual learning; n samples of a batch, d features."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.supervision.continual import rank_within_class


class Memory:
    """Replay memory of fixed size: a reservoir, or a class-balanced one.

    Every sample of the stream draws a random key when it arrives. The reservoir keeps the smallest keys of all, which
    is a uniform sample of the past; the balanced memory keeps the smallest keys of each class and gives every class
    the same number of places as far as it has samples.

    Args:
        size: number of samples kept.
        is_balanced: class-balanced instead of uniform over the stream.
        generator: draws keys and replayed samples.
    """

    def __init__(self, size: int, *, is_balanced: bool = False, generator: torch.Generator) -> None:
        if size < 1:
            raise ValueError(f"a replay memory needs at least one place, got size={size}")
        self.size, self.is_balanced, self.generator = size, is_balanced, generator
        self.x: Tensor = torch.empty(0, 0)
        self.labels: Tensor = torch.empty(0, dtype=torch.long)
        self.keys: Tensor = torch.empty(0)

    def __len__(self) -> int:
        return len(self.labels)

    def add(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Offer a batch to the memory, all samples at once; newcomers take the places of those that must go."""
        keys = torch.rand(len(labels), generator=self.generator).to(x.device)
        free = min(self.size - len(self), len(labels))
        if len(self) == 0:
            self.x, self.labels, self.keys = x[:0], labels[:0], keys[:0]
        if free:
            self.x, self.labels = torch.cat([self.x, x[:free]]), torch.cat([self.labels, labels[:free]])
            self.keys = torch.cat([self.keys, keys[:free]])
            x, labels, keys = x[free:], labels[free:], keys[free:]
        if len(labels) == 0:
            return
        all_keys, all_labels = torch.cat([self.keys, keys]), torch.cat([self.labels, labels])
        rank = all_keys
        if self.is_balanced:  # first the place within the class, then the key
            rank = rank_within_class(all_labels, all_keys).double() + all_keys
        kept = torch.zeros(len(rank), dtype=torch.bool, device=rank.device)
        kept[rank.topk(self.size, largest=False).indices] = True
        places = (~kept[: self.size]).nonzero().squeeze(1)
        newcomers = kept[self.size :]
        self.x[places], self.labels[places] = x[newcomers], labels[newcomers]
        self.keys[places] = keys[newcomers]

    def sample(self, n: int) -> tuple[Float[Tensor, "n_drawn d"], Int[Tensor, " n_drawn"]]:
        """Draw `n` stored samples with replacement."""
        drawn = torch.randint(len(self), (n,), generator=self.generator).to(self.labels.device)
        return self.x.index_select(0, drawn), self.labels.index_select(0, drawn)
