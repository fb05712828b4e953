r"""The convex programs in CVXPY, the sampled lasso and the sampling theorem (Bai et al. 2022, arXiv:2201.01965).

One problem at a time, in NumPy: `n` examples, `d` features, `p` patterns.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import cvxpy as cp
import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import nnls
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso, LassoLars

Loss = Literal["squared", "hinge"]


@dataclass(frozen=True)
class ProgramSolution:
    """Optimal weights, axis 0 being $v$ and $w$, the optimal value and its loss term without the penalty."""

    weights: Float[np.ndarray, "2 p d"]
    objective: float
    loss: float


def convex_program(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    patterns: Bool[np.ndarray, "p n"],
    *,
    beta: float,
    loss: Loss = "squared",
    epsilon: float = 0.0,
    n_fixed: int = 1,
    solver: str = "CLARABEL",
) -> ProgramSolution:
    r"""The convex program of the network, robust to $\lVert\delta\rVert_\infty \le \epsilon$ on every example.

    $$\min \ell\Bigl(\sum_i D_iX(v_i - w_i)\Bigr) + \beta\sum_i(\lVert v_i\rVert + \lVert w_i\rVert)
    \quad\text{s.t.}\quad (2D_i - I)Xv_i \ge \epsilon\lVert v_i\rVert_1\mathbf 1,\ \text{the same for } w_i.$$

    The squared loss is $\frac12\sum_k(|r_k| + \epsilon s_k)^2$, the hinge loss
    $\frac1n\sum_k(1 - y_kf_k + \epsilon s_k)_+$ with $s_k = \lVert\sum_i d_{ik}(v_i - w_i)\rVert_1$. The last
    `n_fixed` features (the bias) are not perturbed and do not enter the 1-norms.

    Args:
        x: examples.
        y: targets; signs for the hinge loss.
        patterns: activation patterns $D_i$.
        beta: weight decay $\beta$.
        loss: `"squared"` or `"hinge"`.
        epsilon: radius $\epsilon$ of the box; zero gives the standard program.
        n_fixed: number of trailing features that no attacker moves.
        solver: CVXPY's name of a conic solver.

    Raises:
        ValueError: for an unknown loss or a negative epsilon.
        RuntimeError: if the solver does not end at an optimum.

    Source: the convex program of Section 2 and the robust programs of the section on adversarial training.
    """
    if loss not in ("squared", "hinge"):
        raise ValueError(f"loss must be 'squared' or 'hinge', got {loss!r}")
    if epsilon < 0:
        raise ValueError(f"epsilon must not be negative, got {epsilon}")
    (n, d), p = x.shape, len(patterns)
    moving, masks = d - n_fixed, patterns.astype(float).T  # n x p
    v, w = cp.Variable((p, d)), cp.Variable((p, d))
    fit = cp.sum(cp.multiply(masks, x @ (v - w).T), axis=1)
    penalty = beta * (cp.sum(cp.norm(v, axis=1)) + cp.sum(cp.norm(w, axis=1)))
    constraints = []
    slack: cp.Expression | float = 0.0
    if epsilon > 0:
        slack = epsilon * cp.norm1(masks @ (v - w)[:, :moving], axis=1)
    for part in (v, w):
        margins = cp.multiply(2 * masks - 1, x @ part.T)
        if epsilon > 0:
            bound = cp.Variable((p, moving))  # elementwise |part|
            constraints += [bound >= part[:, :moving], bound >= -part[:, :moving]]
            margins = margins - epsilon * np.ones((n, 1)) @ cp.reshape(cp.sum(bound, axis=1), (1, p), order="C")
        constraints.append(margins >= 0)
    if loss == "hinge":
        term = cp.sum(cp.pos(1 - cp.multiply(y, fit) + slack)) / n
    else:
        term = 0.5 * cp.sum_squares(cp.abs(fit - y) + slack) if epsilon > 0 else 0.5 * cp.sum_squares(fit - y)
    problem = cp.Problem(cp.Minimize(term + penalty), constraints)
    problem.solve(solver=solver)
    if problem.status not in ("optimal", "optimal_inaccurate"):
        raise RuntimeError(f"{solver} must end optimal, got {problem.status!r}: rescale the data or change the solver")
    return ProgramSolution(
        np.stack([np.asarray(v.value), np.asarray(w.value)]), float(problem.value), float(term.value)
    )


def pattern_gain(x: Float[np.ndarray, "n d"], dual: Float[np.ndarray, " n"], pattern: Bool[np.ndarray, " n"]) -> float:
    r"""$\max |\zeta^\top D X u|$ over $\lVert u\rVert \le 1$, $(2D - I)Xu \ge 0$: above $\beta$, the pattern improves.

    A linear function over a cone and a ball is largest in the direction of the projection on the cone, and
    the projection residual is a non-negative least-squares problem (SciPy).

    Args:
        x: examples.
        dual: $\zeta$; at an optimum with squared loss the residual $y - \hat y$.
        pattern: diagonal of $D$.

    Source: the constraint of the dual program, restricted to one pattern.
    """
    cone = (x * (2.0 * pattern - 1)[:, None]).T  # columns generate the polar of the negative cone
    linear = x.T @ (pattern * dual)
    return max(nnls(cone, -side)[1] for side in (linear, -linear))


def largest_useful_beta(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, " n"], patterns: Bool[np.ndarray, "p n"]
) -> float:
    r"""$\beta_{\max}$: from this weight decay on, the zero network is optimal for the program with these patterns."""
    return max(pattern_gain(x, y, pattern) for pattern in patterns)


def sampled_lasso(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, " n"],
    directions: Float[np.ndarray, "m d"],
    *,
    beta: float,
) -> Float[np.ndarray, " m"]:
    r"""The sampled convex program (SCP): $\min_a \frac12\lVert\sum_i(Xu_i)_+a_i - y\rVert^2 + \beta\lVert a\rVert_1$.

    Unconstrained. Scikit-learn's least-angle regression follows the solution from $\beta = \infty$ down and ends
    exactly; if its steps degenerate, coordinate descent takes over. Their objective carries $\frac1{2n}$.

    Args:
        x: examples.
        y: targets.
        directions: $u_i$ on the unit sphere, fixed.
        beta: weight decay $\beta$.

    Source: the sampled convex program (SCP).
    """
    features, options = np.maximum(x @ directions.T, 0), {"alpha": beta / len(y), "fit_intercept": False}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            return LassoLars(max_iter=20 * len(y), **options).fit(features, y).coef_
        except ConvergenceWarning:
            warnings.simplefilter("ignore", ConvergenceWarning)
            return Lasso(tol=1e-4, max_iter=100_000, **options).fit(features, y).coef_


def violation_bound(n: int, count: int, confidence: float | None = None) -> float:
    r"""Bound on the probability that a fresh sample improves a program built from `count` samples.

    The dual has $n$ variables, so at most $n$ of `count + 1` exchangeable samples matter:
    $\mathbb E[\psi] \le \frac{n+1}{N+1}$. With confidence $1 - \xi$,
    $\psi \le \min\{\frac{n+1}{\xi(N+1)}, \frac2N(n + 1 - \log\xi)\}$.

    Args:
        n: examples.
        count: samples $N$ (directions or patterns).
        confidence: $1 - \xi$; None bounds the expectation over samples.

    Raises:
        ValueError: if `confidence` is not in (0, 1).

    Source: the sampling theorems of Sections 2 and 4, scenario optimisation.
    """
    if confidence is None:
        return min(1.0, (n + 1) / (count + 1))
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    miss = 1 - confidence
    return min(1.0, (n + 1) / (miss * (count + 1)), 2 / count * (n + 1 - math.log(miss)))
