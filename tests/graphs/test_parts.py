"""The splits of joint trainings: what the fields hold, and that they cannot be exchanged later."""

import dataclasses

import pytest
import torch

from glocal.graphs.parts import Parts


def test_rows_are_the_splits_of_the_networks():
    nodes = torch.arange(12).view(2, 6)
    parts = Parts(torch.arange(12) % 3, nodes[:, :1], nodes[:, 1:3], nodes[:, 3:])
    assert parts.y[parts.train].tolist() == [[0], [0]]
    assert parts.y[parts.val].tolist() == [[1, 2], [1, 2]]
    assert [part.shape[1] for part in (parts.train, parts.val, parts.test)] == [1, 2, 3]
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts.y = parts.y + 1


def test_splits_must_have_equally_many_rows():
    y = torch.zeros(4, dtype=torch.long)
    rows = torch.arange(4)[:, None]
    Parts(y, rows, rows, rows[:, :0])  # no test nodes, as in a choice of hyperparameters
    with pytest.raises(Exception, match="Type-check"):
        Parts(y, rows, rows[:2], rows)
