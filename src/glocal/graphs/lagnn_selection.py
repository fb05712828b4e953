"""Which training step of the generator to keep: the one about whose draws a GCN with dropout disagrees least."""

import copy

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.lagnn import NeighborSampler, NeighborVAE
from glocal.graphs.lagnn_products import dropped
from glocal.graphs.node_classification import seeded
from glocal.graphs.node_tasks import row_normalized
from glocal.graphs.sparse import SparseOperator, compressed_rows


def dropout_score(log_probs: Float[Tensor, "t n k"], labels: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    r"""$U = \mathrm{NLL}(\tfrac1T\sum_t p_t) - \tfrac1T\sum_t \mathrm{NLL}(p_t) \le 0$ by Jensen; 0 if all $p_t$ agree.

    Args:
        log_probs: $\log p_t$ of $T$ passes with dropout.
        labels: classes of the same nodes.

    Source: as in the official pre-training code. The paper words the choice as one by uncertainty; the code keeps the
        step with the LARGEST score, which is the one with the least disagreement.
    """
    passes = torch.stack([F.nll_loss(p, labels) for p in log_probs])
    return F.nll_loss(log_probs.exp().mean(0).log(), labels) - passes.mean()


def rows_in_reach(operator: SparseOperator, nodes: Int[Tensor, " m"]) -> tuple[SparseOperator, Int[Tensor, " s"]]:
    """The operator's rows of some nodes, restricted to the columns with entries there, and the nodes of these columns.

    Args:
        operator: the full matrix.
        nodes: rows wanted, each once; the result has them in this order.
    """
    starts, columns = operator.matrix.crow_indices(), operator.matrix.col_indices()
    counts = starts.diff()[nodes]
    rows = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
    entries = torch.arange(len(rows), device=nodes.device) + (starts[nodes] - counts.cumsum(0) + counts)[rows]
    reached, position = columns[entries].unique(return_inverse=True)
    values, shape = operator.matrix.values()[entries], (len(nodes), len(reached))
    return SparseOperator(
        compressed_rows(rows, position, values, shape), compressed_rows(position, rows, values, shape[::-1])
    ), reached


class DropoutScorer:
    """Choice of the generator's step by the `dropout_score` of a GCN: pass `consider` as `on_step`.

    A GCN is trained on real features. At every considered step it classifies one draw $T$ times with dropout active.
    Whenever the score exceeds all earlier ones and the warm-up is over, the generator is copied and the GCN trained
    on with that draw. Only training labels are read, and only nodes within two steps of them are computed. `chosen`
    is None as long as no step qualifies.

    Args:
        x: raw features.
        operator: normalised adjacency of the graph.
        train: labelled nodes.
        y: classes of all nodes.
        n_classes: number of classes.
        n_hidden: width of the GCN.
        dropout: of the GCN.
        passes: $T$.
        warmup: no step up to this one is chosen, though its score counts for the maximum.
        every: consider every so many steps (the official code: every step).
        pretrain_epochs: GCN epochs on real features.
        update_epochs: GCN epochs on the draw of a chosen step.
        lr: learning rate of the GCN.
        generator: source of weights, dropout and draws.
    """

    def __init__(
        self,
        x: Float[Tensor, "n f"],
        operator: SparseOperator,
        train: Int[Tensor, " m"],
        y: Int[Tensor, " n"],
        n_classes: int,
        *,
        n_hidden: int = 32,
        dropout: float = 0.5,
        passes: int = 100,
        warmup: int = 200,
        every: int = 1,
        pretrain_epochs: int = 100,
        update_epochs: int = 20,
        lr: float = 0.01,
        generator: torch.Generator,
    ) -> None:
        self.x, self.labels = x, y[train]
        self.last, middle = rows_in_reach(operator, train)  # two layers, so two steps from the labelled nodes
        self.first, self.nodes = rows_in_reach(operator, middle)
        self.dropout, self.passes, self.warmup, self.every = dropout, passes, warmup, every
        self.update_epochs, self.generator = update_epochs, generator
        with seeded(generator):
            layers = [nn.Linear(a, b, bias=False) for a, b in ((x.shape[1], n_hidden), (n_hidden, n_classes))]
        self.layers = nn.ModuleList(layers).to(x.device)
        self.optimizer = torch.optim.Adam(self.layers.parameters(), lr=lr, weight_decay=5e-4, fused=True)
        self.scores: list[float] = []
        self.chosen_step, self.best = 0, -float("inf")
        self.chosen: NeighborVAE | None = None
        self._train(row_normalized(x)[self.nodes], pretrain_epochs)

    def consider(self, step: int, model: NeighborVAE) -> None:
        """Score the generator after `step`, and keep a copy if it is the best so far."""
        if step % self.every:
            return
        features = NeighborSampler(model, self.x[self.nodes])(self.generator)
        with torch.no_grad(), seeded(self.generator):
            score = float(
                dropout_score(torch.stack([self._log_probs(features) for _ in range(self.passes)]), self.labels)
            )
        self.scores.append(score)
        if score > self.best:
            self.best = score
            if step > self.warmup:
                self.chosen_step, self.chosen = step, copy.deepcopy(model)
                self._train(features, self.update_epochs)

    def _log_probs(self, features: Tensor) -> Tensor:
        h = (self.first @ self.layers[0](dropped(features, self.dropout))).relu()
        logits: Tensor = self.last @ self.layers[1](dropped(h, self.dropout))
        return logits.log_softmax(1)

    def _train(self, features: Tensor, epochs: int) -> None:
        with seeded(self.generator):
            for _ in range(epochs):
                self.optimizer.zero_grad()
                F.nll_loss(self._log_probs(features), self.labels).backward()
                self.optimizer.step()
