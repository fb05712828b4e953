"""Supervised dictionary learning by block coordinate descent with non-negative factors and a shrinking radius."""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from glocal.supervision.sdl import Factors, Model, Problem, check_model
from glocal.supervision.sdl_logistic import ridge_logistic


@dataclass(frozen=True)
class Settings:
    r"""What block descent minimises and how; the defaults are the chapter's, the authors' values stand in brackets.

    Args:
        xi: $\xi$, weight of the reconstruction.
        nu: $\nu$, ridge on $\beta$ and $\gamma$ [1/2, which is `C=1` of scikit-learn].
        is_nonnegative: $W, H \ge 0$; $\beta$ is always free.
        n_inner: projected gradient steps on $W$ per iteration [5], and on $H$ for the feature model.
        radius_scale: $c$ of the radius $r_k = c\,k^{-b}/\log(k+1)$ in units of $\lVert X\rVert_F$
            [number of iterations]; None leaves the radius out.
        radius_exp: $b$ [1].
        is_normalized: keep $\lVert W\rVert_F = 1$ by rescaling [True]; otherwise $\lVert W\rVert_F \le 1$, which
            is a convex set.
    """

    xi: float
    nu: float = 0.5
    is_nonnegative: bool = True
    n_inner: int = 5
    radius_scale: float | None = None
    radius_exp: float = 1.0
    is_normalized: bool = False

    def radius(self, k: int, norm_x: float) -> float:
        r"""$r_k = c\,\lVert X\rVert_F\,k^{-b}/\log(k+1)$ for iteration $k = 1, 2, \dots$, infinite without a radius."""
        if self.radius_scale is None:
            return math.inf
        return self.radius_scale * norm_x * k**-self.radius_exp / math.log(k + 1)


@dataclass(frozen=True)
class BCDRun:
    """Result of `bcd`: factors, and per iteration (the start included) what `trace` asked for.

    Args:
        factors: the last iterate.
        objectives: `bcd_objective` after each sweep.
        stationarity: squared norm of the projected gradient after each sweep.
        moves: largest ratio of a block's move to the radius of its iteration (0 without a radius).
    """

    factors: Factors
    objectives: list[float]
    stationarity: list[float]
    moves: list[float]


def scores(problem: Problem, factors: Factors, model: Model) -> Float[Tensor, "1 n"]:
    r"""$\beta^\top W^\top x_s + \gamma^\top[1;x'_s]$ (filter) or $\beta^\top h_s + \gamma^\top[1;x'_s]$ (feature)."""
    own = (factors.w @ factors.beta).mT @ problem.x if check_model(model) == "filter" else factors.beta.mT @ factors.h
    return own + factors.gamma.mT @ problem.covariates


def bcd_objective(problem: Problem, factors: Factors, model: Model, settings: Settings) -> Float[Tensor, ""]:
    r"""$\sum_s \ell(y_s, a_s) + \xi\lVert X - WH\rVert_F^2 + \nu(\lVert\beta\rVert^2 + \lVert\gamma\rVert^2)$."""
    score = scores(problem, factors, model)
    loss = (softplus(score) - problem.labels * score).sum()
    ridge = factors.beta.square().sum() + factors.gamma.square().sum()
    return loss + settings.xi * (problem.x - factors.w @ factors.h).square().sum() + settings.nu * ridge


def gradient_w(problem: Problem, factors: Factors, model: Model, xi: float) -> Float[Tensor, "p r"]:
    r"""$2\xi(WH-X)H^\top + X(P-y)^\top\beta^\top$; the second term belongs to the filter model only."""
    h = factors.h
    gradient = 2 * xi * (factors.w @ (h @ h.mT) - problem.x @ h.mT)
    if check_model(model) == "filter":
        residual = scores(problem, factors, model).sigmoid() - problem.labels
        gradient = gradient + (problem.x @ residual.mT) @ factors.beta.mT
    return gradient


def gradient_h(problem: Problem, factors: Factors, model: Model, xi: float) -> Float[Tensor, "r n"]:
    r"""$2\xi(W^\top WH - W^\top X) + \beta(P-y)$; the second term belongs to the feature model only."""
    w = factors.w
    gradient = 2 * xi * ((w.mT @ w) @ factors.h - w.mT @ problem.x)
    if check_model(model) == "feature":
        residual = scores(problem, factors, model).sigmoid() - problem.labels
        gradient = gradient + factors.beta @ residual
    return gradient


