"""Products for networks that train side by side: dropout, sparse inputs, and one matrix per run."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from glocal.graphs.sparse import SparseOperator, compressed_rows

SPARSE_SHARE = 0.2  # of non-zero entries; above it the dense product is faster on a CPU


def dropped(x: Float[Tensor, "*shape"], p: float, is_training: bool = True) -> Float[Tensor, "*shape"]:
    """Dropout whose mask takes 16 random bits per entry, several times faster on a CPU than Bernoulli draws.

    Args:
        x: features.
        p: probability of dropping an entry, rounded to a multiple of 1/65536; the others are scaled up.
        is_training: False returns `x` itself.
    """
    if not is_training or p == 0:
        return x
    threshold = round(65536 * p)
    is_kept = _random_words(x.numel(), x.device).view(x.shape) >= threshold - 32768
    return (x * is_kept.view(torch.uint8)).mul_(65536 / (65536 - threshold))


def _random_words(n: int, device: torch.device) -> Int[Tensor, " n"]:
    """Uniform 16-bit integers, -32768 to 32767."""
    words = torch.empty((n + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    return words.view(torch.int16)[:n]


class SparseInput:
    """Features of all nodes by their non-zero entries; products with weights cost as much as there are entries.

    Args:
        x: constant features.
    """

    def __init__(self, x: Float[Tensor, "n f"]) -> None:
        self.rows, self.columns = rows, columns = x.nonzero().T
        self.values, self.shape = x[rows, columns], (x.shape[0], x.shape[1])
        self.by_column = torch.argsort(columns * len(x) + rows)  # the order of entries in the transposed matrix
        self.all = SparseOperator(
            compressed_rows(rows, columns, self.values, self.shape),
            compressed_rows(columns, rows, self.values, self.shape[::-1]),
        )

    def __len__(self) -> int:
        return self.shape[0]

    def dropped(self, p: float, is_training: bool = True) -> SparseOperator:
        """As the function of this name, with the same mask for the same state of torch's random numbers."""
        if not is_training or p == 0:
            return self.all
        threshold = round(65536 * p)
        n, f = self.shape
        words = _random_words(n * f, self.values.device)[self.rows * f + self.columns]
        values = (self.values * (words >= threshold - 32768)).mul_(65536 / (65536 - threshold))
        return SparseOperator(
            _with_values(self.all.matrix, values), _with_values(self.all.transposed, values[self.by_column])
        )


def _with_values(like: Float[Tensor, "n m"], values: Float[Tensor, " e"]) -> Float[Tensor, "n m"]:
    return torch.sparse_csr_tensor(like.crow_indices(), like.col_indices(), values, like.shape, check_invariants=False)


class RunProduct(torch.autograd.Function):
    """Every run's features times its own matrix; results and gradients keep the order nodes, runs, features.

    Autograd's own gradient of a batched product has the runs first, which slows down all elementwise steps before it.
    """

    @staticmethod
    def forward(ctx: Any, h: Float[Tensor, "n r a"], weight: Float[Tensor, "r a b"]) -> Float[Tensor, "n r b"]:
        ctx.save_for_backward(h, weight)
        return _batched(h, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Float[Tensor, "n r b"]) -> tuple[Float[Tensor, "n r a"], Float[Tensor, "r a b"]]:
        h, weight = ctx.saved_tensors
        return _batched(gradient, weight.transpose(1, 2)), torch.bmm(h.permute(1, 2, 0), gradient.transpose(0, 1))


def _batched(h: Float[Tensor, "n r a"], weight: Float[Tensor, "r a b"]) -> Float[Tensor, "n r b"]:
    product = h.new_empty(*h.shape[:2], weight.shape[2])
    torch.bmm(h.transpose(0, 1), weight, out=product.transpose(0, 1))
    return product


def by_run(h: Float[Tensor, "n r a"], weight: Float[Tensor, "r a b"]) -> Float[Tensor, "n r b"]:
    """Every run's features times its own matrix."""
    product: Tensor = RunProduct.apply(h, weight)
    return product


def classes_first(logits: Float[Tensor, "n r k"]) -> Float[Tensor, "n k r"]:
    """The order of axes of torch's cross-entropy, in which softmax over few classes is several times faster."""
    return logits.transpose(1, 2).contiguous()
