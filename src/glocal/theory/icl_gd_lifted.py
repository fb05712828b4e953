"""The convex relaxation of a linear attention layer, its certificate of global optimality, and deeper stacks.

The output of the layer (Mahankali et al. 2024, arXiv:2307.03576) is linear in the lifted tensor $u \\otimes A$. So its
loss is a quadratic function of that tensor, and the second moments of $(d+1)(d+2)d/2$ features hold all of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.theory.icl_gd import LayerWeights, layer_products, tokens
from glocal.theory.icl_gd_data import Tasks


def token_pairs(e: int) -> Int[Tensor, "2 pairs"]:
    r"""Index pairs $a \le b$ of the symmetric Gram matrix $G$ of the tokens, $(d+1)(d+2)/2$ of them."""
    return torch.triu_indices(e, e)


def lifted_features(tasks: Tasks) -> Float[Tensor, "runs tasks pairs d"]:
    r"""Features $G_{ab}\, x_{q,c} / n$, $a \le b$, with the Gram matrix $G = \sum_i v_i v_i^\top$ of the tokens."""
    context, _ = tokens(tasks)
    gram = context.mT @ context / tasks.n_context
    rows, columns = token_pairs(gram.shape[-1]).to(gram.device)
    return gram[..., rows, columns, None] * tasks.query[..., None, :]


def lift(u: Float[Tensor, "runs e"], a: Float[Tensor, "runs e e"]) -> Float[Tensor, "runs pairs d"]:
    r"""Lifted coefficients that a layer realises: $u_a A_{bc} + u_b A_{ac}$ for $a < b$, and $u_a A_{ac}$ for $a = b$.

    $\hat y = \frac1n u^\top G A v_q$ and the last column of $A$ meets the empty slot of $v_q$.
    """
    rows, columns = token_pairs(u.shape[-1]).to(u.device)
    outer = u[:, :, None, None] * a[:, None, :, :-1]
    both = outer[:, rows, columns] + outer[:, columns, rows]
    return torch.where((rows == columns)[:, None], both / 2, both)


@dataclass(frozen=True)
class LiftedLoss:
    r"""The loss on a sample of tasks as a quadratic $\beta^\top C\beta - 2 b^\top\beta + c$ of lifted coefficients.

    Args:
        second: $C = E[\phi\phi^\top]$.
        cross: $b = E[\phi\, y_q]$.
        energy: $c = E[y_q^2]$.
        d: features of $x$.
    """

    second: Float[Tensor, "runs p p"]
    cross: Float[Tensor, "runs p"]
    energy: Float[Tensor, " runs"]
    d: int

    def __call__(self, coefficients: Float[Tensor, "runs pairs d"]) -> Float[Tensor, " runs"]:
        """The loss at lifted coefficients, realisable by a layer or not."""
        beta = coefficients.flatten(1)
        quadratic = (beta * (self.second @ beta[..., None]).squeeze(-1)).sum(-1)
        return quadratic - 2 * (self.cross * beta).sum(-1) + self.energy

    def of_layer(self, weights: LayerWeights) -> Float[Tensor, " runs"]:
        """The loss of a layer: its lifted coefficients have rank one."""
        return self(lift(*layer_products(weights)))

    def minimiser(self) -> Float[Tensor, "runs pairs d"]:
        """Unconstrained least squares over all lifted coefficients: its loss bounds that of every layer from below.

        A ridge of 1e-12 in standardised units keeps the equations solvable when there are fewer tasks than features.
        """
        scale = self.second.diagonal(dim1=1, dim2=2).sqrt()
        scaled = self.second / scale[:, :, None] / scale[:, None, :]
        scaled = scaled + 1e-12 * torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
        beta = torch.linalg.solve(scaled, self.cross / scale) / scale
        return beta.reshape(len(beta), -1, self.d)

    def best_multiple(self, direction: Float[Tensor, "d d"], n: int) -> Float[Tensor, " runs"]:
        r"""The $\eta$ for which the layer with $M = \eta D$ and nothing else has the smallest loss on the sample."""
        beta = matrix_coefficients(direction, n).flatten()
        return (self.cross @ beta) / ((self.second @ beta) @ beta)


def matrix_coefficients(matrix: Float[Tensor, "*batch d d"], n: int) -> Float[Tensor, "*batch pairs d"]:
    r"""Lifted coefficients of $\hat y = y^\top X M x_q$: $nM$ in the rows of the pairs $(a, d+1)$, zero elsewhere."""
    d = matrix.shape[-1]
    rows, columns = token_pairs(d + 1).to(matrix.device)
    beta = matrix.new_zeros(*matrix.shape[:-2], len(rows), d)
    beta[..., (rows < d) & (columns == d), :] = n * matrix
    return beta


def coefficient_matrix(coefficients: Float[Tensor, "*batch pairs d"], n: int) -> Float[Tensor, "*batch d d"]:
    r"""The matrix $M$ in lifted coefficients, the inverse of `matrix_coefficients` on its range."""
    d = coefficients.shape[-1]
    rows, columns = token_pairs(d + 1).to(coefficients.device)
    return coefficients[..., (rows < d) & (columns == d), :] / n


def lifted_loss(
    sample: Callable[[int], Tasks], n_tasks: int, *, chunk: int = 2000, dtype: torch.dtype = torch.float64
) -> LiftedLoss:
    r"""Moments of the lifted features over `n_tasks` tasks per run, accumulated chunk by chunk.

    Args:
        sample: draws the given number of fresh tasks per run.
        n_tasks: $N$; the sampling error of a standardised coefficient is about $\sqrt{L^\star / N}$.
        chunk: tasks in memory at once, `runs * chunk * (d+1)(d+2)d/2` numbers.
        dtype: type of the sums.

    Raises:
        ValueError: if `n_tasks` is not positive.
    """
    if n_tasks <= 0:
        raise ValueError(f"n_tasks must be positive, got {n_tasks}")
    sums: list[Tensor] = []
    done = 0
    while done < n_tasks:
        tasks = sample(min(chunk, n_tasks - done))
        done += tasks.x.shape[1]
        phi, target = lifted_features(tasks).flatten(2), tasks.target
        parts = [phi.mT @ phi, (phi.mT @ target[..., None]).squeeze(-1), target.square().sum(1)]
        parts = [part.to(dtype) for part in parts]
        sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
    return LiftedLoss(sums[0] / n_tasks, sums[1] / n_tasks, sums[2] / n_tasks, tasks.query.shape[-1])


def stack_losses(losses: list[LiftedLoss]) -> LiftedLoss:
    """Several settings of one width $d$ side by side, as further runs; their context lengths may differ."""
    parts = [torch.cat([getattr(loss, name) for loss in losses]) for name in ("second", "cross", "energy")]
    return LiftedLoss(parts[0], parts[1], parts[2], losses[0].d)


def fourth_moment_matrix(rows: Float[Tensor, "m d"], n: int) -> Float[Tensor, "d d"]:
    r"""The best $M = \big((n-1) I + E[x x^\top \lVert x\rVert^2]\big)^{-1}$ for whitened covariates of any law.

    With $w \sim N(0, I)$ and no noise the normal equations are $E[(X^\top X)^2]\,M = E[X^\top X]$, and
    $E[(X^\top X)^2] = n(n-1) I + n\,E[x x^\top\lVert x\rVert^2]$. Gaussian rows give $\eta^\star I$.
    """
    fourth = (rows * rows.square().sum(1, keepdim=True)).mT @ rows / len(rows)
    return torch.linalg.inv((n - 1) * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device) + fourth)


# deeper stacks


class StackWeights(NamedTuple):
    """A stack of linear attention layers with residual connections: two matrices per layer and run."""

    mix: Float[Tensor, "runs layers e e"]
    attend: Float[Tensor, "runs layers e e"]


def init_stack(
    runs: int, d: int, layers: int, *, generator: torch.Generator, std: float = 0.1, dtype: torch.dtype = torch.float64
) -> StackWeights:
    """Gaussian start of every matrix, small beside the residual connection."""
    size = (2, runs, layers, d + 1, d + 1)
    draw = std / math.sqrt(d + 1) * torch.randn(size, generator=generator, device=generator.device, dtype=dtype)
    return StackWeights(draw[0], draw[1])


def stack_predictions(weights: StackWeights, tasks: Tasks) -> Float[Tensor, "runs tasks"]:
    r"""Label slot of the query after layers $v_j \leftarrow v_j + \frac1n P_l \sum_{i \le n} v_i\,(v_i^\top Q_l v_j)$.

    All tokens are updated, the query attends to the context only. One layer is the layer of the chapter with
    $u$ the last row of $P$ and $A = Q$; $l$ layers can carry out $l$ gradient steps, and more.

    Source: the linear transformer of von Oswald et al. 2022 (arXiv:2212.07677), which the paper analyses at depth one.
    """
    context, query = tokens(tasks)
    stream = torch.cat([context, query[:, :, None]], 2)
    n = tasks.n_context
    for p, q in zip(weights.mix.unbind(1), weights.attend.unbind(1), strict=True):
        gram = stream[:, :, :n].mT @ stream[:, :, :n] / n
        stream = stream + stream @ (p[:, None] @ gram @ q[:, None]).mT
    return stream[:, :, -1, -1]