def project_dictionary(w: Float[Tensor, "p r"], is_nonnegative: bool) -> Float[Tensor, "p r"]:
    r"""Nearest point with $\lVert W\rVert_F \le 1$ and, if asked for, $W \ge 0$ (clip first, then shrink)."""
    w = w.clamp(min=0) if is_nonnegative else w
    return w / w.norm().clamp(min=1)


def within_radius(
    new: Float[Tensor, "rows columns"], old: Float[Tensor, "rows columns"], radius: float
) -> Float[Tensor, "rows columns"]:
    """The point nearest to `new` on the segment from `old` that is within `radius` of `old` in spectral norm."""
    if math.isinf(radius):
        return new
    move = new - old
    length = float(torch.linalg.matrix_norm(move, ord=2))
    return new if length <= radius else old + move * (radius / length)


def nonnegative_codes(
    gram: Float[Tensor, "r r"],
    target: Float[Tensor, "r n"],
    h: Float[Tensor, "r n"],
    *,
    sweeps: int = 1,
    is_nonnegative: bool = True,
) -> Float[Tensor, "r n"]:
    r"""Cyclic row updates of $\lVert X - WH\rVert_F^2$ over $H \ge 0$, each row to its exact minimum.

    Args:
        gram: $W^\top W$.
        target: $W^\top X$.
        h: start.
        sweeps: passes over the rows; about 100 reach the minimum for a few atoms.
        is_nonnegative: clip at zero.
    """
    h = h.clone()
    for _ in range(sweeps):
        for j in range(len(gram)):
            if gram[j, j] > 0:
                row = h[j] + (target[j] - gram[j] @ h) / gram[j, j]
                h[j] = row.clamp(min=0) if is_nonnegative else row
    return h


def update_w(problem: Problem, factors: Factors, model: Model, settings: Settings) -> Factors:
    r"""Projected gradient steps on $W$ with a backtracked length, so that the objective cannot rise.

    The first trial length is $1/L_W$ with $L_W = 2\xi\lambda_{\max}(HH^\top)$, the curvature of the reconstruction.
    """
    x, h, xi = problem.x, factors.h, settings.xi
    xht, hht, square = x @ h.mT, h @ h.mT, x.square().sum()
    top = float(torch.linalg.eigvalsh(hht)[-1])
    size = 1 / max(2 * xi * top, 1e-12) if xi > 0 else 1.0 / max(float(square), 1e-12)

    def parts(w: Tensor) -> tuple[Tensor, Tensor]:
        value = xi * (square - 2 * (w * xht).sum() + ((w.mT @ w) * hht).sum())
        gradient = 2 * xi * (w @ hht - xht)
        if check_model(model) == "filter":
            score = scores(problem, replace(factors, w=w), model)
            value = value + (softplus(score) - problem.labels * score).sum()
            gradient = gradient + (x @ (score.sigmoid() - problem.labels).mT) @ factors.beta.mT
        return value, gradient

    w = factors.w
    value, gradient = parts(w)
    for _ in range(settings.n_inner):
        for _ in range(40):
            trial = project_dictionary(w - size * gradient, settings.is_nonnegative)
            move = trial - w
            trial_value, trial_gradient = parts(trial)
            bound = value + (gradient * move).sum() + move.square().sum() / (2 * size)
            if trial_value <= bound + 1e-12 * value.abs():
                break
            size /= 2
        else:
            break
        w, value, gradient, size = trial, trial_value, trial_gradient, 1.5 * size
    return replace(factors, w=w)


def update_h(problem: Problem, factors: Factors, model: Model, settings: Settings) -> Factors:
    r"""Cyclic row minimisation (filter) or projected gradient steps (feature).

    The length of the steps is $1/(2\xi\lambda_{\max}(W^\top W) + \frac14\lVert\beta\rVert^2)$.
    """
    gram, target = factors.w.mT @ factors.w, factors.w.mT @ problem.x
    if check_model(model) == "filter":
        h = nonnegative_codes(gram, target, factors.h, is_nonnegative=settings.is_nonnegative)
        return replace(factors, h=h)
    smoothness = 2 * settings.xi * float(torch.linalg.eigvalsh(gram)[-1]) + float(factors.beta.square().sum()) / 4
    for _ in range(settings.n_inner):
        residual = scores(problem, factors, model).sigmoid() - problem.labels
        gradient = 2 * settings.xi * (gram @ factors.h - target) + factors.beta @ residual
        h = factors.h - gradient / max(smoothness, 1e-12)
        factors = replace(factors, h=h.clamp(min=0) if settings.is_nonnegative else h)
    return factors


