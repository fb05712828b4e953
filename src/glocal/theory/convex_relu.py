r"""Convex training of two-layer ReLU networks by ADMM (Bai, Gautam and Sojoudi 2022, arXiv:2201.01965).

Sizes: `runs` independent problems side by side, `n` examples, `d` features, `p` activation patterns, `m` neurons.
Convex weights carry an axis of length two: index 0 holds the $v_i$, index 1 the $w_i$.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def enumerate_patterns(x: Float[Tensor, "n 2"]) -> Bool[Tensor, "p n"]:
    r"""All distinct patterns $\mathbf 1\{Xg \ge 0\}$ with a non-empty interior, in the plane.

    Each example flips its bit on two opposite rays; the $2n$ rays cut the plane into sectors, and one
    direction per sector suffices. Examples must point in different directions for $2n$ sectors.

    Source: Section 2, definition of the activation patterns.
    """
    angles = torch.atan2(x[:, 1], x[:, 0]) + math.pi / 2
    rays = torch.cat([angles, angles + math.pi]).remainder(2 * math.pi).sort().values
    middle = (rays + torch.cat([rays[1:], rays[:1] + 2 * math.pi])) / 2
    return torch.stack([middle.cos(), middle.sin()], 1) @ x.mT >= 0


def n_patterns(n: int, rank: int) -> int:
    r"""Number of patterns of $n$ points in general position, $2\sum_{k<r}\binom{n-1}{k}$ (Cover's count)."""
    return 2 * sum(math.comb(n - 1, k) for k in range(rank))


def sample_patterns(
    x: Float[Tensor, "runs n d"], count: int, *, generator: torch.Generator, max_draws: int = 100_000
) -> Bool[Tensor, "runs count n"]:
    r"""`count` distinct patterns per run from directions $g \sim N(0, I_d)$, in the order of their discovery.

    Raises:
        ValueError: if `max_draws` directions show fewer than `count` distinct patterns.

    Source: the approximate program (Section 2.2): sample $P_s$ directions, drop duplicates.
    """
    found: list[dict[bytes, Tensor]] = [{} for _ in x]
    drawn, block = 0, 2 * count
    while min(map(len, found)) < count:
        if drawn >= max_draws:
            raise ValueError(
                f"count must be at most the number of patterns that random directions show, got {count} with only "
                f"{min(map(len, found))} found in {drawn} draws: lower count"
            )
        g = torch.randn(len(x), x.shape[-1], block, generator=generator, dtype=x.dtype, device=x.device)
        masks = (x @ g >= 0).mT.cpu()
        for seen, rows in zip(found, masks, strict=True):
            for row in rows:
                seen.setdefault(row.numpy().tobytes(), row)
        drawn += block
    chosen = [torch.stack(list(seen.values())[:count]) for seen in found]
    return torch.stack(chosen).to(x.device)


def predict(
    x: Float[Tensor, "runs n d"], patterns: Bool[Tensor, "runs p n"], weights: Float[Tensor, "runs 2 p d"]
) -> Float[Tensor, "runs n"]:
    r"""The map $F$: predictions $\sum_i D_i X (v_i - w_i)$ of the convex model."""
    return ((weights[:, 0] - weights[:, 1]) @ x.mT * patterns).sum(1)


def predict_adjoint(
    x: Float[Tensor, "runs n d"], patterns: Bool[Tensor, "runs p n"], residual: Float[Tensor, "runs n"]
) -> Float[Tensor, "runs 2 p d"]:
    r"""The map $F^\top$: $X^\top D_i r$ for the $v_i$ and its negative for the $w_i$."""
    half = (patterns * residual[:, None]) @ x
    return torch.stack([half, -half], 1)


def convex_objective(
    x: Float[Tensor, "runs n d"],
    y: Float[Tensor, "runs n"],
    patterns: Bool[Tensor, "runs p n"],
    weights: Float[Tensor, "runs 2 p d"],
    beta: float,
) -> Float[Tensor, " runs"]:
    r"""$\frac12\lVert\sum_i D_iX(v_i - w_i) - y\rVert^2 + \beta\sum_i(\lVert v_i\rVert + \lVert w_i\rVert)$.

    Infeasible weights can lie BELOW the optimum: judge iterates by the network that they stand for.
    """
    fit = 0.5 * (predict(x, patterns, weights) - y).square().sum(-1)
    return fit + beta * weights.norm(dim=-1).sum((1, 2))


def group_prox(point: Float[Tensor, "*batch d"], threshold: float) -> Float[Tensor, "*batch d"]:
    r"""$\arg\min_v \tau\lVert v\rVert + \frac12\lVert v - t\rVert^2$: shrinks the length by $\tau$, down to zero."""
    length = point.norm(dim=-1, keepdim=True)
    return point * (1 - threshold / length.clamp_min(threshold)) if threshold > 0 else point


@dataclass(frozen=True)
class Network:
    r"""Two-layer networks $x \mapsto \sum_j (x^\top u_j)_+ \alpha_j$; column $j$ of `hidden` is $u_j$."""

    hidden: Float[Tensor, "runs d m"]
    output: Float[Tensor, "runs m"]

    def __call__(self, x: Float[Tensor, "runs n d"]) -> Float[Tensor, "runs n"]:
        """Predictions for the examples of each run."""
        return (torch.relu(x @ self.hidden) @ self.output[..., None]).squeeze(-1)

    @property
    def penalty(self) -> Float[Tensor, " runs"]:
        r"""$\frac12\sum_j(\lVert u_j\rVert^2 + \alpha_j^2)$, at least $\sum_j\lVert u_j\rVert|\alpha_j|$."""
        return 0.5 * (self.hidden.square().sum((1, 2)) + self.output.square().sum(1))

    @property
    def width(self) -> Float[Tensor, " runs"]:
        """Number of neurons that are not zero."""
        return (self.output != 0).sum(1).to(self.output.dtype)


def recover_network(weights: Float[Tensor, "runs 2 p d"]) -> Network:
    r"""The network of convex weights: $u = v/\sqrt{\lVert v\rVert}$, $\alpha = \pm\sqrt{\lVert v\rVert}$.

    Balanced neurons turn the weight decay into $\lVert v\rVert$. With feasible weights,
    $(2D_i - I)Xv_i \ge 0$, the objective is preserved exactly. Zero weights become zero neurons.

    Source: Theorem 1 of Pilanci and Ergen (2020), restated in Section 2.
    """
    root = weights.norm(dim=-1).sqrt()
    hidden = weights / root.clamp_min(torch.finfo(root.dtype).tiny)[..., None]
    signed = torch.stack([root[:, 0], -root[:, 1]], 1)
    return Network(hidden.flatten(1, 2).mT, signed.flatten(1))


def network_objective(
    x: Float[Tensor, "runs n d"], y: Float[Tensor, "runs n"], network: Network, beta: float
) -> Float[Tensor, " runs"]:
    r"""Non-convex objective $\frac12\lVert f(X) - y\rVert^2 + \frac\beta2\sum_j(\lVert u_j\rVert^2 + \alpha_j^2)$."""
    return 0.5 * (network(x) - y).square().sum(-1) + beta * network.penalty


class LeastSquaresStep:
    r"""Step 1 of ADMM, $u \leftarrow M^{-1} r$ with $M = I + \frac1\rho F^\top F + G^\top G$, prepared once.

    `"cholesky"` factorises $M$ of order $2dp$, as the paper does: $O(d^2p^2)$ per solve and $4d^2p^2$ numbers of
    memory. `"woodbury"` uses that $F$ has only $n$ rows and that $I + G^\top G$ consists of $2p$ equal blocks
    $B = I + X^\top X$; it needs $O(ndp)$ per solve and gives the same result.

    Args:
        x: examples.
        patterns: activation patterns.
        rho: penalty $\rho$.
        solver: `"cholesky"` or `"woodbury"`.

    Source: Algorithm 3.1, update of $u$.
    """

    def __init__(
        self,
        x: Float[Tensor, "runs n d"],
        patterns: Bool[Tensor, "runs p n"],
        rho: float,
        solver: Literal["cholesky", "woodbury"],
    ) -> None:
        self.x, self.patterns, self.solver = x, patterns, solver
        n, d = x.shape[1:]
        block = torch.eye(d, dtype=x.dtype, device=x.device) + x.mT @ x
        if solver == "cholesky":
            stacked = (patterns[..., None] * x[:, None]).transpose(1, 2).flatten(2)  # runs x n x pd
            f = torch.cat([stacked, -stacked], -1)
            copies = torch.eye(2 * patterns.shape[1], dtype=x.dtype, device=x.device)
            diagonal = torch.stack([torch.kron(copies, b) for b in block])
            self.factor = torch.linalg.cholesky(diagonal + f.mT @ f / rho)
        elif solver == "woodbury":
            self.block_inverse = torch.linalg.inv(block)
            masks = patterns.to(x.dtype)
            kernel = 2 * (x @ self.block_inverse @ x.mT) * (masks.mT @ masks)  # F B^-1 F^T
            self.small_inverse = torch.linalg.inv(rho * torch.eye(n, dtype=x.dtype, device=x.device) + kernel)
        else:
            raise ValueError(f"solver must be 'cholesky' or 'woodbury', got {solver!r}")

    def __call__(self, right: Float[Tensor, "runs 2 p d"]) -> Float[Tensor, "runs 2 p d"]:
        """The solution $u$ for the right-hand side $r$."""
        if self.solver == "cholesky":
            return torch.cholesky_solve(right.flatten(1)[..., None], self.factor).reshape(right.shape)
        start = right @ self.block_inverse[:, None]
        inner = (self.small_inverse @ predict(self.x, self.patterns, start)[..., None]).squeeze(-1)
        return start - predict_adjoint(self.x, self.patterns, inner) @ self.block_inverse[:, None]


@dataclass(frozen=True)
class AdmmTrace:
    r"""ADMM along the way: `weights[j]` is the sparse variable $v$ after `steps[j]` iterations.

    `residuals[j]` is the primal residual $\lVert u - v\rVert + \lVert Gu - s\rVert$.
    """

    steps: tuple[int, ...]
    weights: Float[Tensor, "checkpoints runs 2 p d"]
    residuals: Float[Tensor, "checkpoints runs"]

    @property
    def final(self) -> Float[Tensor, "runs 2 p d"]:
        """The last weights."""
        return self.weights[-1]


def admm(
    x: Float[Tensor, "runs n d"],
    y: Float[Tensor, "runs n"],
    patterns: Bool[Tensor, "runs p n"],
    *,
    beta: float,
    rho: float = 0.1,
    dual_step: float | None = None,
    steps: int = 1000,
    record: tuple[int, ...] = (),
    init: Float[Tensor, "runs 2 p d"] | None = None,
    solver: Literal["cholesky", "woodbury"] | LeastSquaresStep = "woodbury",
) -> AdmmTrace:
    r"""ADMM for the convex program with squared loss, all runs side by side.

    Args:
        x: examples, a column of ones last if the network has biases.
        y: targets.
        patterns: activation patterns $D_i$, all of them or a sample.
        beta: weight decay $\beta$.
        rho: penalty $\rho$ of the augmented Lagrangian.
        dual_step: $\gamma_a$; equal to $\rho$ by default.
        steps: iterations.
        record: iterations after which the weights are kept; the last one always is.
        init: start of $u = v$, zero by default.
        solver: how the linear system is solved, or a `LeastSquaresStep` prepared for the same problems.

    Raises:
        ValueError: if `beta`, `rho` or `steps` is not positive.

    Source: Algorithm 3.1.
    """
    for name, value in (("beta", beta), ("rho", rho), ("steps", steps)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    relaxation = 1.0 if dual_step is None else dual_step / rho
    signs = (2 * patterns.to(x.dtype) - 1)[:, None]
    solve = solver if isinstance(solver, LeastSquaresStep) else LeastSquaresStep(x, patterns, rho, solver)
    constant = predict_adjoint(x, patterns, y) / rho
    v = torch.zeros_like(constant) if init is None else init
    dual = torch.zeros_like(v)
    s = torch.relu(signs * (v @ x.mT[:, None]))
    slack_dual = torch.zeros_like(s)
    kept, weights, residuals = [], [], []
    for step in range(1, steps + 1):
        u = solve(constant + v - dual + (signs * (s - slack_dual)) @ x[:, None])
        gu = signs * (u @ x.mT[:, None])
        v = group_prox(u + dual, beta / rho)
        s = torch.relu(gu + slack_dual)
        dual = dual + relaxation * (u - v)
        slack_dual = slack_dual + relaxation * (gu - s)
        if step in record or step == steps:
            kept.append(step)
            weights.append(v)
            residuals.append((u - v).flatten(1).norm(dim=1) + (gu - s).flatten(1).norm(dim=1))
    return AdmmTrace(tuple(kept), torch.stack(weights), torch.stack(residuals))
