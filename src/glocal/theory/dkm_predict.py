"""Predictions of deep kernel machines: test points in learned layers (Yang et al. 2023, arXiv:2108.13097)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.dkm import JITTER, Fit, cholesky_factor
from glocal.theory.dkm_kernels import Kernel, kernel_named


@dataclass(frozen=True)
class Blocks:
    r"""Gram matrix between test and training points, $G_{ti}$, and the diagonal of $G_{tt}$, in some layer."""

    cross: Float[Tensor, "runs m n"]
    diagonal: Float[Tensor, "runs m"]


def propagate(rule: Kernel, grams: list[Float[Tensor, "runs n n"]], blocks: Blocks, jitter: float = JITTER) -> Blocks:
    r"""Carry test points through the learned layers: with $A = K_{ti} K_{ii}^{-1}$ evaluated on $K(G_{\ell-1})$,

    $$G_{ti} = A\,G_{ii}, \qquad \mathrm{diag}\,G_{tt} = \mathrm{diag}\,(K_{tt} - A K_{it} + A\,G_{ii}A^\top).$$

    These are the moments of the prior's conditional distribution given the features of the training points.

    Args:
        rule: the kernel.
        grams: $G_0, G_1, \dots, G_L$ of the training points.
        blocks: those of layer 0.
        jitter: as in the fit.

    Returns:
        The blocks of layer $L$. Memory: `runs * m * n` numbers; diagonals only.
    """
    below = grams[0]
    for gram in grams[1:]:
        cross, diagonal = _kernel_blocks(rule, below, blocks)
        weights = torch.cholesky_solve(cross.mT, cholesky_factor(rule(below, jitter))).mT
        learned = weights @ gram
        variance = diagonal + jitter - (weights * cross).sum(2) + (learned * weights).sum(2)
        blocks, below = Blocks(learned, variance.clamp_min(1e-10)), gram
    return blocks


def _kernel_blocks(rule: Kernel, below: Tensor, blocks: Blocks) -> tuple[Tensor, Tensor]:
    cross = rule.cross(blocks.cross, blocks.diagonal, below.diagonal(dim1=-2, dim2=-1))
    return cross, rule.diagonal(blocks.diagonal)


def input_blocks(x: Float[Tensor, "runs n d"], test: Float[Tensor, "runs m d"]) -> Blocks:
    r"""Blocks of layer 0: $\frac1{\nu_0}X_tX_i^\top$ and the diagonal of $\frac1{\nu_0}X_tX_t^\top$."""
    return Blocks(test @ x.mT / x.shape[2], test.square().mean(2))


def predict(fitted: Fit, blocks: Blocks) -> tuple[Float[Tensor, "runs m k"], Float[Tensor, "runs m"]]:
    r"""Mean $K_{ti}(K_{ii} + \sigma^2 I)^{-1}Y$ and variance of new targets (noise included), from the top layer.

    Args:
        fitted: the learned Gram matrices.
        blocks: of layer 0, see `input_blocks`.

    Source: Gaussian process regression with $K(G_L)$.
    """
    problem, rule = fitted.problem, kernel_named(fitted.problem.kernel)
    grams = [problem.gram, *fitted.grams]
    top = propagate(rule, grams, blocks, problem.jitter)
    cross, diagonal = _kernel_blocks(rule, grams[-1], top)
    noise = problem.sigma2[:, None].expand(problem.gram.shape[:2])
    factor = cholesky_factor(fitted.top_kernel + torch.diag_embed(noise))
    mean = cross @ torch.cholesky_solve(problem.targets, factor)
    explained = torch.linalg.solve_triangular(factor, cross.mT, upper=False).square().sum(1)
    return mean, (diagonal + problem.jitter - explained).clamp_min(0) + problem.sigma2[:, None]
