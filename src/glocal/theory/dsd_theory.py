"""Exact risks on the moving-signal task (Lahoti et al. 2024, arXiv:2403.15707)."""

import math

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from glocal.theory.dsd import Trained


def threshold_moments(
    mean: Float[Tensor, "*shape"], std: Float[Tensor, "*shape"], b: Float[Tensor, "*#shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    r"""$\mathbb E\,\phi_b(z)$ and $\mathbb E\,\phi_b(z)^2$ for $z \sim N(\mu, s^2)$, in closed form.

    $\phi_b$ is the difference of two ReLUs with disjoint supports, and for one of them, with $u = (\mu - b)/s$,
    $\mathbb E\,\mathrm{ReLU}(z - b) = s\,(u\,\Phi(u) + \varphi(u))$ and
    $\mathbb E\,\mathrm{ReLU}(z - b)^2 = s^2((u^2 + 1)\,\Phi(u) + u\,\varphi(u))$.
    """
    first, second = torch.zeros_like(mean), torch.zeros_like(mean)
    for sign in (1, -1):
        u = (sign * mean - b) / std
        density, mass = (-u * u / 2).exp() / math.sqrt(2 * math.pi), torch.special.ndtr(u)
        first = first + sign * std * (u * mass + density)
        second = second + std.square() * ((u * u + 1) * mass + u * density)
    return first, second


def population_risk(
    networks: Trained, signal: Float[Tensor, "runs d"], k: int, sigma: float
) -> Float[Tensor, "runs models"]:
    r"""Exact risk $\mathbb E (f(x) - y)^2$ of a CNN or LCN on fresh images.

    Given $y$ and $t$ the preactivations are independent, $N(y\langle w_s, w^\star\rangle\mathbb 1\{s = t\},
    \sigma^2\lVert w_s\rVert^2)$, and noise patches have mean zero, so with $e_s, q_s$ the two moments of
    $\phi_b$ at the signal and $v_s$ its second moment at noise
    $$R = \frac1k\sum_t \Bigl[(1 - e_t)^2 + q_t - e_t^2 + \sum_{s \ne t} v_s\Bigr].$$

    Args:
        networks: trained networks; computed in float64.
        signal: $w^\star$ of each run.
        k: number of patches.
        sigma: noise.

    Raises:
        ValueError: for an FCN, whose preactivations share their inputs.
    """
    if networks.kind == "fcn":
        raise ValueError("population_risk knows the kinds cnn and lcn, got 'fcn': use Trained.risk on a test set")
    weights, b = networks.weights.double().expand(-1, k, -1, -1), networks.bias.double()[:, None]
    mean = (weights * signal.double()[:, None, None]).sum(-1)
    std = sigma * weights.norm(dim=-1) + 1e-300
    e, q = threshold_moments(mean, std, b)
    v = threshold_moments(torch.zeros_like(mean), std, b)[1]
    return ((1 - e).square() + q - e.square() + v.sum(1, keepdim=True) - v).mean(1)


def best_linear_risk(k: int, sigma: float) -> float:
    r"""Least risk of a linear rule, $\sigma^2k/(1 + \sigma^2k)$, at weights $w^\star/(1 + \sigma^2k)$."""
    return sigma**2 * k / (1 + sigma**2 * k)


def best_network_risk(k: int, sigma: float, cosine: float = 1.0) -> float:
    r"""Least risk, over scale and $b$, of a network whose $k$ units have one filter with the given cosine to $w^\star$.

    With cosine one it is what is left when $w^\star$ is known. A smaller one says which risk a certain
    recovery of the signal is worth, so that tasks of different size can be compared at equal recovery.

    Raises:
        ValueError: if `cosine` is not in (0, 1].
    """
    if not 0 < cosine <= 1:
        raise ValueError(f"cosine must be in (0, 1], got {cosine}")

    def risk(point: np.ndarray) -> float:
        c, b = (torch.tensor([[float(value)]], dtype=torch.float64) for value in np.exp(point))
        signal = torch.full((1, 1), cosine, dtype=torch.float64)
        return float(population_risk(Trained("cnn", c[:, None, None, 0, None], b, b), signal, k, sigma))

    starts = np.log([[1.0, 0.1], [2.0, 0.5]])
    return min(float(minimize(risk, start, method="Nelder-Mead").fun) for start in starts)
