"""Bytes that automatic differentiation keeps, on expressions whose saved tensors are known."""

import torch

from glocal.graphs.memory import saved_bytes


def test_every_storage_is_counted_once():
    a, b = torch.ones(100, requires_grad=True), torch.full((100,), 2.0)
    assert saved_bytes(lambda: (a * b).sum()) == 400
    assert saved_bytes(lambda: ((a * b) * b).sum()) == 400
    assert saved_bytes(lambda: (a * b).exp().sum()) == 800
    assert saved_bytes(lambda: (a * a.exp()).sum()) == 800  # the leaf and its exponential


def test_excluded_tensors_and_sparse_operators_are_not_counted():
    a, b = torch.ones(100, requires_grad=True), torch.full((100,), 2.0)
    assert saved_bytes(lambda: (a * b).exp().sum(), [b]) == 400
    operator = torch.eye(100).to_sparse_coo()
    assert saved_bytes(lambda: torch.sparse.mm(operator, a[:, None]).exp().sum()) == 400
