r"""Graph networks whose graph and weights are pruned; many copies, each on its own graph, train side by side.

The graphs of the copies are the blocks of one sparse matrix, their weights the slices of one tensor. All copies
start from equal weights and see equal dropout. The sum of their losses has separate gradients and Adam works entry by
entry, so this equals separate trainings from one seed.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.node_tasks import NodeTask
from glocal.graphs.sparse import SparseOperator, compressed_rows, propagation_operator
from glocal.graphs.teddy import both_directions, distillation_loss, project

NETS = ("gcn", "gin", "mlp")
PROJECTIONS = ("every step", "once")


@dataclass(frozen=True)
class Graphs:
    r"""The pruned graphs of all copies as one block-diagonal matrix, with what the first layer can compute once.

    Args:
        operator: $\hat{A}$ of the pruned graphs, normalised after pruning (GCN), or $A$ (GIN).
        x: features $X$.
        propagated: operator times features, one slice per copy.
    """

    operator: SparseOperator | None
    x: Float[Tensor, "n f"]
    propagated: Float[Tensor, "b n f"]

    def propagate(self, h: Float[Tensor, "b n k"]) -> Float[Tensor, "b n k"]:
        """The operator of every copy applied to its slice."""
        if self.operator is None:
            return h
        return (self.operator @ h.reshape(-1, h.shape[2])).view(h.shape)

    def around(self, nodes: Int[Tensor, " m"]) -> tuple["Graphs", Int[Tensor, " m"]]:
        """The part that decides the outputs of two layers at `nodes`, and where these are in it.

        It holds `nodes` and their neighbours in any copy; what these get from further away is in `propagated`.
        """
        n = len(self.x)
        if self.operator is None:
            return Graphs(None, self.x[nodes], self.propagated[:, nodes]), torch.arange(len(nodes), device=nodes.device)
        matrix = self.operator.matrix
        columns = matrix.col_indices()
        rows = torch.arange(matrix.shape[0], device=columns.device).repeat_interleave(matrix.crow_indices().diff())
        is_wanted = torch.zeros(n, dtype=torch.bool, device=columns.device)
        is_wanted[nodes] = True
        is_inside = is_wanted.clone()
        is_inside[(columns % n)[is_wanted[rows % n]]] = True
        kept, size = is_inside[rows % n] & is_inside[columns % n], int(is_inside.sum())
        place = is_inside.cumsum(0) - 1
        ends = [(end[kept] // n) * size + place[end[kept] % n] for end in (rows, columns)]
        total = len(self.propagated) * size
        part = compressed_rows(ends[0], ends[1], matrix.values()[kept], (total, total))
        inside = Graphs(SparseOperator(part, part), self.x[is_inside], self.propagated[:, is_inside])
        return inside, place[nodes]


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
    features = x.expand(b, -1, -1)
    if net == "mlp":
        return Graphs(None, x, features)
    edges = both_directions(block_pairs(pairs, n))
    if net == "gcn":
        operator = propagation_operator(edges, b * n)
    else:
        matrix = compressed_rows(edges[0], edges[1], torch.ones(edges.shape[1], device=x.device), (b * n, b * n))
        operator = SparseOperator(matrix, matrix)
    propagated = (operator @ features.reshape(b * n, -1)).view(b, n, -1)
    return Graphs(operator, x, propagated)


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
        hidden = torch.bmm(graphs.propagated, w[0])
        if self.net != "gin":
            return graphs.propagate(torch.bmm(self.dropped(hidden.relu()), w[1]))
        own = torch.bmm(graphs.x.expand(len(hidden), -1, -1), w[0])
        hidden = (hidden + (1 + self.epsilons[0]) * own).relu()
        second = torch.bmm(hidden, w[1])
        second = ((1 + self.epsilons[1]) * second + graphs.propagate(second)).relu()
        return 0.5 * (torch.bmm(hidden, w[2]) + second)

    def dropped(self, h: Float[Tensor, "b n h"]) -> Float[Tensor, "b n h"]:
        """Dropout in training mode, equal for all copies."""
        if not self.training or not self.dropout:
            return h
        # four 16-bit numbers from each random word: drawing one number per entry would dominate the cost of a step
        n_words = -(-h[0].numel() // 4)
        words = torch.empty(n_words, dtype=torch.int64, device=h.device).random_(
            -(2**63), None, generator=self.generator
        )
        drawn = words.view(torch.int16)[: h[0].numel()].view(h.shape[1:])
        return h * ((drawn >= round(self.dropout * 2**16) - 2**15).to(h.dtype) / (1 - self.dropout))


@dataclass(frozen=True)
class TicketFit:
    """What a joint training gave, one entry per copy; accuracies in [0, 1].

    Args:
        val: best validation accuracy over the epochs.
        test: test accuracy at that epoch.
        logits: of all nodes at that epoch, without dropout.
        density: share of non-zero weights at that epoch, one column per weight matrix.
        seconds: CPU seconds for all copies together.
    """

    val: Float[Tensor, " b"]
    test: Float[Tensor, " b"]
    logits: Float[Tensor, "b n k"]
    density: Float[Tensor, "b layers"]
    seconds: float


def fit_tickets(
    network: TicketNetwork,
    graphs: Graphs,
    task: NodeTask,
    *,
    teacher: Float[Tensor, "n k"] | None = None,
    distill_weight: float | Float[Tensor, " b"] = 0.0,
    weight_sparsity: float | Float[Tensor, " b"] = 0.0,
    projection: str = "every step",
    masks: Sequence[Float[Tensor, "b _ _"]] | None = None,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    epochs: int = 200,
    eval_every: int = 1,
) -> TicketFit:
    r"""Train all copies; each keeps its epoch of best validation accuracy (the last of equal ones), then is tested.

    Per step: cross-entropy on labelled nodes plus $\lambda$ times the distillation term, one step of Adam, and the
    projection on $\lVert \theta \rVert_0 \le P - \lceil p_w P \rceil$ over all parameters of a copy. The teacher speaks
    about all nodes; without it, training steps need the neighbourhood of the labelled nodes only.

    Args:
        network: the copies, initialised.
        graphs: their (pruned) graphs.
        task: labels and split, the same for all copies; its edges are not used.
        teacher: logits of the dense network; None for no distillation.
        distill_weight: $\lambda$, one for all or one per copy.
        weight_sparsity: $p_w$, one for all or one per copy.
        projection: `"every step"` as in the paper, or `"once"`, of the weights that plain training chose.
        masks: fixed 0/1 factors of the weight matrices (iterative pruning); None for none.
        lr: learning rate.
        weight_decay: Adam's $L_2$ penalty on all parameters.
        epochs: training steps.
        eval_every: epochs between evaluations; the last epoch is always evaluated.

    Raises:
        ValueError: for an unknown projection.
    """
    if projection not in PROJECTIONS:
        raise ValueError(f"projection must be one of {', '.join(PROJECTIONS)}, got {projection!r}")
    start = time.process_time()
    b, device = len(graphs.propagated), graphs.x.device
    share, strength = (torch.as_tensor(v, device=device).expand(b) for v in (weight_sparsity, distill_weight))
    targets = task.y[task.train].expand(b, -1)
    trained = list(network.parameters())
    optimizer = torch.optim.Adam(trained, lr=lr, weight_decay=weight_decay, fused=True)
    best_val = torch.full((b,), -1.0, dtype=torch.float64, device=device)
    best = [parameter.detach().clone() for parameter in trained]

    if teacher is None or not bool((strength > 0).any()):
        teacher, (where, labelled) = None, graphs.around(task.train)
    else:
        where, labelled = graphs, task.train

    def outputs(graphs: Graphs) -> Tensor:
        weights = None if masks is None else [w * m for w, m in zip(network.weights, masks, strict=True)]
        logits: Tensor = network(graphs, weights)
        return logits

    def correct(nodes: Tensor, logits: Tensor) -> Tensor:
        return (logits[:, nodes].argmax(-1) == task.y[nodes]).double().mean(1)

    for epoch in range(1, epochs + 1):
        network.train()
        optimizer.zero_grad()
        logits = outputs(where)
        losses = F.cross_entropy(logits[:, labelled].transpose(1, 2), targets, reduction="none").mean(1)
        if teacher is not None:
            losses = losses + strength * distillation_loss(logits, teacher.expand(b, -1, -1))
        losses.sum().backward()
        optimizer.step()
        if projection == "every step":
            project(trained, share)
        if epoch % eval_every and epoch < epochs:
            continue
        network.eval()
        with torch.no_grad():
            val = correct(task.val, outputs(graphs))
            is_better = val >= best_val
            for parameter, kept in zip(trained, best, strict=True):
                kept.copy_(torch.where(is_better[:, None, None], parameter, kept))
        best_val = torch.maximum(best_val, val)
    network.eval()
    with torch.no_grad():
        for parameter, kept in zip(trained, best, strict=True):
            parameter.copy_(kept)
        if projection == "once":
            project(trained, share)
        logits = outputs(graphs)
        factors = [torch.ones_like(w) for w in network.weights] if masks is None else masks
        density = [(w * m != 0).float().mean((1, 2)) for w, m in zip(network.weights, factors, strict=True)]
    test = correct(task.test, logits)
    return TicketFit(best_val, test, logits, torch.stack(density, 1), time.process_time() - start)
