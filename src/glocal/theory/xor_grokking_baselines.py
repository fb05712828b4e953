"""What the network on XOR clusters is compared with: linear classifiers, random features, the oracle."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm
from torch import Tensor

from glocal.theory.xor_grokking_data import Points, Problem

LOGISTIC_GRID = tuple(10.0**k for k in range(-6, 3))
RIDGE_GRID = tuple(10.0**k for k in range(-6, 7, 2))


def joined(*blocks: Points) -> Points:
    """Points with the coordinates of several blocks side by side."""
    return Points(*(torch.cat(parts, -1) for parts in zip(*(vars(block).values() for block in blocks), strict=True)))


def fit_logistic(
    points: Points, labels: Float[Tensor, "runs n"], *, grid: Sequence[float] = LOGISTIC_GRID, n_folds: int = 5
) -> Float[Tensor, "runs q"]:
    r"""Weights $v$ of scikit-learn's `LogisticRegressionCV` through the origin, one fit per run.

    Without intercept, as the network has no bias; the penalty is chosen by cross-validation on the noisy labels.

    Args:
        points: coordinates; those in which all training points are zero get no weight.
        labels: observed labels.
        grid: inverse penalties $C$ to choose from.
        n_folds: folds of the cross-validation.
    """
    from sklearn.linear_model import LogisticRegressionCV

    weights = torch.zeros(points.train.shape[0], points.train.shape[2], dtype=torch.float64)
    for run, (x, y) in enumerate(zip(points.train.cpu(), labels.cpu(), strict=True)):
        used = (x != 0).any(0)
        model = LogisticRegressionCV(
            Cs=list(grid),
            cv=n_folds,
            fit_intercept=False,
            solver="newton-cholesky",
            l1_ratios=(0,),
            scoring="accuracy",
            use_legacy_attributes=False,
        )
        weights[run, used] = torch.as_tensor(model.fit(x[:, used].numpy(), y.numpy()).coef_[0])
    return weights.to(labels.device)


def fit_random_features(
    problem: Problem, second: Float[Tensor, "runs m"], *, grid: Sequence[float] = RIDGE_GRID
) -> tuple[Float[Tensor, "runs n"], Float[Tensor, "runs test"]]:
    r"""The same network with its first layer frozen at $W^{(0)}$ and the second fitted by ridge regression.

    Features are $\phi(\langle w_j^{(0)}, x\rangle)/\sqrt m$ divided by their root mean square, so that the grid of
    penalties means the same for every $p$; scikit-learn's `RidgeCV` chooses by leave-one-out error on the noisy labels.

    Returns:
        Outputs on training and test points.
    """
    from sklearn.linear_model import RidgeCV

    train, test = torch.relu(problem.grams.train_init), torch.relu(problem.grams.probes_init[:, :-2])
    scale = train.square().mean((1, 2), keepdim=True).sqrt() * second.shape[1] ** 0.5
    outputs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for x, x_test, y in zip((train / scale).cpu(), (test / scale).cpu(), problem.labels.cpu(), strict=True):
        model = RidgeCV(alphas=list(grid), fit_intercept=False).fit(x.numpy(), y.numpy())
        for values, part in zip(outputs, (x, x_test), strict=True):
            values.append(model.predict(part.numpy()))
    fitted, predicted = (torch.as_tensor(np.stack(values)).to(second) for values in outputs)
    return fitted, predicted


def linear_population_accuracy(
    products: Float[Tensor, "*batch 2"], length: Float[Tensor, "*batch"], offset: Float[Tensor, "*batch"] | float = 0.0
) -> Float[Tensor, "*batch"]:
    r"""Probability that $\mathrm{sgn}(\langle v, x\rangle + b)$ is the clean label of a fresh point, in closed form.

    Averaged over the four centres, $\frac14\sum_\pm\Phi(b' \pm s_1) + \frac14\sum_\pm\Phi(-b' \pm s_2)$ with
    $s_k = \langle v, \mu_k\rangle/\lVert v\rVert$ and $b' = b/\lVert v\rVert$. For $b = 0$ both sums are one and the
    accuracy is 1/2 for every $v$; with an offset it stays below 3/4.

    Args:
        products: $\langle v, \mu_1\rangle$ and $\langle v, \mu_2\rangle$.
        length: $\lVert v\rVert$.
        offset: $b$.
    """
    s, b = products / length[..., None], torch.as_tensor(offset, dtype=length.dtype, device=length.device) / length
    phi = torch.special.ndtr
    positive = phi(b + s[..., 0]) + phi(b - s[..., 0])
    negative = phi(-b - s[..., 1]) + phi(-b + s[..., 1])
    return (positive + negative) / 4


def oracle_outputs(points: Points) -> Float[Tensor, "runs test"]:
    r"""$\max_\pm\langle\pm\mu_1, x\rangle - \max_\pm\langle\pm\mu_2, x\rangle$ on the test points, for known means.

    Args:
        points: the block of coordinates along the means (other blocks contribute nothing).
    """
    test, means = points.probes[:, :-2], points.probes[:, -2:]
    along = (test @ means.mT).abs()
    return along[..., 0] - along[..., 1]


def oracle_error(mu_sq: float) -> float:
    r"""Error of the oracle, $2q(1-q)$ with $q = \Phi(-\lVert\mu\rVert/\sqrt2)$.

    Turned by 45 degrees, the rule $|u_1| > |u_2|$ is the sign of $(u_1 - u_2)(u_1 + u_2)$; both factors are independent
    Gaussians with means $\pm\lVert\mu\rVert$ and variance two, and the product is wrong if exactly one of them is.
    """
    q = float(norm.cdf(-((mu_sq / 2) ** 0.5)))
    return 2 * q * (1 - q)
