r"""Networks that DGMLP is compared with: learned weights of the propagation steps, and propagation of predictions."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.graphs.dgmlp_networks import StackedNetwork, perceptron, propagate
from glocal.graphs.sparse import SparseOperator


class HopAttention(StackedNetwork):
    r"""SGC with learned weights per node (SGC+AIR): $\sum_k a_v(k) \, x_v^{(k)}$, then one linear layer.

    $a_v(k) = \mathrm{softmax}_k \, \sigma(u^\top [x_v^{(0)} \Vert x_v^{(k)}])$, all steps $k = 0, \dots, K$ included.

    Args:
        n_features: width of one step.
        n_steps: $K$.
        n_classes: output width.
        runs: see `StackedNetwork`.
        dropout: of the combined features.
        generator: source of initial weights and dropout.

    Source: Zhang et al., KDD 2022 (AIR); the released loop leaves out the last step, which we add.
    """

    def __init__(
        self,
        n_features: int,
        n_steps: int,
        n_classes: int,
        *,
        runs: Int[Tensor, " b"],
        dropout: Float[Tensor, " b"] | float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(perceptron(1), n_features, 1, n_classes, runs=runs, dropout=dropout, generator=generator)
        self.n_steps = n_steps
        draws = 2 * torch.rand(int(runs.max()) + 1, 2 * n_features, 1, generator=generator, device=generator.device) - 1
        self.attention = nn.Parameter((draws * math.sqrt(6 / (2 * n_features + 1)))[runs])

    def forward(self, x: Float[Tensor, "b n g"], operator: SparseOperator | None = None) -> Float[Tensor, "b n k"]:
        """Logits from all steps side by side, `g = (K + 1) f`, the features themselves first."""
        hops = x.unflatten(2, (self.n_steps + 1, -1))
        f = hops.shape[-1]
        scores = (x[..., :f] @ self.attention[:, :f]) + torch.einsum("bnkf,bf->bnk", hops, self.attention[:, f:, 0])
        combined = torch.einsum("bnk,bnkf->bnf", scores.sigmoid().softmax(-1), hops)
        return super().forward(combined)


class PropagatedPredictions(StackedNetwork):
    r"""APPNP: $Z = H$, the outputs of a perceptron, then $Z \leftarrow (1 - \alpha) \hat{A} Z + \alpha H$, $K$ times.

    Args:
        depth: transformations.
        n_steps: $K$.
        n_features: input width.
        n_hidden: hidden width.
        n_classes: output width.
        alpha: share that returns to the node's own prediction.
        runs: see `StackedNetwork`.
        dropout: of the inputs of the layers.
        generator: source of initial weights and dropout.

    Source: Gasteiger et al., ICLR 2019, equation 4.
    """

    def __init__(
        self,
        depth: int,
        n_steps: int,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        alpha: float = 0.1,
        runs: Int[Tensor, " b"],
        dropout: Float[Tensor, " b"] | float = 0.0,
        generator: torch.Generator,
    ) -> None:
        super().__init__(
            perceptron(depth), n_features, n_hidden, n_classes, runs=runs, dropout=dropout, generator=generator
        )
        self.n_steps, self.alpha, self.is_decoupled, self.reach = n_steps, alpha, False, n_steps

    def forward(self, x: Float[Tensor, "b n f"], operator: SparseOperator | None = None) -> Float[Tensor, "b n k"]:
        """Logits of all nodes; the operator must be given."""
        if operator is None:
            raise ValueError("operator must be given: predictions are propagated")
        z = own = super().forward(x)
        for _ in range(self.n_steps):
            z = torch.lerp(propagate(z, operator, 1), own, self.alpha)
        return z
