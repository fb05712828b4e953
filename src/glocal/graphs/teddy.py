r"""TEDDY: prune the edges of a graph once, by degrees alone, and the weights by projection during one training.

Seo, Yun and Yang, *TEDDY: Trimming Edges with Degree-based Discrimination strategY* (ICLR 2024, arXiv:2402.01261).
Edges are undirected here and stored once, as columns of `pairs` with the smaller node above.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def undirected_pairs(edge_index: Int[Tensor, "2 e"]) -> Int[Tensor, "2 m"]:
    """Each undirected edge once, smaller node first; loops are left out.

    Args:
        edge_index: both directions of every undirected edge.
    """
    return edge_index[:, edge_index[0] < edge_index[1]]


def both_directions(pairs: Int[Tensor, "2 m"]) -> Int[Tensor, "2 e"]:
    """`edge_index` of the undirected edges `pairs`."""
    return torch.cat([pairs, pairs.flip(0)], dim=1)


def degrees_of(pairs: Int[Tensor, "2 m"], n_nodes: int) -> Int[Tensor, " n"]:
    """Number of neighbours of each node."""
    return torch.bincount(pairs.flatten(), minlength=n_nodes)


def within_hops(pairs: Int[Tensor, "2 m"], n_nodes: int, nodes: Int[Tensor, " _"], hops: int) -> Bool[Tensor, " n"]:
    """Which nodes lie within `hops` steps of `nodes`."""
    reached = torch.zeros(n_nodes, dtype=torch.bool, device=pairs.device)
    reached[nodes] = True
    for _ in range(hops):
        before = reached.clone()
        reached[pairs[0][before[pairs[1]]]] = True
        reached[pairs[1][before[pairs[0]]]] = True
    return reached


def node_scores(pairs: Int[Tensor, "2 m"], n_nodes: int, *, exponent: float = 0.5) -> Float[Tensor, " n"]:
    r"""$t_i = \frac{1}{d_i} \cdot \frac{1}{d_i} \sum_{j \in N(i)} g(d_j)$ with $g(d) = d^{-1/2}$: two levels.

    The mean of $g$ over the neighbourhood, divided by the node's own degree; 0 for isolated nodes.

    Args:
        pairs: undirected edges.
        n_nodes: number of nodes.
        exponent: $g(d) = d^{-\text{exponent}}$; 1/2 in the paper.

    Source: the node term of the edge score, computed in O(nodes + edges).
    """
    degrees = degrees_of(pairs, n_nodes).double()
    inverse = torch.where(degrees > 0, 1 / degrees.clamp_min(1), 0.0)
    importance = inverse**exponent
    sources, targets = both_directions(pairs)
    total = torch.zeros_like(degrees).index_add_(0, targets, importance[sources])
    return total * inverse * inverse


def edge_scores(pairs: Int[Tensor, "2 m"], n_nodes: int, *, exponent: float = 0.5) -> Float[Tensor, " m"]:
    r"""$s_{ij} = t_i t_j$: low between nodes with many neighbours that themselves have many neighbours.

    Args:
        pairs: undirected edges.
        n_nodes: number of nodes.
        exponent: see `node_scores`.

    Source: the edge score of the paper, $\bigl(D^{-2} A d^{-1/2}\bigr) \bigl(D^{-2} A d^{-1/2}\bigr)^\top \odot A$.
    """
    t = node_scores(pairs, n_nodes, exponent=exponent)
    return t[pairs[0]] * t[pairs[1]]


def degree_product_scores(pairs: Int[Tensor, "2 m"], n_nodes: int) -> Float[Tensor, " m"]:
    r"""$1 / (d_i d_j)$: the score without the level of the neighbours, for the ablation."""
    degrees = degrees_of(pairs, n_nodes).double()
    return 1 / (degrees[pairs[0]] * degrees[pairs[1]])


def similarity_scores(pairs: Int[Tensor, "2 m"], x: Float[Tensor, "n f"]) -> Float[Tensor, " m"]:
    """Cosine between the features of the two ends: a score that reads what TEDDY ignores."""
    return torch.cosine_similarity(x[pairs[0]], x[pairs[1]], dim=-1).double()


def edge_survival(scores: Float[Tensor, " m"], *, generator: torch.Generator) -> Int[Tensor, " m"]:
    """Place of each edge in the order of removal: 0 goes first. Ties are in an order drawn from `generator`.

    One order serves all levels, so that an edge removed at one sparsity stays removed at a higher one.
    """
    shuffled = torch.randperm(len(scores), generator=generator, device=generator.device).to(scores.device)
    order = shuffled[scores[shuffled].argsort(stable=True)]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def n_removed(n_edges: int, sparsity: float) -> int:
    r"""$\lfloor p |E| \rfloor$ undirected edges leave at sparsity $p$.

    Raises:
        ValueError: for a sparsity outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be in [0, 1), got {sparsity}")
    return math.floor(sparsity * n_edges + 1e-9)


