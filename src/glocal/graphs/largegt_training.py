"""One mini-batch loop for LargeGT and its rivals, GraphSAGE with neighbours sampled on-line among them."""

import copy
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from glocal.data.pyg import data_class
from glocal.graphs.largegt import head
from glocal.graphs.largegt_tokens import draw_positions
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import NodeTask

Loader = Callable[[Tensor], tuple]


@dataclass(frozen=True)
class BatchFit:
    """What one training gave.

    Args:
        val_accuracy: best validation accuracy, in [0, 1].
        test_accuracy: test accuracy at that epoch, in [0, 1].
        best_epoch: that epoch, from 1.
    """

    val_accuracy: float
    test_accuracy: float
    best_epoch: int


def clock(device: torch.device) -> float:
    """CPU seconds of the process; on a GPU wall-clock seconds after all queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def fit_batches(
    model: nn.Module,
    load: Loader,
    task: NodeTask,
    *,
    lr: float = 1e-3,
    epochs: int = 500,
    batch_size: int = 1024,
    eval_batch_size: int | None = None,
    eval_every: int = 1,
    max_batches: int | None = None,
    before_epoch: Callable[[], None] | None = None,
    generator: torch.Generator,
) -> BatchFit:
    """Adam on mini-batches of labelled nodes; the epoch is chosen on validation and the test read once.

    Args:
        model: maps what `load` returns to logits; it is left at the chosen epoch.
        load: maps node numbers to the arguments of the model.
        task: labels and split.
        lr: learning rate.
        epochs: passes over the labelled nodes.
        batch_size: target nodes per step.
        eval_batch_size: target nodes per step of evaluation; None for `batch_size`.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        max_batches: use only so many batches of every pass (rehearsals); None for all.
        before_epoch: called at the start of every epoch.
        generator: source of the order of batches and of dropout; its device is the model's.

    Raises:
        ValueError: for a batch size below two, with which batch norm cannot train.
    """
    if batch_size < 2:
        raise ValueError(f"batch_size must be at least 2, got {batch_size}")
    device = generator.device
    y, eval_batch_size = task.y.to(device), eval_batch_size or batch_size
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    best_accuracy, best_epoch, best_state = -1.0, 0, {}
    with seeded(generator):
        for epoch in range(1, epochs + 1):
            if before_epoch is not None:
                before_epoch()
            model.train()
            order = task.train[
                torch.randperm(len(task.train), generator=generator, device=device).to(task.train.device)
            ]
            for nodes in _batches(order, batch_size, max_batches):
                training_step(model, load, nodes, y, optimizer)
            if epoch % eval_every and epoch < epochs:
                continue
            current = batch_accuracy(model, load, task.val, y, eval_batch_size, max_batches)
            if current > best_accuracy:
                best_accuracy, best_epoch, best_state = current, epoch, copy.deepcopy(model.state_dict())
        model.load_state_dict(best_state)
        test_accuracy = batch_accuracy(model, load, task.test, y, eval_batch_size, max_batches)
    return BatchFit(best_accuracy, test_accuracy, best_epoch)


def training_step(
    model: nn.Module, load: Loader, nodes: Int[Tensor, " b"], y: Int[Tensor, " n"], optimizer: torch.optim.Optimizer
) -> Float[np.ndarray, " 2"]:
    """One update; returns the time of the loader and the time of the model, in seconds."""
    start = clock(y.device)
    arguments = load(nodes)
    loaded = clock(y.device)
    optimizer.zero_grad()
    F.cross_entropy(model(*arguments), y[nodes.to(y.device)]).backward()
    optimizer.step()
    return np.array([loaded - start, clock(y.device) - loaded])


@torch.no_grad()
def batch_accuracy(
    model: nn.Module,
    load: Loader,
    nodes: Int[Tensor, " m"],
    y: Int[Tensor, " n"],
    batch_size: int,
    max_batches: int | None = None,
) -> float:
    """Share of `nodes` that the model, in evaluation mode, puts into their class."""
    model.eval()
    hits = [(model(*load(b)).argmax(-1) == y[b.to(y.device)]) for b in _batches(nodes, batch_size, max_batches)]
    return float(torch.cat(hits).double().mean())


def _batches(nodes: Tensor, size: int, max_batches: int | None) -> Iterable[Tensor]:
    """Equal batches (up to one node), so that no batch has a single node, which batch norm cannot train on."""
    parts = nodes.tensor_split(max(1, math.ceil(len(nodes) / size)))
    return itertools.islice(parts, max_batches)


class HopMLP(nn.Module):
    r"""The classifier of LargeGT on $[x, \hat A x, \dots]$ of the target alone, without attention.

    Load with a `TokenBank` whose `sample_len` is 1. Source: the idea of SIGN (Frasca et al., 2020).

    Args:
        n_features: features of a token.
        n_classes: outputs.
        n_tokens: tokens of the target.
        width: $d$ of the classifier.
        n_heads: $H$ of the classifier.
        global_dim: dimension of the structural encoding to append; 0 for none.
        dropout: of the classifier.
        generator: source of the initial weights; its device is the model's.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        n_tokens: int,
        width: int,
        n_heads: int = 2,
        global_dim: int = 0,
        dropout: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        with seeded(generator):
            self.head = head(n_tokens * n_features + global_dim, width, n_heads, n_classes, dropout)
        self.has_encoding = global_dim > 0
        self.to(generator.device)

    def forward(
        self, tokens: Float[Tensor, "b t f"], encoding: Float[Tensor, "b g"], nodes: Int[Tensor, " b"]
    ) -> Float[Tensor, "b k"]:
        """Logits of the targets."""
        x = tokens.flatten(1)
        logits: Tensor = self.head(torch.cat([x, encoding], dim=1) if self.has_encoding else x)
        return logits


