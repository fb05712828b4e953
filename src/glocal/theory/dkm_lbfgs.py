"""L-BFGS for many independent problems side by side; every tensor has a leading axis `runs`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

ValueAndGradient = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Minimum:
    """Result of `minimise`.

    Args:
        x: the best points found.
        values: the function there.
        gradient_norms: largest absolute entry of the gradient there.
        steps: accepted steps of each run.
        history: values after every step, the start first; a run that has stopped repeats its last value.
    """

    x: Float[Tensor, "runs n"]
    values: Float[Tensor, " runs"]
    gradient_norms: Float[Tensor, " runs"]
    steps: Int[Tensor, " runs"]
    history: Float[Tensor, "runs points"]


def minimise(
    function: ValueAndGradient,
    start: Float[Tensor, "runs n"],
    *,
    steps: int = 100,
    tol: float = 1e-9,
    memory: int = 8,
    max_halvings: int = 25,
) -> Minimum:
    r"""Minimise one smooth function per run by L-BFGS with Armijo backtracking.

    The two-loop recursion and the line search are ordinary; only the runs are batched. A pair $(s, y)$ enters the
    memory where $s^\top y > 0$. A run stops at its tolerance, or when no step decreases its function any more.

    Args:
        function: points to values and gradients, `(runs, n) -> (runs,), (runs, n)`; `inf` or NaN rejects a step.
        start: where each run starts.
        steps: largest number of steps.
        tol: a run stops once no entry of its gradient is larger.
        memory: number of pairs kept; the memory is `2 * memory * runs * n` numbers.
        max_halvings: halvings of a step before a run stops.

    Raises:
        ValueError: if `steps` or `memory` is not positive, or a function is not finite at its start.
    """
    for name, size in (("steps", steps), ("memory", memory)):
        if size <= 0:
            raise ValueError(f"{name} must be positive, got {size}")
    x = start.clone()
    values, gradient = function(x)
    if not torch.isfinite(values).all():
        raise ValueError("the function must be finite at the start, got inf or NaN: start elsewhere, or add jitter")
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    is_active = gradient.abs().amax(1) > tol
    taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    history = [values]
    for _ in range(steps):
        if not is_active.any():
            break
        direction = -_inverse_hessian_times(gradient, pairs)
        slope = (direction * gradient).sum(1)
        is_uphill = slope >= 0  # rounding has spoilt the memory: fall back on the gradient
        direction = torch.where(is_uphill[:, None], -gradient, direction)
        slope = torch.where(is_uphill, -gradient.square().sum(1), slope)
        length = is_active.to(x.dtype)
        if not pairs:  # no curvature known yet: move by at most one
            length = length / gradient.norm(dim=1).clamp_min(1.0)
        is_searching = is_active.clone()
        for _ in range(max_halvings):
            trial = x + length[:, None] * direction
            trial_values, trial_gradient = function(trial)
            is_better = trial_values <= values + 1e-4 * length * slope
            is_searching = is_active & ~is_better
            if not is_searching.any():
                break
            length = torch.where(is_searching, 0.5 * length, length)
        accepted = is_active & ~is_searching
        move = torch.where(accepted[:, None], trial - x, 0.0)
        change = torch.where(accepted[:, None], trial_gradient - gradient, 0.0)
        curvature = (move * change).sum(1)
        is_useful = curvature > 1e-12 * change.square().sum(1)
        inverse = torch.where(is_useful, 1 / curvature.where(is_useful, torch.ones_like(curvature)), 0.0)
        pairs = [*pairs[-memory + 1 :], (move, change, inverse)] if memory > 1 else [(move, change, inverse)]
        x = x + move
        gradient = torch.where(accepted[:, None], trial_gradient, gradient)
        values = torch.where(accepted, trial_values, values)
        taken = taken + accepted
        is_active = accepted & (gradient.abs().amax(1) > tol)
        history.append(values)
    return Minimum(x, values, gradient.abs().amax(1), taken, torch.stack(history, 1))


def _inverse_hessian_times(gradient: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Two-loop recursion; a pair with `inverse` zero leaves its run alone."""
    q, weights = gradient, []
    for move, change, inverse in reversed(pairs):
        weight = inverse * (move * q).sum(1)
        q = q - weight[:, None] * change
        weights.append(weight)
    if pairs:
        move, change, inverse = pairs[-1]
        scale = (move * change).sum(1) / change.square().sum(1).clamp_min(torch.finfo(q.dtype).tiny)
        q = torch.where(inverse > 0, scale, 1.0)[:, None] * q
    for (move, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - inverse * (change * q).sum(1))[:, None] * move
    return q
