"""Products of a constant sparse matrix with a dense one, with a backward pass that costs as much as the forward one."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


def compressed_rows(
    rows: Int[Tensor, " e"], columns: Int[Tensor, " e"], values: Float[Tensor, " e"], shape: tuple[int, int]
) -> Float[Tensor, "n m"]:
    """A sparse matrix in compressed-row format from entries in any order; no entry may occur twice."""
    order = torch.argsort(rows * shape[1] + columns)
    counts = torch.bincount(rows, minlength=shape[0])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():  # the format is stable for what we need: its product with a dense matrix
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns[order], values[order], shape, check_invariants=True)


class SparseProduct(torch.autograd.Function):
    r"""$X \mapsto M X$ for a constant sparse $M$, whose gradient is $M^\top G$ with a stored $M^\top$.

    Autograd would transpose and re-sort the sparse matrix in every backward pass.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ gradient


@dataclass(frozen=True)
class SparseOperator:
    r"""A constant sparse matrix $M$ with its transpose; `operator @ x` is $M X$ and can be differentiated.

    Args:
        matrix: in compressed-row format.
        transposed: likewise; the same tensor if the matrix is symmetric.
    """

    matrix: Float[Tensor, "n m"]
    transposed: Float[Tensor, "m n"]
    _repeated: dict[int, "SparseOperator"] = field(default_factory=dict, repr=False, compare=False)

    def __matmul__(self, x: Float[Tensor, "m ..."]) -> Float[Tensor, "n ..."]:
        flat = x.reshape(len(x), -1)
        product: Tensor = SparseProduct.apply(self.matrix, self.transposed, flat)
        return product.view(len(product), *x.shape[1:])

    def repeated(self, copies: int) -> "SparseOperator":
        """The operator with `copies` times $M$ on its diagonal, for as many graphs side by side; built once."""
        if copies not in self._repeated:
            matrix = _block_diagonal(self.matrix, copies)
            is_symmetric = self.transposed is self.matrix
            transposed = matrix if is_symmetric else _block_diagonal(self.transposed, copies)
            self._repeated[copies] = SparseOperator(matrix, transposed)
        return self._repeated[copies]

    def to(self, device: str | torch.device) -> "SparseOperator":
        """The same operator on `device`."""
        if self.transposed is self.matrix:
            moved = self.matrix.to(device)
            return SparseOperator(moved, moved)
        return SparseOperator(self.matrix.to(device), self.transposed.to(device))


def _block_diagonal(matrix: Float[Tensor, "n m"], copies: int) -> Float[Tensor, "cn cm"]:
    n, m = matrix.shape
    entries = matrix.values().numel()
    offsets = torch.arange(copies, device=matrix.device)[:, None]
    starts = (matrix.crow_indices()[:-1] + offsets * entries).flatten()
    starts = torch.cat([starts, starts.new_tensor([copies * entries])])
    columns = (matrix.col_indices() + offsets * m).flatten()
    values = matrix.values().repeat(copies)
    return torch.sparse_csr_tensor(starts, columns, values, (copies * n, copies * m), check_invariants=True)


def propagation_operator(
    edge_index: Int[Tensor, "2 e"], n_nodes: int, *, r: float = 0.5, dtype: torch.dtype = torch.float32
) -> SparseOperator:
    r"""$\hat{A} = \tilde{D}^{r-1} (A + I) \tilde{D}^{-r}$ with $\tilde{D}_{ii} = d_i + 1$.

    Args:
        edge_index: both directions of every undirected edge, without loops.
        n_nodes: number of nodes; nodes without edges keep their loop.
        r: 1/2 for the symmetric normalisation, 0 for the random walk (rows sum to one), 1 for its transpose.
        dtype: of the values.

    Raises:
        ValueError: for `r` outside [0, 1].
    """
    if not 0 <= r <= 1:
        raise ValueError(f"r must be in [0, 1], got {r}")
    loops = torch.arange(n_nodes, device=edge_index.device)
    rows, columns = torch.cat([edge_index, loops.expand(2, -1)], dim=1)
    degrees = torch.bincount(rows, minlength=n_nodes).to(dtype)
    values = degrees[rows] ** (r - 1) * degrees[columns] ** (-r)
    matrix = compressed_rows(rows, columns, values, (n_nodes, n_nodes))
    is_symmetric = r == 0.5
    return SparseOperator(
        matrix, matrix if is_symmetric else compressed_rows(columns, rows, values, (n_nodes, n_nodes))
    )
