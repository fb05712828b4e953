"""The same limit for a neural network, at one data point (Yang et al. 2023, arXiv:2108.13097).

A hidden layer of $N$ ReLU units sees one input: pre-activations $f_j \\sim N(0, g)$, Gram "matrix"
$G = \\frac2N\\sum_j \\mathrm{ReLU}(f_j)^2$, and $N$ copies of an output $y \\sim N(0, G + \\sigma^2)$. Units with
$f_j < 0$ do not matter to the data, so the posterior treats the two signs differently: it cannot be a centred Gaussian.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.optimize import brentq
from torch import Tensor


@dataclass(frozen=True)
class UnitLaw:
    """Posterior of one hidden unit: share of positive pre-activations, skewness, and the mean Gram value."""

    positive: float
    skewness: float
    gram: float


def _skewness(first: float, second: float, third: float) -> float:
    variance = second - first**2
    return (third - 3 * first * second + 2 * first**3) / variance**1.5


def finite_network(width: int, gram: float, square: float, sigma2: float, *, points: int = 3000) -> UnitLaw:
    r"""Exact posterior of a unit at finite width, by a sum over the number of active units and quadrature over $G$.

    Given $c$ active units, of binomial probability, $G = \frac{2g}N\chi^2_c$; the likelihood is
    $N(y; 0, G + \sigma^2)^N$. An active pre-activation is $\sqrt{NG/2}$ times a coordinate of a random unit vector
    in $\mathbb R^c$, taken in absolute value.

    Args:
        width: $N$.
        gram: $g$.
        square: $y^2$.
        sigma2: $\sigma^2$, positive (no unit may be active).
        points: nodes of the trapezoidal rule in $\log G$.

    Raises:
        ValueError: if the noise variance is not positive.
    """
    if sigma2 <= 0:
        raise ValueError(f"sigma2 must be positive, since all units can be off, got {sigma2}")
    count = torch.arange(1, width + 1, dtype=torch.float64)[:, None]
    log_value = torch.linspace(-14.0, 8.0, points, dtype=torch.float64)
    value = log_value.exp()
    chi = width * value / (2 * gram)
    log_pdf = 0.5 * count * (chi.log() - math.log(2.0)) - 0.5 * chi - torch.lgamma(0.5 * count)  # measure dG / G
    log_weight = _log_binomial(width, count) + log_pdf + width * _log_output(value, square, sigma2)
    log_weight = log_weight + math.log(float(log_value[1] - log_value[0]))
    off = _log_binomial(width, torch.zeros(1, dtype=torch.float64)) + width * _log_output(
        torch.zeros(1, dtype=torch.float64), square, sigma2
    )
    top = torch.maximum(log_weight.max(), off.max())
    weight, weight_off = (log_weight - top).exp(), (off - top).exp().sum()
    total = weight.sum() + weight_off
    share = count / width

    def mean(values: Tensor) -> float:
        return float((weight * values).sum() / total)

    # E|u|^q of a coordinate of a unit vector in c dimensions, times (N G / 2)^(q/2)
    moments = [mean(share * (0.5 * width * value) ** (q / 2) * _coordinate_moment(count, q)) for q in (1, 2, 3)]
    positive = mean(share.expand_as(weight))
    below = [(1 - positive) * (-1) ** q * _half_normal_moment(gram, q) for q in (1, 2, 3)]
    raw = [a + b for a, b in zip(moments, below, strict=True)]
    return UnitLaw(positive, _skewness(*raw), mean(value.expand_as(weight)))


def _log_binomial(width: int, count: Tensor) -> Tensor:
    """Log probability of `count` heads in `width` fair coins."""
    n = torch.tensor(float(width), dtype=torch.float64)
    return torch.lgamma(n + 1) - torch.lgamma(count + 1) - torch.lgamma(n - count + 1) - width * math.log(2.0)


def _log_output(value: Float[Tensor, " points"], square: float, sigma2: float) -> Float[Tensor, " points"]:
    noisy = value + sigma2
    return -0.5 * (noisy.log() + square / noisy)


def _coordinate_moment(dimension: Tensor, q: int) -> Tensor:
    r"""$E|u_1|^q = \Gamma(\frac c2)\Gamma(\frac{q+1}2) / (\sqrt\pi\,\Gamma(\frac{c+q}2))$ on the unit sphere."""
    log_moment = torch.lgamma(dimension / 2) - torch.lgamma((dimension + q) / 2)
    return log_moment.exp() * math.gamma((q + 1) / 2) / math.sqrt(math.pi)


def _half_normal_moment(variance: float, q: int) -> float:
    return variance ** (q / 2) * 2 ** (q / 2) * math.gamma((q + 1) / 2) / math.sqrt(math.pi)


def limiting_network(gram: float, square: float, sigma2: float) -> UnitLaw:
    r"""The limit $N \to \infty$: independent units of density $\propto N(f; 0, g)\,e^{2\Lambda\mathrm{ReLU}(f)^2}$.

    $\Lambda = \frac{d}{dG}\log N(y; 0, G + \sigma^2)$ at the mean $G$ of that density, one scalar equation. Below
    zero the density keeps the variance $g$, above zero it has $1/g' = 1/g - 4\Lambda$. For linear units the same
    argument gives $N(0, G^\star)$, the deep Gaussian process.

    Source: large deviations of the empirical law of the units; the paper's extension to neural networks, derived
    here for one point.
    """

    def slope(value: float) -> float:
        noisy = value + sigma2
        return 0.5 * (square / noisy**2 - 1 / noisy)

    def active_variance(value: float) -> float:
        return 1 / (1 / gram - 4 * slope(value))

    def gap(value: float) -> float:
        wide = active_variance(value)
        return value - 2 * wide * math.sqrt(wide) / (math.sqrt(wide) + math.sqrt(gram))

    low = 1e-9
    if 1 / gram - 4 * slope(low) <= 0:  # too close to zero the tilt is not normalisable: start where it is
        low = brentq(lambda v: 1 / gram - 4 * slope(v), 1e-9, square + gram) * (1 + 1e-9)
    value = brentq(gap, low, 10 * (square + gram + sigma2))
    wide = active_variance(value)
    positive = math.sqrt(wide) / (math.sqrt(wide) + math.sqrt(gram))
    raw = [
        positive * _half_normal_moment(wide, q) + (1 - positive) * (-1) ** q * _half_normal_moment(gram, q)
        for q in (1, 2, 3)
    ]
    return UnitLaw(positive, _skewness(*raw), value)
