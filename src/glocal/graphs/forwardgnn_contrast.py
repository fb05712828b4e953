r"""Forward-Forward (FF) learning on graphs: positive and negative labels by appending (LA) or by virtual nodes (VN).

Park et al. (ICLR 2024, arXiv:2403.11004), after Hinton's Forward-Forward algorithm. A *branch* is the whole graph under
one assignment of labels to nodes; the branches of a run are laid side by side as one larger graph.
"""

import time

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.graphs.forwardgnn import LayerwiseFit, Runs, virtual_edges
from glocal.graphs.forwardgnn_baselines import one_hot
from glocal.graphs.forwardgnn_layers import (
    Layer,
    Prepared,
    StackedGraph,
    make_layer,
    stacked_graph,
    train_copies,
    unit_rows,
)

UNKNOWN = -1
VARIANTS = ("append", "virtual")


def goodness(h: Float[Tensor, "*rows h"], threshold: float = 2.0) -> Float[Tensor, "*rows"]:
    r"""$\gamma = \sum_k h_k^2 - \theta$, the logit of "this label is right". Source: the FF loss of the code."""
    return h.square().sum(-1) - threshold


def ff_loss(positive: Float[Tensor, "b m"], negative: Float[Tensor, "b negatives m"]) -> Float[Tensor, " b"]:
    r"""$\mathrm{BCE}(\gamma^+, 1) + \frac1M \sum_m \mathrm{BCE}(\gamma^-_m, 0)$ per copy, mean over its nodes."""
    return F.softplus(-positive).mean(-1) + F.softplus(negative).mean((-2, -1))


def training_assignments(
    runs: Runs, n_negatives: int | None = None, *, generator: torch.Generator
) -> Int[Tensor, "b g n"]:
    """Labels of all nodes in each branch: first the true ones of the training nodes, then wrong ones.

    Every training node gets the wrong classes in a random order of its own, so its negatives differ from each other.
    All other nodes are unknown.

    Args:
        runs: graph and splits.
        n_negatives: branches with wrong labels; None for all wrong classes, which is also the limit.
        generator: source of the orders.
    """
    b, n, k = runs.copies, runs.n_nodes, runs.n_classes
    m = k - 1 if n_negatives is None else min(n_negatives, k - 1)
    labels = runs.y[runs.train]
    order = torch.rand(b, labels.shape[1], k - 1, generator=generator, device=labels.device).argsort(-1)[..., :m]
    wrong = (labels[..., None] + 1 + order) % k
    values = torch.cat([labels[:, None], wrong.mT], dim=1)
    nodes = runs.train[:, None].expand_as(values)
    return torch.full((b, 1 + m, n), UNKNOWN, device=labels.device).scatter(2, nodes, values)


def candidate_assignments(runs: Runs, asked: Int[Tensor, "b t"], known: Int[Tensor, "b s"]) -> Int[Tensor, "b k n"]:
    """One branch per class: all asked nodes carry that class, known nodes their true one, the others none."""
    b, n, k = runs.copies, runs.n_nodes, runs.n_classes
    classes = torch.arange(k, device=asked.device)[None, :, None]
    assigned = torch.full((b, k, n), UNKNOWN, device=asked.device)
    assigned.scatter_(2, known[:, None].expand(-1, k, -1), runs.y[known][:, None].expand(-1, k, -1))
    return assigned.scatter_(2, asked[:, None].expand(-1, k, -1), classes.expand(b, -1, asked.shape[1]))


def appended_inputs(runs: Runs, assigned: Int[Tensor, "b g n"]) -> tuple[StackedGraph, Float[Tensor, "b gn fk"]]:
    """FF-LA: every branch is the same graph; features carry the label's one-hot code, `1 / k` where unknown."""
    b, g, n = assigned.shape
    x = torch.cat([runs.x.expand(b, g, -1, -1), one_hot(assigned, runs.n_classes)], dim=-1)
    shifted = [runs.edge_index + branch * n for branch in range(g)]
    return stacked_graph([torch.cat(shifted, dim=1)] * b, g * n), x.reshape(b, g * n, -1)


def virtual_inputs(
    runs: Runs, assigned: Int[Tensor, "b g n"], virtual: Float[Tensor, "b k f"]
) -> tuple[StackedGraph, Float[Tensor, "b gnk f"]]:
    """FF-VN: every branch has `k` more nodes; a node with a label is linked, both ways, to the one of its class."""
    b, g, n = assigned.shape
    size, branches = n + runs.n_classes, []
    for labels in assigned.reshape(b * g, n):
        nodes = (labels >= 0).nonzero().flatten()
        branches.append(torch.cat([runs.edge_index, virtual_edges(nodes, labels[nodes], n)], dim=1))
    graph = stacked_graph(branches, size)
    x = torch.cat([runs.x.expand(b, g, -1, -1), virtual[:, None].expand(-1, g, -1, -1)], dim=2)
    return StackedGraph(graph.edge_index, b, g * size), x.reshape(b, g * size, -1)


def branch_rows(nodes: Int[Tensor, "b m"], n_branches: int, size: int) -> Int[Tensor, "b gm"]:
    """Numbers of the same nodes in all branches of `size` nodes."""
    starts = size * torch.arange(n_branches, device=nodes.device)
    return (nodes[:, None] + starts[:, None]).flatten(1)


