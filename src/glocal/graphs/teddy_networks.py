r"""Graph networks whose graph and weights are pruned; many copies, each on its own graph, train side by side.

The graphs of the copies are the blocks of one sparse matrix, their weights the slices of one tensor. All copies
start from equal weights and see equal dropout. The sum of their losses has separate gradients and Adam works entry by
entry, so this equals separate trainings from one seed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.sparse import SparseOperator, compressed_rows, propagation_operator
from glocal.graphs.teddy import both_directions, within_hops
from glocal.graphs.teddy_products import Features

NETS = ("gcn", "gin", "mlp")


@dataclass(frozen=True)
class Graphs:
    r"""The pruned graphs of all copies as one block-diagonal matrix, with what the first layer can compute once.

    Args:
        operator: $\hat{A}$ of the pruned graphs, normalised after pruning (GCN), or $A$ (GIN).
        features: $X$, the same for all copies.
        copies: how many graphs there are.
        propagated: operator times features, one slice per copy; None for sparse features, which are multiplied by
            weights first.
    """

    operator: SparseOperator | None
    features: Features
    copies: int
    propagated: Float[Tensor, "b n f"] | None

    @property
    def x(self) -> Float[Tensor, "n f"]:
        """Features of the nodes of one copy."""
        return self.features.x

    def first_layer(self, w: Float[Tensor, "b f h"]) -> Float[Tensor, "b n h"]:
        """Operator times features times the weights of every copy."""
        return self.propagate(self.own(w)) if self.propagated is None else torch.bmm(self.propagated, w)

    def own(self, w: Float[Tensor, "b f h"]) -> Float[Tensor, "b n h"]:
        """Features times the weights of every copy."""
        if not self.features.is_sparse:
            return torch.bmm(self.x.expand(self.copies, -1, -1), w)
        wide = self.features @ w.transpose(0, 1).flatten(1)
        return wide.view(len(self.x), self.copies, -1).transpose(0, 1).contiguous()

    def propagate(self, h: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
        """The operator of every copy applied to its slice."""
        if self.operator is None:
            return h
        return (self.operator @ h.reshape(-1, h.shape[2])).view(h.shape)

    def around(self, nodes: Int[Tensor, " m"]) -> tuple["Graphs", Int[Tensor, " m"]]:
        """The part that decides the outputs of two layers at `nodes`, and where these are in it.

        It holds `nodes` and their neighbours in any copy; what these get from further away is in `propagated`. Without
        that, it holds all nodes within two steps, and the rows at its rim lack entries that no output needs.
        """
        n = len(self.x)
        if self.operator is None:
            propagated = None if self.propagated is None else self.propagated[:, nodes]
            places = torch.arange(len(nodes), device=nodes.device)
            return Graphs(None, Features(self.x[nodes]), self.copies, propagated), places
        matrix = self.operator.matrix
        columns = matrix.col_indices()
        rows = torch.arange(matrix.shape[0], device=columns.device).repeat_interleave(matrix.crow_indices().diff())
        is_inside = within_hops(torch.stack([rows % n, columns % n]), n, nodes, 2 if self.propagated is None else 1)
        kept, size = is_inside[rows % n] & is_inside[columns % n], int(is_inside.sum())
        place = is_inside.cumsum(0) - 1
        ends = [(end[kept] // n) * size + place[end[kept] % n] for end in (rows, columns)]
        total = self.copies * size
        part = compressed_rows(ends[0], ends[1], matrix.values()[kept], (total, total))
        propagated = None if self.propagated is None else self.propagated[:, is_inside]
        inside = Graphs(SparseOperator(part, part), Features(self.x[is_inside]), self.copies, propagated)
        return inside, place[nodes]


def kept_entries(shape: tuple[int, ...], dropout: float, generator: torch.Generator) -> Float[Tensor, "..."]:
    """Factors of dropout: 0 with probability `dropout`, else what keeps the mean at one."""
    # four 16-bit numbers from each random word: drawing one number per entry would dominate the cost of a step
    size = math.prod(shape)
    words = torch.empty(-(-size // 4), dtype=torch.int64, device=generator.device)
    drawn = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:size].view(shape)
    return (drawn >= round(dropout * 2**16) - 2**15).float() / (1 - dropout)


def block_pairs(pairs: Sequence[Int[Tensor, "2 _"]], n_nodes: int) -> Int[Tensor, "2 m"]:
    """The edges of graphs with `n_nodes` nodes each, renumbered so that graph after graph follows."""
    return torch.cat([part + copy * n_nodes for copy, part in enumerate(pairs)], dim=1)


def stack_graphs(net: str, pairs: Sequence[Int[Tensor, "2 _"]], x: Float[Tensor, "n f"]) -> Graphs:
    r"""Graphs of all copies, normalised (GCN: $\hat{A}$ with loops, of the graph as it is; GIN: $A$).

    Args:
        net: `"gcn"`, `"gin"` or `"mlp"`, which has no graph.
        pairs: undirected edges of each copy.
        x: features, the same for all copies.

    Raises:
        ValueError: for an unknown net.
    """
    if net not in NETS:
        raise ValueError(f"net must be one of {', '.join(NETS)}, got {net!r}")
    b, n = len(pairs), len(x)
    features, repeated = Features(x), x.expand(b, -1, -1)
    if net == "mlp":
        return Graphs(None, features, b, None if features.is_sparse else repeated)
    edges = both_directions(block_pairs(pairs, n))
    if net == "gcn":
        operator = propagation_operator(edges, b * n)
    else:
        matrix = compressed_rows(edges[0], edges[1], torch.ones(edges.shape[1], device=x.device), (b * n, b * n))
        operator = SparseOperator(matrix, matrix)
    propagated = None if features.is_sparse else (operator @ repeated.reshape(b * n, -1)).view(b, n, -1)
    return Graphs(operator, features, b, propagated)


class TicketNetwork(nn.Module):
    r"""Copies of a two-layer network without biases, as in the official code.

    GCN: $\hat{A}\, \mathrm{drop}(\mathrm{ReLU}(\hat{A} X W_1))\, W_2$, also without a graph (`"mlp"`, $\hat{A} = I$).
    GIN: $h = \mathrm{ReLU}(((1 + \varepsilon_1) X + A X) W_1)$, output
    $\tfrac12 \bigl(h W_3 + \mathrm{ReLU}(((1 + \varepsilon_2) h + A h) W_2)\bigr)$, no dropout.

    Args:
        net: `"gcn"`, `"gin"` or `"mlp"`.
        n_features: input width.
        n_hidden: hidden width.
        n_classes: output width.
        copies: how many; they start equal and see equal dropout.
        dropout: probability of dropping a hidden feature.
        generator: source of the initial weights and of dropout.
    """

    def __init__(
        self,
        net: str,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        copies: int = 1,
        dropout: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if net not in NETS:
            raise ValueError(f"net must be one of {', '.join(NETS)}, got {net!r}")

        def uniform(a: int, b: int) -> nn.Parameter:
            # the initialisations of PyG's GCNConv (Glorot) and of torch's Linear, which GIN uses
            bound = math.sqrt(1 / a) if net == "gin" else math.sqrt(6 / (a + b))
            draws = 2 * torch.rand(a, b, generator=generator, device=generator.device) - 1
            return nn.Parameter((bound * draws).repeat(copies, 1, 1))

        self.weights = nn.ParameterList([uniform(n_features, n_hidden), uniform(n_hidden, n_classes)])
        if net == "gin":
            self.weights.append(uniform(n_hidden, n_classes))
        n_eps = 2 if net == "gin" else 0
        self.epsilons = nn.ParameterList(torch.zeros(copies, 1, 1, device=generator.device) for _ in range(n_eps))
        self.net, self.dropout, self.generator = net, dropout, generator

    def forward(
        self, graphs: Graphs, weights: Sequence[Float[Tensor, "b _ _"]] | None = None
    ) -> Float[Tensor, "b n k"]:
        """Logits of all nodes of all copies; `weights` replace the network's own, e.g. masked ones."""
        w = list(self.weights) if weights is None else weights
        if self.net != "gin":
            return graphs.propagate(torch.bmm(self.dropped(graphs.first_layer(w[0]).relu()), w[1]))
        own = graphs.own(w[0])
        neighbors = graphs.propagate(own) if graphs.propagated is None else torch.bmm(graphs.propagated, w[0])
        hidden = (neighbors + (1 + self.epsilons[0]) * own).relu()
        second = torch.bmm(hidden, w[1])
        second = ((1 + self.epsilons[1]) * second + graphs.propagate(second)).relu()
        return 0.5 * (torch.bmm(hidden, w[2]) + second)

    def dropped(self, h: Float[Tensor, "b n h"]) -> Float[Tensor, "b n h"]:
        """Dropout in training mode, equal for all copies."""
        if not self.training or not self.dropout:
            return h
        return h * kept_entries(h.shape[1:], self.dropout, self.generator).to(h.dtype)
