"""One layer of linear self-attention learns one gradient step in context (Mahankali et al. 2024, arXiv:2307.03576).

Sizes: `runs` independent trainings side by side, `tasks` regression problems, `n` context examples, `d` features,
`e = d + 1` entries of a token. The convex relaxation that certifies global optimality is in `icl_gd_lifted`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.icl_gd_data import FAMILIES, Tasks


class LayerWeights(NamedTuple):
    """The four trained arrays of a layer: $W_K$, $W_Q$, $W_V$ and the read-out $h$, per run."""

    key: Float[Tensor, "runs e e"]
    query: Float[Tensor, "runs e e"]
    value: Float[Tensor, "runs e e"]
    head: Float[Tensor, "runs e"]


def init_layer(
    runs: int, d: int, *, generator: torch.Generator, std: float | None = None, dtype: torch.dtype = torch.float64
) -> LayerWeights:
    r"""Gaussian start. The loss has a saddle at zero, of order four: a much smaller start stalls there.

    Args:
        runs: independent trainings.
        d: features of $x$.
        generator: source of randomness; its device is that of the weights.
        std: standard deviation of every entry; $0.5 / \sqrt{d + 1}$ by default.
        dtype: floating-point type.
    """
    e = d + 1
    std = 0.5 / math.sqrt(e) if std is None else std

    def draw(*size: int) -> Tensor:
        return std * torch.randn(size, generator=generator, device=generator.device, dtype=dtype)

    return LayerWeights(draw(runs, e, e), draw(runs, e, e), draw(runs, e, e), draw(runs, e))


def tokens(tasks: Tasks) -> tuple[Float[Tensor, "runs tasks n e"], Float[Tensor, "runs tasks e"]]:
    r"""Context tokens $v_i = [x_i; y_i]$ and the query token $v_q = [x_q; 0]$, whose label slot is empty."""
    empty = torch.zeros_like(tasks.query[..., :1])
    return torch.cat([tasks.x, tasks.y[..., None]], -1), torch.cat([tasks.query, empty], -1)


def layer_products(weights: LayerWeights) -> tuple[Float[Tensor, "runs e"], Float[Tensor, "runs e e"]]:
    r"""The only two combinations that matter: $u = W_V^\top h$ and $A = W_K^\top W_Q$."""
    return (weights.value.mT @ weights.head[..., None]).squeeze(-1), weights.key.mT @ weights.query


def layer_predictions(weights: LayerWeights, tasks: Tasks, *, is_softmax: bool = False) -> Float[Tensor, "runs tasks"]:
    r"""Output $\hat y = \frac1n \sum_{i \le n} h^\top W_V v_i \; v_i^\top W_K^\top W_Q v_q$ of the layer.

    The sum runs over the context only: the query does not attend to itself. The factor $1/n$ conditions the
    training and is not in the paper; with `is_softmax` the weights $v_i^\top W_K^\top W_Q v_q / n$ become a softmax.

    Source: Section 2, equation of the linear self-attention layer.
    """
    u, a = layer_products(weights)
    context, query = tokens(tasks)
    keys = query @ a.mT  # rows (A v_q)^T
    scores = (context * keys[:, :, None]).sum(-1)
    scores = scores.softmax(-1) if is_softmax else scores / tasks.n_context
    values = (context.flatten(1, 2) @ u[..., None]).view_as(scores)
    return (scores * values).sum(-1)


class Readout(NamedTuple):
    r"""What a linear layer computes, with the factor $1/n$ absorbed, so that it compares with $\eta^\star I$.

    $\hat y = y^\top X M x_q + (\text{label}^\top x_q)\, y^\top y + (\text{terms of } u_{1:d})$.
    """

    matrix: Float[Tensor, "*batch d d"]
    label: Float[Tensor, "*batch d"]
    inputs: Float[Tensor, "*batch"]


def readout(u: Float[Tensor, "*batch e"], a: Float[Tensor, "*batch e e"], n: int) -> Readout:
    r"""Invariants $M = u_{d+1} A_{1:d,1:d}$, $u_{d+1} A_{d+1,1:d}$, $\lVert u_{1:d}\rVert \lVert A_{:,1:d}\rVert_F$.

    Individual parameters are not identified (scale and sign move between $u$ and $A$); these products are, up to
    the symmetry of $X^\top X$. Theorem 1: $M = \eta^\star I$ and the other two vanish.
    """
    scaled = u[..., -1:, None] * a[..., :, :-1] / n
    inputs = u[..., :-1].norm(dim=-1) * a[..., :, :-1].norm(dim=(-2, -1)) / n
    return Readout(scaled[..., :-1, :], scaled[..., -1, :], inputs)


# closed forms


def optimal_step_size(n: int, d: int, noise: float) -> float:
    r"""$\eta^\star = 1 / (n + d + 1 + \sigma^2)$, the step on $\frac12\lVert Xw - y\rVert^2$ that the best layer takes.

    Source: Theorem 1, $\eta^\star = E[\hat w^\top X^\top y] / E[y^\top X X^\top y]$, with Wishart moments.
    """
    return 1 / (n + d + 1 + noise**2)


def optimal_loss(n: int, d: int, noise: float) -> float:
    r"""$L^\star = d + \sigma^2 - nd\,\eta^\star$, the smallest loss of any layer on isotropic tasks."""
    return d + noise**2 - n * d * optimal_step_size(n, d, noise)


def family_step_size(n: int, d: int, noise: float, family: str) -> float:
    r"""Best step size $\eta_f$ on tasks of a nonlinear family,

    $$\eta_f = \frac{E\lVert a_f\rVert^2}{E[y_1^2 \lVert x_1\rVert^2] + (n-1) E\lVert a_f\rVert^2}.$$

    Source: Theorem 3, with $E[y_1^2\lVert x_1\rVert^2] = E[f^2\lVert x\rVert^2] + \sigma^2 d$.
    """
    law = FAMILIES[family]
    return law.first_moment / (law.energy(d) + noise**2 * d + (n - 1) * law.first_moment)


# predictors that need no training


def krylov_features(tasks: Tasks, steps: int) -> Float[Tensor, "runs tasks steps"]:
    r"""$x_q^\top (X^\top X)^{k-1} X^\top y$, $k \ge 1$; `steps` gradient steps from zero stay in their span."""
    g = (tasks.x.mT @ tasks.y[..., None]).squeeze(-1)
    features = []
    for _ in range(steps):
        features.append((tasks.query * g).sum(-1))
        g = (tasks.x.mT @ (tasks.x @ g[..., None])).squeeze(-1)
    return torch.stack(features, -1)


def fit_gradient_steps(tasks: Tasks, steps: int) -> Float[Tensor, "runs steps"]:
    r"""Best coefficients of `krylov_features` by least squares over tasks.

    For one step this is $\eta$. For two, $c_1 = \eta_1 + \eta_2$ and $c_2 = -\eta_1\eta_2$: the best two steps.
    """
    features = krylov_features(tasks, steps)
    scale = features.square().mean(1, keepdim=True).sqrt()
    return torch.linalg.lstsq(features / scale, tasks.target[..., None]).solution.squeeze(-1) / scale[:, 0]


def gradient_step_predictions(tasks: Tasks, coefficients: Float[Tensor, "runs steps"]) -> Float[Tensor, "runs tasks"]:
    """Predictions of one or several gradient steps from zero, by the coefficients of `fit_gradient_steps`."""
    return (krylov_features(tasks, coefficients.shape[1]) @ coefficients[..., None]).squeeze(-1)


def ridge_predictions(tasks: Tasks, penalty: float) -> Float[Tensor, "runs tasks"]:
    r"""$x_q^\top (X^\top X + \lambda I)^{-1} X^\top y$; with $\lambda = \sigma^2$ the Bayes-optimal predictor.

    Args:
        tasks: the tasks.
        penalty: $\lambda \ge 0$; zero gives least squares of minimum norm.

    Raises:
        ValueError: for a negative penalty.
    """
    if penalty < 0:
        raise ValueError(f"penalty must not be negative, got {penalty}")
    gram, cross = tasks.x.mT @ tasks.x, tasks.x.mT @ tasks.y[..., None]
    if penalty == 0:
        w = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ cross
    else:
        w = torch.linalg.solve(gram + penalty * torch.eye(len(gram[0, 0]), dtype=gram.dtype, device=gram.device), cross)
    return (tasks.query * w.squeeze(-1)).sum(-1)


# training on fresh tasks

Weights = TypeVar("Weights", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Training:
    """Weights along training: `weights[j]` are those after `steps[j]` updates; `loss` is the batch loss there."""

    steps: tuple[int, ...]
    weights: tuple[tuple[Tensor, ...], ...]
    loss: Float[Tensor, "runs checkpoints"]


def train(
    objective: Callable[[tuple[Tensor, ...]], Float[Tensor, " runs"]],
    init: Weights,
    *,
    steps: int = 1500,
    lr: float = 0.01,
    clip: float = 1.0,
    record_every: int = 50,
) -> tuple[Weights, Training]:
    r"""Adam with a cosine schedule and clipped gradients, all runs side by side.

    Args:
        objective: loss of every run as a function of the weights; draws a fresh batch at each call, or does not.
        init: arrays with a leading axis of runs.
        steps: number of updates.
        lr: initial step size, annealed to zero along a cosine.
        clip: largest gradient norm of a run.
        record_every: steps between two recorded weights; the start and the end are always recorded.

    Returns:
        The trained weights and the record.

    Raises:
        ValueError: if `steps`, `lr`, `clip` or `record_every` is not positive.

    Source: Section 2, minimisation of the population loss; the optimiser is ours (the paper has a theorem instead).
    """
    for name, value in (("steps", steps), ("lr", lr), ("clip", clip), ("record_every", record_every)):
        if value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")
    arrays = [array.detach().clone().requires_grad_() for array in init]
    optimizer = torch.optim.Adam(arrays, lr=lr)
    rebuild: Callable[..., Any] = getattr(type(init), "_make", tuple)  # a NamedTuple stays one
    at, saved, losses = [], [], []
    for k in range(steps):
        loss = objective(rebuild(arrays))
        gradients = torch.autograd.grad(loss.sum(), arrays)
        if k % record_every == 0 or k == steps - 1:
            at.append(k)
            saved.append(rebuild([array.detach().clone() for array in arrays]))
            losses.append(loss.detach())
        norms = torch.cat([gradient.flatten(1) for gradient in gradients], 1).norm(dim=1)
        factors = (clip / norms).clamp_max(1.0)
        for array, gradient in zip(arrays, gradients, strict=True):
            array.grad = gradient * factors.view(-1, *[1] * (gradient.ndim - 1))
        optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * k / steps))
        optimizer.step()
    final = rebuild([array.detach() for array in arrays])
    return final, Training(tuple(at), tuple(saved), torch.stack(losses, 1))


def squared_error(predictions: Float[Tensor, "runs tasks"], tasks: Tasks) -> Float[Tensor, " runs"]:
    r"""Empirical loss $\frac1N\sum(\hat y - y_q)^2$ of each run."""
    return (predictions - tasks.target).square().mean(-1)
