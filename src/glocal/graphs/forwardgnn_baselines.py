r"""Back-propagation with the encoders of ForwardGNN, and controls that ignore features or graph."""

import itertools
import time

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.data.pyg import data_class
from glocal.graphs.forwardgnn import LayerwiseFit, Runs, augmented_features, augmented_graph, copy_losses
from glocal.graphs.forwardgnn_layers import (
    Prepared,
    StackedGraph,
    make_layer,
    stacked_graph,
    train_copies,
    unit_rows,
)

GRAPHS = ("plain", "augmented", "none")


class StackedEncoder(nn.Module):
    """Graph layers with ReLU between them, one network per copy, trained end to end."""

    def __init__(
        self, kind: str, copies: int, widths: list[int], *, n_heads: int = 4, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            make_layer(kind, copies, a, b, n_heads=n_heads if b % n_heads == 0 else 1, generator=generator)
            for a, b in itertools.pairwise(widths)
        )

    def prepare(self, graph: StackedGraph, x: Float[Tensor, "b n f"]) -> Prepared:
        """What the first layer reads: constant, so computed once."""
        prepared: Prepared = self.layers[0].prepare(graph, x)  # type: ignore[operator]
        return prepared

    def forward(
        self,
        graph: StackedGraph,
        x: Float[Tensor, "b n f"],
        rows: Int[Tensor, "b m"] | None = None,
        first: Prepared | None = None,
    ) -> Float[Tensor, "b _ k"]:
        """Outputs of some rows of every copy (None: all); the last layer is linear.

        Args:
            graph: the graphs of the copies.
            x: features.
            rows: nodes whose outputs are wanted.
            first: `prepare(graph, x)`, to save its repetition.
        """
        last = len(self.layers) - 1
        for depth, layer in enumerate(self.layers):
            ready = depth == 0 < last and first is not None
            wanted = rows if depth == last else None
            x = layer(first if ready else layer.prepare(graph, x, wanted))  # type: ignore[operator]
            x = x if depth == last else x.relu()
        return x


def train_backprop(
    runs: Runs,
    *,
    kind: str = "gcn",
    n_layers: int = 4,
    n_hidden: int = 128,
    n_heads: int = 4,
    graph: str = "plain",
    lr: float = 1e-3,
    epochs: int = 1000,
    val_every: int = 2,
    patience: int = 100,
    generator: torch.Generator,
) -> LayerwiseFit:
    """End-to-end training with cross-entropy on the labelled nodes; the axis `l` of the result has length one.

    Args:
        runs: graph and splits.
        kind: `"gcn"`, `"sage"` or `"gat"`.
        n_layers: depth; hidden layers have `n_hidden` units, the last one gives the logits.
        n_hidden: width.
        n_heads: attention heads of GAT's hidden layers.
        graph: `"plain"`; `"augmented"` for SF's graph with virtual nodes, which isolates the effect of its edges;
            `"none"` for a perceptron (a GCN whose only edges are loops).
        lr: learning rate of Adam.
        epochs: limit on the epochs.
        val_every: epochs between evaluations.
        patience: epochs without progress before training stops; 0 for none.
        generator: source of weights (and virtual features).

    Raises:
        ValueError: for an unknown graph.
    """
    if graph not in GRAPHS:
        raise ValueError(f"graph must be one of {', '.join(GRAPHS)}, got {graph!r}")
    start = time.process_time()
    if graph == "augmented":
        edges, x = augmented_graph(runs), augmented_features(runs, generator=generator)
    else:
        kept = runs.edge_index if graph == "plain" else runs.edge_index[:, :0]
        edges, x = stacked_graph([kept] * runs.copies, runs.n_nodes), runs.x.expand(runs.copies, -1, -1)
    x, targets = unit_rows(x), runs.y[runs.train]
    widths = [x.shape[2], *[n_hidden] * (n_layers - 1), runs.n_classes]
    network = StackedEncoder(kind, runs.copies, widths, n_heads=n_heads, generator=generator)

    first = network.prepare(edges, x)

    def evaluate() -> Tensor:
        return (network(edges, x, runs.val, first).argmax(-1) == runs.y[runs.val]).double().mean(1)

    train_copies(
        list(network.parameters()),
        lambda: copy_losses(network(edges, x, runs.train, first), targets),
        evaluate,
        lr=lr,
        epochs=epochs,
        val_every=val_every,
        patience=patience,
    )
    with torch.no_grad():
        scores = network(edges, x)[None, :, : runs.n_nodes]
    val, test = runs.accuracy(scores, runs.val), runs.accuracy(scores, runs.test)
    return LayerwiseFit(scores, val, test, time.process_time() - start)


def label_propagation(runs: Runs, *, steps: int = 50, alpha: float = 0.9) -> Float[Tensor, " b"]:
    """Test accuracy of label propagation (PyG's): the graph and the training labels, no features, nothing trained."""
    data_class()  # first, for its quiet import
    from torch_geometric.nn import LabelPropagation

    model = LabelPropagation(num_layers=steps, alpha=alpha)
    with torch.no_grad():
        scores = torch.stack([model(runs.y, runs.edge_index, mask=train) for train in runs.train])
    return runs.accuracy(scores, runs.test)


def one_hot(labels: Int[Tensor, "*n"], n_classes: int) -> Float[Tensor, "*n k"]:
    """One-hot codes; `1 / k` everywhere for the label -1, which means unknown."""
    codes = F.one_hot(labels.clamp_min(0), n_classes).float()
    return torch.where((labels < 0)[..., None], 1 / n_classes, codes)
