"""Supervised dictionary learning with covariates, lifted and solved by projected gradients (Lee et al., 2206.06774).

Convention of the paper: data are columns. p features, n examples, q covariates, r atoms;
`ones` is a dimension of size one.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

Model = Literal["filter", "feature"]
MODELS = ("filter", "feature")
Projection = Literal["svd", "gram"]


@dataclass(frozen=True)
class Problem:
    r"""Data, labels and covariates of one problem, or of many side by side (leading axes `*runs`).

    Args:
        x: data $X$, one example per column.
        labels: $y \in \{0, 1\}$ as numbers.
        covariates: $[1; X']$, rows that help to predict but are not factorised; may have
            no rows (see `with_intercept`).
    """

    x: Float[Tensor, "*runs p n"]
    labels: Float[Tensor, "*runs 1 n"]
    covariates: Float[Tensor, "*runs q n"]

    def to(self, device: str | torch.device) -> "Problem":
        """The same problem on `device`."""
        return Problem(self.x.to(device), self.labels.to(device), self.covariates.to(device))

    def columns(self, index: Int[Tensor, " m"]) -> "Problem":
        """The examples at `index`, in that order."""
        return Problem(self.x[..., index], self.labels[..., index], self.covariates[..., index])


@dataclass(frozen=True)
class Lifted:
    r"""The convex unknowns $\theta = (A, B, \gamma)$; `a` is $p \times 1$ (filter) or $1 \times n$ (feature)."""

    a: Float[Tensor, "*runs rows columns"]
    b: Float[Tensor, "*runs p n"]
    gamma: Float[Tensor, "*runs q ones"]

    def stacked(self, model: Model) -> Float[Tensor, "*runs rows columns"]:
        """$Z = [A, B]$ (filter) or $[A; B]$ (feature), the matrix of rank at most r."""
        return torch.cat([self.a, self.b], dim=_axis(model))

    def plus(self, other: "Lifted", weight: float) -> "Lifted":
        """`self + weight * other`, entry by entry."""
        return Lifted(self.a + weight * other.a, self.b + weight * other.b, self.gamma + weight * other.gamma)

    def norm(self) -> Float[Tensor, " *runs"]:
        """Euclidean norm of all entries."""
        parts = (self.a, self.b, self.gamma)
        return torch.stack([part.square().sum((-2, -1)) for part in parts]).sum(0).sqrt()


@dataclass(frozen=True)
class Factors:
    r"""Dictionary $W$ (atoms are columns), codes $H$, regression weights $\beta$, $\gamma$ of codes and covariates."""

    w: Float[Tensor, "*runs p r"]
    h: Float[Tensor, "*runs r n"]
    beta: Float[Tensor, "*runs r ones"]
    gamma: Float[Tensor, "*runs q ones"]


@dataclass(frozen=True)
class LPGDRun:
    """Result of `lpgd`: the last iterate and, per step and run, the distance to a reference point."""

    theta: Lifted
    distances: Float[Tensor, "*runs points"] | None


def check_model(model: Model) -> Model:
    """`model` itself, or a `ValueError` that lists the models."""
    if model not in MODELS:
        raise ValueError(f"model must be 'filter' or 'feature', got {model!r}")
    return model


def with_intercept(n: int, covariates: Float[Tensor, "q n"] | None = None, **options: object) -> Float[Tensor, "q1 n"]:
    """The rows $[1; X']$; without covariates a row of ones, for which `options` give dtype and device."""
    if covariates is None:
        return torch.ones(1, n, **options)  # type: ignore[call-overload]
    return torch.cat([covariates.new_ones(1, n), covariates])


def logits(problem: Problem, theta: Lifted, model: Model) -> Float[Tensor, "*runs ones n"]:
    r"""$a_s = A^\top x_s + \gamma^\top[1; x'_s]$ (filter) or $A_s + \gamma^\top[1; x'_s]$ (feature)."""
    own = theta.a.mT @ problem.x if check_model(model) == "filter" else theta.a
    return own + theta.gamma.mT @ problem.covariates


def lifted_objective(problem: Problem, theta: Lifted, model: Model, xi: float, nu: float) -> Float[Tensor, " *runs"]:
    r"""$F = \sum_s \ell(y_s, a_s) + \xi\lVert X - B\rVert_F^2 + \nu(\lVert A\rVert_F^2 + \lVert\gamma\rVert^2)$.

    The logistic loss is $\ell(y, a) = \log(1+e^a) - ya$.
    Convex in all of `theta`; only the rank constraint on the stacked matrix is not. Source: the lifted problem.
    """
    score = logits(problem, theta, model)
    loss = (softplus(score) - problem.labels * score).sum((-2, -1))
    ridge = theta.a.square().sum((-2, -1)) + theta.gamma.square().sum((-2, -1))
    return loss + xi * (problem.x - theta.b).square().sum((-2, -1)) + nu * ridge


def lifted_gradient(problem: Problem, theta: Lifted, model: Model, xi: float, nu: float) -> Lifted:
    r"""Gradient of `lifted_objective`, with $P = \sigma(a)$.

    $\nabla_A = X(P-y)^\top + 2\nu A$ (filter) or $(P-y) + 2\nu A$ (feature), $\nabla_B = 2\xi(B-X)$,
    $\nabla_\gamma = [1;X'](P-y)^\top + 2\nu\gamma$.
    """
    residual = logits(problem, theta, model).sigmoid() - problem.labels
    a = problem.x @ residual.mT if model == "filter" else residual
    return Lifted(
        a + 2 * nu * theta.a,
        2 * xi * (theta.b - problem.x),
        problem.covariates @ residual.mT + 2 * nu * theta.gamma,
    )


def curvature(problem: Problem, model: Model, xi: float, nu: float) -> tuple[float, float]:
    r"""Constants with $\mu I \preceq \nabla^2 F \preceq L I$.

    $\mu = 2\min(\xi, \nu)$ and $L = 2\max(\xi, \nu + \frac18\lambda_{\max}(GG^\top))$, where
    $G$ stacks what multiplies $(A, \gamma)$ in the scores: $[X; 1; X']$ (filter) or $[I; 1; X']$ (feature);
    $\sigma' \le \frac14$ gives the eighth. For several problems side by side, the largest $\lambda_{\max}$.
    Source: strong convexity and smoothness in the convergence theorem (constants re-derived).
    """
    u = problem.covariates
    if check_model(model) == "filter":
        design = torch.cat([problem.x, u], dim=-2)
        top = float(torch.linalg.matrix_norm(design, ord=2).square().max())
    else:
        top = 1 + (float(torch.linalg.matrix_norm(u, ord=2).square().max()) if u.shape[-2] else 0.0)
    return 2 * min(xi, nu), 2 * max(xi, nu + top / 8)


def contraction(mu: float, smoothness: float, tau: float) -> float:
    r"""$\rho = 2\max(|1-\tau\mu|, |1-\tau L|)$; below one for some $\tau$ if and only if $L/\mu < 3$."""
    return 2 * max(abs(1 - tau * mu), abs(1 - tau * smoothness))


def best_step(mu: float, smoothness: float) -> float:
    r"""$\tau = 2/(\mu + L)$, which minimises `contraction`: $\rho = 2\frac{L-\mu}{L+\mu}$."""
    return 2 / (mu + smoothness)


def project_rank(
    z: Float[Tensor, "*runs rows columns"], r: int, method: Projection = "svd"
) -> Float[Tensor, "*runs rows columns"]:
    r"""$\Pi_r(Z)$, the nearest matrix of rank at most r in Frobenius norm (truncated singular value decomposition).

    Args:
        z: matrices.
        r: largest rank, at least 1.
        method: `"svd"` decomposes $Z$; `"gram"` takes the eigenvectors of the smaller of $ZZ^\top$ and
            $Z^\top Z$, which is faster for long matrices and accurate to about machine precision times
            $(\sigma_1/\sigma_r)^2$.

    Raises:
        ValueError: r is not positive, or the method is unknown.
    """
    if r < 1:
        raise ValueError(f"r must be at least 1, got {r}")
    if method == "svd":
        u, s, vt = torch.linalg.svd(z, full_matrices=False)
        return u[..., :r] * s[..., None, :r] @ vt[..., :r, :]
    if method != "gram":
        raise ValueError(f"method must be 'svd' or 'gram', got {method!r}")
    if z.shape[-2] > z.shape[-1]:
        return project_rank(z.mT, r, "gram").mT
    basis = torch.linalg.eigh(z @ z.mT).eigenvectors[..., -r:]
    return basis @ (basis.mT @ z)


def split(z: Float[Tensor, "*runs rows columns"], gamma: Float[Tensor, "*runs q ones"], model: Model) -> Lifted:
    """The inverse of `Lifted.stacked`: the first column (filter) or row (feature) is $A$."""
    if check_model(model) == "filter":
        return Lifted(z[..., :, :1], z[..., :, 1:], gamma)
    return Lifted(z[..., :1, :], z[..., 1:, :], gamma)


def lpgd(
    problem: Problem,
    start: Lifted,
    model: Model,
    *,
    r: int,
    xi: float,
    nu: float,
    tau: float,
    steps: int,
    projection: Projection = "svd",
    reference: Lifted | None = None,
) -> LPGDRun:
    r"""Low-rank projected gradient descent, a gradient step and a projection of $Z$.

    $(Z, \gamma) \leftarrow (Z, \gamma) - \tau\nabla F$, then $Z \leftarrow \Pi_r(Z)$. $A$ and $B$ are projected
    together; $\gamma$ is not touched by the projection.

    Args:
        problem: the data, possibly several problems side by side.
        start: any start; it need not have rank r.
        model: `"filter"` or `"feature"`.
        r: rank.
        xi: weight of the reconstruction.
        nu: weight of the ridge; positive, or $\mu$ is zero.
        tau: step length, for instance `best_step(*curvature(...))`.
        steps: number of steps.
        projection: see `project_rank`.
        reference: if given, distances $\lVert\theta_t - \theta^*\rVert$ to it are recorded at every step.

    Raises:
        ValueError: tau is not positive.

    Source: the algorithm "lifted projected gradient descent".
    """
    if tau <= 0:
        raise ValueError(f"tau must be positive, got {tau}: use best_step(*curvature(problem, model, xi, nu))")
    theta, distances = start, []
    for step in range(steps + 1):
        if reference is not None:
            distances.append(theta.plus(reference, -1.0).norm())
        if step == steps:
            break
        moved = theta.plus(lifted_gradient(problem, theta, model, xi, nu), -tau)
        theta = split(project_rank(moved.stacked(model), r, projection), moved.gamma, model)
    return LPGDRun(theta, torch.stack(distances, -1) if distances else None)


def factorise(theta: Lifted, r: int, model: Model) -> Factors:
    r"""Factors with $W\beta = A$ (filter) or $\beta^\top H = A$ (feature), $WH = B$ and $\lVert W\rVert_F = 1$.

    With $Z = U\Sigma V^\top$: filter $W = U\Sigma^{1/2}$ and $[\beta, H] = \Sigma^{1/2}V^\top$; feature
    $[\beta^\top; W] = U\Sigma^{1/2}$ and $H = \Sigma^{1/2}V^\top$. Then the scale of $W$ moves into $H$ and
    $\beta$. Needs a `theta` of rank r.
    """
    u, s, vt = torch.linalg.svd(theta.stacked(model), full_matrices=False)
    root = s[..., :r].sqrt()
    left, right = u[..., :r] * root[..., None, :], root[..., :, None] * vt[..., :r, :]
    if check_model(model) == "filter":
        scale = torch.linalg.matrix_norm(left)[..., None, None]
        return Factors(left / scale, right[..., 1:] * scale, right[..., :1] * scale, theta.gamma)
    scale = torch.linalg.matrix_norm(left[..., 1:, :])[..., None, None]
    return Factors(left[..., 1:, :] / scale, right * scale, left[..., :1, :].mT / scale, theta.gamma)


def lift(factors: Factors, model: Model) -> Lifted:
    r"""$A = W\beta$ (filter) or $\beta^\top H$ (feature), $B = WH$."""
    a = factors.w @ factors.beta if check_model(model) == "filter" else factors.beta.mT @ factors.h
    return Lifted(a, factors.w @ factors.h, factors.gamma)


def factored_objective(
    problem: Problem, factors: Factors, model: Model, xi: float, nu: float
) -> Float[Tensor, " *runs"]:
    r"""The paper's non-convex objective $f(W, H, \beta, \gamma) = F(A, B, \gamma)$ with the lifted factors."""
    return lifted_objective(problem, lift(factors, model), model, xi, nu)


def _axis(model: Model) -> int:
    return -1 if check_model(model) == "filter" else -2
