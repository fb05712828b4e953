r"""Link prediction with forward learning: one local loss per layer on the scores of edges and non-edges.

Park et al. (ICLR 2024, arXiv:2403.11004). An edge $(a, b)$ is scored from $p = z_a \odot z_b$.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.data.pyg import data_class
from glocal.graphs.forwardgnn_baselines import StackedEncoder
from glocal.graphs.forwardgnn_layers import (
    Layer,
    Prepared,
    StackedGraph,
    make_layer,
    stacked_graph,
    train_copies,
    unit_rows,
)
from glocal.graphs.node_classification import seeded

LOSSES = ("forward", "contrast")


@dataclass(frozen=True)
class LinkRuns:
    """One graph with several splits of its edges, one per run.

    Args:
        x: features.
        graph: per run the training edges, both directions: the only ones that messages follow.
        train: pairs of nodes; the first half are training edges, the second as many non-edges.
        val: likewise, edges held out for early stopping.
        test: likewise, edges held out for the measurement.
    """

    x: Float[Tensor, "n f"]
    graph: StackedGraph
    train: Int[Tensor, "b 2 m"]
    val: Int[Tensor, "b 2 v"]
    test: Int[Tensor, "b 2 t"]

    def to(self, device: str | torch.device) -> "LinkRuns":
        """The same runs on `device`."""
        graph = StackedGraph(self.graph.edge_index.to(device), self.graph.copies, self.graph.n_nodes)
        parts = (getattr(self, name).to(device) for name in ("train", "val", "test"))
        return LinkRuns(self.x.to(device), graph, *parts)


def link_runs(
    x: Float[Tensor, "n f"],
    edge_index: Int[Tensor, "2 e"],
    generators: list[torch.Generator],
    *,
    val: float = 0.16,
    test: float = 0.2,
) -> LinkRuns:
    """Splits by PyG's `RandomLinkSplit`, one per generator, with one negative per edge.

    Args:
        x: features.
        edge_index: both directions of every undirected edge, without loops.
        generators: one per run.
        val: share of the edges for validation.
        test: share of the edges for the test.
    """
    data = data_class()(x=x, edge_index=edge_index)
    from torch_geometric.transforms import RandomLinkSplit

    split = RandomLinkSplit(val, test, is_undirected=True, neg_sampling_ratio=0.0)
    graphs, parts = [], []
    for generator in generators:
        with seeded(generator):
            found = split(data)
        positives = [part.edge_label_index for part in found]
        sizes = [pairs.shape[1] for pairs in positives]
        negatives = non_edges(edge_index, len(x), sum(sizes), generator=generator).split(sizes, dim=1)
        graphs.append(found[0].edge_index)
        parts.append([torch.cat(both, dim=1) for both in zip(positives, negatives, strict=True)])
    return LinkRuns(x, stacked_graph(graphs, len(x)), *(torch.stack(kind) for kind in zip(*parts, strict=True)))


def non_edges(
    edge_index: Int[Tensor, "2 e"], n_nodes: int, count: int, *, generator: torch.Generator
) -> Int[Tensor, "2 m"]:
    """Distinct pairs of different nodes without an edge. PyG's sampler draws from Python's global generator.

    Args:
        edge_index: both directions of every undirected edge.
        n_nodes: number of nodes.
        count: number of pairs.
        generator: source of randomness.

    Raises:
        ValueError: if the graph is too dense for so many.
    """
    drawn = torch.randint(n_nodes, (2, 4 * count), generator=generator)
    low, high = drawn.amin(0), drawn.amax(0)
    codes = (low * n_nodes + high)[low < high].unique()
    codes = codes[~torch.isin(codes, edge_index[0] * n_nodes + edge_index[1])]
    if len(codes) < count:
        raise ValueError(f"count must be at most the number of non-edges drawn, {len(codes)}, got {count}")
    chosen = codes[torch.randperm(len(codes), generator=generator)[:count]]
    return torch.stack([chosen // n_nodes, chosen % n_nodes])


def pair_products(z: Float[Tensor, "b n h"], pairs: Int[Tensor, "b 2 m"]) -> Float[Tensor, "b m h"]:
    r"""$z_a \odot z_b$ for every pair."""
    ends = [z.gather(1, pairs[:, side, :, None].expand(-1, -1, z.shape[2])) for side in (0, 1)]
    return ends[0] * ends[1]


def edge_logits(
    products: Float[Tensor, "b m h"], loss: str = "forward", threshold: float = 2.0
) -> Float[Tensor, "b m"]:
    r"""FL: $\sum_k p_k$. FF: the goodness $\sum_k p_k^2 - \theta$."""
    return products.sum(-1) if loss == "forward" else products.square().sum(-1) - threshold


def auc(scores: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Area under the ROC curve of each run; the first half of the columns are positives, ties count one half."""
    positive, negative = (half.contiguous() for half in scores.detach().double().chunk(2, dim=1))
    ordered = negative.sort(dim=1).values
    below = [torch.searchsorted(ordered, positive, right=is_right) for is_right in (False, True)]
    return (below[0] + below[1]).double().mean(1) / (2 * negative.shape[1])


