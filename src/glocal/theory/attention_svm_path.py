"""Regularisation paths of one attention layer in W and in (K, Q) (Tarzanagh et al. 2023, arXiv:2308.16898)."""

import itertools
import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.attention_svm import Head, attention_loss, combined_weights, loss_gradient
from glocal.theory.attention_svm_data import TokenData

Parametrization = Literal["W", "KQ"]


def balanced_factors(
    weights: Float[Tensor, "*batch d d"],
) -> tuple[Float[Tensor, "*batch d d"], Float[Tensor, "*batch d d"]]:
    r"""The factors $K = U\Sigma^{1/2}$, $Q = V\Sigma^{1/2}$ of $W = U\Sigma V^\top$.

    Among all $KQ^\top = W$ they minimise $\frac12(\lVert K\rVert_F^2 + \lVert Q\rVert_F^2)$, with value
    $\lVert W\rVert_\star$: this is why weight decay on factors is a nuclear norm on their product.
    """
    left, values, right = torch.linalg.svd(weights)
    root = values.sqrt()[..., None, :]
    return left * root, right.mT * root


def regularization_path(
    data: TokenData,
    head: Head,
    starts: Float[Tensor, "starts runs d d"],
    radii: list[float],
    *,
    parametrization: Parametrization,
    steps: int = 300,
) -> Float[Tensor, "runs radii d d"]:
    r"""Regularisation path $\bar W_R = \arg\min_{\lVert W\rVert \le R} \mathcal L(W)$ for growing $R$.

    The ball is Frobenius for `"W"`. For `"KQ"` it is $\frac12(\lVert K\rVert_F^2 + \lVert Q\rVert_F^2) \le R$,
    whose products $KQ^\top$ fill exactly the nuclear ball of radius $R$; in both cases projecting is rescaling.
    $\mathcal L$ is not convex: at each radius projected gradient descent starts from every given direction and
    from the solution at the previous radius, and the lowest loss wins. Steps shrink geometrically, from a
    tenth of the radius to a tenth of a unit of $W$.

    Args:
        data: the problems.
        head: the fixed heads.
        starts: directions $W$ to start from; only their direction matters.
        radii: radii $R$, increasing.
        parametrization: `"W"` or `"KQ"`.
        steps: projected steps per radius.

    Raises:
        ValueError: for radii that are not positive and increasing, or an unknown parametrisation.

    Source: abstract (1), vanishing regularisation; the regularisation-path theorems.
    """
    if not radii or radii[0] <= 0 or any(a >= b for a, b in itertools.pairwise(radii)):
        raise ValueError(f"radii must be positive and increasing, got {radii}")
    if parametrization not in ("W", "KQ"):
        raise ValueError(f"parametrization must be 'W' or 'KQ', got {parametrization!r}")
    runs, d = data.tokens.shape[0], data.tokens.shape[-1]
    path: list[Tensor] = []
    for radius in radii:
        candidates = torch.cat([starts, path[-1][None]]) if path else starts
        index = torch.arange(runs, device=starts.device).repeat(len(candidates))
        many, many_heads = data.subset(index), head.subset(index)
        flat = candidates.reshape(-1, d, d)
        factors: tuple[Tensor, ...] = (flat,) if parametrization == "W" else balanced_factors(flat)
        # ||(K, Q)||_F = sqrt(2 R) on the boundary; a step of the factors moves KQ^T about sqrt(R) times as far
        bound = radius if parametrization == "W" else math.sqrt(2 * radius)
        first, last = 0.1 * bound, 0.1 if parametrization == "W" else 0.1 / math.sqrt(radius)
        factors = _of_length(factors, bound)
        for k in range(steps):
            gradient = loss_gradient(many, many_heads, combined_weights(factors))
            gradients: tuple[Tensor, ...] = (gradient,)
            if parametrization == "KQ":
                gradients = (gradient @ factors[1], gradient.mT @ factors[0])
            lr = first * (last / first) ** (k / steps)
            moves = _of_length(gradients, lr)
            factors = _into_ball(tuple(a - b for a, b in zip(factors, moves, strict=True)), bound)
        found = combined_weights(factors)
        best = attention_loss(many, many_heads, found).reshape(len(candidates), runs).argmin(0)
        path.append(found.reshape(len(candidates), runs, d, d)[best, torch.arange(runs, device=best.device)])
    return torch.stack(path, 1)


def _joint_norm(factors: tuple[Tensor, ...]) -> Tensor:
    """Frobenius norm of all factors of a run together."""
    return torch.cat([theta.flatten(1) for theta in factors], 1).norm(dim=1)[:, None, None]


def _of_length(factors: tuple[Tensor, ...], norm: float) -> tuple[Tensor, ...]:
    scale = norm / _joint_norm(factors).clamp_min(torch.finfo(torch.float64).tiny)
    return tuple(theta * scale for theta in factors)


def _into_ball(factors: tuple[Tensor, ...], norm: float) -> tuple[Tensor, ...]:
    scale = (norm / _joint_norm(factors)).clamp_max(1)
    return tuple(theta * scale for theta in factors)
