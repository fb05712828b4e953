"""Sparse products with a constant matrix."""

import pytest
import torch

from glocal.graphs.sparse import SparseOperator, compressed_rows, propagation_operator

PATH = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])


def test_entries_may_come_in_any_order():
    rows, columns = torch.tensor([1, 0, 1]), torch.tensor([2, 1, 0])
    dense = compressed_rows(rows, columns, torch.tensor([5.0, 3.0, 4.0]), (2, 3)).to_dense()
    assert dense.tolist() == [[0, 3, 0], [4, 0, 5]]


def test_gradient_is_that_of_the_dense_product():
    rows, columns, values = torch.tensor([0, 1, 1]), torch.tensor([1, 2, 0]), torch.tensor([3.0, 4.0, 5.0])
    operator = SparseOperator(
        compressed_rows(rows, columns, values, (2, 3)), compressed_rows(columns, rows, values, (3, 2))
    )
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weights = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1))
    (operator @ x).mul(weights).sum().backward()
    dense = operator.matrix.to_dense()
    assert torch.allclose(operator @ x, torch.einsum("nm,mbf->nbf", dense, x))
    assert torch.allclose(x.grad, torch.einsum("nm,nbf->mbf", dense, weights))
    assert (operator.to("cpu") @ x).equal(operator @ x)


@pytest.mark.parametrize("r", [0.0, 0.5, 1.0])
def test_propagation_by_hand(r):
    operator = propagation_operator(PATH, 4, r=r)
    with_loops = torch.eye(4)
    with_loops[PATH[0], PATH[1]] = 1
    degrees = torch.tensor([2.0, 3.0, 2.0, 1.0])
    expected = degrees[:, None] ** (r - 1) * with_loops * degrees[None, :] ** (-r)
    assert torch.allclose(operator.matrix.to_dense(), expected)
    assert torch.allclose(operator.transposed.to_dense(), expected.T)
    assert (operator.transposed is operator.matrix) == (r == 0.5)
    assert (operator.to("cpu").transposed is operator.matrix) == (r == 0.5)


def test_symmetric_propagation_is_that_of_pyg():
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.utils import to_dense_adj

    edges, weights = gcn_norm(PATH, num_nodes=4)
    expected = to_dense_adj(edges, edge_attr=weights, max_num_nodes=4)[0]
    assert torch.allclose(propagation_operator(PATH, 4).matrix.to_dense(), expected)


@pytest.mark.parametrize("r", [0.0, 0.5])
def test_copies_side_by_side(r):
    operator = propagation_operator(PATH, 4, r=r)
    three = operator.repeated(3)
    dense = operator.matrix.to_dense()
    assert torch.equal(three.matrix.to_dense(), torch.block_diag(dense, dense, dense))
    assert torch.equal(three.transposed.to_dense(), torch.block_diag(dense, dense, dense).T)
    assert operator.repeated(3) is three


def test_r_must_be_a_share():
    with pytest.raises(ValueError, match=r"r must be in \[0, 1\], got 2"):
        propagation_operator(PATH, 4, r=2.0)
