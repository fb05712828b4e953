r"""Kernels that know nothing of locality, and tuning by exact leave-one-out, for `wide_cnn` (arXiv:2208.01003)."""

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.wide_cnn import arc_cosine


def fully_connected_kernels(
    cosines: Float[Tensor, "*batch"], depth: int
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    r"""RFK and NTK of a fully connected ReLU network with `depth` hidden layers,

    $$c \leftarrow \kappa_1(c), \qquad \Theta \leftarrow \kappa_0(c)\,\Theta + \kappa_1(c).$$

    Args:
        cosines: of whole inputs, $\langle x, y\rangle / \lVert x\rVert\lVert y\rVert$.
        depth: hidden layers.

    Source: the recursion of `hierarchical_kernels` with a single patch and no grouping.
    """
    c = theta = cosines
    for _ in range(depth):
        kappa0, kappa1 = arc_cosine(c)
        c, theta = kappa1, kappa0 * theta + kappa1
    return c, theta


def whole_cosines(x: Float[Tensor, "n p s"], y: Float[Tensor, "m p s"]) -> Float[Tensor, "n m"]:
    """Cosines of whole inputs, all patches together."""
    x, y = (part.flatten(1) / part.flatten(1).norm(dim=1, keepdim=True) for part in (x, y))
    return x @ y.T


def stationary_kernel(
    x: Float[Tensor, "n p s"], y: Float[Tensor, "m p s"], *, name: str, bandwidth: float
) -> Float[Tensor, "n m"]:
    r"""Gaussian $e^{-r^2/2w^2}$ or Laplace $e^{-r/w}$ kernel of the distance $r$ of whole inputs.

    Args:
        x: points.
        y: points.
        name: `"gaussian"` or `"laplace"`.
        bandwidth: $w$, in units of the root mean square distance of independent inputs, $\sqrt{2p}$.

    Raises:
        ValueError: for another name.
    """
    if name not in ("gaussian", "laplace"):
        raise ValueError(f"name must be gaussian or laplace, got {name!r}")
    # differences, not inner products: the Laplace kernel has a kink at zero distance
    distance = torch.cdist(x.flatten(1), y.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    scaled = distance / (bandwidth * (2 * x.shape[1]) ** 0.5)
    return (-scaled.square() / 2).exp() if name == "gaussian" else (-scaled).exp()


def tuned_predictions(
    kernels: list[tuple[Float[Tensor, "n n"], Float[Tensor, "n m"]]],
    targets: Float[Tensor, "n fields"],
    ridges: list[float],
) -> Float[Tensor, "m fields"]:
    r"""Kernel ridge regression with kernel and ridge chosen by exact leave-one-out, for each output alone.

    With $A = (K + \lambda\bar k I)^{-1}$ the residual of point $i$, when it is left out, is $(A f)_i / A_{ii}$; one
    eigenbasis per kernel serves all ridges and outputs.

    Args:
        kernels: candidates $(K(X, X), K(X, X_*))$, e.g. one per bandwidth.
        targets: $f(X)$, one column per output.
        ridges: candidates $\lambda$, relative to the mean $\bar k$ of the diagonal.
    """
    best = targets.new_full((targets.shape[1],), torch.inf)
    chosen = targets.new_zeros(kernels[0][1].shape[1], targets.shape[1])
    for train, cross in kernels:
        values, vectors = torch.linalg.eigh(train)
        rotated, squares, onto_test = vectors.T @ targets, vectors.square(), cross.T @ vectors
        for ridge in ridges:
            inverse = 1 / (values.clamp_min(0) + ridge * train.diagonal().mean())
            filtered = inverse[:, None] * rotated
            error = (vectors @ filtered / (squares @ inverse)[:, None]).square().mean(0)
            better = error < best
            best = torch.where(better, error, best)
            chosen[:, better] = onto_test @ filtered[:, better]
    return chosen
