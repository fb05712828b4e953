r"""UGS and WD-GLT: graph lottery tickets by iterative pruning of trained masks, the baselines of TEDDY.

Chen et al., *A Unified Lottery Ticket Hypothesis for Graph Neural Networks* (ICML 2021); Hui et al., *Rethinking Graph
Lottery Tickets: Graph Sparsity Matters* (ICLR 2023, arXiv:2305.02190).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from glocal.graphs.node_tasks import NodeTask
from glocal.graphs.sparse import compressed_rows
from glocal.graphs.teddy import l0_mask, n_removed, within_hops
from glocal.graphs.teddy_gat import AttentionGraphs, GatNetwork
from glocal.graphs.teddy_networks import TicketNetwork
from glocal.graphs.teddy_products import Features, Pattern
from glocal.graphs.teddy_wasserstein import class_separation

NOISE = 1e-5


class MaskedProduct(torch.autograd.Function):
    r"""$(v, X) \mapsto M(v) X$ for a symmetric sparse $M$ with fixed places, differentiable in both arguments."""

    @staticmethod
    def forward(ctx: Any, starts: Tensor, columns: Tensor, rows: Tensor, values: Tensor, x: Tensor) -> Tensor:
        matrix = torch.sparse_csr_tensor(starts, columns, values, (len(x), len(x)), check_invariants=False)
        ctx.save_for_backward(rows, columns, x)
        ctx.matrix = matrix
        product: Tensor = matrix @ x
        return product

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        rows, columns, x = ctx.saved_tensors
        along_edges = (gradient.index_select(0, rows) * x.index_select(0, columns)).sum(1)
        return None, None, None, along_edges, ctx.matrix @ gradient


class SoftGraph:
    r"""A graph whose undirected edges carry weights $m_{ij}$; normalised afterwards, so degrees follow the weights.

    Args:
        net: `"gcn"` for $\tilde D^{-1/2} (A_m + I) \tilde D^{-1/2}$ with $\tilde D_{ii} = 1 + \sum_j m_{ij}$, `"gin"`
            for $A_m$, `"gat"` for $A_m + I$, whose entries are factors in the attention.
        pairs: undirected edges.
        n_nodes: number of nodes.
        around: nodes whose outputs of two layers are wanted; the matrix then holds their two-hop neighbourhood only,
            with degrees of the whole graph. Outputs at these nodes, and gradients through them, stay exact. None for
            all nodes.

    Attributes:
        nodes: the nodes of the matrix, in increasing order; features must be given for these.
    """

    def __init__(
        self, net: str, pairs: Int[Tensor, "2 m"], n_nodes: int, *, around: Int[Tensor, " _"] | None = None
    ) -> None:
        self.net, self.pairs, self.n_nodes = net, pairs, n_nodes
        loops = torch.arange(0 if net == "gin" else n_nodes, device=pairs.device).expand(2, -1)
        rows, columns = torch.cat([pairs, pairs.flip(0), loops], dim=1)
        is_node = torch.ones(n_nodes, dtype=torch.bool, device=pairs.device)
        numbers = torch.arange(len(rows), device=pairs.device)
        if around is not None:
            hidden = within_hops(pairs, n_nodes, around, 1)
            is_node = within_hops(pairs, n_nodes, around, 2)
            # rows outside `hidden` stay incomplete: no output at `around` reads them
            numbers = numbers[(hidden[rows] | hidden[columns] | (rows == columns)) & is_node[rows] & is_node[columns]]
        self.nodes, place = is_node.nonzero().flatten(), is_node.cumsum(0) - 1
        ends, size = (place[rows[numbers]], place[columns[numbers]]), len(self.nodes)
        pattern = compressed_rows(*ends, numbers.double(), (size, size))
        self.order, self.starts = pattern.values().long(), pattern.crow_indices()
        self.rows, self.columns = place[rows[self.order]], pattern.col_indices()

    def values(self, mask: Float[Tensor, " m"]) -> Float[Tensor, " e"]:
        """Entries of the matrix for edge weights `mask` of all edges, in the order of `rows` and `columns`."""
        if self.net == "gin":
            return torch.cat([mask, mask])[self.order]
        if self.net == "gat":  # loops have no mask and are never pruned
            return torch.cat([mask, mask, mask.new_ones(self.n_nodes)])[self.order]
        ends = self.pairs.flatten()
        degrees = torch.ones(self.n_nodes, device=mask.device).index_add(0, ends, torch.cat([mask, mask]))
        scale = degrees.clamp_min(1e-6).rsqrt()
        weights = mask * scale[self.pairs[0]] * scale[self.pairs[1]]
        return torch.cat([weights, weights, scale.square()])[self.order]

    def for_attention(self, features: Features) -> AttentionGraphs:
        """The same graph as GAT reads it, with `features` for the entries of `nodes`."""
        pattern = Pattern.of(self.rows, self.columns, len(self.nodes))
        return AttentionGraphs(
            pattern, features, 1, torch.arange(len(self.rows), device=self.rows.device), len(self.rows)
        )

    def multiply(self, values: Float[Tensor, " e"], h: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The matrix with the given entries times `h`, one row per entry of `nodes`."""
        product: Tensor = MaskedProduct.apply(self.starts, self.columns, self.rows, values, h)
        return product


