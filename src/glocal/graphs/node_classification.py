"""One protocol for node classification: train on labelled nodes, choose the epoch on validation, test once."""

import copy
import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.data.pyg import data_class
from glocal.graphs.node_tasks import NodeTask


@dataclass(frozen=True)
class Fit:
    """What one training gave.

    Args:
        val_accuracy: validation accuracy at the chosen epoch, in [0, 1].
        test_accuracy: test accuracy at the chosen epoch, in [0, 1].
        best_epoch: the chosen epoch, from 1.
        n_epochs: epochs that were run.
        seconds: CPU seconds of the process for the whole training, evaluation included.
        logits: outputs for all nodes at the chosen epoch.
    """

    val_accuracy: float
    test_accuracy: float
    best_epoch: int
    n_epochs: int
    seconds: float
    logits: Float[Tensor, "n k"]


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Inside, torch's global random numbers follow from `generator`; outside they are as before.

    PyG layers and dropout draw from the global generators; this keeps results a function of the seed.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    drawn = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(drawn))
        yield


def accuracy(logits: Float[Tensor, "n k"], y: Int[Tensor, " n"], nodes: Int[Tensor, " m"]) -> float:
    """Share of `nodes` whose largest logit is that of their class."""
    return float((logits[nodes].argmax(-1) == y[nodes]).double().mean())


def fit(
    model: nn.Module,
    task: NodeTask,
    *,
    inputs: tuple[Tensor, ...] | None = None,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    epochs: int = 200,
    patience: int | None = None,
    eval_every: int = 1,
    loss: Callable[[Tensor], Tensor] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Fit:
    """Full-batch training with Adam; leaves the model at the epoch with the best validation accuracy.

    The test nodes are read once, with the outputs of that epoch. Of equally good epochs the first counts. Random
    numbers (dropout) come from torch's global generators: call inside `seeded`.

    Args:
        model: maps `inputs` to logits of all nodes.
        task: the graph and its split.
        inputs: arguments of the model; None for `(task.x, task.edge_index)`.
        lr: learning rate.
        weight_decay: Adam's $L_2$ penalty on all parameters.
        epochs: limit on the epochs; at least 1.
        patience: stop after so many epochs without a better validation accuracy; None to run all.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        loss: function of the logits of all nodes; None for the cross-entropy on the training nodes.
        after_step: called after every step, e.g. to project the parameters.

    Raises:
        ValueError: for a limit below one.
    """
    if min(epochs, eval_every) < 1:
        raise ValueError(f"epochs and eval_every must be at least 1, got {epochs} and {eval_every}")
    inputs = (task.x, task.edge_index) if inputs is None else inputs
    loss = loss or (lambda logits: F.cross_entropy(logits[task.train], task.y[task.train]))
    start = time.process_time()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    best_accuracy, best_epoch, best_logits, best_state = -1.0, 0, torch.empty(0), {}
    epoch = 0
    for epoch in range(1, epochs + 1):
        model.train()
        optimizer.zero_grad()
        loss(model(*inputs)).backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        if epoch % eval_every and epoch < epochs:
            continue
        logits = predict(model, *inputs)
        current = accuracy(logits, task.y, task.val)
        if current > best_accuracy:
            best_accuracy, best_epoch, best_logits = current, epoch, logits
            best_state = copy.deepcopy(model.state_dict())
        elif patience is not None and epoch - best_epoch >= patience:
            break
    model.load_state_dict(best_state)
    test_accuracy = accuracy(best_logits, task.y, task.test)
    seconds = time.process_time() - start
    return Fit(best_accuracy, test_accuracy, best_epoch, epoch, seconds, best_logits)


@torch.no_grad()
def predict(model: nn.Module, *inputs: Tensor) -> Float[Tensor, "n k"]:
    """Outputs of the model in evaluation mode."""
    model.eval()
    logits: Tensor = model(*inputs)
    return logits


class GCN(nn.Module):
    r"""Graph convolutional network: $H^{l} = \mathrm{ReLU}(\hat{A} H^{l-1} W^{l} + b^l)$, the last layer linear.

    $\hat{A} = (D + I)^{-1/2} (A + I) (D + I)^{-1/2}$ is computed once per graph.

    Args:
        n_features: input features.
        n_hidden: width of the hidden layers.
        n_classes: outputs.
        n_layers: graph convolutions, at least 1.
        dropout: probability of dropping an input of a layer.
        has_bias: whether the layers have biases.

    Source: Kipf and Welling, ICLR 2017, equations 2 and 9; the layer is PyG's `GCNConv`.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        n_layers: int = 2,
        dropout: float = 0.5,
        has_bias: bool = True,
    ) -> None:
        data_class()  # first, for its quiet import
        from torch_geometric.nn import GCNConv

        if n_layers < 1:
            raise ValueError(f"n_layers must be at least 1, got {n_layers}")
        super().__init__()
        widths = [n_features, *[n_hidden] * (n_layers - 1), n_classes]
        self.layers = nn.ModuleList(
            GCNConv(a, b, normalize=False, bias=has_bias) for a, b in itertools.pairwise(widths)
        )
        self.dropout = dropout
        self._graph: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"]) -> Float[Tensor, "n k"]:
        """Logits of all nodes."""
        edges, weights = self._normalized(edge_index, len(x), x.dtype)
        for depth, layer in enumerate(self.layers):
            if depth:
                x = x.relu()
            x = layer(F.dropout(x, self.dropout, self.training), edges, weights)
        return x

    def _normalized(self, edge_index: Tensor, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Edges with loops and their weights, kept until another graph comes."""
        from torch_geometric.nn.conv.gcn_conv import gcn_norm

        if self._graph is None or self._graph[0] is not edge_index:
            edges, weights = gcn_norm(edge_index, num_nodes=n, dtype=dtype)
            self._graph = edge_index, edges, weights
        return self._graph[1], self._graph[2]


class MLP(nn.Sequential):
    """Perceptron with ReLU and dropout before every layer; it ignores the graph."""

    def __init__(
        self, n_features: int, n_hidden: int, n_classes: int, *, n_layers: int = 2, dropout: float = 0.5
    ) -> None:
        if n_layers < 1:
            raise ValueError(f"n_layers must be at least 1, got {n_layers}")
        widths = [n_features, *[n_hidden] * (n_layers - 1), n_classes]
        parts: list[nn.Module] = []
        for depth, (a, b) in enumerate(itertools.pairwise(widths)):
            parts += [nn.ReLU()] if depth else []
            parts += [nn.Dropout(dropout), nn.Linear(a, b)]
        super().__init__(*parts)

    def forward(self, x: Float[Tensor, "n f"], edge_index: Int[Tensor, "2 e"] | None = None) -> Float[Tensor, "n k"]:
        """Logits of the rows of `x`."""
        logits: Tensor = super().forward(x)
        return logits