def pruned(
    pairs: Int[Tensor, "2 m"], scores: Float[Tensor, " m"], sparsity: float, *, generator: torch.Generator
) -> Int[Tensor, "2 _"]:
    r"""The edges that are left when the $\lfloor p |E| \rfloor$ smallest scores are removed; in their old order.

    Loops are not among the pairs, so they are never pruned.

    Args:
        pairs: undirected edges.
        scores: one per edge; low ones leave.
        sparsity: share $p$ of undirected edges to remove, in [0, 1).
        generator: breaks ties; an equal state for all levels makes them nested.
    """
    return pairs[:, edge_survival(scores, generator=generator) >= n_removed(pairs.shape[1], sparsity)]


def sparsity_levels(p: float, n_levels: int) -> list[float]:
    r"""$1 - (1 - p)^k$ for $k = 1, \dots, K$: every level removes the share `p` of what was left.

    Source: the official schedule, $p = 0.05$ for edges and $0.1$ for weights with $K = 20$.
    """
    return [1 - (1 - p) ** k for k in range(1, n_levels + 1)]


def l0_mask(vectors: Float[Tensor, "b p"], sparsity: Float[Tensor, " b"]) -> Float[Tensor, "b p"]:
    r"""1 where an entry survives the projection on $\lVert \theta \rVert_0 \le P - \lceil p_w P \rceil$, else 0.

    The $\lceil p_w P \rceil$ entries of smallest magnitude go, over all entries of a row together.

    Args:
        vectors: all parameters of each copy in one row.
        sparsity: $p_w$ of each copy, in [0, 1].

    Source: the projection step of the sparse training.
    """
    # the small number forgives a share that was rounded to single precision
    counts = torch.ceil((sparsity.double() - 1e-7) * vectors.shape[1]).clamp_min(0).long()
    magnitudes = vectors.abs()
    # selection instead of sorting; among equal magnitudes at the threshold the first entries go
    thresholds = [
        row.kthvalue(count).values if count else row.new_tensor(-1.0)
        for row, count in zip(magnitudes, counts.tolist(), strict=True)
    ]
    threshold = torch.stack(thresholds)[:, None]
    is_above, is_tied = magnitudes > threshold, magnitudes == threshold
    n_tied_kept = vectors.shape[1] - counts.to(vectors.device) - is_above.sum(1)
    is_late = is_tied.flip(1).cumsum(1).flip(1) <= n_tied_kept[:, None]
    return (is_above | (is_tied & is_late)).to(vectors.dtype)


@torch.no_grad()
def project(parameters: Sequence[Float[Tensor, "b ..."]], sparsity: Float[Tensor, " b"]) -> None:
    r"""Project the parameters of each copy on the $\ell_0$ ball, in place; the optimiser's state is not touched.

    Args:
        parameters: tensors with one entry per copy in front; all of them are ranked together.
        sparsity: $p_w$ of each copy; nothing happens where it is 0.
    """
    if not bool((sparsity > 0).any()):
        return
    mask = l0_mask(torch.cat([parameter.flatten(1) for parameter in parameters], dim=1), sparsity)
    for parameter, part in zip(parameters, mask.split([p[0].numel() for p in parameters], dim=1), strict=True):
        parameter.mul_(part.view_as(parameter))


def distillation_loss(logits: Float[Tensor, "b n k"], teacher: Float[Tensor, "b n k"]) -> Float[Tensor, " b"]:
    r"""$\frac1N \sum_i \mathrm{KL}(\mathrm{softmax}(z^{\text{dense}}_i) \Vert \mathrm{softmax}(z_i))$, all nodes.

    Args:
        logits: of the sparse network, for all nodes.
        teacher: of the dense network at its best epoch, without dropout; no gradient flows there.

    Source: the distillation term; temperature 1, teacher first, mean over nodes.
    """
    # classes in front of nodes: torch's softmax is several times faster along a dimension that is not the last
    log_probs, log_targets = (z.transpose(1, 2).contiguous().log_softmax(1) for z in (logits, teacher.detach()))
    return (log_targets.exp() * (log_targets - log_probs)).sum((1, 2)) / logits.shape[1]
