r"""Networks that separate propagation depth $D_p$ from transformation depth $D_t$; many runs train side by side.

Zhang et al., *Evaluating Deep Graph Neural Networks* (arXiv:2108.00955), and its later version on AIR (KDD 2022).
"""

import itertools
import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal.graphs.sparse import SparseOperator

CONNECTIONS = ("none", "residual", "dense", "initial")


@dataclass(frozen=True)
class Design:
    r"""How a network alternates propagation and transformation.

    Args:
        schedule: for each of the $D_t$ transformations the number of propagations before it; their sum is $D_p$.
            A GCN with $L$ layers is `(1,) * L`, a perceptron `(0,) * L`, SGC with $K$ steps `(K,)`.
        connection: what a hidden layer adds to its output: `"none"`, its input (`"residual"`), the sum of all
            earlier outputs (`"dense"`); `"initial"` instead mixes its input with the first output by a learned
            gate per node (AIR).
    """

    schedule: tuple[int, ...]
    connection: str = "none"

    def __post_init__(self) -> None:
        if not self.schedule or min(self.schedule) < 0:
            raise ValueError(f"schedule must hold counts of propagations, at least one, got {self.schedule}")
        if self.connection not in CONNECTIONS:
            raise ValueError(f"connection must be one of {', '.join(CONNECTIONS)}, got {self.connection!r}")

    @property
    def is_decoupled(self) -> bool:
        """Whether all propagation precedes the first transformation, so that it can be computed once."""
        return not any(self.schedule[1:])


def gcn(depth: int, connection: str = "none") -> Design:
    r"""Graph convolutional network: $D_p = D_t =$ `depth`."""
    return Design((1,) * depth, connection)


