"""Kernels as functions of a Gram matrix, for deep kernel machines (Yang et al. 2023, arXiv:2108.13097).

A deep Gaussian process passes on nothing but inner products, so each kernel is written in terms of the Gram matrix
of the features below it: `cross` holds $G_{ij}$ between two sets of points, `left` and `right` the diagonals.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

CrossRule = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Kernel:
    r"""A kernel $K(G)$ with the derivative that gradients on Gram matrices need.

    Args:
        cross: $K$ between two sets of points from `cross`, `left` and `right`.
        diagonal: $K_{ii}$ from $G_{ii}$.
        pullback: $(G, \partial f/\partial K) \mapsto \partial f/\partial G$, both symmetric.
    """

    cross: CrossRule
    diagonal: Callable[[Tensor], Tensor]
    pullback: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, gram: Float[Tensor, "*runs n n"], jitter: float = 0.0) -> Float[Tensor, "*runs n n"]:
        r"""$K(G) + \epsilon I$ of one set of points; the diagonal is exact, whatever rounding does to angles."""
        left = gram.diagonal(dim1=-2, dim2=-1)
        exact = self.diagonal(left) + jitter
        return self.cross(gram, left, left).diagonal_scatter(exact, dim1=-2, dim2=-1)


def _rbf(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""$\exp(-R_{ij})$ with $R_{ij} = \frac12 G_{ii} + \frac12 G_{jj} - G_{ij}$, half the squared distance."""
    return (cross - 0.5 * left[..., :, None] - 0.5 * right[..., None, :]).exp()


def _rbf_pullback(gram: Tensor, slope: Tensor) -> Tensor:
    r"""$dK_{ij} = K_{ij}(dG_{ij} - \frac12 dG_{ii} - \frac12 dG_{jj})$: minus a graph Laplacian of weights $MK$."""
    left = gram.diagonal(dim1=-2, dim2=-1)
    weights = slope * _rbf(gram, left, left)
    return weights - torch.diag_embed(weights.sum(-1))


def _angle(cross: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""$\sqrt{G_{ii}G_{jj}}$, $\cos\theta$ and $\theta$; the clamp keeps the slope of arccos finite."""
    scale = (left[..., :, None] * right[..., None, :]).sqrt()
    cosine = (cross / scale).clamp(-1 + 1e-14, 1 - 1e-14)
    return scale, cosine, cosine.arccos()


def _relu(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""$\frac1\pi\sqrt{G_{ii}G_{jj}}(\sin\theta + (\pi - \theta)\cos\theta) = 2E[\phi(a)\phi(b)]$."""
    scale, cosine, theta = _angle(cross, left, right)
    return scale / math.pi * ((1 - cosine.square()).sqrt() + (math.pi - theta) * cosine)


def _relu_pullback(gram: Tensor, slope: Tensor) -> Tensor:
    r"""Chain rule with the two partial derivatives

    $\partial K_{ij}/\partial G_{ij} = 1 - \theta/\pi$ and
    $\partial K_{ij}/\partial G_{ii} = \frac{1}{2\pi}\sqrt{G_{jj}/G_{ii}}\,\sin\theta$.
    """
    left = gram.diagonal(dim1=-2, dim2=-1)
    _, cosine, theta = _angle(gram, left, left)
    sine = (1 - cosine.square()).sqrt()
    row = (slope * sine * left.sqrt()[..., None, :]).sum(-1) - slope.diagonal(dim1=-2, dim2=-1) * (
        sine.diagonal(dim1=-2, dim2=-1) * left.sqrt()
    )
    inner = slope * (1 - theta / math.pi)
    diagonal = slope.diagonal(dim1=-2, dim2=-1) + row / (math.pi * left.sqrt())
    return inner.diagonal_scatter(diagonal, dim1=-2, dim2=-1)


def _same_diagonal(left: Tensor) -> Tensor:
    return left


KERNELS = {
    "rbf": Kernel(_rbf, torch.ones_like, _rbf_pullback),
    "relu": Kernel(_relu, _same_diagonal, _relu_pullback),
    "linear": Kernel(lambda cross, left, right: cross, _same_diagonal, lambda gram, slope: slope),
}


def kernel_named(name: str) -> Kernel:
    """The kernel of that name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in KERNELS:
        raise ValueError(f"kernel must be one of {', '.join(KERNELS)}, got {name!r}")
    return KERNELS[name]


def input_gram(
    x: Float[Tensor, "*runs n d"], other: Float[Tensor, "*runs m d"] | None = None
) -> Float[Tensor, "*runs n _"]:
    r"""$G_0 = \frac1{\nu_0} X X'^\top$, with $\nu_0 = d$ features and $X' = X$ unless `other` is given."""
    return x @ (x if other is None else other).mT / x.shape[-1]


def deep_kernel(
    gram: Float[Tensor, "*runs n n"], kernel: str, depth: int, jitter: float = 0.0
) -> list[Float[Tensor, "*runs n n"]]:
    r"""Gram matrices $G_\ell = K(G_{\ell-1})$ of an infinitely wide network, $\ell = 1, \dots, L$.

    Args:
        gram: $G_0$.
        kernel: a name in `KERNELS`.
        depth: $L$, number of hidden layers.
        jitter: added to the diagonal of every kernel.

    Source: the limit $\nu \to \infty$ of the objective (NNGP).
    """
    rule, grams = kernel_named(kernel), []
    for _ in range(depth):
        gram = rule(gram, jitter)
        grams.append(gram)
    return grams


def alignment(a: Float[Tensor, "*runs n n"], b: Float[Tensor, "*runs n n"]) -> Float[Tensor, "*runs"]:
    r"""Cosine of two matrices, $\langle A, B\rangle_F / (\lVert A\rVert_F\lVert B\rVert_F)$."""
    return (a * b).sum((-2, -1)) / (a.norm(dim=(-2, -1)) * b.norm(dim=(-2, -1)))
