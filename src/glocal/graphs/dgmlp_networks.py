r"""Networks that separate propagation depth $D_p$ from transformation depth $D_t$; many runs side by side.

Zhang et al., *Evaluating Deep Graph Neural Networks* (arXiv:2108.00955), and its later version on AIR (KDD 2022).
"""

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
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
        self.reach = sum(design.schedule[1:])  # propagations that forward carries out
        keep = 1 - torch.as_tensor(dropout, device=device).expand(len(runs))
        self.dropping = (keep < 1).nonzero().flatten()  # copies with dropout
        self.keep = keep[self.dropping, None, None]

    def forward(self, x: Float[Tensor, "b n f"], operator: SparseOperator | None = None) -> Float[Tensor, "b n k"]:
        """Logits of the rows of `x`.

        Args:
            x: features, propagated as often as the design says for the first transformation.
            operator: $\\hat{A}$; None for a design without further propagation.
        """
        if len(self.weights) == 1:
            return self._convolved(x, 0, None, 0)
        first = outputs = h = self._convolved(x, 0, None, 0).relu_()  # `outputs`: sum of all hidden outputs so far
        for depth in range(1, len(self.weights)):
            if depth > 1 and self.gates:
                own, initial = self.gates[depth - 2].chunk(2, 1)  # u = [own || initial]
                h = torch.lerp(h, first, (h @ own + first @ initial).sigmoid())
            new = self._convolved(h, depth, operator, self.design.schedule[depth])
            if depth == len(self.weights) - 1:
                break
            new = new.relu_()
            if self.design.connection == "residual":
                new = new + h
            elif self.design.connection == "dense":
                new = new + outputs
                outputs = outputs + new
            h = new
        return new

    def _convolved(self, h: Tensor, depth: int, operator: SparseOperator | None, steps: int) -> Tensor:
        weight, bias, h = self.weights[depth], self.biases[depth], self._dropped(h)
        if steps and weight.shape[2] < weight.shape[1]:  # A (h W) = (A h) W, with fewer columns to propagate
            return propagate(torch.bmm(h, weight), operator, steps) + bias
        return torch.baddbmm(bias, propagate(h, operator, steps), weight)

    def _dropped(self, h: Tensor) -> Tensor:
        if not self.training or not len(self.dropping):
            return h
        draws = torch.rand((len(self.keep), *h.shape[1:]), generator=self.generator, device=h.device, dtype=h.dtype)
        return h * torch.ones_like(h).index_copy_(0, self.dropping, draws.lt_(self.keep).div_(self.keep))


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
