"""Posteriors of deep Gaussian processes and networks of finite width, sampled (Yang et al. 2023, arXiv:2108.13097).

One hidden layer of width $N$ and $N$ copies of the outputs. The theory says that the posterior of a feature becomes
$N(0, G^\\star)$ as $N$ grows; here it is sampled without using that.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.theory.dkm import JITTER, output_log_likelihood
from glocal.theory.dkm_kernels import kernel_named

LogDensity = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Samples:
    """Draws of a Markov chain: `states[s]` is the state of all chains after `s + 1` kept iterations."""

    states: Float[Tensor, "draws chains *state"]
    acceptance: Float[Tensor, " chains"]


def hamiltonian(
    log_density: LogDensity,
    start: Float[Tensor, " chains *state"],
    *,
    generator: torch.Generator,
    groups: Int[Tensor, " chains"],
    warmup: int = 100,
    draws: int = 100,
    leapfrog: int = 10,
    step: float = 0.2,
    target: float = 0.8,
) -> Samples:
    r"""Hamiltonian Monte Carlo with a unit mass matrix, all chains side by side.

    The step size belongs to a group of chains. While warming up it follows the group's mean acceptance probability
    towards `target`; then it is frozen. Its length is jittered by a fifth, so that no orbit closes on itself.

    Args:
        log_density: states to log densities (up to a constant) and gradients.
        start: first state of every chain.
        generator: source of randomness, on the device of `start`.
        groups: group of each chain, counted from zero.
        warmup: iterations that are thrown away.
        draws: iterations that are kept.
        leapfrog: leapfrog steps per iteration.
        step: first step size.
        target: wanted acceptance probability.

    Raises:
        ValueError: if a count is not positive or a chain starts where the density is zero.
    """
    for name, count in (("draws", draws), ("leapfrog", leapfrog)):
        if count <= 0:
            raise ValueError(f"{name} must be positive, got {count}")
    state, (density, gradient) = start, log_density(start)
    if not torch.isfinite(density).all():
        raise ValueError("every chain must start at a finite log density, got inf or NaN: choose another start")
    n_groups = int(groups.max()) + 1
    sizes = torch.zeros(n_groups).to(density).index_add(0, groups, torch.ones_like(density))
    log_step = torch.full((n_groups,), math.log(step)).to(density)
    shape = (-1,) + (1,) * (start.dim() - 1)
    kept, accepted = [], torch.zeros_like(density)
    for iteration in range(warmup + draws):
        jitter = 0.8 + 0.4 * torch.rand(len(start), generator=generator, device=start.device, dtype=start.dtype)
        size = (log_step.exp()[groups] * jitter).view(shape)
        momentum = torch.randn(start.shape, generator=generator, device=start.device, dtype=start.dtype)
        energy = density - 0.5 * momentum.square().flatten(1).sum(1)
        proposal, slope = state, gradient
        momentum = momentum + 0.5 * size * slope
        for k in range(leapfrog):
            proposal = proposal + size * momentum
            new_density, slope = log_density(proposal)
            momentum = momentum + (size if k < leapfrog - 1 else 0.5 * size) * slope
        change = new_density - 0.5 * momentum.square().flatten(1).sum(1) - energy
        probability = change.nan_to_num(-math.inf, -math.inf, -math.inf).clamp_max(0).exp()
        draw = torch.rand(len(start), generator=generator, device=start.device, dtype=start.dtype)
        is_accepted = draw < probability
        state = torch.where(is_accepted.view(shape), proposal, state)
        gradient = torch.where(is_accepted.view(shape), slope, gradient)
        density = torch.where(is_accepted, new_density, density)
        if iteration < warmup:
            mean = torch.zeros_like(log_step).index_add(0, groups, probability) / sizes
            log_step = log_step + 2 / math.sqrt(iteration + 4) * (mean - target)
        else:
            kept.append(state)
            accepted = accepted + probability
    return Samples(torch.stack(kept), accepted / draws)


@dataclass(frozen=True)
class WidePosterior:
    r"""Posterior of the Gram matrix of one hidden layer of width $N$, with $N$ copies of the outputs.

    Given $K = K(G_0) = LL^\top$, the prior of $G = \frac1N FF^\top$ is Wishart: $G = \frac1N L A A^\top L^\top$ with
    Bartlett's lower triangular $A$ of independent entries, $A_{ij} \sim N(0, 1)$ below the diagonal and
    $A_{jj} \sim \chi_{N-j}$ (counting from zero); for $N < n$ only the first $N$ columns exist. The likelihood
    $P(Y \mid G)^N$ depends on nothing else, so the posterior has $n(n+1)/2$ coordinates of order one whatever $N$,
    where the features themselves would be $nN$ numbers.

    Args:
        gram: $G_0$.
        targets: $Y$.
        widths: $N$ of each run.
        kernel: name of the kernel.
        sigma2: noise variance.
        jitter: as in the objective of the limit.
    """

    gram: Float[Tensor, "runs n n"]
    targets: Float[Tensor, "runs n k"]
    widths: Int[Tensor, " runs"]
    kernel: str
    sigma2: Float[Tensor, " runs"]
    jitter: float = JITTER

    @property
    def root(self) -> Float[Tensor, "runs n n"]:
        """$L$, the Cholesky factor of $K(G_0)$."""
        return torch.linalg.cholesky(kernel_named(self.kernel)(self.gram, self.jitter))

    @property
    def is_entry(self) -> Bool[Tensor, "runs n n"]:
        """Where $A$ has an entry: on and below the diagonal, in the first $N$ columns."""
        n = self.gram.shape[1]
        lower = torch.ones(n, n, dtype=torch.bool, device=self.gram.device).tril()
        return lower & (torch.arange(n, device=self.gram.device) < self.widths[:, None])[:, None]

    def grams(self, factors: Float[Tensor, "*draws runs n n"]) -> Float[Tensor, "*draws runs n n"]:
        r"""$G = \frac1N L A A^\top L^\top$."""
        root = self.root @ factors
        return root @ root.mT / self.widths[:, None, None]

    def log_density(self) -> LogDensity:
        r"""$\sum_j (N - j - 1)\log|A_{jj}| - \frac12\lVert A\rVert^2 + N\log P(Y \mid G)$ and its gradient in $A$.

        Even in every column of $A$, so signs need no bookkeeping.
        """
        rule, root, mask = kernel_named(self.kernel), self.root, self.is_entry
        counts = (self.widths[:, None] - 1 - torch.arange(self.gram.shape[1], device=self.gram.device)).clamp_min(0)
        counts, scale = counts.to(self.gram), self.widths.to(self.gram)

        def function(factors: Tensor) -> tuple[Tensor, Tensor]:
            product = root @ factors
            gram = product @ product.mT / scale[:, None, None]
            likelihood, slope = output_log_likelihood(rule(gram, self.jitter), self.targets, self.sigma2)
            diagonal = factors.diagonal(dim1=1, dim2=2)
            safe = torch.where(diagonal == 0, 1.0, diagonal)
            value = (counts * safe.abs().log()).sum(1) - 0.5 * factors.square().sum((1, 2)) + scale * likelihood
            gradient = 2 * root.mT @ (rule.pullback(gram, slope) @ product) - factors
            gradient = gradient.diagonal_scatter(gradient.diagonal(dim1=1, dim2=2) + counts / safe, dim1=1, dim2=2)
            return value, torch.where(mask, gradient, 0.0)

        return function

    def sample(self, *, generator: torch.Generator, groups: Int[Tensor, " runs"], **options: Any) -> Samples:
        """Run one chain per run from draws of the prior; `options` go to `hamiltonian`."""
        start = self.prior_factors(generator=generator)
        posterior = self.log_density()
        mask = self.is_entry

        def masked(factors: Tensor) -> tuple[Tensor, Tensor]:
            return posterior(torch.where(mask, factors, 0.0))

        samples = hamiltonian(masked, start, generator=generator, groups=groups, **options)
        return Samples(torch.where(mask, samples.states, 0.0), samples.acceptance)

    def prior_factors(self, *, generator: torch.Generator) -> Float[Tensor, "runs n n"]:
        """Bartlett factors of the prior."""
        runs, n = self.gram.shape[:2]
        normal = torch.randn(runs, n, n, generator=generator, device=self.gram.device, dtype=self.gram.dtype)
        freedom = (self.widths[:, None] - torch.arange(n, device=self.gram.device)).clamp_min(1).to(self.gram)
        uniform = torch.rand(runs, n, generator=generator, device=self.gram.device, dtype=self.gram.dtype)
        # Wilson and Hilferty's cube root of a chi-squared variable: a start for a chain, not an exact draw
        spread = 2 / (9 * freedom)
        cube = (1 - spread + spread.sqrt() * torch.special.ndtri(uniform.clamp(1e-3, 1 - 1e-3))).clamp_min(0.05)
        factors = normal.diagonal_scatter((freedom * cube**3).sqrt(), dim1=1, dim2=2)
        return torch.where(self.is_entry, factors, 0.0)

    def features(
        self, factors: Float[Tensor, "draws runs n n"], *, generator: torch.Generator
    ) -> Float[Tensor, "draws runs n"]:
        r"""One feature (a column of $F$) per draw.

        $F = LAQ$ with a uniformly random $Q$ of orthonormal rows, whose first column holds the first $\min(n, N)$
        coordinates of a random unit vector in $\mathbb R^N$.
        """
        draws, runs, n, _ = factors.shape
        normal = torch.randn(draws, runs, n, generator=generator, device=factors.device, dtype=factors.dtype)
        normal = torch.where(torch.arange(n, device=factors.device) < self.widths[:, None], normal, 0.0)
        rest = (self.widths - n).clamp_min(0)
        length2 = normal.square().sum(-1) + _chi_squared(rest, draws, generator, factors)
        unit = normal / length2.sqrt()[..., None]
        return ((self.root @ factors) @ unit[..., None]).squeeze(-1)


def _chi_squared(freedom: Tensor, draws: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Exact chi-squared draws by summing squares, `draws x len(freedom)`."""
    most = int(freedom.max())
    total = like.new_zeros(draws, len(freedom))
    for part in torch.arange(most, device=like.device).split(32):
        normal = torch.randn(draws, len(freedom), len(part), generator=generator, device=like.device, dtype=like.dtype)
        total = total + (normal.square() * (part < freedom[:, None])).sum(-1)
    return total


