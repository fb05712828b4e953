r"""Sparse products that GAT and WD-GLT need in every step: $M(v) X$ for any entries $v$, and $X W$ for sparse $X$."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from glocal.graphs.sparse import SparseOperator, compressed_rows

SPARSE_BELOW = 0.1  # share of non-zero entries under which a sparse product is faster than a dense one


class WeightedSum(torch.autograd.Function):
    r"""$(v, X) \mapsto M(v) X$, where $M$ has the places of a symmetric pattern; differentiable in both arguments."""

    @staticmethod
    def forward(ctx: Any, pattern: "Pattern", values: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(values, x)
        ctx.pattern = pattern
        return pattern.matrix(values) @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        values, x = ctx.saved_tensors
        pattern = ctx.pattern
        places = pattern.matrix(torch.zeros_like(values))
        along_edges = torch.sparse.sampled_addmm(places, gradient, x.T, beta=0.0).values()
        return None, along_edges, pattern.matrix(values[pattern.reverse]) @ gradient


@dataclass(frozen=True)
class Pattern:
    """Places of the entries of a square sparse matrix, row after row; with (i, j) it holds (j, i).

    Args:
        starts: first entry of each row, and the number of entries.
        rows: row of each entry, increasing.
        columns: column of each entry, increasing within a row.
        reverse: where the entry (j, i) stands for the entry (i, j).
    """

    starts: Int[Tensor, " n_plus_1"]
    rows: Int[Tensor, " e"]
    columns: Int[Tensor, " e"]
    reverse: Int[Tensor, " e"]

    @classmethod
    def of(cls, rows: Int[Tensor, " e"], columns: Int[Tensor, " e"], size: int) -> "Pattern":
        """The pattern of the given places, in any order; none may occur twice.

        Raises:
            ValueError: if a place (i, j) is there and (j, i) is not.
        """
        matrix = compressed_rows(rows, columns, torch.ones(len(rows), device=rows.device), (size, size))
        starts, columns = matrix.crow_indices(), matrix.col_indices()
        rows = torch.arange(size, device=rows.device).repeat_interleave(starts.diff())
        turned, reverse = (columns * size + rows).sort()
        if not turned.equal(rows * size + columns):
            raise ValueError("a pattern needs both directions of every edge: pass both_directions(pairs)")
        # the k-th place in turned order is the reverse of the k-th place
        return cls(starts, rows, columns, reverse)

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    def repeated(self, times: int) -> "Pattern":
        """The pattern `times` times on the diagonal."""
        steps = torch.arange(times, device=self.rows.device)[:, None]
        e = len(self.rows)
        rows, columns = ((end + steps * self.size).flatten() for end in (self.rows, self.columns))
        starts = torch.cat([(self.starts[:-1] + steps * e).flatten(), self.starts.new_tensor([times * e])])
        return Pattern(starts, rows, columns, (self.reverse + steps * e).flatten())

    def matrix(self, values: Float[Tensor, " e"]) -> Float[Tensor, "n n"]:
        """The sparse matrix with the given entries."""
        shape = (self.size, self.size)
        return torch.sparse_csr_tensor(self.starts, self.columns, values, shape, check_invariants=False)

    def multiply(self, values: Float[Tensor, " e"], x: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The matrix with the given entries times `x`."""
        product: Tensor = WeightedSum.apply(self, values, x)
        return product


class Features:
    r"""Node features $X$ that multiply weights, on a CPU as a sparse matrix where few entries are not zero.

    Bags of words have a percent of non-zero entries, and a dense product would spend its time on zeros. A GPU is fast
    enough with those.

    Args:
        x: features, one row per node.
    """

    def __init__(self, x: Float[Tensor, "n f"]) -> None:
        self.x = x
        self.is_sparse = x.device.type == "cpu" and bool((x != 0).double().mean() < SPARSE_BELOW)
        if self.is_sparse:
            rows, columns = x.nonzero().T
            self.n_values = len(rows)
            self._operator = _with_transpose(rows, columns, x[rows, columns], tuple(x.shape))
            order = _with_transpose(rows, columns, torch.arange(len(rows), device=x.device).double(), tuple(x.shape))
            self._order = order.transposed.values().long()  # which entry of the rows each entry of the columns is

    def __len__(self) -> int:
        return len(self.x)

    def __matmul__(self, weights: Float[Tensor, "f k"]) -> Float[Tensor, "n k"]:
        product: Tensor = self._operator @ weights if self.is_sparse else self.x @ weights
        return product

    @property
    def shape_of_factors(self) -> tuple[int, ...]:
        """Shape of the factors that `times` takes: one for every entry that may differ from zero."""
        return (self.n_values,) if self.is_sparse else tuple(self.x.shape)

    def times(self, factors: Float[Tensor, "..."]) -> "SparseOperator | Float[Tensor, 'n f']":
        """Features whose entries are multiplied by `factors` (dropout), ready to multiply weights."""
        if not self.is_sparse:
            return self.x * factors
        values = self._operator.matrix.values() * factors
        return SparseOperator(
            _same_places(self._operator.matrix, values), _same_places(self._operator.transposed, values[self._order])
        )


def _with_transpose(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> SparseOperator:
    n, f = shape
    return SparseOperator(
        compressed_rows(rows, columns, values, (n, f)), compressed_rows(columns, rows, values, (f, n))
    )


def _same_places(matrix: Tensor, values: Tensor) -> Tensor:
    starts, columns = matrix.crow_indices(), matrix.col_indices()
    return torch.sparse_csr_tensor(starts, columns, values, matrix.shape, check_invariants=False)
