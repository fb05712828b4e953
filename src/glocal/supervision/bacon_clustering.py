r"""Prediction by clustering: k-means, and the semi-supervised k-means of GCD (Vaze et al., CVPR 2022).

n images, m labelled images, d features, i starts, k clusters.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from glocal.supervision import bacon


def pinned_kmeans(
    features: Float[Tensor, "n d"],
    given: Int[Tensor, " n"],
    n_known: int,
    n_clusters: int,
    *,
    n_init: int = 10,
    n_iterations: int = 20,
    rng: np.random.Generator,
) -> Int[np.ndarray, " n"]:
    """Semi-supervised k-means of GCD: labelled points stay in the cluster of their class.

    Centres of known classes start at the mean of their labelled points, the others by k-means++ on the rest. All starts
    run side by side.

    Args:
        features: any scale; they are normalised here.
        given: classes, -1 for free points.
        n_known: number of known classes, each with a labelled point.
        n_clusters: number of clusters.
        n_init: starts; the smallest inertia wins.
        n_iterations: Lloyd steps per start.
        rng: source of the starts.

    Raises:
        ValueError: if a known class has no labelled point.
    """
    x, pins = F.normalize(features, dim=-1).float().cpu().numpy(), given.cpu().numpy()
    is_pinned, n_labels = pins >= 0, np.bincount(pins[pins >= 0], minlength=n_known)
    if (n_labels[:n_known] == 0).any():
        raise ValueError(f"each of the {n_known} known classes needs a labelled point, got {n_labels.tolist()} of them")

    def distances(centres: Float[np.ndarray, "i k d"]) -> Float[np.ndarray, "i n k"]:
        return (1 - 2 * x @ centres.swapaxes(1, 2) + (centres**2).sum(-1)[:, None]).clip(min=0)

    known = np.stack([x[pins == k].mean(0) for k in range(n_known)])
    centres = np.repeat(known[None], n_init, 0)
    while centres.shape[1] < n_clusters:  # k-means++: far points first, by their squared distance
        weights = np.where(is_pinned, 0, distances(centres).min(-1)).cumsum(-1)
        chosen = (weights < rng.random((n_init, 1)) * weights[:, -1:]).sum(-1)
        centres = np.concatenate([centres, x[chosen][:, None]], 1)
    for _ in range(n_iterations):
        clusters = np.where(is_pinned, pins, distances(centres).argmin(-1))
        onehot = np.eye(n_clusters, dtype=x.dtype)[clusters].swapaxes(1, 2)
        sizes = onehot.sum(-1, keepdims=True)
        centres = np.where(sizes > 0, onehot @ x / sizes.clip(min=1), centres)
    inertia = np.take_along_axis(distances(centres), clusters[..., None], -1).sum((1, 2))
    return clusters[inertia.argmin()].astype(np.int64)


def pinned_clusters(
    test: Float[Tensor, "n d"],
    labelled: Float[Tensor, "m d"],
    given: Int[Tensor, " m"],
    n_known: int,
    n_clusters: int,
    n_init: int,
    state: int,
) -> Int[np.ndarray, " n"]:
    """Clusters of test images by `pinned_kmeans`, with labelled training images pinned.

    Args:
        test: features of the test images.
        labelled: features of the labelled images.
        given: their classes.
        n_known: number of known classes.
        n_clusters: number of clusters.
        n_init: starts.
        state: seed of the starts.
    """
    pins = torch.cat([torch.full((len(test),), bacon.UNLABELLED), given])
    points, rng = torch.cat([test, labelled]), np.random.default_rng(state)
    return pinned_kmeans(points, pins, n_known, n_clusters, n_init=n_init, rng=rng)[: len(test)]
