r"""Relatives of G-ACIL from the same authors: another buffer (GKEAL), a second stream (DS-AL), class weights (AIR).

n samples of a batch, d buffer features, f backbone features, k classes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from glocal.supervision.anytime import Learner
from glocal.supervision.gacil import GACIL, head_step, new_classes, relu_buffer, woodbury_step

VARIANTS = ("gacil", "acil", "gkeal", "dsal", "air")


def make_variant(
    name: str,
    n_buffer: int,
    *,
    gamma: float = 0.1,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Learner:
    """Head of one of the authors' methods: `"gacil"`, `"acil"` (no ECLG), `"gkeal"`, `"dsal"` or `"air"`.

    It reads what `variant_buffer` returns for the same name.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {name!r}")
    if name == "dsal":
        return DSAL(n_buffer, gamma=gamma, device=device)
    if name == "air":
        return AIR(n_buffer, gamma=gamma, device=device)
    return GACIL(n_buffer, gamma=gamma, eclg=name != "acil", dtype=dtype, device=device)


def variant_buffer(
    name: str,
    features: Float[Tensor, "n f"],
    weights: Float[Tensor, "f d"],
    centers: Float[Tensor, "d f"],
    sigma: float,
) -> Float[Tensor, "n d"]:
    """What the head `name` reads: ReLU features, Gaussian features (GKEAL) or the bare projection (DS-AL)."""
    if name == "gkeal":
        return gaussian_buffer(features, centers, sigma)
    return features.to(weights.dtype) @ weights if name == "dsal" else relu_buffer(features, weights)


def gaussian_buffer(
    features: Float[Tensor, "n f"], centers: Float[Tensor, "d f"], sigma: float
) -> Float[Tensor, "n d"]:
    r"""GKEAL's buffer $\phi_j(x) = \exp(-\lVert f(x) - \mu_j\rVert^2 / 2\sigma^2)$ with samples of task 1 as centres.

    Source: Zhuang et al., CVPR 2023, Gaussian kernel embedding.
    """
    distance = torch.cdist(features.double(), centers.double())
    return torch.exp(-(distance**2) / (2 * sigma**2))


class DSAL:
    r"""Dual stream: a tanh stream learns what the ReLU stream leaves over, $\hat y = \phi W + c\,\psi V$.

    Both streams share the random projection. The residual keeps only columns of classes that are new in the running
    task ("previous label cleansing"), since for older classes the compensation would mix targets of different ages.

    Args:
        n_buffer: width of each stream.
        gamma: ridge weight of both streams.
        compensation: $c$, weight of the second stream.
        device: where the state lives.

    The learner reads *linear* projections $W_B f(x)$, not buffer features: it applies both activations itself.
    Source: Zhuang et al., AAAI 2024. The residual is taken batch by batch, after the main stream has learnt the batch.
    """

    def __init__(
        self,
        n_buffer: int,
        *,
        gamma: float = 0.1,
        compensation: float = 0.6,
        device: str | torch.device = "cpu",
    ) -> None:
        self.main = GACIL(n_buffer, gamma=gamma, device=device)
        self.compensation = compensation
        self.inverse: Tensor = self.main.inverse.clone()
        self.weights: Tensor = self.main.weights.clone()
        self._n_before_task = 0

    def begin_task(self) -> None:
        """Note the classes of earlier tasks; their residual columns will be cleansed."""
        self._n_before_task = len(self.main.classes)

    def update(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Update the main stream, then fit the compensation stream to what is left."""
        n_exposed = len(self.main.classes)
        projection = x.to(self.weights.dtype)
        main, side = projection.relu(), projection.tanh()
        self.main.update(main, labels)
        residual = (labels[:, None] == self.main.classes).to(main.dtype) - main @ self.main.weights
        residual[:, : self._n_before_task] = 0
        self.inverse, gain = woodbury_step(self.inverse, side)
        self.weights = head_step(
            self.weights, side, gain, residual[:, :n_exposed].clone(), residual[:, n_exposed:].clone()
        )

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Class with the largest sum of both streams."""
        projection = x.to(self.weights.dtype)
        score = projection.relu() @ self.main.weights
        score += self.compensation * projection.tanh() @ self.weights
        return self.main.classes[score.argmax(1)]


class AIR:
    r"""Ridge head in which every class weighs the same: $W = (\sum_c w_c A_c + \gamma I)^{-1}[w_c q_c]_c$.

    $A_c = \sum_{i: y_i=c}\phi_i\phi_i^\top$, $q_c = \sum_{i: y_i=c}\phi_i$, and $w_c = n/(k n_c)$. The weights of all
    classes move whenever a sample arrives, so no single $R$ can be carried along: the price is one Gram matrix per
    class, $O(k d^2)$ memory. With equal class sizes $w_c = 1$ and AIR is G-ACIL.

    Args:
        n_buffer: $d_B$.
        gamma: ridge weight.
        device: where the state lives.

    Source: Fang et al., "AIR: analytic imbalance rectifier", 2024: re-weighting by the inverse class size.
    """

    def __init__(self, n_buffer: int, *, gamma: float = 0.1, device: str | torch.device = "cpu") -> None:
        self.gamma = gamma
        self.grams: Tensor = torch.zeros(0, n_buffer, n_buffer, dtype=torch.float64, device=device)
        self.sums: Tensor = torch.zeros(n_buffer, 0, dtype=torch.float64, device=device)
        self.counts: Tensor = torch.zeros(0, dtype=torch.float64, device=device)
        self.classes: Tensor = torch.zeros(0, dtype=torch.long, device=device)

    def begin_task(self) -> None:
        """AIR needs no task borders."""

    def update(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Add the batch to the statistics of its classes."""
        phi = x.to(self.sums.dtype)
        new = new_classes(labels, self.classes)
        self.classes = torch.cat([self.classes, new])
        d = phi.shape[1]
        self.grams = torch.cat([self.grams, self.grams.new_zeros(len(new), d, d)])
        targets = (labels[:, None] == self.classes).to(phi.dtype)
        self.sums = torch.cat([self.sums, self.sums.new_zeros(d, len(new))], dim=1) + phi.T @ targets
        self.counts = torch.cat([self.counts, self.counts.new_zeros(len(new))]) + targets.sum(0)
        for column in targets.any(0).nonzero().squeeze(1).tolist():  # a loop over the classes of the batch
            rows = phi[targets[:, column] > 0]
            self.grams[column] += rows.T @ rows

    @property
    def weights(self) -> Float[Tensor, "d k"]:
        """Solution for the present class weights; one Cholesky factorisation per call."""
        class_weight = self.counts.sum() / (len(self.counts) * self.counts)
        gram = torch.tensordot(class_weight, self.grams, dims=1)
        gram.diagonal().add_(self.gamma)
        return torch.cholesky_solve(self.sums * class_weight, torch.linalg.cholesky(gram))

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Class with the largest score."""
        return self.classes[(x.to(self.sums.dtype) @ self.weights).argmax(1)]
