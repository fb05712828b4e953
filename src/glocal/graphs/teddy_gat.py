r"""GAT whose graph and weights are pruned; many copies, each on its own graph, train side by side.

Velickovic et al., *Graph Attention Networks* (ICLR 2018), in the form of TEDDY's official code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.sparse import SparseOperator
from glocal.graphs.teddy import both_directions, within_hops
from glocal.graphs.teddy_networks import block_pairs, kept_entries
from glocal.graphs.teddy_products import Features, Pattern

SLOPE = 0.2  # of the leaky ReLU in the attention


@dataclass(frozen=True)
class AttentionGraphs:
    """The pruned graphs of all copies, every node with a loop, as the blocks of one pattern.

    Args:
        pattern: directed edges and loops of all copies; row i receives from column j.
        features: of the nodes, the same for all copies.
        copies: how many graphs there are.
        edge_ids: equal for entries of different copies that are the same edge of the graph.
        n_ids: how many different ones there are.
    """

    pattern: Pattern
    features: Features
    copies: int
    edge_ids: Int[Tensor, " e"]
    n_ids: int
    _repeated: dict[int, Pattern] = field(default_factory=dict, repr=False, compare=False)

    @property
    def x(self) -> Float[Tensor, "n f"]:
        """Features of the nodes of one copy."""
        return self.features.x

    def for_heads(self, heads: int) -> Pattern:
        """The pattern once per attention head; built once."""
        if heads not in self._repeated:
            self._repeated[heads] = self.pattern if heads == 1 else self.pattern.repeated(heads)
        return self._repeated[heads]

    def around(self, nodes: Int[Tensor, " m"]) -> tuple["AttentionGraphs", Int[Tensor, " m"]]:
        """The part that decides the outputs of two layers at `nodes`, and where these are in it.

        It holds all nodes within two steps of `nodes` in any copy. Rows at its rim lack entries and are not read.
        """
        n, rows, columns = len(self.features), self.pattern.rows, self.pattern.columns
        is_inside = within_hops(torch.stack([rows % n, columns % n]), n, nodes, 2)
        kept, size = is_inside[rows % n] & is_inside[columns % n], int(is_inside.sum())
        place = is_inside.cumsum(0) - 1
        ends = [(end[kept] // n) * size + place[end[kept] % n] for end in (rows, columns)]
        # renumbering keeps the order of the entries, so that ids stay aligned
        pattern = Pattern.of(ends[0], ends[1], self.copies * size)
        inside = AttentionGraphs(pattern, Features(self.x[is_inside]), self.copies, self.edge_ids[kept], self.n_ids)
        return inside, place[nodes]


def attention_graphs(pairs: Sequence[Int[Tensor, "2 _"]], x: Float[Tensor, "n f"]) -> AttentionGraphs:
    """The graphs of all copies with a loop at every node; loops are no edges that pruning could remove.

    Args:
        pairs: undirected edges of each copy, those that pruning left.
        x: features, the same for all copies.
    """
    n, b = len(x), len(pairs)
    loops = torch.arange(b * n, device=x.device).expand(2, -1)
    rows, columns = torch.cat([both_directions(block_pairs(pairs, n)), loops], dim=1)
    pattern = Pattern.of(rows, columns, b * n)
    names, ids = torch.unique((pattern.rows % n) * n + pattern.columns % n, return_inverse=True)
    return AttentionGraphs(pattern, Features(x), b, ids, len(names))


def attention(
    pattern: Pattern,
    sources: Float[Tensor, "n heads"],
    targets: Float[Tensor, "n heads"],
    factors: Float[Tensor, " e"] | None = None,
) -> Float[Tensor, "e heads"]:
    r"""$\alpha_{ij} = \mathrm{softmax}_j \, \mathrm{LeakyReLU}\bigl(m_{ij} (s_j + t_i)\bigr)$, row by row.

    Args:
        pattern: who receives (row) from whom (column).
        sources: $s_j = a_{\text{src}}^\top W h_j$, for each head.
        targets: $t_i = a_{\text{dst}}^\top W h_i$.
        factors: $m_{ij}$, trained masks of edges; None for ones.

    Source: GAT, equation 3; the place of the mask is that of UGS for GAT in TEDDY's repository.
    """
    logits = sources.index_select(0, pattern.columns) + targets.index_select(0, pattern.rows)
    if factors is not None:
        logits = logits * factors[:, None]
    logits = F.leaky_relu(logits, SLOPE)
    highest = torch.segment_reduce(logits.detach(), "max", offsets=pattern.starts, axis=0)
    weights = (logits - highest.index_select(0, pattern.rows)).exp()
    totals = torch.zeros_like(highest).index_add(0, pattern.rows, weights)
    return weights / totals.index_select(0, pattern.rows)


def extended(
    matrix: Float[Tensor, "b f hc"], source: Float[Tensor, "b h c"], target: Float[Tensor, "b h c"]
) -> Float[Tensor, "f b h c2"]:
    r"""Columns $W_h$ of every head followed by $W_h a_{\text{src}}$ and $W_h a_{\text{dst}}$: one product gives all."""
    heads = matrix.transpose(0, 1).unflatten(2, source.shape[1:])
    return torch.cat([heads, *((heads * end).sum(-1, keepdim=True) for end in (source, target))], dim=-1)


class GatNetwork(nn.Module):
    r"""Copies of a two-layer GAT without biases, as in the official code.

    First layer: heads side by side, then ELU; second layer: one head. Dropout on the features, on the hidden layer
    and on the attention of the first layer.

    Args:
        n_features: input width.
        n_hidden: hidden width of each head.
        n_classes: output width.
        copies: how many; they start equal and see equal dropout.
        heads: attention heads of the first layer.
        dropout: probability of dropping a feature, a hidden feature or an entry of the attention.
        generator: source of the initial weights and of dropout.
    """

    net = "gat"

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        copies: int = 1,
        heads: int = 8,
        dropout: float = 0.6,
        generator: torch.Generator,
    ) -> None:
        super().__init__()

        def glorot(*shape: int) -> nn.Parameter:
            draws = 2 * torch.rand(shape, generator=generator, device=generator.device) - 1
            return nn.Parameter((math.sqrt(6 / (shape[-2] + shape[-1])) * draws).repeat(copies, 1, 1))

        first = [glorot(n_features, heads * n_hidden), glorot(heads, n_hidden), glorot(heads, n_hidden)]
        second = [glorot(heads * n_hidden, n_classes), glorot(1, n_classes), glorot(1, n_classes)]
        # matrix, attention of the source, attention of the target; of both layers
        self.weights = nn.ParameterList([*first, *second])
        self.heads, self.dropout, self.generator = heads, dropout, generator

    def forward(
        self,
        graphs: AttentionGraphs,
        weights: Sequence[Float[Tensor, "b _ _"]] | None = None,
        factors: Float[Tensor, " e"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Logits of all nodes of all copies.

        Args:
            graphs: what the copies see.
            weights: replace the network's own, e.g. masked ones.
            factors: trained edge masks, one per entry of the pattern.
        """
        w = list(self.weights) if weights is None else weights
        b, n, is_dropped = graphs.copies, len(graphs.features), self.training and self.dropout > 0
        columns = extended(*w[:3])  # f x b x heads x (width + 2)
        features: Features | SparseOperator | Tensor = graphs.features
        if is_dropped:
            shape = graphs.features.shape_of_factors
            features = graphs.features.times(kept_entries(shape, self.dropout, self.generator))
        h = (features @ columns.flatten(1)).view(n, *columns.shape[1:]).permute(2, 1, 0, 3)
        hidden = self._mix(graphs, h, factors, is_dropped=is_dropped)
        hidden = F.elu(hidden.permute(1, 2, 0, 3).reshape(b, n, -1))
        if is_dropped:
            hidden = hidden * kept_entries(hidden.shape[1:], self.dropout, self.generator)
        columns = extended(*w[3:]).transpose(0, 1).flatten(2)
        return self._mix(graphs, torch.bmm(hidden, columns)[None], factors, is_dropped=False)[0]

    def _mix(self, graphs: AttentionGraphs, h: Tensor, factors: Tensor | None, *, is_dropped: bool) -> Tensor:
        """Means of `h` (heads x copies x nodes x width) over neighbours; the last two columns decide the attention."""
        heads, b, n, _ = h.shape
        sources, targets = (h[..., k].reshape(heads, -1).T for k in (-2, -1))
        alpha = attention(graphs.pattern, sources, targets, factors)
        if is_dropped:
            kept = kept_entries((graphs.n_ids, heads), self.dropout, self.generator)
            alpha = alpha * kept.index_select(0, graphs.edge_ids)
        flat = h[..., :-2].reshape(heads * b * n, -1)
        return graphs.for_heads(heads).multiply(alpha.T.reshape(-1), flat).view(heads, b, n, -1)
