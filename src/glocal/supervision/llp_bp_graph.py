r"""The graph of neighbours that belief propagation runs on: cosine neighbours, weighted by the Matern-1/2 kernel.

n instances, d features, e edges, m bags.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

KERNELS = ("matern", "scaled")
EDGE_RULES = ("all", "few_positives")


@dataclass(frozen=True)
class GraphSettings:
    r"""How neighbours become edges.

    Args:
        k: neighbours of each instance.
        delta: an edge needs a cosine distance below this; 2 keeps all.
        kernel: `matern`: $\kappa = e^{-\lVert z_i - z_j \rVert}$; `scaled`: distances divided by their median first.
        edge_rule: `all`, or `few_positives`: keep the neighbours of instances whose bag has at most one positive, the
            rule of the released script.

    Raises:
        ValueError: for an unknown kernel or edge rule, or a number out of range.
    """

    k: int = 5
    delta: float = 2.0
    kernel: str = "scaled"
    edge_rule: str = "all"

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {self.kernel!r}")
        if self.edge_rule not in EDGE_RULES:
            raise ValueError(f"edge_rule must be one of {', '.join(EDGE_RULES)}, got {self.edge_rule!r}")
        if self.k < 1 or self.delta <= 0:
            raise ValueError(f"k and delta must be positive, got {self.k} and {self.delta}")


def cosine_neighbours(
    z: Float[Tensor, "n d"], k: int, *, chunk: int = 1024
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """The k nearest other instances under cosine distance, nearest first, and their distances.

    The search is exact: O(n^2 d) operations, `chunk` rows of the distance matrix in memory at a time.

    Raises:
        ValueError: if there are not k other instances.
    """
    if not 1 <= k < len(z):
        raise ValueError(f"k must be between 1 and the number of other instances {len(z) - 1}, got {k}")
    unit = F.normalize(z, dim=1)
    found = []
    for start in range(0, len(z), chunk):
        cosine = unit[start : start + chunk] @ unit.T
        rows = torch.arange(len(cosine), device=z.device)
        cosine[rows, start + rows] = -torch.inf
        found.append(cosine.topk(k, dim=1))
    return torch.cat([part.indices for part in found]), 1 - torch.cat([part.values for part in found])


def neighbour_edges(
    z: Float[Tensor, "n d"], settings: GraphSettings, bag_sums: Float[Tensor, " m"] | None = None
) -> tuple[Int[Tensor, "2 e"], Float[Tensor, " e"]]:
    r"""Undirected edges, each once, and their weights $\kappa_{ij}$, in the precision of `z`.

    An edge found from both of its ends counts once: twice would double $\lambda_s$. The kernel takes *Euclidean*
    distances although the neighbours are those of the cosine.

    Args:
        z: covariates or embeddings, bag by bag.
        settings: see `GraphSettings`.
        bag_sums: needed by the edge rule `few_positives`.

    Raises:
        ValueError: for the rule `few_positives` without sums.
    """
    index, distance = cosine_neighbours(z, settings.k)
    first = torch.arange(len(z), device=z.device)[:, None].expand_as(index)
    keep = distance < settings.delta
    if settings.edge_rule == "few_positives":
        if bag_sums is None:
            raise ValueError("the edge rule few_positives needs bag_sums, got None")
        keep &= (bag_sums <= 1).repeat_interleave(len(z) // len(bag_sums))[:, None]
    number = torch.unique(torch.minimum(first, index)[keep] * len(z) + torch.maximum(first, index)[keep])
    edges = torch.stack([number // len(z), number % len(z)])
    length = (z[edges[0]] - z[edges[1]]).norm(dim=1)
    if settings.kernel == "scaled" and len(length):
        length = length / length.median().clamp_min(1e-12)
    return edges, torch.exp(-length)


def agreement(edges: Int[Tensor, "2 e"], labels: Tensor) -> float:
    """Share of edges whose ends have the same label: what a smoothness prior can know at best."""
    labels = labels.flatten()
    return float((labels[edges[0]] == labels[edges[1]]).float().mean())