def gcn_few_transformations(depth: int, connection: str = "none") -> Design:
    r"""$D_t = 2$ and $D_p =$ `depth`, half of the propagations before each transformation; `depth` is even."""
    if depth < 2 or depth % 2:
        raise ValueError(f"depth must be even and at least 2, got {depth}")
    return Design((depth // 2, depth // 2), connection)


def gcn_few_propagations(depth: int, connection: str = "none") -> Design:
    r"""$D_p = 2$ at the input and $D_t =$ `depth` transformations."""
    return Design((2,) + (0,) * (depth - 1), connection)


def perceptron(depth: int, connection: str = "none") -> Design:
    r"""No propagation, $D_t =$ `depth`."""
    return Design((0,) * depth, connection)


class StackedNetwork(nn.Module):
    r"""Independent copies of one design side by side: $h^l = \mathrm{ReLU}(\hat{A}^{s_l} h^{l-1} W^l + b^l)$.

    The last layer is linear. Propagation before the FIRST transformation is not done here: pass propagated
    features. Copies of one run start from equal weights, whatever else distinguishes them.

    Args:
        design: the alternation of propagation and transformation.
        n_features: input width.
        n_hidden: width of hidden layers.
        n_classes: output width.
        runs: for each copy the index of its run; equal indices start equal.
        dropout: probability of dropping an input of a layer, one for all copies or one per copy.
        generator: source of the initial weights (uniform as Glorot and Bengio 2010, zero biases) and of dropout.
    """

    def __init__(
        self,
        design: Design,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        runs: Int[Tensor, " b"],
        dropout: Float[Tensor, " b"] | float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        depth, n_runs, device = len(design.schedule), int(runs.max()) + 1, generator.device
        widths = [n_features, *[n_hidden] * (depth - 1), n_classes]

        def uniform(a: int, b: int) -> nn.Parameter:
            draws = 2 * torch.rand(n_runs, a, b, generator=generator, device=device) - 1
            return nn.Parameter((draws * math.sqrt(6 / (a + b)))[runs])

        self.weights = nn.ParameterList(uniform(a, b) for a, b in itertools.pairwise(widths))
        self.biases = nn.ParameterList(torch.zeros(len(runs), 1, b, device=device) for b in widths[1:])
        n_gates = max(depth - 2, 0) if design.connection == "initial" else 0
        self.gates = nn.ParameterList(uniform(2 * n_hidden, 1) for _ in range(n_gates))
        self.design, self.generator, self.is_decoupled = design, generator, design.is_decoupled
        self.keep = 1 - torch.as_tensor(dropout, device=device).expand(len(runs))[:, None, None]

    def forward(self, x: Float[Tensor, "b n f"], operator: SparseOperator | None = None) -> Float[Tensor, "b n k"]:
        """Logits of the rows of `x`.

        Args:
            x: features, propagated as often as the design says for the first transformation.
            operator: $\\hat{A}$; None for a design without further propagation.
        """
        if len(self.weights) == 1:
            return self._transformed(x, 0)
        first = outputs = h = self._transformed(x, 0).relu()  # `outputs`: sum of all hidden outputs so far
        for depth in range(1, len(self.weights)):
            if depth > 1 and self.gates:
                gate = (torch.cat([h, first], dim=-1) @ self.gates[depth - 2]).sigmoid()
                h = (1 - gate) * h + gate * first
            new = self._transformed(propagate(h, operator, self.design.schedule[depth]), depth)
            if depth == len(self.weights) - 1:
                break
            new = new.relu()
            if self.design.connection == "residual":
                new = new + h
            elif self.design.connection == "dense":
                new = new + outputs
                outputs = outputs + new
            h = new
        return new

    def _transformed(self, h: Tensor, depth: int) -> Tensor:
        return torch.baddbmm(self.biases[depth], self._dropped(h), self.weights[depth])

    def _dropped(self, h: Tensor) -> Tensor:
        if not self.training or bool((self.keep == 1).all()):
            return h
        mask = torch.rand(h.shape, generator=self.generator, device=h.device, dtype=h.dtype)
        return h * mask.lt_(self.keep).div_(self.keep)


def propagate(h: Float[Tensor, "b n f"], operator: SparseOperator | None, steps: int) -> Float[Tensor, "b n f"]:
    r"""$\hat{A}^s h$ for every copy.

    Raises:
        ValueError: if there are steps but no operator.
    """
    if not steps:
        return h
    if operator is None:
        raise ValueError("operator must be given for a design that propagates after the first transformation")
    blocks = operator.repeated(len(h))
    stacked = h.reshape(-1, h.shape[2])
    for _ in range(steps):
        stacked = blocks @ stacked
    return stacked.view(h.shape)


@dataclass(frozen=True)
class Parts:
    """Labels and node indices of the copies: one row per copy."""

    y: Int[Tensor, " n"]
    train: Int[Tensor, "b m"]
    val: Int[Tensor, "b v"]
    test: Int[Tensor, "b t"]


@dataclass(frozen=True)
class StackFit:
    """What a joint training gave, one entry per copy; accuracies in [0, 1].

    Args:
        val: best validation accuracy over the epochs.
        test: test accuracy at that epoch.
        train: training accuracy after the last epoch.
        seconds: CPU seconds for all copies together.
    """

    val: Float[Tensor, " b"]
    test: Float[Tensor, " b"]
    train: Float[Tensor, " b"]
    seconds: float


def fit_stack(
    network: StackedNetwork,
    x: Float[Tensor, "c n f"],
    parts: Parts,
    *,
    operator: SparseOperator | None = None,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    epochs: int = 100,
    eval_every: int = 10,
) -> StackFit:
    r"""Train all copies with Adam; each keeps its own epoch of best validation accuracy, then the test is read once.

    The sum of the copies' losses has separate gradients, and Adam works entry by entry, so this equals separate
    trainings.

    Args:
        network: the copies.
        x: features for each copy, or one set for all (`c = 1`), propagated for the first transformation. Only the
            labelled rows enter the training of a decoupled design.
        parts: labels and splits.
        operator: see `StackedNetwork.forward`.
        lr: learning rate.
        weight_decay: Adam's $L_2$ penalty on all parameters.
        epochs: training steps.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
    """
    start = time.process_time()
    b = len(parts.train)
    x = x.expand(b, -1, -1)
    copies = torch.arange(b, device=x.device)[:, None]
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, weight_decay=weight_decay, fused=True)

    def rows_of(nodes: Tensor) -> Tensor:
        return x[copies, nodes] if network.is_decoupled else nodes

    def logits_of(rows: Tensor) -> Tensor:
        if network.is_decoupled:
            return network(rows)
        everything: Tensor = network(x, operator)[copies, rows]
        return everything

    @torch.no_grad()
    def accuracy(rows: Tensor, nodes: Tensor) -> Tensor:
        network.eval()
        return (logits_of(rows).argmax(-1) == parts.y[nodes]).double().mean(1)

    train_rows, val_rows = rows_of(parts.train), rows_of(parts.val)
    targets = parts.y[parts.train]
    best_val = torch.full((b,), -1.0, dtype=torch.float64, device=x.device)
    best = [parameter.detach().clone() for parameter in network.parameters()]
    for epoch in range(1, epochs + 1):
        network.train()
        optimizer.zero_grad()
        losses = F.cross_entropy(logits_of(train_rows).transpose(1, 2), targets, reduction="none").mean(1)
        losses.sum().backward()
        optimizer.step()
        if epoch % eval_every and epoch < epochs:
            continue
        val = accuracy(val_rows, parts.val)
        _keep_better(val > best_val, network, best)
        best_val = torch.maximum(best_val, val)
    train = accuracy(train_rows, parts.train)
    with torch.no_grad():
        for parameter, kept in zip(network.parameters(), best, strict=True):
            parameter.copy_(kept)
    test = accuracy(rows_of(parts.test), parts.test)
    return StackFit(best_val, test, train, time.process_time() - start)


def tune(fits: list[StackFit]) -> StackFit:
    """For every copy the fit with the best validation accuracy; of equally good ones the first.

    Args:
        fits: the same copies under different settings.
    """
    val = torch.stack([fit.val for fit in fits])
    index, copies = val.argmax(0), torch.arange(val.shape[1], device=val.device)
    test, train = (torch.stack([getattr(fit, name) for fit in fits])[index, copies] for name in ("test", "train"))
    return StackFit(val.amax(0), test, train, sum(fit.seconds for fit in fits))


@torch.no_grad()
def _keep_better(is_better: Bool[Tensor, " b"], network: nn.Module, best: list[Tensor]) -> None:
    for parameter, kept in zip(network.parameters(), best, strict=True):
        kept.copy_(torch.where(is_better[:, None, None], parameter, kept))
