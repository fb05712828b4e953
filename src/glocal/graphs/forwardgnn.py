r"""Single-forward (SF) learning of graph networks: one virtual node per class, local losses, no negatives.

Park et al., *Forward Learning of Graph Neural Networks* (ICLR 2024, arXiv:2403.11004). Sizes: `b` runs side by side,
`n` nodes, `k` classes, `h` width, `l` layers. Forward-Forward variants are in `forwardgnn_contrast`, top-down signals
in `forwardgnn_topdown`, back-propagation and other controls in `forwardgnn_baselines`.
"""

import time
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.forwardgnn_layers import (
    Layer,
    Prepared,
    StackedGraph,
    make_layer,
    stacked_graph,
    train_copies,
    unit_rows,
)

DIRECTIONS = ("both", "to_virtual", "to_real")
READOUTS = ("virtual", "linear")


@dataclass(frozen=True)
class Runs:
    """One graph with several splits of its nodes, one per run; the parts have equal sizes in all runs.

    Args:
        x: features.
        edge_index: both directions of every undirected edge, without loops.
        y: class of each node.
        train: labelled nodes of each run.
        val: nodes for early stopping and the choice of learning rate and depth.
        test: nodes for the final measurement.
        n_classes: number of classes.
    """

    x: Float[Tensor, "n f"]
    edge_index: Int[Tensor, "2 e"]
    y: Int[Tensor, " n"]
    train: Int[Tensor, "b m"]
    val: Int[Tensor, "b v"]
    test: Int[Tensor, "b t"]
    n_classes: int

    @property
    def copies(self) -> int:
        """Number of runs."""
        return len(self.train)

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.y)

    def subset(self, runs: slice) -> "Runs":
        """Some of the runs."""
        return replace(self, train=self.train[runs], val=self.val[runs], test=self.test[runs])

    def accuracy(self, scores: Float[Tensor, "*l b n k"], nodes: Int[Tensor, "b t"]) -> Float[Tensor, "*l b"]:
        """Share of the nodes of each run whose largest score is that of their class."""
        right = scores.argmax(-1) == self.y
        return right.gather(-1, nodes.expand(*right.shape[:-1], -1)).double().mean(-1)


@dataclass(frozen=True)
class LayerwiseFit:
    """What a training gave; entry `j` of an axis `l` is what the first `j + 1` layers predict together.

    Args:
        scores: class scores of every node, summed over the layers so far.
        val: validation accuracy in [0, 1].
        test: test accuracy in [0, 1].
        seconds: CPU seconds of the process for all runs together.
        states: outputs of each layer (virtual nodes last), for figures.
        layers: the trained layers.
        zero_share: share of nodes whose output is zero in all units, per layer.
    """

    scores: Float[Tensor, "l b n k"]
    val: Float[Tensor, "l b"]
    test: Float[Tensor, "l b"]
    seconds: float
    states: tuple[Float[Tensor, "b _ h"], ...] = ()
    layers: tuple[Layer, ...] = ()
    zero_share: tuple[float, ...] = ()


