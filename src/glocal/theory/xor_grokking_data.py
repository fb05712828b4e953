r"""XOR cluster data and their Gram matrices, drawn exactly without ever forming a vector of length $p$.

Sizes: `runs` independent problems side by side, `n` training points, `k` probes (test points, then $\mu_1$ and
$\mu_2$), `m` neurons, `q` coordinates. A network trained from $W^{(0)}$ sees its data only through inner products,
so everything lives in `Grams`, and Grams of disjoint blocks of coordinates add.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

N_CENTRES = 4  # +mu_1, -mu_1, +mu_2, -mu_2


@dataclass(frozen=True)
class Points:
    """Coordinates of one block: training points, probes and unit-variance initial weights."""

    train: Float[Tensor, "runs n q"]
    probes: Float[Tensor, "runs k q"]
    init: Float[Tensor, "runs m q"]


@dataclass(frozen=True)
class Grams:
    r"""All inner products that training and evaluation need.

    Args:
        train: $K = XX^\top$.
        probes: $K_t = X_tX^\top$; the last two rows belong to the means $\mu_1, \mu_2$.
        train_init: $XW^{(0)\top}$ for weights of unit variance.
        probes_init: $X_tW^{(0)\top}$ for weights of unit variance.
        init_sq: $\lVert w_j^{(0)}\rVert^2$ for weights of unit variance.
    """

    train: Float[Tensor, "runs n n"]
    probes: Float[Tensor, "runs k n"]
    train_init: Float[Tensor, "runs n m"]
    probes_init: Float[Tensor, "runs k m"]
    init_sq: Float[Tensor, "runs m"]

    def __add__(self, other: "Grams") -> "Grams":
        """Grams of the union of two disjoint blocks of coordinates."""
        return Grams(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def to(self, device: str | torch.device) -> "Grams":
        """The same on another device."""
        return Grams(*(part.to(device) for part in vars(self).values()))


@dataclass(frozen=True)
class Problem:
    """Runs of one classification problem.

    Args:
        grams: inner products.
        labels: observed training labels, a share of them flipped.
        clean: training labels before flipping.
        test_clean: clean labels of the test points (the probes without the two means).
    """

    grams: Grams
    labels: Float[Tensor, "runs n"]
    clean: Float[Tensor, "runs n"]
    test_clean: Float[Tensor, "runs test"]


def gram_blocks(points: Points) -> Grams:
    """Inner products of explicit coordinates."""
    return Grams(
        points.train @ points.train.mT,
        points.probes @ points.train.mT,
        points.train @ points.init.mT,
        points.probes @ points.init.mT,
        points.init.square().sum(-1),
    )


def gaussian_rows(
    runs: int, rows: int, dimension: float, *, generator: torch.Generator
) -> Float[Tensor, "runs rows rows"]:
    r"""Lower-triangular $L$ with $LL^\top \sim \mathrm{Wishart}_{rows}(dimension, I)$, by Bartlett's decomposition.

    $L$ holds the coordinates of `rows` standard normal vectors of length `dimension` in the orthonormal basis that
    Gram and Schmidt make of them: $L_{ii} = \chi_{dimension-i+1}$ and $L_{ij} \sim N(0, 1)$ for $j < i$, independent.
    The cost does not depend on `dimension`, which may be $10^{15}$.

    Raises:
        ValueError: if `dimension` is smaller than `rows`.
    """
    if dimension < rows:
        raise ValueError(
            f"dimension must be at least the number of vectors, {rows}, got {dimension:g}: "
            "draw the coordinates themselves instead"
        )
    normals = torch.randn(runs, rows, rows, generator=generator, dtype=torch.float64, device=generator.device)
    # torch has no chi-square law that takes a generator
    entropy = int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
    freedom = dimension - np.arange(rows)
    lengths = np.sqrt(np.random.default_rng(entropy).chisquare(freedom, size=(runs, rows)))
    return normals.tril(-1) + torch.diag_embed(torch.as_tensor(lengths).to(normals))


def noise_points(runs: int, n: int, n_test: int, m: int, dimension: float, *, generator: torch.Generator) -> Points:
    r"""Standard normal training points, test points and initial weights of `dimension` coordinates, in $n + m$.

    A rotation of $\mathbb R^p$ that sends the training points to the first $n$ coordinates and the weights to the
    next $m$ changes no inner product. In the rotated basis the training points are $[L, 0]$, the weights $[V, L']$
    and the test points $[T, T', \cdot]$ with Bartlett factors $L, L'$ and standard normal $V, T, T'$; coordinates
    of the test points beyond $n + m$ meet nothing. The rows of the two means are zero: their coordinates belong
    to another block.

    Raises:
        ValueError: if `dimension` is smaller than $n + m$.
    """
    if dimension < n + m:
        raise ValueError(f"p is too small: the noise needs at least n + m = {n + m} coordinates, got {dimension:g}")
    device = generator.device
    train = torch.zeros(runs, n, n + m, dtype=torch.float64, device=device)
    train[..., :n] = gaussian_rows(runs, n, dimension, generator=generator)
    init = torch.randn(runs, m, n + m, generator=generator, dtype=torch.float64, device=device)
    init[..., n:] = gaussian_rows(runs, m, dimension - n, generator=generator)
    probes = torch.zeros(runs, n_test + 2, n + m, dtype=torch.float64, device=device)
    probes[:, :n_test].normal_(generator=generator)
    return Points(train, probes, init)


def draw_centres(runs: int, n: int, *, is_balanced: bool, generator: torch.Generator) -> Int[Tensor, "runs n"]:
    r"""Index of the centre of each point: 0, 1, 2, 3 for $+\mu_1, -\mu_1, +\mu_2, -\mu_2$.

    Args:
        runs: independent problems.
        n: points per problem.
        is_balanced: equal numbers per centre instead of independent draws (the paper's).
        generator: source of randomness.

    Raises:
        ValueError: if balanced centres are asked for and `n` is not a multiple of four.
    """
    if not is_balanced:
        return torch.randint(N_CENTRES, (runs, n), generator=generator, device=generator.device)
    if n % N_CENTRES:
        raise ValueError(f"balanced centres need a multiple of {N_CENTRES} points, got {n}")
    return (torch.arange(n, device=generator.device) % N_CENTRES).repeat(runs, 1)


def clean_labels(centres: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    r"""$\tilde y = +1$ for the centres $\pm\mu_1$, $-1$ for $\pm\mu_2$."""
    return 1.0 - 2.0 * (centres >= 2).double()


def flip_labels(
    clean: Float[Tensor, "runs n"], flip_rate: float, *, generator: torch.Generator
) -> Float[Tensor, "runs n"]:
    r"""Observed labels: each clean label flipped with probability $\eta$, independently.

    Raises:
        ValueError: if `flip_rate` is not in [0, 1/2).
    """
    if not 0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate must be in [0, 0.5), got {flip_rate}")
    uniform = torch.rand(clean.shape, generator=generator, dtype=clean.dtype, device=generator.device)
    return torch.where(uniform < flip_rate, -clean, clean)


def mean_block(
    centres: Int[Tensor, "runs n"],
    test_centres: Int[Tensor, "runs test"],
    m: int,
    mu_sq: float,
    *,
    generator: torch.Generator,
) -> Points:
    r"""The two coordinates along the means: $x = c + \xi$ with $c$ on the axes at distance $\lVert\mu\rVert$."""

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, 2, generator=generator, dtype=torch.float64, device=generator.device)

    runs, n = centres.shape
    means = mu_sq**0.5 * torch.eye(2, dtype=torch.float64, device=generator.device)
    corners = torch.stack([means[0], -means[0], means[1], -means[1]])
    train = corners[centres] + normal(runs, n)
    test = corners[test_centres] + normal(runs, test_centres.shape[1])
    return Points(train, torch.cat([test, means.expand(runs, 2, 2)], 1), normal(runs, m))


@dataclass(frozen=True)
class ClusterNoise:
    """Everything random in XOR cluster data but the means: one draw serves all lengths of the means."""

    noise: Points
    grams: Grams
    centres: Int[Tensor, "runs n"]
    test_centres: Int[Tensor, "runs test"]
    means_seed: int
    flips_seed: int

    def means(self, mu_sq: float) -> Points:
        r"""The block along the means for $\lVert\mu\rVert^2 = $ `mu_sq`, with the same noise for every length."""
        generator = torch.Generator(device=self.centres.device).manual_seed(self.means_seed)
        return mean_block(self.centres, self.test_centres, self.noise.init.shape[1], mu_sq, generator=generator)

    def problem(self, mu_sq: float, flip_rate: float) -> Problem:
        r"""XOR cluster data with means of squared length `mu_sq` and labels flipped at `flip_rate`."""
        generator = torch.Generator(device=self.centres.device).manual_seed(self.flips_seed)
        clean = clean_labels(self.centres)
        labels = flip_labels(clean, flip_rate, generator=generator)
        return Problem(self.grams + gram_blocks(self.means(mu_sq)), labels, clean, clean_labels(self.test_centres))


def cluster_noise(
    runs: int, n: int, n_test: int, m: int, p: float, *, is_balanced: bool = True, generator: torch.Generator
) -> ClusterNoise:
    r"""Draw centres, label noise and Gaussian noise of `runs` problems in $\mathbb R^p$.

    Args:
        runs: independent problems.
        n: training points; their centres are balanced or independent.
        n_test: test points, always balanced (a multiple of four).
        m: neurons.
        p: ambient dimension, at least $n + m + 2$; memory and time do not depend on it.
        is_balanced: see `draw_centres`.
        generator: source of randomness; its device holds the result.

    Source: distribution $P$ of the paper; the noise by Bartlett's decomposition (`noise_points`).
    """
    centres = draw_centres(runs, n, is_balanced=is_balanced, generator=generator)
    test_centres = draw_centres(runs, n_test, is_balanced=True, generator=generator)
    seeds = torch.randint(2**62, (2,), generator=generator, device=generator.device).tolist()
    noise = noise_points(runs, n, n_test, m, p - 2, generator=generator)
    return ClusterNoise(noise, gram_blocks(noise), centres, test_centres, *seeds)


def ambient_points(
    centres: Int[Tensor, "runs n"],
    test_centres: Int[Tensor, "runs test"],
    m: int,
    p: int,
    mu_sq: float,
    *,
    generator: torch.Generator,
) -> Points:
    r"""The same law with all $p$ coordinates spelled out; memory $O((n + k + m)p)$ per run. For reference."""
    axes = mean_block(centres, test_centres, m, mu_sq, generator=generator)

    def extend(part: Tensor, n_quiet: int = 0) -> Tensor:
        rest = torch.randn(*part.shape[:2], p - 2, generator=generator, dtype=part.dtype, device=part.device)
        if n_quiet:
            rest[:, -n_quiet:] = 0  # the means have no noise
        return torch.cat([part, rest], 2)

    return Points(extend(axes.train), extend(axes.probes, n_quiet=2), extend(axes.init))