class NeighborSampler:
    """Neighbours of neighbours of a batch, drawn while training, in vectorised NumPy.

    What PyG's `NeighborLoader` does with torch-sparse or pyg-lib: in every hop each node that is new draws up to
    `fan_out` of its neighbours without replacement; nodes are numbered in the order of their discovery.

    Args:
        graph: from `adjacency`.
        x: features of all nodes.
        fan_out: neighbours per node in each hop.
        device: where batches go.
        generator: source of randomness.
    """

    def __init__(
        self,
        graph: csr_matrix,
        x: Float[Tensor, "n f"],
        fan_out: list[int],
        *,
        device: str = "cpu",
        generator: np.random.Generator,
    ) -> None:
        self.starts, self.targets = graph.indptr.astype(np.int64), graph.indices
        self.x, self.fan_out, self.device, self.generator = x, fan_out, device, generator
        self.number = np.full(graph.shape[0], -1, dtype=np.int64)  # in the batch; -1 outside

    def __call__(self, nodes: Int[Tensor, " b"]) -> tuple[Tensor, Tensor, list[int], list[int]]:
        """Features of all nodes of the batch, its edges (source, target), and how many of both came in each hop."""
        found, edges, edge_counts = [nodes.cpu().numpy()], [], []
        self.number[found[0]] = np.arange(len(found[0]))
        n_found = len(found[0])
        for fan_out in self.fan_out:
            source, target = self.neighbors(found[-1], fan_out)
            outside = source[self.number[source] < 0]
            self.number[outside] = np.arange(len(outside))  # the last occurrence of a node keeps its place
            new = outside[self.number[outside] == np.arange(len(outside))]
            self.number[new] = n_found + np.arange(len(new))
            edges.append(np.stack([self.number[source], self.number[target]]))
            edge_counts.append(len(source))
            found.append(new)
            n_found += len(new)
        everything = np.concatenate(found)
        self.number[everything] = -1
        x = self.x[torch.from_numpy(everything)].to(self.device)
        edge_index = torch.from_numpy(np.concatenate(edges, axis=1)).to(self.device)
        return x, edge_index, [len(part) for part in found], edge_counts

    def neighbors(self, nodes: Int[np.ndarray, " m"], fan_out: int) -> tuple[np.ndarray, np.ndarray]:
        """Drawn neighbours, and for each of them the node that drew it."""
        degree = self.starts[nodes + 1] - self.starts[nodes]
        is_long = degree > fan_out
        few, many = nodes[~is_long], nodes[is_long]
        n_few = degree[~is_long]
        rank = np.arange(n_few.sum()) - np.repeat(np.cumsum(n_few) - n_few, n_few)
        drawn = draw_positions(degree[is_long], fan_out, generator=self.generator)
        place = np.concatenate(
            [np.repeat(self.starts[few], n_few) + rank, (self.starts[many][:, None] + drawn).ravel()]
        )
        return self.targets[place], np.concatenate([np.repeat(few, n_few), np.repeat(many, fan_out)])


class SampledSAGE(nn.Module):
    """GraphSAGE with mean aggregation on batches of a `NeighborSampler`: PyG's layers, trimmed hop by hop.

    Args:
        n_features: input features.
        n_classes: outputs.
        width: of the hidden layers.
        n_layers: as many as the sampler has hops.
        dropout: before every layer but the first.
        generator: source of the initial weights; its device is the model's.

    Source: Hamilton et al., NeurIPS 2017; PyG's `SAGEConv`; trimming as in its `trim_to_layer`.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        width: int,
        n_layers: int,
        dropout: float = 0.5,
        generator: torch.Generator,
    ) -> None:
        data_class()  # first, for its quiet import
        from torch_geometric.nn import SAGEConv

        super().__init__()
        widths = [n_features, *[width] * (n_layers - 1), n_classes]
        with seeded(generator):
            self.layers = nn.ModuleList(SAGEConv(a, b) for a, b in itertools.pairwise(widths))
        self.dropout = dropout
        self.to(generator.device)

    def forward(
        self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"], node_counts: list[int], edge_counts: list[int]
    ) -> Float[Tensor, "b k"]:
        """Logits of the targets, the first `node_counts[0]` nodes."""
        for depth, layer in enumerate(self.layers):
            hops = len(self.layers) - depth  # outputs are needed within hops - 1 of the targets, inputs one further
            edges, n_out = edge_index[:, : sum(edge_counts[:hops])], sum(node_counts[:hops])
            if depth:
                x = F.dropout(x.relu(), self.dropout, self.training)
            x = layer((x, x[:n_out]), edges)
        return x
