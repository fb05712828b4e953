r"""GRAND with local augmentation: whole nodes are dropped, features propagated over mixed orders, an MLP classifies.

Feng et al., *Graph Random Neural Networks for Semi-Supervised Learning on Graphs* (NeurIPS 2020, arXiv:2005.11079);
Liu et al., *Local Augmentation for Graph Neural Networks* (ICML 2022, arXiv:2109.03856).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from glocal.graphs.lagnn_networks import AugmentedGCN
from glocal.graphs.lagnn_products import by_run, classes_first, dropped
from glocal.graphs.sparse import SparseOperator

COLUMNS = 128  # of the features propagated at a time, so that they stay in the processor's cache


def drop_nodes(x: Float[Tensor, "n f"], p: float, is_training: bool = True) -> Float[Tensor, "n f"]:
    r"""DropNode: each row is zero with probability `p`, else divided by $1 - p$, so that the mean is $X$.

    Args:
        x: features of all nodes; left unchanged.
        p: probability of dropping a node, in [0, 1).
        is_training: False returns `x` itself.

    Raises:
        ValueError: for a probability outside [0, 1).

    Source: Section 3.1 of GRAND. Masks come from torch's global random numbers: call inside `seeded`.
    """
    if not 0 <= p < 1:
        raise ValueError(f"p must be in [0, 1), got {p}")
    if not is_training or p == 0:
        return x
    is_kept = torch.rand(len(x), 1, device=x.device) >= p
    return x * (is_kept / (1 - p))


@torch.no_grad()
def mixed_order(operator: SparseOperator, x: Float[Tensor, "n f"], order: int) -> Float[Tensor, "n f"]:
    r"""Mean of the propagated features of all orders, $\frac{1}{K+1}\sum_{k=0}^{K} \hat A^k X$, without gradient.

    By Horner's rule, $Y \leftarrow X + \hat A Y$ for $K$ times from $Y = X$.

    Args:
        operator: $\hat A$.
        x: features; left unchanged.
        order: $K$; 0 gives `x` itself.

    Raises:
        ValueError: for a negative order.

    Source: Section 3.1 of GRAND, mixed-order propagation.
    """
    if order < 0:
        raise ValueError(f"order must be at least 0, got {order}")
    if order == 0:
        return x
    blocks = []
    for block in x.split(COLUMNS, dim=1):
        block = total = block.contiguous()
        for _ in range(order):
            total = torch.addmm(block, operator.matrix, total)
        blocks.append(total)
    return torch.cat(blocks, dim=1).div_(order + 1)


class KnownInput:
    """Features that stay the same through a training, with their propagation, which evaluation needs again and again.

    Args:
        x: features of all nodes.
        mixed: `mixed_order` of them.
    """

    def __init__(self, x: Float[Tensor, "n f"], mixed: Float[Tensor, "n f"]) -> None:
        self.x, self.mixed = x, mixed


class AugmentedGRAND(AugmentedGCN):
    r"""LA-GRAND: an MLP on $\bar A\,\mathrm{DropNode}(X_m)$ of all inputs, $\bar A = \frac{1}{K+1}\sum_k \hat A^k$.

    The first layer has a block per input, $H = \mathrm{ReLU}([\bar A \tilde X_m W_m]_m + b)$, or, if shared, one for
    all: then every generated input is one more pass in training, and evaluation reads the real input only. Each input
    has its own node mask and its own dropout, which the runs share; hidden dropout is their own. In evaluation nothing
    is dropped. Arguments as in `AugmentedGCN`, and

    Args:
        order: $K$.
        drop_node: probability of dropping a node.
        is_shared: whether all inputs pass through the same first layer.

    Raises:
        ValueError: for a negative order or a probability outside [0, 1), at the first forward pass.

    Source: Section 3 of GRAND; blocks per input as in LA-GCN; the shared layer as in the official LA-GRAND.
    """

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_classes: int,
        *,
        concat: int = 1,
        order: int = 8,
        drop_node: float = 0.5,
        is_shared: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(n_features, n_hidden, n_classes, concat=0 if is_shared else concat, **options)
        runs, width, _ = self.second.shape
        self.first_bias = nn.Parameter(self.second.new_zeros(runs, width))
        self.second_bias = nn.Parameter(self.second.new_zeros(runs, n_classes))
        self.n_inputs, self.order, self.drop_node, self.is_shared = concat + 1, order, drop_node, is_shared

    def prepared(self, x: Float[Tensor, "n f"]) -> KnownInput:  # type: ignore[override]
        """The real features and their propagation."""
        return KnownInput(x, mixed_order(self.operator, x, self.order))

    def propagated(self, x: Float[Tensor, "n f"] | KnownInput) -> Float[Tensor, "n f"]:
        r"""$\bar A\,\mathrm{DropNode}(X)$ in training, with new masks, and $\bar A X$ in evaluation."""
        if isinstance(x, KnownInput):
            if not self.training:
                return x.mixed
            x = x.x
        return mixed_order(self.operator, drop_nodes(x, self.drop_node, self.training), self.order)

    def classified(self, inputs: list[Float[Tensor, "n f"]]) -> Float[Tensor, "n k r"]:
        """The MLP: logits from propagated inputs, one per block of the first layer."""
        h = (self.per_input(list(inputs)) + self.first_bias).relu()
        return classes_first(by_run(dropped(h, self.dropout, self.training), self.second) + self.second_bias)

    def forward(self, inputs: list[Float[Tensor, "n f"] | KnownInput]) -> Float[Tensor, "n k r"]:  # type: ignore[override]
        """Logits from the real features and the generated ones, in this order; if shared, from the real ones."""
        return self.classified([self.propagated(x) for x in (inputs[:1] if self.is_shared else inputs)])

    def passes(self, inputs: list[Float[Tensor, "n f"] | KnownInput]) -> list[Float[Tensor, "n k r"]]:
        """The logits that enter the losses: one of each input if the first layer is shared, else of all together."""
        return [self([x]) for x in inputs] if self.is_shared else [self(inputs)]
