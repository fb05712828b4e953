"""Sparse deep kernel machines: inducing points and minibatches (Yang et al. 2023, arXiv:2108.13097).

Sizes: `runs` machines side by side, `p` inducing points, `n` data points, `k` output columns, `depth` hidden layers.
Without a hidden layer this is a sparse variational Gaussian process; at $\\nu = \\infty$ it is a sparse NNGP.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.theory.dkm import Fit
from glocal.theory.dkm_kernels import deep_kernel, input_gram, kernel_named


@dataclass(frozen=True)
class SparseMachine:
    r"""Parameters of a sparse machine; everything but `nu` can be learned.

    Args:
        inducing: inducing inputs $X_i$.
        factors: lower triangular $W_\ell$ with $G_\ell^{ii} = L_\ell W_\ell W_\ell^\top L_\ell^\top$, where
            $L_\ell L_\ell^\top = K(G_{\ell-1}^{ii})$.
        mean: $q(f_i)$ has mean $L_{L+1}$ times this.
        root: and covariance $L_{L+1}RR^\top L_{L+1}^\top$, shared by the output columns.
        log_gain: logarithm of a factor on $G_0$: minus twice that of the lengthscale.
        log_height: logarithm of a factor on the output kernel.
        log_sigma2: logarithm of the noise variance (Gaussian likelihood only).
    """

    inducing: Float[Tensor, "runs p d"]
    factors: Float[Tensor, "runs depth p p"]
    mean: Float[Tensor, "runs p k"]
    root: Float[Tensor, "runs p p"]
    log_gain: Float[Tensor, " runs"]
    log_height: Float[Tensor, " runs"]
    log_sigma2: Float[Tensor, " runs"]

    def tensors(self) -> tuple[Tensor, ...]:
        """The parameters, in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))


def initial_machine(
    inducing: Float[Tensor, "runs p d"],
    targets: Float[Tensor, "runs p k"],
    depth: int,
    kernel: str,
    *,
    sigma2: float = 0.1,
    jitter: float = 1e-4,
) -> SparseMachine:
    """The NNGP, with $q(f_i)$ from regression on the inducing points' own targets (one-hot for classes).

    Args:
        inducing: inducing inputs, usually training points.
        targets: their targets.
        depth: number of hidden layers.
        kernel: name of the kernel.
        sigma2: first noise variance.
        jitter: as in training.
    """
    runs, p, _ = inducing.shape
    grams = [input_gram(inducing), *deep_kernel(input_gram(inducing), kernel, depth, jitter)]
    zeros = inducing.new_zeros(runs)
    noise = zeros + math.log(sigma2)
    mean, root = gaussian_outputs(kernel_named(kernel)(grams[-1], jitter), targets.to(inducing), noise.exp())
    factors = torch.eye(p).to(inducing).expand(runs, depth, p, p).clone()
    return SparseMachine(inducing.clone(), factors, mean, root, zeros, zeros.clone(), noise)


def gaussian_outputs(
    kernel: Float[Tensor, "runs p p"], targets: Float[Tensor, "runs p k"], sigma2: Float[Tensor, " runs"]
) -> tuple[Float[Tensor, "runs p k"], Float[Tensor, "runs p p"]]:
    r"""Whitened mean and root of the best $q$ when the data are the inducing points and the noise is Gaussian.

    The posterior of a linear model with $H = L^\top$: covariance $\Lambda^{-1}$ and mean $\Lambda^{-1}HY/\sigma^2$ with
    $\Lambda = I + HH^\top/\sigma^2$.
    """
    half = torch.linalg.cholesky(kernel).mT
    noise = sigma2[:, None, None]
    covariance = torch.linalg.inv(torch.eye(half.shape[1]).to(half) + half @ half.mT / noise)
    return covariance @ half @ targets / noise, torch.linalg.cholesky(0.5 * (covariance + covariance.mT))


@dataclass(frozen=True)
class Outputs:
    r"""What a machine says about a batch: moments of $q(f_b)$, the regularisers, and $G_1$ of the inducing points."""

    mean: Float[Tensor, "runs n k"]
    variance: Float[Tensor, "runs n"]
    gram_kl: Float[Tensor, "runs depth"]
    output_kl: Float[Tensor, " runs"]
    grams: list[Float[Tensor, "runs p p"]]