def controlled_mean(
    values: Float[Tensor, "groups samples q"], scores: Float[Tensor, "groups samples p"]
) -> Float[Tensor, "groups q"]:
    r"""Means of sampled quantities with the score as control variate: the intercept of a regression on $\nabla\log p$.

    $E[\nabla\log p] = 0$ under the sampled law, so the regression removes the part of the noise that is linear in
    the score without changing what is estimated. Near a Gaussian posterior that is almost all of the noise.

    Source: zero-variance Markov chain Monte Carlo with a first-order polynomial.
    """
    design = torch.cat([torch.ones_like(scores[..., :1]), scores], -1)
    return (torch.linalg.pinv(design.mT @ design, hermitian=True) @ (design.mT @ values))[:, 0]


def excess_kurtosis(
    grams: Float[Tensor, "groups samples n n"], reference: Float[Tensor, "groups n n"], widths: Int[Tensor, " groups"]
) -> Float[Tensor, " groups"]:
    r"""Mean excess kurtosis of a feature over the $n$ directions in which $N(0, \text{reference})$ is white.

    A feature is $\sqrt N$ times a random direction of $\mathbb R^N$ pushed through a root of $G$. The direction is
    integrated out exactly: with $s$ the diagonal of the whitened $G$, the kurtosis of one entry is
    $\frac{3N}{N+2}\,E[s^2]/E[s]^2$.
    """
    root = torch.linalg.cholesky(reference)[:, None]
    half = torch.linalg.solve_triangular(root, grams, upper=False)
    s = torch.linalg.solve_triangular(root, half.mT, upper=False).diagonal(dim1=-2, dim2=-1)
    ratio = s.square().mean(1) / s.mean(1).square()
    n = widths.to(s)[:, None]
    return (3 * n / (n + 2) * ratio - 3).mean(1)


def scalar_posterior_mean(gram: float, square: float, width: int, sigma2: float = 0.0, points: int = 4001) -> float:
    r"""$E[G \mid Y]$ for one data point and the linear kernel, by quadrature.

    The density is $\propto G^{N/2-1} e^{-NG/(2G_0)}\,N(y; 0, G + \sigma^2)^N$.

    Args:
        gram: $G_0$.
        square: $y^2$.
        width: $N$.
        sigma2: noise variance.
        points: nodes of the trapezoidal rule on a logarithmic grid around the mode.
    """
    log_g = torch.linspace(-12.0, 6.0, points, dtype=torch.float64) + 0.5 * math.log(gram * max(square, 1e-12))
    g = log_g.exp()
    noisy = g + sigma2
    log_weight = 0.5 * width * (log_g - g / gram - noisy.log() - square / noisy)  # the measure is dG / G
    weight = (log_weight - log_weight.max()).exp()
    return float((weight * g).sum() / weight.sum())