def update_regression(problem: Problem, factors: Factors, model: Model, settings: Settings) -> Factors:
    r"""$(\beta, \gamma)$: the full ridge-logistic fit on $[W^\top X; 1; X']$ (filter) or $[H; 1; X']$ (feature)."""
    codes = factors.w.mT @ problem.x if check_model(model) == "filter" else factors.h
    start = torch.cat([factors.beta, factors.gamma])
    c = ridge_logistic(torch.cat([codes, problem.covariates]), problem.labels, settings.nu, start=start)
    return replace(factors, beta=c[: len(codes)], gamma=c[len(codes) :])


def projected_gradient_norm(problem: Problem, factors: Factors, model: Model, settings: Settings) -> float:
    r"""Squared norm of $-\nabla f$ projected on the directions that stay feasible; zero exactly at stationary points.

    Entries at the bound zero may only grow, and at $\lVert W\rVert_F = 1$ the outward part of $-\nabla_W f$ is removed:
    the projection on the tangent cone. It does not depend on a step length, unlike
    $\theta - \Pi(\theta - \nabla f(\theta))$, which saturates at the diameter of the constraint set.
    """
    w, h = factors.w, factors.h
    step_w = -gradient_w(problem, factors, model, settings.xi)
    step_h = -gradient_h(problem, factors, model, settings.xi)
    if settings.is_nonnegative:
        step_w = torch.where(w > 0, step_w, step_w.clamp(min=0))
        step_h = torch.where(h > 0, step_h, step_h.clamp(min=0))
    if float(w.norm()) > 1 - 1e-9:
        step_w = step_w - (step_w * w).sum().clamp(min=0) * w / w.square().sum()
    codes = w.mT @ problem.x if model == "filter" else h
    residual = scores(problem, factors, model).sigmoid() - problem.labels
    step_beta = codes @ residual.mT + 2 * settings.nu * factors.beta
    step_gamma = problem.covariates @ residual.mT + 2 * settings.nu * factors.gamma
    return float(sum(step.square().sum() for step in (step_w, step_h, step_beta, step_gamma)))


def random_factors(problem: Problem, r: int, *, generator: torch.Generator) -> Factors:
    r"""Uniform $W$ with $\lVert W\rVert_F = 1$, uniform $H$ at the best common scale, $\beta = \gamma = 0$."""
    (p, n), x = problem.x.shape, problem.x
    w = torch.rand(p, r, generator=generator, dtype=x.dtype, device=x.device)
    h = torch.rand(r, n, generator=generator, dtype=x.dtype, device=x.device)
    w = w / w.norm()
    product = w @ h
    h = h * ((x * product).sum() / product.square().sum()).clamp(min=1e-6)
    return Factors(w, h, x.new_zeros(r, 1), x.new_zeros(len(problem.covariates), 1))


def bcd(
    problem: Problem, start: Factors, model: Model, settings: Settings, *, n_iter: int, has_trace: bool = False
) -> BCDRun:
    r"""Block coordinate descent: $W$, then $H$, both within the radius $r_k$, then $(\beta, \gamma)$.

    Every block problem is convex and every move stays on a segment inside the constraint set, so the objective never
    rises, unless `is_normalized` rescales $W$ (as the official code does; the next blocks absorb the jump).

    Args:
        problem: data, one problem (no leading axes).
        start: feasible factors, for instance `random_factors`.
        model: `"filter"` or `"feature"`.
        settings: objective and constraints.
        n_iter: sweeps.
        has_trace: record objective, stationarity and moves after each sweep (costs about one more sweep).

    Source: the algorithm "block coordinate descent for SDL".
    """
    factors = update_regression(problem, start, model, settings)
    norm_x, trace = float(problem.x.norm()), BCDRun(factors, [], [], [])
    for k in range(n_iter + 1):
        if has_trace:
            trace.objectives.append(float(bcd_objective(problem, factors, model, settings)))
            trace.stationarity.append(projected_gradient_norm(problem, factors, model, settings))
        if k == n_iter:
            break
        radius = settings.radius(k + 1, norm_x)
        old = factors
        factors = update_w(problem, factors, model, settings)
        factors = replace(factors, w=within_radius(factors.w, old.w, radius))
        if settings.is_normalized:
            factors = replace(factors, w=factors.w / factors.w.norm().clamp(min=1e-12))
        factors = update_h(problem, factors, model, settings)
        factors = replace(factors, h=within_radius(factors.h, old.h, radius))
        factors = update_regression(problem, factors, model, settings)
        if has_trace:
            steps = (factors.w - old.w, factors.h - old.h)
            trace.moves.append(max(float(torch.linalg.matrix_norm(step, ord=2)) / radius for step in steps))
    return replace(trace, factors=factors)
