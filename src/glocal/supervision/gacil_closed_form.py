r"""Rivals of an analytic head without gradient steps on a stream: SLDA and NCM, and joint logistic regression.

n samples of a batch, d features, k classes.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy.optimize import minimize
from torch import Tensor


class SLDA:
    r"""Streaming linear discriminant analysis: class means and one covariance, both exact over the whole stream.

    Score $\mu_c^\top\Lambda x - \tfrac12\mu_c^\top\Lambda\mu_c$ with $\Lambda = \bigl((1-s)\Sigma + s\,\bar\sigma^2
    I\bigr)^{-1}$, $\bar\sigma^2 = \mathrm{tr}\,\Sigma/d$; equal priors unless `has_priors`. `shrinkage=1` leaves the
    nearest class mean (NCM) in the Euclidean metric, and then no covariance is kept.

    Args:
        n_features: $d$.
        n_classes: rows to allocate.
        shrinkage: $s$ in [0, 1].
        has_priors: add the logarithm of the class shares.
        dtype: precision of the statistics.
        device: where they live.

    Source: Hayes and Kanan, CVPR workshops 2020, Sections 3.1-3.2; pooled moments are merged batch by batch.
    """

    def __init__(
        self,
        n_features: int,
        n_classes: int,
        *,
        shrinkage: float = 1e-4,
        has_priors: bool = False,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must be in [0, 1], got {shrinkage}")
        self.shrinkage, self.has_priors = shrinkage, has_priors
        self.counts = torch.zeros(n_classes, dtype=dtype, device=device)
        self.means = torch.zeros(n_classes, n_features, dtype=dtype, device=device)
        side = n_features if shrinkage < 1 else 0
        self.scatter = torch.zeros(side, side, dtype=dtype, device=device)

    def begin_task(self) -> None:
        """Task-free."""

    def update(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Merge the moments of the batch into the running ones."""
        x = x.to(self.means.dtype)
        onehot = F.one_hot(labels, len(self.counts)).to(x.dtype)
        new = onehot.sum(0)
        batch_means = (onehot.T @ x) / new.clamp(min=1)[:, None]
        shift = batch_means - self.means
        if self.shrinkage < 1:
            centered = x - batch_means[labels]
            between = (self.counts * new / (self.counts + new).clamp(min=1)).sqrt()[:, None] * shift
            rows = torch.cat([centered, between])
            self.scatter.addmm_(rows.T, rows)
        self.counts += new
        self.means += (new / self.counts.clamp(min=1))[:, None] * shift

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Class with the largest discriminant among those seen; one Cholesky factorisation per call."""
        precise = self.means
        if self.shrinkage < 1:
            covariance = self.scatter / self.counts.sum() * (1 - self.shrinkage)
            ridge = self.scatter.trace() / self.counts.sum() / len(self.scatter) * self.shrinkage
            covariance.diagonal().add_(ridge.clamp(min=torch.finfo(ridge.dtype).tiny))
            precise = torch.cholesky_solve(self.means.T, torch.linalg.cholesky(covariance)).T
        bias = -0.5 * (precise * self.means).sum(1)
        if self.has_priors:
            bias = bias + (self.counts / self.counts.sum()).log()
        score = x.to(precise.dtype) @ precise.T + bias
        return score.masked_fill(self.counts == 0, -torch.inf).argmax(1)


def joint_logistic(
    x: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    n_classes: int,
    *,
    weight_decay: float = 1e-2,
    max_iter: int = 10,
) -> Float[Tensor, "d k"]:
    r"""Multinomial logistic regression on all data at once, by L-BFGS: what gradient heads might reach offline.

    Minimises mean cross-entropy plus $\tfrac\lambda2\mathrm{tr}(W^\top C W)$ with $C = \Phi^\top\Phi/n$ (and a trace
    of the identity): the penalty is on the size of the scores, and in the whitened variables in which L-BFGS works it
    is plain weight decay. Random features are so correlated that unwhitened steps crawl. No bias, like the ridge head.
    """
    moment = x.T.double() @ x.double() / len(x)
    moment.diagonal().add_(1e-5 * moment.diagonal().mean())
    chol = torch.linalg.cholesky(moment).to(torch.float32)
    white = torch.linalg.solve_triangular(chol, x.T.float(), upper=False).T
    onehot = F.one_hot(labels, n_classes).to(white.dtype)

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = torch.from_numpy(flat).reshape(-1, n_classes).to(white)
        log_probs = (white @ weight).log_softmax(1)
        value = -(onehot * log_probs).sum(1).mean() + weight_decay / 2 * weight.square().sum()
        slope = white.T @ (log_probs.exp() - onehot) / len(white) + weight_decay * weight
        return float(value), slope.double().flatten().cpu().numpy()

    start = np.zeros(white.shape[1] * n_classes)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": max_iter})
    weight = torch.from_numpy(result.x).reshape(-1, n_classes).to(white)
    return torch.linalg.solve_triangular(chol.T, weight, upper=True)
