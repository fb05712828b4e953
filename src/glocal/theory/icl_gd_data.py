"""Regression tasks given in context (Mahankali et al. 2024, arXiv:2307.03576): contexts, queries and their laws.

Sizes: `runs` independent trainings, `tasks` regression problems each, `n` context examples, `d` features.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Tasks:
    r"""A batch of regression problems: context $(x_i, y_i)_{i \le n}$, query $x_q$ and its label $y_q$."""

    x: Float[Tensor, "runs tasks n d"]
    y: Float[Tensor, "runs tasks n"]
    query: Float[Tensor, "runs tasks d"]
    target: Float[Tensor, "runs tasks"]

    @property
    def n_context(self) -> int:
        """Context examples per task, $n$."""
        return self.x.shape[2]


@dataclass(frozen=True)
class Family:
    r"""A law of random functions $f(x) = \sum_{j \le k} s_j\, g(\omega_j^\top x)$, $\omega_j$ uniform on the sphere.

    Args:
        activation: $g$.
        first_moment: $E\lVert a_f\rVert^2$ with $a_f = E[f(x)\,x \mid f]$, for Gaussian $x$.
        energy: $E[f(x)^2\lVert x\rVert^2]$ as a function of $d$.
        hidden: number $k$ of ridge functions.
        outer: law of $s_j$: `"one"`, `"sign"` (fair coin) or `"gaussian"` with variance $1/k$.
    """

    activation: Callable[[Tensor], Tensor]
    first_moment: float
    energy: Callable[[int], float]
    hidden: int = 1
    outer: str = "one"


# Gaussian moments: E[z^4] = 3, E[z^6 |x|^2] = 15 (d + 6), E|z| = sqrt(2 / pi), E[relu(z) z] = 1/2
FAMILIES = {
    "cubic": Family(lambda z: z**3, 9.0, lambda d: 15.0 * (d + 6)),
    "sign": Family(torch.sign, 2 / math.pi, float),
    "signed_relu": Family(torch.relu, 0.25, lambda d: (d + 2) / 2, outer="sign"),
    "network": Family(torch.relu, 0.25, lambda d: (d + 2) / 2, hidden=16, outer="gaussian"),
    "relu": Family(torch.relu, 0.25, lambda d: (d + 2) / 2),
}


def _randn(*size: int, like: torch.Generator, dtype: torch.dtype) -> Tensor:
    return torch.randn(size, generator=like, device=like.device, dtype=dtype)


def _noise(y: Tensor, noise: float | Tensor, generator: torch.Generator) -> Tensor:
    """Labels plus Gaussian noise of standard deviation `noise`: one number, or one per run."""
    if isinstance(noise, float):
        return y if noise == 0 else y + noise * _randn(*y.shape, like=generator, dtype=y.dtype)
    return y + noise.to(y)[:, None, None] * _randn(*y.shape, like=generator, dtype=y.dtype)


def linear_tasks(
    runs: int,
    tasks: int,
    n: int,
    d: int,
    *,
    noise: float | Float[Tensor, " runs"],
    generator: torch.Generator,
    covariance: Float[Tensor, "d d"] | None = None,
    is_matched: bool = True,
    w_mean: Float[Tensor, " d"] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tasks:
    r"""Linear regression tasks $y = w^\top x + \epsilon$ with $x \sim N(0, \Sigma)$, $\epsilon \sim N(0, \sigma^2)$.

    Args:
        runs: independent trainings.
        tasks: tasks per run.
        n: context examples per task.
        d: features.
        noise: $\sigma$, one number or one per run; the label of the query has the same noise.
        generator: source of randomness; its device is that of the tasks.
        covariance: $\Sigma$, positive definite; the identity by default.
        is_matched: $w \sim N(0, \Sigma^{-1})$ as in Theorem 2; False for $w \sim N(0, I)$.
        w_mean: added to $w$; any value but zero breaks the rotational symmetry.
        dtype: floating-point type.

    Raises:
        ValueError: if the covariance is not positive definite.

    Source: Sections 3 (isotropic) and 4 (general covariance): the data of Theorems 1 and 2.
    """
    x = _randn(runs, tasks, n + 1, d, like=generator, dtype=dtype)
    w = _randn(runs, tasks, d, like=generator, dtype=dtype)
    if covariance is not None:
        values, vectors = torch.linalg.eigh(covariance.to(device=generator.device, dtype=torch.float64))
        if values.min() <= 0:
            raise ValueError(
                f"covariance must be positive definite, got smallest eigenvalue {values.min():.3g}: add a ridge to it"
            )
        root = (vectors * values.sqrt()) @ vectors.mT
        x = x @ root.to(dtype)
        if is_matched:
            w = w @ torch.linalg.inv(root).to(dtype)
    if w_mean is not None:
        w = w + w_mean.to(w)
    y = _noise((x * w[:, :, None]).sum(-1), noise, generator)
    return Tasks(x[:, :, :n], y[:, :, :n], x[:, :, n], y[:, :, n])


def nonlinear_tasks(
    runs: int,
    tasks: int,
    n: int,
    d: int,
    *,
    family: str,
    generator: torch.Generator,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tasks:
    r"""Tasks $y = f(x) + \epsilon$ with Gaussian $x$ and $f$ drawn from a rotation-invariant family.

    Args:
        runs: independent trainings.
        tasks: tasks per run.
        n: context examples per task.
        d: features.
        family: a name in `FAMILIES`; all but `"relu"` are odd in law, $f \sim -f$.
        generator: source of randomness; its device is that of the tasks.
        noise: $\sigma$.
        dtype: floating-point type.

    Raises:
        ValueError: for an unknown family.

    Source: Section 5, the data of Theorem 3.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    law = FAMILIES[family]
    x = _randn(runs, tasks, n + 1, d, like=generator, dtype=dtype)
    directions = _randn(runs, tasks, d, law.hidden, like=generator, dtype=dtype)
    values = law.activation(x @ (directions / directions.norm(dim=2, keepdim=True)))
    outer = torch.ones(runs, tasks, law.hidden, dtype=dtype, device=generator.device)
    if law.outer != "one":
        outer = _randn(runs, tasks, law.hidden, like=generator, dtype=dtype)
        outer = outer.sign() if law.outer == "sign" else outer / math.sqrt(law.hidden)
    y = _noise((values * outer[:, :, None]).sum(-1), noise, generator)
    return Tasks(x[:, :, :n], y[:, :, :n], x[:, :, n], y[:, :, n])