def virtual_edges(
    nodes: Int[Tensor, " m"], labels: Int[Tensor, " m"], n_nodes: int, direction: str = "both"
) -> Int[Tensor, "2 _"]:
    r"""Links between nodes and the virtual nodes $v_c = n + c$ of their labels.

    Args:
        nodes: nodes to link: the labelled ones, and no others.
        labels: class of each.
        n_nodes: $n$.
        direction: `"both"`, `"to_virtual"` or `"to_real"`.

    Raises:
        ValueError: for another direction.

    Source: the augmented graph; `aug_edge_direction` of the official code.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    up = torch.stack([nodes, n_nodes + labels])
    return {"both": torch.cat([up, up.flip(0)], dim=1), "to_virtual": up, "to_real": up.flip(0)}[direction]


def augmented_graph(runs: Runs, direction: str = "both") -> StackedGraph:
    """Per run: the edges of the graph and the links of its labelled nodes to the virtual nodes of their classes."""
    links = [virtual_edges(train, runs.y[train], runs.n_nodes, direction) for train in runs.train]
    graphs = [torch.cat([runs.edge_index, link], dim=1) for link in links]
    return stacked_graph(graphs, runs.n_nodes + runs.n_classes)


def augmented_features(runs: Runs, *, generator: torch.Generator) -> Float[Tensor, "b nk f"]:
    r"""Features of all nodes and fixed $\mathcal{N}(0, 1)$ features of the virtual ones, never trained."""
    size = (runs.copies, runs.n_classes, runs.x.shape[1])
    drawn = torch.randn(size, generator=generator, device=generator.device)
    return torch.cat([runs.x.expand(runs.copies, -1, -1), drawn], dim=1)


def sf_logits(
    nodes: Float[Tensor, "b m h"], virtual: Float[Tensor, "b k h"], temperature: float = 1.0
) -> Float[Tensor, "b m k"]:
    r"""$\ell_{ic} = z_i^\top z_{v_c} / \tau$; gradients reach the layer through both factors.

    Source: the single-forward loss of the paper.
    """
    return nodes @ virtual.mT / temperature


def copy_losses(logits: Float[Tensor, "b m k"], labels: Int[Tensor, "b m"]) -> Float[Tensor, " b"]:
    """Mean cross-entropy of each copy."""
    return F.cross_entropy(logits.mT, labels, reduction="none").mean(1)


class LinearReadout(nn.Module):
    """A softmax classifier per copy and layer instead of virtual nodes: greedy layer-wise training, the control."""

    def __init__(self, copies: int, width: int, n_classes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.layer = make_layer("gcn", copies, width, n_classes, generator=generator)

    def forward(self, z: Float[Tensor, "b m h"]) -> Float[Tensor, "b m k"]:
        """Logits of the rows of `z`."""
        logits: Tensor = self.layer(z)
        return logits


def train_forward(
    runs: Runs,
    *,
    kind: str = "gcn",
    n_layers: int = 4,
    n_hidden: int = 128,
    n_heads: int = 4,
    readout: str = "virtual",
    direction: str = "both",
    temperature: float = 1.0,
    lr: float = 1e-3,
    epochs: int = 1000,
    val_every: int = 2,
    patience: int = 100,
    generator: torch.Generator,
) -> LayerwiseFit:
    r"""Train layer after layer, each with its own loss, optimiser and early stopping, on the frozen output below.

    Layer $j$ computes $z = \mathrm{ReLU}(\mathrm{GNN}_j(\nu(s_{j-1})))$, and the prediction after it is
    $\arg\max_c \sum_{l \le j} \mathrm{softmax}(\ell^l_i)_c$. No gradient crosses a layer.

    Args:
        runs: graph and splits.
        kind: `"gcn"`, `"sage"` or `"gat"`.
        n_layers: depth.
        n_hidden: width.
        n_heads: attention heads of GAT.
        readout: `"virtual"` is SF: inner products with virtual nodes on the augmented graph. `"linear"` is the
            control: the plain graph and a linear classifier per layer.
        direction: of the links to virtual nodes.
        temperature: $\tau$.
        lr: learning rate of every layer's Adam.
        epochs: limit per layer.
        val_every: epochs between evaluations.
        patience: epochs without progress before a layer stops; 0 for none.
        generator: source of virtual features and weights.

    Raises:
        ValueError: for an unknown choice.
    """
    if readout not in READOUTS:
        raise ValueError(f"readout must be one of {', '.join(READOUTS)}, got {readout!r}")
    start, n, k, is_virtual = time.process_time(), runs.n_nodes, runs.n_classes, readout == "virtual"
    anchors = torch.arange(n, n + k, device=runs.x.device).expand(runs.copies, -1)
    if is_virtual:
        graph, state = augmented_graph(runs, direction), augmented_features(runs, generator=generator)
    else:
        graph = stacked_graph([runs.edge_index] * runs.copies, n)
        state = runs.x.expand(runs.copies, -1, -1)
    targets = runs.y[runs.train]
    summed = runs.x.new_zeros(runs.copies, n, k)
    scores, states, layers = [], [], []
    for _ in range(n_layers):
        layer = make_layer(kind, runs.copies, state.shape[2], n_hidden, n_heads=n_heads, generator=generator)
        head = None if is_virtual else LinearReadout(runs.copies, n_hidden, k, generator=generator)
        inputs = unit_rows(state)  # without a graph behind it: this is what "local" means
        train_rows, val_rows = (
            torch.cat([rows, anchors], 1) if is_virtual else rows for rows in (runs.train, runs.val)
        )
        prepared = layer.prepare(graph, inputs, train_rows)
        prepared_val = layer.prepare(graph, inputs, val_rows)
        before = summed.gather(1, runs.val[..., None].expand(-1, -1, k))

        def logits_of(z: Tensor, head: LinearReadout | None = head) -> Tensor:
            return sf_logits(z[:, :-k], z[:, -k:], temperature) if head is None else head(z)

        def losses(layer: Layer = layer, prepared: Prepared = prepared) -> Tensor:
            return copy_losses(logits_of(layer(prepared).relu()), targets)

        def evaluate(layer: Layer = layer, prepared: Prepared = prepared_val, before: Tensor = before) -> Tensor:
            total = before + logits_of(layer(prepared).relu()).softmax(-1)
            return (total.argmax(-1) == runs.y[runs.val]).double().mean(1)

        parameters = [*layer.parameters(), *([] if head is None else head.parameters())]
        train_copies(parameters, losses, evaluate, lr=lr, epochs=epochs, val_every=val_every, patience=patience)
        with torch.no_grad():
            state = layer(layer.prepare(graph, inputs)).relu()
            summed = summed + logits_of(state).softmax(-1)
        scores.append(summed)
        states.append(state)
        layers.append(layer)
    return _finished(runs, torch.stack(scores), start, states, layers)


def _finished(
    runs: Runs, scores: Tensor, start: float, states: list[Tensor] | None = None, layers: list[Layer] | None = None
) -> LayerwiseFit:
    """Read validation and test nodes of the finished training, once."""
    shares = tuple(float((state == 0).all(-1).double().mean()) for state in states or ())
    val, test = runs.accuracy(scores, runs.val), runs.accuracy(scores, runs.test)
    seconds = time.process_time() - start
    return LayerwiseFit(scores, val, test, seconds, tuple(states or ()), tuple(layers or ()), shares)


def best_depth(val: Float[Tensor, "l b"], test: Float[Tensor, "l b"]) -> Float[Tensor, " b"]:
    """Test accuracy at the depth that is best on validation, per run; of equally good ones the smallest."""
    return test.gather(0, val.argmax(0, keepdim=True))[0]