def masked_logits(
    network: TicketNetwork | GatNetwork,
    graph: SoftGraph,
    inputs: Features | AttentionGraphs,
    edge_mask: Float[Tensor, " m"],
    weight_masks: Sequence[Float[Tensor, "1 _ _"]],
) -> Float[Tensor, "n k"]:
    """Outputs of a network (one copy) whose edges and weights are multiplied by masks; differentiable in all.

    `inputs` (see `mask_inputs`) and the outputs have one row per entry of `graph.nodes`.
    """
    masked = [weight * mask for weight, mask in zip(network.weights, weight_masks, strict=True)]
    values = graph.values(edge_mask)
    if isinstance(network, GatNetwork):
        logits: Tensor = network(inputs, masked, values)
        return logits[0]
    w = [weight[0] for weight in masked]
    first = inputs @ w[0]
    if network.net == "gcn":
        hidden = network.dropped(graph.multiply(values, first).relu()[None])[0]
        return graph.multiply(values, hidden @ w[1])
    hidden = ((1 + network.epsilons[0][0]) * first + graph.multiply(values, first)).relu()
    second = hidden @ w[1]
    second = ((1 + network.epsilons[1][0]) * second + graph.multiply(values, second)).relu()
    return 0.5 * (hidden @ w[2] + second)


def mask_inputs(graph: SoftGraph, x: Float[Tensor, "n f"]) -> Features | AttentionGraphs:
    """What `masked_logits` reads besides the masks: the rows of the features `x` of all nodes that `graph` holds."""
    features = Features(x[graph.nodes])
    return graph.for_attention(features) if graph.net == "gat" else features


@dataclass(frozen=True)
class Ticket:
    """What a round of iterative pruning left.

    Args:
        pairs: remaining undirected edges.
        weight_masks: 0/1 masks of the weight matrices.
        seconds: CPU seconds of the round's mask training and pruning.
    """

    pairs: Int[Tensor, "2 m"]
    weight_masks: tuple[Float[Tensor, "1 _ _"], ...]
    seconds: float