def table_tasks(
    rows: Float[Tensor, "m d"],
    runs: int,
    tasks: int,
    n: int,
    *,
    generator: torch.Generator,
    labels: Float[Tensor, " m"] | None = None,
) -> Tasks:
    r"""Tasks whose covariates are the rows of a table, drawn with replacement; the query is never in its context.

    Args:
        rows: covariates, whitened.
        runs: independent trainings.
        tasks: tasks per run.
        n: context examples per task.
        generator: source of randomness; its device is that of the tasks.
        labels: the table's own labels; without them $y = w^\top x$ with a fresh $w \sim N(0, I)$ per task.

    Raises:
        ValueError: for fewer than two rows.
    """
    m = len(rows)
    if m < 2:
        raise ValueError(f"rows must hold at least 2 examples, a query and a context, got {m}")
    device = generator.device
    query = torch.randint(m, (runs, tasks, 1), generator=generator, device=device)
    others = torch.randint(m - 1, (runs, tasks, n), generator=generator, device=device)
    context = (query + 1 + others) % m
    index = torch.cat([context, query], -1)
    x = rows.to(device)[index]
    if labels is None:
        w = _randn(runs, tasks, rows.shape[1], like=generator, dtype=x.dtype)
        y = (x * w[:, :, None]).sum(-1)
    else:
        y = labels.to(x)[index]
    return Tasks(x[:, :, :n], y[:, :, :n], x[:, :, n], y[:, :, n])


def table_rows(name: str, *, fake: bool = False) -> tuple[Float[Tensor, "m d"], Float[Tensor, " m"]]:
    """Whitened covariates and standardised labels of a regression table of scikit-learn.

    Args:
        name: `"diabetes"`, 442 patients with 10 measurements.
        fake: random numbers of the same shape instead, for rehearsals.

    Raises:
        ValueError: for another name.
    """
    if name != "diabetes":
        raise ValueError(f"the table of covariates must be 'diabetes', got {name!r}")
    if fake:
        generator = torch.Generator().manual_seed(0)
        x = _randn(442, 10, like=generator, dtype=torch.float64)
        return x, x[:, 0]
    from sklearn.datasets import load_diabetes

    table = load_diabetes()
    x, y = torch.from_numpy(table.data), torch.from_numpy(table.target)
    centred = x - x.mean(0)
    left = torch.linalg.svd(centred, full_matrices=False).U
    return left * math.sqrt(len(x)), (y - y.mean()) / y.std(correction=0)
