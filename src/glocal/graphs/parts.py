"""The splits of several trainings that run side by side on one graph."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """Labels and node indices of networks that train jointly, each with a split of its own: one row per network.

    Args:
        y: classes of all nodes, the same for every network.
        train: nodes whose labels a network learns from.
        val: nodes on which its epoch is chosen.
        test: nodes on which it is tested; may have no columns.
    """

    y: Int[Tensor, " n"]
    train: Int[Tensor, "r m"]
    val: Int[Tensor, "r v"]
    test: Int[Tensor, "r t"]
