"""The hard-margin SVMs of attention as convex programs in CVXPY (Tarzanagh et al. 2023, arXiv:2308.16898).

One problem at a time: `n` examples, `tokens` per example, `d` features. A program is compiled once per shape
and norm, with the constraints as a parameter, and solved again for every new instance.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, Literal

import cvxpy as cp
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linprog
from torch import Tensor

from glocal.theory.attention_svm_data import TokenData

Norm = Literal["fro", "nuc"]


@dataclass(frozen=True)
class SVMSolution:
    r"""Solution of an attention SVM.

    Args:
        weights: $W$, or NaN everywhere if no $W$ satisfies the constraints.
        multipliers: $\lambda_j \ge 0$, one per constraint.
        margins: $\langle A_j, W\rangle$, one per constraint; at least 1.
    """

    weights: Float[np.ndarray, "d d"]
    multipliers: Float[np.ndarray, " rows"]
    margins: Float[np.ndarray, " rows"]

    @property
    def is_feasible(self) -> bool:
        """Whether a solution exists."""
        return not bool(np.isnan(self.weights).any())


def constraint_matrices(
    tokens: Float[np.ndarray, "n tokens d"],
    queries: Float[np.ndarray, "n d"],
    selection: Int[np.ndarray, " n"],
) -> Float[np.ndarray, "rows d d"]:
    r"""Matrices $A_{it} = (x_{i\alpha_i} - x_{it}) z_i^\top$ of the constraints $\langle A_{it}, W\rangle \ge 1$.

    Args:
        tokens: $X_i$.
        queries: $z_i$.
        selection: $\alpha_i$, the token that each example should attend to.

    Returns:
        $n(T-1)$ matrices, example by example, the other tokens in ascending order.

    Source: the program (Att-SVM).
    """
    n, n_tokens, _ = tokens.shape
    differences = tokens[np.arange(n), selection][:, None] - tokens
    others = np.arange(n_tokens) != selection[:, None]
    rows = np.einsum("itp,iq->itpq", differences, queries)
    return rows[others]


@lru_cache(maxsize=64)
def _frobenius_program(rows: int, p: int, q: int) -> tuple[Any, Any, Any, Any]:
    r"""$\min \frac12\lVert W\rVert_F^2$ subject to $\langle A_j, W\rangle \ge b_j$."""
    weights = cp.Variable(p * q)
    matrices, offsets = cp.Parameter((rows, p * q)), cp.Parameter(rows)
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(weights)), [matrices @ weights >= offsets])
    return problem, weights, matrices, offsets


@lru_cache(maxsize=64)
def _nuclear_program(rows: int, p: int, q: int) -> tuple[Any, Any, Any, Any]:
    r"""Dual of $\min \lVert W\rVert_\star$ subject to $\langle A_j, W\rangle \ge 1$.

    The dual norm of the nuclear norm is the spectral norm: maximise $\sum_j \lambda_j$ over $\lambda \ge 0$
    with $\lVert\sum_j \lambda_j A_j\rVert_2 \le 1$, written as a linear matrix inequality. $-\frac12 W$ is the
    off-diagonal block of the inequality's multiplier. This has `rows` unknowns instead of the primal's
    $(p + q)(p + q + 1)/2$ and is two to four times as fast.
    """
    multipliers = cp.Variable(rows, nonneg=True)
    matrices = cp.Parameter((rows, p * q))
    combination = cp.reshape(matrices.T @ multipliers, (p, q), order="C")
    inequality = cp.bmat([[np.eye(p), combination], [combination.T, np.eye(q)]]) >> 0
    problem = cp.Problem(cp.Maximize(cp.sum(multipliers)), [inequality])
    return problem, multipliers, matrices, inequality


def minimum_norm_svm(
    matrices: Float[np.ndarray, "rows d d"],
    norm: Norm,
    *,
    offsets: Float[np.ndarray, " rows"] | None = None,
    solver: str = "CLARABEL",
) -> SVMSolution:
    r"""$\arg\min \lVert W\rVert$ subject to $\langle A_j, W\rangle \ge b_j$ for all $j$.

    Both norms shrink when $W$ is projected on the span of the $A_j$'s columns (left) and rows (right), and no
    constraint notices: the program is solved in these coordinates, with $p q$ instead of $d^2$ unknowns.
    That also proves $\mathrm{rank}\,W \le \min(n, d)$, for the rows span the $n$ queries.

    Args:
        matrices: $A_j$, for instance from `constraint_matrices`.
        norm: `"fro"` (a quadratic program) or `"nuc"` (a semidefinite program).
        offsets: $b_j$, one by default; other values only with the Frobenius norm.
        solver: CVXPY's name of the solver; CLARABEL is an interior-point method, accurate to about 1e-8.

    Returns:
        The solution; its weights are NaN if the constraints contradict each other.

    Raises:
        ValueError: for an unknown norm, or `offsets` with the nuclear norm.
        RuntimeError: if the solver finds neither a solution nor a proof that there is none.
    """
    if norm not in ("fro", "nuc"):
        raise ValueError(f"norm must be 'fro' or 'nuc', got {norm!r}")
    rows, d = matrices.shape[0], matrices.shape[1]
    left = _orthonormal_basis(matrices.transpose(1, 0, 2).reshape(d, -1))  # p x d
    right = _orthonormal_basis(matrices.transpose(2, 0, 1).reshape(d, -1))  # q x d
    p, q = len(left), len(right)
    small = (left @ matrices @ right.T).reshape(rows, p * q)
    if norm == "fro":
        problem, weights, parameter, parameter_offsets = _frobenius_program(rows, p, q)
        parameter.value = small
        parameter_offsets.value = np.ones(rows) if offsets is None else offsets
        _solve(problem, solver)
        solution, multipliers = weights.value, problem.constraints[0].dual_value
    else:
        if offsets is not None:
            raise ValueError("offsets are only supported with norm='fro', got norm='nuc': leave them out")
        problem, variable, parameter, inequality = _nuclear_program(rows, p, q)
        parameter.value = small
        _solve(problem, solver)
        multipliers = variable.value
        solution = None if multipliers is None else -2 * inequality.dual_value[:p, p:]
    if solution is None or multipliers is None:
        return SVMSolution(np.full((d, d), np.nan), np.zeros(rows), np.full(rows, np.nan))
    full = left.T @ solution.reshape(p, q) @ right
    return SVMSolution(full, multipliers, np.einsum("jpq,pq->j", matrices, full))


def _solve(problem: Any, solver: str) -> None:
    """Solve `problem`, whose variables have no value if it is infeasible (or, for a dual, unbounded)."""
    problem.solve(solver=solver)
    if problem.status not in ("optimal", "infeasible", "unbounded"):
        raise RuntimeError(
            f"{solver} must end optimal, infeasible or unbounded, got {problem.status!r}: "
            "choose another solver, or check for (nearly) equal tokens"
        )


def _orthonormal_basis(columns: Float[np.ndarray, "d m"]) -> Float[np.ndarray, "rank d"]:
    """Orthonormal rows that span the columns."""
    left, values, _ = np.linalg.svd(columns, full_matrices=False)
    return left[:, values > 1e-10 * values[0]].T


def attention_svm(data: TokenData, run: int, selection: Int[Tensor, " n"], norm: Norm, **options: Any) -> SVMSolution:
    """The attention SVM of problem `run` for one selection; `options` go to `minimum_norm_svm`."""
    return minimum_norm_svm(_constraints_of_run(data, run, selection), norm, **options)


def _constraints_of_run(data: TokenData, run: int, selection: Int[Tensor, " n"]) -> Float[np.ndarray, "rows d d"]:
    tokens, queries = data.tokens[run].cpu().numpy(), data.queries[run].cpu().numpy()
    return constraint_matrices(tokens, queries, selection.cpu().numpy())


def svm_directions(
    data: TokenData, selections: Int[Tensor, "runs n"], norm: Norm, **options: Any
) -> Float[Tensor, "runs d d"]:
    r"""Solutions $W^{mm}_\alpha$ (or $W^{mm}_{\star,\alpha}$) of all problems, each for its own selection.

    Returns:
        One matrix per run, on the device of the data; NaN for a run without a solution.
    """
    weights = [attention_svm(data, r, selections[r], norm, **options).weights for r in range(len(data))]
    return torch.as_tensor(np.stack(weights), device=data.tokens.device)


def is_separable(data: TokenData, selections: Int[Tensor, "runs n"]) -> Bool[Tensor, " runs"]:
    r"""Whether some $W$ satisfies all constraints of a run, decided by a linear program without objective."""
    return torch.tensor([_has_solution(_constraints_of_run(data, r, selections[r])) for r in range(len(data))])


def separable_runs(data: TokenData, selections: Int[Tensor, "runs n"], limit: int) -> Int[Tensor, " found"]:
    """Indices of the first `limit` runs that are separable, or of all of them if there are fewer."""
    is_member = (r for r in range(len(data)) if _has_solution(_constraints_of_run(data, r, selections[r])))
    return torch.tensor(list(islice(is_member, limit)), dtype=torch.int64)


def _has_solution(matrices: Float[np.ndarray, "rows d d"]) -> bool:
    rows = matrices.reshape(len(matrices), -1)
    result = linprog(np.zeros(rows.shape[1]), A_ub=-rows, b_ub=-np.ones(len(rows)), bounds=(None, None))
    return result.status == 0


def is_locally_optimal(
    scores: Float[Tensor, "n tokens"], selection: Int[Tensor, " n"], solution: SVMSolution, tol: float = 1e-4
) -> bool:
    r"""Whether every selected token beats its SVM neighbours: $\gamma_{i\alpha_i} > \gamma_{it}$ wherever
    $\langle A_{it}, W^{mm}_\alpha\rangle = 1$ up to `tol`. Without a solution the answer is no.

    Source: definition of locally-optimal tokens.
    """
    if not solution.is_feasible:
        return False
    n, n_tokens = scores.shape
    others = torch.arange(n_tokens, device=scores.device) != selection[:, None]
    is_neighbor = torch.as_tensor(solution.margins < 1 + tol, device=scores.device).reshape(n, n_tokens - 1)
    rivals = scores[others].reshape(n, n_tokens - 1)
    return bool((~is_neighbor | (rivals < scores.gather(1, selection[:, None]))).all())


def numerical_rank(weights: Float[Tensor, "*batch d d"], tol: float = 1e-5) -> Int[Tensor, "*batch"]:
    """Number of singular values above `tol` times the largest one.

    An interior-point solution carries noise of up to about 1e-6 where the exact one has a zero.
    """
    values = torch.linalg.svdvals(weights)
    return (values > tol * values[..., :1]).sum(-1)


@dataclass(frozen=True)
class MultiTokenSVM:
    r"""The three directions that compete to predict trained weights under a nonlinear head.

    Args:
        finite: $W^{fin}$, sets the ratios of the probabilities that stay positive.
        margin: $W^{mm}$, separates the kept tokens from the others.
        equivalent: $W^{fin} + R^\star W^{mm}$.
    """

    finite: Float[np.ndarray, "d d"]
    margin: Float[np.ndarray, "d d"]
    equivalent: Float[np.ndarray, "d d"]


def multi_token_svm(
    tokens: Float[np.ndarray, "n tokens d"],
    queries: Float[np.ndarray, "n d"],
    probs: Float[np.ndarray, "n tokens"],
    trained: Float[np.ndarray, "d d"],
    *,
    threshold: float = 1e-3,
    solver: str = "CLARABEL",
) -> MultiTokenSVM:
    r"""Decomposition $W \approx W^{fin} + R^\star W^{mm}$ of weights that keep several tokens.

    With the kept tokens $\mathcal O_i = \{t : s_{it} \ge \text{threshold}\}$ and any
    $t, \tau \in \mathcal O_i$, $\rho \notin \mathcal O_i$, both of least Frobenius norm:
    $(x_{it} - x_{i\tau})^\top W^{fin} z_i = \log(s_{it}/s_{i\tau})$, while
    $(x_{it} - x_{i\tau})^\top W^{mm} z_i = 0$ and $(x_{it} - x_{i\rho})^\top W^{mm} z_i \ge 1$.
    Thanks to the equations one representative $t$ per example is enough, and the equations
    themselves disappear when the matrices of the inequalities are projected on their null space.

    Returns:
        The three directions; NaN where the program has no solution.

    Source: abstract (3); official repository, `base_nonlinear.py`, where $R^\star$ is a least-squares fit.
    """
    n_tokens, d = tokens.shape[1:]
    anchors = probs.argmax(1)
    kept = probs >= threshold
    others = np.arange(n_tokens) != anchors[:, None]
    matrices = constraint_matrices(tokens, queries, anchors).reshape(-1, d * d)
    log_ratios = np.log(probs.max(1, keepdims=True) / probs)[others]
    is_equation = kept[others]
    equations = matrices[is_equation]
    finite = np.linalg.lstsq(equations, log_ratios[is_equation], rcond=None)[0]  # least norm among solutions
    null_space = np.eye(d * d) - np.linalg.pinv(equations) @ equations
    inequalities = np.where(is_equation[:, None], 0.0, matrices @ null_space)
    solution = minimum_norm_svm(inequalities.reshape(-1, d, d), "fro", offsets=1.0 - is_equation, solver=solver)
    margin = solution.weights.reshape(-1)
    scale = (trained.reshape(-1) - finite) @ margin / (margin @ margin)
    return MultiTokenSVM(finite.reshape(d, d), solution.weights, (finite + scale * margin).reshape(d, d))