def pair_losses(logits: Float[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Binary cross-entropy of each run; the first half of the columns are positives."""
    labels = torch.zeros_like(logits)
    labels[:, : logits.shape[1] // 2] = 1
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(1)


@dataclass(frozen=True)
class LinkFit:
    """Area under the ROC curve on validation and test edges, per run, and CPU seconds for all runs together."""

    val: Float[Tensor, " b"]
    test: Float[Tensor, " b"]
    seconds: float


def train_links(
    runs: LinkRuns,
    *,
    loss: str = "forward",
    kind: str = "gcn",
    n_layers: int = 2,
    n_hidden: int = 128,
    n_heads: int = 4,
    threshold: float = 2.0,
    lr: float = 1e-3,
    epochs: int = 1000,
    val_every: int = 2,
    patience: int = 100,
    generator: torch.Generator,
) -> LinkFit:
    """Train layer after layer on the frozen output below; an edge's score is the mean over the layers.

    Args:
        runs: graph and splits.
        loss: `"forward"` (FL) or `"contrast"` (FF).
        kind: `"gcn"`, `"sage"` or `"gat"`.
        n_layers: depth.
        n_hidden: width.
        n_heads: attention heads of GAT.
        threshold: of the goodness of FF.
        lr: learning rate of every layer's Adam.
        epochs: limit per layer.
        val_every: epochs between evaluations.
        patience: epochs without progress before a layer stops; 0 for none.
        generator: source of weights.

    Raises:
        ValueError: for an unknown loss.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    start, b = time.process_time(), len(runs.train)
    state = runs.x.expand(b, -1, -1)
    sums = [runs.x.new_zeros(pairs.shape[::2]) for pairs in (runs.val, runs.test)]
    for _ in range(n_layers):
        layer = make_layer(kind, b, state.shape[2], n_hidden, n_heads=n_heads, generator=generator)
        prepared = layer.prepare(runs.graph, unit_rows(state))

        def logits(pairs: Tensor, layer: Layer = layer, prepared: Prepared = prepared) -> Tensor:
            return edge_logits(pair_products(layer(prepared).relu(), pairs), loss, threshold)

        _fit_links(layer, logits, runs, sums[0], lr=lr, epochs=epochs, val_every=val_every, patience=patience)
        with torch.no_grad():
            sums = [total + logits(pairs) for total, pairs in zip(sums, (runs.val, runs.test), strict=True)]
            state = layer(prepared).relu()
    return LinkFit(auc(sums[0]), auc(sums[1]), time.process_time() - start)


def train_links_backprop(
    runs: LinkRuns,
    *,
    kind: str = "gcn",
    n_layers: int = 2,
    n_hidden: int = 128,
    n_heads: int = 4,
    lr: float = 1e-3,
    epochs: int = 1000,
    val_every: int = 2,
    patience: int = 100,
    generator: torch.Generator,
) -> LinkFit:
    """The same encoder end to end, scores from the last layer, which is linear. Arguments as in `train_links`."""
    start, b = time.process_time(), len(runs.train)
    widths = [runs.x.shape[1], *[n_hidden] * n_layers]
    network = StackedEncoder(kind, b, widths, n_heads=n_heads, generator=generator)
    x = unit_rows(runs.x.expand(b, -1, -1))

    first = network.prepare(runs.graph, x)

    def logits(pairs: Tensor) -> Tensor:
        return edge_logits(pair_products(network(runs.graph, x, first=first), pairs))

    nothing = runs.x.new_zeros(runs.val.shape[::2])
    _fit_links(network, logits, runs, nothing, lr=lr, epochs=epochs, val_every=val_every, patience=patience)
    with torch.no_grad():
        val, test = (auc(logits(pairs)) for pairs in (runs.val, runs.test))
    return LinkFit(val, test, time.process_time() - start)


def _fit_links(
    module: torch.nn.Module, logits: Callable[[Tensor], Tensor], runs: LinkRuns, before: Tensor, **options: Any
) -> None:
    train_copies(
        list(module.parameters()),
        lambda: pair_losses(logits(runs.train)),
        lambda: auc(before + logits(runs.val)),
        **options,
    )
