r"""Neural-collapse metrics along the linear layers (Dang et al., ICML 2023, arXiv:2301.00437)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from glocal.theory.neural_collapse import ClosedForm


@dataclass(frozen=True)
class Targets:
    """Geometry that a minimiser should have at the input of each layer; every matrix has Frobenius norm one.

    Args:
        weights: target of $AA^\\top$ with $A = W_M\\cdots W_l$.
        features: target of $\\bar H_l^\\top\\bar H_l$.
        product: target of $W_M\\cdots W_l\\bar H_l$.
    """

    weights: Float[Tensor, "layers k k"]
    features: Float[Tensor, "layers k k"]
    product: Float[Tensor, "layers k k"]


def frame(k: int, kind: str) -> Float[Tensor, "k k"]:
    r"""$I_K/\sqrt K$ for `"of"`, $\frac1{\sqrt{K-1}}(I - \frac1K\mathbf 1\mathbf 1^\top)$ for `"etf"`.

    Raises:
        ValueError: for another kind.

    Source: definitions of the orthogonal frame and of the simplex equiangular tight frame.
    """
    identity = torch.eye(k, dtype=torch.float64)
    if kind == "of":
        return identity / math.sqrt(k)
    if kind == "etf":
        return (identity - 1 / k) / math.sqrt(k - 1)
    raise ValueError(f"kind must be 'of' or 'etf', got {kind!r}: a general frame comes from gof_targets")


def frame_targets(k: int, depth: int, kind: str) -> Targets:
    """The same frame at every layer, for balanced classes."""
    many = frame(k, kind).expand(depth, k, k)
    return Targets(many, many, many)


def gof_targets(solution: ClosedForm) -> Targets:
    r"""General orthogonal frame: diagonal matrices with lengths from the closed form, for imbalanced classes.

    Source: the official metrics of the imbalanced experiments, for any layer.
    """
    squares = solution.layer_values.square()
    after = squares.flip(0).cumprod(0).flip(0)  # product over layers l..M
    before = squares.cumprod(0) / squares.where(squares > 0, 1.0)  # product over layers 1..l-1
    diagonals = (after, solution.feature_lengths.square() * before, solution.scales.expand_as(squares))
    return Targets(*(torch.diag_embed(x / x.norm(dim=-1, keepdim=True)) for x in diagonals))


@dataclass(frozen=True)
class Metrics:
    """Distances from collapse at the input of each layer; all tend to zero."""

    nc1: Float[Tensor, "layers runs"]
    nc2_weights: Float[Tensor, "layers runs"]
    nc2_features: Float[Tensor, "layers runs"]
    nc3: Float[Tensor, "layers runs"]

    @property
    def worst(self) -> Float[Tensor, "4 runs"]:
        """Largest value over the layers: NC1, NC2 of weights, NC2 of features, NC3."""
        return torch.stack([x.amax(0) for x in (self.nc1, self.nc2_weights, self.nc2_features, self.nc3)])


def class_means(features: Float[Tensor, "runs d n"], onehot: Float[Tensor, "runs k n"]) -> Float[Tensor, "runs d k"]:
    r"""$\bar h_k$, the columns of $\bar H$; zero columns of `onehot` are left out."""
    return features @ onehot.mT / onehot.sum(-1)[:, None]


def variability(features: Float[Tensor, "runs d n"], onehot: Float[Tensor, "runs k n"]) -> Float[Tensor, " runs"]:
    r"""NC1 $= \frac1K\mathrm{tr}(\Sigma_W\Sigma_B^\dagger)$.

    $\Sigma_W$ is averaged over examples, $\Sigma_B$ over classes. With $B$ the class means minus the global mean,
    $\Sigma_B = BB^\top/K$, and the trace is a squared norm of $B^\dagger$ times the deviations. Singular values of $B$
    below $10^{-5}$ of the largest ($10^{-10}$ in $\Sigma_B$, which has rank at most $K$) count as zero.

    Source: NC1; the global mean is that of the examples, as in the official code.
    """
    used = onehot.sum(1, keepdim=True)
    n_total = used.sum(-1)
    means = class_means(features, onehot)
    centre = (features * used).sum(-1, keepdim=True) / n_total[..., None]
    deviations = (features - means @ onehot) * used
    whitened = torch.linalg.pinv(means - centre, rtol=1e-5) @ deviations
    return whitened.square().sum((1, 2)) / n_total[:, 0]


def _distance(matrices: Float[Tensor, "runs k k"], target: Float[Tensor, "k k"]) -> Float[Tensor, " runs"]:
    norms = matrices.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(matrices.dtype).tiny)
    return (matrices / norms - target.to(matrices)).norm(dim=(1, 2))


def collapse_metrics(
    features: Float[Tensor, "runs d n"],
    weights: Sequence[Float[Tensor, "runs _ _"]],
    onehot: Float[Tensor, "runs k n"],
    targets: Targets,
    *,
    is_centred: bool = False,
) -> Metrics:
    r"""NC1, NC2 and NC3 at the input $H_l$ of every linear layer.

    NC2 compares $AA^\top$, $A = W_M\cdots W_l$, and $\bar H_l^\top\bar H_l$ with their targets, NC3 compares
    $W_M\cdots W_l\bar H_l$; each matrix is divided by its Frobenius norm.

    Args:
        features: $H_1$.
        weights: $W_1, \dots, W_M$.
        onehot: $Y$; zero columns are padding.
        targets: from `frame_targets` or `gof_targets`.
        is_centred: subtract the mean of the class means first, for networks whose layers before the head carry a
            bias of their own; the free-features problem needs no centring.

    Source: metrics of the experiments section.
    """
    tails = [weights[-1]]
    for weight in reversed(weights[:-1]):
        tails.insert(0, tails[0] @ weight)
    columns: list[list[Tensor]] = [[], [], [], []]
    for layer, tail in enumerate(tails):
        means = class_means(features, onehot)
        means = means - means.mean(-1, keepdim=True) if is_centred else means
        columns[0].append(variability(features, onehot))
        columns[1].append(_distance(tail @ tail.mT, targets.weights[layer]))
        columns[2].append(_distance(means.mT @ means, targets.features[layer]))
        columns[3].append(_distance(tail @ means, targets.product[layer]))
        features = weights[layer] @ features
    return Metrics(*(torch.stack(column) for column in columns))


def cosines(vectors: Float[Tensor, "runs k d"]) -> Float[Tensor, "runs k k"]:
    """Cosines of all pairs of rows; rows of length zero have cosine zero with everything."""
    lengths = vectors.norm(dim=-1, keepdim=True)
    unit = vectors / lengths.where(lengths > 0, 1.0)
    return unit @ unit.mT


def largest_offdiagonal(matrices: Float[Tensor, "runs k k"]) -> Float[Tensor, " runs"]:
    """Largest absolute entry off the diagonal of each matrix."""
    k = matrices.shape[-1]
    return (matrices * (1 - torch.eye(k).to(matrices))).abs().amax((1, 2))
