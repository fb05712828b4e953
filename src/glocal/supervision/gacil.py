r"""G-ACIL, analytic generalised class-incremental learning (Zhuang et al., arXiv:2403.15706, NeurIPS 2024 as GACL).

A frozen backbone, a frozen random layer, and a ridge regression that is updated exactly when a batch arrives.
n samples of a batch, d buffer features, f backbone features, c classes seen so far.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def buffer_weights(
    n_features: int, n_buffer: int, *, generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "f d"]:
    r"""Weights $W_B$ of the random buffer layer, entries uniform in $(-1/\sqrt{d_f}, 1/\sqrt{d_f})$.

    Args:
        n_features: $d_f$, width of the backbone's output.
        n_buffer: $d_B$, width of the buffer; the paper's is far larger than $d_f$.
        generator: on the device where the weights shall live.
        dtype: precision of everything that follows.

    Source: the authors' buffer layer, a linear layer without bias in PyTorch's default initialisation, never trained.
    """
    uniform = torch.rand(n_features, n_buffer, generator=generator, device=generator.device, dtype=dtype)
    return (2 * uniform - 1) / n_features**0.5


def relu_buffer(features: Float[Tensor, "n f"], weights: Float[Tensor, "f d"]) -> Float[Tensor, "n d"]:
    r"""Buffer layer $\phi(x) = \mathrm{ReLU}(W_B f(x))$: random features that make a linear head non-linear."""
    return (features.to(weights.dtype) @ weights).relu()


def woodbury_step(
    inverse: Float[Tensor, "d d"], phi: Float[Tensor, "n d"]
) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d n"]]:
    r"""Add a batch to the inverse Gram, $R_k = (R_{k-1}^{-1} + \Phi^\top\Phi)^{-1}$, inverting $n \times n$ only.

    $R_k = R_{k-1} - R_{k-1}\Phi^\top K \Phi R_{k-1}$ with $K = (I + \Phi R_{k-1}\Phi^\top)^{-1}$. Time
    $O(n d^2 + n^2 d + n^3)$; a batch with more rows than columns takes the direct route, $O(n d^2 + d^3)$.

    Args:
        inverse: $R_{k-1}$, symmetric positive definite.
        phi: $\Phi_k$, buffer features of the batch.

    Returns:
        $R_k$ and the gain $R_k\Phi^\top = R_{k-1}\Phi^\top K$, by which targets enter the weights.

    Raises:
        FloatingPointError: if rounding has destroyed positive definiteness.

    Source: the paper's recursion for $R_k$ (matrix inversion lemma).
    """
    n, d = phi.shape
    if n > d:
        gram = torch.cholesky_inverse(_cholesky(inverse)) + phi.T @ phi
        inverse = torch.cholesky_inverse(_cholesky(gram))
        return inverse, inverse @ phi.T
    phi_inverse = phi @ inverse
    inner = phi_inverse @ phi.T
    inner.diagonal().add_(1)
    chol = _cholesky(inner)  # K^-1 = L L^T
    half = torch.linalg.solve_triangular(chol, phi_inverse, upper=False)  # L^-1 Phi R, so H^T H is symmetric
    gain = torch.linalg.solve_triangular(chol.T, half, upper=True).T
    return torch.addmm(inverse, half.T, half, alpha=-1), gain


def head_step(
    weights: Float[Tensor, "d c_old"],
    phi: Float[Tensor, "n d"],
    gain: Float[Tensor, "d n"],
    exposed: Float[Tensor, "n c_old"],
    unexposed: Float[Tensor, "n c_new"],
) -> Float[Tensor, "d c_all"]:
    r"""Weights after a batch: $W_k = [\,W - R\Phi^\top\Phi W + R\Phi^\top\bar Y,\; R\Phi^\top\tilde Y\,]$.

    The middle term $R\Phi^\top\bar Y$ is the exposed-class label gain (ECLG): what the batch says about classes that
    already have a column. The first term makes room for it; the last block opens columns for new classes.

    Args:
        weights: $W_{k-1}$, one column per exposed class.
        phi: $\Phi_k$.
        gain: $R_k\Phi_k^\top$ of `woodbury_step`, with the *new* $R_k$.
        exposed: $\bar Y_k$, one-hot targets in the columns of exposed classes; rows of new classes are zero.
        unexposed: $\tilde Y_k$, one-hot targets of the new classes; may have no column.

    Source: the paper's theorem on the recursive weights.
    """
    shrunk = weights - gain @ (phi @ weights)
    eclg = gain @ exposed
    return torch.cat([shrunk + eclg, gain @ unexposed], dim=1)


class GACIL:
    r"""Recursive ridge head over buffer features; its state is $R$, $d \times d$, $W$, $d \times c$, and the class ids.

    Args:
        n_buffer: $d_B$.
        gamma: ridge weight $\gamma$; $R_0 = I/\gamma$.
        eclg: False drops the exposed-class label gain: plain ACIL (Zhuang et al., NeurIPS 2022), which assumes that
            no class of a task has been seen in an earlier task. Only then do task borders matter.
        dtype: float64 unless rounding is the subject.
        device: where the state lives.

    Raises:
        ValueError: if `gamma` is not positive.
    """

    def __init__(
        self,
        n_buffer: int,
        *,
        gamma: float = 0.1,
        eclg: bool = True,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        if gamma <= 0:
            raise ValueError(f"gamma must be positive, got {gamma}: R_0 = I / gamma needs a ridge")
        self.eclg = eclg
        self.inverse: Tensor = torch.eye(n_buffer, dtype=dtype, device=device) / gamma
        self.weights: Tensor = torch.zeros(n_buffer, 0, dtype=dtype, device=device)
        self.classes: Tensor = torch.zeros(0, dtype=torch.long, device=device)
        self._n_before_task = 0

    def begin_task(self) -> None:
        """Remember which classes earlier tasks had; G-ACIL itself needs no task borders."""
        self._n_before_task = len(self.classes)

    def update(self, x: Float[Tensor, "n d"], labels: Int[Tensor, " n"]) -> None:
        """Absorb one batch of buffer features exactly, then forget it."""
        n_exposed = len(self.classes)
        self.classes = torch.cat([self.classes, new_classes(labels, self.classes)])
        targets = (labels[:, None] == self.classes).to(self.weights.dtype)
        exposed, unexposed = targets[:, :n_exposed], targets[:, n_exposed:]
        if not self.eclg:  # ACIL believes that classes of earlier tasks cannot occur
            exposed[:, : self._n_before_task] = 0
        phi = x.to(self.weights.dtype)
        self.inverse, gain = woodbury_step(self.inverse, phi)
        self.weights = head_step(self.weights, phi, gain, exposed, unexposed)
        if not torch.isfinite(self.weights).all():
            raise FloatingPointError("the weights are no longer finite: use float64 or a larger gamma")

    def predict(self, x: Float[Tensor, "n d"]) -> Int[Tensor, " n"]:
        """Class with the largest score $\\phi(x) W$."""
        return self.classes[(x.to(self.weights.dtype) @ self.weights).argmax(1)]


def joint_ridge(phi: Float[Tensor, "n d"], targets: Float[Tensor, "n c"], gamma: float) -> Float[Tensor, "d c"]:
    r"""All data at once: $W = (\Phi^\top\Phi + \gamma I)^{-1}\Phi^\top Y$, what the recursion must reproduce.

    Source: the paper's joint problem, $\min_W \lVert Y - \Phi W\rVert_F^2 + \gamma\lVert W\rVert_F^2$, no bias.
    """
    gram = phi.T @ phi
    gram.diagonal().add_(gamma)
    return torch.cholesky_solve(phi.T @ targets, _cholesky(gram))


def joint_gap(head: GACIL, phi: Float[Tensor, "n d"], labels: Int[Tensor, " n"], gamma: float) -> float:
    r"""Gap to the joint solution, $\lVert W - W_\mathrm{joint}\rVert_\infty / \lVert W_\mathrm{joint}\rVert_\infty$.

    Args:
        head: has learnt exactly these samples, in any order.
        phi: their buffer features; the joint problem is solved in float64 whatever the head's precision.
        labels: their classes.
        gamma: the head's ridge weight.
    """
    joint = joint_ridge(phi.double(), (labels[:, None] == head.classes).double(), gamma)
    return float((head.weights.double() - joint).abs().max() / joint.abs().max())


def new_classes(labels: Int[Tensor, " n"], known: Int[Tensor, " c"]) -> Int[Tensor, " c_new"]:
    """Classes of a batch that are not in `known`, in order of first appearance."""
    present, inverse = labels.unique(return_inverse=True)
    position = torch.arange(len(labels), device=labels.device)
    first = torch.full_like(present, len(labels)).scatter_reduce(0, inverse, position, "amin")
    ordered = present[first.argsort()]
    return ordered[~torch.isin(ordered, known)]


def keeps_label(labels: Int[Tensor, " n"], task: Int[Tensor, " n"]) -> Bool[Tensor, " n"]:
    r"""Which samples plain ACIL learns with their label: those in the first task that holds their class.

    All others enter $\Phi$ with an all-zero target, so ACIL's weights are those of `joint_ridge` with these targets:
    the recursion of `head_step` is linear in the targets, and ACIL erases $\bar Y_k$.

    Args:
        labels: class of each sample, in order of arrival.
        task: its task.
    """
    first = torch.full((int(labels.max()) + 1,), int(task.max()) + 1, device=task.device)
    return task == first.scatter_reduce(0, labels, task, "amin")[labels]


def _cholesky(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise FloatingPointError(
            "a matrix that must be positive definite is not, after rounding: use float64 or a larger gamma"
        )
    return factor