def train_masks(
    network: TicketNetwork | GatNetwork,
    task: NodeTask,
    pairs: Int[Tensor, "2 m"],
    fixed: Sequence[Float[Tensor, "1 _ _"]],
    *,
    edge_penalty: float = 0.0,
    weight_penalty: float = 0.0,
    wasserstein_weight: float = 0.0,
    sinkhorn_steps: int = 10,
    n_compared: int = 0,
    generator: torch.Generator,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    epochs: int = 200,
    eval_every: int = 1,
    whole_graph: bool = False,
) -> tuple[Float[Tensor, " m"], list[Float[Tensor, "1 _ _"]]]:
    r"""Masks at the epoch of best validation accuracy (the first), trained jointly with the weights.

    Edges beyond the two-hop neighbourhood of the labelled nodes feel the penalty and the decay only. Minimises
    cross-entropy $+ \lambda_A \lVert m_A \rVert_1 + \lambda_W \lVert m_W \rVert_1$ (UGS). WD-GLT has no
    penalties but the term $-\lambda_D \sum_c W(Z_c, Z_{\bar c})$ over all nodes (see `class_separation`), which pulls
    the outputs of the classes apart and lets the gradient reach every edge; its edge masks are clipped to [0, 1].

    Args:
        network: one copy, at its initial weights; it is trained along.
        task: features, labels and split.
        pairs: undirected edges that are left, one mask entry each.
        fixed: 0/1 masks of the weights that are left.
        edge_penalty: $\lambda_A$.
        weight_penalty: $\lambda_W$.
        wasserstein_weight: $\lambda_D$; 0 for UGS.
        sinkhorn_steps: iterations for each distance.
        n_compared: nodes drawn in every step to compute the distances from; 0 for all nodes, as in the official code.
        generator: source of the noise around one that masks start from, and of those draws.
        lr: learning rate of weights and masks.
        weight_decay: Adam's $L_2$ penalty on weights and masks, as in the official code.
        epochs: training steps.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        whole_graph: steps on the whole graph, as in the official code, instead of the two-hop neighbourhood of the
            labelled nodes. Gradients are the same, the cost is not; dropout draws other numbers.

    Source: Chen et al. 2021, algorithm 1; noise, choice of the epoch and the form of WD-GLT as in TEDDY's repository.
    """

    def noisy_ones(shape: torch.Size | tuple[int, ...]) -> nn.Parameter:
        return nn.Parameter(1 + NOISE * torch.randn(shape, generator=generator, device=generator.device))

    edge_mask, masks = noisy_ones((pairs.shape[1],)), [noisy_ones(weight.shape) for weight in network.weights]
    graph = SoftGraph(network.net, pairs, task.n_nodes)
    is_whole = whole_graph or wasserstein_weight > 0
    inner = graph if is_whole else SoftGraph(network.net, pairs, task.n_nodes, around=task.train)
    everything = mask_inputs(graph, task.x)
    inputs = everything if is_whole else mask_inputs(inner, task.x)
    labelled = torch.searchsorted(inner.nodes, task.train)
    optimizer = torch.optim.Adam(
        [*network.parameters(), edge_mask, *masks], lr=lr, weight_decay=weight_decay, fused=True
    )
    best_val, best = -1.0, [edge_mask.detach().clone(), *(mask.detach().clone() for mask in masks)]
    for epoch in range(1, epochs + 1):
        network.train()
        optimizer.zero_grad()
        logits = masked_logits(network, inner, inputs, edge_mask, [m * f for m, f in zip(masks, fixed, strict=True)])
        loss = F.cross_entropy(logits[labelled], task.y[task.train])
        penalty = edge_penalty * edge_mask.abs().sum() + weight_penalty * sum(mask.abs().sum() for mask in masks)
        if wasserstein_weight:
            compared = logits
            if 0 < n_compared < task.n_nodes:
                drawn = torch.randperm(task.n_nodes, generator=generator, device=generator.device)[:n_compared]
                compared = logits[drawn]
            loss = loss - wasserstein_weight * class_separation(compared, n_steps=sinkhorn_steps)
        (loss + penalty).backward()
        optimizer.step()
        if wasserstein_weight:
            edge_mask.data.clamp_(0.0, 1.0)
        if epoch % eval_every and epoch < epochs:
            continue
        network.eval()
        with torch.no_grad():
            held = [m * f for m, f in zip(masks, fixed, strict=True)]
            logits = masked_logits(network, graph, everything, edge_mask, held)
            val = float((logits[task.val].argmax(-1) == task.y[task.val]).double().mean())
        if val > best_val:
            best_val, best = val, [edge_mask.detach().clone(), *(mask.detach().clone() for mask in masks)]
    return best[0], best[1:]


def ugs_tickets(
    rewound: Callable[[], TicketNetwork | GatNetwork],
    task: NodeTask,
    pairs: Int[Tensor, "2 m"],
    edge_levels: Sequence[float],
    weight_levels: Sequence[float],
    *,
    generator: torch.Generator,
    **training: Any,
) -> list[Ticket]:
    r"""Iterative pruning: train masks, remove the smallest, rewind the weights, and again; one ticket per round.

    Args:
        rewound: makes a network at the initial weights, the same in every call.
        task: features, labels and split.
        pairs: undirected edges of the full graph.
        edge_levels: share of all edges that is gone after each round.
        weight_levels: share of all weights that is gone after each round.
        generator: source of the masks' noise.
        training: see `train_masks`.

    Source: Chen et al. 2021, algorithm 2. Retraining a ticket from the rewound weights is up to the caller.
    """
    fixed = [torch.ones_like(weight) for weight in rewound().weights]
    n_edges, left, tickets = pairs.shape[1], pairs, []
    for edge_level, weight_level in zip(edge_levels, weight_levels, strict=True):
        start = time.process_time()
        edge_mask, masks = train_masks(rewound(), task, left, fixed, generator=generator, **training)
        surplus = n_removed(n_edges, edge_level) - (n_edges - left.shape[1])
        left = left[:, edge_mask.abs().argsort(stable=True)[surplus:].sort().values]
        # a weight that is gone has magnitude zero and stays among the smallest
        magnitudes = torch.cat([(m * f).abs().flatten(1) for m, f in zip(masks, fixed, strict=True)], dim=1)
        survives = l0_mask(magnitudes, magnitudes.new_tensor([weight_level]))
        sizes = [mask.numel() for mask in masks]
        fixed = [part.view_as(mask) for part, mask in zip(survives.split(sizes, dim=1), masks, strict=True)]
        tickets.append(Ticket(left, tuple(fixed), time.process_time() - start))
    return tickets
