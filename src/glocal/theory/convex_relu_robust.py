r"""Patterns that survive a box attack, and a first-order solver of the robust program (arXiv:2201.01965)."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize import linprog
from torch import Tensor

from glocal.theory.convex_relu import predict


def is_usable(
    x: Float[np.ndarray, "n d"], pattern: Bool[np.ndarray, " n"], epsilon: float, *, n_fixed: int = 1
) -> bool:
    r"""Whether some $v$ keeps the pattern on whole boxes, $(2D - I)Xv \ge (\epsilon\lVert v\rVert_1 + 1)\mathbf 1$.

    The constraint is homogeneous, so the margin one costs nothing; a linear program in the positive and
    negative parts of $v$ decides. A pattern that is not usable has only $v = w = 0$ and can be left out.

    Source: the constraints of the robust program.
    """
    signed = x * (2.0 * pattern - 1)[:, None]
    cost = np.full(x.shape[1], epsilon)
    if n_fixed:
        cost[-n_fixed:] = 0
    rows = np.hstack([cost - signed, cost + signed])  # (eps - Xs) a + (eps + Xs) b <= -1, v = a - b
    result = linprog(np.zeros(rows.shape[1]), A_ub=rows, b_ub=-np.ones(len(x)), bounds=(0, None))
    return bool(result.status == 0)


def usable_patterns(
    x: Float[np.ndarray, "n d"], candidates: Bool[np.ndarray, "p n"], epsilon: float, limit: int, *, n_fixed: int = 1
) -> Bool[np.ndarray, "kept n"]:
    """The all-active pattern, then the first usable candidates, `limit` patterns at most.

    The all-active pattern is always usable if there is a bias; alone, it gives the robust linear classifier.
    """
    kept = [np.ones(len(x), dtype=bool)]
    for candidate in candidates:
        if len(kept) == limit:
            break
        if not candidate.all() and is_usable(x, candidate, epsilon, n_fixed=n_fixed):
            kept.append(candidate)
    return np.stack(kept)


def robust_hinge_objective(
    x: Float[Tensor, "runs n d"],
    y: Float[Tensor, "runs n"],
    patterns: Bool[Tensor, "runs p n"],
    weights: Float[Tensor, "runs 2 p d"],
    *,
    beta: float,
    epsilon: float,
    n_fixed: int = 1,
) -> tuple[Float[Tensor, " runs"], Float[Tensor, " runs"]]:
    r"""Objective of the robust hinge program and the total violation of its constraints.

    Source: the robust program with hinge loss.
    """
    moving = x.shape[-1] - n_fixed
    slope = patterns.to(x.dtype).mT @ (weights[:, 0] - weights[:, 1])  # runs x n x d
    worst = 1 - y * predict(x, patterns, weights) + epsilon * slope[..., :moving].abs().sum(-1)
    objective = torch.relu(worst).mean(-1) + beta * weights.norm(dim=-1).sum((1, 2))
    signs = 2 * patterns.to(x.dtype) - 1
    margins = signs[:, None] * (weights @ x.mT[:, None])
    reach = epsilon * weights[..., :moving].abs().sum(-1, keepdim=True)
    return objective, torch.relu(reach - margins).sum((1, 2, 3))


def robust_first_order(
    x: Float[Tensor, "runs n d"],
    y: Float[Tensor, "runs n"],
    patterns: Bool[Tensor, "runs p n"],
    *,
    beta: float,
    epsilon: float,
    steps: int = 4000,
    lr: float = 0.02,
    price: float = 1.0,
    n_fixed: int = 1,
) -> Float[Tensor, "runs 2 p d"]:
    r"""Adam on the robust objective with the constraint violation at a fixed price: for sizes beyond an interior point.

    The penalty is exact, $\mu\sum(\epsilon\lVert v\rVert_1 - \text{margin})_+$, so for a price $\mu$ above the largest
    multiplier the minimiser is that of the program; the learning rate falls to zero along a cosine.

    Source: ours; the paper solves its robust programs with a general convex solver.
    """
    weights = torch.zeros(len(x), 2, patterns.shape[1], x.shape[-1], dtype=x.dtype, device=x.device)
    weights[..., -1] = 1e-3  # away from the kink of the norms at zero
    weights.requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective, violation = robust_hinge_objective(
            x, y, patterns, weights, beta=beta, epsilon=epsilon, n_fixed=n_fixed
        )
        (objective + price * violation).sum().backward()
        optimizer.step()
        schedule.step()
    return weights.detach()
