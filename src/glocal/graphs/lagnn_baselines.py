r"""What the second branch sees instead of generated neighbours: the controls of local augmentation.

A source is a function of a generator that returns features of all nodes, as `NeighborSampler` does. With the same
network and the same losses, controls tell what the generator adds to width, consistency and noise.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.graphs.lagnn import neighbor_pairs
from glocal.graphs.lagnn_products import dropped
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import row_normalized

Source = Callable[[torch.Generator], Float[Tensor, "n f"]]


class FeatureCopies:
    """The node's own features again: leaves only width, dropout and the consistency loss."""

    def __init__(self, x: Float[Tensor, "n f"]) -> None:
        self.normalized = row_normalized(x)

    def __call__(self, generator: torch.Generator) -> Float[Tensor, "n f"]:
        """Always the same."""
        return self.normalized


class DroppedFeatures:
    """The node's own features, each kept with probability 1 - `rate`; rows divided by their sums."""

    def __init__(self, x: Float[Tensor, "n f"], rate: float = 0.5) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate must be in [0, 1), got {rate}")
        self.x, self.rate = x, rate

    def __call__(self, generator: torch.Generator) -> Float[Tensor, "n f"]:
        """A new draw."""
        with seeded(generator):
            return row_normalized(dropped(self.x, self.rate))


class RealNeighbors:
    """The features of a random REAL neighbour, drawn anew for each node; nodes without neighbours show their own.

    Local augmentation without a model: samples of the very distribution that the generator is to learn.
    """

    def __init__(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> None:
        centers, self.neighbors = neighbor_pairs(edge_index)
        self.degrees = torch.bincount(centers, minlength=len(x))
        self.starts = self.degrees.cumsum(0) - self.degrees
        self.normalized = row_normalized(x)

    def indices(self, generator: torch.Generator) -> Int[Tensor, " n"]:
        """A random neighbour of each node."""
        n = len(self.degrees)
        u = torch.rand(n, generator=generator, device=self.degrees.device)
        offsets = (u * self.degrees).long().clamp_max((self.degrees - 1).clamp_min(0))
        last = max(len(self.neighbors) - 1, 0)
        own = torch.arange(n, device=self.degrees.device)
        if not len(self.neighbors):
            return own
        return torch.where(self.degrees > 0, self.neighbors[(self.starts + offsets).clamp_max(last)], own)

    def __call__(self, generator: torch.Generator) -> Float[Tensor, "n f"]:
        """A new draw."""
        return self.normalized[self.indices(generator)]


def neighbor_regression(
    x: Float[Tensor, "n f"],
    pairs: Int[Tensor, "2 p"],
    queries: Float[Tensor, "q f"],
    *,
    temperature: float = 0.1,
) -> Float[Tensor, "q f"]:
    r"""Nadaraya-Watson estimate of the mean neighbour: weights $\propto e^{\cos(c, x_i)/\tau}$ over the pairs' centres.

    Args:
        x: raw features.
        pairs: centres and neighbours.
        queries: centres $c$ in question.
        temperature: $\tau$.
    """
    unit = torch.nn.functional.normalize
    weights = (unit(queries, dim=1) @ unit(x[pairs[0]], dim=1).T / temperature).softmax(1)
    return weights @ x[pairs[1]]
