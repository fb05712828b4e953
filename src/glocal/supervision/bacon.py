r"""BaCon (Bai et al., NeurIPS 2023, arXiv:2310.01376): losses and prior estimate for long-tailed category discovery.

Classes are numbered so that $0, \dots, K - 1$ are known and $K, \dots, C - 1$ novel; the label -1 means unlabelled. All
losses take leading axes `s`, one entry for each of several networks trained side by side, and return one value each.

b images per batch in two views, k classes, d features, n training images.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

UNLABELLED = -1


def teacher_temperature(epoch: float, *, start: float = 0.07, end: float = 0.04, warmup: float = 30.0) -> float:
    """Temperature of the teacher: linear from `start` to `end` over `warmup` epochs, then constant.

    Source: default settings of the official code.
    """
    return start + (end - start) * min(1.0, epoch / warmup) if warmup > 0 else end


def self_distillation(outputs: Float[Tensor, "*s 2 b k"], tau: float, tau_teacher: float) -> Float[Tensor, "*s"]:
    r"""Cross-entropy of each view against the sharpened prediction of the other, $L_{dis}$.

    The teacher is the same network with stopped gradient, $q^{(v)} = \mathrm{softmax}(o^{(v)}/\tau_t)$.

    Args:
        outputs: cosines $o$ with the class prototypes.
        tau: temperature of the student.
        tau_teacher: temperature $\tau_t$ of the teacher.
    """
    teacher = (outputs.detach() / tau_teacher).softmax(-1).flip(-3)
    return -(teacher * (outputs / tau).log_softmax(-1)).sum(-1).mean((-1, -2))


def known_cross_entropy(
    outputs: Float[Tensor, "*s v b k"], labels: Int[Tensor, "*s b"], tau: float
) -> Float[Tensor, "*s"]:
    """Cross-entropy $L_{cls}$ on the labelled rows of all v views; zero for a batch without labels."""
    is_labelled = (labels != UNLABELLED).to(outputs.dtype)
    onehot = F.one_hot(labels.clamp(min=0), outputs.shape[-1]).to(outputs.dtype)
    loss = -((outputs / tau).log_softmax(-1) * onehot[..., None, :, :]).sum(-1).mean(-2)
    return (loss * is_labelled).sum(-1) / is_labelled.sum(-1).clamp(min=1)


def prior_regularizer(
    mean_probs: Float[Tensor, "*s k"], counts: Float[Tensor, "*s k"], power: Float[Tensor, "*s"]
) -> Float[Tensor, "*s"]:
    r"""Pull of the mean prediction towards the estimated class prior,

    $$L_{reg} = \log C + \sum_c r_c\log r_c = \mathrm{KL}(r \,\|\, \mathrm{uniform}), \qquad
    r_c \propto \bar p_c/\hat n_c^{\,p}.$$

    It is zero exactly at $\bar p \propto \hat n^{\,p}$; $p = 0$ is the uniform prior of SimGCD.

    Args:
        mean_probs: mean prediction $\bar p$ over the rows of the batch.
        counts: estimated class sizes $\hat n$, at least 1; only their ratios matter.
        power: exponent $p$.
    """
    log_ratio = mean_probs.clamp(min=1e-12).log() - power[..., None] * counts.log()
    log_r = log_ratio.log_softmax(-1)  # normalises r to sum to one
    return math.log(counts.shape[-1]) + (log_r.exp() * log_r).sum(-1)


def soft_labels(
    outputs: Float[Tensor, "*s 2 b k"], counts: Float[Tensor, "*s k"], tau: float, tau_adj: Float[Tensor, "*s"]
) -> Float[Tensor, "*s b k"]:
    r"""Logit-adjusted predictions, mean of the two views: $s = \frac12\sum_v\mathrm{softmax}(o^{(v)}/\tau -
    \tau_a\log\hat\pi)$ with $\hat\pi = \hat n/\sum\hat n$, without gradient."""
    log_prior = (counts / counts.sum(-1, keepdim=True)).log()
    adjust = (tau_adj[..., None] * log_prior)[..., None, None, :]
    return (outputs.detach() / tau - adjust).softmax(-1).mean(-3)


def keep_rates(
    labels: Int[Tensor, "*s b"], counts: Float[Tensor, "*s k"], alpha: Float[Tensor, "*s"], beta: Float[Tensor, "*s"]
) -> Float[Tensor, "*s k"]:
    r"""Sampling rates $\rho_c = (\hat n_{\min}/\hat n_c)^\alpha$ of classes labelled in this batch, exponent $\beta$
    for the others."""
    onehot = F.one_hot(labels.clamp(min=0), counts.shape[-1]).bool()
    is_present = (onehot & (labels != UNLABELLED)[..., None]).any(-2)
    ratio = counts.min(-1, keepdim=True).values / counts
    return torch.where(is_present, ratio ** alpha[..., None], ratio ** beta[..., None])


def keep_confident(
    soft: Float[Tensor, "*s b k"],
    labels: Int[Tensor, "*s b"],
    rates: Float[Tensor, "*s k"],
    uniforms: Float[Tensor, "*s b k"],
) -> Bool[Tensor, "*s b"]:
    r"""Re-sampling of the batch: which images take part in the soft contrastive loss.

    Of the $N_c$ unlabelled images predicted as class $c$ the $m_c \sim \mathrm{Binomial}(N_c, \rho_c)$ most confident
    stay; labelled images always stay.

    Args:
        soft: soft labels $s$; predicted class and confidence are their arg max and maximum.
        labels: classes, -1 for unlabelled images.
        rates: $\rho$, see `keep_rates`.
        uniforms: in [0, 1): $m_c$ counts those below $\rho_c$ among the first $N_c$ of column c. The same
            numbers for several methods make them comparable.
    """
    confidence, preds = soft.max(-1)
    is_free = labels == UNLABELLED
    members = F.one_hot(preds, soft.shape[-1]) * is_free[..., None]
    place = torch.arange(soft.shape[-2], device=soft.device)[:, None]
    drawn = ((uniforms < rates[..., None, :]) & (place < members.sum(-2, keepdim=True))).sum(-2)
    order = confidence.argsort(dim=-1, descending=True, stable=True)
    sorted_members = members.gather(-2, order[..., None].expand_as(members))
    rank_sorted = ((sorted_members.cumsum(-2) - 1) * sorted_members).sum(-1)  # among its own predicted class
    rank = torch.zeros_like(rank_sorted).scatter(-1, order, rank_sorted)
    return ~is_free | (rank < drawn.gather(-1, preds))


def similarities(z: Float[Tensor, "*s r d"]) -> Float[Tensor, "*s r r"]:
    r"""Cosines $z_a\cdot z_b$ of unit vectors, $-\infty$ on the diagonal: no row is compared with itself."""
    itself = torch.eye(z.shape[-2], dtype=torch.bool, device=z.device)
    return (z @ z.mT).masked_fill(itself, -torch.inf)


def contrastive_loss(
    z: Float[Tensor, "*s r d"],
    kernel: Float[Tensor, "*s r r"],
    assignments: Float[Tensor, "*s b k"],
    keep: Bool[Tensor, "*s b"],
    temperature: float | Float[Tensor, "*s"],
) -> Float[Tensor, "*s"]:
    r"""Contrastive loss with pairwise weights over the kept images, the common form of all three losses:

    $$L = -\frac1{2M}\sum_a\frac{\sum_{b \ne a}w_{ab}\log\bigl(e^{z_a\cdot z_b/\tau}/\sum_{b' \ne a}
    e^{z_a\cdot z_{b'}/\tau}\bigr)}{\sum_{b \ne a}w_{ab}}.$$

    The weight is $w = 1$ for the two views of one image and $w_{ab} = s_a\cdot s_b$ for rows of different images.
    InfoNCE: $s = 0$. SupCon: $s$ one-hot, labelled images kept. Soft: $s$ are soft labels. As $w$ has rank k apart from
    the pairs of views, $\sum_b w_{ab}z_b$ never needs the matrix $w$.

    Args:
        z: unit vectors, r = 2b rows [view 1; view 2].
        kernel: $e^{z_a\cdot z_b/\tau}$ with zero diagonal, see `similarities`; in float32 $\tau$ must be 0.02 at least.
        assignments: $s$, one row per image.
        keep: the images that take part, $M$ of them; the loss is zero if there are none.
        temperature: $\tau$, one for all or one for each entry of the leading axes.
    """
    tau = temperature[..., None, None] if isinstance(temperature, Tensor) else temperature
    kept = keep.to(z.dtype)
    log_total = (kernel @ torch.cat([kept, kept], -1)[..., None]).squeeze(-1).clamp(min=1e-30).log()
    views = z.unflatten(-2, (2, -1))
    both = views.sum(-3)  # sum of the two views of each image
    own = assignments.square().sum(-1)  # weight of an image with itself, replaced by 1 for its other view
    pull = assignments @ (assignments.mT @ (both * kept[..., None])) - own[..., None] * both
    total = 2 * ((assignments * (assignments * kept[..., None]).sum(-2, keepdim=True)).sum(-1) - own) + 1
    positive = (views * (pull[..., None, :, :] + views.flip(-3))).sum(-1) / (tau * total[..., None, :])
    loss = (log_total.unflatten(-1, (2, -1)) - positive).sum(-2) * kept
    return loss.sum(-1) / (2 * kept.sum(-1)).clamp(min=1)


def class_map(
    clusters: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], n_known: int, n_classes: int
) -> Int[np.ndarray, " k"]:
    """Class of each cluster: the Hungarian assignment on the share of each cluster that is labelled as a class.

    Args:
        clusters: cluster of each image, in `range(n_classes)`.
        labels: known class of each labelled image, -1 for the others.
        n_known: number of known classes; clusters left over are assigned to the novel ones.
        n_classes: number of classes and of clusters.
    """
    from scipy.optimize import linear_sum_assignment

    sizes = np.bincount(clusters, minlength=n_classes).clip(min=1)
    contingency = np.zeros((n_classes, n_classes))
    is_labelled = labels >= 0
    np.add.at(contingency, (clusters[is_labelled], labels[is_labelled]), 1)
    return linear_sum_assignment(contingency / sizes[:, None], maximize=True)[1]


def prior_from_clusters(
    clusters: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], n_known: int, n_classes: int
) -> Float[np.ndarray, " k"]:
    r"""Class sizes $\hat n$ from a clustering of labelled and unlabelled images together.

    Of the clusters matched to known classes only the multiset of sizes is used: it is assigned monotonically, the
    smallest size to the class with the fewest labels. The other sizes fill the novel slots in falling order; which slot
    is which novel class is arbitrary.

    Args:
        clusters: cluster of each image, in `range(n_classes)`.
        labels: known class of each labelled image, -1 for the others.
        n_known: number $K$ of known classes.
        n_classes: number $C$ of classes.

    Source: `prior estimation` of the official code; empty clusters count as 1.
    """
    sizes = np.bincount(clusters, minlength=n_classes).clip(min=1)
    is_known = class_map(clusters, labels, n_known, n_classes) < n_known
    n_labels = np.bincount(labels[labels >= 0], minlength=n_known)[:n_known]
    counts = np.empty(n_classes)
    counts[np.argsort(n_labels, kind="stable")] = np.sort(sizes[is_known])
    counts[n_known:] = np.sort(sizes[~is_known])[::-1]
    return counts


def slot_classes(
    clusters: Int[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    truth: Int[np.ndarray, " n"],
    n_known: int,
    n_classes: int,
) -> Int[np.ndarray, " k"]:
    """True class of each slot of `prior_from_clusters`, to compare an estimate with the true sizes; not for training.

    Known slots are their classes; clusters of novel slots are assigned to the novel classes by a Hungarian assignment
    on the true labels.

    Args:
        clusters: cluster of each image, in `range(n_classes)`.
        labels: known class of each labelled image, -1 for the others.
        truth: true class of each image.
        n_known: number of known classes.
        n_classes: number of classes and of clusters.
    """
    from scipy.optimize import linear_sum_assignment

    sizes = np.bincount(clusters, minlength=n_classes)
    novel = (class_map(clusters, labels, n_known, n_classes) >= n_known).nonzero()[0]
    novel = novel[np.argsort(sizes[novel], kind="stable")[::-1]]  # the order of the slots
    hits = np.zeros((n_classes, n_classes))
    np.add.at(hits, (clusters, truth), 1)
    return np.r_[np.arange(n_known), n_known + linear_sum_assignment(hits[novel, n_known:], maximize=True)[1]]


def kmeans(
    features: Float[Tensor, "n d"], n_clusters: int, *, n_init: int = 10, random_state: int = 0
) -> Int[np.ndarray, " n"]:
    """Clusters of L2-normalised features by scikit-learn's k-means.

    Args:
        features: any scale; they are normalised here.
        n_clusters: number of clusters, at most n.
        n_init: starts; the one with the smallest inertia wins.
        random_state: seed of the starts, below $2^{32}$.
    """
    from sklearn.cluster import KMeans

    points = F.normalize(features, dim=-1).float().cpu().numpy()
    return KMeans(n_clusters, n_init=n_init, random_state=random_state).fit(points).labels_.astype(np.int64)


def hungarian_map(preds: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], n_classes: int) -> Int[np.ndarray, " k"]:
    """Class of each predicted id under the ONE assignment that maximises accuracy over all classes together."""
    from scipy.optimize import linear_sum_assignment

    hits = np.zeros((n_classes, n_classes))
    np.add.at(hits, (preds, labels), 1)
    return linear_sum_assignment(hits, maximize=True)[1]


def class_accuracy(
    preds: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], n_classes: int
) -> Float[np.ndarray, " k"]:
    """Accuracy of each true class under `hungarian_map`; on a balanced test set their mean is the accuracy."""
    hit = hungarian_map(preds, labels, n_classes)[preds] == labels
    return np.bincount(labels, weights=hit, minlength=n_classes) / np.bincount(labels, minlength=n_classes).clip(min=1)
