r"""The part of a graph that a network's outputs depend on, so that training need not compute the rest.

Not from the paper: an exact shortcut for networks whose propagation cannot be computed in advance.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from glocal.graphs.sparse import SparseOperator, compressed_rows


@dataclass(frozen=True)
class Reach:
    """Receptive fields of several copies, padded to equal size with unconnected nodes.

    Args:
        nodes: for each copy the nodes of its field.
        targets: positions of the wanted nodes within the field.
        operator: the block-diagonal operator of all fields.
    """

    nodes: Int[Tensor, "b s"]
    targets: Int[Tensor, "b m"]
    operator: SparseOperator


def receptive_fields(operator: SparseOperator, targets: Int[Tensor, "b m"], hops: int) -> Reach:
    r"""All nodes within `hops` steps of each copy's targets, and $\hat{A}$ restricted to them.

    After $t$ propagations inside the field, the values at distance $d$ from the targets are those of the whole graph if
    $d + t \le$ `hops`; at the targets, $d = 0$, they stay exact for all `hops` propagations.

    Args:
        operator: $\hat{A}$ of the whole graph, with loops.
        targets: for each copy the nodes whose outputs are wanted.
        hops: number of propagations.
    """
    matrix, b = operator.matrix, len(targets)
    n, device = matrix.shape[0], targets.device
    inside = torch.zeros(n, b, dtype=matrix.dtype, device=device).scatter_(0, targets.T, 1.0)
    for _ in range(hops):
        inside = (matrix @ inside > 0).to(matrix.dtype)
    is_inside = inside.T > 0
    number, size = is_inside.long().cumsum(1) - 1, int(is_inside.sum(1).max())
    copy, node = is_inside.nonzero(as_tuple=True)
    nodes = torch.zeros(b, size, dtype=torch.long, device=device)
    nodes[copy, number[copy, node]] = node

    rows = torch.arange(n, device=device).repeat_interleave(matrix.crow_indices().diff())
    columns = matrix.col_indices()
    copy, entry = (is_inside[:, rows] & is_inside[:, columns]).nonzero(as_tuple=True)
    new_rows, new_columns = (copy * size + number[copy, ends[entry]] for ends in (rows, columns))
    values, shape = matrix.values()[entry], (b * size, b * size)
    restricted = compressed_rows(new_rows, new_columns, values, shape)
    is_symmetric = operator.transposed is matrix
    transposed = restricted if is_symmetric else compressed_rows(new_columns, new_rows, values, shape)
    block = SparseOperator(restricted, transposed)
    block._repeated[b] = block  # it holds all copies already
    return Reach(nodes, number.gather(1, targets), block)
