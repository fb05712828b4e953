r"""Graph layers for many runs side by side: GCN, GraphSAGE and GAT with one set of weights per copy.

A copy is one run with its own weights on its own graph. Layers first *prepare* what does not depend on weights:
under a local loss the input of a layer is frozen, so its neighbourhood average is computed once, not in every step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.sparse import SparseOperator, compressed_rows

KINDS = ("gcn", "sage", "gat")


@dataclass(frozen=True)
class StackedGraph:
    """Graphs with equally many nodes, one per copy; node `i` of copy `c` has the number `c * n_nodes + i`.

    Args:
        edge_index: directed edges without loops, sources above targets.
        copies: number of graphs.
        n_nodes: nodes of each graph.
    """

    edge_index: Int[Tensor, "2 e"]
    copies: int
    n_nodes: int

    @cached_property
    def convolution(self) -> SparseOperator:
        r"""$\tilde{D}^{-1/2} (A + I) \tilde{D}^{-1/2}$ with in-degrees, the operator of a GCN layer."""
        total = self.copies * self.n_nodes
        loops = torch.arange(total, device=self.edge_index.device)
        sources, targets = torch.cat([self.edge_index, loops.expand(2, -1)], dim=1)
        scale = torch.bincount(targets, minlength=total).float() ** -0.5
        return _operator(sources, targets, scale[targets] * scale[sources], total)

    @cached_property
    def mean(self) -> SparseOperator:
        """The average over in-neighbours, zero for a node without any: the operator of a GraphSAGE layer."""
        total = self.copies * self.n_nodes
        sources, targets = self.edge_index
        degrees = torch.bincount(targets, minlength=total).float()
        return _operator(sources, targets, 1 / degrees[targets], total)


def _operator(sources: Tensor, targets: Tensor, values: Tensor, total: int) -> SparseOperator:
    matrix = compressed_rows(targets, sources, values, (total, total))
    return SparseOperator(matrix, compressed_rows(sources, targets, values, (total, total)))


def stacked_graph(graphs: Sequence[Int[Tensor, "2 _"]], n_nodes: int) -> StackedGraph:
    """Graphs on `n_nodes` nodes each, side by side, one copy per graph."""
    shifted = [edges + copy * n_nodes for copy, edges in enumerate(graphs)]
    return StackedGraph(torch.cat(shifted, dim=1), len(graphs), n_nodes)


def unit_rows(x: Float[Tensor, "*rows f"]) -> Float[Tensor, "*rows f"]:
    r"""$\nu(x) = x / (\lVert x \rVert_2 + 10^{-8})$: what a layer reads says nothing about the goodness below it.

    Rows of zeros stay. Source: the layer normalisation of the Forward-Forward algorithm, as in the official code.
    """
    return x / (x.norm(dim=-1, keepdim=True) + 1e-8)


def taken(x: Float[Tensor, "b n f"], rows: Int[Tensor, "b m"] | None) -> Float[Tensor, "b _ f"]:
    """Some rows of every copy; all of them for None."""
    return x if rows is None else x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))


def glorot(*shape: int, generator: torch.Generator) -> nn.Parameter:
    """Uniform start of a stack of matrices (Glorot and Bengio 2010)."""
    draws = 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
    return nn.Parameter(draws * math.sqrt(6 / (shape[-2] + shape[-1])))


class DenseLayer(nn.Module):
    r"""One linear map per copy after a fixed aggregation of neighbours.

    GCN: $z = \hat{A} x W + b$. GraphSAGE: $z = [\bar{x} \Vert x] W + b$ with the mean $\bar{x}$ over neighbours.

    Args:
        kind: `"gcn"` or `"sage"`.
        copies: number of runs side by side.
        n_in: input width.
        n_out: output width.
        generator: source of the weights; biases start at zero.
    """

    def __init__(self, kind: str, copies: int, n_in: int, n_out: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.kind = kind
        self.weight = glorot(copies, n_in * (1 + (kind == "sage")), n_out, generator=generator)
        self.bias = nn.Parameter(torch.zeros(copies, 1, n_out, device=generator.device))

    def prepare(
        self, graph: StackedGraph, x: Float[Tensor, "b n f"], rows: Int[Tensor, "b m"] | None = None
    ) -> Float[Tensor, "b _ g"]:
        """Aggregated inputs of some nodes of every copy (None: all)."""
        flat = x.reshape(-1, x.shape[2])
        if self.kind == "gcn":
            return taken((graph.convolution @ flat).view(x.shape), rows)
        return taken(torch.cat([(graph.mean @ flat).view(x.shape), x], dim=2), rows)

    def forward(self, prepared: Float[Tensor, "b m g"]) -> Float[Tensor, "b m h"]:
        """Outputs, before any activation."""
        return torch.baddbmm(self.bias, prepared, self.weight)


@dataclass(frozen=True)
class Attended:
    """What a GAT layer needs for some targets: inputs of all nodes and the edges that end in those targets."""

    x: Float[Tensor, "b n f"]
    sources: Int[Tensor, " e"]
    targets: Int[Tensor, " e"]
    positions: Int[Tensor, " e"]
    n_targets: int


class AttentionLayer(nn.Module):
    r"""GAT layer: $z_i = \Vert_{h} \sum_{j} \alpha^h_{ij} W^h x_j + b$, heads side by side, loops added.

    $\alpha^h_{ij} = \mathrm{softmax}_j\, \mathrm{LeakyReLU}_{0.2}(a^h_s \cdot W^h x_j + a^h_t \cdot W^h x_i)$.

    Args:
        copies: number of runs side by side.
        n_in: input width.
        n_out: output width, a multiple of `n_heads`.
        n_heads: attention heads.
        generator: source of the weights; biases start at zero.

    Raises:
        ValueError: if the heads do not divide the width.
    """

    def __init__(self, copies: int, n_in: int, n_out: int, *, n_heads: int = 4, generator: torch.Generator) -> None:
        super().__init__()
        if n_out % n_heads:
            raise ValueError(f"n_out must be a multiple of the {n_heads} heads, got {n_out}")
        self.n_heads = n_heads
        self.weight = glorot(copies, n_in, n_out, generator=generator)
        self.source = glorot(copies, 1, n_heads, n_out // n_heads, generator=generator)
        self.target = glorot(copies, 1, n_heads, n_out // n_heads, generator=generator)
        self.bias = nn.Parameter(torch.zeros(copies, 1, n_out, device=generator.device))

    def prepare(
        self, graph: StackedGraph, x: Float[Tensor, "b n f"], rows: Int[Tensor, "b m"] | None = None
    ) -> Attended:
        """The edges into some nodes of every copy (None: all), loops included."""
        b, n = x.shape[:2]
        if rows is None:
            rows = torch.arange(n, device=x.device).expand(b, n)
        wanted = (rows + n * torch.arange(b, device=x.device)[:, None]).flatten()
        position = torch.full((b * n,), -1, device=x.device)
        position[wanted] = torch.arange(len(wanted), device=x.device)
        edges = torch.cat([graph.edge_index[:, position[graph.edge_index[1]] >= 0], wanted.expand(2, -1)], dim=1)
        return Attended(x, edges[0], edges[1], position[edges[1]], rows.shape[1])

    def forward(self, prepared: Attended) -> Float[Tensor, "b m h"]:
        """Outputs, before any activation."""
        b, n = prepared.x.shape[:2]
        z = (prepared.x @ self.weight).view(b, n, self.n_heads, -1)
        given, asked = ((z * vector).sum(-1).view(b * n, -1) for vector in (self.source, self.target))
        scores = F.leaky_relu(given[prepared.sources] + asked[prepared.targets], 0.2)
        index = prepared.positions[:, None].expand_as(scores)
        size = (b * prepared.n_targets, self.n_heads)
        largest = scores.new_zeros(size).scatter_reduce(0, index, scores.detach(), "amax", include_self=False)
        weights = (scores - largest[prepared.positions]).exp()
        total = scores.new_zeros(size).index_add(0, prepared.positions, weights)
        messages = weights[..., None] * z.reshape(b * n, self.n_heads, -1)[prepared.sources]
        mixed = messages.new_zeros(*size, messages.shape[2]).index_add(0, prepared.positions, messages)
        return (mixed / total[..., None]).view(b, prepared.n_targets, -1) + self.bias


Layer = DenseLayer | AttentionLayer
Prepared = Tensor | Attended


def make_layer(kind: str, copies: int, n_in: int, n_out: int, *, n_heads: int = 4, generator: torch.Generator) -> Layer:
    """A layer of one of the `KINDS`.

    Raises:
        ValueError: for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if kind == "gat":
        return AttentionLayer(copies, n_in, n_out, n_heads=n_heads, generator=generator)
    return DenseLayer(kind, copies, n_in, n_out, generator=generator)


