"""Ridge-logistic regression by Newton's method, and the measures of an imbalanced two-class problem."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus


def ridge_logistic(
    design: Float[Tensor, "*runs m n"],
    labels: Float[Tensor, "*runs 1 n"],
    ridge: float | Float[Tensor, " grid"],
    *,
    start: Float[Tensor, "*runs m 1"] | None = None,
    steps: int = 50,
) -> Float[Tensor, "*grid_runs m 1"]:
    r"""$\arg\min_c \sum_s \ell(y_s, c^\top g_s) + \nu\lVert c\rVert^2$ by damped Newton steps to machine precision.

    Equals scikit-learn's `LogisticRegression(C=1/(2 * ridge), fit_intercept=False)`; a row of ones in `design` is an
    intercept and is penalised like any other. Memory: one m by m Hessian per run.

    Args:
        design: $G$, one example per column.
        labels: $y \in \{0, 1\}$.
        ridge: $\nu > 0$; several values are solved side by side, along a new first axis.
        start: where to start for a single value of `ridge`; zero by default.
        steps: most Newton steps.

    Raises:
        ValueError: ridge is not positive.
    """
    nu = torch.as_tensor(ridge, dtype=design.dtype, device=design.device)
    if not bool((nu > 0).all()):
        raise ValueError(f"ridge must be positive, got {ridge}")
    c = design.new_zeros(*nu.shape, *design.shape[:-1], 1) if start is None else start
    nu = nu.reshape([*nu.shape, *[1] * (design.ndim - 2)])
    eye = torch.eye(design.shape[-2], dtype=design.dtype, device=design.device)

    def value(c: Tensor) -> Tensor:
        score = c.mT @ design
        return (softplus(score) - labels * score).sum((-2, -1)) + nu * c.square().sum((-2, -1))

    now = value(c)
    for _ in range(steps):
        prob = (c.mT @ design).sigmoid()
        gradient = design @ (prob - labels).mT + 2 * nu[..., None, None] * c
        hessian = (design * (prob * (1 - prob))) @ design.mT + 2 * nu[..., None, None] * eye
        newton = torch.linalg.solve(hessian, gradient)
        slope, size = (newton * gradient).sum((-2, -1)), torch.ones_like(now)
        for _ in range(30):  # halve where Armijo's condition fails
            trial = value(c - size[..., None, None] * newton)
            short = trial > now - 1e-4 * size * slope + 1e-12 * now.abs()
            if not bool(short.any()):
                break
            size = torch.where(short, size / 2, size)
        c, now = c - size[..., None, None] * newton, trial
        if bool((slope <= 1e-24 * (1 + now.abs())).all()):
            break
    return c


def auc(scores: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> float:
    """Probability that a positive example scores above a negative one, ties counting half."""
    positive, negative = scores[labels > 0.5], scores[labels <= 0.5].sort().values
    below = torch.searchsorted(negative, positive).double() + torch.searchsorted(negative, positive, right=True)
    return float(below.mean() / 2 / len(negative))


def training_threshold(scores: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> float:
    """The score from which on examples are called positive: the ROC point with the largest TPR - FPR.

    Source: the official evaluation; computed on training data only.
    """
    order = scores.argsort(descending=True)
    ranked, hits = scores[order], labels[order]
    gain = hits.cumsum(0) / hits.sum() - (1 - hits).cumsum(0) / (1 - hits).sum()
    last_of_tie = torch.cat([ranked[1:] != ranked[:-1], torch.ones_like(ranked[:1], dtype=torch.bool)])
    return float(ranked[torch.where(last_of_tie, gain, -torch.inf).argmax()])


def f_score(preds: Float[Tensor, " n"], labels: Float[Tensor, " n"]) -> float:
    """F1 of the positive class; 0 if nothing is predicted positive."""
    both = float((preds * labels).sum())
    return 2 * both / float(preds.sum() + labels.sum()) if both else 0.0
