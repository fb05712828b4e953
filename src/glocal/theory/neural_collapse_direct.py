r"""The unconstrained-features problem itself, minimised numerically (Dang et al., ICML 2023, arXiv:2301.00437).

Independent problems lie side by side on a leading axis `runs`: seeds, penalties or class sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class DirectProblem:
    r"""$\min \frac1{2N}\lVert W_M\cdots W_1H_1 + b\mathbf 1^\top - Y\rVert_F^2$ plus penalties, or its CE form.

    Args:
        onehot: $Y$, one column per example; zero columns pad runs with fewer examples and count for nothing.
        lambda_h: $\lambda_H$ of each run.
        lambda_w: $\lambda_{W_l}$ of each layer and run; the number of rows is the depth $M$.
        d: width of the features and of all hidden layers.
        loss: `"mse"` ($\frac1{2N}$ sum of squares) or `"ce"` ($\frac1N$ sum of cross-entropies).
        has_bias: whether the last layer has a bias, which is never penalised.
    """

    onehot: Float[Tensor, "runs k n"]
    lambda_h: Float[Tensor, " runs"]
    lambda_w: Float[Tensor, "layers runs"]
    d: int
    loss: str = "mse"
    has_bias: bool = False

    def __post_init__(self) -> None:
        if self.loss not in ("mse", "ce"):
            raise ValueError(f"loss must be 'mse' or 'ce', got {self.loss!r}")


@dataclass(frozen=True)
class Factors:
    """Free features, layers $W_1, \\dots, W_M$ (each applied from the left) and bias (zero if there is none)."""

    features: Float[Tensor, "runs d n"]
    weights: tuple[Float[Tensor, "runs _ _"], ...]
    bias: Float[Tensor, "runs k"]

    @property
    def logits(self) -> Float[Tensor, "runs k n"]:
        r"""$W_M\cdots W_1H_1 + b\mathbf 1^\top$."""
        out = self.features
        for weight in self.weights:
            out = weight @ out
        return out + self.bias[..., None]


def direct_problem(
    class_sizes: Sequence[Sequence[int]],
    lambdas: Sequence[float],
    *,
    depth: int,
    d: int,
    loss: str = "mse",
    has_bias: bool = False,
    device: str = "cpu",
) -> DirectProblem:
    r"""One run per entry of `class_sizes` and `lambdas`, with $\lambda_H = \lambda_{W_l} = \lambda$ in each.

    Raises:
        ValueError: if the two lists differ in length, or the depth is not positive.
    """
    if len(class_sizes) != len(lambdas):
        raise ValueError(f"every run needs class sizes and a lambda, got {len(class_sizes)} and {len(lambdas)}")
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    k, width = len(class_sizes[0]), max(sum(sizes) for sizes in class_sizes)
    onehot = torch.zeros(len(class_sizes), k, width, dtype=torch.float64)
    for run, sizes in enumerate(class_sizes):
        labels = torch.arange(k).repeat_interleave(torch.tensor(sizes))
        onehot[run, :, : len(labels)] = F.one_hot(labels, k).T
    lam = torch.tensor(lambdas, dtype=torch.float64, device=device)
    return DirectProblem(onehot.to(device), lam, lam.expand(depth, -1), d, loss, has_bias)


def gaussian_start(problem: DirectProblem, *, generator: torch.Generator, std: float | None = None) -> Factors:
    r"""Independent normal entries of standard deviation `std`, by default $1/\sqrt d$; padding and bias are zero."""
    (runs, k, n), d, depth = problem.onehot.shape, problem.d, len(problem.lambda_w)
    std = 1 / math.sqrt(d) if std is None else std
    shapes = [(d, n)] + [(d, d)] * (depth - 1) + [(k, d)]
    device = generator.device
    draws = [std * torch.randn(runs, *s, generator=generator, dtype=torch.float64, device=device) for s in shapes]
    used = problem.onehot.sum(1, keepdim=True)
    bias = torch.zeros(runs, k, dtype=torch.float64, device=device)
    return Factors(draws[0] * used, tuple(draws[1:]), bias)


def realize(problem: DirectProblem, logits: Float[Tensor, "runs k k"]) -> Factors:
    r"""Cheapest factors whose class means have the given logits $Z$, without bias.

    With $ZD = U\mathrm{diag}(\sigma)V^\top$, $D = \mathrm{diag}(\sqrt{n_k})$, every layer and the features carry
    the singular values $\sqrt{\pi/\lambda}$ with $\pi = (\lambda_H\prod_l\lambda_{W_l}\sigma^2)^{1/(M+1)}$, which costs
    $\frac{M+1}2\sum\pi$.

    Args:
        problem: sizes and penalties; `d` must be at least `k`.
        logits: one matrix per run, column $k$ for the examples of class $k$.

    Source: the reduction to Schatten quasi-norms.
    """
    (runs, k, _), depth = problem.onehot.shape, len(problem.lambda_w)
    root = problem.onehot.sum(-1).sqrt()
    left, sigma, right = torch.linalg.svd(logits * root[:, None])
    sigma = sigma.where(sigma > 1e-12 * sigma[:, :1], 0.0)  # small powers would blow up rounding errors
    shares = (problem.lambda_h * problem.lambda_w.prod(0))[:, None] * sigma.square()
    shares = shares ** (1 / (depth + 1))
    values = [(shares / lam[:, None]).sqrt() for lam in (problem.lambda_h, *problem.lambda_w)]
    features = problem.onehot.new_zeros(runs, problem.d, problem.onehot.shape[-1])
    features[:, :k] = (values[0][..., None] * right / root[:, None]) @ problem.onehot
    weights = []
    for layer in range(depth):
        shape = (k if layer == depth - 1 else problem.d, problem.d)
        weight = problem.onehot.new_zeros(runs, *shape)
        weight[:, :k, :k] = torch.diag_embed(values[layer + 1])
        weights.append(weight)
    weights[-1][:, :, :k] = left * values[-1][:, None]
    return Factors(features, tuple(weights), problem.onehot.new_zeros(runs, k))


def with_noise(problem: DirectProblem, factors: Factors, std: float, *, generator: torch.Generator) -> Factors:
    """The same factors plus independent normal noise of standard deviation `std`; padding and bias stay."""
    noise = gaussian_start(problem, generator=generator, std=std)
    weights = tuple(a + b for a, b in zip(factors.weights, noise.weights, strict=True))
    return replace(factors, features=factors.features + noise.features, weights=weights)


def objective(problem: DirectProblem, factors: Factors) -> Float[Tensor, " runs"]:
    r"""The regularised objective of each run.

    Source: the problem statement; $\lambda_H$ multiplies $\frac12\lVert H_1\rVert_F^2$ over all $N$ columns.
    """
    onehot, logits = problem.onehot, factors.logits
    used = onehot.sum(1)
    if problem.loss == "mse":
        losses = 0.5 * (logits - onehot).square().sum(1)
    else:
        losses = logits.logsumexp(1) - (onehot * logits).sum(1)
    value = (losses * used).sum(-1) / used.sum(-1)
    value = value + 0.5 * problem.lambda_h * factors.features.square().sum((1, 2))
    for lam, weight in zip(problem.lambda_w, factors.weights, strict=True):
        value = value + 0.5 * lam * weight.square().sum((1, 2))
    return value


def _leaves(problem: DirectProblem, factors: Factors) -> list[Tensor]:
    bias = [factors.bias] if problem.has_bias else []
    return [x.detach().clone().requires_grad_() for x in (factors.features, *factors.weights, *bias)]


def _factors(problem: DirectProblem, leaves: Sequence[Tensor], start: Factors) -> Factors:
    depth = len(problem.lambda_w)
    bias = leaves[-1] if problem.has_bias else start.bias
    return Factors(leaves[0], tuple(leaves[1 : depth + 1]), bias)


def _detached(factors: Factors) -> Factors:
    return Factors(factors.features.detach(), tuple(w.detach() for w in factors.weights), factors.bias.detach())


def minimize_lbfgs(problem: DirectProblem, start: Factors, *, steps: int = 3000, tolerance: float = 1e-9) -> Factors:
    r"""L-BFGS with strong-Wolfe line search on the sum of all runs, until no gradient entry exceeds `tolerance`.

    The runs do not interact, so a minimum of the sum is a minimum of each; only the step lengths are shared.
    """
    leaves = _leaves(problem, start)
    optimizer = torch.optim.LBFGS(
        leaves,
        max_iter=steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=tolerance,
        tolerance_change=0.0,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(problem, _factors(problem, leaves, start)).sum()
        value.backward()
        return value

    optimizer.step(closure)
    return _detached(_factors(problem, leaves, start))


def gradient_descent(
    problem: DirectProblem,
    start: Factors,
    *,
    steps: int,
    lr: float = 0.1,
    momentum: float = 0.9,
    record_every: int = 100,
) -> tuple[list[int], list[Factors]]:
    r"""Full-batch gradient descent with heavy-ball momentum, as in the official synthetic experiments.

    Returns:
        The recorded steps (0 and the last included) and the factors at each.
    """
    leaves = _leaves(problem, start)
    optimizer = torch.optim.SGD(leaves, lr=lr, momentum=momentum)
    recorded_steps, recorded = [0], [start]
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        objective(problem, _factors(problem, leaves, start)).sum().backward()
        optimizer.step()
        if step % record_every == 0 or step == steps:
            recorded_steps.append(step)
            now = _factors(problem, [x.detach().clone() for x in leaves], start)
            recorded.append(now)
    return recorded_steps, recorded


def best_of(problem: DirectProblem, candidates: Sequence[Factors]) -> tuple[Factors, Int[Tensor, " runs"]]:
    """For each run the candidate of lowest objective, and which one it was."""
    values = torch.stack([objective(problem, candidate) for candidate in candidates])
    winner = values.argmin(0)
    runs = torch.arange(len(winner), device=winner.device)

    def pick(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors))[winner, runs]

    weights = [pick([c.weights[layer] for c in candidates]) for layer in range(len(problem.lambda_w))]
    best = replace(
        candidates[0],
        features=pick([c.features for c in candidates]),
        weights=tuple(weights),
        bias=pick([c.bias for c in candidates]),
    )
    return best, winner
