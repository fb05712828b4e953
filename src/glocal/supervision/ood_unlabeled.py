r"""Robust self-supervised (RSS) training of a linear classifier with labelled and out-of-domain unlabelled data.

The labelled term is the 0-1 loss made robust by optimal transport; the unlabelled term is the same robust loss at the
classifier's own predictions, so that it pushes the boundary out of dense regions.

r independent problems, m labelled and n unlabelled examples, d inputs, c starts of the optimisation.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.nn.training import Recipe, train

COSTS = ("l2", "l2sq")
LABELLED_LOSSES = ("ramp", "hinge")


@dataclass(frozen=True)
class RssSettings:
    r"""Weights and optimisation of the estimator.

    Args:
        lam: weight $\lambda$ of the unlabelled term; 0 is distributionally robust learning on the labels alone.
        gamma: price $\gamma$ of moving a labelled point by one unit of the transport cost.
        gamma_u: price $\gamma'$ for unlabelled points.
        cost: `l2`, $c(z, x) = \lVert z - x\rVert$, or `l2sq`, its square.
        labelled: `ramp`, the robust 0-1 loss, or `hinge`, its convex relative $\max(0, 1 - \gamma s)$ with margin $s$.
        n_steps: Adam steps on the sphere.
        lr: peak learning rate, cosine decay to zero.
        n_starts: starts of the optimisation: the class mean, then random perturbations of it.
        warmup: share of the steps over which the weight of the unlabelled term rises linearly from 0.

    Raises:
        ValueError: for an unknown cost or loss, or a negative weight.
    """

    lam: float = 10.0
    gamma: float = 1.0
    gamma_u: float = 0.2
    cost: str = "l2"
    labelled: str = "ramp"
    n_steps: int = 150
    lr: float = 0.03
    n_starts: int = 3
    warmup: float = 0.2

    def __post_init__(self) -> None:
        if self.cost not in COSTS:
            raise ValueError(f"cost must be one of {', '.join(COSTS)}, got {self.cost!r}")
        if self.labelled not in LABELLED_LOSSES:
            raise ValueError(f"labelled must be one of {', '.join(LABELLED_LOSSES)}, got {self.labelled!r}")
        if min(self.lam, self.gamma, self.gamma_u) < 0:
            raise ValueError(
                f"lam, gamma and gamma_u must not be negative, got {self.lam}, {self.gamma}, {self.gamma_u}"
            )


@dataclass(frozen=True)
class LinearRule:
    """Unit normals and offsets of linear classifiers, one per problem: the sign of $\\langle w, x\\rangle + b$."""

    w: Float[Tensor, "r d"]
    b: Float[Tensor, " r"]

    def score(self, x: Float[Tensor, "r n d"]) -> Float[Tensor, "r n"]:
        """Signed distance of every point to the boundary."""
        return (x @ self.w[..., None]).squeeze(-1) + self.b[:, None]


def robust_loss(margin: Float[Tensor, "..."], gamma: float, cost: str = "l2") -> Float[Tensor, "..."]:
    r"""Robust 0-1 loss $\phi_\gamma = \sup_z \mathbb 1\{y\langle\theta, z\rangle \le 0\} - \gamma c(z, x)$.

    The vector $\theta$ has unit length. Moving a correctly classified point onto the boundary costs its distance
    $s = y\langle\theta, x\rangle$ (or $s^2$), which pays if $\gamma s < 1$; a misclassified point already has loss 1.
    Hence $\phi_\gamma = \min(1, \max(0, 1 - \gamma s))$, with $(s_+)^2$ instead of $s$ for the squared cost.

    Args:
        margin: $s = y\langle\theta, x\rangle$, any shape.
        gamma: price of moving.
        cost: `l2` or `l2sq`.

    Source: definition of the robust loss; the closed form is derived here.
    """
    moved = margin if cost == "l2" else margin.clamp(min=0).square()
    return (1 - gamma * moved).clamp(0, 1)


def unlabelled_loss(score: Float[Tensor, "..."], gamma: float, cost: str = "l2") -> Float[Tensor, "..."]:
    r"""Robust loss at the classifier's own prediction: $\phi_{\gamma'}(x', \mathrm{sign}\langle\theta, x'\rangle)$.

    Its margin is $|\langle\theta, x'\rangle|$, so it is even in $\theta$ and knows no labels.
    """
    return robust_loss(score.abs(), gamma, cost)


def class_mean(x: Float[Tensor, "r m d"], y: Float[Tensor, "r m"]) -> Float[Tensor, "r d"]:
    r"""Unit vector along $\sum_i y_ix_i$, the plug-in estimate of $\mu_0$ under isotropic noise."""
    total = (y[..., None] * x).sum(1)
    return total / total.norm(dim=1, keepdim=True)


def objective(
    scores: tuple[Float[Tensor, "r c m"], Float[Tensor, "r c n"]],
    y: Float[Tensor, "r m"],
    settings: RssSettings,
    lam: float,
) -> Float[Tensor, "r c"]:
    r"""Empirical risk of RSS for given scores of labelled and unlabelled points, with weight `lam` on the latter."""
    labelled, unlabelled = scores
    margin = y[:, None] * labelled
    if settings.labelled == "ramp":
        risk = robust_loss(margin, settings.gamma, settings.cost).mean(-1)
    else:
        risk = (1 - settings.gamma * margin).clamp(min=0).mean(-1)
    if unlabelled.shape[-1] and lam > 0:
        risk = risk + lam * unlabelled_loss(unlabelled, settings.gamma_u, settings.cost).mean(-1)
    return risk


def fit_rss(
    x: Float[Tensor, "r m d"],
    y: Float[Tensor, "r m"],
    unlabelled: Float[Tensor, "q n d"],
    settings: RssSettings,
    *,
    has_offset: bool = False,
    generator: torch.Generator,
) -> LinearRule:
    r"""The RSS estimator: Adam on the unit sphere, several starts, the lowest objective wins.

    The scores use $\theta/\lVert\theta\rVert$ and $\theta$ is brought back to unit length after every step, so the
    gradient is projected on the tangent space before Adam sees it; without the projection Adam spends its steps on the
    radial direction.

    Args:
        x: labelled inputs.
        y: their labels, -1 or 1.
        unlabelled: further inputs, of whatever distribution, of each problem (q = r) or the same for all (q = 1); n may
            be 0.
        settings: weights and optimisation.
        has_offset: also fit an offset $b$, unpenalised; the simulation is symmetric and has none.
        generator: source of the random starts.

    Returns:
        One rule per problem.

    Raises:
        ValueError: if labels are not -1 or 1.

    Source: definition of the estimator (RSS); tangent projection measured to matter, see the chapter.
    """
    if not bool((y.abs() == 1).all()):
        raise ValueError("labels must be -1 or 1: map classes first")
    theta, offset = _starts(x, y, settings.n_starts, generator)
    trained = [theta.requires_grad_(), offset.requires_grad_()] if has_offset else [theta.requires_grad_()]
    if not has_offset:
        offset = torch.zeros_like(offset)
    columns = [points.transpose(1, 2).contiguous() for points in (x, unlabelled)]  # the faster layout of the products

    def scores() -> tuple[Tensor, Tensor]:
        unit = theta / theta.norm(dim=-1, keepdim=True)
        return _scores(unit, columns[0]) + offset, _scores(unit, columns[1]) + offset

    def loss_at(step: int) -> Float[Tensor, "r c"]:
        rising = min(1.0, step / max(1.0, settings.warmup * settings.n_steps))
        return objective(scores(), y, settings, settings.lam * rising)

    def renormalise(step: int) -> None:
        with torch.no_grad():
            theta.div_(theta.norm(dim=-1, keepdim=True))

    train(trained, loss_at, Recipe(settings.n_steps, settings.lr, optimizer="adam"), after_step=renormalise)
    with torch.no_grad():
        best = objective(scores(), y, settings, settings.lam).argmin(1)
        rows = torch.arange(len(x), device=x.device)
        return LinearRule(theta[rows, best].detach(), offset[rows, best, 0].detach())


def _starts(
    x: Float[Tensor, "r m d"], y: Float[Tensor, "r m"], n_starts: int, generator: torch.Generator
) -> tuple[Float[Tensor, "r c d"], Float[Tensor, "r c 1"]]:
    """Class mean and random unit perturbations of it, with the offset that lies halfway between the class means."""
    start = class_mean(x, y)[:, None]
    shape = (len(x), n_starts - 1, x.shape[2])
    noise = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
    theta = torch.cat([start, start + noise / noise.norm(dim=-1, keepdim=True)], 1)
    theta = theta / theta.norm(dim=-1, keepdim=True)
    means = [((y == sign)[..., None] * x).sum(1) / (y == sign).sum(1, keepdim=True) for sign in (1, -1)]
    return theta, -(theta @ ((means[0] + means[1]) / 2)[..., None])


def _scores(unit: Float[Tensor, "r c d"], columns: Float[Tensor, "q d n"]) -> Float[Tensor, "r c n"]:
    """Scores of own points (q = r), or of points that all problems share (q = 1): then one product with all rules."""
    if len(columns) == len(unit):
        return unit @ columns
    r, c, d = unit.shape
    return (unit.reshape(1, r * c, d) @ columns).reshape(r, c, -1)


def cross_validated(
    x: Float[Tensor, "1 m d"],
    y: Float[Tensor, "1 m"],
    unlabelled: Float[Tensor, "1 n d"],
    settings: RssSettings,
    lams: list[float],
    *,
    n_folds: int = 5,
    generator: torch.Generator,
) -> tuple[LinearRule, float]:
    r"""RSS with $\lambda$ chosen by cross-validation on the labels; all folds are fitted at once.

    Ties, frequent with few labels, go to the larger $\lambda$.

    Args:
        x: labelled inputs of one problem.
        y: their labels.
        unlabelled: further inputs.
        settings: everything but $\lambda$.
        lams: values to choose from.
        n_folds: folds; m must be a multiple.
        generator: source of folds and starts.

    Returns:
        The rule fitted on all labels, and the chosen $\lambda$.

    Raises:
        ValueError: if the labels cannot be cut into equal folds.
    """
    m = x.shape[1]
    if m % n_folds:
        raise ValueError(f"{m} labels cannot be cut into {n_folds} equal folds")
    order = torch.randperm(m, generator=generator, device=generator.device)
    is_held: Bool[Tensor, "folds m"] = torch.zeros(n_folds, m, dtype=torch.bool, device=x.device)
    is_held[torch.arange(m, device=x.device) % n_folds, order] = True
    held: Int[Tensor, "folds h"] = is_held.nonzero()[:, 1].reshape(n_folds, -1)
    kept: Int[Tensor, "folds k"] = (~is_held).nonzero()[:, 1].reshape(n_folds, -1)
    errors = []
    for lam in lams:
        rule = fit_rss(
            x[0, kept],
            y[0, kept],
            unlabelled,
            replace(settings, lam=lam),
            generator=generator,
        )
        errors.append((rule.score(x[0, held]) * y[0, held] <= 0).float().mean())
    best = len(lams) - 1 - int(torch.stack(errors).flip(0).argmin())
    return fit_rss(x, y, unlabelled, replace(settings, lam=lams[best]), generator=generator), lams[best]


def gaussian_cdf(z: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    r"""$\Phi(z)$."""
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def rule_accuracy(
    w: Float[Tensor, "r d"], mean: Float[Tensor, "r d"], sigma: float = 1.0, *, radius: float = 0.0
) -> Float[Tensor, " r"]:
    r"""Exact accuracy $\Phi((\langle w, \mu_0\rangle - \epsilon)/\sigma)$ of a unit rule on the Gaussian mixture.

    Args:
        w: unit normals, rules without offset.
        mean: $\mu_0$ of each problem.
        sigma: standard deviation of the noise.
        radius: $\epsilon$, size of an adversarial shift in Euclidean norm; 0 is the clean accuracy.
    """
    return gaussian_cdf(((w * mean).sum(1) - radius) / sigma)


def class_mean_cosine(m: int, d: int, sigma: float = 1.0) -> float:
    r"""Cosine $(1 + d\sigma^2/m)^{-1/2}$ of the class mean of m labels with a unit $\mu_0$, for large d."""
    return (1 + d * sigma**2 / m) ** -0.5


def principal_cosine(n: int, d: int, sigma: float = 1.0) -> float:
    r"""Cosine of the first principal component of n unlabelled points with their mean direction, for large d.

    With $\lVert\mu\rVert = 1$, aspect ratio $g = d/n$ and signal-to-noise ratio $\ell = \sigma^{-2}$,
    $\cos^2 = (1 - g/\ell^2)/(1 + g/\ell)$ above the threshold $\ell^2 > g$, and 0 below.

    Source: the spiked-covariance limit of Baik, Ben Arous, Péché and Paul.
    """
    ratio, snr = d / n, sigma**-2
    return math.sqrt(max(0.0, (1 - ratio / snr**2) / (1 + ratio / snr)))
