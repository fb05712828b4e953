r"""Linear classifiers to compare RSS training with: supervised, self-training, entropy, EM, components, transductive.

r independent problems, m labelled and n unlabelled examples, d inputs. All are lines through the origin, as the
simulation is symmetric; the result is a unit normal per problem.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from glocal.nn.training import Recipe, train
from glocal.supervision.ood_unlabeled import class_mean
from glocal.supervision.ood_unlabeled_data import Problem

Directions = Float[Tensor, "r d"]


def principal_component(problem: Problem) -> Directions:
    """First principal component of the unlabelled points; the labels choose its sign."""
    _, _, axes = torch.linalg.svd(problem.unlabelled, full_matrices=False)
    top = axes[:, 0]
    sign = (top * class_mean(problem.x, problem.y)).sum(1, keepdim=True).sign()
    return top * torch.where(sign == 0, torch.ones_like(sign), sign)


def expectation_maximisation(problem: Problem, *, n_steps: int = 40) -> Directions:
    r"""EM for the mixture $\frac12N(\mu, \sigma^2I) + \frac12N(-\mu, \sigma^2I)$ from the labels on.

    The posterior mean of an unlabelled sign is $\tanh(\langle\mu, x\rangle/\sigma^2)$, and $\mu$ and $\sigma$ follow in
    closed form. It is the efficient estimator when there is no shift, since it knows the model.
    """
    x, y, u = problem.x, problem.y, problem.unlabelled
    total, d = x.shape[1] + u.shape[1], x.shape[2]
    second_moment = (x.square().sum((1, 2)) + u.square().sum((1, 2))) / total
    labelled_sum = (y[..., None] * x).sum(1)
    mu = labelled_sum / x.shape[1]
    for _ in range(n_steps):
        variance = ((second_moment - mu.square().sum(1)) / d).clamp(min=1e-6)
        posterior = torch.tanh((u @ mu[..., None]).squeeze(-1) / variance[:, None])
        mu = (labelled_sum + (posterior[..., None] * u).sum(1)) / total
    return mu / mu.norm(dim=1, keepdim=True)


def _fitted(
    problem: Problem,
    labelled: Callable[[Tensor], Tensor],
    unlabelled: Callable[[Tensor], Tensor],
    weight: float,
    ridge: float,
    n_steps: int,
) -> Directions:
    """Minimise a labelled margin loss plus `weight` times an unlabelled one plus `ridge` times the squared norm."""
    theta = class_mean(problem.x, problem.y)[:, None].requires_grad_()
    columns = [points.transpose(1, 2).contiguous() for points in (problem.x, problem.unlabelled)]

    def loss_at(step: int) -> Float[Tensor, " r"]:
        risk = labelled(problem.y * (theta @ columns[0])[:, 0]).mean(1)
        if weight > 0:
            rising = weight * min(1.0, step / max(1.0, 0.2 * n_steps))
            risk = risk + rising * unlabelled((theta @ columns[1])[:, 0]).mean(1)
        return risk + ridge * theta.square().sum((1, 2))

    train([theta], loss_at, Recipe(n_steps, 0.03, optimizer="adam"))
    w = theta.detach()[:, 0]
    return w / w.norm(dim=1, keepdim=True)


def entropy_minimisation(
    problem: Problem, *, weight: float = 1.0, ridge: float = 1e-3, n_steps: int = 150
) -> Directions:
    """Logistic loss on the labels plus `weight` times the mean entropy of the predictions on unlabelled points."""

    def entropy(score: Tensor) -> Tensor:
        return F.softplus(score) - score * torch.sigmoid(score)

    return _fitted(problem, lambda s: F.softplus(-s), entropy, weight, ridge, n_steps)


def transductive_svm(problem: Problem, *, weight: float = 1.0, ridge: float = 1e-2, n_steps: int = 150) -> Directions:
    """Hinge loss on the labels plus `weight` times the symmetric hinge $\\max(0, 1 - |f|)$ on unlabelled points."""

    def hinge(margin: Tensor) -> Tensor:
        return (1 - margin).clamp(min=0)

    return _fitted(problem, hinge, lambda s: hinge(s.abs()), weight, ridge, n_steps)


def logistic_regression(problem: Problem, *, ridge: float = 1e-3, n_steps: int = 150) -> Directions:
    """Logistic regression on the labels alone."""
    return _fitted(problem, lambda s: F.softplus(-s), torch.zeros_like, 0.0, ridge, n_steps)


def linear_svm(problem: Problem, *, c: float = 1.0) -> Directions:
    """scikit-learn's `LinearSVC` with penalty `c`, one problem after the other."""
    from sklearn.svm import LinearSVC

    rows = []
    for x, y in zip(problem.x.cpu().numpy(), problem.y.cpu().numpy(), strict=True):
        model = LinearSVC(C=c, fit_intercept=False, dual=True, random_state=0, max_iter=20000).fit(x, y)
        rows.append(model.coef_[0] / np.linalg.norm(model.coef_[0]))
    return torch.tensor(np.array(rows), dtype=problem.x.dtype, device=problem.x.device)


def self_training(problem: Problem, *, ridge: float = 1e-3, n_rounds: int = 8, n_steps: int = 40) -> Directions:
    """Logistic regression that labels all unlabelled points itself and is fitted again, `n_rounds` times."""
    w = logistic_regression(problem, ridge=ridge)
    for _ in range(n_rounds if problem.unlabelled.shape[1] else 0):
        guessed = torch.where((problem.unlabelled @ w[..., None]).squeeze(-1) < 0, -1.0, 1.0)
        pseudo = Problem(
            torch.cat([problem.x, problem.unlabelled], 1),
            torch.cat([problem.y, guessed], 1),
            problem.unlabelled[:, :0],
            problem.mean,
        )
        w = logistic_regression(pseudo, ridge=ridge, n_steps=n_steps)
    return w