def train_copies(
    parameters: Sequence[nn.Parameter],
    losses: Callable[[], Tensor],
    evaluate: Callable[[], Tensor],
    *,
    lr: float,
    epochs: int,
    val_every: int = 3,
    patience: int = 0,
    clip_groups: Sequence[Sequence[nn.Parameter]] = (),
) -> Float[Tensor, " b"]:
    """Adam on all copies together; each ends at its own epoch of best validation score.

    The sum of the copies' losses has separate gradients and Adam works entry by entry, so this equals separate
    trainings, and one Adam for parameters of several layers equals one Adam per layer.

    Args:
        parameters: with the copies as first axis.
        losses: one loss per copy.
        evaluate: one validation score per copy, higher is better.
        lr: learning rate.
        epochs: limit on the epochs.
        val_every: epochs between evaluations; the last epoch is always evaluated.
        patience: a copy stops after so many epochs without a better score; 0 to run all.
        clip_groups: parameters whose gradient is brought to norm one, per group and copy, where it is longer.

    Returns:
        The best validation score of each copy.
    """
    parameters = list(parameters)
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    best = [parameter.detach().clone() for parameter in parameters]
    best_score = torch.full((len(best[0]),), -math.inf, dtype=torch.float64, device=best[0].device)
    best_epoch = torch.zeros_like(best_score)
    is_active = torch.ones_like(best_score, dtype=torch.bool)
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        losses().sum().backward()
        for group in clip_groups:
            _clip_per_copy(group)
        optimizer.step()
        if epoch % val_every and epoch < epochs:
            continue
        with torch.no_grad():
            score = evaluate()
            is_better = (score > best_score) & is_active
            best_score, best_epoch = (
                torch.where(is_better, new, old) for new, old in ((score, best_score), (epoch, best_epoch))
            )
            for kept, parameter in zip(best, parameters, strict=True):
                kept[is_better] = parameter[is_better]
        is_active &= (epoch - best_epoch < patience) | (patience == 0)
        if not is_active.any():
            break
    with torch.no_grad():
        for parameter, kept in zip(parameters, best, strict=True):
            parameter.copy_(kept)
    optimizer.zero_grad()
    return best_score


def _clip_per_copy(group: Sequence[nn.Parameter], limit: float = 1.0) -> None:
    gradients = [parameter.grad for parameter in group if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    factors = (limit / (norms + 1e-6)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))