def forward(machine: SparseMachine, x: Float[Tensor, "runs n d"], kernel: str, jitter: float = 1e-4) -> Outputs:
    r"""Propagate a batch through the layers and read off $q(f_b)$.

    With $H = L^{-1}K_{it}$ the two propagation formulas become $G_{it} = LWW^\top H$ and
    $\mathrm{diag}\,G_{tt} = K_{tt} - \sum H^2 + \sum (W^\top H)^2$, and every KL term becomes
    $\frac12(\lVert W\rVert^2 - p) - \sum\log|W_{jj}|$.

    Args:
        machine: the parameters.
        x: the batch.
        kernel: name of the kernel.
        jitter: added to the diagonal of every kernel.

    Cost: $O(p^3 + n p^2)$ per layer.
    """
    rule = kernel_named(kernel)
    gain = machine.log_gain.exp()
    gram = gain[:, None, None] * input_gram(machine.inducing)
    cross = gain[:, None, None] * input_gram(machine.inducing, x)
    diagonal = gain[:, None] * x.square().mean(2)
    grams, divergences = [], []
    for layer in range(machine.factors.shape[1]):
        factor, half, prior = _whiten(rule, gram, cross, diagonal, jitter)
        w = machine.factors[:, layer].tril()
        root, inner = factor @ w, w.mT @ half
        gram, cross = root @ root.mT, root @ inner
        diagonal = (prior - half.square().sum(1) + inner.square().sum(1)).clamp_min(1e-10)
        grams.append(gram)
        divergences.append(_white_kl(w))
    height = machine.log_height.exp()
    _, half, prior = _whiten(rule, gram, cross, diagonal, jitter)
    root = machine.root.tril()
    variance = prior - half.square().sum(1) + (root.mT @ half).square().sum(1)
    mean = height.sqrt()[:, None, None] * (half.mT @ machine.mean)
    output_kl = machine.mean.shape[2] * _white_kl(root) + 0.5 * machine.mean.square().sum((1, 2))
    gram_kl = torch.stack(divergences, 1) if divergences else x.new_zeros(len(x), 0)
    return Outputs(mean, height[:, None] * variance.clamp_min(1e-10), gram_kl, output_kl, grams)