def positive_outputs(state: Float[Tensor, "b gn h"], n_branches: int) -> Float[Tensor, "b gn h"]:
    """Outputs of the first branch in the place of all: FF-VN's wrong graphs differ from the right one by links alone.

    Source: the official code; there FF-LA hands on the outputs of its wrong branches instead.
    """
    return state[:, : state.shape[1] // n_branches].repeat(1, n_branches, 1)


def train_contrast(
    runs: Runs,
    *,
    variant: str = "append",
    kind: str = "gcn",
    n_layers: int = 2,
    n_hidden: int = 128,
    n_heads: int = 4,
    threshold: float = 2.0,
    n_negatives: int | None = None,
    lr: float = 1e-3,
    epochs: int = 1000,
    val_every: int = 2,
    patience: int = 100,
    generator: torch.Generator,
) -> LayerwiseFit:
    r"""Train layer after layer to tell true from wrong labels; predict the class of largest goodness.

    The score of class $c$ is the sum over layers of the mean of squares minus $\theta$, from one forward pass per
    class. In the passes for test nodes the validation nodes carry their true labels, as in the official code; in
    those for validation nodes the test nodes carry none. Training nodes always carry their own.

    Args:
        runs: graph and splits.
        variant: `"append"` (FF-LA) or `"virtual"` (FF-VN).
        kind: `"gcn"`, `"sage"` or `"gat"`.
        n_layers: depth.
        n_hidden: width.
        n_heads: attention heads of GAT.
        threshold: $\theta$.
        n_negatives: $M$; None for all wrong classes.
        lr: learning rate of every layer's Adam.
        epochs: limit per layer.
        val_every: epochs between evaluations.
        patience: epochs without progress before a layer stops; 0 for none.
        generator: source of negatives, virtual features and weights.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    start, b, n, k = time.process_time(), runs.copies, runs.n_nodes, runs.n_classes
    virtual = torch.randn(b, k, runs.x.shape[1], generator=generator, device=generator.device)
    size = n if variant == "append" else n + k
    assigned = training_assignments(runs, n_negatives, generator=generator)
    n_branches = assigned.shape[1]
    known = torch.cat([runs.train, runs.val], dim=1)
    passes = [
        assigned,
        candidate_assignments(runs, runs.val, runs.train),
        candidate_assignments(runs, runs.test, known),
    ]
    built = [appended_inputs(runs, a) if variant == "append" else virtual_inputs(runs, a, virtual) for a in passes]
    graphs, states = [graph for graph, _ in built], [x for _, x in built]
    asked = (branch_rows(runs.val, k, size), branch_rows(runs.test, k, size))
    sums = [runs.x.new_zeros(b, k, nodes.shape[1]) for nodes in (runs.val, runs.test)]
    scores, layers = [], []
    for depth in range(n_layers):
        layer = make_layer(kind, b, states[0].shape[2], n_hidden, n_heads=n_heads, generator=generator)
        inputs = [unit_rows(state) for state in states]
        prepared = layer.prepare(graphs[0], inputs[0], branch_rows(runs.train, n_branches, size))
        prepared_val = layer.prepare(graphs[1], inputs[1], asked[0])

        def losses(layer: Layer = layer, prepared: Prepared = prepared) -> Tensor:
            gamma = goodness(layer(prepared).relu(), threshold).view(b, n_branches, -1)
            return ff_loss(gamma[:, 0], gamma[:, 1:])

        def class_scores(prepared: Prepared, layer: Layer = layer) -> Tensor:
            means = layer(prepared).relu().square().mean(-1) - threshold  # mean here, sum in the loss: as in the code
            return means.view(b, k, -1)

        def evaluate(prepared: Prepared = prepared_val, before: Tensor = sums[0]) -> Tensor:
            preds = (before + class_scores(prepared)).argmax(1)
            return (preds == runs.y[runs.val]).double().mean(1)

        train_copies(
            list(layer.parameters()), losses, evaluate, lr=lr, epochs=epochs, val_every=val_every, patience=patience
        )
        with torch.no_grad():
            prepared_test = layer.prepare(graphs[2], inputs[2], asked[1])
            sums = [total + class_scores(part) for total, part in zip(sums, (prepared_val, prepared_test), strict=True)]
            if depth + 1 < n_layers:  # nobody reads the outputs of the last layer
                states = [layer(layer.prepare(graph, x)).relu() for graph, x in zip(graphs, inputs, strict=True)]
                if variant == "virtual":
                    states[0] = positive_outputs(states[0], n_branches)
        scores.append(_by_node(runs, sums))
        layers.append(layer)
    stacked = torch.stack(scores)
    val, test = runs.accuracy(stacked, runs.val), runs.accuracy(stacked, runs.test)
    return LayerwiseFit(stacked, val, test, time.process_time() - start, layers=tuple(layers))


def _by_node(runs: Runs, sums: list[Tensor]) -> Float[Tensor, "b n k"]:
    """Scores of validation and test nodes at their places, zeros elsewhere."""
    scores = runs.x.new_zeros(runs.copies, runs.n_nodes, runs.n_classes)
    for nodes, total in zip((runs.val, runs.test), sums, strict=True):
        scores.scatter_(1, nodes[..., None].expand(-1, -1, runs.n_classes), total.mT)
    return scores
