"""Deep kernel machines: learning Gram matrices instead of features (Yang et al. 2023, arXiv:2108.13097).

Sizes: `runs` independent problems side by side, `n` training points, `m` test points, `k` output columns,
`depth` hidden layers. Kernels are in `dkm_kernels`,
predictions in `dkm_predict`, the sparse machine in `dkm_sparse`.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.theory.dkm_kernels import deep_kernel, kernel_named
from glocal.theory.dkm_lbfgs import minimise

JITTER = 1e-6


def gram_kl(gram: Float[Tensor, "*runs n n"], kernel: Float[Tensor, "*runs n n"]) -> Float[Tensor, "*runs"]:
    r"""$D_{KL}(N(0, G)\,\Vert\,N(0, K)) = \frac12(\mathrm{tr}(K^{-1}G) - \log\det(K^{-1}G) - n)$.

    Source: the regulariser of the deep kernel machine objective, one per hidden layer.
    """
    gram_factor, kernel_factor = torch.linalg.cholesky(gram), torch.linalg.cholesky(kernel)
    whitened = torch.linalg.solve_triangular(kernel_factor, gram_factor, upper=False)
    return (
        0.5 * (whitened.square().sum((-2, -1)) - gram.shape[-1])
        + _half_logdet(kernel_factor)
        - _half_logdet(gram_factor)
    )


def _half_logdet(factor: Tensor) -> Tensor:
    r"""$\frac12\log\det LL^\top$ of a triangular factor."""
    return factor.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def output_log_likelihood(
    kernel: Float[Tensor, "runs n n"], targets: Float[Tensor, "runs n k"], sigma2: Float[Tensor, " runs"]
) -> tuple[Float[Tensor, " runs"], Float[Tensor, "runs n n"]]:
    r"""$\log P(Y \mid G_L) = \sum_j \log N(y_j; 0, C)$ with $C = K(G_L) + \sigma^2 I$, and its gradient in $K$.

    Returns:
        The values, $-\infty$ where $C$ is not positive definite, and
        $\partial/\partial K = \frac12(C^{-1}YY^\top C^{-1} - k\,C^{-1})$.

    Source: the first term of the objective.
    """
    n, k = targets.shape[1:]
    factor, failed = torch.linalg.cholesky_ex(
        kernel.diagonal_scatter(kernel.diagonal(dim1=1, dim2=2) + sigma2[:, None], dim1=1, dim2=2)
    )
    inverse = torch.cholesky_inverse(factor)
    solved = inverse @ targets
    value = -0.5 * (targets * solved).sum((1, 2)) - k * (_half_logdet(factor) + 0.5 * n * math.log(2 * math.pi))
    return value.masked_fill(failed > 0, -math.inf), 0.5 * (solved @ solved.mT - k * inverse)


@dataclass(frozen=True)
class Problem:
    r"""What the objective of a deep kernel machine is made of.

    Args:
        gram: $G_0$.
        targets: $Y$.
        kernel: name of the kernel, the same in all layers.
        nu: $\nu_\ell$, one per run and hidden layer; `inf` fixes a run at the NNGP (in all its layers).
        sigma2: noise variance $\sigma^2$.
        jitter: added to the diagonal of every kernel matrix.
    """

    gram: Float[Tensor, "runs n n"]
    targets: Float[Tensor, "runs n k"]
    kernel: str
    nu: Float[Tensor, "runs depth"]
    sigma2: Float[Tensor, " runs"]
    jitter: float = JITTER

    def __post_init__(self) -> None:
        if not (self.nu > 0).all():
            raise ValueError(
                f"nu must be positive (inf for the NNGP), got {self.nu.min().item():g}: "
                "only the sparse machine can do without the regulariser"
            )
        if not (self.sigma2 >= 0).all():
            raise ValueError(f"sigma2 must not be negative, got {self.sigma2.min().item():g}")

    def subset(self, index: Int[Tensor, " r"]) -> "Problem":
        """The problems at `index`."""
        return replace(
            self, gram=self.gram[index], targets=self.targets[index], nu=self.nu[index], sigma2=self.sigma2[index]
        )

    @property
    def depth(self) -> int:
        """Number of hidden layers, $L$."""
        return self.nu.shape[1]


def dkm_objective(problem: Problem, grams: list[Float[Tensor, "runs n n"]]) -> Float[Tensor, " runs"]:
    r"""Value of the objective for given Gram matrices,

    $$\mathcal L(G_1, \dots, G_L) = \log P(Y \mid G_L)
    - \sum_\ell \nu_\ell\,D_{KL}(N(0, G_\ell)\,\Vert\,N(0, K(G_{\ell-1}))).$$

    Written for reading and for tests; `fit` has its own gradient.

    Source: the deep kernel machine objective.
    """
    rule, below = kernel_named(problem.kernel), problem.gram
    value = torch.zeros_like(problem.sigma2)
    for gram, nu in zip(grams, problem.nu.unbind(1), strict=True):
        value = value - nu * gram_kl(gram, rule(below, problem.jitter))
        below = gram
    return value + output_log_likelihood(rule(below, problem.jitter), problem.targets, problem.sigma2)[0]


def objective_and_gradient(
    problem: Problem, bases: list[Float[Tensor, "runs n n"]], factors: Float[Tensor, "runs depth n n"]
) -> tuple[Float[Tensor, " runs"], Float[Tensor, "runs depth n n"]]:
    r"""$-\mathcal L$ and its gradient in lower triangular $W_\ell$, $G_\ell = C_\ell W_\ell W_\ell^\top C_\ell^\top$.

    The fixed $C_\ell$ are Cholesky factors of the NNGP, so $W = I$ is the limit $\nu \to \infty$. From the top down,

    $$\frac{\partial KL_\ell}{\partial G_\ell} = \tfrac12(K_{\ell-1}^{-1} - G_\ell^{-1}), \qquad
    \frac{\partial KL_\ell}{\partial K_{\ell-1}} = \tfrac12(K_{\ell-1}^{-1} - K_{\ell-1}^{-1} G_\ell K_{\ell-1}^{-1}),$$

    and the kernel's pullback turns slopes in $K(G)$ into slopes in $G$. The determinant of $G_\ell$ only meets the
    diagonal of $W_\ell$. Cost: $O(L n^3)$, two Cholesky factorisations fewer than automatic differentiation would
    differentiate.
    """
    rule = kernel_named(problem.kernel)
    roots = [base @ w for base, w in zip(bases, factors.unbind(1), strict=True)]
    grams = [problem.gram, *(root @ root.mT for root in roots)]
    value, slope = output_log_likelihood(rule(grams[-1], problem.jitter), problem.targets, problem.sigma2)
    value, into = -value, rule.pullback(grams[-1], -slope)
    gradient = torch.zeros_like(factors)
    logdets = [_half_logdet(base) for base in bases]
    for layer in reversed(range(problem.depth)):
        nu, w, gram = problem.nu[:, layer], factors[:, layer], grams[layer + 1]
        factor, failed = torch.linalg.cholesky_ex(rule(grams[layer], problem.jitter))
        inverse = torch.cholesky_inverse(factor)
        kl = (
            0.5 * ((inverse * gram).sum((1, 2)) - gram.shape[1])
            + _half_logdet(factor)
            - logdets[layer]
            - _half_logdet(w)
        )
        value = (value + nu * kl).masked_fill(failed > 0, math.inf)
        weight = nu[:, None, None]
        gradient[:, layer] = (bases[layer].mT @ ((2 * into + weight * inverse) @ roots[layer])).tril()
        gradient[:, layer].diagonal(dim1=1, dim2=2).sub_(nu[:, None] / w.diagonal(dim1=1, dim2=2))
        if layer > 0:
            into = rule.pullback(grams[layer], 0.5 * weight * (inverse - inverse @ gram @ inverse))
    return value, gradient


@dataclass(frozen=True)
class Fit:
    r"""Learned Gram matrices $G_1^\star, \dots, G_L^\star$ of a problem.

    Args:
        problem: what was maximised.
        grams: the optimum, one entry per hidden layer.
        objective: $\mathcal L$ there.
        gradient_norms: largest entry of the gradient in the whitened variable; zero for runs at $\nu = \infty$.
    """

    problem: Problem
    grams: list[Float[Tensor, "runs n n"]]
    objective: Float[Tensor, " runs"]
    gradient_norms: Float[Tensor, " runs"]

    @property
    def top_kernel(self) -> Float[Tensor, "runs n n"]:
        """$K(G_L)$, the covariance of the outputs."""
        return kernel_named(self.problem.kernel)(
            self.grams[-1] if self.grams else self.problem.gram, self.problem.jitter
        )


def fit(
    problem: Problem,
    *,
    steps: int = 100,
    tol: float = 1e-9,
    chunk: int = 1024,
    perturbation: Float[Tensor, "runs depth n n"] | None = None,
) -> Fit:
    r"""Maximise the objective over all Gram matrices by L-BFGS, from the NNGP.

    The variable is $Z_\ell = \sqrt{\nu_\ell}\,(W_\ell - I)$. In it the regulariser has a Hessian between one and two at
    the NNGP, whatever $\nu$, depth or kernel.

    Args:
        problem: data, kernel and weights.
        steps: largest number of L-BFGS steps.
        tol: a run stops once no entry of its gradient in $Z$ is larger.
        chunk: runs optimised at once; about 16 problems of 100 points fit into the cache of a CPU.
        perturbation: added to the start $Z = 0$ (its lower triangle), for restarts: the objective is not concave.

    Raises:
        ValueError: if an NNGP kernel is not positive definite; add jitter.

    Source: "optimise Gram matrices"; initialised at the NNGP like the group's code.
    """
    grams = deep_kernel(problem.gram, problem.kernel, problem.depth, problem.jitter)
    for gram in grams:
        cholesky_factor(gram)
    is_fixed = torch.isinf(problem.nu).any(1)
    norms = torch.zeros_like(problem.sigma2)
    learnable = (~is_fixed).nonzero().squeeze(1)
    for index in learnable.split(chunk) if problem.depth and len(learnable) else ():
        start = [gram[index] for gram in grams]
        learned, norms[index] = _fit_chunk(
            problem.subset(index), start, steps, tol, None if perturbation is None else perturbation[index]
        )
        grams = [gram.index_copy(0, index, new) for gram, new in zip(grams, learned, strict=True)]
    finite = replace(problem, nu=torch.where(is_fixed[:, None], 1.0, problem.nu))  # there every KL is zero
    return Fit(problem, grams, dkm_objective(finite, grams), norms)


def _fit_chunk(
    problem: Problem, nngp: list[Tensor], steps: int, tol: float, perturbation: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Learned Gram matrices and gradient norms of a few problems with finite `nu`."""
    n = problem.gram.shape[1]
    bases = [cholesky_factor(gram) for gram in nngp]
    rows, columns = torch.tril_indices(n, n, device=problem.gram.device)
    root_nu, eye = problem.nu.sqrt()[..., None, None], torch.eye(n).to(problem.gram)

    def unpack(z: Tensor) -> Tensor:
        square = z.new_zeros(*problem.nu.shape, n, n)
        square[:, :, rows, columns] = z.view(*problem.nu.shape, -1)
        return square / root_nu + eye

    def function(z: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = objective_and_gradient(problem, bases, unpack(z))
        return value, (gradient / root_nu)[:, :, rows, columns].flatten(1)

    start = problem.gram.new_zeros(len(problem.gram), problem.depth * len(rows))
    if perturbation is not None:
        start = start + perturbation[:, :, rows, columns].flatten(1)
    minimum = minimise(function, start, steps=steps, tol=tol)
    roots = [base @ w for base, w in zip(bases, unpack(minimum.x).unbind(1), strict=True)]
    return [root @ root.mT for root in roots], minimum.gradient_norms


def cholesky_factor(gram: Float[Tensor, "runs n n"]) -> Float[Tensor, "runs n n"]:
    """Lower Cholesky factors.

    Raises:
        ValueError: if some matrix is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(gram)
    if (failed > 0).any():
        raise ValueError(
            f"every kernel matrix must be positive definite, {int((failed > 0).sum())} of {len(failed)} are not: "
            "remove repeated points, or increase jitter"
        )
    return factor


def linear_solution(
    gram: Float[Tensor, "*runs n n"], top: Float[Tensor, "*runs n n"], depth: int
) -> list[Float[Tensor, "*runs n n"]]:
    r"""Closed form of the deep linear machine, $G_\ell = G_0(G_0^{-1}G_{L+1})^{\ell/(L+1)}$, $\ell = 1, \dots, L$.

    With $K(G) = G$, $\sigma = 0$ and all $\nu$ equal to the number of outputs, the optimum is a geometric path from
    $G_0$ to $G_{L+1} = YY^\top/k$. The power is taken of the symmetric $R^{-1}G_{L+1}R^{-\top}$ with $G_0 = RR^\top$.

    Source: deep linear kernel machines.
    """
    root = torch.linalg.cholesky(gram)
    half = torch.linalg.solve_triangular(root, top, upper=False)
    middle = torch.linalg.solve_triangular(root, half.mT, upper=False)
    values, vectors = torch.linalg.eigh(0.5 * (middle + middle.mT))
    rotated = root @ vectors
    return [(rotated * values[..., None, :] ** (layer / (depth + 1))) @ rotated.mT for layer in range(1, depth + 1)]