def _whiten(
    rule: Callable[..., Tensor], gram: Tensor, cross: Tensor, diagonal: Tensor, jitter: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""$L$, $H = L^{-1}K_{it}$ and the diagonal of $K_{tt}$."""
    factor = torch.linalg.cholesky(rule(gram, jitter))
    kernel = rule.cross(cross, gram.diagonal(dim1=1, dim2=2), diagonal)  # type: ignore[attr-defined]
    half = torch.linalg.solve_triangular(factor, kernel, upper=False)
    return factor, half, rule.diagonal(diagonal) + jitter  # type: ignore[attr-defined]


def _white_kl(factor: Tensor) -> Tensor:
    r"""$D_{KL}(N(0, WW^\top)\,\Vert\,N(0, I))$ of a triangular $W$."""
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return 0.5 * (factor.square().sum((-2, -1)) - factor.shape[-1]) - diagonal.abs().log().sum(-1)


def gaussian_expectation(
    outputs: Outputs, y: Float[Tensor, "runs n k"], log_sigma2: Float[Tensor, " runs"]
) -> Float[Tensor, "runs n"]:
    r"""$E_q \log N(y; f, \sigma^2)$, summed over output columns."""
    k, sigma2 = y.shape[2], log_sigma2.exp()[:, None]
    error = (y - outputs.mean).square().sum(2) + k * outputs.variance
    return -0.5 * (error / sigma2 + k * (log_sigma2[:, None] + math.log(2 * math.pi)))


def categorical_expectation(
    outputs: Outputs, labels: Int[Tensor, "runs n"], noise: Float[Tensor, "samples runs n k"]
) -> Float[Tensor, "runs n"]:
    r"""$E_q \log\mathrm{softmax}(f)_y$ as a mean over given standard normal draws."""
    logits = outputs.mean + outputs.variance.sqrt()[..., None] * noise
    chosen = logits.gather(-1, labels.expand(len(noise), *labels.shape)[..., None]).squeeze(-1)
    return (chosen - logits.logsumexp(-1)).mean(0)


def class_log_probs(outputs: Outputs, noise: Float[Tensor, "samples runs n k"]) -> Float[Tensor, "runs n k"]:
    r"""$\log E_q\,\mathrm{softmax}(f)$, the predictive log probabilities of all classes."""
    logits = outputs.mean + outputs.variance.sqrt()[..., None] * noise
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(noise))


def train_sparse(
    machine: SparseMachine,
    kernel: str,
    nu: Float[Tensor, " runs"],
    sampler: Callable[[], tuple[Tensor, Tensor]],
    likelihood: Callable[[Outputs, Tensor, SparseMachine], Tensor],
    n_total: int,
    *,
    steps: int = 300,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.8, 0.9),
    milestones: tuple[float, ...] = (0.4, 0.8),
    learn_hypers: bool = True,
    jitter: float = 1e-4,
) -> tuple[SparseMachine, Float[Tensor, "steps runs"]]:
    r"""Adam on the bound per data point, that is on one $n$-th of

    $$\frac nB\sum_b E_q\log p(y_b \mid f_b) - D_{KL}(q(f_i)\,\Vert\,N(0, K(G_L^{ii}))) - \sum_\ell\nu_\ell KL_\ell.$$

    Args:
        machine: the start.
        kernel: name of the kernel.
        nu: weight of every hidden layer's KL; zero removes it, `inf` keeps a run at the NNGP.
        sampler: returns a batch, inputs `(runs, B, d)` and targets.
        likelihood: outputs, targets and machine to expected log likelihoods `(runs, B)`.
        n_total: number $n$ of training points.
        steps: Adam steps.
        lr: step size; multiplied by 0.1 at each milestone.
        betas: decay rates of Adam (the group's values).
        milestones: as shares of the steps.
        learn_hypers: whether gain, height and noise are learned.
        jitter: added to the diagonal of every kernel.

    Returns:
        The trained machine and the bound per data point along training.

    Raises:
        ValueError: if `steps` is not positive or `nu` is negative.
    """
    if steps <= 0:
        raise ValueError(f"steps must be positive, got {steps}")
    if not (nu >= 0).all():
        raise ValueError(f"nu must not be negative, got {nu.min().item():g}")
    is_free = torch.isfinite(nu)
    weight = torch.where(is_free, nu, 0.0)
    names = [field.name for field in fields(machine)]
    values = {name: getattr(machine, name).detach().clone() for name in names}
    learned = [name for name in names if learn_hypers or not name.startswith("log_")]
    first = {name: torch.zeros_like(values[name]) for name in learned}
    second = {name: torch.zeros_like(values[name]) for name in learned}
    history = []
    for step in range(1, steps + 1):
        current = SparseMachine(**{name: value.requires_grad_(name in learned) for name, value in values.items()})
        x, y = sampler()
        outputs = forward(current, x, kernel, jitter)
        expected = likelihood(outputs, y, current).mean(1)
        bound = expected - (outputs.output_kl + weight * outputs.gram_kl.sum(1)) / n_total
        gradients = torch.autograd.grad(-bound.sum(), [values[name] for name in learned], allow_unused=True)
        rate = lr * 0.1 ** sum(step > share * steps for share in milestones)
        with torch.no_grad():
            for name, gradient in zip(learned, gradients, strict=True):
                if gradient is None:  # sigma2 of a categorical likelihood, factors without a layer
                    continue
                if name == "factors":
                    gradient = gradient * is_free[:, None, None, None]
                first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
                second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient.square()
                scale = (second[name] / (1 - betas[1] ** step)).sqrt() + 1e-8
                values[name] = values[name] - rate / (1 - betas[0] ** step) * first[name] / scale
        values = {name: value.detach() for name, value in values.items()}
        history.append(bound.detach())
    return SparseMachine(**values), torch.stack(history)


def machine_of_fit(fitted: Fit, x: Float[Tensor, "runs n d"]) -> SparseMachine:
    r"""The sparse machine with the training points as inducing points, the learned Gram matrices, and the best $q$.

    Args:
        fitted: a full machine.
        x: the inputs it was fitted to.
    """
    problem, rule = fitted.problem, kernel_named(fitted.problem.kernel)
    below, factors = problem.gram, []
    for gram in fitted.grams:
        factor = torch.linalg.cholesky(rule(below, problem.jitter))
        factors.append(torch.linalg.solve_triangular(factor, torch.linalg.cholesky(gram), upper=False))
        below = gram
    mean, root = gaussian_outputs(fitted.top_kernel, problem.targets, problem.sigma2)
    zeros = torch.zeros_like(problem.sigma2)
    weights = torch.stack(factors, 1) if factors else x.new_zeros(len(x), 0, x.shape[1], x.shape[1])
    return SparseMachine(x.clone(), weights, mean, root, zeros, zeros.clone(), problem.sigma2.log())
