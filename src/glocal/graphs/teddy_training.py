r"""Training of dense networks and of tickets: one loop for all networks and methods that TEDDY is compared with."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.graphs.node_tasks import NodeTask
from glocal.graphs.teddy import distillation_loss, project
from glocal.graphs.teddy_gat import AttentionGraphs, GatNetwork, attention_graphs
from glocal.graphs.teddy_networks import Graphs, TicketNetwork, stack_graphs

PROJECTIONS = ("every step", "once")


def ticket_network(
    net: str,
    n_features: int,
    n_hidden: int,
    n_classes: int,
    *,
    copies: int = 1,
    heads: int = 8,
    generator: torch.Generator,
) -> TicketNetwork | GatNetwork:
    """A network of the kind `net`, `"gcn"`, `"gin"`, `"mlp"` or `"gat"`.

    Args:
        net: the kind.
        n_features: input width.
        n_hidden: hidden width; of each head in GAT.
        n_classes: output width.
        copies: how many; they start equal and see equal dropout.
        heads: attention heads of the first layer of GAT.
        generator: source of the initial weights and of dropout.
    """
    if net == "gat":
        return GatNetwork(n_features, n_hidden, n_classes, copies=copies, heads=heads, generator=generator)
    return TicketNetwork(net, n_features, n_hidden, n_classes, copies=copies, generator=generator)


def graphs_for(net: str, pairs: Sequence[Int[Tensor, "2 _"]], x: Float[Tensor, "n f"]) -> Graphs | AttentionGraphs:
    """Graphs of all copies in the form that the network `net` reads; loops are added where it has them."""
    return attention_graphs(pairs, x) if net == "gat" else stack_graphs(net, pairs, x)


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
    network: TicketNetwork | GatNetwork,
    graphs: Graphs | AttentionGraphs,
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
    b, device = graphs.copies, graphs.x.device
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

    def outputs(graphs: Graphs | AttentionGraphs) -> Tensor:
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
