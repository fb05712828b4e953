r"""Global minimisers of deep linear networks over free features (Dang et al., ICML 2023, arXiv:2301.00437).

`k` classes with $n_k$ of $N$ examples each, $M$ linear layers, features and layers penalised. The numerical
optimum is in `neural_collapse_direct`, the metrics in `neural_collapse_metrics`, networks in `neural_collapse_nets`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import brentq, minimize_scalar
from torch import Tensor


def price(n_k: int, lambda_h: float, lambda_w: Sequence[float]) -> float:
    r"""What scale costs class $k$: $c_k = \bigl(n_k \lambda_H \prod_l \lambda_{W_l}\bigr)^{1/(M+1)}$."""
    return float((n_k * lambda_h * math.prod(lambda_w)) ** (1 / (len(lambda_w) + 1)))


def class_objective(z: float, n_k: int, n_total: int, lambda_h: float, lambda_w: Sequence[float]) -> float:
    r"""Share of class $k$ in the objective, $g_k(z) = \frac{n_k}{2N}(z-1)^2 + \frac{M+1}2 c_k z^{2/(M+1)}$."""
    m = len(lambda_w)
    c = price(n_k, lambda_h, lambda_w)
    return float(n_k / (2 * n_total) * (z - 1) ** 2 + (m + 1) / 2 * c * z ** (2 / (m + 1)))


def class_scale(n_k: int, n_total: int, lambda_h: float, lambda_w: Sequence[float]) -> float:
    r"""The global minimiser $z_k = \arg\min_{z\ge0} g_k(z)$, 0 for a collapsed class.

    With $q = 2/(M+1)$, some $z > 0$ beats $z = 0$ iff $a_k = \frac N{n_k}(M+1)c_k < \max_z z^{1-q}(2-z)$, and then
    the minimiser is the larger root of $g_k'(z) = 0$, that is of $z^{1-q}(1-z) = N c_k/n_k$.

    Args:
        n_k: examples of the class.
        n_total: examples of all classes, $N$.
        lambda_h: $\lambda_H$, multiplies half the squared norm of ALL feature columns.
        lambda_w: $\lambda_{W_1}, \dots, \lambda_{W_M}$.

    Source: the closed form of the global minimisers; for $M=1$ it is the soft threshold
    $(1 - N\sqrt{\lambda_W\lambda_H/n_k})_+$.
    """
    q = 2 / (len(lambda_w) + 1)
    rhs = n_total * price(n_k, lambda_h, lambda_w) / n_k
    z_cross = 2 * (1 - q) / (2 - q)  # where z^(1-q) (2-z) is largest
    if (len(lambda_w) + 1) * rhs >= z_cross ** (1 - q) * (2 - z_cross):
        return 0.0
    z_turn = (1 - q) / (2 - q)  # z^(1-q) (1-z) falls from here to 1
    return float(brentq(lambda z: z ** (1 - q) * (1 - z) - rhs, z_turn, 1.0, xtol=1e-15, rtol=1e-14))


def official_scale(n_k: int, n_total: int, lambda_h: float, lambda_w: Sequence[float]) -> float:
    r"""The same scale by the official root formula (equal $\lambda_W$), WITHOUT the comparison with zero.

    $x$ is the largest root of $M x^{M-1}/(x^M+1)^2 = \frac{MN}{n_k}(N\lambda_W^M\lambda_H)^{1/M}$ and
    $z = x^M/(1+x^M)$. For $M \ge 2$ it can be a local minimum whose value exceeds $g_k(0)$.

    Raises:
        ValueError: for layers with different penalties.

    Source: the official solver of the imbalanced experiments.
    """
    m, lam = len(lambda_w), lambda_w[0]
    if any(other != lam for other in lambda_w):
        raise ValueError(f"the official formula needs equal penalties, got {list(lambda_w)}: use class_scale")
    rhs = m * n_total / n_k * (n_total * lam**m * lambda_h) ** (1 / m)

    def gap(x: float) -> float:
        return m * x ** (m - 1) / (x**m + 1) ** 2 - rhs

    peak = ((m - 1) / (m + 1)) ** (1 / m)
    if gap(peak) <= 0:
        return 0.0
    upper = 2.0
    while gap(upper) > 0:
        upper *= 2
    x = float(brentq(gap, peak, upper, xtol=1e-15, rtol=1e-14))
    return x**m / (1 + x**m)


@dataclass(frozen=True)
class ClosedForm:
    r"""A global minimiser: $W_M\cdots W_1\bar H = \mathrm{diag}(z)$, up to the rotations the problem allows.

    Args:
        value: the optimal value.
        scales: $z_k$.
        shares: $\pi_k = (n_k\lambda_H\prod_l\lambda_{W_l}z_k^2)^{1/(M+1)}$, what class $k$ pays in every penalty.
        feature_lengths: $\lVert\bar h_k\rVert = \sqrt{\pi_k/(n_k\lambda_H)}$.
        layer_values: $s_{l,k} = \sqrt{\pi_k/\lambda_{W_l}}$, the singular values of each layer; the last row
            holds the lengths of the classifiers.
    """

    value: float
    scales: Float[Tensor, " k"]
    shares: Float[Tensor, " k"]
    feature_lengths: Float[Tensor, " k"]
    layer_values: Float[Tensor, "layers k"]


def closed_form(
    class_sizes: Sequence[int], lambda_h: float, lambda_w: Sequence[float], *, rank: int | None = None
) -> ClosedForm:
    r"""Global minimum of the MSE objective without bias, for any class sizes, depth and penalties.

    Args:
        class_sizes: $n_1, \dots, n_K$.
        lambda_h: $\lambda_H$.
        lambda_w: one penalty per layer; their number is $M$.
        rank: $R = \min(K, d_1, \dots, d_M)$; below $K$ only the $R$ classes that gain most survive (for equal
            sizes $Z$ is then $z$ times any projection of rank $R$, of which this is one).

    Raises:
        ValueError: for class sizes or penalties that are not positive.

    Source: theorems on MSE without bias, balanced and imbalanced.
    """
    for name, values in (("class_sizes", class_sizes), ("penalties", [lambda_h, *lambda_w])):
        if not values or min(values) <= 0:
            raise ValueError(f"{name} must be positive, got {list(values)}")
    total = sum(class_sizes)
    scales = [class_scale(n, total, lambda_h, lambda_w) for n in class_sizes]
    gains = [
        n / (2 * total) - class_objective(z, n, total, lambda_h, lambda_w)
        for n, z in zip(class_sizes, scales, strict=True)
    ]
    kept = sorted(range(len(gains)), key=lambda k: -gains[k])[: rank or len(gains)]
    z = torch.tensor([scales[k] if k in kept else 0.0 for k in range(len(gains))], dtype=torch.float64)
    n_k = torch.tensor(class_sizes, dtype=torch.float64)
    shares = (n_k * lambda_h * math.prod(lambda_w) * z**2) ** (1 / (len(lambda_w) + 1))
    return ClosedForm(
        value=0.5 - sum(gains[k] for k in kept),  # all classes at zero cost 1/2
        scales=z,
        shares=shares,
        feature_lengths=(shares / (n_k * lambda_h)).sqrt(),
        layer_values=(shares / torch.tensor(lambda_w, dtype=torch.float64)[:, None]).sqrt(),
    )


def balanced_etf(
    n_classes: int, n_per_class: int, lambda_h: float, lambda_w: Sequence[float], *, loss: str = "mse"
) -> tuple[float, float]:
    r"""Optimal value and scale $z$ of $Z = z(I - \frac1K\mathbf 1\mathbf 1^\top)$: MSE with free bias, or CE.

    For MSE the $K-1$ directions orthogonal to $\mathbf 1$ pay $g_k$ each and the bias $\frac1K\mathbf 1$ fits the
    rest. For CE every example has loss $\log(1 + (K-1)e^{-z})$; the remaining scalar problem is ours.

    Raises:
        ValueError: for an unknown loss.

    Source: theorems on MSE with unregularised last bias and on cross-entropy.
    """
    n_total, n_free, exponent = n_classes * n_per_class, n_classes - 1, 2 / (len(lambda_w) + 1)
    if loss == "mse":
        z = class_scale(n_per_class, n_total, lambda_h, lambda_w)
        return n_free * class_objective(z, n_per_class, n_total, lambda_h, lambda_w), z
    if loss != "ce":
        raise ValueError(f"loss must be 'mse' or 'ce', got {loss!r}")
    c = n_free * price(n_per_class, lambda_h, lambda_w) / exponent

    def value(z: float) -> float:
        return math.log1p(n_free * math.exp(-z)) + c * z**exponent

    # the stationary point of largest z is the candidate beside zero: start where the loss is still felt
    best = minimize_scalar(value, bounds=(1.0, 60.0), method="bounded", options={"xatol": 1e-12})
    return (float(best.fun), float(best.x)) if best.fun < value(0.0) else (value(0.0), 0.0)


def planar_ce(n_classes: int, n_per_class: int, lambda_h: float, lambda_w: Sequence[float]) -> tuple[float, float]:
    r"""Cross-entropy objective of the best PLANAR arrangement: classes at the corners of a regular polygon.

    $Z = zP$ with the rank-two projection $P_{jk} = \frac2K\cos\frac{2\pi(j-k)}K$. An upper bound of the global
    minimum, to be compared with the $K-1$ directions of the frame.

    Returns:
        The objective and $z$.

    Raises:
        ValueError: below four classes, where the polygon is the frame itself.

    Source: ours; the low-rank effect in deep models is due to Sukenik et al. (2024), Garrod and Keating (2025).
    """
    if n_classes < 4:
        raise ValueError(f"a planar arrangement differs from the frame from 4 classes on, got {n_classes}")
    row = polygon_projection(n_classes)[0]
    exponent = 2 / (len(lambda_w) + 1)
    c = 2 * price(n_per_class, lambda_h, lambda_w) / exponent

    def value(z: float) -> float:
        return float((z * (row - row[0])).exp().sum().log()) + c * z**exponent

    best = minimize_scalar(value, bounds=(1.0, 30.0 * n_classes), method="bounded", options={"xatol": 1e-12})
    return float(best.fun), float(best.x)


def polygon_projection(n_classes: int) -> Float[Tensor, "k k"]:
    r"""$P_{jk} = \frac2K\cos\frac{2\pi(j-k)}K$, the projection on a plane that treats all classes alike."""
    angles = 2 * math.pi / n_classes * torch.arange(n_classes, dtype=torch.float64)
    return 2 / n_classes * (angles[:, None] - angles).cos()
